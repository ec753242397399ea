# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import SigningKeys

from .builder import Pristine, SmallImage, build_pristine, small_tree


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory, signing_keys: SigningKeys) -> Pristine:
    return build_pristine(tmp_path_factory.mktemp("pristine") / "image.raw", signing_keys, small_tree())


@pytest.fixture
def image(tmp_path: Path, pristine: Pristine, signing_keys: SigningKeys) -> SmallImage:
    return SmallImage(tmp_path / "image.raw", pristine, signing_keys)
