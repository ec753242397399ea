# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import stat
from collections.abc import Callable, Iterator

import pytest

from rofs.erofs.reader import ErofsReader
from rofs.errors import ImageError
from rofs.image.compare import compare_with_source
from rofs.tree import Inode
from rofs.vfs import DirEntry, Stat
from tests.erofs.builder import write_image
from tests.trees import MemorySource, content, directory, file, node, symlink
from tests.verity.doubles import MemoryDevice


def tree() -> Inode:
    linked = file(b"linked")
    return directory(
        {
            b"file": file(content(3_000_000), xattrs=((b"user.a", b"1"), (b"user.b", b"2"))),
            b"dir": directory({b"below": file(b"x"), b"linked": linked}),
            b"linked": linked,
            b"char": node(stat.S_IFCHR, 0x103),
            b"link": symlink(b"target"),
            b"empty": file(),
            b"other": file(),
        }
    )


class LyingReader(ErofsReader):
    """Reads an image rightly but for one inode."""

    def __init__(self, source: MemorySource, name: bytes) -> None:
        super().__init__(MemoryDevice(write_image(source)))
        nid = super().lookup(self.root_nid, name) if name else self.root_nid
        assert nid is not None
        self.victim = nid
        self.fields: dict[str, int] = {}
        self.content_from: int | None = None
        self.target: bytes | None = None
        self.entries: Callable[[list[DirEntry]], list[DirEntry]] = list
        self.hidden: bytes | None = None
        self.xattrs: dict[bytes, bytes] | None = None

    def stat(self, nid: int) -> Stat:
        found = super().stat(nid)
        return found._replace(**self.fields) if nid == self.victim else found

    def read(self, nid: int, offset_bytes: int, length_bytes: int) -> bytes:
        found = super().read(nid, offset_bytes, length_bytes)
        if nid != self.victim or self.content_from is None or offset_bytes + length_bytes <= self.content_from:
            return found
        at = max(0, self.content_from - offset_bytes)
        return found[:at] + bytes([found[at] ^ 1]) + found[at + 1 :]

    def readlink(self, nid: int) -> bytes:
        return super().readlink(nid) if self.target is None else self.target

    def readdir(self, directory_nid: int, offset: int = 0) -> Iterator[DirEntry]:
        found = list(super().readdir(directory_nid, offset))
        return iter(self.entries(found) if directory_nid == self.victim else found)

    def lookup(self, directory_nid: int, name: bytes) -> int | None:
        return None if name == self.hidden else super().lookup(directory_nid, name)

    def listxattr(self, nid: int) -> list[bytes]:
        return super().listxattr(nid) if nid != self.victim or self.xattrs is None else list(self.xattrs)

    def getxattr(self, nid: int, name: bytes) -> bytes | None:
        return super().getxattr(nid, name) if nid != self.victim or self.xattrs is None else self.xattrs.get(name)


def compare(name: bytes, **lies: object) -> int:
    source = MemorySource(tree())
    reader = LyingReader(source, name)
    for key, value in lies.items():
        assert hasattr(reader, key)
        setattr(reader, key, value)
    done: list[int] = []
    compare_with_source(source, reader, root_xattrs=(), progress=done.append)
    return sum(done)


def test_an_honest_filesystem() -> None:
    assert compare(b"file") == 3_000_000 + len(b"linked" + b"x")


def test_holes_are_compared_as_what_they_read_as() -> None:
    source = MemorySource(directory({b"file": file(bytes(5 << 20) + b"x")}))
    done: list[int] = []
    compare_with_source(source, LyingReader(source, b"file"), root_xattrs=(), progress=done.append)
    assert sum(done) == (5 << 20) + 1
    liar = LyingReader(source, b"file")
    liar.content_from = 3_000_000
    with pytest.raises(ImageError, match="content expected"):
        compare_with_source(source, liar, root_xattrs=())


def change(entry: bytes, **fields: object) -> Callable[[list[DirEntry]], list[DirEntry]]:
    return lambda entries: [e._replace(**fields) if e.name == entry else e for e in entries]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "lies", "reason"),
    [
        (b"file", {"fields": {"mode": stat.S_IFREG | 0o645}}, "/file: mode"),
        (b"file", {"fields": {"mode": stat.S_IFLNK | 0o644}}, "/file: mode"),
        (b"file", {"fields": {"uid": 1}}, "/file: uid"),
        (b"file", {"fields": {"gid": 1}}, "/file: gid"),
        (b"file", {"fields": {"mtime_ns": 1}}, "/file: mtime"),
        (b"file", {"fields": {"nlink": 2}}, "/file: link count"),
        (b"dir", {"fields": {"nlink": 3}}, "/dir: link count"),
        (b"file", {"fields": {"size": 2_999_999}}, "/file: size"),
        (b"char", {"fields": {"rdev": 5}}, "/char: device number"),
        (b"file", {"fields": {"rdev": 5}}, "/file: device number"),
        (b"link", {"fields": {"size": 5}}, "/link: size"),
        (b"link", {"target": b"targes"}, "/link: link target"),
        (b"file", {"content_from": 0}, "/file: content"),
        (b"file", {"content_from": 2_999_999}, "/file: content"),
        (b"file", {"xattrs": {}}, "/file: xattrs"),
        (b"file", {"xattrs": {b"user.a": b"1", b"user.b": b"3"}}, "/file: xattrs"),
        (b"file", {"xattrs": {b"user.a": b"1", b"user.b": b"2", b"user.c": b""}}, "/file: xattrs"),
        (b"", {"xattrs": {b"user.mine": b""}}, "/: xattrs"),
        (b"", {"entries": lambda e: e[1:]}, r"/: entry \."),
        (b"", {"entries": lambda e: e[:-1]}, "/: names only on one side"),
        (b"", {"entries": lambda e: [*e, e[-1]]}, "/: entries"),
        (b"", {"entries": change(b"file", name=b"filf")}, "/: names only on one side"),
        (b"", {"entries": change(b"file", file_type=stat.S_IFDIR)}, "/: file type of file"),
        (b"", {"entries": change(b"file", nid=1)}, "/: lookup of file"),
        (b"dir", {"entries": change(b"..", nid=1)}, r"/dir: entry \.\."),
        (b"dir", {"entries": change(b".", nid=1)}, r"/dir: entry \."),
        (b"", {"hidden": b"other"}, "/: lookup of other"),
    ],
)
def test_a_difference_is_found_and_named(name: bytes, lies: dict[str, object], reason: str) -> None:
    with pytest.raises(ImageError, match=f"read back as its source at {reason} expected .*; nothing was signed"):
        compare(name, **lies)


def test_hard_links_must_stay_links_and_others_must_not_become_any() -> None:
    class Relinking(LyingReader):
        """Gives one name the inode of another, in both ways of finding it."""

        def __init__(self, source: MemorySource, moved: bytes, to: bytes) -> None:
            super().__init__(source, b"")
            self.moved, found = moved, self.lookup(self.root_nid, to)
            assert found is not None
            self.to = found
            self.entries = change(moved, nid=found)

        def lookup(self, directory_nid: int, name: bytes) -> int | None:
            moved = getattr(self, "to", None) is not None and directory_nid == self.root_nid and name == self.moved
            return self.to if moved else super().lookup(directory_nid, name)

    source = MemorySource(tree())
    with pytest.raises(ImageError, match="inode of its own expected 'one'"):
        compare_with_source(source, Relinking(source, b"other", b"empty"), root_xattrs=())
    same = file(b"linked")
    separate = tree()
    separate.add(b"linked", same)  # equal bytes, but no link
    for inode in (same, separate.children[b"dir"].children[b"linked"]):
        inode.nlink = 2
    with pytest.raises(ImageError, match=r"linked: (link count|inode of a hard link)"):
        compare_with_source(
            MemorySource(tree()), ErofsReader(MemoryDevice(write_image(MemorySource(separate)))), root_xattrs=()
        )
