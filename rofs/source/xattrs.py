# SPDX-License-Identifier: Apache-2.0
"""Extended attributes of a source: which of them an image can hold, and how archives write them. Pure.

Source: star(5), GNU tar and libarchive's tar(5) for the keys. Values are not interpreted.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from rofs.source.posix_acl import check_acl, pack_acl, says_no_more_than_the_mode
from rofs.vfs import ACL_ACCESS_XATTR, ACL_DEFAULT_XATTR, ACL_XATTRS

# getxattr gives these for what the filesystem stores elsewhere; an image cannot hold others.
_KEPT_PREFIXES = (b"user.", b"trusted.", b"security.")

_NAME_MAX_BYTES = 255  # XATTR_NAME_MAX, prefix included

_SCHILY = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."
_SELINUX_KEY, _SELINUX_XATTR = b"RHT.security.selinux", b"security.selinux"
_ACL_KEYS = {b"SCHILY.acl.access": ACL_ACCESS_XATTR, b"SCHILY.acl.default": ACL_DEFAULT_XATTR}
_NFS4_KEY = b"SCHILY.acl.ace"

_XFS_ACLS = frozenset({b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT"})
_BTRFS_PROPERTIES = b"btrfs."

Xattrs = tuple[tuple[bytes, bytes], ...]


def is_of_the_storage(name: bytes) -> bool:
    """Whether an xattr says how a filesystem stores a file and nothing of the file: it is left out.

    xfs shows each POSIX ACL to root a second time in its own form; btrfs shows its properties.
    """
    return name in _XFS_ACLS or name.startswith(_BTRFS_PROPERTIES)


def can_be_kept(name: bytes) -> bool:
    """Whether an image can hold an xattr of this name, and Linux could have given it. xattr(7)."""
    prefix = next((prefix for prefix in _KEPT_PREFIXES if name.startswith(prefix)), None)
    if prefix is None:
        return name in ACL_XATTRS
    return len(prefix) < len(name) <= _NAME_MAX_BYTES and b"\0" not in name


def xattrs_of_records(records: Mapping[bytes, bytes]) -> Xattrs:
    """The xattrs that the PAX records of a member stand for, sorted by name.

    Where an xattr is there in several forms, the one that keeps bytes as they are counts.

    Raises:
        ValueError: A record cannot be read, or an image cannot hold what it says; the text says which.
    """
    found: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(_SCHILY):
            found[unquote_to_bytes(key.removeprefix(_SCHILY))] = value
        elif key == _NFS4_KEY and value:
            raise ValueError("it has an NFSv4 ACL, which cannot be kept in an image")
    for key, value in records.items():
        if key.startswith(_LIBARCHIVE):
            found.setdefault(unquote_to_bytes(key.removeprefix(_LIBARCHIVE)), _base64(value))
        elif key in _ACL_KEYS:
            _add_acl(found, _ACL_KEYS[key], value)
        elif key == _SELINUX_KEY:
            found.setdefault(_SELINUX_XATTR, value + b"\0")  # the kernel's value has the NUL
    found = {name: value for name, value in found.items() if not is_of_the_storage(name)}
    for name, value in found.items():
        if not can_be_kept(name):
            raise ValueError(f"its xattr {name[:80]!r} cannot be kept in an image; make the archive without it")
        if name in ACL_XATTRS:
            check_acl(value)
    return tuple(sorted(found.items()))


def _add_acl(found: dict[bytes, bytes], name: bytes, text: bytes) -> None:
    if name in found:
        return
    value = pack_acl(text)
    if value and not (name == ACL_ACCESS_XATTR and says_no_more_than_the_mode(value)):
        found[name] = value


def _base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError(f"its xattr value {text[:40]!r} is not in base 64") from None
