# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from rofs.erofs import format as fmt
from rofs.erofs.directory_format import DirectoryBlock
from rofs.image import paths
from rofs.image.paths import MAX_PATHS, ReverseIndex
from tests.erofs.builder import LyingFilesystem
from tests.trees import content, directory, file, symlink

from .builder import nids_of, small_tree


def test_every_inode_has_its_paths() -> None:
    image = LyingFilesystem(small_tree())
    reader = image.reader()
    index = ReverseIndex(reader)
    nids = nids_of(reader, image.source)
    for inode in image.source.tree.walk():
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
        deep.add(b"d", below)
        deep = below
    deep.add(b"f", file(b"x"))
    image = LyingFilesystem(root)
    assert ReverseIndex(image.reader()).paths(image.nid(b"d/" * 1500 + b"f")) == [b"/d" * 1500 + b"/f"]


def test_shared_contents_name_every_file() -> None:
    data = content(8192)
    image = LyingFilesystem(directory({b"a": file(data), b"b": file(content(4096, 1)), b"c": file(data)}))
    reader = image.reader()
    index = ReverseIndex(reader)
    (extent,) = list(reader.extents(image.nid(b"c")))[1:]
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


def test_entries_that_do_not_tell_their_type() -> None:
    image = LyingFilesystem(directory({b"dir": directory({b"sub": directory({b"x": file(b"x")})}), b"f": file()}))
    below = image.nid(b"dir/sub/x")
    for path, name in ((b"", b"dir"), (b"", b"f"), (b"dir", b"sub"), (b"dir/sub", b"x")):
        image.set_entry(path, name, file_type=0)
    index = ReverseIndex(image.reader())
    assert index.paths(below) == [b"/dir/sub/x"]
    assert index.paths(image.nid(b"dir/sub")) == [b"/dir/sub"]
    assert index.paths(image.nid(b"f")) == [b"/f"]


def test_an_entry_without_a_type_that_leads_nowhere() -> None:
    image = LyingFilesystem(directory({b"a": file(), b"b": file()}))
    nid = image.nid(b"a")
    index = ReverseIndex(image.set_entry(b"", b"b", file_type=0, nid=1 << 30).reader())
    assert (index.paths(nid), index.paths(1 << 30)) == ([b"/a"], [b"/b"])


@pytest.mark.parametrize("nid", [1 << 39, (1 << 40) - 1, 1 << 40, 1 << 50, (1 << 64) - 1])
def test_entries_with_nids_that_no_filesystem_has(nid: int) -> None:
    image = LyingFilesystem(directory({b"a": file(), b"b": file()}))
    fine = image.nid(b"a")
    index = ReverseIndex(image.set_entry(b"", b"b", nid=nid).reader())
    assert index.paths(fine) == [b"/a"]
    assert index.paths(nid) == ([b"/b"] if nid < 1 << 40 else [])
    assert index.paths_of_range(0, 1 << 20) == [b"/", b"/a"]


def test_names_of_a_large_directory_are_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    image = LyingFilesystem(directory({b"%05d" % n: file(b"%d" % n) for n in range(3000)}))
    reader = image.reader()
    index = ReverseIndex(reader)
    index.paths(reader.root_nid)
    blocks: list[int] = []
    real = reader._directory_block

    def counting(inode: fmt.DiskInode, number: int) -> DirectoryBlock:
        blocks.append(number)
        return real(inode, number)

    monkeypatch.setattr(reader, "_directory_block", counting)
    nid = reader.lookup(reader.root_nid, b"02999")
    assert nid is not None
    blocks.clear()
    assert index.paths(nid) == [b"/02999"]
    assert len(blocks) == 1


def test_a_path_without_end_is_left_out() -> None:
    root = deep = directory()
    for _ in range(260):
        below = directory()
        deep.add(b"d" * 255, below)
        deep = below
    image = LyingFilesystem(root)
    index = ReverseIndex(image.reader())
    reachable = image.nid((b"d" * 255 + b"/") * 256)
    assert index.paths(reachable) == [(b"/" + b"d" * 255) * 256]
    assert index.paths(image.nid((b"d" * 255 + b"/") * 257)) == []


def test_every_question_agrees_with_a_scan_of_everything() -> None:
    image = LyingFilesystem(small_tree())
    reader = image.reader()
    index = ReverseIndex(reader)
    extents = {inode.path(): list(reader.extents(image.nid(inode.path()))) for inode in image.source.tree.walk()}
    for block in range(len(image.data) // 512):
        start, end = block * 512, (block + 1) * 512
        expected = {
            path
            for path, places in extents.items()
            if any(e.offset_bytes < end and start < e.offset_bytes + e.length_bytes for e in places)
        }
        found = index.paths_of_range(start, 512)
        assert expected <= set(found)
        assert set(found) <= expected | {b"/large/again", b"/tails/linked"}  # one inode


def test_a_question_does_not_ask_every_inode_again(monkeypatch: pytest.MonkeyPatch) -> None:
    image = LyingFilesystem(small_tree())
    reader = image.reader()
    index = ReverseIndex(reader)
    index.paths_of_range(0, 4096)
    monkeypatch.setattr(reader, "extents", None)
    assert index.paths_of_range(0, len(image.data))


def test_it_reads_nothing_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    image = LyingFilesystem(small_tree())
    reader = image.reader()
    reads: list[int] = []
    monkeypatch.setattr(reader, "readdir", lambda nid, _offset: iter(reads.append(nid) or ()))  # type: ignore[func-returns-value]
    index = ReverseIndex(reader)
    assert reads == []
    index.paths(1)
    assert reads == [reader.root_nid]
