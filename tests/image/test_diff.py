# SPDX-License-Identifier: Apache-2.0
"""What differs between two trees: every kind of difference, and nothing where there is none."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rofs.image.build import SigningKey, build_image
from rofs.image.diff import Difference, diff_trees
from rofs.image.sides import ImageSide, Side, SourceSide
from rofs.source.directory import DirectorySource
from rofs.tree import Inode
from tests.conftest import SigningKeys
from tests.erofs.builder import LyingFilesystem, write_image
from tests.trees import DEEP_NAME, DEPTH, MemorySource, content, directory, file, find, node, symlink, write_plain_tree

from .builder import SmallImage
from .hostile import hostile_tree, opened, sign


def tree() -> Inode:
    linked = file(b"linked")
    return directory(
        {
            b"dir": directory({b"a": file(b"a"), b"b": linked}),
            b"file": file(content(3_000_000), xattrs=((b"user.a", b"1"), (b"user.b", b"2"))),
            b"linked": linked,
            b"null": node(stat.S_IFCHR, os.makedev(1, 3)),
            b"link": symlink(b"target"),
            b"small": file(b"small"),
        }
    )


def diff(old: Side, new: Side) -> list[Difference]:
    return list(diff_trees(old, new))


def of(root: Inode) -> Side:
    return SourceSide(MemorySource(root))


def told(found: list[Difference]) -> list[tuple[bytes, str, dict[str, tuple[object, object]]]]:
    return [(d.path, d.kind, {c.what + c.name.decode(): (c.old, c.new) for c in d.changes}) for d in found]


def test_equal_trees() -> None:
    assert diff(of(tree()), of(tree())) == []


Edit = Callable[[Inode], object]


def set_content(inode: Inode, data: bytes) -> None:
    inode.size, inode.source_key = len(data), data


@pytest.mark.parametrize(
    ("path", "edit", "changes"),
    [
        (b"file", lambda f: setattr(f, "mode", stat.S_IFREG | 0o4755), {"mode": (0o644, 0o4755)}),
        (b"dir", lambda f: setattr(f, "mode", stat.S_IFDIR | 0o700), {"mode": (0o755, 0o700)}),
        (b"", lambda f: setattr(f, "gid", 7), {"owner": ((0, 0), (0, 7))}),
        (b"link", lambda f: setattr(f, "uid", 7), {"owner": ((0, 0), (7, 0))}),
        (b"dir/a", lambda f: setattr(f, "mtime_ns", -1), {"mtime": (0, -1)}),
        (b"null", lambda f: setattr(f, "rdev", 5), {"device": (os.makedev(1, 3), 5)}),
        (b"link", lambda f: setattr(f, "target", b"targes"), {"target": (b"target", b"targes")}),
        (b"small", lambda f: set_content(f, b"smalm"), {"content": (None, None)}),
        (b"small", lambda f: set_content(f, b""), {"size": (5, 0), "content": (None, None)}),
        (b"file", lambda f: set_content(f, content(3_000_000)[:-1] + b"!"), {"content": (None, None)}),
        (
            b"file",
            lambda f: setattr(f, "xattrs", ((b"user.b", b"3"), (b"user.c", b""))),
            {"xattruser.a": (b"1", None), "xattruser.b": (b"2", b"3"), "xattruser.c": (None, b"")},
        ),
    ],
)
def test_what_changed(path: bytes, edit: Edit, changes: dict[str, tuple[object, object]]) -> None:
    changed = tree()
    edit(find(changed, path))
    assert told(diff(of(tree()), of(changed))) == [(b"/" + path, "changed", changes)]
    backwards = {what: values[::-1] for what, values in changes.items()}
    assert told(diff(of(changed), of(tree()))) == [(b"/" + path, "changed", backwards)]


def test_added_and_removed_with_all_below_in_order() -> None:
    more = tree()
    more.add(b"dir-2", directory({b"y": symlink(b"y"), b"x": directory({b"z": file()})}))
    more.add(b"aaa", file())
    expected = [b"/aaa", b"/dir-2", b"/dir-2/x", b"/dir-2/x/z", b"/dir-2/y"]
    found = diff(of(tree()), of(more))
    assert [(d.path, d.kind) for d in found] == [(path, "added") for path in expected]
    assert stat.S_ISLNK(found[-1].mode)
    assert [(d.path, d.kind) for d in diff(of(more), of(tree()))] == [(path, "removed") for path in expected]


def test_directory_that_became_a_link() -> None:
    old = directory({b"dir": directory({b"a": file(), b"b": directory()})})
    new = directory({b"dir": symlink(b"elsewhere")})
    found = told(diff(of(old), of(new)))
    assert [(path, kind) for path, kind, _ in found] == [
        (b"/dir", "changed"),
        (b"/dir/a", "removed"),
        (b"/dir/b", "removed"),
    ]
    assert found[0][2] == {
        "type": (stat.S_IFDIR, stat.S_IFLNK),
        "mode": (0o755, 0o777),
        "target": (b"", b"elsewhere"),
    }
    assert [kind for _, kind, _ in told(diff(of(new), of(old)))] == ["changed", "added", "added"]


def test_links_that_were_taken_apart_or_tied() -> None:
    separate = tree()
    separate.add(b"linked", file(b"linked"))
    assert told(diff(of(tree()), of(separate))) == [(b"/linked", "changed", {"links": (b"/dir/b", None)})]
    assert told(diff(of(separate), of(tree()))) == [(b"/linked", "changed", {"links": (None, b"/dir/b")})]
    other = tree()
    other.add(b"linked", find(other, b"small"))
    assert told(diff(of(tree()), of(other))) == [
        (b"/linked", "changed", {"size": (6, 5), "content": (None, None), "links": (b"/dir/b", None)}),
        (b"/small", "changed", {"links": (None, b"/linked")}),
    ]


def test_equal_contents_are_no_links() -> None:
    one, other = (directory({b"a": file(b"same"), b"b": file(b"same")}) for _ in range(2))
    assert diff(of(one), of(other)) == []


def test_deeper_than_any_stack() -> None:
    def deep(data: bytes) -> Inode:
        root = directory({b"bottom": file(data)})
        for _ in range(DEPTH):
            root = directory({DEEP_NAME: root})
        return root

    (found,) = diff(of(deep(b"1")), of(deep(b"2")))
    assert found.path == (b"/" + DEEP_NAME) * DEPTH + b"/bottom"


def test_progress_is_what_was_compared() -> None:
    counted: list[int] = []
    list(diff_trees(of(tree()), of(tree()), progress=counted.append))
    assert sum(counted) == 3_000_000 + 5 + 1 + 2 * 6


# Contents in pieces of different lengths, and holes

CONTENTS = [
    ([], []),
    ([(0, b"abc")], [(0, b"a"), (1, b"bc")]),
    ([(0, b"ab"), (2, b"cd")], [(0, b"a"), (1, b"bc"), (3, b"d")]),
    ([(2, b"x")], [(0, b"\0\0"), (2, b"x\0")]),
    ([], [(0, bytes(5))]),
    ([(3, b"x")], [(1, b"\0\0x")]),
]


@pytest.mark.parametrize(("one", "other"), CONTENTS)
def test_contents_that_are_cut_otherwise(one: list[tuple[int, bytes]], other: list[tuple[int, bytes]]) -> None:
    size = 6

    class Pieces(SourceSide):
        def __init__(self, pieces: list[tuple[int, bytes]]) -> None:
            super().__init__(MemorySource(directory({b"f": file(bytes(size))})))
            self.pieces = pieces

        def contents(self, key: Inode) -> Iterator[tuple[int, bytes]]:
            return iter(self.pieces)

    assert diff(Pieces(one), Pieces(other)) == []
    assert diff(Pieces(other), Pieces(one)) == []
    if one:
        changed = [(offset, data[:-1] + bytes([data[-1] ^ 1])) for offset, data in one]
        assert [d.kind for d in diff(Pieces(changed), Pieces(other))] == ["changed"]
        assert [d.kind for d in diff(Pieces(other), Pieces(changed))] == ["changed"]


# Images


def test_image_and_its_directory(tmp_path: Path, signing_keys: SigningKeys) -> None:
    write_plain_tree(tmp_path / "tree")
    signer = SigningKey(signing_keys.key, signing_keys.certificate)
    for version in ("1", "2"):
        source = DirectorySource(str(tmp_path / "tree"))
        build_image(source, str(tmp_path / f"{version}.raw"), signer, name="n", version=version)
    with opened(tmp_path / "1.raw", signing_keys) as one, opened(tmp_path / "2.raw", signing_keys) as two:
        source = DirectorySource(str(tmp_path / "tree"))
        assert one.facts.root_hash != two.facts.root_hash  # the identities differ, and are not of the tree
        assert diff(ImageSide(one), SourceSide(source)) == []
        assert diff(SourceSide(source), ImageSide(two)) == []
        assert diff(ImageSide(one), ImageSide(two)) == []
        (tmp_path / "tree" / "same" / "a").write_bytes(content(20_000, 5))
        (tmp_path / "tree" / "new\n").mkdir()
        found = told(diff(ImageSide(one), SourceSide(DirectorySource(str(tmp_path / "tree")))))
    assert [(path, kind) for path, kind, _ in found] == [
        (b"/", "changed"),
        (b"/new\n", "added"),
        (b"/same/a", "changed"),
    ]
    assert set(found[2][2]) == {"mtime", "content"}


def test_what_cannot_be_read_is_told_and_the_rest_is_compared(tmp_path: Path, signing_keys: SigningKeys) -> None:
    lying = LyingFilesystem(hostile_tree())
    lying.set_inode(b"/dir/other", i_size=1 << 62).set_inode(b"/escape", i_mode=0).set_inode(b"/plain", i_u=1 << 30)
    lying.set_inode(b"/zz", i_mtime_nsec=5)
    with opened(sign(tmp_path / "image.raw", lying, signing_keys), signing_keys) as image:
        found = diff(of(hostile_tree()), ImageSide(image))
    assert [(d.path, d.kind) for d in found] == [
        (b"/dir/other", "unreadable"),
        (b"/escape", "unreadable"),
        (b"/plain", "unreadable"),
        (b"/zz", "changed"),
    ]
    assert all(str(d.error).startswith(f"image: {d.path.decode()}: EROFS: ") for d in found[:3])


def test_error_names_the_image_and_then_the_path_also_in_a_content(image: SmallImage) -> None:
    with image.open() as good:
        large = good.filesystem.lookup(good.filesystem.root_nid, b"large")
        assert large is not None
        nid = good.filesystem.lookup(large, b"l03")
        assert nid is not None
        (start,) = (e.offset_bytes for e in good.filesystem.extents(nid) if e.file_offset_bytes == 0)
    with image.corrupt_block(start // 4096 + 9).open() as bad:
        (found,) = diff(SourceSide(image.source), ImageSide(bad, "bad\n.raw"))
    assert (found.path, found.kind) == (b"/large/l03", "unreadable")
    assert str(found.error).startswith("bad\\n.raw: /large/l03: corrupt image: data block ")


def test_directory_that_contains_itself_ends(tmp_path: Path, signing_keys: SigningKeys) -> None:
    lying = LyingFilesystem(hostile_tree())
    lying.set_entry(b"/dir", b"other", nid=lying.nid(b"/"))
    path = sign(tmp_path / "image.raw", lying, signing_keys)
    with opened(path, signing_keys) as one, opened(path, signing_keys) as other:
        found = diff(ImageSide(one), ImageSide(other))
    assert [(d.path, d.kind) for d in found] == [(b"/dir/other", "unreadable")]
    with opened(sign(path, write_image(MemorySource(hostile_tree())), signing_keys), signing_keys) as image:
        assert diff(ImageSide(image), of(hostile_tree())) == []
