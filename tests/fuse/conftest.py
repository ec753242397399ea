# SPDX-License-Identifier: Apache-2.0
"""A small signed image, made once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rofs.fuse.shared import SharedState
from rofs.image.build import SigningKey, build_image
from rofs.source.directory import DirectorySource
from tests.conftest import SigningKeys


@pytest.fixture(scope="session")
def image_path(tmp_path_factory: pytest.TempPathFactory, signing_keys: SigningKeys) -> Path:
    base = tmp_path_factory.mktemp("image")
    tree = base / "tree"
    (tree / "dir" / "below").mkdir(parents=True)
    (tree / "dir" / "file").write_bytes(os.urandom(20_000))
    (tree / "dir" / "below" / "same").write_bytes((tree / "dir" / "file").read_bytes())
    os.link(tree / "dir" / "file", tree / "hard")
    Path(os.fsdecode(os.fsencode(tree) + b"/odd\xff\\")).write_bytes(b"odd")
    output = base / "image.raw"
    build_image(
        DirectorySource(str(tree)), str(output), SigningKey(signing_keys.key, signing_keys.certificate), name="edge"
    )
    return output


@pytest.fixture
def image_fd(image_path: Path) -> Iterator[int]:
    fd = os.open(image_path, os.O_RDONLY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def shared() -> Iterator[SharedState]:
    """The memory of a mount."""
    shared = SharedState()
    yield shared
    os.close(shared.fd)
