# SPDX-License-Identifier: Apache-2.0
"""What programs may import from `rofs` itself."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest

import rofs
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("name", rofs.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(rofs, name) is not None


def test_at_most_ten_names_are_public() -> None:
    assert len(rofs.__all__) <= 10


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = rofs.absent


def test_the_version_is_that_of_the_package() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    assert rofs.__version__.count(".") == 2


def test_importing_it_loads_neither_cryptography_nor_fuse() -> None:
    program = "import rofs, sys; print(sorted({'cryptography', 'pyfuse3', 'trio', 'tqdm'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"[]\n"
