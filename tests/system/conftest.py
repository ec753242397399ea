# SPDX-License-Identifier: Apache-2.0
"""The files that are installed, as for a real system."""

from __future__ import annotations

import sys

import pytest

import rofs
from rofs.cli.main import complete_parser
from rofs.system import content
from rofs.system.content import SystemFile


def system_files(python: str = sys.executable, prefix: str = "/usr/local") -> dict[str, SystemFile]:
    found = content.files(complete_parser(), python=python, version=rofs.__version__, prefix=prefix, sbin="/usr/sbin")
    files = {file.path: file for file in found}
    assert len(files) == len(found)
    return files


@pytest.fixture(scope="session")
def files() -> dict[str, SystemFile]:
    return system_files()
