# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import pytest

from rofs.tree import Inode, finish, walk
from tests.trees import directory, file, find, symlink


def paths(root: Inode) -> list[bytes]:
    return [inode.path() for inode in walk(root)]


def test_the_order_is_depth_first_and_bytewise() -> None:
    root = directory({b"b": directory({b"z": file(), b"a": file()}), b"!": file(), b"a": file(), b"\xff": file()})
    finish(root)
    assert paths(root) == [b"/", b"/!", b"/a", b"/b", b"/b/a", b"/b/z", b"/\xff"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_names_does_not_show(order: tuple[int, ...]) -> None:
    linked, link = file(b"x"), symlink(b"y")
    inner = [(b"n", linked), (b"m", link), (b"empty", directory())]
    outer = [(b"sub", directory(dict(inner[i] for i in order))), (b"z", linked), (b"t", link)]
    root = directory(dict(outer[i] for i in order))
    finish(root)
    assert paths(root) == [b"/", b"/sub", b"/sub/empty", b"/sub/m", b"/sub/n"]
    assert (root.nlink, find(root, b"sub").nlink, linked.nlink, link.nlink) == (3, 3, 2, 2)
    assert linked.parent is find(root, b"sub")
    finish(root)  # finishing again changes nothing
    assert (root.nlink, linked.nlink) == (3, 2)


def test_two_names_in_one_directory() -> None:
    linked = file()
    root = directory({b"b": linked, b"a": linked, b"c": linked})
    finish(root)
    assert paths(root) == [b"/", b"/a"]
    assert linked.nlink == 3


def test_a_tree_deeper_than_the_stack() -> None:
    root = deep = directory()
    for _ in range(5000):
        below = directory()
        deep.children[b"d"] = below
        deep = below
    finish(root)
    assert deep.path() == b"/d" * 5000
    assert len(paths(root)) == 5001


def test_inodes_do_not_share_their_children() -> None:
    assert not Inode(mode=0o100644).children
    assert Inode(mode=0o100644) != Inode(mode=0o100644)
