# SPDX-License-Identifier: Apache-2.0
"""A device in memory that lies on demand, and a verity device built over it.

It does not know the format it holds: blocks are counted from its start.
"""

from __future__ import annotations

from dataclasses import dataclass

from rofs.errors import ReadError
from rofs.verity.builder import BuiltTree, build_tree
from rofs.verity.device import DEFAULT_CACHE_BYTES, VerityDevice
from rofs.verity.format import VeritySuperblock

UUID = bytes(range(16))


class MemoryDevice:
    """A `BlockDevice` over bytes, with defects."""

    def __init__(self, content: bytes = b"", *, block_size: int = 4096) -> None:
        self.content = bytearray(content)
        self.block_size = block_size
        self.reads: list[tuple[int, int]] = []
        self._failing: dict[int, float] = {}

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        assert 0 <= offset_bytes <= offset_bytes + length_bytes <= len(self.content)
        self.reads.append((offset_bytes, length_bytes))
        for block in self._failing:
            start = block * self.block_size
            if (
                offset_bytes < start + self.block_size
                and offset_bytes + length_bytes > start
                and self._failing[block] > 0
            ):
                self._failing[block] -= 1
                raise ReadError(f"medium error in block {block}")
        return bytes(self.content[offset_bytes : offset_bytes + length_bytes])

    def write_at(self, offset_bytes: int, data: bytes) -> None:
        end = offset_bytes + len(data)
        if end > len(self.content):
            self.content.extend(bytes(end - len(self.content)))
        self.content[offset_bytes:end] = data

    def corrupt_block(self, block: int, byte: int = 0) -> None:
        self.content[block * self.block_size + byte] ^= 1

    def fail_block(self, block: int, times: float = float("inf")) -> None:
        self._failing[block] = times


@dataclass
class Protected:
    """Data, its tree, and what both are known by."""

    data: MemoryDevice
    hashes: MemoryDevice
    tree: BuiltTree
    superblock: VeritySuperblock

    def open(self, cache_bytes: int = DEFAULT_CACHE_BYTES) -> VerityDevice:
        return VerityDevice(self.data, self.hashes, self.superblock, self.tree.root_hash, cache_bytes=cache_bytes)


def content(blocks: int, block_size: int = 4096) -> bytes:
    """Blocks that all differ."""
    return b"".join(n.to_bytes(8, "big") * (block_size // 8) for n in range(1, blocks + 1))


def protect(data: bytes, *, block_size: int = 4096, salt: bytes = b"", algorithm: str = "sha256") -> Protected:
    """Build a complete hash device over data."""
    device = MemoryDevice(data, block_size=block_size)
    hashes = MemoryDevice(block_size=block_size)
    tree = build_tree(device, hashes.write_at, block_size=block_size, salt=salt, algorithm=algorithm)
    superblock = tree.superblock(UUID)
    hashes.write_at(0, superblock.pack().ljust(block_size, b"\0"))
    return Protected(device, hashes, tree, superblock)
