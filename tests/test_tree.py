# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import random
import stat

import pytest

from rofs.tree import Inode, Tree
from tests.trees import directory, file, find, symlink


def paths(tree: Tree) -> list[bytes]:
    return [inode.path() for inode in tree.walk()]


def test_the_order_is_depth_first_and_bytewise() -> None:
    root = directory({b"b": directory({b"z": file(), b"a": file()}), b"!": file(), b"a": file(), b"\xff": file()})
    assert paths(Tree(root)) == [b"/", b"/!", b"/a", b"/b", b"/b/a", b"/b/z", b"/\xff"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_of_names_does_not_show(order: tuple[int, ...]) -> None:
    linked, link = file(b"x"), symlink(b"y")
    inner = [(b"n", linked), (b"m", link), (b"empty", directory())]
    outer = [(b"sub", directory(dict(inner[i] for i in order))), (b"z", linked), (b"t", link)]
    root = directory(dict(outer[i] for i in order))
    assert paths(Tree(root)) == [b"/", b"/sub", b"/sub/empty", b"/sub/m", b"/sub/n"]
    assert (root.nlink, find(root, b"sub").nlink, linked.nlink, link.nlink) == (3, 3, 2, 2)
    assert linked.parent is find(root, b"sub")
    Tree(root)  # again: it changes nothing
    assert (root.nlink, linked.nlink) == (3, 2)


@pytest.mark.parametrize("seed", range(10))
def test_names_added_in_any_order(seed: int) -> None:
    """As an archive has them: a link before its target, a name before the directory it stands in is placed."""
    root, sub, deep, linked = directory(), directory(), directory(), file(b"x")
    entries = [
        (root, b"sub", sub),
        (sub, b"deep", deep),
        (deep, b"a", linked),
        (root, b"z", linked),
        (sub, b"f", file()),
    ]
    for parent, name, child in random.Random(seed).sample(entries, len(entries)):
        parent.add(name, child)
    tree = Tree(root)
    assert tree.root is root
    assert paths(tree) == [b"/", b"/sub", b"/sub/deep", b"/sub/deep/a", b"/sub/f"]
    assert (root.nlink, sub.nlink, deep.nlink, linked.nlink) == (3, 3, 2, 2)


def test_a_name_given_again_counts_once() -> None:
    """As layers have it: the later file takes the name, and the other one is gone or has one link less."""
    old, new = file(b"old"), file(b"new")
    root = directory({b"keeps": old})
    root.add(b"name", old)
    assert Tree(root).root.children[b"name"].nlink == 2
    root.add(b"name", new)
    assert paths(Tree(root)) == [b"/", b"/keeps", b"/name"]
    assert (old.nlink, new.nlink, new.path()) == (1, 1, b"/name")


def test_an_inode_knows_its_first_directory_before_the_tree_is_complete() -> None:
    root, sub, linked = directory(), directory(), file()
    root.add(b"sub", sub)
    sub.add(b"file", linked)
    root.add(b"a", linked)
    assert linked.path() == b"/sub/file"
    Tree(root)
    assert linked.path() == b"/a"


def test_two_names_in_one_directory() -> None:
    linked = file()
    root = directory({b"b": linked, b"a": linked, b"c": linked})
    assert paths(Tree(root)) == [b"/", b"/a"]
    assert linked.nlink == 3


def test_a_tree_deeper_than_the_stack() -> None:
    root = deep = directory()
    for _ in range(5000):
        below = directory()
        deep.add(b"d", below)
        deep = below
    tree = Tree(root)
    assert deep.path() == b"/d" * 5000
    assert len(paths(tree)) == 5001


def test_inodes_do_not_share_their_children() -> None:
    one, other = Inode(mode=stat.S_IFDIR), Inode(mode=stat.S_IFDIR)
    one.add(b"x", file())
    assert (list(one.children), list(other.children)) == ([b"x"], [])
    given = {b"y": file()}
    directory(given).add(b"z", file())
    assert list(given) == [b"y"]
    assert Inode(mode=stat.S_IFREG) != Inode(mode=stat.S_IFREG)


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, 0])
def test_what_is_no_directory_never_has_children(kind: int) -> None:
    inode = Inode(mode=kind)
    with pytest.raises(ValueError, match="no children"):
        inode.add(b"x", file())
    with pytest.raises(TypeError):
        inode.children[b"x"] = file()  # type: ignore[index]
    with pytest.raises(ValueError, match="no children"):
        Inode(mode=kind, children={b"x": file()})
    assert not inode.children
    assert inode.children is Inode(mode=kind).children  # nothing of its own: there are millions of files
    with pytest.raises(ValueError, match="expected a directory"):
        Tree(inode)


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"a\0"])
def test_what_cannot_be_a_name(name: bytes) -> None:
    with pytest.raises(ValueError, match="no file can have"):
        directory().add(name, file())


def test_a_directory_has_one_name() -> None:
    twice = directory()
    with pytest.raises(ValueError, match="'/a' has another name, b'b'"):
        Tree(directory({b"a": twice, b"b": twice}))
    root = directory()
    root.add(b"self", root)
    with pytest.raises(ValueError, match="'/' has another name"):
        Tree(root)
