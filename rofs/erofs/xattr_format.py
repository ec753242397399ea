# SPDX-License-Identifier: Apache-2.0
"""EROFS extended attributes: the area behind an inode, as bytes and as names with values. No I/O.

Source: Linux Documentation/filesystems/erofs.rst, section "Extended attributes". Entries that inodes
share are not read and never written.
"""

from __future__ import annotations

import struct

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

XATTR_IBODY_HEADER = struct.Struct("<IB7x")  # h_name_filter, h_shared_count
XATTR_ENTRY = struct.Struct("<BBH")  # e_name_len, e_name_index, e_value_size

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


def unpack_xattrs(body: bytes, nid: int) -> dict[bytes, bytes]:
    """Names and values of an inode's xattr area.

    Raises:
        FormatError: An entry reaches beyond the area, or it uses shared entries or a prefix that is
            not supported.
    """
    if not body:
        return {}
    _filter, shared_count = XATTR_IBODY_HEADER.unpack_from(body)
    if shared_count:
        raise FormatError(f"EROFS: inode {nid} has shared xattrs, which are not supported")
    found: dict[bytes, bytes] = {}
    at = XATTR_IBODY_HEADER.size
    while at < len(body):
        if at + XATTR_ENTRY.size > len(body):
            raise FormatError(f"EROFS: inode {nid}: xattr entry reaches beyond its area")
        name_bytes, index, value_bytes = XATTR_ENTRY.unpack_from(body, at)
        value_at = at + XATTR_ENTRY.size + name_bytes
        end = value_at + value_bytes
        if end > len(body) or index not in XATTR_PREFIXES:
            raise FormatError(
                f"EROFS: inode {nid}: xattr entry with prefix {index} and {value_bytes} bytes does not fit its area"
            )
        name = XATTR_PREFIXES[index] + body[at + XATTR_ENTRY.size : value_at]
        found[name] = body[value_at:end]
        at = end + -end % 4
    return found
