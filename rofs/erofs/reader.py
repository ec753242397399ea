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
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

from rofs.blockdev import BlockDevice
from rofs.erofs import directory_format, xattr_format
from rofs.erofs import format as f
from rofs.errors import FormatError
from rofs.vfs import DirEntry, Extent, Stat, StatFs

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")

_METADATA_CACHE_BYTES = 8 << 20
# A parsed inode takes about 400 bytes, a parsed directory block about 24 KiB: 4 and 12 MiB.
_INODE_CACHE_ENTRIES = 10_000
_DIRECTORY_CACHE_ENTRIES = 512
# Directories are read block by block: no real one comes near this size.
_MAX_DIRECTORY_BYTES = 1 << 34


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
        self._super = f.parse_superblock(start, device.size_bytes)
        self._block = self._super.block_size
        self._meta_start = self._super.meta_blkaddr * self._block
        self._end = self._super.blocks * self._block
        self._metadata: _Lru[int, bytes] = _Lru(_METADATA_CACHE_BYTES // self._block)
        self._inodes: _Lru[int, f.DiskInode] = _Lru(_INODE_CACHE_ENTRIES)
        self._directories: _Lru[tuple[int, int], directory_format.DirectoryBlock] = _Lru(_DIRECTORY_CACHE_ENTRIES)

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
            rdev=os.makedev(*f.unpack_device(inode.union)) if device else 0,
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
        if not 0 < inode.size < f.PATH_MAX_BYTES:
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
        return Extent(place, min(f.EXTENDED_INODE_BYTES, self._end - place), None)

    def extents(self, nid: int) -> list[Extent]:
        """The inode with its xattrs, its whole blocks, and its inline tail."""
        inode = self._inode(nid)
        header = inode.header_bytes + inode.xattr_bytes
        found = [Extent(self._place(nid), header, None)]
        if self._has_content(inode):
            plain = self._plain_bytes(inode)
            if plain:
                found.append(Extent(inode.union * self._block, plain, 0))
            if plain < inode.size:
                found.append(Extent(self._tail_place(inode), inode.size - plain, plain))
        return found

    def _place(self, nid: int) -> int:
        place = self._meta_start + nid * f.SLOT_BYTES
        if not f.FIRST_FREE_BYTE <= place <= self._end - f.SLOT_BYTES:
            raise FormatError(f"EROFS: inode {nid} lies outside of the filesystem of {self._end} bytes")
        return place

    def _inode(self, nid: int) -> f.DiskInode:
        inode = self._inodes.get(nid)
        if inode is None:
            place = self._place(nid)
            data = self._metadata_at(place, min(f.EXTENDED_INODE_BYTES, self._end - place))
            inode = f.parse_inode(data, nid, self._super)
            self._inodes.put(nid, inode)
        return inode

    def _directory(self, nid: int) -> f.DiskInode:
        inode = self._inode(nid)
        if not stat.S_ISDIR(inode.mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if inode.size > _MAX_DIRECTORY_BYTES:
            raise FormatError(f"EROFS: directory {nid} has a size of {inode.size} bytes")
        return inode

    def _block_count(self, inode: f.DiskInode) -> int:
        return -(-inode.size // self._block)

    def _directory_block(self, directory: f.DiskInode, index: int) -> directory_format.DirectoryBlock:
        key = (directory.nid, index)
        parsed = self._directories.get(key)
        if parsed is None:
            start = index * self._block
            data = self._content(directory, start, min(self._block, directory.size - start))
            parsed = directory_format.parse_directory_block(data, directory.nid)
            self._directories.put(key, parsed)
        return parsed

    def _xattrs(self, nid: int) -> dict[bytes, bytes]:
        inode = self._inode(nid)
        body = self._metadata_at(self._place(nid) + inode.header_bytes, inode.xattr_bytes)
        return xattr_format.unpack_xattrs(body, nid)

    def _content(self, inode: f.DiskInode, offset: int, length: int) -> bytes:
        plain = self._plain_bytes(inode)
        from_plain = max(0, min(length, plain - offset))
        data = b""
        if from_plain:
            data = self._inside(inode.union * self._block + offset, from_plain)
        if from_plain < length:
            tail_offset = offset + from_plain - plain
            data += self._metadata_at(self._tail_place(inode) + tail_offset, length - from_plain)
        return data

    def _inside(self, offset: int, length: int) -> bytes:
        if offset + length > self._end:
            raise FormatError(f"EROFS: content at byte {offset} lies outside of the filesystem of {self._end} bytes")
        return self._device.read_at(offset, length)

    @staticmethod
    def _has_content(inode: f.DiskInode) -> bool:
        return bool(inode.size) and stat.S_IFMT(inode.mode) in {stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK}

    def _plain_bytes(self, inode: f.DiskInode) -> int:
        """How much of the content lies in blocks of its own; the rest is inline."""
        if inode.layout == f.LAYOUT_FLAT_PLAIN:
            return inode.size
        return inode.size - inode.size % self._block

    def _tail_place(self, inode: f.DiskInode) -> int:
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
            self._metadata.put(number, block)
        return block


class _Lru(Generic[_Key, _Value]):
    """The most recently used entries, up to a fixed number."""

    def __init__(self, entries: int) -> None:
        self._limit = entries
        self._entries: OrderedDict[_Key, _Value] = OrderedDict()

    def get(self, key: _Key) -> _Value | None:
        """The value, which becomes the most recent; None when it is not here."""
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: _Key, value: _Value) -> None:
        """Add a value; the least recently used one goes when there are too many."""
        self._entries[key] = value
        if len(self._entries) > self._limit:
            self._entries.popitem(last=False)
