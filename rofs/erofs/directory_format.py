# SPDX-License-Identifier: Apache-2.0
"""EROFS directories: one block of sorted names. No I/O, and no search.

Source: Linux Documentation/filesystems/erofs.rst, section "Directories".
"""

from __future__ import annotations

import operator
import struct
from dataclasses import dataclass

from rofs.erofs.format import FILE_TYPES
from rofs.errors import FormatError
from rofs.vfs import NAME_MAX_BYTES

DIRENT = struct.Struct("<QHBx")  # nid, nameoff, file_type

assert DIRENT.size == 12


@dataclass(frozen=True, slots=True)
class DirectoryBlock:
    """One parsed block of a directory, its entries in stored order.

    Attributes:
        names: Bytewise ascending, each once.
        nids: The inode of each name.
        file_types: S_IFMT bits of each name, 0 when unknown; a hint, the inode decides.
    """

    names: tuple[bytes, ...]
    nids: tuple[int, ...]
    file_types: tuple[int, ...]


def parse_directory_block(block: bytes, nid: int) -> DirectoryBlock:
    """Check and read a directory block.

    Args:
        block: The whole block, or its used part for the last one.
        nid: The directory's, for messages.

    Raises:
        FormatError: Name offsets out of range or out of order, a name that cannot be one, or names out
            of order, which a search would miss.
    """
    if len(block) < DIRENT.size:
        raise FormatError(f"EROFS: directory {nid} has a block of {len(block)} bytes")
    first_nameoff = DIRENT.unpack_from(block)[1]
    if first_nameoff % DIRENT.size or not DIRENT.size <= first_nameoff < len(block):
        raise FormatError(f"EROFS: directory {nid}: first name at offset {first_nameoff}")
    nids, offsets, types = zip(*DIRENT.iter_unpack(block[:first_nameoff]), strict=True)
    ends = (*offsets[1:], len(block))
    names = tuple(block[start:end] for start, end in zip(offsets, ends, strict=True))
    names = (*names[:-1], names[-1].split(b"\0", 1)[0])
    joined = b"".join(names)
    lengths = list(map(len, names))
    if b"/" in joined or b"\0" in joined or min(lengths) == 0 or max(lengths) > NAME_MAX_BYTES:
        raise FormatError(f"EROFS: directory {nid}: {_malformed_name(names, offsets)}")
    if not all(map(operator.lt, offsets, offsets[1:])):
        raise FormatError(f"EROFS: directory {nid}: offsets of names are out of order")
    if not all(map(operator.lt, names, names[1:])):
        raise FormatError(f"EROFS: directory {nid}: names from {names[0][:32]!r} on are out of order")
    kinds = tuple(FILE_TYPES[t] if t < len(FILE_TYPES) else 0 for t in types)
    return DirectoryBlock(names, nids, kinds)


def _malformed_name(names: tuple[bytes, ...], offsets: tuple[int, ...]) -> str:
    for offset, name in zip(offsets, names, strict=True):
        if not 0 < len(name) <= NAME_MAX_BYTES or b"/" in name or b"\0" in name:
            return f"malformed name {name[:32]!r} at offset {offset}"
    raise AssertionError("all names are well formed")
