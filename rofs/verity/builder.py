# SPDX-License-Identifier: Apache-2.0
"""Building a dm-verity hash tree over a device, in one pass and with bounded memory.

Every level has one open hash block. A full one goes straight to its final place and its digest into
the open block of the level above, so nothing is read back and memory is one block per level plus a few
pieces of data, whatever the size. The superblock is the caller's to write: its uuid derives from the
root hash, which is known last. Nothing here opens, syncs or names a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rofs.blockdev import BlockDevice
from rofs.parallel import ordered_map
from rofs.verity.digest import BlockHasher
from rofs.verity.format import UUID_BYTES, TreeLayout, VeritySuperblock

WriteAt = Callable[[int, bytes], None]

# One read. Larger ones gained nothing on a warm page cache, smaller ones cost calls.
_CHUNK_BYTES = 1 << 20
# What one process hashes at a time; its digests take 1/128 of it.
_PIECE_BYTES = 16 << 20
# Below this, starting processes takes longer than they save.
_WORTH_SHARING_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class BuiltTree:
    """What a finished tree is known by.

    Attributes:
        root_hash: Digest of the top block; for one data block, of that.
        algorithm: Name of the hash function.
        block_size: Bytes of a data block and of a hash block.
        data_blocks: Number of data blocks covered.
        salt: As given.
        hash_device_bytes: Length of the hash device: superblock, its padding, and the tree.
    """

    root_hash: bytes
    algorithm: str
    block_size: int
    data_blocks: int
    salt: bytes
    hash_device_bytes: int

    def superblock(self, uuid: bytes) -> VeritySuperblock:
        """The superblock that belongs at offset 0 of the hash device.

        Args:
            uuid: 16 bytes.

        Returns:
            The superblock; its `pack()` is what the caller writes.
        """
        return VeritySuperblock(uuid, self.algorithm, self.block_size, self.block_size, self.data_blocks, self.salt)


def build_tree(
    data: BlockDevice,
    write_at: WriteAt,
    *,
    block_size: int = 4096,
    salt: bytes = b"",
    algorithm: str = "sha256",
    progress: Callable[[int], None] | None = None,
    processes: int | None = 1,
) -> BuiltTree:
    """Hash a device and write the tree.

    Args:
        data: The device; its length is a positive multiple of `block_size`.
        write_at: Called with an offset in bytes from the start of the hash device and one hash block.
            Offsets do not grow steadily, since the root level is stored first. What is never
            written (behind the superblock in the first block) must read as zeros.
        block_size: Bytes of data and hash blocks.
        salt: Hashed before every block.
        algorithm: `sha256` or `sha512`.
        progress: Called with the number of data bytes hashed since its last call.
        processes: How many share the work; None for as many as there are cores. A small device is
            hashed by one.

    Returns:
        The root hash and the parameters of the tree.

    Raises:
        ValueError: The device's length is not a positive multiple of the block size, or a parameter
            is out of its range.
        ReadError: The data could not be read; `write_at` raises what it does.
    """
    data_blocks, rest = divmod(data.size_bytes, block_size)
    if rest or not data_blocks:
        raise ValueError(f"device of {data.size_bytes} bytes: expected a positive multiple of {block_size}")
    # The constructor checks the parameters before anything is written.
    template = VeritySuperblock(bytes(UUID_BYTES), algorithm, block_size, block_size, data_blocks, salt)
    hasher = BlockHasher(algorithm, salt)
    pyramid = _Pyramid(template.layout, hasher, write_at)
    shared = processes if data.size_bytes >= _WORTH_SHARING_BYTES else 1

    def digests_of(offset_bytes: int) -> list[bytes]:
        end = min(offset_bytes + _PIECE_BYTES, data.size_bytes)
        starts = range(offset_bytes, end, _CHUNK_BYTES)
        chunks = (data.read_at(start, min(_CHUNK_BYTES, end - start)) for start in starts)
        return [digest for chunk in chunks for digest in hasher.digests(chunk, block_size)]

    for digests in ordered_map(digests_of, range(0, data.size_bytes, _PIECE_BYTES), processes=shared):
        for digest in digests:
            pyramid.add(0, digest)
        if progress is not None:
            progress(len(digests) * block_size)
    hash_device_bytes = template.layout.hash_device_bytes
    return BuiltTree(pyramid.finish(), algorithm, block_size, data_blocks, salt, hash_device_bytes)


class _Pyramid:
    """The open block of each level, leaf level first, and above them the root hash."""

    def __init__(self, layout: TreeLayout, hasher: BlockHasher, write_at: WriteAt) -> None:
        self._layout = layout
        self._hasher = hasher
        self._write_at = write_at
        self._padding = bytes(layout.padded_digest_bytes - layout.digest_bytes)
        self._open = [bytearray() for _ in layout.levels]
        self._written_blocks = [0] * len(layout.levels)
        self._root_hash = b""

    def add(self, level: int, digest: bytes) -> None:
        """Put the digest of the next block below `level` into it; above the top it is the root hash."""
        if level == len(self._open):
            self._root_hash = digest
            return
        block = self._open[level]
        block += digest
        block += self._padding
        if len(block) >= self._layout.hash_block_size:
            self._flush(level)

    def finish(self) -> bytes:
        """Write what is still open, from the leaves upwards, and return the root hash."""
        for level, block in enumerate(self._open):
            if block:
                self._flush(level)
        return self._root_hash

    def _flush(self, level: int) -> None:
        block = bytes(self._open[level]).ljust(self._layout.hash_block_size, b"\0")
        self._open[level].clear()
        address = self._layout.levels[level].first_block + self._written_blocks[level]
        self._write_at(address * self._layout.hash_block_size, block)
        self._written_blocks[level] += 1
        self.add(level + 1, self._hasher.digest(block))
