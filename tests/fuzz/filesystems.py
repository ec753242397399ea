# SPDX-License-Identifier: Apache-2.0
"""EROFS for fuzzing: valid filesystems with all of their integers, and their hostile children.

Does not read what it made (`walk` does), and knows nothing of verity or partitions (`images`).
"""

from __future__ import annotations

import functools
import os
import stat
import struct
from collections.abc import Iterator

from rofs.erofs.format import superblock_checksum, superblock_span_bytes
from rofs.erofs.reader import ErofsReader
from rofs.image.identity import XATTR, Identity
from rofs.tree import Inode
from tests.erofs.builder import write_image
from tests.trees import ACL, CAPABILITY, MemorySource, content, directory, file, node, symlink

from .devices import FuzzDevice
from .edits import Field, Program, Seed, edit_binary
from .foreign import foreign_filesystem

BLOCK = 4096
SLOT = 32
_SUPER = 1024
_LAYOUT_OF_CHUNKS = 4
_OTHERS_PER_SUPER_FIELD = 40

# Offset and size of each field, behind the start of its structure.
_SUPER_FIELDS = (
    (8, 4),  # feature_compat
    (12, 1),  # blkszbits
    (13, 1),  # sb_extslots
    (14, 2),  # root_nid
    (16, 8),  # inos
    (24, 8),  # build_time
    (32, 4),  # build_time_nsec
    (36, 4),  # blocks
    (40, 4),  # meta_blkaddr
    (44, 4),  # xattr_blkaddr
    (80, 4),  # feature_incompat
    (84, 2),  # available compression algorithms
    (86, 2),  # extra devices
    (88, 2),  # devt_slotoff
    (90, 1),  # dirblkbits
    (91, 1),  # xattr_prefix_count
    (92, 4),  # xattr_prefix_start
    (96, 8),  # packed_nid
)
_COMPACT_FIELDS = ((0, 2), (2, 2), (4, 2), (6, 2), (8, 4), (16, 4), (20, 4), (24, 2), (26, 2))
_EXTENDED_FIELDS = ((0, 2), (2, 2), (4, 2), (8, 8), (16, 4), (20, 4), (24, 4), (28, 4), (32, 8), (40, 4), (44, 4))
_DIRENT_FIELDS = ((0, 8), (8, 2), (10, 1))


def tree_with_all_features() -> Inode:
    """Something of every kind that the writer knows, in about twenty blocks."""
    linked = file(content(5000))
    identity = Identity("fuzz", "1", 3, 1_700_000_000, acl=True, xattrs=True)
    many = {b"%03d" % n + b"x" * (4 * n): file(b"%d" % n if n % 2 else b"") for n in range(50)}
    return directory(
        {
            b"good": file(b"still here\n" * 600),
            b"empty": file(),
            b"inline": file(content(100), 0o4755),
            b"inline-long": file(content(BLOCK + 3000)),
            b"whole": file(content(2 * BLOCK)),
            b"link": symlink(b"dir/linked"),
            b"long-link": symlink(b"t" * 4095),
            b"null": node(stat.S_IFCHR, os.makedev(1, 3)),
            b"disk": node(stat.S_IFBLK, os.makedev(259, 256)),
            b"fifo": node(stat.S_IFIFO),
            b"socket": node(stat.S_IFSOCK),
            b"xattrs": file(
                content(50), xattrs=((b"security.capability", CAPABILITY), (b"user.a", b""), (b"user.b", b"v" * 300))
            ),
            b"acl": directory({}, xattrs=((b"system.posix_acl_access", ACL), (b"system.posix_acl_default", ACL))),
            b"dir": directory({b"linked": linked, b"again": linked, b"sub": directory({b"deep": directory()})}),
            b"many": directory(many),
            b"\xff\n": file(b"odd name"),
        },
        xattrs=((XATTR, identity.pack()),),
    )


@functools.cache
def seeds() -> tuple[Seed, ...]:
    """Valid filesystems: a tiny one, one with all features, one as other tools write them."""
    says_who = directory({b"lib": directory({b"os-release": file(b"IMAGE_ID=tiny\nIMAGE_VERSION='1'\n")})})
    tiny = directory({b"etc": symlink(b"usr/../usr/lib"), b"good": file(b"good\n"), b"usr": says_who})
    written = [write_image(MemorySource(root)) for root in (tiny, tree_with_all_features())]
    return tuple(_seed(data) for data in (*written, foreign_filesystem()))


def hostile_filesystem(program: Program, which: tuple[Seed, ...] | None = None) -> bytes:
    """A filesystem after all edits, with its superblock's checksum right again unless the flags say otherwise."""
    which = which or seeds()
    seed = which[program.seed % len(which)]
    data = bytearray(seed.data)
    for edit in program.edits:
        edit_binary(data, edit, seed)
    if program.flags & 0xE0 != 0xE0:
        struct.pack_into("<I", data, _SUPER, 0xE0F5E1E2)
        struct.pack_into("<I", data, _SUPER + 4, superblock_checksum(bytes(data[: superblock_span_bytes(bytes(data))])))
    return bytes(data)


def _seed(data: bytes) -> Seed:
    reader = ErofsReader(FuzzDevice(data))
    nids = sorted(_nids(reader))
    others = [field for nid in nids for field in _inode_fields(data, reader, nid)]
    blocks = len(data) // BLOCK
    if data[_SUPER + 91]:  # long xattr name prefixes
        start = 4 * int.from_bytes(data[_SUPER + 92 : _SUPER + 96], "little")
        others += [Field(start, 2), Field(start + 2, 1)]
    # What is wrong in the superblock hides all else: its integers come once, among many others.
    repeated = others * -(-_OTHERS_PER_SUPER_FIELD * len(_SUPER_FIELDS) // len(others))
    fields = [*(Field(_SUPER + at, size) for at, size in _SUPER_FIELDS), *repeated]
    values = (*nids, *range(blocks + 1), len(data), len(data) // 2, *(nid * SLOT for nid in nids[:3]))
    return Seed(data, tuple(fields), values)


def _nids(reader: ErofsReader) -> set[int]:
    found = {reader.root_nid}
    pending = [reader.root_nid]
    while pending:
        for entry in reader.readdir(pending.pop()):
            if entry.nid not in found:
                found.add(entry.nid)
                if stat.S_ISDIR(reader.stat(entry.nid).mode):
                    pending.append(entry.nid)
    return found


def _inode_fields(data: bytes, reader: ErofsReader, nid: int) -> Iterator[Field]:
    place = nid * SLOT
    form, icount = struct.unpack_from("<HH", data, place)
    header = 64 if form & 1 else 32
    for at, size in _EXTENDED_FIELDS if form & 1 else _COMPACT_FIELDS:
        yield Field(place + at, size)
    body = 12 + 4 * (icount - 1) if icount else 0
    yield from _xattr_fields(data, place + header, body)
    layout = form >> 1 & 7
    if layout == _LAYOUT_OF_CHUNKS:
        start = -(-(place + header + body) // 8) * 8
        yield from (Field(start + 4 * index, 4) for index in range(6))
    if stat.S_ISDIR(reader.stat(nid).mode):
        for extent in reader.extents(nid):
            if extent.file_offset_bytes is not None:
                yield from _directory_fields(data, extent.offset_bytes, extent.length_bytes)


def _xattr_fields(data: bytes, start: int, length: int) -> Iterator[Field]:
    if not length:
        return
    shared = data[start + 4]
    yield Field(start + 4, 1)
    yield from (Field(start + 12 + 4 * number, 4) for number in range(shared))
    at, end = start + 12 + 4 * shared, start + length
    while at + 4 <= end:
        name_bytes, _index, value_bytes = struct.unpack_from("<BBH", data, at)
        yield from (Field(at, 1), Field(at + 1, 1), Field(at + 2, 2), Field(at + 4, 1))
        at += -(-(4 + name_bytes + value_bytes) // 4) * 4


def _directory_fields(data: bytes, start: int, length: int) -> Iterator[Field]:
    """Of each block: its dirents, and the first byte of each name."""
    for block in range(start, start + length, BLOCK):
        count = struct.unpack_from("<H", data, block + 8)[0] // 12
        for number in range(min(count, 12)):
            at = block + 12 * number
            yield from (Field(at + offset, size) for offset, size in _DIRENT_FIELDS)
            yield Field(block + struct.unpack_from("<H", data, at + 8)[0], 1)
