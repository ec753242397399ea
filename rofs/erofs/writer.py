# SPDX-License-Identifier: Apache-2.0
"""Writes a source tree as an uncompressed EROFS filesystem, the same bytes for the same tree.

    block 0    superblock at byte 1024, then inodes from byte 1152, each with xattrs and inline tail or chunk table
    ...        whole blocks of directories
    ...        whole blocks of file contents, equal ones once, without the holes of chunk-based ones

Where an inode lies depends on sizes, and on whether it needs a chunk table: contents long enough for that
are looked through first. Then all places are known, and every content is read in pieces, straight to its
place. Holes that the source knows of cost nothing but their entries in a chunk table. Memory is proportional
to the number of entries, and a byte for each chunk of one file. Does not compress, and does not know where its
output goes nor why a hole pays (`holes`).
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rofs.erofs import directory_format, xattr_format
from rofs.erofs import format as fmt
from rofs.erofs.contents import Contents, WriteAt
from rofs.erofs.format import DiskInode, Superblock
from rofs.erofs.holes import MIN_SAVED_BYTES, HoleScan, data_runs, whole_blocks
from rofs.erofs.slots import Slots
from rofs.errors import InputError, printable
from rofs.tree import Inode, Source

BLOCK_BITS = 12
BLOCK_BYTES = 1 << BLOCK_BITS
_INODE_BYTES = fmt.EXTENDED_INODE_BYTES  # the compact form has no time of its own
_TABLE_ENTRIES_AT_ONCE = 1 << 14
_NULL_ENTRY = fmt.BLOCK_MAP_ENTRY.pack(fmt.NULL_ADDRESS)
# What as many blocks hold as EROFS can address with 32 bits; a hole could be longer, but no use of it is known.
_MAX_FILE_BYTES = ((1 << 32) - 1) * BLOCK_BYTES
_MAX_BARE_TABLE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class WrittenFilesystem:
    """What was written.

    Attributes:
        blocks: Its length in 4096-byte blocks.
        inodes: How many inodes it has.
    """

    blocks: int
    inodes: int


@dataclass(slots=True)
class _Placed:
    """An inode of the tree with its place in the image."""

    inode: Inode
    xattrs: bytes
    size: int
    nid: int = 0
    inline: bool = False
    block: int = 0  # address of its whole blocks
    chunk_blkbits: int | None = None  # log2 of the blocks of a chunk; None when it is not chunk-based

    @property
    def tail_bytes(self) -> int:
        """What may stand behind the inode."""
        return self.size % BLOCK_BYTES if self.chunk_blkbits is None else 0

    @property
    def own_blocks(self) -> int:
        """Blocks that hold content outside of the inode, unless it is chunk-based."""
        return self.size // BLOCK_BYTES + (1 if self.tail_bytes and not self.inline else 0)

    @property
    def chunk_bytes(self) -> int:
        return BLOCK_BYTES << self.chunk_blkbits if self.chunk_blkbits is not None else 0

    @property
    def chunks(self) -> int:
        return -(-self.size // self.chunk_bytes) if self.chunk_blkbits is not None else 0

    @property
    def header_bytes(self) -> int:
        """Length of the inode with xattrs and chunk table."""
        return _INODE_BYTES + len(self.xattrs) + self.table_bytes

    @property
    def table_bytes(self) -> int:
        return self.chunks * fmt.BLOCK_MAP_ENTRY.size


def write_filesystem(
    source: Source,
    write_at: WriteAt,
    *,
    build_time: int,
    root_xattrs: tuple[tuple[bytes, bytes], ...] | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> WrittenFilesystem:
    """Write the filesystem of a source tree.

    Args:
        source: The tree; its contents are read in canonical order, those longer than 64 KiB twice.
        write_at: Takes an offset in bytes from the start of the filesystem and bytes to put there.
            What is never written must read as zeros. A content found to be equal to an earlier one
            leaves bytes that a later call overwrites or that lie beyond the end.
        build_time: Seconds since the epoch, for the superblock.
        root_xattrs: In place of the root directory's own.
        progress: Called with the number of content bytes just written.

    Returns:
        The length; the caller cuts its output there.

    Raises:
        InputError: The source changed, cannot be read or cannot be represented; names the path.
    """
    return _Writer(source, write_at, progress).run(build_time, root_xattrs)


class _Writer:
    def __init__(self, source: Source, write_at: WriteAt, progress: Callable[[int], None]) -> None:
        self._source = source
        self._write_at = write_at
        self._progress = progress
        self._placed: dict[int, _Placed] = {}  # by id() of the source inode, in canonical order
        self._digest = hashlib.sha256()  # of everything, for the UUID
        self._first_block = bytearray(BLOCK_BYTES)  # the superblock's checksum covers it

    def run(self, build_time: int, root_xattrs: tuple[tuple[bytes, bytes], ...] | None) -> WrittenFilesystem:
        for inode in self._source.tree.walk():
            xattrs = root_xattrs if inode is self._source.tree.root and root_xattrs is not None else inode.xattrs
            self._placed[id(inode)] = _placed(inode, xattrs)
        slots = Slots(fmt.FIRST_FREE_BYTE, BLOCK_BYTES)
        for placed in self._placed.values():
            self._find_holes(placed)
            placed.nid, placed.inline = slots.allocate(placed.header_bytes, placed.tail_bytes)
        contents = Contents(self._write_at, self._progress, -(-slots.end // BLOCK_BYTES), BLOCK_BYTES)
        for placed in self._placed.values():
            if placed.inode.is_directory:
                placed.block = contents.take_blocks(placed.own_blocks)
        for number, placed in enumerate(self._placed.values()):
            self._write_inode(placed, number, contents)
        self._write_superblock(build_time, contents.next_block)
        return WrittenFilesystem(contents.next_block, len(self._placed))

    def _find_holes(self, placed: _Placed) -> None:
        if placed.inode.is_regular and placed.size > MIN_SAVED_BYTES:
            scan = HoleScan(placed.size, BLOCK_BYTES)
            pieces = whole_blocks(self._source.contents(placed.inode), placed.size, BLOCK_BYTES)
            for offset, data in data_runs(pieces, BLOCK_BYTES):
                scan.add(offset, len(data))
            placed.chunk_blkbits = scan.chunk_blkbits()
            _check_table(placed, scan.data_bytes)

    def _write_inode(self, placed: _Placed, number: int, contents: Contents) -> None:
        tail = b""
        stored = bytearray()
        if placed.inode.is_directory:
            tail = self._write_directory(placed)
        elif placed.chunk_blkbits is not None:
            stored = self._write_chunks(placed, contents)
        elif placed.inode.is_regular:
            tail = self._write_content(placed, contents)
        else:
            tail = self._write_target(placed, contents)
        place = placed.nid * fmt.SLOT_BYTES
        for piece in (
            self._disk_inode(placed).pack_extended(number) + placed.xattrs + tail,
            *_chunk_table(placed, stored),
        ):
            self._digest.update(piece)
            self._write_at(place, piece)
            self._remember_first_block(place, piece)
            place += len(piece)

    def _disk_inode(self, placed: _Placed) -> DiskInode:
        inode = placed.inode
        union, layout = placed.block, fmt.LAYOUT_FLAT_INLINE if placed.inline else fmt.LAYOUT_FLAT_PLAIN
        if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            union = fmt.pack_device(*_device(inode))
        elif placed.chunk_blkbits is not None:
            union, layout = placed.chunk_blkbits, fmt.LAYOUT_CHUNK_BASED
        return DiskInode(
            nid=placed.nid,
            header_bytes=_INODE_BYTES,
            xattr_bytes=len(placed.xattrs),
            layout=layout,
            mode=inode.mode,
            nlink=inode.nlink,
            size=placed.size,
            union=union,
            uid=inode.uid,
            gid=inode.gid,
            mtime_ns=inode.mtime_ns,
        )

    def _write_directory(self, placed: _Placed) -> bytes:
        data = b"".join(self._directory_blocks(placed.inode))
        return self._write_blocks_at(placed, data)

    def _directory_blocks(self, directory: Inode) -> list[bytes]:
        blocks = []
        groups = _dirent_groups(directory)
        for group in groups:
            dirents, names = [], []
            at = len(group) * directory_format.DIRENT.size
            for name, inode in group:
                kind = fmt.FILE_TYPE_OF_MODE[stat.S_IFMT(inode.mode)]
                dirents.append(directory_format.DIRENT.pack(self._placed[id(inode)].nid, at, kind))
                names.append(name)
                at += len(name)
            blocks.append(b"".join(dirents + names))
        return [block.ljust(BLOCK_BYTES, b"\0") for block in blocks[:-1]] + blocks[-1:]

    def _write_target(self, placed: _Placed, contents: Contents) -> bytes:
        if placed.own_blocks:
            placed.block = contents.take_blocks(placed.own_blocks)
            # A content that turned out to be a copy may have been here before.
            self._write_at(placed.block * BLOCK_BYTES, bytes(placed.own_blocks * BLOCK_BYTES))
        return self._write_blocks_at(placed, placed.inode.target)

    def _write_blocks_at(self, placed: _Placed, data: bytes) -> bytes:
        """Write the whole blocks of small content and give back the inline tail."""
        inline_from = len(data) - placed.tail_bytes if placed.inline else len(data)
        if inline_from:
            self._digest.update(data[:inline_from])
            self._write_at(placed.block * BLOCK_BYTES, data[:inline_from])
        return data[inline_from:]

    def _write_content(self, placed: _Placed, contents: Contents) -> bytes:
        whole = placed.size - placed.tail_bytes if placed.inline else placed.size
        written, tail = contents.write_flat(self._source.contents(placed.inode), placed.size, whole)
        if placed.own_blocks:
            placed.block = written.address
            self._digest.update(written.key)
        return tail

    def _write_chunks(self, placed: _Placed, contents: Contents) -> bytearray:
        pieces = self._source.contents(placed.inode)
        written, stored = contents.write_chunks(pieces, placed.size, placed.chunk_bytes)
        placed.block = written.address
        self._digest.update(written.key)
        return stored

    def _write_superblock(self, build_time: int, blocks: int) -> None:
        digest = bytearray(self._digest.digest()[:16])
        digest[6] = digest[6] & 0x0F | 0x40  # RFC 9562 version and variant bits of an opaque UUID
        digest[8] = digest[8] & 0x3F | 0x80
        chunked = any(placed.chunk_blkbits is not None for placed in self._placed.values())
        superblock = Superblock(
            block_bits=BLOCK_BITS,
            root_nid=self._placed[id(self._source.tree.root)].nid,
            inos=len(self._placed),
            build_time=build_time,
            build_time_nsec=0,
            blocks=blocks,
            meta_blkaddr=0,
            uuid=bytes(digest),
            feature_incompat=fmt.FEATURE_INCOMPAT_CHUNKED_FILE if chunked else 0,
        )
        self._remember_first_block(fmt.SUPER_OFFSET, superblock.pack())
        checksum = fmt.superblock_checksum(bytes(self._first_block))
        self._write_at(fmt.SUPER_OFFSET, superblock.pack(checksum=checksum))

    def _remember_first_block(self, offset: int, data: bytes) -> None:
        if offset < BLOCK_BYTES:
            part = data[: BLOCK_BYTES - offset]
            self._first_block[offset : offset + len(part)] = part


def _check_table(placed: _Placed, data_bytes: int) -> None:
    """A few bytes here and there in a huge hole would make an image of nothing but chunk table and padding."""
    table_bytes = placed.table_bytes
    if table_bytes > max(_MAX_BARE_TABLE_BYTES, data_bytes):
        raise InputError(
            f"{printable(placed.inode.path())} cannot be kept in an image: its {data_bytes} bytes of data are "
            f"scattered over {placed.size} bytes, and the chunk table of its holes would take {table_bytes}, expected "
            f"at most {_MAX_BARE_TABLE_BYTES} or as much as its data; keep it packed, or leave it out"
        )


def _chunk_table(placed: _Placed, stored: bytearray) -> Iterator[bytes]:
    """The block addresses of the chunks, which follow each other from the first on; in pieces."""
    address, chunk_blocks = placed.block, placed.chunk_bytes // BLOCK_BYTES
    for start in range(0, len(stored), _TABLE_ENTRIES_AT_ONCE):
        if stored.find(1, start, start + _TABLE_ENTRIES_AT_ONCE) < 0:
            yield _NULL_ENTRY * min(_TABLE_ENTRIES_AT_ONCE, len(stored) - start)
            continue
        addresses = []
        for is_stored in stored[start : start + _TABLE_ENTRIES_AT_ONCE]:
            addresses.append(address if is_stored else fmt.NULL_ADDRESS)
            address += chunk_blocks if is_stored else 0
        yield struct.pack(f"<{len(addresses)}{fmt.BLOCK_MAP_ENTRY.format[-1]}", *addresses)


def _placed(inode: Inode, xattrs: tuple[tuple[bytes, bytes], ...]) -> _Placed:
    if inode.is_regular and inode.size > _MAX_FILE_BYTES:
        raise InputError(
            f"{printable(inode.path())} cannot be kept in an image: it has {inode.size} bytes, holes included, at most "
            f"{_MAX_FILE_BYTES} (2^32-1 blocks) fit into one"
        )
    try:
        body = xattr_format.pack_xattrs(xattrs)
        if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            fmt.pack_device(*_device(inode))
    except ValueError as error:
        raise InputError(f"{printable(inode.path())} cannot be kept in an image: {error}") from error
    size = _directory_bytes(inode) if inode.is_directory else inode.size
    return _Placed(inode, body, size)


def _device(inode: Inode) -> tuple[int, int]:
    return os.major(inode.rdev), os.minor(inode.rdev)


def _dirent_groups(directory: Inode) -> list[list[tuple[bytes, Inode]]]:
    """The entries of a directory, `.` and `..` included, in bytewise order, one list a block."""
    parent = directory.parent if directory.parent is not None else directory
    entries = sorted([*directory.children.items(), (b".", directory), (b"..", parent)], key=lambda e: e[0])
    groups: list[list[tuple[bytes, Inode]]] = [[]]
    used = 0
    for entry in entries:
        need = directory_format.DIRENT.size + len(entry[0])
        if used + need > BLOCK_BYTES:
            groups.append([])
            used = 0
        groups[-1].append(entry)
        used += need
    return groups


def _directory_bytes(directory: Inode) -> int:
    groups = _dirent_groups(directory)
    last = sum(directory_format.DIRENT.size + len(name) for name, _ in groups[-1])
    return (len(groups) - 1) * BLOCK_BYTES + last
