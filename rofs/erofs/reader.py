# SPDX-License-Identifier: Apache-2.0
"""Reads an EROFS filesystem from a block device.

Reads uncompressed flat-plain and flat-inline inodes; names what else it finds. Every number from the
device is hostile: a malformed object raises `FormatError` when it is touched and harms no other. Does
not know whether its device is verified; content is never cached here, metadata within byte limits.
"""

from __future__ import annotations

import bisect
import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from rofs.blockdev import BlockDevice
from rofs.erofs import directory_format, xattr_format
from rofs.erofs import format as fmt
from rofs.errors import FormatError
from rofs.lru import ByteLru
from rofs.vfs import PATH_MAX_BYTES, DirEntry, Extent, Stat, StatFs

_METADATA_CACHE_BYTES = 8 << 20
_INODE_CACHE_BYTES = 4 << 20
_DIRECTORY_CACHE_BYTES = 12 << 20
# Measured with tracemalloc, key and place in the cache included.
_INODE_COST_BYTES = 500
_DIRECTORY_BLOCK_COST_BYTES = 500
_DIRECTORY_ENTRY_COST_BYTES = 72  # and its bytes on disk
# Directories are read block by block: no real one comes near this size.
_MAX_DIRECTORY_BYTES = 1 << 34
_TYPES_WITH_CONTENT = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK})


class _Piece(NamedTuple):
    """A part of a content that lies in one place; in the metadata area when it is inline."""

    offset: int
    length: int
    inline: bool


class ErofsReader:
    """An EROFS filesystem; implements `vfs.ReadOnlyFilesystem`.

    Args:
        device: Starts with the filesystem's first block.

    Raises:
        FormatError: No superblock, a damaged one, or a feature that is not supported.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        start = device.read_at(0, min(4096, device.size_bytes))
        self._super = fmt.parse_superblock(start, device.size_bytes)
        self._block = self._super.block_size
        self._meta_start = self._super.meta_blkaddr * self._block
        self._end = self._super.blocks * self._block
        self._metadata: ByteLru[int, bytes] = ByteLru(_METADATA_CACHE_BYTES)
        self._inodes: ByteLru[int, fmt.DiskInode] = ByteLru(_INODE_CACHE_BYTES)
        self._directories: ByteLru[tuple[int, int], directory_format.DirectoryBlock] = ByteLru(_DIRECTORY_CACHE_BYTES)

    @property
    def root_nid(self) -> int:
        """The inode of the root directory."""
        return self._super.root_nid

    def statfs(self) -> StatFs:
        """Totals from the superblock."""
        return StatFs(self._block, self._super.blocks, self._super.inos)

    def stat(self, nid: int) -> Stat:
        """Attributes of an inode; see `ReadOnlyFilesystem.stat`."""
        inode = self._inode(nid)
        device = stat.S_ISCHR(inode.mode) or stat.S_ISBLK(inode.mode)
        return Stat(
            nid=nid,
            mode=inode.mode,
            nlink=inode.nlink,
            uid=inode.uid,
            gid=inode.gid,
            size=inode.size,
            rdev=os.makedev(*fmt.unpack_device(inode.union)) if device else 0,
            mtime_ns=inode.mtime_ns,
            blocks=-(-inode.size // self._block) * (self._block // 512),
        )

    def lookup(self, directory_nid: int, name: bytes) -> int | None:
        """Binary search for a name: first over blocks, then over entries."""
        directory = self._directory(directory_nid)
        low, high = 0, self._block_count(directory) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._directory_block(directory, middle).names[0] <= name:
                low = middle
            else:
                high = middle - 1
        if high < 0:
            return None
        block = self._directory_block(directory, low)
        at = bisect.bisect_left(block.names, name)
        return block.nids[at] if at < len(block.names) and block.names[at] == name else None

    def readdir(self, directory_nid: int, offset: int = 0) -> Iterator[DirEntry]:
        """Entries from `offset`, which counts bytes of the directory: a dirent's place, as in the kernel."""
        directory = self._directory(directory_nid)
        number, within = divmod(offset, self._block)
        for index in range(number, self._block_count(directory)):
            block = self._directory_block(directory, index)
            first = -(-within // directory_format.DIRENT.size) if index == number else 0
            for entry in range(first, len(block.names)):
                last = entry + 1 == len(block.names)
                following = (
                    (index + 1) * self._block
                    if last
                    else index * self._block + (entry + 1) * directory_format.DIRENT.size
                )
                yield DirEntry(block.names[entry], block.nids[entry], block.file_types[entry], following)

    def readlink(self, nid: int) -> bytes:
        """Target of a symbolic link, at most PATH_MAX bytes and without NUL."""
        inode = self._inode(nid)
        if not stat.S_ISLNK(inode.mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if not 0 < inode.size < PATH_MAX_BYTES:
            raise FormatError(f"EROFS: symbolic link {nid} has a target of {inode.size} bytes")
        target = self._content(inode, 0, inode.size)
        if b"\0" in target:
            raise FormatError(f"EROFS: symbolic link {nid} has a NUL in its target")
        return target

    def read(self, nid: int, offset_bytes: int, length_bytes: int) -> bytes:
        """Part of a regular file, cut at its end; see `ReadOnlyFilesystem.read`."""
        inode = self._inode(nid)
        if not stat.S_ISREG(inode.mode):
            raise FormatError(f"EROFS: inode {nid} is not a regular file: mode {inode.mode:#o}")
        length = min(length_bytes, inode.size - offset_bytes)
        return self._content(inode, offset_bytes, length) if length > 0 else b""

    def listxattr(self, nid: int) -> list[bytes]:
        """Names of the extended attributes in stored order."""
        return list(self._xattrs(nid))

    def getxattr(self, nid: int, name: bytes) -> bytes | None:
        """Value of an extended attribute, None when there is none of that name."""
        return self._xattrs(nid).get(name)

    def inode_extent(self, nid: int) -> Extent:
        """As much as the inode may take without its xattrs; its form is not known without reading it."""
        place = self._place(nid)
        return Extent(place, min(fmt.EXTENDED_INODE_BYTES, self._end - place), None)

    def extents(self, nid: int) -> list[Extent]:
        """The inode with its xattrs, its whole blocks, and its inline tail."""
        inode = self._inode(nid)
        found = [Extent(self._place(nid), inode.header_bytes + inode.xattr_bytes, None)]
        at = 0
        for piece in self._map(inode, 0, inode.size):
            found.append(Extent(piece.offset, piece.length, at))
            at += piece.length
        return found

    def _place(self, nid: int) -> int:
        place = self._meta_start + nid * fmt.SLOT_BYTES
        if not fmt.FIRST_FREE_BYTE <= place <= self._end - fmt.SLOT_BYTES:
            raise FormatError(f"EROFS: inode {nid} lies outside of the filesystem of {self._end} bytes")
        return place

    def _inode(self, nid: int) -> fmt.DiskInode:
        inode = self._inodes.get(nid)
        if inode is None:
            place = self._place(nid)
            data = self._metadata_at(place, min(fmt.EXTENDED_INODE_BYTES, self._end - place))
            inode = fmt.parse_inode(data, nid, self._super)
            self._inodes.put(nid, inode, _INODE_COST_BYTES)
        return inode

    def _directory(self, nid: int) -> fmt.DiskInode:
        inode = self._inode(nid)
        if not stat.S_ISDIR(inode.mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if inode.size > _MAX_DIRECTORY_BYTES:
            raise FormatError(f"EROFS: directory {nid} has a size of {inode.size} bytes")
        return inode

    def _block_count(self, inode: fmt.DiskInode) -> int:
        return -(-inode.size // self._block)

    def _directory_block(self, directory: fmt.DiskInode, index: int) -> directory_format.DirectoryBlock:
        key = (directory.nid, index)
        parsed = self._directories.get(key)
        if parsed is None:
            start = index * self._block
            data = self._content(directory, start, min(self._block, directory.size - start))
            parsed = directory_format.parse_directory_block(data, directory.nid)
            cost = _DIRECTORY_BLOCK_COST_BYTES + _DIRECTORY_ENTRY_COST_BYTES * len(parsed.names) + len(data)
            self._directories.put(key, parsed, cost)
        return parsed

    def _xattrs(self, nid: int) -> dict[bytes, bytes]:
        inode = self._inode(nid)
        body = self._metadata_at(self._place(nid) + inode.header_bytes, inode.xattr_bytes)
        return xattr_format.unpack_xattrs(body, nid)

    def _content(self, inode: fmt.DiskInode, offset: int, length: int) -> bytes:
        pieces = [self._read_piece(piece) for piece in self._map(inode, offset, length)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_piece(self, piece: _Piece) -> bytes:
        if piece.inline:
            return self._metadata_at(piece.offset, piece.length)
        if piece.offset + piece.length > self._end:
            raise FormatError(
                f"EROFS: content at byte {piece.offset} lies outside of the filesystem of {self._end} bytes"
            )
        return self._device.read_at(piece.offset, piece.length)

    def _map(self, inode: fmt.DiskInode, offset: int, length: int) -> Iterator[_Piece]:
        """Where a range of the content lies, in order and without gaps: what a data layout means, nowhere else.

        The range is inside of the content; the places are not checked against the end of the filesystem.
        """
        if stat.S_IFMT(inode.mode) not in _TYPES_WITH_CONTENT:
            return
        inline_from = inode.size
        if inode.layout == fmt.LAYOUT_FLAT_INLINE:
            inline_from -= inode.size % self._block
        end = offset + length
        if offset < min(end, inline_from):
            yield _Piece(inode.union * self._block + offset, min(end, inline_from) - offset, inline=False)
        if end > inline_from:
            start = max(offset, inline_from)
            yield _Piece(self._tail_place(inode) + start - inline_from, end - start, inline=True)

    def _tail_place(self, inode: fmt.DiskInode) -> int:
        place = self._place(inode.nid) + inode.header_bytes + inode.xattr_bytes
        if place % self._block + inode.size % self._block > self._block:
            raise FormatError(f"EROFS: inode {inode.nid} has an inline tail that crosses a block boundary")
        return place

    def _metadata_at(self, offset: int, length: int) -> bytes:
        """Bytes of the metadata area, through the cache of whole blocks."""
        if offset + length > self._end:
            raise FormatError(f"EROFS: metadata at byte {offset} lies outside of the filesystem of {self._end} bytes")
        first = offset // self._block
        last = (offset + max(length, 1) - 1) // self._block
        if first == last:
            data = self._metadata_block(first)
        else:
            data = b"".join(map(self._metadata_block, range(first, last + 1)))
        start = offset - first * self._block
        return data[start : start + length]

    def _metadata_block(self, number: int) -> bytes:
        block = self._metadata.get(number)
        if block is None:
            block = self._device.read_at(number * self._block, self._block)
            self._metadata.put(number, block, len(block))
        return block
