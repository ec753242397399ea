# SPDX-License-Identifier: Apache-2.0
"""The dm-verity on-disk format, version 1, hash type 1: the superblock and where each block stands.

Sources: kernel Documentation/admin-guide/device-mapper/verity.rst; cryptsetup lib/verity/verity.c and
verity_hash.c. Pure: nothing here reads a device, hashes a block or trusts anything. The superblock is
not authenticated; all that a lie in it can do is make the root hash not match, provided that every
field is bounded before use, which `VeritySuperblock.parse` does.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from rofs.errors import FormatError

SUPERBLOCK_BYTES = 512
MAGIC = b"verity\0\0"
VERSION = 1
HASH_TYPE = 1  # digest = H(salt || block); type 0 (Chrome OS) puts the salt behind

UUID_BYTES = 16
MAX_SALT_BYTES = 256  # the length of the field
# Device-mapper takes nothing below a sector; above 64 KiB no tool writes any, and a hostile value
# would have us allocate that much for every hash block.
MIN_BLOCK_BYTES = 512
MAX_BLOCK_BYTES = 65536

# With these two even the smallest hash block holds eight digests, so a tree always narrows upwards.
DIGEST_BYTES = {"sha256": 32, "sha512": 64}

_SUPERBLOCK = struct.Struct(
    "<"
    "8s"  # 0    signature
    "I"  # 8    version
    "I"  # 12   hash_type
    "16s"  # 16   uuid
    "32s"  # 32   algorithm, NUL-padded
    "I"  # 64   data_block_size, bytes
    "I"  # 68   hash_block_size, bytes
    "Q"  # 72   data_blocks
    "H"  # 80   salt_size, bytes
    "6x"
    "256s"  # 88   salt
    "168x"
)
assert _SUPERBLOCK.size == SUPERBLOCK_BYTES


class _Fields(NamedTuple):
    """What `_SUPERBLOCK` unpacks, unchecked."""

    signature: bytes
    version: int
    hash_type: int
    uuid: bytes
    algorithm: bytes
    data_block_size: int
    hash_block_size: int
    data_blocks: int
    salt_size: int
    salt: bytes


@dataclass(frozen=True, slots=True)
class TreeLevel:
    """One level of a hash tree.

    Attributes:
        first_block: Address of its first block, in hash blocks from the start of the hash device.
        block_count: How many hash blocks it has.
    """

    first_block: int
    block_count: int


@dataclass(frozen=True, slots=True)
class TreeLayout:
    """Where the blocks of a hash tree stand on the hash device.

    Attributes:
        hash_block_size: Bytes of one hash block.
        digest_bytes: Length of a digest.
        padded_digest_bytes: Room of a digest in a hash block: `digest_bytes` up to a power of two.
        hashes_per_block: Digests in one hash block, a power of two.
        levels: Leaf level first; empty for a device of one data block, whose digest is the root hash.
        hash_device_bytes: Length of superblock and tree together.
    """

    hash_block_size: int
    digest_bytes: int
    padded_digest_bytes: int
    hashes_per_block: int
    levels: tuple[TreeLevel, ...]
    hash_device_bytes: int


def tree_layout(*, data_blocks: int, hash_block_size: int, algorithm: str) -> TreeLayout:
    """Compute the layout of the tree over a number of data blocks.

    The hash area begins at the first hash block boundary behind the superblock. The level with the
    single top block is stored first, the leaf level last.

    Args:
        data_blocks: Number of data blocks, at least 1.
        hash_block_size: Bytes of a hash block, a power of two.
        algorithm: A key of `DIGEST_BYTES`.

    Returns:
        The layout.

    Raises:
        ValueError: An argument is out of its range (misuse: a superblock is checked when parsed).
    """
    fault = _parameter_fault(algorithm, hash_block_size, hash_block_size, data_blocks)
    if fault is not None:
        raise ValueError(fault)
    digest_bytes = DIGEST_BYTES[algorithm]
    padded_digest_bytes = 1 << (digest_bytes - 1).bit_length()
    hashes_per_block = hash_block_size // padded_digest_bytes
    counts = []
    blocks = data_blocks
    while blocks > 1:
        blocks = -(-blocks // hashes_per_block)
        counts.append(blocks)
    levels: list[TreeLevel] = []
    address = -(-SUPERBLOCK_BYTES // hash_block_size)
    for count in reversed(counts):
        levels.insert(0, TreeLevel(address, count))
        address += count
    return TreeLayout(
        hash_block_size,
        digest_bytes,
        padded_digest_bytes,
        hashes_per_block,
        tuple(levels),
        address * hash_block_size,
    )


@dataclass(frozen=True, slots=True)
class VeritySuperblock:
    """The parameters of a hash tree as they stand in front of it.

    Attributes:
        uuid: 16 bytes; the caller derives them.
        algorithm: Name of the hash function, a key of `DIGEST_BYTES`.
        data_block_size: Bytes of a data block.
        hash_block_size: Bytes of a hash block.
        data_blocks: Number of data blocks the tree covers, from the start of the data device.
        salt: At most 256 bytes that are hashed before every block; may be empty.

    Raises:
        ValueError: A field is out of its range.
    """

    uuid: bytes
    algorithm: str
    data_block_size: int
    hash_block_size: int
    data_blocks: int
    salt: bytes

    def __post_init__(self) -> None:
        if len(self.uuid) != UUID_BYTES:
            raise ValueError(f"uuid has {len(self.uuid)} bytes, expected {UUID_BYTES}")
        if len(self.salt) > MAX_SALT_BYTES:
            raise ValueError(f"salt has {len(self.salt)} bytes, expected at most {MAX_SALT_BYTES}")
        fault = _parameter_fault(self.algorithm, self.data_block_size, self.hash_block_size, self.data_blocks)
        if fault is not None:
            raise ValueError(fault)

    @property
    def layout(self) -> TreeLayout:
        """Where the hash blocks stand."""
        return tree_layout(
            data_blocks=self.data_blocks,
            hash_block_size=self.hash_block_size,
            algorithm=self.algorithm,
        )

    def pack(self) -> bytes:
        """Encode as the 512 bytes at the start of the hash device."""
        return _SUPERBLOCK.pack(
            MAGIC,
            VERSION,
            HASH_TYPE,
            self.uuid,
            self.algorithm.encode("ascii"),
            self.data_block_size,
            self.hash_block_size,
            self.data_blocks,
            len(self.salt),
            self.salt,
        )

    @classmethod
    def parse(cls, data: bytes, *, data_device_bytes: int, hash_device_bytes: int) -> VeritySuperblock:
        """Decode a superblock that nobody vouches for, and bound every field.

        1. Length, signature, version and hash type are the ones known here.
        2. The hash function is supported; block sizes, block count and salt length are in range.
        3. Data blocks and tree lie inside of their devices.

        Args:
            data: At least the first 512 bytes of the hash device.
            data_device_bytes: Length of the data device; the tree may cover less of it.
            hash_device_bytes: Length of the hash device.

        Returns:
            The checked parameters.

        Raises:
            FormatError: A check failed; the message says which, expected and found.
        """
        if len(data) < SUPERBLOCK_BYTES:  # 1.
            raise _fault(f"expected {SUPERBLOCK_BYTES} bytes, found {len(data)}: truncated")
        raw = _Fields._make(_SUPERBLOCK.unpack_from(data))
        if raw.signature != MAGIC:
            raise _fault(f"signature expected {MAGIC!r}, found {raw.signature!r}")
        if raw.version != VERSION:
            raise _fault(f"unsupported version, expected {VERSION}, found {raw.version}")
        if raw.hash_type != HASH_TYPE:
            raise _fault(f"unsupported hash type, expected {HASH_TYPE}, found {raw.hash_type}")
        name = raw.algorithm.partition(b"\0")[0].decode("ascii", "backslashreplace")  # 2.
        if raw.salt_size > MAX_SALT_BYTES:
            raise _fault(f"salt length expected at most {MAX_SALT_BYTES} bytes, found {raw.salt_size}")
        sizes = raw.data_block_size, raw.hash_block_size, raw.data_blocks
        fault = _parameter_fault(name, *sizes)
        if fault is not None:
            raise _fault(fault)
        superblock = cls(raw.uuid, name, *sizes, raw.salt[: raw.salt_size])
        superblock.check_fits(data_device_bytes, hash_device_bytes)  # 3.
        return superblock

    def check_fits(self, data_device_bytes: int, hash_device_bytes: int) -> None:
        """Check that the data blocks and the tree lie inside of their devices.

        Args:
            data_device_bytes: Length of the data device.
            hash_device_bytes: Length of the hash device.

        Raises:
            FormatError: They do not.
        """
        data_bytes = self.data_blocks * self.data_block_size
        if data_bytes > data_device_bytes:
            raise _fault(
                f"{self.data_blocks} data blocks of {self.data_block_size} bytes expected, but the "
                f"data device has {data_device_bytes} bytes"
            )
        layout = self.layout
        # Without a level the superblock is all there is; veritysetup then need not fill its block.
        needed_bytes = layout.hash_device_bytes if layout.levels else SUPERBLOCK_BYTES
        if needed_bytes > hash_device_bytes:
            raise _fault(
                f"the hash tree over {self.data_blocks} data blocks needs a hash device of "
                f"{needed_bytes} bytes, found {hash_device_bytes}"
            )


def _parameter_fault(algorithm: str, data_block_size: int, hash_block_size: int, data_blocks: int) -> str | None:
    """What is wrong with the parameters of a tree, as a phrase, or None."""
    if algorithm not in DIGEST_BYTES:
        known = ", ".join(DIGEST_BYTES)
        return f"unsupported hash algorithm, expected one of {known}, found {algorithm!r}"
    for name, size in (("data", data_block_size), ("hash", hash_block_size)):
        if not MIN_BLOCK_BYTES <= size <= MAX_BLOCK_BYTES or size & (size - 1):
            return (
                f"{name} block size expected a power of two from {MIN_BLOCK_BYTES} to "
                f"{MAX_BLOCK_BYTES} bytes, found {size}"
            )
    if data_blocks < 1:
        return f"number of data blocks expected at least 1, found {data_blocks}"
    return None


def _fault(phrase: str) -> FormatError:
    return FormatError(f"verity superblock: {phrase}")
