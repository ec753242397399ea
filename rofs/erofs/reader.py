# SPDX-License-Identifier: Apache-2.0
"""Reads an EROFS filesystem from a block device.

Reads what is not compressed: flat and chunk-based inodes, whole filesystems on one device; names what
else it finds. Every number from the device is hostile: a malformed object raises `FormatError` when it is
touched and harms no other. Does not know whether its device is verified, nor where content lies
(`content_map`); content is never cached here, metadata within byte limits.
"""

from __future__ import annotations

import bisect
import errno
import os
import stat
from collections.abc import Iterator

from rofs.blockdev import BlockDevice
from rofs.erofs import directory_format, xattr_format
from rofs.erofs import format as fmt
from rofs.erofs.content_map import Piece, chunk_table, map_content
from rofs.erofs.metadata import Metadata
from rofs.errors import FormatError
from rofs.lru import ByteLru
from rofs.vfs import PATH_MAX_BYTES, DirEntry, Extent, Stat, StatFs

# A least-recently-used cache is of no use for walks over a tree that is larger than it: these hold those of a
# usual root (8,000 inodes, 13 MB of metadata).
_METADATA_CACHE_BYTES = 16 << 20
_INODE_CACHE_BYTES = 8 << 20
_DIRECTORY_CACHE_BYTES = 12 << 20
# Measured with tracemalloc, key and place in the cache included.
_INODE_COST_BYTES = 500
_DIRECTORY_BLOCK_COST_BYTES = 500
_DIRECTORY_ENTRY_COST_BYTES = 72  # and its bytes on disk
# Directories are read block by block: no real one comes near this size.
_MAX_DIRECTORY_BYTES = 1 << 34
# In larger ones a search may miss a name of a hostile image; about 400,000 names.
_MAX_CHECKED_BLOCKS = 4096
_CHECKED_CACHE_BYTES = 1 << 20
_CHECKED_COST_BYTES = 200
_START_BYTES = 4096  # read first: the superblock says how much more there is to check
_DEVICE_TYPES = frozenset({stat.S_IFCHR, stat.S_IFBLK})
_ZEROS = bytes(1 << 20)  # what most reads of a hole are a part of


class ErofsReader:
    """An EROFS filesystem; implements `vfs.ReadOnlyFilesystem`.

    Args:
        device: Starts with the filesystem's first block.

    Raises:
        FormatError: No superblock, a damaged one, or a feature that is not supported.
    """

    def __init__(self, device: BlockDevice) -> None:
        self._device = device
        self._super = _superblock(device)
        self._block = self._super.block_size
        self._metadata = Metadata(device, self._super, _METADATA_CACHE_BYTES)
        self._checked: ByteLru[int, bool] = ByteLru(_CHECKED_CACHE_BYTES)  # directories that are in order
        self._prefixes: tuple[bytes, ...] | None = None
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
        mode, size = inode.mode, inode.size
        is_device = mode & 0o170000 in _DEVICE_TYPES
        rdev = os.makedev(*fmt.unpack_device(inode.union)) if is_device else 0
        blocks = -(-size // self._block) * (self._block // 512)
        # By position: it is made for each name in a listing.
        return Stat(nid, mode, inode.nlink, inode.uid, inode.gid, size, rdev, inode.mtime_ns, blocks)

    def lookup(self, directory_nid: int, name: bytes) -> int | None:
        """Binary search for a name: first over blocks, then over entries.

        Raises:
            FormatError: Also when the name is not found because blocks are out of order.
        """
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
        if at < len(block.names) and block.names[at] == name:
            return block.nids[at]
        self._check_order(directory)
        return None

    def readdir(self, directory_nid: int, offset: int = 0) -> Iterator[DirEntry]:
        """Entries from `offset`, which counts bytes of the directory: a dirent's place, as in the kernel."""
        directory = self._directory(directory_nid)
        number, within = divmod(offset, self._block)
        for index, block in self._directory_blocks(directory, number):
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
        place = self._metadata.inode_place(nid)
        return Extent(place, min(fmt.EXTENDED_INODE_BYTES, self._metadata.end - place), None)

    def extents(self, nid: int) -> Iterator[Extent]:
        """The inode with its xattrs and chunk table, where shared xattrs begin, and its content in order."""
        inode = self._inode(nid)
        place = self._metadata.inode_place(nid)
        end = place + inode.header_bytes + inode.xattr_bytes
        if inode.layout == fmt.LAYOUT_CHUNK_BASED:
            end = sum(chunk_table(self._metadata, inode))
        yield Extent(place, end - place, None)
        for number in xattr_format.unpack_shared_ids(self._xattr_body(inode), nid):
            # No more than that: how long it is stands in a block that need not be readable.
            yield Extent(self._shared_place(number), xattr_format.XATTR_ENTRY.size, None)
        at = 0
        for piece in map_content(self._metadata, inode, 0, inode.size):
            if piece.place is not None:
                yield Extent(piece.place, piece.length, at)
            at += piece.length

    def _inode(self, nid: int) -> fmt.DiskInode:
        inode = self._inodes.get(nid)
        if inode is None:
            place = self._metadata.inode_place(nid)
            data = self._metadata.at(place, min(fmt.EXTENDED_INODE_BYTES, self._metadata.end - place))
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

    def _directory_blocks(
        self, directory: fmt.DiskInode, first: int
    ) -> Iterator[tuple[int, directory_format.DirectoryBlock]]:
        """The blocks from one on, with their numbers, in order of their names."""
        previous = b""
        for index in range(first, self._block_count(directory)):
            block = self._directory_block(directory, index)
            if block.names[0] <= previous:
                raise FormatError(f"EROFS: directory {directory.nid}: the names of block {index} are out of order")
            previous = block.names[-1]
            yield index, block

    def _check_order(self, directory: fmt.DiskInode) -> None:
        """See once that a search finds what is there: blocks are in order, which each of them is in itself."""
        if 1 < self._block_count(directory) <= _MAX_CHECKED_BLOCKS and not self._checked.get(directory.nid):
            for _ in self._directory_blocks(directory, 0):
                pass
            self._checked.put(directory.nid, True, _CHECKED_COST_BYTES)  # noqa: FBT003 - the value of a cache

    def _xattrs(self, nid: int) -> dict[bytes, bytes]:
        body = self._xattr_body(self._inode(nid))
        return xattr_format.unpack_xattrs(body, nid, shared_entry=self._shared_entry, long_prefixes=self._long_prefixes)

    def _xattr_body(self, inode: fmt.DiskInode) -> bytes:
        if not inode.xattr_bytes:
            return b""
        return self._metadata.at(self._metadata.inode_place(inode.nid) + inode.header_bytes, inode.xattr_bytes)

    def _shared_place(self, number: int) -> int:
        return self._super.xattr_blkaddr * self._block + number * xattr_format.XATTR_SHARED_ID.size

    def _shared_entry(self, number: int) -> bytes:
        place = self._shared_place(number)
        header = self._metadata.at(place, xattr_format.XATTR_ENTRY.size)
        return self._metadata.at(place, xattr_format.entry_bytes(header))

    def _long_prefixes(self) -> tuple[bytes, ...]:
        """At most 255 of at most 256 bytes; read when the first name has one."""
        if self._prefixes is None:
            found = []
            at = self._super.xattr_prefix_start * 4
            size = xattr_format.XATTR_LONG_PREFIX_SIZE
            for _ in range(self._super.xattr_prefix_count):
                (length,) = size.unpack(self._prefix_bytes(at, size.size))
                found.append(xattr_format.unpack_long_prefix(self._prefix_bytes(at + size.size, length)))
                at += size.size + length
                at += -at % 4
            self._prefixes = tuple(found)
        return self._prefixes

    def _prefix_bytes(self, offset: int, length: int) -> bytes:
        if not self._super.packed_nid:
            return self._metadata.at(offset, length)
        packed = self._inode(self._super.packed_nid)
        if offset + length > packed.size:
            raise FormatError(
                f"EROFS: long xattr name prefix at byte {offset} of the packed inode {packed.nid}, which has "
                f"{packed.size} bytes"
            )
        return self._content(packed, offset, length)

    def _content(self, inode: fmt.DiskInode, offset: int, length: int) -> bytes:
        pieces = [self._read_piece(piece) for piece in map_content(self._metadata, inode, offset, length)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read_piece(self, piece: Piece) -> bytes:
        if piece.place is None:
            return _ZEROS[: piece.length] if piece.length <= len(_ZEROS) else bytes(piece.length)
        if piece.inline:
            return self._metadata.at(piece.place, piece.length)
        if piece.place + piece.length > self._metadata.end:
            raise FormatError(
                f"EROFS: content at byte {piece.place} lies outside of the filesystem of {self._metadata.end} bytes"
            )
        return self._device.read_at(piece.place, piece.length)


def _superblock(device: BlockDevice) -> fmt.Superblock:
    start = device.read_at(0, min(_START_BYTES, device.size_bytes))
    span = min(fmt.superblock_span_bytes(start), device.size_bytes)
    if span > len(start):  # larger blocks than usual
        start = device.read_at(0, span)
    return fmt.parse_superblock(start, device.size_bytes)
