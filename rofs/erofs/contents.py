# SPDX-License-Identifier: Apache-2.0
"""Writes file contents into the data area of a new EROFS, equal ones once.

Each is streamed to the next free place; one that turns out to be there already is overwritten by the next.
Does not know inodes: it says which blocks and chunks there are, the writer makes the rest of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rofs.erofs.holes import data_runs, whole_blocks
from rofs.errors import InputError
from rofs.pieces import Piece, filled

WriteAt = Callable[[int, "bytes | memoryview"], None]

_MAX_BLOCKS = (1 << 32) - 1  # block addresses have 32 bits
_ZEROS = bytes(1 << 20)


@dataclass(frozen=True, slots=True)
class Written:
    """Where a content lies.

    Attributes:
        address: Of its first block, 0 when it has none.
        key: A digest that equal contents share.
    """

    address: int
    key: bytes


class Contents:
    """The data area under construction.

    Args:
        write_at: Takes an offset in bytes from the start of the filesystem and bytes to put there.
        progress: Called with the number of content bytes just written.
        first_block: Where the data area begins.
        block_bytes: Length of a block.

    Attributes:
        next_block: The first free block.
    """

    def __init__(self, write_at: WriteAt, progress: Callable[[int], None], first_block: int, block_bytes: int) -> None:
        self.next_block = first_block
        self._write_at = write_at
        self._progress = progress
        self._block = block_bytes
        self._known: dict[bytes, int] = {}  # digest of a content to its address

    def take_blocks(self, count: int) -> int:
        """Reserve blocks and return the address of the first.

        Raises:
            InputError: There are no more.
        """
        address = self.next_block
        self.next_block += count
        if self.next_block > _MAX_BLOCKS:
            raise InputError(
                f"the tree needs more than {_MAX_BLOCKS} blocks of {self._block} bytes, the limit of EROFS"
            )
        return address

    def write_flat(self, pieces: Iterable[Piece], size: int, whole_bytes: int) -> tuple[Written, bytes]:
        """Write the start of a content in one piece, its holes as zeros.

        Args:
            pieces: The content.
            size: Its length in bytes.
            whole_bytes: How much of it to write, padded to whole blocks.

        Returns:
            Where it is, and the rest of the content.
        """
        digest = hashlib.sha256(b"%d:" % whole_bytes)
        offset = self.next_block * self._block
        done, tail = 0, b""
        for chunk in filled(pieces, size):
            part = memoryview(chunk)[: max(0, whole_bytes - done)]
            if part:
                digest.update(part)
                self._write_at(offset + done, part)
            tail += chunk[len(part) :]
            done += len(part)
            self._progress(len(chunk))
        return self._finish(digest.digest(), done, -(-whole_bytes // self._block)), tail

    def write_chunks(self, pieces: Iterable[Piece], size: int, chunk_bytes: int) -> tuple[Written, bytearray]:
        """Write the chunks of a content that are not all zeros, one after the other.

        Args:
            pieces: The content.
            size: Its length in bytes.
            chunk_bytes: Length of a chunk, a power of two of blocks; the last one may be shorter.

        Returns:
            Where they are, and a byte for each chunk: 1 when it is there, 0 for a hole.
        """
        stored = bytearray(-(-size // chunk_bytes))
        digest = hashlib.sha256(b"%d chunks of %d:" % (size, chunk_bytes))
        stream = _Stream(digest.update, self._write_at, self.next_block * self._block)
        count = reported = 0
        for at, data in data_runs(whole_blocks(pieces, size, self._block), self._block):
            first, behind = at // chunk_bytes, -(-(at + len(data)) // chunk_bytes)
            begun = stored[first]  # by a run before, which may have left room
            stream.zeros_to((count - begun) * chunk_bytes + at % chunk_bytes)
            stream.write(data)
            stored[first:behind] = b"\1" * (behind - first)
            count += behind - first - begun
            self._progress(at + len(data) - reported)
            reported = at + len(data)
        end = count * chunk_bytes
        if count and stored[-1]:  # the last chunk ends with the content
            end -= len(stored) * chunk_bytes - size
        stream.zeros_to(end)
        digest.update(stored)
        self._progress(size - reported)
        return self._finish(digest.digest(), end, -(-end // self._block)), stored

    def _finish(self, key: bytes, written_bytes: int, blocks: int) -> Written:
        if not blocks:
            return Written(0, key)
        if key not in self._known:
            padding = -written_bytes % self._block
            if padding:  # a longer content that turned out to be a copy may have been here before
                self._write_at(self.next_block * self._block + written_bytes, bytes(padding))
            self._known[key] = self.take_blocks(blocks)
        return Written(self._known[key], key)


class _Stream:
    """Bytes one after the other, which are hashed and written."""

    def __init__(self, update: Callable[[bytes | memoryview], None], write_at: WriteAt, offset: int) -> None:
        self._update = update
        self._write_at = write_at
        self._offset = offset
        self._done = 0

    def write(self, data: bytes | memoryview) -> None:
        self._update(data)
        self._write_at(self._offset + self._done, data)
        self._done += len(data)

    def zeros_to(self, end: int) -> None:
        while self._done < end:
            self.write(_ZEROS[: min(end - self._done, len(_ZEROS))])
