# SPDX-License-Identifier: Apache-2.0
"""Partition tables and hash trees for fuzzing: valid ones, and changed ones with their checksums right again."""

from __future__ import annotations

import functools
import hashlib
import struct
import zlib
from dataclasses import dataclass
from uuid import UUID

from rofs.ddi import signature_format
from rofs.ddi.gpt import PartitionSpec, plan_gpt
from rofs.ddi.roles import PartitionRole, type_guid_of
from rofs.ddi.signature_format import SignatureDocument
from rofs.verity.builder import build_tree
from rofs.verity.digest import BlockHasher
from rofs.verity.format import VeritySuperblock
from tests.verity.doubles import MemoryDevice

from .edits import Field, Program, Seed, edit_binary

_HEADER_FIELDS = ((8, 4), (12, 4), (24, 8), (32, 8), (40, 8), (48, 8), (72, 8), (80, 4), (84, 4))
_LBA_FIELDS = ((32, 8), (40, 8))  # of an entry
_ENTRY_FIELDS = ((0, 4), (16, 4), (20, 4), (48, 8), (54, 2), (56, 2), (58, 2))
# What is wrong with sizes and addresses hides all else, so they are changed less often.
_OTHERS_PER_FIELD = 5
ROOT_HASHES = tuple(hashlib.sha256(b"%d" % number).digest() for number in range(2))
_FOREIGN_TYPE = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
_REPAIR_NEITHER = 0x1F  # low flags that leave every checksum wrong

_VERITY_FIELDS = ((12, 4), (64, 4), (68, 4), (72, 8), (80, 2), (8, 4), (32, 1), (38, 1), (88, 4))
_OTHER_VERITY_FIELDS = 12 * len(_VERITY_FIELDS)  # data and hashes, which are allowed to be anything


@dataclass(frozen=True)
class Disk(Seed):
    """A disk with a partition table.

    Attributes:
        sector_size: In bytes.
    """

    sector_size: int = 512


@functools.cache
def disks() -> tuple[Disk, ...]:
    """One set of three partitions, with sectors of 512 and 4096 bytes; two sets and a foreign partition."""
    return (_disk(512, sets=1), _disk(4096, sets=1), _disk(512, sets=2), _disk(512, sets=1, larger_bytes=8192))


def hostile_disk(program: Program) -> bytes:
    """A disk after all edits, with the checksums of both tables right again unless the flags say otherwise."""
    which = disks()
    seed = which[program.seed % len(which)]
    data = bytearray(seed.data)
    for edit in program.edits:
        edit_binary(data, edit, seed)
    if program.flags & 0x1F != _REPAIR_NEITHER:
        _seal(data, seed.sector_size, seed.sector_size)
        if program.flags & 0x20 == 0:
            _seal(data, len(data) - seed.sector_size, seed.sector_size)
    if program.flags & 0xC0 == 0xC0:
        del data[len(data) * (program.flags & 0x1F) // 32 :]
    return bytes(data)


def _disk(sector_size: int, *, sets: int, larger_bytes: int = 0) -> Disk:
    specs, contents = [], []
    for number, root_hash in enumerate(ROOT_HASHES[:sets]):
        document = signature_format.pack(SignatureDocument(root_hash, b"\x30\x00"))
        roles = (PartitionRole.ROOT, PartitionRole.ROOT_VERITY, PartitionRole.ROOT_VERITY_SIG)
        uuids = (UUID(bytes=root_hash[:16]), UUID(bytes=root_hash[-16:]), UUID(int=7 + number))
        for role, uuid, content in zip(roles, uuids, (b"d" * 4096, b"v" * 4096, document), strict=True):
            specs.append(
                PartitionSpec(type_guid=type_guid_of(role, "x86-64"), uuid=uuid, label="a", length_bytes=len(content))
            )
            contents.append(content)
    if sets > 1:
        specs.insert(2, PartitionSpec(type_guid=_FOREIGN_TYPE, uuid=UUID(int=99), label="x" * 36, length_bytes=4096))
        contents.insert(2, bytes(4096))
    plan = plan_gpt(specs, UUID(int=5), sector_size=sector_size)
    data = bytearray(plan.size_bytes)
    for offset, content in zip(plan.offsets_bytes, contents, strict=True):
        data[offset : offset + len(content)] = content
    data[: len(plan.primary)] = plan.primary
    data[plan.backup_offset_bytes :] = plan.backup
    headers = (sector_size, len(data) - sector_size)
    data += bytes(larger_bytes)
    fields = [Field(header + at, size) for header in headers for at, size in _HEADER_FIELDS]
    starts = [start + 128 * n for start in (2 * sector_size, plan.backup_offset_bytes) for n in range(len(specs) + 1)]
    addresses = [Field(start + at, size) for start in starts for at, size in _LBA_FIELDS]
    others = [Field(start + at, size) for start in starts for at, size in _ENTRY_FIELDS]
    sectors = len(data) // sector_size
    values = (sectors, sectors - 1, *(offset // sector_size for offset in plan.offsets_bytes), 34, 128, 1024)
    return Disk(bytes(data), (*fields, *addresses, *others * _OTHERS_PER_FIELD), values, sector_size)


def _seal(data: bytearray, at: int, sector_size: int) -> None:
    """Make the checksums of one copy of the table right, as far as its sizes make sense."""
    if data[at : at + 8] != b"EFI PART":
        data[at : at + 8] = b"EFI PART"
    lba, count, size = struct.unpack_from("<QII", data, at + 72)
    start, length = lba * sector_size, count * size
    if start + length <= len(data):
        struct.pack_into("<I", data, at + 88, zlib.crc32(data[start : start + length]))
    header_bytes = min(max(struct.unpack_from("<I", data, at + 12)[0], 92), sector_size)
    struct.pack_into("<I", data, at + 16, 0)
    struct.pack_into("<I", data, at + 16, zlib.crc32(data[at : at + header_bytes]))


@dataclass(frozen=True)
class Protected(Seed):
    """Data and its hash device, one behind the other.

    Attributes:
        data_bytes: Length of the data.
        root_hash: Of the valid tree.
    """

    data_bytes: int = 0
    root_hash: bytes = b""


@functools.cache
def protected() -> tuple[Protected, ...]:
    """Trees of no, one and two levels; small and large blocks; with and without salt; both hash functions."""
    return tuple(
        _protect(*arguments)
        for arguments in (
            (1, 4096, b"", "sha256"),
            (9, 4096, b"", "sha256"),
            (40, 512, b"", "sha256"),
            (300, 512, b"salt" * 8, "sha256"),
            (40, 512, b"\xff" * 256, "sha512"),
            (130, 4096, b"", "sha512"),
        )
    )


def protected_of(length_bytes: int) -> Protected:
    """The valid one that a changed one was made of: no two are equally long."""
    (found,) = (seed for seed in protected() if len(seed.data) == length_bytes)
    return found


def hostile_verity(program: Program) -> bytes:
    """Data and hash device after all edits, with the old root hash."""
    which = protected()
    seed = which[program.seed % len(which)]
    data = bytearray(seed.data)
    for edit in program.edits:
        edit_binary(data, edit, seed)
    return bytes(data)


def _protect(blocks: int, block_size: int, salt: bytes, algorithm: str) -> Protected:
    data = b"".join(hashlib.sha512(b"%d" % n).digest() * (block_size // 64) for n in range(blocks))
    hashes = MemoryDevice()
    tree = build_tree(
        MemoryDevice(data),
        lambda at, piece: hashes.write_at(at, bytes(piece)),
        block_size=block_size,
        salt=salt,
        algorithm=algorithm,
    )
    hashes.write_at(0, tree.superblock(bytes(16)).pack())
    hash_bytes = bytes(hashes.content).ljust(tree.hash_device_bytes, b"\0")
    fields = [Field(len(data) + at, size) for at, size in _VERITY_FIELDS]
    end = len(data) + len(hash_bytes) - 4
    fields += [Field(end * n // _OTHER_VERITY_FIELDS, 4) for n in range(_OTHER_VERITY_FIELDS)]
    values = (blocks, block_size, len(hash_bytes), 512, 1024, 4096, 65536, len(salt))
    return Protected(data + hash_bytes, tuple(fields), values, len(data), tree.root_hash)


def rebuilt(data: bytes, hashes: bytes, superblock: VeritySuperblock) -> tuple[bytes, bytes]:
    """The hash device with a right tree for any superblock that fits, and the root hash."""
    hasher = BlockHasher(superblock.algorithm, superblock.salt)
    layout = superblock.layout
    device = bytearray(hashes)
    below = hasher.digests(data[: superblock.data_blocks * superblock.data_block_size], superblock.data_block_size)
    for level in layout.levels:
        blocks = [
            b"".join(below[at : at + layout.hashes_per_block]).ljust(layout.hash_block_size, b"\0")
            for at in range(0, len(below), layout.hashes_per_block)
        ]
        start = level.first_block * layout.hash_block_size
        device[start : start + len(blocks) * layout.hash_block_size] = b"".join(blocks)
        below = [hasher.digest(block) for block in blocks]
    assert len(below) == 1
    return bytes(device), below[0]
