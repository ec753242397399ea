# SPDX-License-Identifier: Apache-2.0
"""A block device that hands out no byte it has not checked against a root hash.

Every data block touched is hashed on every read, in the memory that is then returned, so a change of
the image under a running mount is caught as well. It does not decide whether the root hash is to be
trusted, does not know what the blocks mean, caches no data, and is not safe to use from several
threads at once: each worker process has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rofs.blockdev import BlockDevice, check_range
from rofs.errors import BlockFault, CorruptionError, ReadError
from rofs.parallel import ordered_map
from rofs.verity.digest import BlockHasher
from rofs.verity.format import VeritySuperblock
from rofs.verity.tree import HashTree, Hole, Run

# With 4 KiB blocks and sha256 these are 2048 leaf hash blocks, which cover 1 GiB of data.
DEFAULT_CACHE_BYTES = 8 << 20

# The most that `check_all` reads at once; one leaf hash block may cover 128 MiB.
_CHECK_BYTES = 1 << 20

# Below this, starting processes takes longer than they save.
_WORTH_SHARING_BYTES = 256 << 20

_DATA = -1  # the level of data blocks in a BlockFault


@dataclass(frozen=True, slots=True)
class _Piece:
    """What came of checking a part of the device."""

    blocks: int
    verified_blocks: int
    unjudged_blocks: int
    faults: tuple[BlockFault, ...]


class VerityDevice:
    """The data blocks of a verity-protected device, verified; a `BlockDevice`.

    Args:
        data: The data device; may be longer than what the superblock covers.
        hashes: The hash device, which begins with the superblock.
        superblock: Its parsed superblock.
        root_hash: The digest to verify against; the caller has a reason to trust it.
        cache_bytes: How much of verified hash blocks to keep, least recently used dropped first.

    Attributes:
        verified_blocks: How many data blocks were found to match so far, repeated reads included.
        unjudged_blocks: Data blocks that the last `check_all` could not judge, since a hash block
            above them is bad.

    Raises:
        FormatError: The superblock does not fit the devices or the length of the root hash.
    """

    def __init__(
        self,
        data: BlockDevice,
        hashes: BlockDevice,
        superblock: VeritySuperblock,
        root_hash: bytes,
        *,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
    ) -> None:
        superblock.check_fits(data.size_bytes, hashes.size_bytes)
        self._data = data
        self._tree = HashTree(hashes, superblock, root_hash, cache_bytes)
        self._superblock = superblock
        self._block_size = superblock.data_block_size
        self._digest_bytes = len(root_hash)
        self._size_bytes = superblock.data_blocks * superblock.data_block_size
        self._hasher = BlockHasher(superblock.algorithm, superblock.salt)
        self.verified_blocks = 0
        self.unjudged_blocks = 0

    @property
    def size_bytes(self) -> int:
        """Length of what the tree covers, in bytes."""
        return self._size_bytes

    @property
    def cache_hits(self) -> int:
        """How many times a hash block was found verified in memory."""
        return self._tree.cache_hits

    @property
    def superblock(self) -> VeritySuperblock:
        """The parameters of the tree, as given."""
        return self._superblock

    @property
    def data_blocks(self) -> int:
        """How many data blocks the tree covers: what `BlockFault.block` of level -1 and both counts count."""
        return self._superblock.data_blocks

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read and verify exactly that range.

        1. Read the data blocks that cover the range, in one call.
        2. For each leaf hash block over them: fetch it verified, climbing towards the root hash
           until a block is in the cache or the root hash itself judges.
        3. Hash the data blocks and compare their digests with the hash block's slice at once.
        4. Return the range from the very bytes that were hashed.

        Args:
            offset_bytes: Start, in bytes; need not be a block boundary.
            length_bytes: How many bytes.

        Returns:
            `length_bytes` verified bytes.

        Raises:
            FormatError: The range is not inside of the device.
            CorruptionError: A block does not match; `fault` names the first bad one.
            ReadError: A block could not be read; `fault` names it.
        """
        check_range(self._size_bytes, offset_bytes, length_bytes)
        if not length_bytes:
            return b""
        size = self._block_size
        first = offset_bytes // size
        count = -(-(offset_bytes + length_bytes) // size) - first
        data = self._read(first, count)  # 1.
        view = memoryview(data)
        for run in self._tree.runs(first, count):  # 2.
            count = len(run.digests) // self._digest_bytes
            start = (run.first - first) * size
            part = view[start : start + count * size]
            if b"".join(self._hasher.digests(part, size)) == run.digests:  # 3.
                self.verified_blocks += count
                continue
            for fault in self._judge(run, part):
                raise CorruptionError(fault)
        begin = offset_bytes - first * size
        return data[begin : begin + length_bytes]  # 4.

    def check_all(
        self, progress: Callable[[int], None] | None = None, *, processes: int | None = 1
    ) -> Iterator[BlockFault]:
        """Read every hash block of every level and every data block, and go on after faults.

        Each block is judged by a verified one that was read during this walk, none by the cache. A
        bad hash block is one fault. What stands below it cannot be judged: it is skipped, and its
        data blocks are counted in `unjudged_blocks`.

        Args:
            progress: Called with the number of data bytes done (or skipped) since its last call;
                they add up to `size_bytes`.
            processes: How many share the work; None for as many as there are cores. A device that is
                small is checked by one.

        Yields:
            One fault per bad block, in the order of the data, a hash block before what it covers.
        """
        self.unjudged_blocks = 0
        shared = processes if self._size_bytes >= _WORTH_SHARING_BYTES else 1
        for piece in ordered_map(self._check_piece, self._tree.walk(), processes=shared):
            self.verified_blocks += piece.verified_blocks
            self.unjudged_blocks += piece.unjudged_blocks
            yield from piece.faults
            if progress is not None:
                progress(piece.blocks * self._block_size)

    def _check_piece(self, item: Run | Hole) -> _Piece:
        """Check what stands below one hash block of the second level: 64 MiB of data with the usual sizes."""
        before = self.verified_blocks
        faults: list[BlockFault] = []
        blocks = unjudged = 0
        for below in [item] if isinstance(item, Hole) else self._tree.walk_below(item):
            if isinstance(below, Hole):
                blocks += below.block_count
                unjudged += below.block_count
                faults.append(below.fault)
                continue
            blocks += self._count(below)
            for run in self._pieces(below, max(1, _CHECK_BYTES // self._block_size)):
                faults.extend(self._check(run))
        # The caller adds them up; this may be its own object or a child's copy of it.
        verified, self.verified_blocks = self.verified_blocks - before, before
        return _Piece(blocks, verified, unjudged, tuple(faults))

    def covered_range(self, fault: BlockFault) -> tuple[int, int]:
        """What depends on a bad block: the block itself, or all data blocks below a hash block.

        Args:
            fault: As this device reported it.

        Returns:
            Offset and length in bytes, inside of the device.
        """
        step = self._tree.data_blocks_below(fault.level) * self._block_size
        start = min(fault.block * step, self._size_bytes)
        return start, min(step, self._size_bytes - start)

    def _check(self, run: Run) -> Iterator[BlockFault]:
        """Read and judge one run; when reading it fails, block by block."""
        try:
            data = self._read_whole(run.first, self._count(run))
        except ReadError as error:
            if self._count(run) == 1:
                yield error.fault or BlockFault("io", _DATA, run.first)
                return
            for piece in self._pieces(run, 1):
                yield from self._check(piece)
        else:
            yield from self._judge(run, memoryview(data))

    def _count(self, run: Run) -> int:
        return len(run.digests) // self._digest_bytes

    def _pieces(self, run: Run, block_count: int) -> Iterator[Run]:
        step = block_count * self._digest_bytes
        for i, start in enumerate(range(0, len(run.digests), step)):
            yield Run(run.first + i * block_count, run.digests[start : start + step])

    def _judge(self, run: Run, view: memoryview) -> Iterator[BlockFault]:
        """Compare the data blocks at the start of `view` with a run, yield a fault per bad one."""
        size = self._block_size
        digests = self._hasher.digests(view[: self._count(run) * size], size)
        if b"".join(digests) == run.digests:
            self.verified_blocks += len(digests)
            return
        for i, found in enumerate(digests):
            expected = run.digests[i * self._digest_bytes : (i + 1) * self._digest_bytes]
            if found == expected:
                self.verified_blocks += 1
            else:
                yield BlockFault("mismatch", _DATA, run.first + i, expected, found)

    def _read(self, first: int, count: int) -> bytes:
        """Unverified data blocks; when reading them at once fails, one by one."""
        try:
            return self._read_whole(first, count)
        except ReadError:
            if count == 1:
                raise
        # If all of them come now the medium had a passing fault, and the digests judge.
        return b"".join(self._read_whole(block, 1) for block in range(first, first + count))

    def _read_whole(self, first: int, count: int) -> bytes:
        try:
            return self._data.read_at(first * self._block_size, count * self._block_size)
        except ReadError as error:
            fault = BlockFault("io", _DATA, first) if count == 1 else None
            raise ReadError(str(error), fault) from error
