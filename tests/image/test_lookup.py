# SPDX-License-Identifier: Apache-2.0
"""Ways through an image: what path_resolution(7) says, and what no image may make of it."""

from __future__ import annotations

import stat

import pytest

from rofs.errors import FormatError, ImageError, InputError
from rofs.image.lookup import MAX_SYMLINKS, OnceOnly, at, children, contents, find
from rofs.vfs import ReadOnlyFilesystem
from tests.erofs.builder import LyingFilesystem
from tests.trees import content, directory, file, node, symlink

from .builder import SmallImage

TREE = directory(
    {
        b"usr": directory({b"bin": directory({b"env": file(b"env"), b"self": symlink(b".")})}),
        b"bin": symlink(b"usr/bin"),
        b"abs": symlink(b"/usr/bin/env"),
        b"up": symlink(b"../../../usr"),
        b"slash": symlink(b"usr/"),
        b"double": symlink(b"bin"),
        b"dangling": symlink(b"usr/none"),
        b"loop": symlink(b"loop"),
        b"ping": symlink(b"pong"),
        b"pong": symlink(b"./ping"),
        b"through": symlink(b"null/x"),
        b"null": node(stat.S_IFCHR, 0x103),
        b"-rf\n\xff": directory({b"\\": file()}),
    }
)


@pytest.fixture(scope="module")
def filesystem() -> ReadOnlyFilesystem:
    return LyingFilesystem(TREE).reader()


@pytest.mark.parametrize(
    ("path", "followed", "itself"),
    [
        (b"/", b"/", b"/"),
        (b".", b"/", b"/"),
        (b"///", b"/", b"/"),
        (b"/../..", b"/", b"/"),
        (b"usr/bin/env", b"/usr/bin/env", b"/usr/bin/env"),
        (b"//usr/./bin/../bin//env", b"/usr/bin/env", b"/usr/bin/env"),
        (b"/usr/", b"/usr", b"/usr"),
        (b"/bin", b"/usr/bin", b"/bin"),
        (b"/bin/", b"/usr/bin", b"/usr/bin"),
        (b"/bin/.", b"/usr/bin", b"/usr/bin"),
        (b"/bin/..", b"/usr", b"/usr"),
        (b"/bin/env", b"/usr/bin/env", b"/usr/bin/env"),
        (b"/abs", b"/usr/bin/env", b"/abs"),
        (b"/up/bin/env", b"/usr/bin/env", b"/usr/bin/env"),
        (b"/slash", b"/usr", b"/slash"),
        (b"/double/self/self/env", b"/usr/bin/env", b"/usr/bin/env"),
        (b"/null", b"/null", b"/null"),
        (b"-rf\n\xff/\\", b"/-rf\n\xff/\\", b"/-rf\n\xff/\\"),
    ],
)
def test_paths(filesystem: ReadOnlyFilesystem, path: bytes, followed: bytes, itself: bytes) -> None:
    assert find(filesystem, path, follow=True).path == followed
    found = find(filesystem, path, follow=False)
    assert found.path == itself
    nid = filesystem.root_nid
    for name in found.names:
        below = filesystem.lookup(nid, name)
        assert below is not None
        nid = below
    assert found.nid == nid


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"", "an empty path"),
        (b"/none", "^/none: no such file in the image$"),
        (b"/usr/none/env", r"^/usr/none/env: no such file in the image \(/usr/none\)$"),
        (b"/dangling", r"^/dangling: no such file in the image \(/usr/none\)$"),
        (b"/usr/bin/env/", "^/usr/bin/env/: /usr/bin/env in the image is not a directory$"),
        (b"/usr/bin/env/..", "/usr/bin/env in the image is not a directory"),
        (b"/abs/", "/usr/bin/env in the image is not a directory"),
        (b"/through", "^/through: /null in the image is not a directory$"),
        (b"/loop", f"^/loop: more than {MAX_SYMLINKS} symbolic links"),
        (b"/ping/x", "more than 40 symbolic links"),
        (b"/x\n\xff", r"^/x\\n\\xff: no such file"),
        (b"/" + b"n" * 300, "no such file"),
    ],
)
def test_paths_that_lead_nowhere(filesystem: ReadOnlyFilesystem, path: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find(filesystem, path, follow=True)


def test_a_link_at_the_end_need_not_lead_anywhere(filesystem: ReadOnlyFilesystem) -> None:
    for name in (b"dangling", b"loop"):
        assert find(filesystem, name, follow=False).names == (name,)


def test_as_many_links_as_the_kernel_follows(filesystem: ReadOnlyFilesystem) -> None:
    assert find(filesystem, b"bin/" + b"self/" * (MAX_SYMLINKS - 1) + b"env", follow=True).names[-1] == b"env"
    with pytest.raises(InputError, match="symbolic links"):
        find(filesystem, b"bin/" + b"self/" * MAX_SYMLINKS + b"env", follow=True)


def test_path_longer_than_path_max(filesystem: ReadOnlyFilesystem) -> None:
    assert find(filesystem, b"usr/../" * 2000 + b"./" * 5000 + b"usr/bin/env", follow=True).path == b"/usr/bin/env"


def test_dot_dot_entries_that_lie_are_not_asked() -> None:
    lying = LyingFilesystem(TREE)
    lying.set_entry(b"/usr/bin", b"..", nid=lying.nid(b"/-rf\n\xff"))
    assert find(lying.reader(), b"/usr/bin/..", follow=True).path == b"/usr"


def test_dots_are_no_children() -> None:
    reader = LyingFilesystem(directory({b"...": file(), b"aa": file()})).reader()
    assert [entry.name for entry in children(reader, reader.root_nid)] == [b"...", b"aa"]


def test_malformed_things_on_the_way_are_named() -> None:
    lying = LyingFilesystem(TREE).set_inode(b"/usr/bin", i_size=1 << 62)
    with pytest.raises(ImageError, match=r"^/usr/bin: EROFS: "):
        find(lying.reader(), b"/bin/env", follow=True)
    lying = LyingFilesystem(TREE).set_inode(b"/bin", i_mode=0)
    with pytest.raises(ImageError, match=r"^/bin: EROFS: "):
        find(lying.reader(), b"/bin/env", follow=True)


def test_directory_that_is_entered_twice() -> None:
    once = OnceOnly()
    once.enter(7)
    with pytest.raises(FormatError, match="directory 7 stands in a second place"):
        once.enter(7)


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, (1 << 20) - 1, 1 << 20, (3 << 20) + 5])
def test_contents_in_pieces(size: int) -> None:
    reader = LyingFilesystem(directory({b"f": file(content(size))})).reader()
    pieces = list(contents(reader, find(reader, b"f", follow=True).nid))
    assert all(0 < len(data) <= 1 << 20 for _, data in pieces)
    assert [offset for offset, _ in pieces] == [sum(len(d) for _, d in pieces[:n]) for n in range(len(pieces))]
    assert b"".join(data for _, data in pieces) == content(size)


def test_every_good_byte_before_a_bad_block_comes(image: SmallImage) -> None:
    with image.open() as opened:
        nid = find(opened.filesystem, b"large/l03", follow=True).nid
        (start,) = (e.offset_bytes for e in opened.filesystem.extents(nid) if e.file_offset_bytes == 0)
    with image.corrupt_block(start // 4096 + 9).open() as opened:
        found: list[bytes] = []
        with pytest.raises(ImageError, match=r"^/large/l03: corrupt image: data block"), at(b"/large/l03"):
            found.extend(data for _, data in contents(opened.filesystem, nid))
        assert b"".join(found) == content(60_003, 3)[: 9 * 4096]
