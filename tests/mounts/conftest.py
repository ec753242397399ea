# SPDX-License-Identifier: Apache-2.0
"""Images that the tests of real mounts share: a real Debian, and a small tree to attack."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import SigningKeys
from tests.mounts.calls import tree
from tests.mounts.calls.answers import Answers, collect
from tests.mounts.harness import rofs


def _build(source: Path, image: Path, keys: SigningKeys, *options: str) -> Path:
    rofs("build", source, "-o", image, "--key", keys.key_path, "--cert", keys.certificate_path, *options)
    return image


@pytest.fixture(scope="session")
def debian_image(debian_root: Path, signing_keys: SigningKeys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("debian") / "debian.raw"
    return _build(debian_root, image, signing_keys, "--name", "debian", "--release", "12")


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Something of every kind that can be attacked."""
    root = tmp_path_factory.mktemp("small") / "tree"
    root.mkdir()
    for name, mode in (("open-to-all", 0o666), ("plain", 0o644), ("program", 0o755)):
        (root / name).write_text(f"#!/bin/sh\n# {name}\nexit 0\n" * 300)
        (root / name).chmod(mode)
    os.setxattr(root / "open-to-all", "user.note", b"1")
    for directory in ("directory", "empty"):
        (root / directory).mkdir()
        (root / directory).chmod(0o777)
    (root / "directory" / "inner").write_text("inner")
    os.link(root / "plain", root / "directory" / "hard-link")
    for name in ("large", "linked"):  # several blocks, each with lines of its own
        (root / name).write_bytes(b"".join(b"%s %08d\n" % (name.encode(), i) for i in range(1500)))
    os.link(root / "linked", root / "directory" / "linked-too")
    (root / "symlink").symlink_to("open-to-all")
    os.mkfifo(root / "fifo")
    (root / "fifo").chmod(0o666)
    (root / "copy-a").write_bytes(b"same" * 5000)
    (root / "copy-b").write_bytes(b"same" * 5000)
    root.chmod(0o777)
    return root


@pytest.fixture(scope="session")
def small_image(small_tree: Path, signing_keys: SigningKeys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(small_tree, tmp_path_factory.mktemp("small") / "small.raw", signing_keys)


@pytest.fixture
def trust(signing_keys: SigningKeys) -> Path:
    return signing_keys.certificate_path


@pytest.fixture(scope="session")
def answers(signing_keys: SigningKeys, tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """What every call gets from rofs and from the kernel's EROFS, on a tree with xattrs and ACLs."""
    place = tmp_path_factory.mktemp("answers")
    tree.make(place / "tree")
    return collect(_build(place / "tree", place / "every-kind.raw", signing_keys), signing_keys.certificate_path, place)
