# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rofs.source.directory import DirectorySource
from rofs.source.layers import LayeredSource
from tests.trees import MemorySource, content, directory, file, find, symlink

from . import archives
from .archives import data, source


def layered(*roots: object) -> LayeredSource:
    return LayeredSource([MemorySource(root) for root in roots])  # type: ignore[arg-type]


def test_the_later_file_counts_and_the_others_stay() -> None:
    found = layered(
        directory({b"a": file(b"1"), b"b": file(b"1")}),
        directory({b"b": file(b"2"), b"c": file(b"2")}),
        directory({b"c": file(b"3")}),
    )
    assert {name: data(found, inode) for name, inode in found.tree.root.children.items()} == {
        b"a": b"1",
        b"b": b"2",
        b"c": b"3",
    }


def test_directories_are_merged_and_take_the_later_attributes() -> None:
    upper = directory({b"x": file(b"u")}, mode=0o700, xattrs=((b"user.a", b"b"),))
    upper.uid, upper.gid, upper.mtime_ns = 1, 2, 3
    lower = directory({b"y": file(b"l")}, xattrs=((b"user.gone", b""),))
    found = layered(directory({b"d": lower}), directory({b"d": upper})).tree.root.children[b"d"]
    assert sorted(found.children) == [b"x", b"y"]
    assert (found.mode, found.uid, found.gid, found.mtime_ns) == (stat.S_IFDIR | 0o700, 1, 2, 3)
    assert found.xattrs == ((b"user.a", b"b"),)
    assert found.nlink == 2


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_what_is_no_directory_takes_the_place_of_a_whole_one(kind: str) -> None:
    new = file(b"new") if kind == "file" else symlink(b"to")
    found = layered(directory({b"d": directory({b"x": file()})}), directory({b"d": new}))
    assert found.tree.root.children[b"d"] is new
    assert len(list(found.tree.walk())) == 2
    assert found.warnings == []


def test_a_directory_in_place_of_a_symlink_is_told() -> None:
    """`lib` in an archive over a system where /lib leads to usr/lib: the system would not start."""
    found = layered(
        directory({b"lib": symlink(b"usr/lib"), b"f": file()}),
        directory({b"lib": directory({b"x": file()}), b"f": directory()}),
    )
    assert found.tree.root.children[b"lib"].is_directory
    (warning,) = found.warnings
    assert "/lib was a symbolic link to usr/lib" in warning


def test_hard_links_across_layers() -> None:
    lower, upper = file(b"lower"), file(b"upper")
    found = layered(directory({b"a": lower, b"b": lower}), directory({b"a": upper, b"d": directory({b"c": upper})}))
    root = found.tree.root
    assert (lower.nlink, lower.path(), data(found, lower)) == (1, b"/b", b"lower")
    assert root.children[b"a"] is find(root, b"d/c")
    assert (upper.nlink, data(found, upper)) == (2, b"upper")


def test_implied_directories_change_nothing(tmp_path: Path) -> None:
    """The archive has no member for `usr`, so it has nothing to say about it."""
    lower = directory({b"usr": directory(mode=0o711)}, mode=0o750)
    found = LayeredSource([MemorySource(lower), source(tmp_path, archives.file(b"usr/new/x", b"x"))]).tree.root
    assert (stat.S_IMODE(found.mode), stat.S_IMODE(found.children[b"usr"].mode)) == (0o750, 0o711)
    assert stat.S_IMODE(find(found, b"usr/new").mode) == 0o755


def test_a_directory_over_an_archive(tmp_path: Path) -> None:
    (tmp_path / "tree" / "d").mkdir(parents=True)
    (tmp_path / "tree" / "d" / "x").write_bytes(content(3_000_000))
    os.link(tmp_path / "tree" / "d" / "x", tmp_path / "tree" / "y")
    archive = source(tmp_path, archives.file(b"y", b"old"), archives.file(b"d/z", b"z"))
    found = LayeredSource([archive, DirectorySource(str(tmp_path / "tree"))])
    assert data(found, find(found.tree.root, b"d/x")) == content(3_000_000)
    assert data(found, find(found.tree.root, b"d/z")) == b"z"
    assert find(found.tree.root, b"y").nlink == 2


def test_layers_deeper_than_the_stack() -> None:
    roots = []
    for _ in range(2):
        root = deep = directory()
        for _ in range(3000):
            below = directory()
            deep.add(b"d", below)
            deep = below
        roots.append(root)
    assert len(list(layered(*roots).tree.walk())) == 3001
