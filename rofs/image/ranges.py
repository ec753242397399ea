# SPDX-License-Identifier: Apache-2.0
"""Which inodes depend on a range of the device, from compact arrays that are made once.

Kept are 24 bytes for each extent, and 16 more while they are sorted; never a Python object for each.
Does not know what the inodes are called (`paths`) nor why somebody asks.
"""

from __future__ import annotations

import contextlib
import heapq
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from rofs.errors import ImageError
from rofs.vfs import Extent, ReadOnlyFilesystem

MAX_EXTENTS = 8_000_000  # 24 bytes each: 192 MB; a file has one or two, or as many as it has holes
_RUN_KEYS = 1 << 17  # sorted as Python integers: 5 MB at a time
_SEQUENCE_BITS = 24  # MAX_EXTENTS in order of arrival
_UNIT_BITS = 5  # places count 32 bytes, an EROFS slot, so that a key of 64 bits reaches 32 TiB
_GROUP = 64  # extents whose furthest end is remembered


class RangeIndex:
    """Extents sorted by where they begin.

    Extents of one inode that follow each other count as one. An inode that cannot be read counts with
    the place it must have.

    Args:
        filesystem: Asked for its extents here, and not again.
        nids: Inodes, each once.
    """

    def __init__(self, filesystem: ReadOnlyFilesystem, nids: Iterable[int]) -> None:
        keys, ends, owners = array("Q"), array("Q"), array("Q")
        for nid in nids:
            for start, end in _coalesced(_extents(filesystem, nid)):
                if len(keys) >= MAX_EXTENTS:
                    break
                if start >> _UNIT_BITS + 64 - _SEQUENCE_BITS or end >> 64:
                    continue
                keys.append(start >> _UNIT_BITS << _SEQUENCE_BITS | len(keys))
                ends.append(end)
                owners.append(nid)
        self._keys = keys = sort_keys(keys)
        sequence_mask = (1 << _SEQUENCE_BITS) - 1
        self._ends = ends = array("Q", (ends[key & sequence_mask] for key in keys))
        self._nids = owners = array("Q", (owners[key & sequence_mask] for key in keys))
        self._reach = array("Q")  # for each group, the furthest end up to and with it
        furthest = 0
        for start in range(0, len(self._ends), _GROUP):
            furthest = max(furthest, *self._ends[start : start + _GROUP])
            self._reach.append(furthest)

    def inodes(self, offset_bytes: int, length_bytes: int) -> Iterator[int]:
        """Inodes with an extent in a range, by place; one with several there comes several times.

        The end of a range is rounded up to a multiple of 32 bytes.
        """
        if length_bytes <= 0:
            return
        behind = -(-(offset_bytes + length_bytes) >> _UNIT_BITS) << _SEQUENCE_BITS
        first = bisect_right(self._reach, offset_bytes) * _GROUP
        for at in range(first, len(self._keys)):
            if self._keys[at] >= behind:
                return
            if self._ends[at] > offset_bytes:
                yield self._nids[at]


def sort_keys(keys: array[int]) -> array[int]:
    """Sort unsigned 64-bit numbers in the memory of two arrays, where a list of them would take five times that."""
    runs = [array("Q", sorted(keys[at : at + _RUN_KEYS])) for at in range(0, len(keys), _RUN_KEYS)]
    return runs[0] if len(runs) == 1 else array("Q", heapq.merge(*runs))


def _extents(filesystem: ReadOnlyFilesystem, nid: int) -> Iterator[Extent]:
    """What can be known of an inode's extents, up to the first that cannot be read."""
    readable = False
    try:
        for extent in filesystem.extents(nid):
            yield extent
            readable = True
    except ImageError:  # its own block is the bad one: where it starts is known without reading it
        if not readable:
            with contextlib.suppress(ImageError):
                yield filesystem.inode_extent(nid)


def _coalesced(extents: Iterable[Extent]) -> Iterator[tuple[int, int]]:
    """Start and end of each, those that touch as one, also an inode and the inline tail after its whole blocks."""
    inode: tuple[int, int] | None = None
    last: tuple[int, int] | None = None
    for extent in extents:
        start, end = extent.offset_bytes, extent.offset_bytes + extent.length_bytes
        if start == end:
            continue
        if inode is None:
            inode = start, end
        elif inode[0] <= start <= inode[1]:
            inode = inode[0], max(inode[1], end)
        elif last is not None and last[0] <= start <= last[1]:
            last = last[0], max(last[1], end)
        else:
            if last is not None:
                yield last
            last = start, end
    for range_ in (last, inode):
        if range_ is not None:
            yield range_
