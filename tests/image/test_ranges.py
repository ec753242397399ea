# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.errors import FormatError
from rofs.image import ranges
from rofs.image.ranges import RangeIndex, sort_keys
from rofs.vfs import Extent
from tests.erofs.builder import LyingFilesystem
from tests.trees import content, directory, file

Places = dict[int, list[tuple[int, int]]]


class Filesystem:
    """Inodes that say where they lie; only what `RangeIndex` asks."""

    def __init__(self, places: Places) -> None:
        self.places = places

    def extents(self, nid: int) -> list[Extent]:
        return [Extent(start, length, None) for start, length in self.places[nid]]

    def inode_extent(self, nid: int) -> Extent:
        raise FormatError(f"inode {nid}")


def index_of(places: Places) -> RangeIndex:
    return RangeIndex(Filesystem(places), places)  # type: ignore[arg-type]


UNITS = st.integers(0, 300).map(lambda n: n * 32)


@given(
    st.dictionaries(st.integers(0, 1 << 39), st.lists(st.tuples(UNITS, UNITS), max_size=3), max_size=200), UNITS, UNITS
)
def test_it_finds_what_a_scan_finds(places: Places, offset: int, length: int) -> None:
    expected = {
        nid
        for nid, extents in places.items()
        if any(start < offset + length and offset < start + size for start, size in extents if size)
    }
    assert set(index_of(places).inodes(offset, length)) == (expected if length else set())


def test_found_by_place() -> None:
    index = index_of({3: [(0, 32)], 1: [(64, 32)], 2: [(32, 32), (4096, 4096)]})
    assert list(index.inodes(0, 8192)) == [3, 2, 1, 2]


def test_one_long_extent_before_many_short_ones() -> None:
    """Whose end decides, though it began long ago."""
    places: Places = {n: [(n * 4096, 4096)] for n in range(1, 1000)}
    places[5000] = [(0, 900 * 4096)]
    index = index_of(places)
    assert list(index.inodes(500 * 4096, 1)) == [5000, 500]
    assert list(index.inodes(950 * 4096, 1)) == [950]


def test_an_inode_and_its_tail_count_once() -> None:
    assert list(index_of({7: [(96, 64), (160, 1000)]}).inodes(0, 4096)) == [7]
    assert len(index_of({7: [(96, 64), (160, 1000)], 8: [(4096, 1), (8192, 1)]})._keys) == 3


@pytest.mark.parametrize("place", [(1 << 45, 1), (1 << 62, 1 << 62), ((1 << 64) - 1, 1)])
def test_places_that_no_device_has(place: tuple[int, int]) -> None:
    index = index_of({1: [(0, 32)], 2: [place]})
    assert list(index.inodes(0, 1 << 70)) == [1]
    assert list(index.inodes(1 << 69, 1)) == []


def test_an_unreadable_inode_counts_with_its_place() -> None:
    image = LyingFilesystem(directory({b"a": file(content(5000)), b"b": file(content(5000, 1))}))
    nid = image.nid(b"a")
    reader = image.set_inode(b"a", i_mode=0).reader()
    index = RangeIndex(reader, [nid, 1 << 38])
    assert list(index.inodes(0, len(image.data))) == [nid]
    assert list(index.inodes(nid * 32, 32)) == [nid]


def test_what_is_readable_of_an_inode_counts() -> None:
    """Its chunk table ends in a bad block: all before it is known."""

    class Broken(Filesystem):
        def extents(self, nid: int) -> Iterator[Extent]:  # type: ignore[override]
            yield from super().extents(nid)
            raise FormatError("a bad block")

    index = RangeIndex(Broken({1: [(0, 32), (4096, 4096)]}), [1])  # type: ignore[arg-type]
    assert list(index.inodes(0, 8192)) == [1, 1]


def test_an_inline_tail_behind_many_blocks_counts_with_its_inode() -> None:
    assert len(index_of({7: [(96, 64), (8192, 4096), (160, 1000)]})._keys) == 2


def test_beyond_its_limit_it_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "MAX_EXTENTS", 5)
    assert len(list(index_of({n: [(n * 32, 32)] for n in range(10)}).inodes(0, 1000))) == 5


def test_nothing_at_all() -> None:
    index = index_of({})
    assert list(index.inodes(0, 1 << 20)) == []


@given(st.lists(st.integers(0, (1 << 64) - 1), max_size=200), st.integers(1, 50))
def test_sorting_in_runs(keys: list[int], run: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranges, "_RUN_KEYS", run)
        assert list(sort_keys(array("Q", keys))) == sorted(keys)
