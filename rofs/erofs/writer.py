# SPDX-License-Identifier: Apache-2.0
"""Writes a source tree as an uncompressed EROFS filesystem, the same bytes for the same tree.

    block 0    superblock at byte 1024, then inodes from byte 1152, each with xattrs and inline tail
    ...        whole blocks of directories
    ...        whole blocks of file contents, equal ones once

Sizes alone decide where an inode lies, so all places are known before the first content is read, and
every content is read once, in pieces, straight to its place. Memory is proportional to the number of
entries. Does not compress, does not write holes, and does not know where its output goes.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from rofs.erofs import directory_format, xattr_format
from rofs.erofs import format as fmt
from rofs.erofs.format import DiskInode, Superblock
from rofs.errors import InputError, printable
from rofs.tree import Inode, Source

BLOCK_BITS = 12
BLOCK_BYTES = 1 << BLOCK_BITS
_INODE_BYTES = fmt.EXTENDED_INODE_BYTES  # the compact form has no time of its own
_OPEN_GAPS = 16  # ends of metadata blocks that wait for an inode small enough; more would not fill better
_MAX_BLOCKS = (1 << 32) - 1  # block addresses have 32 bits

WriteAt = Callable[[int, "bytes | memoryview"], None]


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

    @property
    def tail_bytes(self) -> int:
        return self.size % BLOCK_BYTES

    @property
    def own_blocks(self) -> int:
        """Blocks that hold content outside of the inode."""
        return self.size // BLOCK_BYTES + (1 if self.tail_bytes and not self.inline else 0)


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
        source: The tree; its contents are read in canonical order.
        write_at: Takes an offset in bytes from the start of the filesystem and bytes to put there.
            What is never written must read as zeros. A content found to be equal to an earlier one
            leaves bytes that a later call overwrites or that lie beyond the end.
        build_time: Seconds since the epoch, for the superblock.
        root_xattrs: In place of the root directory's own.
        progress: Called with the number of content bytes just read.

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
        self._contents: dict[bytes, int] = {}  # digest of whole blocks to their address
        self._digest = hashlib.sha256()  # of everything, for the UUID
        self._next_block = 0
        self._first_block = bytearray(BLOCK_BYTES)  # the superblock's checksum covers it

    def run(self, build_time: int, root_xattrs: tuple[tuple[bytes, bytes], ...] | None) -> WrittenFilesystem:
        for inode in self._source.tree.walk():
            xattrs = root_xattrs if inode is self._source.tree.root and root_xattrs is not None else inode.xattrs
            self._placed[id(inode)] = _placed(inode, xattrs)
        slots = _Slots(fmt.FIRST_FREE_BYTE)
        for placed in self._placed.values():
            placed.nid, placed.inline = slots.allocate(_INODE_BYTES + len(placed.xattrs), placed.tail_bytes)
        self._next_block = -(-slots.end // BLOCK_BYTES)
        for placed in self._placed.values():
            if placed.inode.is_directory:
                placed.block = self._take_blocks(placed.own_blocks)
        for number, placed in enumerate(self._placed.values()):
            self._write_inode(placed, number)
        self._write_superblock(build_time)
        return WrittenFilesystem(self._next_block, len(self._placed))

    def _take_blocks(self, count: int) -> int:
        address = self._next_block
        self._next_block += count
        if self._next_block > _MAX_BLOCKS:
            raise InputError(
                f"the tree needs more than {_MAX_BLOCKS} blocks of {BLOCK_BYTES} bytes, the limit of EROFS"
            )
        return address

    def _write_inode(self, placed: _Placed, number: int) -> None:
        if placed.inode.is_directory:
            tail = self._write_directory(placed)
        elif placed.inode.is_regular:
            tail = self._write_content(placed)
        else:
            tail = self._write_blocks_of(placed, placed.inode.target)
        record = self._disk_inode(placed).pack_extended(number) + placed.xattrs + tail
        self._digest.update(record)
        self._write_at(placed.nid * fmt.SLOT_BYTES, record)
        self._remember_first_block(placed.nid * fmt.SLOT_BYTES, record)

    def _disk_inode(self, placed: _Placed) -> DiskInode:
        inode = placed.inode
        union = placed.block
        if stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode):
            union = fmt.pack_device(*_device(inode))
        return DiskInode(
            nid=placed.nid,
            header_bytes=_INODE_BYTES,
            xattr_bytes=len(placed.xattrs),
            layout=fmt.LAYOUT_FLAT_INLINE if placed.inline else fmt.LAYOUT_FLAT_PLAIN,
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

    def _write_blocks_of(self, placed: _Placed, data: bytes) -> bytes:
        if placed.own_blocks:
            placed.block = self._take_blocks(placed.own_blocks)
            # A content that turned out to be a copy may have been here before.
            self._write_at(placed.block * BLOCK_BYTES, bytes(placed.own_blocks * BLOCK_BYTES))
        return self._write_blocks_at(placed, data)

    def _write_blocks_at(self, placed: _Placed, data: bytes) -> bytes:
        """Write the whole blocks of small content and give back the inline tail."""
        inline_from = len(data) - placed.tail_bytes if placed.inline else len(data)
        if inline_from:
            self._digest.update(data[:inline_from])
            self._write_at(placed.block * BLOCK_BYTES, data[:inline_from])
        return data[inline_from:]

    def _write_content(self, placed: _Placed) -> bytes:
        """Stream a file's whole blocks to the next free place, unless equal ones are there already."""
        whole = placed.size - placed.tail_bytes if placed.inline else placed.size
        digest = hashlib.sha256(b"%d:" % whole)
        offset = self._next_block * BLOCK_BYTES
        done, tail = 0, b""
        for chunk in self._source.chunks(placed.inode):
            part = memoryview(chunk)[: max(0, whole - done)]
            if part:
                digest.update(part)
                self._write_at(offset + done, part)
            tail += chunk[len(part) :]
            done += len(part)
            self._progress(len(chunk))
        if placed.own_blocks:
            placed.block = self._place_content(placed, digest.digest(), done)
        return tail

    def _place_content(self, placed: _Placed, key: bytes, written_bytes: int) -> int:
        self._digest.update(key)
        if key not in self._contents:
            padding = -written_bytes % BLOCK_BYTES
            if padding:  # a longer content that turned out to be a copy may have been here before
                self._write_at(self._next_block * BLOCK_BYTES + written_bytes, bytes(padding))
            self._contents[key] = self._take_blocks(placed.own_blocks)
        return self._contents[key]

    def _write_superblock(self, build_time: int) -> None:
        digest = bytearray(self._digest.digest()[:16])
        digest[6] = digest[6] & 0x0F | 0x40  # RFC 9562 version and variant bits of an opaque UUID
        digest[8] = digest[8] & 0x3F | 0x80
        superblock = Superblock(
            block_bits=BLOCK_BITS,
            root_nid=self._placed[id(self._source.tree.root)].nid,
            inos=len(self._placed),
            build_time=build_time,
            build_time_nsec=0,
            blocks=self._next_block,
            meta_blkaddr=0,
            uuid=bytes(digest),
        )
        self._remember_first_block(fmt.SUPER_OFFSET, superblock.pack())
        checksum = fmt.superblock_checksum(bytes(self._first_block))
        self._write_at(fmt.SUPER_OFFSET, superblock.pack(checksum=checksum))

    def _remember_first_block(self, offset: int, data: bytes) -> None:
        if offset < BLOCK_BYTES:
            part = data[: BLOCK_BYTES - offset]
            self._first_block[offset : offset + len(part)] = part


class _Slots:
    """Places for inodes: each one the first place it fits, so that a tail never crosses a block.

    A few unused ends of blocks are kept for later inodes. The order of the calls decides everything.
    """

    def __init__(self, start: int) -> None:
        self.end = start
        self._gaps: list[tuple[int, int]] = []

    def allocate(self, header_bytes: int, tail_bytes: int) -> tuple[int, bool]:
        """Place an inode of `header_bytes` (with xattrs) and an inline tail.

        Returns:
            The nid, and whether the tail is inline: one that cannot share a block with even the end
            of its header gets a block of its own.
        """
        place = self._in_gap(header_bytes + tail_bytes)
        if place is None:
            place = _aligned(self.end)
            start = _tail_start(place, header_bytes, tail_bytes)
            if start is None:
                tail_bytes = 0
            else:
                self._keep_gap(place, start)
                place = start
            self.end = place + header_bytes + tail_bytes
        return place // fmt.SLOT_BYTES, bool(tail_bytes)

    def _in_gap(self, length: int) -> int | None:
        for index, (start, end) in enumerate(self._gaps):
            if start + length <= end:
                self._gaps[index] = (_aligned(start + length), end)
                return start
        return None

    def _keep_gap(self, start: int, end: int) -> None:
        # Inside one block, so that any tail fits by its length alone.
        end = min(end, start - start % BLOCK_BYTES + BLOCK_BYTES)
        if end - start >= _INODE_BYTES:
            self._gaps.append((start, end))
            if len(self._gaps) > _OPEN_GAPS:
                self._gaps.remove(min(self._gaps, key=lambda gap: gap[1] - gap[0]))


def _aligned(offset: int) -> int:
    return -(-offset // fmt.SLOT_BYTES) * fmt.SLOT_BYTES


def _tail_start(place: int, header_bytes: int, tail_bytes: int) -> int | None:
    """First place from `place` on where the inline tail stays inside one block; None when there is none."""
    if (place + header_bytes) % BLOCK_BYTES + tail_bytes <= BLOCK_BYTES:
        return place
    boundary = -(-(place + header_bytes) // BLOCK_BYTES) * BLOCK_BYTES
    moved = _aligned(boundary - header_bytes)
    return moved if (moved + header_bytes) % BLOCK_BYTES + tail_bytes <= BLOCK_BYTES else None


def _placed(inode: Inode, xattrs: tuple[tuple[bytes, bytes], ...]) -> _Placed:
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
