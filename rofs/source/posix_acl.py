# SPDX-License-Identifier: Apache-2.0
"""POSIX ACLs: from the text that archives carry to the value of the xattr. Pure.

Names are never looked up: the users of the machine that builds are not those of the image.

Source: Linux include/uapi/linux/posix_acl_xattr.h; acl(5), "ACL TEXT FORMS"; star(5), SCHILY.acl.access.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

_VERSION = struct.Struct("<I")  # 2
_ENTRY = struct.Struct("<HHI")  # e_tag, e_perm, e_id
_NO_ID = 0xFFFFFFFF
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
# Without a qualifier, and with one.
_TAGS = {b"user": (_USER_OBJ, _USER), b"group": (_GROUP_OBJ, _GROUP), b"mask": (_MASK, None), b"other": (_OTHER, None)}
_SHORT = {b"u": b"user", b"g": b"group", b"m": b"mask", b"o": b"other"}
_PERMISSIONS = {b"r": 4, b"w": 2, b"x": 1}
_REQUIRED = {_USER_OBJ, _GROUP_OBJ, _OTHER}


def pack_acl(text: bytes) -> bytes:
    """The value of the xattr, entries in the order in which the kernel's tools write them.

    Args:
        text: Entries like `user::rwx`, `user:1000:r--` or `user:ada:r--:1000`, with commas or newlines between.

    Returns:
        The value; empty for a text without entries.

    Raises:
        ValueError: It is no ACL, or names somebody without a number.
    """
    entries = [_entry(line) for part in re.split(rb"[,\n]", text) if (line := part.partition(b"#")[0].strip())]
    if not entries:
        return b""
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    tags = {tag for tag, _, _ in entries}
    named = bool(tags & {_USER, _GROUP})
    keys = {(tag, number) for tag, _, number in entries}
    if not tags >= _REQUIRED or (named and _MASK not in tags) or len(keys) < len(entries):
        raise ValueError(f"its ACL {text[:200]!r} is none: entries are missing or there twice")
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def check_acl(value: bytes) -> None:
    """Check that a value is one that the kernel would have taken; it refuses to read others, for everybody.

    Raises:
        ValueError: It is no ACL; the text says why.
    """
    entries = _entries(value)
    tags = [tag for tag, _, _ in entries]
    if len(value) < _VERSION.size or _VERSION.unpack_from(value)[0] != 2 or not entries:
        raise ValueError(f"its ACL of {len(value)} bytes is none: version 2 and entries expected")
    keys = {(tag, number if tag in {_USER, _GROUP} else _NO_ID) for tag, _, number in entries}
    whole = set(tags) >= _REQUIRED and (_MASK in tags or not set(tags) & {_USER, _GROUP})
    known = set(tags) <= {_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER}
    if tags != sorted(tags) or not known or not whole or len(keys) < len(entries):
        raise ValueError("its ACL is none: entries are unknown, out of order, missing or there twice")
    if any(permissions > 7 for _, permissions, _ in entries):
        raise ValueError("its ACL has permissions other than r, w and x")


def says_no_more_than_the_mode(value: bytes) -> bool:
    """Whether an access ACL has only the three entries that the permission bits are; none is stored for them."""
    return len(value) <= _VERSION.size + len(_REQUIRED) * _ENTRY.size


def map_ids(value: bytes, uid: Callable[[int], int], gid: Callable[[int], int]) -> bytes:
    """An ACL about other users and groups.

    Args:
        value: The xattr's value; one that is no ACL stays as it is.
        uid: Gives the new number of a user.
        gid: Gives the new number of a group.
    """
    entries = [
        (tag, permissions, uid(number) if tag == _USER else gid(number) if tag == _GROUP else number)
        for tag, permissions, number in _entries(value)
    ]
    entries.sort(key=lambda entry: (entry[0], entry[2]))
    return _VERSION.pack(2) + b"".join(_ENTRY.pack(*entry) for entry in entries) if entries else value


def mode_with_acl(mode: int, value: bytes) -> int:
    """The mode that a file has once an access ACL is set on it; setting one changes the permission bits.

    Args:
        mode: The mode before.
        value: The xattr's value; one that is no ACL changes nothing.

    Source: Linux fs/posix_acl.c, posix_acl_equiv_mode; acl(5), "CORRESPONDENCE".
    """
    entries = {tag: permissions & 7 for tag, permissions, _ in _entries(value)}
    if not entries.keys() >= _REQUIRED:
        return mode
    group = entries.get(_MASK, entries[_GROUP_OBJ])
    return mode & ~0o777 | entries[_USER_OBJ] << 6 | group << 3 | entries[_OTHER]


def _entries(value: bytes) -> list[tuple[int, int, int]]:
    """Tag, permissions and id of each entry; none for what is no ACL."""
    body = value[_VERSION.size :]
    return [] if len(value) < _VERSION.size or len(body) % _ENTRY.size else list(_ENTRY.iter_unpack(body))


def _entry(text: bytes) -> tuple[int, int, int]:
    fields = [part.strip() for part in text.split(b":")]
    kind = _SHORT.get(fields[0], fields[0])
    if len(fields) == 2 and kind in {b"mask", b"other"}:  # Solaris leaves the empty qualifier out
        fields.insert(1, b"")
    if kind not in _TAGS or len(fields) not in {3, 4}:
        raise ValueError(f"its ACL has the entry {text[:80]!r}, which is none")
    plain, named = _TAGS[kind]
    qualifier = fields[3] if len(fields) == 4 and fields[3] else fields[1]
    if not qualifier:
        return plain, _permissions(fields[2]), _NO_ID
    if named is None or not re.fullmatch(rb"[0-9]{1,10}", qualifier) or int(qualifier) >= _NO_ID:
        raise ValueError(
            f"its ACL has the entry {text[:80]!r}, in which {qualifier[:40]!r} is no number; make the archive "
            "with --xattrs --xattrs-include='*', which keeps numbers"
        )
    return named, _permissions(fields[2]), int(qualifier)


def _permissions(text: bytes) -> int:
    if not re.fullmatch(rb"r?-?w?-?x?-?", text):
        raise ValueError(f"its ACL has the permissions {text[:20]!r}")
    return sum(value for letter, value in _PERMISSIONS.items() if letter in text)
