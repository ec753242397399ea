# SPDX-License-Identifier: Apache-2.0
"""Where the content of an EROFS inode lies: what a data layout means is said here and nowhere else.

Reading and naming places go by the same map. It reads chunk tables, as little of them as it needs, and
never content; the places it gives are not checked against the end of the filesystem.

Source: Linux Documentation/filesystems/erofs.rst and fs/erofs/data.c (erofs_map_blocks).
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

from rofs.erofs import format as fmt
from rofs.erofs.metadata import Metadata
from rofs.errors import FormatError

_TYPES_WITH_CONTENT = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK})
_ENTRIES_AT_ONCE = 512  # of a chunk table: a block or two of it


class Piece(NamedTuple):
    """A part of a content that lies in one place.

    Attributes:
        place: Byte of the device; None for a hole, which reads as zeros.
        length: In bytes.
        inline: Whether it stands in the metadata area.
    """

    place: int | None
    length: int
    inline: bool = False


def map_content(metadata: Metadata, inode: fmt.DiskInode, offset: int, length: int) -> Iterator[Piece]:
    """Where a range of an inode's content lies, in order and without gaps; neighbours in one piece.

    Args:
        metadata: Of the filesystem.
        inode: Any; what has no content has no pieces.
        offset: In bytes; the range is inside of the content.
        length: In bytes.

    Raises:
        FormatError: The tail or the chunk table is where none can be; while pieces are taken, too.
    """
    if stat.S_IFMT(inode.mode) not in _TYPES_WITH_CONTENT or length <= 0:
        return iter(())
    if inode.layout == fmt.LAYOUT_CHUNK_BASED:
        return _map_chunks(metadata, inode, offset, length)
    return _map_flat(metadata, inode, offset, length)


def chunk_table(metadata: Metadata, inode: fmt.DiskInode) -> tuple[int, int]:
    """Place and length in bytes of the chunk table of a chunk-based inode.

    Raises:
        FormatError: It is not inside of the filesystem.
    """
    unit = inode.chunk_entry.size
    behind = _behind_xattrs(metadata, inode)
    place = behind + -behind % unit
    chunk_bits = metadata.superblock.block_bits + inode.chunk_blkbits
    length = unit * -(-inode.size >> chunk_bits)
    if place + length > metadata.end:
        raise FormatError(
            f"EROFS: inode {inode.nid} has a chunk table of {length} bytes at byte {place}, outside of the "
            f"filesystem of {metadata.end} bytes"
        )
    return place, length


def _behind_xattrs(metadata: Metadata, inode: fmt.DiskInode) -> int:
    return metadata.inode_place(inode.nid) + inode.header_bytes + inode.xattr_bytes


def _map_flat(metadata: Metadata, inode: fmt.DiskInode, offset: int, length: int) -> Iterator[Piece]:
    block = metadata.superblock.block_size
    end = offset + length
    inline_from = inode.size
    if inode.layout == fmt.LAYOUT_FLAT_INLINE:
        inline_from = (inode.size - 1) // block * block  # the last block, however full it is
    elif inode.union == fmt.NULL_ADDRESS:  # one hole, since Linux 6.15; nothing can lie there
        yield Piece(None, length)
        return
    if offset < inline_from:
        yield Piece(inode.union * block + offset, min(end, inline_from) - offset)
    if end > inline_from:
        start = max(offset, inline_from)
        tail = _tail_place(metadata, inode, inode.size - inline_from)
        yield Piece(tail + start - inline_from, end - start, inline=True)


def _tail_place(metadata: Metadata, inode: fmt.DiskInode, tail_bytes: int) -> int:
    block = metadata.superblock.block_size
    place = _behind_xattrs(metadata, inode)
    if place % block + tail_bytes > block:
        raise FormatError(f"EROFS: inode {inode.nid} has an inline tail that crosses a block boundary")
    return place


def _map_chunks(metadata: Metadata, inode: fmt.DiskInode, offset: int, length: int) -> Iterator[Piece]:
    chunk = 1 << metadata.superblock.block_bits + inode.chunk_blkbits
    block = metadata.superblock.block_size
    end = offset + length
    pending: Piece | None = None
    at = offset
    for address, count in _addresses(metadata, inode, offset // chunk, (end - 1) // chunk + 1):
        within = at % chunk
        taken = min(count * chunk - within, end - at)
        at += taken
        place = None if address == fmt.NULL_ADDRESS else address * block + within
        if pending is None:
            pending = Piece(place, taken)
        elif place == (None if pending.place is None else pending.place + pending.length):
            pending = Piece(pending.place, pending.length + taken)
        else:
            yield pending
            pending = Piece(place, taken)
    if pending is not None:
        yield pending


def _addresses(metadata: Metadata, inode: fmt.DiskInode, first: int, last: int) -> Iterator[tuple[int, int]]:
    """Block addresses of the chunks from `first` to before `last`, read a few at a time, and for how many each is.

    That is one but for null chunks: there may be millions between two that are there.
    """
    table, _ = chunk_table(metadata, inode)
    entry = inode.chunk_entry
    null = entry.pack(fmt.NULL_ADDRESS) * _ENTRIES_AT_ONCE
    for start in range(first, last, _ENTRIES_AT_ONCE):
        count = min(_ENTRIES_AT_ONCE, last - start)
        data = metadata.at(table + start * entry.size, count * entry.size)
        if data == null[: len(data)]:
            yield fmt.NULL_ADDRESS, count
            continue
        for (address,) in entry.iter_unpack(data):
            yield address, 1
