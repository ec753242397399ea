# SPDX-License-Identifier: Apache-2.0
"""Places for the inodes of a new EROFS: which numbers they get, and whose tail goes behind its inode.

Counts bytes only: does not know what an inode is, and writes nothing.
"""

from __future__ import annotations

from rofs.erofs import format as fmt

_OPEN_GAPS = 16  # ends of metadata blocks that wait for an inode small enough; more would not fill better


class Slots:
    """Places for inodes: each one the first place it fits, so that a tail never crosses a block.

    A few unused ends of blocks are kept for later inodes. The order of the calls decides everything.

    Args:
        start: First free byte.
        block_bytes: Length of a block.

    Attributes:
        end: Byte behind the last place taken.
    """

    def __init__(self, start: int, block_bytes: int) -> None:
        self.end = start
        self._block = block_bytes
        self._gaps: list[tuple[int, int]] = []

    def allocate(self, header_bytes: int, tail_bytes: int) -> tuple[int, bool]:
        """Place an inode of `header_bytes` (with xattrs and chunk table) and an inline tail.

        Returns:
            The nid, and whether the tail is inline: one that cannot share a block with even the end
            of its header gets a block of its own.
        """
        place = self._in_gap(header_bytes + tail_bytes)
        if place is None:
            place = _aligned(self.end)
            start = self._tail_start(place, header_bytes, tail_bytes)
            if start is None:
                tail_bytes = 0
            else:
                self._keep_gap(place, start)
                place = start
            self.end = place + header_bytes + tail_bytes
        return place // fmt.SLOT_BYTES, bool(tail_bytes)

    def _in_gap(self, length: int) -> int | None:
        for index, (start, end) in enumerate(self._gaps):
            if start + length <= end:
                self._gaps[index] = (_aligned(start + length), end)
                return start
        return None

    def _keep_gap(self, start: int, end: int) -> None:
        # Inside one block, so that any tail fits by its length alone.
        end = min(end, start - start % self._block + self._block)
        if end - start >= fmt.EXTENDED_INODE_BYTES:
            self._gaps.append((start, end))
            if len(self._gaps) > _OPEN_GAPS:
                self._gaps.remove(min(self._gaps, key=lambda gap: gap[1] - gap[0]))

    def _tail_start(self, place: int, header_bytes: int, tail_bytes: int) -> int | None:
        """First place from `place` on where the inline tail stays inside one block; None when there is none."""
        if (place + header_bytes) % self._block + tail_bytes <= self._block:
            return place
        boundary = -(-(place + header_bytes) // self._block) * self._block
        moved = _aligned(boundary - header_bytes)
        return moved if (moved + header_bytes) % self._block + tail_bytes <= self._block else None


def _aligned(offset: int) -> int:
    return -(-offset // fmt.SLOT_BYTES) * fmt.SLOT_BYTES
