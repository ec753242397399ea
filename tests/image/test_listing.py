# SPDX-License-Identifier: Apache-2.0
"""Lists of what is in an image, whole and broken."""

from __future__ import annotations

import stat

import pytest

from rofs.errors import InputError
from rofs.image.listing import Listed, list_path
from rofs.vfs import ReadOnlyFilesystem
from tests.erofs.builder import LyingFilesystem
from tests.trees import DEEP_NAME, DEPTH, directory, file, symlink

from .hostile import hostile_tree

TREE = directory(
    {
        b"dir": directory({b"b": file(b"b", xattrs=((b"user.a", b"1"),)), b"a": directory({b"x": file()})}),
        b"link": symlink(b"dir"),
        b"file": file(b"12345", mode=0o4711),
    }
)


def listed(filesystem: ReadOnlyFilesystem, path: bytes, *, recursive: bool = False) -> list[Listed]:
    return list(list_path(filesystem, path, recursive=recursive))


def paths(entries: list[Listed]) -> list[bytes]:
    return [entry.path for entry in entries]


def test_directory_file_and_link() -> None:
    reader = LyingFilesystem(TREE).reader()
    assert paths(listed(reader, b"/")) == [b"/dir", b"/file", b"/link"]
    assert paths(listed(reader, b"dir")) == [b"/dir/a", b"/dir/b"]
    assert paths(listed(reader, b"link/")) == [b"/dir/a", b"/dir/b"]
    (link,) = listed(reader, b"link")
    assert (link.path, link.target) == (b"/link", b"dir")
    (file_,) = listed(reader, b"dir/../file")
    assert file_.path == b"/file"
    assert file_.status is not None
    assert (file_.status.mode, file_.status.size, file_.target) == (stat.S_IFREG | 0o4711, 5, None)
    assert listed(reader, b"/dir/b")[0].xattrs == ((b"user.a", b"1"),)
    assert listed(reader, b"/dir/a/x")[0].xattrs == ()
    with pytest.raises(InputError, match="no such file"):
        listed(reader, b"none")


def test_everything_below_comes_depth_first_and_links_are_not_followed() -> None:
    reader = LyingFilesystem(TREE).reader()
    assert paths(listed(reader, b"/", recursive=True)) == [
        b"/dir", b"/dir/a", b"/dir/a/x", b"/dir/b", b"/file", b"/link",
    ]  # fmt: skip
    assert paths(listed(reader, b"link", recursive=True)) == [b"/link"]


def test_tree_deeper_than_any_stack() -> None:
    root = directory({b"bottom": file()})
    for _ in range(DEPTH):
        root = directory({DEEP_NAME: root})
    found = listed(LyingFilesystem(root).reader(), b"/", recursive=True)
    assert len(found) == DEPTH + 1
    assert found[-1].path == (b"/" + DEEP_NAME) * DEPTH + b"/bottom"


def test_inode_that_is_none_is_named_and_the_rest_comes() -> None:
    lying = LyingFilesystem(TREE).set_inode(b"/dir/a", i_mode=0)
    found = listed(lying.reader(), b"/", recursive=True)
    assert paths(found) == [b"/dir", b"/dir/a", b"/dir/b", b"/file", b"/link"]
    assert found[1].status is None
    assert str(found[1].error).startswith("/dir/a: EROFS: ")
    assert [entry.error for entry in found if entry.path != b"/dir/a"] == [None] * 4


def test_link_without_a_target_still_has_attributes() -> None:
    (found,) = listed(LyingFilesystem(TREE).set_inode(b"/link", i_size=0).reader(), b"link")
    assert found.status is not None
    assert (found.target, str(found.error)[:13]) == (None, "/link: EROFS:")


def test_directory_that_cannot_be_read_is_named_when_it_is_entered() -> None:
    reader = LyingFilesystem(TREE).set_inode(b"/dir", i_size=1 << 62).reader()
    assert [entry.error for entry in listed(reader, b"/")] == [None] * 3
    found = listed(reader, b"/", recursive=True)
    assert paths(found) == [b"/dir", b"/dir", b"/file", b"/link"]
    assert found[0].error is None
    assert found[1].status is None
    assert str(found[1].error).startswith("/dir: EROFS: ")


@pytest.mark.parametrize("contains", [b"/", b"/dir", b"/victim"])
def test_directory_that_contains_itself_ends(contains: bytes) -> None:
    lying = LyingFilesystem(hostile_tree())
    lying.set_entry(b"/dir", b"other", nid=lying.nid(contains))
    found = listed(lying.reader(), b"/", recursive=True)
    assert len(found) < 15
    (bad,) = [entry for entry in found if entry.error is not None]
    assert "stands in a second place, or contains itself" in str(bad.error)
    assert b"/zz" in paths(found)
