# SPDX-License-Identifier: Apache-2.0
"""EROFS on-disk structures: superblock and inode; constants and checks, no I/O.

Directories are in `directory_format`, extended attributes in `xattr_format`.

Source: Linux Documentation/filesystems/erofs.rst and the format header of erofs-utils, whose names
are used here. All integers are little-endian.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import NamedTuple

import google_crc32c

from rofs.errors import FormatError

SUPER_OFFSET = 1024
SUPER_MAGIC = 0xE0F5E1E2
SLOT_BYTES = 32  # a nid counts these from meta_blkaddr
EXTENDED_INODE_BYTES = 64  # the longer of the two forms
FIRST_FREE_BYTE = SUPER_OFFSET + 128  # behind the superblock
MIN_BLOCK_BITS = 9
MAX_BLOCK_BITS = 16  # the largest page of any architecture, and all that a u16 nameoff reaches

FEATURE_COMPAT_SB_CHKSUM = 0x1
FEATURE_COMPAT_MTIME = 0x2
# Long xattr name prefixes stand in the metadata area even when there is a packed inode.
FEATURE_COMPAT_PLAIN_XATTR_PFX = 0x10
# Says how compressed data is aligned; mkfs.erofs sets it on images without any, where it is void.
FEATURE_INCOMPAT_ZERO_PADDING = 0x1
FEATURE_INCOMPAT_CHUNKED_FILE = 0x4
# There is a packed inode. It holds the ends of compressed files, or what mkfs.erofs 1.8 keeps there in
# images without compression: long xattr name prefixes.
FEATURE_INCOMPAT_FRAGMENTS = 0x20
FEATURE_INCOMPAT_XATTR_PREFIXES = 0x40
_INCOMPAT_NAMES = {
    0x2: "compression configurations or big physical clusters",
    0x8: "a device table (contents on other devices) or a second compression head",
    0x10: "inlined compressed tails (ztailpacking)",
    FEATURE_INCOMPAT_FRAGMENTS: "fragments or deduplicated compressed data",
    0x80: "48-bit block addresses",
    0x100: "a metadata box (metabox)",
}

LAYOUT_FLAT_PLAIN = 0
LAYOUT_FLAT_INLINE = 2
LAYOUT_CHUNK_BASED = 4
_LAYOUT_NAMES = {1: "compressed", 3: "compressed"}

NULL_ADDRESS = 0xFFFFFFFF  # of a hole, in place of a block address

# The low 16 bits of i_u in a chunk-based inode.
CHUNK_FORMAT_BLKBITS_MASK = 0x1F
CHUNK_FORMAT_INDEXES = 0x20
_CHUNK_FORMAT_48BIT = 0x40
BLOCK_MAP_ENTRY = struct.Struct("<I")  # block address
CHUNK_INDEX = struct.Struct("<2x2xI")  # startblk_hi and device_id, void without their features; block address

assert BLOCK_MAP_ENTRY.size == 4
assert CHUNK_INDEX.size == 8

# Directory file types, in the order of the format.
FILE_TYPES = (
    0,
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFLNK,
)
FILE_TYPE_OF_MODE = {mode: number for number, mode in enumerate(FILE_TYPES) if mode}

# magic, checksum, feature_compat, blkszbits, sb_extslots, root_nid, inos, build_time, build_time_nsec,
# blocks, meta_blkaddr, xattr_blkaddr, uuid, volume_name, feature_incompat, and from byte 90 dirblkbits,
# xattr_prefix_count, xattr_prefix_start, packed_nid; what is left out needs a bit in feature_incompat or
# feature_compat to mean anything
_SUPERBLOCK = struct.Struct("<IIIBBHQqIIII16s16sI6xBBIQ24x")
# i_format, i_xattr_icount, i_mode, i_nlink, i_size, i_reserved, i_u, i_ino, i_uid, i_gid, i_reserved2
_COMPACT = struct.Struct("<HHHHI4xIIHH4x")
# i_format, i_xattr_icount, i_mode, i_reserved, i_size, i_u, i_ino, i_uid, i_gid, i_mtime,
# i_mtime_nsec, i_nlink, i_reserved2
_EXTENDED = struct.Struct("<HHH2xQIIIIqII16x")

assert _SUPERBLOCK.size == 128
assert _COMPACT.size == 32
assert _EXTENDED.size == EXTENDED_INODE_BYTES


@dataclass(frozen=True, slots=True)
class Superblock:
    """The fields of the superblock that rofs uses.

    Attributes:
        block_bits: log2 of the block size in bytes.
        root_nid: Inode of the root directory.
        inos: Number of inodes.
        build_time: Seconds since the epoch; the mtime of compact inodes.
        blocks: Size of the filesystem in blocks.
        meta_blkaddr: Block address that nids count from.
        uuid: 16 bytes.
        feature_incompat: FEATURE_INCOMPAT bits.
        xattr_blkaddr: Block address that shared xattrs count from.
        xattr_prefix_count: How many long xattr name prefixes there are.
        xattr_prefix_start: Where they stand, in units of 4 bytes.
        packed_nid: The inode whose content they stand in, 0 when they are counted from the filesystem's start.
    """

    block_bits: int
    root_nid: int
    inos: int
    build_time: int
    build_time_nsec: int
    blocks: int
    meta_blkaddr: int
    uuid: bytes
    feature_incompat: int = 0
    xattr_blkaddr: int = 0
    xattr_prefix_count: int = 0
    xattr_prefix_start: int = 0
    packed_nid: int = 0

    @property
    def block_size(self) -> int:
        """Block size in bytes."""
        return 1 << self.block_bits

    def pack(self, *, checksum: int = 0) -> bytes:
        """The 128 bytes on disk."""
        return _SUPERBLOCK.pack(
            SUPER_MAGIC,
            checksum,
            FEATURE_COMPAT_SB_CHKSUM | FEATURE_COMPAT_MTIME,
            self.block_bits,
            0,
            self.root_nid,
            self.inos,
            self.build_time,
            self.build_time_nsec,
            self.blocks,
            self.meta_blkaddr,
            self.xattr_blkaddr,
            self.uuid,
            b"",
            self.feature_incompat,
            0,
            self.xattr_prefix_count,
            self.xattr_prefix_start,
            self.packed_nid,
        )


def superblock_span_bytes(start: bytes) -> int:
    """How many bytes of the device `parse_superblock` needs: all that the superblock's checksum covers.

    That is the first block, or as many bytes from the superblock on as a block has if it has 1024 or less
    (erofs_superblock_csum_verify in Linux).

    Args:
        start: The first 4096 bytes of the device, or all when it is shorter.
    """
    if len(start) < FIRST_FREE_BYTE:
        return FIRST_FREE_BYTE
    block_bits: int = _SUPERBLOCK.unpack_from(start, SUPER_OFFSET)[3]
    if not MIN_BLOCK_BITS <= block_bits <= MAX_BLOCK_BITS:
        return FIRST_FREE_BYTE
    block = 1 << block_bits
    return block if block > SUPER_OFFSET else SUPER_OFFSET + block


def superblock_checksum(covered: bytes) -> int:
    """CRC-32C of the superblock and what follows it, its own field taken as zero.

    EROFS starts with all ones and does not invert the result, which the usual CRC-32C does.

    Args:
        covered: The first `superblock_span_bytes` of the filesystem.
    """
    body = bytearray(covered[SUPER_OFFSET:])
    body[4:8] = bytes(4)
    return int(google_crc32c.value(bytes(body))) ^ 0xFFFFFFFF


def parse_superblock(start: bytes, device_bytes: int) -> Superblock:
    """Check and read the superblock.

    Args:
        start: The first `superblock_span_bytes` of the device.
        device_bytes: Length of the device.

    Raises:
        FormatError: Not EROFS, damaged, larger than its device, or using a feature that is not
            supported, which is then named.
    """
    if len(start) < FIRST_FREE_BYTE:
        raise FormatError(f"EROFS: device of {device_bytes} bytes is too short for a superblock")
    fields = _SUPERBLOCK.unpack_from(start, SUPER_OFFSET)
    magic, checksum, compat, block_bits, extslots, root_nid = fields[:6]
    inos, build_time, build_time_nsec, blocks, meta_blkaddr, xattr_blkaddr, uuid, _name = fields[6:14]
    incompat, dirblkbits, prefix_count, prefix_start, packed_nid = fields[14:]
    if magic != SUPER_MAGIC:
        raise FormatError(f"EROFS: magic {SUPER_MAGIC:#x} expected at byte {SUPER_OFFSET}, found {magic:#x}")
    if not MIN_BLOCK_BITS <= block_bits <= MAX_BLOCK_BITS:
        raise FormatError(f"EROFS: block size 2^{block_bits}, expected 2^{MIN_BLOCK_BITS} to 2^{MAX_BLOCK_BITS}")
    _check_features(incompat, extslots)
    if dirblkbits:  # needs no feature bit: an image with larger directory blocks looks like any other
        raise FormatError(f"EROFS: directory blocks of 2^{dirblkbits} filesystem blocks are not supported")
    if compat & FEATURE_COMPAT_SB_CHKSUM:
        computed = superblock_checksum(start[: superblock_span_bytes(start)])
        if computed != checksum:
            raise FormatError(f"EROFS: superblock checksum {checksum:#010x} expected, {computed:#010x} computed")
    if blocks << block_bits > device_bytes or meta_blkaddr >= max(blocks, 1):
        raise FormatError(
            f"EROFS: {blocks} blocks with metadata at block {meta_blkaddr} do not fit into {device_bytes} bytes"
        )
    if build_time_nsec >= 10**9:
        raise FormatError(f"EROFS: superblock is malformed: nanoseconds {build_time_nsec}")
    has_packed_inode = incompat & FEATURE_INCOMPAT_FRAGMENTS and not compat & FEATURE_COMPAT_PLAIN_XATTR_PFX
    return Superblock(
        block_bits,
        root_nid,
        inos,
        build_time,
        build_time_nsec,
        blocks,
        meta_blkaddr,
        uuid,
        feature_incompat=incompat,
        xattr_blkaddr=xattr_blkaddr,
        xattr_prefix_count=prefix_count,
        xattr_prefix_start=prefix_start,
        packed_nid=packed_nid if has_packed_inode else 0,
    )


def _check_features(incompat: int, extslots: int) -> None:
    known = FEATURE_INCOMPAT_ZERO_PADDING | FEATURE_INCOMPAT_CHUNKED_FILE | FEATURE_INCOMPAT_XATTR_PREFIXES
    if incompat & FEATURE_INCOMPAT_XATTR_PREFIXES:
        known |= FEATURE_INCOMPAT_FRAGMENTS
    unknown = incompat & ~known
    if unknown or extslots:
        names = [_INCOMPAT_NAMES.get(1 << b, f"bit {b}") for b in range(32) if unknown >> b & 1]
        raise FormatError(
            f"EROFS: the image uses features that are not supported: {', '.join(names) or 'superblock extension'} "
            f"(feature_incompat {incompat:#x})"
        )


class DiskInode(NamedTuple):
    """An inode as it stands on disk, checked in itself.

    Attributes:
        nid: Its number.
        header_bytes: 32 for compact, 64 for extended inodes.
        xattr_bytes: Length of the xattr area that follows.
        layout: One of the LAYOUT constants.
        size: Content in bytes.
        union: Block address of the content, the chunk format, or the device number.
    """

    nid: int
    header_bytes: int
    xattr_bytes: int
    layout: int
    mode: int
    nlink: int
    size: int
    union: int
    uid: int
    gid: int
    mtime_ns: int

    @property
    def chunk_blkbits(self) -> int:
        """log2 of how many blocks a chunk has, 0 to 31; of chunk-based inodes."""
        return self.union & CHUNK_FORMAT_BLKBITS_MASK

    @property
    def chunk_entry(self) -> struct.Struct:
        """What a chunk's address stands in; of chunk-based inodes. Their table is aligned to its size."""
        return CHUNK_INDEX if self.union & CHUNK_FORMAT_INDEXES else BLOCK_MAP_ENTRY

    def pack_extended(self, ino: int) -> bytes:
        """The 64 bytes of an extended inode; `ino` is a 32-bit number for old stat calls."""
        seconds, nanoseconds = divmod(self.mtime_ns, 10**9)
        return _EXTENDED.pack(
            1 | self.layout << 1,
            xattr_icount(self.xattr_bytes),
            self.mode,
            self.size,
            self.union,
            ino & 0xFFFFFFFF,
            self.uid,
            self.gid,
            seconds,
            nanoseconds,
            self.nlink,
        )


def parse_inode(data: bytes, nid: int, superblock: Superblock) -> DiskInode:
    """Check and read one inode.

    Args:
        data: 64 bytes at the inode's place; fewer at the end of the device.
        nid: Its number, for messages.
        superblock: Gives the time of compact inodes.

    Raises:
        FormatError: Not an inode, or of a layout that is not supported, which is then named.
    """
    extended = bool(data[0] & 1) if data else False
    if len(data) < (_EXTENDED.size if extended else _COMPACT.size):
        raise FormatError(f"EROFS: inode {nid} lies beyond the end of the device")
    if extended:
        form, icount, mode, size, union, _ino, uid, gid, mtime, nsec, nlink = _EXTENDED.unpack_from(data)
    else:
        form, icount, mode, nlink, size, union, _ino, uid, gid = _COMPACT.unpack_from(data)
        mtime, nsec = superblock.build_time, superblock.build_time_nsec
    layout = form >> 1 & 0x7
    if layout not in {LAYOUT_FLAT_PLAIN, LAYOUT_FLAT_INLINE, LAYOUT_CHUNK_BASED} or form >> 4:
        raise FormatError(
            f"EROFS: inode {nid} has a data layout that is not supported: "
            f"{_LAYOUT_NAMES.get(layout, f'i_format {form:#x}')}"
        )
    if layout == LAYOUT_CHUNK_BASED:
        _check_chunk_format(union & 0xFFFF, nid)
    if stat.S_IFMT(mode) not in FILE_TYPE_OF_MODE:
        raise FormatError(f"EROFS: inode {nid} has no valid file type: mode {mode:#o}")
    if size >= 1 << 63 or nsec >= 10**9 or nlink == 0:
        raise FormatError(f"EROFS: inode {nid} is malformed: size {size}, nanoseconds {nsec}, nlink {nlink}")
    header_bytes = _EXTENDED.size if extended else _COMPACT.size
    mtime_ns = mtime * 10**9 + nsec
    # By position: it is made for each name in a listing.
    return DiskInode(nid, header_bytes, xattr_ibody_bytes(icount), layout, mode, nlink, size, union, uid, gid, mtime_ns)


def _check_chunk_format(chunk_format: int, nid: int) -> None:
    unknown = chunk_format & ~(CHUNK_FORMAT_BLKBITS_MASK | CHUNK_FORMAT_INDEXES)
    if unknown:
        name = "48-bit block addresses" if unknown == _CHUNK_FORMAT_48BIT else f"bits {unknown:#x}"
        raise FormatError(f"EROFS: inode {nid} has a chunk format that is not supported: {name}")


def xattr_ibody_bytes(icount: int) -> int:
    """Length in bytes of an inode's xattr area, from i_xattr_icount."""
    return 12 + 4 * (icount - 1) if icount else 0


def xattr_icount(ibody_bytes: int) -> int:
    """i_xattr_icount of an xattr area of that many bytes (0, or 12 and a multiple of 4 more)."""
    return (ibody_bytes - 12) // 4 + 1 if ibody_bytes else 0


def pack_device(major: int, minor: int) -> int:
    """Device number as stored in i_u: minor bits 0-7, major, minor bits 8-19.

    Raises:
        ValueError: More than 12 bits of major or 20 bits of minor.
    """
    if major >= 1 << 12 or minor >= 1 << 20:
        raise ValueError(f"device number {major}:{minor} is too large for EROFS")
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def unpack_device(value: int) -> tuple[int, int]:
    """Major and minor of a stored device number."""
    return value >> 8 & 0xFFF, value & 0xFF | value >> 12 & 0xFFF00
