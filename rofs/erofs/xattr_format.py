# SPDX-License-Identifier: Apache-2.0
"""EROFS extended attributes: the area behind an inode, as bytes and as names with values. No I/O.

Entries that inodes share and long name prefixes are read and never written; where they stand is the
reader's to know. The name filter (h_name_filter) only saves others a search: it is neither used nor made.

Source: Linux Documentation/filesystems/erofs.rst, section "Extended attributes".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from rofs.erofs.format import xattr_icount
from rofs.errors import FormatError
from rofs.vfs import ACL_ACCESS_XATTR, ACL_DEFAULT_XATTR, NAME_MAX_BYTES

# Index of the prefix in e_name_index; the ACL names are whole, their suffix is empty.
XATTR_PREFIXES = {
    1: b"user.",
    2: ACL_ACCESS_XATTR,
    3: ACL_DEFAULT_XATTR,
    4: b"trusted.",
    6: b"security.",
}
_LONG_PREFIX = 0x80  # in e_name_index: the other bits count long prefixes

XATTR_IBODY_HEADER = struct.Struct("<IB7x")  # h_name_filter, h_shared_count
XATTR_SHARED_ID = struct.Struct("<I")  # counts 4 bytes from xattr_blkaddr
XATTR_ENTRY = struct.Struct("<BBH")  # e_name_len, e_name_index, e_value_size
XATTR_LONG_PREFIX_SIZE = struct.Struct("<H")  # before each long prefix: base_index and infix

assert XATTR_IBODY_HEADER.size == 12
assert XATTR_ENTRY.size == 4


def pack_xattrs(xattrs: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """The xattr area of an inode, all entries inline; empty when there are none.

    Raises:
        ValueError: A name without a known prefix or longer than 255, a value over 65535 bytes, or
            more in all than i_xattr_icount can count. The text says which.
    """
    if not xattrs:
        return b""
    parts = [XATTR_IBODY_HEADER.pack(0, 0)]
    for name, value in xattrs:
        index, suffix = _split_xattr_name(name)
        if len(suffix) > NAME_MAX_BYTES or len(value) > 0xFFFF:
            raise ValueError(f"xattr {name!r} is too long: value of {len(value)} bytes")
        entry = XATTR_ENTRY.pack(len(suffix), index, len(value)) + suffix + value
        parts.append(entry + bytes(-len(entry) % 4))
    body = b"".join(parts)
    if xattr_icount(len(body)) > 0xFFFF:
        raise ValueError(f"all xattrs together are too long: {len(body)} bytes, at most 262140")
    return body


def _split_xattr_name(name: bytes) -> tuple[int, bytes]:
    for index, prefix in XATTR_PREFIXES.items():
        whole = not prefix.endswith(b".")
        if name == prefix if whole else (name.startswith(prefix) and len(name) > len(prefix)):
            return index, name[len(prefix) :]
    raise ValueError(f"xattr {name!r} has no prefix that EROFS knows")


def no_long_prefixes() -> Sequence[bytes]:
    """What a filesystem without long name prefixes has."""
    return ()


def unpack_xattrs(
    body: bytes,
    nid: int,
    *,
    shared_entry: Callable[[int], bytes] | None = None,
    long_prefixes: Callable[[], Sequence[bytes]] = no_long_prefixes,
) -> dict[bytes, bytes]:
    """Names and values of an inode's xattr area; of several of one name the first, as in Linux.

    Args:
        body: The area.
        nid: The inode's, for messages.
        shared_entry: Gives the whole entry that a shared id stands for; None when there are none.
        long_prefixes: Gives the long name prefixes, and is only called when a name has one.

    Raises:
        FormatError: An entry reaches beyond the area, or has a prefix that is not supported.
    """
    if not body:
        return {}
    found: dict[bytes, bytes] = {}
    ids = unpack_shared_ids(body, nid)
    at = XATTR_IBODY_HEADER.size + len(ids) * XATTR_SHARED_ID.size
    while at < len(body):
        entry, at = _entry(body, at, nid, long_prefixes)
        if entry is not None:
            found.setdefault(*entry)
    if ids and shared_entry is None:
        raise FormatError(f"EROFS: inode {nid} has shared xattrs, where there are none")
    for number in ids:
        assert shared_entry is not None
        entry, _ = _entry(shared_entry(number), 0, nid, long_prefixes)
        if entry is not None:
            found.setdefault(*entry)
    return found


def unpack_shared_ids(body: bytes, nid: int) -> tuple[int, ...]:
    """Ids of the shared entries of an inode's xattr area, which may be empty.

    Raises:
        FormatError: There are more than the area has room for.
    """
    if not body:
        return ()
    _filter, count = XATTR_IBODY_HEADER.unpack_from(body)
    end = XATTR_IBODY_HEADER.size + count * XATTR_SHARED_ID.size
    if end > len(body):
        raise FormatError(f"EROFS: inode {nid}: {count} shared xattrs in an area of {len(body)} bytes")
    return tuple(number for (number,) in XATTR_SHARED_ID.iter_unpack(body[XATTR_IBODY_HEADER.size : end]))


def entry_bytes(header: bytes) -> int:
    """Length of an entry with its name and value, by its first 4 bytes."""
    name_bytes, _index, value_bytes = XATTR_ENTRY.unpack(header)
    return XATTR_ENTRY.size + int(name_bytes) + int(value_bytes)


def unpack_long_prefix(record: bytes) -> bytes:
    """A whole long name prefix, from base_index and infix.

    Raises:
        FormatError: Its base index is not known, or it is as long as no name can be.
    """
    if not 0 < len(record) <= NAME_MAX_BYTES + 1 or record[0] not in XATTR_PREFIXES:
        raise FormatError(f"EROFS: long xattr name prefix is malformed: {record[:32]!r}")
    return XATTR_PREFIXES[record[0]] + record[1:]


def _entry(
    data: bytes, at: int, nid: int, long_prefixes: Callable[[], Sequence[bytes]]
) -> tuple[tuple[bytes, bytes] | None, int]:
    """The name and value that stand at `at`, None for a filler, and where the next entry stands."""
    if at + XATTR_ENTRY.size > len(data):
        raise FormatError(f"EROFS: inode {nid}: xattr entry reaches beyond its area")
    name_bytes, index, value_bytes = XATTR_ENTRY.unpack_from(data, at)
    name_at = at + XATTR_ENTRY.size
    value_at = name_at + name_bytes
    end = value_at + value_bytes
    if not name_bytes and not index and not value_bytes:  # mkfs.erofs --root-xattr-isize
        return None, end
    if end > len(data):
        raise FormatError(
            f"EROFS: inode {nid}: xattr entry with prefix {index} and {value_bytes} bytes does not fit its area"
        )
    name = _prefix(index, nid, long_prefixes) + data[name_at:value_at]
    return (name, data[value_at:end]), end + -end % 4


def _prefix(index: int, nid: int, long_prefixes: Callable[[], Sequence[bytes]]) -> bytes:
    if index in XATTR_PREFIXES:
        return XATTR_PREFIXES[index]
    if index & _LONG_PREFIX:
        prefixes = long_prefixes()
        if index & ~_LONG_PREFIX < len(prefixes):
            return prefixes[index & ~_LONG_PREFIX]
    raise FormatError(f"EROFS: inode {nid} has an xattr with prefix {index}, which is not known")
