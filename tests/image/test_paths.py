# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from rofs.image import paths
from rofs.image.paths import MAX_PATHS, ReverseIndex
from rofs.tree import walk
from tests.erofs.builder import LyingFilesystem
from tests.trees import content, directory, file, symlink

from .builder import nids_of, small_tree


def test_every_inode_has_its_paths() -> None:
    image = LyingFilesystem(small_tree())
    reader = image.reader()
    index = ReverseIndex(reader)
    nids = nids_of(reader, image.source)
    for inode in walk(image.source.root):
        found = index.paths(nids[id(inode)])
        assert inode.path() in found
        assert len(found) == (1 if inode.is_directory else inode.nlink)
    assert sorted(index.paths(image.nid(b"tails/linked"))) == [b"/large/again", b"/tails/linked"]


@pytest.mark.parametrize("nid", [-1, 0, 5, 1 << 30, (1 << 64) - 1])
def test_a_nid_that_nothing_names(nid: int) -> None:
    assert ReverseIndex(LyingFilesystem(small_tree()).reader()).paths(nid) == []


def test_names_are_bytes() -> None:
    image = LyingFilesystem(directory({b"\xff\n": directory({b"\\": symlink(b"t")})}))
    assert ReverseIndex(image.reader()).paths(image.nid(b"\xff\n/\\")) == [b"/\xff\n/\\"]


def test_several_names_in_one_directory_and_a_limit() -> None:
    linked = file(content(100))
    image = LyingFilesystem(directory({b"%03d" % n: linked for n in range(MAX_PATHS + 10)}))
    found = ReverseIndex(image.reader()).paths(image.nid(b"005"))
    assert found == [b"/%03d" % n for n in range(MAX_PATHS)]


def test_a_deep_tree() -> None:
    root = deep = directory()
    for _ in range(1500):
        below = directory()
        deep.children[b"d"] = below
        deep = below
    deep.children[b"f"] = file(b"x")
    image = LyingFilesystem(root)
    assert ReverseIndex(image.reader()).paths(image.nid(b"d/" * 1500 + b"f")) == [b"/d" * 1500 + b"/f"]


def test_shared_contents_name_every_file() -> None:
    data = content(8192)
    image = LyingFilesystem(directory({b"a": file(data), b"b": file(content(4096, 1)), b"c": file(data)}))
    reader = image.reader()
    index = ReverseIndex(reader)
    (extent,) = reader.extents(image.nid(b"c"))[1:]
    assert index.paths_of_range(extent.offset_bytes + 4096, 1) == [b"/a", b"/c"]
    assert index.paths_of_range(extent.offset_bytes, 0) == []
    assert index.paths_of_range(0, 1) == []
    assert set(index.paths_of_range(0, len(image.data))) == {b"/", b"/a", b"/b", b"/c"}


def test_an_unreadable_directory_is_still_named() -> None:
    image = LyingFilesystem(directory({b"bad": directory({b"x": file()}), b"good": directory({b"y": file()})}))
    bad, hidden, good = image.nid(b"bad"), image.nid(b"bad/x"), image.nid(b"good/y")
    index = ReverseIndex(image.rename_entry(b"bad", b"x", b"/").reader())
    assert (index.paths(bad), index.paths(hidden), index.paths(good)) == ([b"/bad"], [], [b"/good/y"])


def test_directories_that_contain_each_other() -> None:
    image = LyingFilesystem(directory({b"a": directory({b"b": directory({b"c": directory()})})}))
    outer, inner = image.nid(b"a"), image.nid(b"a/b")
    index = ReverseIndex(image.set_entry(b"a/b", b"c", nid=outer).reader())
    assert (index.paths(outer), index.paths(inner)) == ([b"/a"], [b"/a/b"])


def test_beyond_its_limits_it_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image = LyingFilesystem(directory({b"%d" % n: file(b"%d" % n) for n in range(10)}))
    monkeypatch.setattr(paths, "MAX_NAMES", 5)
    index = ReverseIndex(image.reader())
    known = [n for n in range(10) if index.paths(image.nid(b"%d" % n))]
    assert len(known) == 5
    monkeypatch.setattr(paths, "MAX_DIRECTORIES", 1)
    nested = LyingFilesystem(directory({b"a": directory({b"x": file()})}))
    assert ReverseIndex(nested.reader()).paths(nested.nid(b"a/x")) == []


def test_it_reads_nothing_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    image = LyingFilesystem(small_tree())
    reader = image.reader()
    reads: list[int] = []
    monkeypatch.setattr(reader, "readdir", lambda nid: iter(reads.append(nid) or ()))  # type: ignore[func-returns-value]
    index = ReverseIndex(reader)
    assert reads == []
    index.paths(1)
    assert reads == [reader.root_nid]
