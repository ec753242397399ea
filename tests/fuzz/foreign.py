# SPDX-License-Identifier: Apache-2.0
"""A filesystem with what other writers of EROFS use and rofs's own does not: one of each, made by hand.

Compact inodes, an inline tail that begins in the block behind its inode, files of chunks with holes (as a
map of blocks and as indexes), shared extended attributes, a long prefix of their names. It is valid: the kernel
mounts it.
"""

from __future__ import annotations

import stat
import struct

from rofs.erofs.format import superblock_checksum

BLOCK = 4096
SLOT = 32
BLOCKS = 6
FIRST_NID = 1152 // SLOT
SHARED_BLOCK = 2
DATA_BLOCK = 3  # and the two behind it
ROOT_NID = FIRST_NID
FILES = {name: b"%c" % name[0] * BLOCK for name in (b"chunks", b"map", b"plain")}
SHARED_XATTR = (b"user.shared", b"by several inodes")
LONG_PREFIX = 1, b"long."  # user.long.
_PREFIX_PLACE = SHARED_BLOCK * BLOCK + 1024
_HOLE = 0xFFFFFFFF
_MTIME = 1_700_000_000


def compact(mode: int, *, layout: int, size: int, union: int = 0, ino: int, xattrs: bytes = b"") -> bytes:
    icount = (len(xattrs) - 12) // 4 + 1 if xattrs else 0
    nlink = 2 if stat.S_ISDIR(mode) else 1
    return struct.pack("<HHHHI4xIIHH4x", layout << 1, icount, mode, nlink, size, union, ino, 1000, 100) + xattrs


def extended(mode: int, *, layout: int, size: int, union: int = 0, ino: int, xattrs: bytes = b"") -> bytes:
    icount = (len(xattrs) - 12) // 4 + 1 if xattrs else 0
    head = struct.pack("<HHH2xQII", 1 | layout << 1, icount, mode, size, union, ino)
    return head + struct.pack("<IIqII16x", 70_000, 70_000, -1, 5, 1) + xattrs


def directory_content(entries: dict[bytes, tuple[int, int]]) -> bytes:
    """One block of a directory: names to nid and file type."""
    names = sorted(entries)
    at = 12 * len(names)
    head = b""
    for name in names:
        nid, kind = entries[name]
        head += struct.pack("<QHBx", nid, at, kind)
        at += len(name)
    return head + b"".join(names)


def foreign_filesystem() -> bytes:
    """The image, 6 blocks."""
    image = bytearray(BLOCKS * BLOCK)
    shared = struct.pack("<IB7xI", 0, 1, 0)  # one shared entry, the first of the area
    own = struct.pack("<IB7x", 0, 0) + struct.pack("<BBH", 3, 1, 5) + b"ownvalue"
    chunks = struct.pack("<HHI", 0, 0, DATA_BLOCK) + struct.pack("<HHI", 0, 0, _HOLE)
    chunks += struct.pack("<HHI", 0, 0, DATA_BLOCK + 1) + struct.pack("<HHI", 0, 0, DATA_BLOCK)
    block_map = struct.pack("<3I", DATA_BLOCK + 1, _HOLE, DATA_BLOCK + 2)
    long_named = struct.pack("<IB7x", 0, 0) + struct.pack("<BBH", 1, 0x80, 3) + b"xyes"
    regular = stat.S_IFREG | 0o644
    bodies: list[tuple[bytes, int, bytes]] = [
        (b"chunks", 1, compact(regular, layout=4, size=3 * BLOCK + 100, union=0x20, ino=2) + chunks),
        (b"good", 1, compact(regular, layout=2, size=10, ino=3, xattrs=own) + b"0123456789"),
        (b"link", 7, compact(stat.S_IFLNK | 0o777, layout=2, size=4, ino=4) + b"good"),
        (b"map", 1, extended(regular, layout=4, size=2 * BLOCK + 1, ino=5, xattrs=long_named) + block_map),
        (b"null", 3, compact(stat.S_IFCHR | 0o600, layout=0, size=0, union=0x103, ino=6)),
        (b"plain", 1, extended(regular, layout=0, size=BLOCK + 904, union=DATA_BLOCK, ino=7, xattrs=shared)),
        (b"shared", 1, compact(regular, layout=0, size=0, ino=8, xattrs=shared)),
    ]
    root_entries: dict[bytes, tuple[int, int]] = {b".": (ROOT_NID, 2), b"..": (ROOT_NID, 2)}
    tail_nid = BLOCK // SLOT - 2  # the last 64 bytes of its block: its tail begins the next one
    at = 1152 + 512  # room for the root in front of them
    for name, kind, body in bodies:
        root_entries[name] = (at // SLOT, kind)
        image[at : at + len(body)] = body
        at += -(-len(body) // SLOT) * SLOT
    root_entries[b"tail"] = (tail_nid, 1)
    tail = extended(regular, layout=2, size=500, ino=9) + b"t" * 500
    image[tail_nid * SLOT : tail_nid * SLOT + len(tail)] = tail
    content = directory_content(root_entries)
    root = compact(stat.S_IFDIR | 0o755, layout=2, size=len(content), ino=1, xattrs=shared) + content
    assert len(root) <= 512
    assert at <= tail_nid * SLOT
    image[1152 : 1152 + len(root)] = root
    name, value = SHARED_XATTR
    entry = struct.pack("<BBH", len(name) - len(b"user."), 1, len(value)) + name[len(b"user.") :] + value
    image[SHARED_BLOCK * BLOCK : SHARED_BLOCK * BLOCK + len(entry)] = entry
    index, infix = LONG_PREFIX
    prefix = struct.pack("<HB", 1 + len(infix), index) + infix
    image[_PREFIX_PLACE : _PREFIX_PLACE + len(prefix)] = prefix
    for number, data in enumerate(FILES.values()):
        start = (DATA_BLOCK + number) * BLOCK
        image[start : start + BLOCK] = data
    image[1024 : 1024 + 128] = _superblock()
    struct.pack_into("<I", image, 1024 + 4, superblock_checksum(bytes(image[:BLOCK])))
    return bytes(image)


def _superblock() -> bytes:
    # magic, checksum, compat, blkszbits, extslots, root_nid, inos, build_time, nsec, blocks, meta, xattr
    head = struct.pack("<IIIBBHQqIIII", 0xE0F5E1E2, 0, 1, 12, 0, ROOT_NID, 9, _MTIME, 0, BLOCKS, 0, SHARED_BLOCK)
    # volume name, incompat, 6 bytes without meaning here, dirblkbits, xattr_prefix_count, xattr_prefix_start
    rest = struct.pack("<16sI6xBBI", b"foreign", 0x4 | 0x40, 0, 1, _PREFIX_PLACE // 4)
    return (head + bytes(range(16)) + rest).ljust(128, b"\0")
