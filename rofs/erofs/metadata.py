# SPDX-License-Identifier: Apache-2.0
"""The metadata of an EROFS: where an inode stands, and bytes through a cache of whole blocks.

Does not know what the bytes mean. Every place is checked against the end of the filesystem.
"""

from __future__ import annotations

from rofs.blockdev import BlockDevice
from rofs.erofs import format as fmt
from rofs.errors import FormatError, ImageError, ReadError
from rofs.lru import ByteLru

# Metadata is laid out as a walk over the tree meets it, and a read of several blocks costs little more
# than one of one: find(1) on a Debian root took 0.17 s with 1, 0.15 s with 8 of the worker's time.
_BLOCKS_AT_ONCE = 8


class Metadata:
    """Bounded access to the blocks of a filesystem that are read again and again.

    Args:
        device: Starts with the filesystem's first block.
        superblock: Checked.
        cache_bytes: The most to keep.

    Attributes:
        superblock: As given.
        end: Length of the filesystem in bytes.
        cache: The blocks kept, by their address.
    """

    def __init__(self, device: BlockDevice, superblock: fmt.Superblock, cache_bytes: int) -> None:
        self.superblock = superblock
        self.end = superblock.blocks * superblock.block_size
        self.cache: ByteLru[int, bytes] = ByteLru(cache_bytes)
        self._device = device
        self._block = superblock.block_size
        self._start = superblock.meta_blkaddr * superblock.block_size

    def inode_place(self, nid: int) -> int:
        """Byte at which an inode stands.

        Raises:
            FormatError: It is not inside of the filesystem.
        """
        place = self._start + nid * fmt.SLOT_BYTES
        if not fmt.FIRST_FREE_BYTE <= place <= self.end - fmt.SLOT_BYTES:
            raise FormatError(f"EROFS: inode {nid} lies outside of the filesystem of {self.end} bytes")
        return place

    def at(self, offset: int, length: int) -> bytes:
        """Bytes of the filesystem, through the cache.

        Raises:
            FormatError: They are not inside of the filesystem.
        """
        if offset + length > self.end:
            raise FormatError(f"EROFS: metadata at byte {offset} lies outside of the filesystem of {self.end} bytes")
        first = offset // self._block
        last = (offset + max(length, 1) - 1) // self._block
        data = self._block_at(first)
        if first != last:
            data += b"".join(map(self._block_at, range(first + 1, last + 1)))
        start = offset - first * self._block
        return data[start : start + length]

    def _block_at(self, number: int) -> bytes:
        block = self.cache.get(number)
        return self._fetch(number) if block is None else block

    def _fetch(self, number: int) -> bytes:
        """A block that is not in the cache, and with it those behind that a walk over the tree would want next.

        Whatever is wrong with the others shows when they are asked for.
        """
        count = min(_BLOCKS_AT_ONCE, self.end // self._block - number)
        try:
            data = self._device.read_at(number * self._block, count * self._block)
        except (ImageError, ReadError):
            data = self._device.read_at(number * self._block, self._block)
        for start in range(len(data) - self._block, -1, -self._block):  # the one asked for is the latest used
            self.cache.put(number + start // self._block, data[start : start + self._block], self._block)
        return data[: self._block]
