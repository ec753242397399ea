# SPDX-License-Identifier: Apache-2.0
"""Hash blocks that have been verified against a root hash, and the digests of data blocks in them.

Verified blocks are kept in a cache bounded in bytes. Data blocks are not read here (`device` does),
and why the root hash is to be trusted is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rofs.blockdev import BlockDevice
from rofs.errors import BlockFault, CorruptionError, FormatError, ReadError
from rofs.lru import ByteLru
from rofs.verity.digest import BlockHasher
from rofs.verity.format import VeritySuperblock


class Run(NamedTuple):
    """Consecutive blocks of one level below one hash block, and what they must hash to.

    Attributes:
        first: Number of the first block in its level; of data blocks, the address.
        digests: One digest per block.
    """

    first: int
    digests: bytes


@dataclass(frozen=True, slots=True)
class Hole:
    """Data blocks that cannot be judged, since a hash block above them is bad.

    Attributes:
        fault: What is wrong with the hash block.
        block_count: How many data blocks it covers.
    """

    fault: BlockFault
    block_count: int


class HashTree:
    """The tree of a verity-protected device, as far as it has been verified.

    Digests are handed out without the padding that the format allows: sha256 and sha512, the only
    algorithms supported, fill their room exactly, so a slice of a hash block is a run of digests.

    Args:
        hashes: The hash device.
        superblock: Its parsed superblock.
        root_hash: The digest to verify against.
        cache_bytes: How much of verified hash blocks to keep; Python's overhead of about 250 bytes for
            each is not counted.

    Attributes:
        cache_hits: How many times a hash block was found verified in the cache.

    Raises:
        FormatError: The root hash is not as long as the superblock's algorithm makes it.
    """

    def __init__(self, hashes: BlockDevice, superblock: VeritySuperblock, root_hash: bytes, cache_bytes: int) -> None:
        self._layout = superblock.layout
        assert self._layout.padded_digest_bytes == self._layout.digest_bytes, "needs padding"
        if len(root_hash) != self._layout.digest_bytes:
            raise FormatError(
                f"verity superblock: a {superblock.algorithm} root hash has "
                f"{self._layout.digest_bytes} bytes, the trusted root hash has {len(root_hash)}"
            )
        self._hashes = hashes
        self._root_hash = root_hash
        self._data_blocks = superblock.data_blocks
        self._hasher = BlockHasher(superblock.algorithm, superblock.salt)
        self.cache_hits = 0
        self._cache: ByteLru[tuple[int, int], bytes] = ByteLru(cache_bytes)  # by (level, index)

    def runs(self, first: int, count: int) -> Iterator[Run]:
        """What a range of data blocks must hash to, one run per leaf hash block.

        Args:
            first: Address of the first data block.
            count: Number of data blocks, all inside of the device.

        Yields:
            The runs, in order.

        Raises:
            CorruptionError: A hash block does not match; `fault` names it.
            ReadError: A hash block could not be read; `fault` names it.
        """
        if not self._layout.levels:
            yield Run(0, self._root_hash)
            return
        per_block = self._layout.hashes_per_block
        digest_bytes = self._layout.digest_bytes
        end = first + count
        while first < end:
            index, slot = divmod(first, per_block)
            blocks = min(per_block - slot, end - first)
            leaf = self._verified(0, index)
            yield Run(first, leaf[slot * digest_bytes : (slot + blocks) * digest_bytes])
            first += blocks

    def walk(self) -> Iterator[Run | Hole]:
        """Read and verify every hash block above the leaf level once, past the cache, and go on after faults.

        Yields:
            Runs of leaf hash blocks, each for `walk_below`, and holes: together they cover every data
            block once, in order. A device of one block has no hash blocks: its run is that block.
        """
        top = len(self._layout.levels) - 1
        return self._walk(top, Run(0, self._root_hash), down_to=min(top, 0))

    def walk_below(self, leaves: Run) -> Iterator[Run | Hole]:
        """Read and verify the leaf hash blocks of a run from `walk`.

        Yields:
            Runs of data blocks and holes, in order.
        """
        return self._walk(min(len(self._layout.levels) - 1, 0), leaves, down_to=-1)

    def _walk(self, level: int, run: Run, *, down_to: int) -> Iterator[Run | Hole]:
        """Walk what stands below a run of `level`; runs of the level `down_to` are what comes out."""
        if level == down_to:
            yield run
            return
        first, digests = run.first, run.digests
        per_block = self._layout.hashes_per_block
        for i in range(len(digests) // self._layout.digest_bytes):
            index = first + i
            try:
                block = self._read(level, index, self._slot(digests, i))
            except (CorruptionError, ReadError) as error:
                if error.fault is None:
                    raise
                yield self._hole(level, index, error.fault)
                continue
            children = min(per_block, self._blocks_of(level - 1) - index * per_block)
            below = block[: children * self._layout.digest_bytes]
            yield from self._walk(level - 1, Run(index * per_block, below), down_to=down_to)

    def _hole(self, level: int, index: int, fault: BlockFault) -> Hole:
        covered = self.data_blocks_below(level)
        return Hole(fault, min(covered, self._data_blocks - index * covered))

    def data_blocks_below(self, level: int) -> int:
        """How many data blocks one block of a level stands for, 1 for level -1 (data blocks)."""
        covered: int = self._layout.hashes_per_block ** (level + 1)
        return covered

    def _blocks_of(self, level: int) -> int:
        return self._data_blocks if level < 0 else self._layout.levels[level].block_count

    def _slot(self, digests: bytes, slot: int) -> bytes:
        start = slot * self._layout.digest_bytes
        return digests[start : start + self._layout.digest_bytes]

    def _verified(self, level: int, index: int) -> bytes:
        """One verified hash block, from the cache or verified now."""
        block = self._cache.get((level, index))
        if block is not None:
            self.cache_hits += 1
            return block
        if level == len(self._layout.levels) - 1:
            expected = self._root_hash
        else:
            above, slot = divmod(index, self._layout.hashes_per_block)
            expected = self._slot(self._verified(level + 1, above), slot)
        block = self._read(level, index, expected)
        self._cache.put((level, index), block, len(block))
        return block

    def _read(self, level: int, index: int, expected: bytes) -> bytes:
        size = self._layout.hash_block_size
        offset_bytes = (self._layout.levels[level].first_block + index) * size
        try:
            block = self._hashes.read_at(offset_bytes, size)
        except ReadError as error:
            raise ReadError(str(error), BlockFault("io", level, index, expected)) from error
        found = self._hasher.digest(block)
        if found != expected:
            raise CorruptionError(BlockFault("mismatch", level, index, expected, found))
        return block
