# SPDX-License-Identifier: Apache-2.0
"""Blocks of zeros in a content: where they are, and whether it pays to leave them out. No I/O.

Only bytes count: whether a source file had a hole there does not show, so that a sparse copy and a full
one become the same image. Does not know the format but for its block size and what a chunk costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from rofs.erofs import format as fmt
from rofs.pieces import Piece

# Less than this is not worth a chunk table, which every read then has to look at: 64 KiB, and a 64th of
# the content.
MIN_SAVED_BYTES = 1 << 16
_MIN_SAVED_FRACTION = 64
_ZEROS = bytes(1 << 20)  # as long as the pieces that sources give
_ENTRY_BYTES = fmt.BLOCK_MAP_ENTRY.size


def whole_blocks(pieces: Iterable[Piece], size: int, block_bytes: int) -> Iterator[Piece]:
    """The same content in pieces of whole blocks, but for the last block as far as the content goes.

    Args:
        pieces: The content, see `pieces`; where it has no piece no block comes of it.
        size: Its length in bytes.
        block_bytes: Length of a block.
    """
    start, rest = 0, b""  # the block that is not whole yet
    for offset, piece in pieces:
        if offset // block_bytes != start // block_bytes and rest:
            yield start, _to_length(rest, start, size, block_bytes)
            rest = b""
        if not rest:
            start = offset - offset % block_bytes
        data = rest.ljust(offset - start, b"\0") + piece if offset > start else piece
        whole = len(data) - len(data) % block_bytes
        if whole:
            yield start, data[:whole]
        start, rest = start + whole, data[whole:]
    if rest:
        yield start, _to_length(rest, start, size, block_bytes)


def _to_length(data: bytes, start: int, size: int, block_bytes: int) -> bytes:
    """A block that ends in a hole."""
    return data.ljust(min(block_bytes, size - start), b"\0")


def data_runs(pieces: Iterable[Piece], block_bytes: int) -> Iterator[tuple[int, memoryview]]:
    """Runs of blocks that are not all zeros: offset in bytes, and the bytes.

    Args:
        pieces: As of `whole_blocks`; a run ends where its piece does.
        block_bytes: Length of a block.
    """
    zeros = bytes(block_bytes)
    for at, piece in pieces:
        view = memoryview(piece)
        start: int | None = 0
        if len(piece) == len(_ZEROS) and piece == _ZEROS:  # most of a long run
            continue
        # One byte of each block tells most that are not zeros; only the others are looked at.
        heads = piece[::block_bytes]
        number = heads.find(0)
        while number >= 0:
            block = number * block_bytes
            length = min(block_bytes, len(piece) - block)
            if piece.startswith(zeros if length == block_bytes else zeros[:length], block):
                if start is not None and start < block:
                    yield at + start, view[start:block]
                start = block + length
            number = heads.find(0, number + 1)
        if start is not None and start < len(piece):
            yield at + start, view[start:]


class HoleScan:
    """Which size of chunks stores a content in the fewest bytes, told by where its data is.

    Args:
        size: Of the content, in bytes.
        block_bytes: Length of a block.
    """

    def __init__(self, size: int, block_bytes: int) -> None:
        self._size = size
        self._block = block_bytes
        self._blocks = -(-size // block_bytes)
        levels = min(fmt.CHUNK_FORMAT_BLKBITS_MASK, max(0, self._blocks - 1).bit_length()) + 1
        self._chunks = [0] * levels  # with data, by log2 of their length in blocks
        self._last = [-1] * levels  # the last of these

    def add(self, offset: int, length: int) -> None:
        """Count a run of blocks with data; runs come in order and do not overlap."""
        first = offset // self._block
        last = (offset + length - 1) // self._block
        for bits, seen in enumerate(self._last):
            if last >> bits == seen:  # then also for all longer chunks
                return
            self._chunks[bits] += (last >> bits) - max(first >> bits, seen + 1) + 1
            self._last[bits] = last >> bits

    @property
    def data_bytes(self) -> int:
        """Length of the blocks with data so far."""
        return self._chunks[0] * self._block

    def chunk_blkbits(self) -> int | None:
        """log2 of the best chunk length in blocks, of equal ones the shortest; None when holes do not pay."""
        costs = [self._cost(bits) for bits in range(len(self._chunks))]
        saved = self._blocks * self._block - min(costs)
        if saved < max(MIN_SAVED_BYTES, self._size // _MIN_SAVED_FRACTION):
            return None
        return costs.index(min(costs))

    def _cost(self, bits: int) -> int:
        count = -(-self._blocks >> bits)
        stored = self._chunks[bits] << bits
        if self._last[bits] == count - 1:  # the last chunk ends with the content
            stored -= (count << bits) - self._blocks
        return stored * self._block + count * _ENTRY_BYTES
