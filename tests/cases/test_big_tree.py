# SPDX-License-Identifier: Apache-2.0
"""A tree of 400,000 things that are large or odd: from the directory and from an archive it is one image.

A mount of rofs and the kernel's own EROFS show it as it was. It takes minutes, so only with `--long`.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.compare import differences
from tests.conftest import SigningKeys
from tests.mounts.harness import ROFS, kernel_erofs, mounted, partitions

from .big_tree import EMPTY_FILES, ENTRIES, HUGE, LINKS, SPARSE_BYTES, SUBDIRECTORIES, big_tree

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, device nodes, foreign owners"),
]


@dataclass(frozen=True)
class Big:
    """The tree, its image, and the root hashes of the image made of it and of the one made of its archive."""

    tree: Path
    image: Path
    of_directory: str
    of_archive: str


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory, signing_keys: SigningKeys) -> Iterator[Big]:
    place = tmp_path_factory.mktemp("big")
    with big_tree(place / "disk") as tree:
        command = ["tar", "--format=pax", "--sparse", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner"]
        subprocess.run([*command, "-C", tree, "-cf", place / "tree.tar", "."], check=True)
        hashes = [_build(source, place / f"{source.name}.raw", signing_keys) for source in (tree, place / "tree.tar")]
        (place / "tree.tar").unlink()
        (place / "tree.tar.raw").unlink()
        yield Big(tree, place / "tree.raw", *hashes)
        (place / "tree.raw").unlink()


def _build(source: Path, image: Path, keys: SigningKeys) -> str:
    """Not by the harness, whose patience is for small trees."""
    words = ("build", source, "-o", image, "--key", keys.key_path, "--cert", keys.certificate_path, "--json")
    root_hash = json.loads(subprocess.run([ROFS, *words], check=True, stdout=subprocess.PIPE).stdout)["root_hash"]
    assert isinstance(root_hash, str)
    return root_hash


def test_the_archive_and_the_directory_have_one_root_hash(big: Big) -> None:
    assert big.of_archive == big.of_directory


def test_holes_links_and_empty_files_take_no_room(big: Big) -> None:
    """An inode and a name of each, and next to nothing else: the holes alone are 5 GiB."""
    things = ENTRIES + EMPTY_FILES + SUBDIRECTORIES
    assert big.image.stat().st_size < things * 160 + LINKS * 32 + (16 << 20)


def test_a_mount_shows_the_big_tree_as_it_was(big: Big, signing_keys: SigningKeys, tmp_path: Path) -> None:
    with mounted(big.image, signing_keys.certificate_path, tmp_path) as mount:
        assert differences(big.tree, mount.directory) == []
        _check_counts(mount.directory)
        assert mount.status()["corruption"] == 0
        _check_copies(big.tree / HUGE, mount.directory / HUGE, tmp_path)


def test_the_kernel_shows_the_big_tree_as_it_was(big: Big, tmp_path: Path) -> None:
    part = partitions(big.image)["root"]
    with kernel_erofs(big.image, tmp_path / "mnt", part["offset"], part["size"]) as directory:
        assert differences(big.tree, directory) == []
        _check_counts(directory)


def _check_copies(source: Path, huge: Path, place: Path) -> None:
    """Of 5 GiB of holes, by programs that know of holes."""
    subprocess.run(["cp", "--sparse=always", huge, place / "copy"], check=True)
    try:
        subprocess.run(["cmp", source, place / "copy"], check=True)
        assert (place / "copy").stat().st_blocks * 512 < 1 << 20
    finally:
        (place / "copy").unlink()
    packed = 'set -o pipefail; tar --sparse -C "$1" -cf - "$2" | tar -xOf - | cmp - "$3"'
    subprocess.run(["bash", "-c", packed, "bash", huge.parent, huge.name, source], check=True)


def _check_counts(top: Path) -> None:
    """What a comparison leaves out or might not notice: links of directories, and what `find` meets."""
    for path in (top, *top.iterdir()):
        if path.is_dir():
            subdirectories = sum(entry.is_dir(follow_symlinks=False) for entry in os.scandir(path))
            assert path.stat().st_nlink == 2 + subdirectories, path
    assert (top / "subdirectories").stat().st_nlink == 2 + SUBDIRECTORIES
    assert (top / "links-to-one" / "first").stat().st_nlink == LINKS
    for name, kind, count in (
        ("entries", "f", ENTRIES),
        ("subdirectories", "d", SUBDIRECTORIES + 1),
        ("links-to-one", "f", LINKS),
        ("empty", "f", EMPTY_FILES),
    ):
        found = subprocess.run(["find", top / name, "-type", kind], check=True, stdout=subprocess.PIPE).stdout
        assert len(lines := found.splitlines()) == len(set(lines)) == count, name
    assert len({entry.inode() for entry in os.scandir(top / "empty")}) == EMPTY_FILES
    sparse = (top / HUGE).stat()
    assert stat.S_ISREG(sparse.st_mode)
    assert (sparse.st_size, sparse.st_blocks) == (SPARSE_BYTES, SPARSE_BYTES // 512)  # as the kernel counts for EROFS
