# SPDX-License-Identifier: Apache-2.0
"""What an image says about itself under its root hash: the xattr `user.rofs.image` of the root inode.

Canonical JSON (RFC 8785). Images of others have none; they may have an os-release file (`os_release`).
Partition labels may say the same to people, but nothing here reads them: the root hash does not cover
them. Pure: values in, values out.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import rfc8785

from rofs.errors import FormatError, InputError
from rofs.tree import Inode, Tree
from rofs.vfs import ACL_XATTRS

XATTR = b"user.rofs.image"
_MAX_TEXT_CHARS = 255
_MAX_SAFE_INTEGER = (1 << 53) - 1  # RFC 8785 numbers are IEEE 754 doubles
_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str, type(None)),
    "version": (str, type(None)),
    "rollback_index": (int,),
    "created": (int,),
    "acl": (bool,),
    "xattrs": (bool,),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who an image is.

    Attributes:
        name: What system it holds; None when nobody said.
        version: Compared by UAPI.10; None when nobody said.
        rollback_index: Never goes down on a node that enforces it.
        created: Seconds since the epoch: SOURCE_DATE_EPOCH or the newest mtime, never the clock.
        acl: Whether any inode has a POSIX ACL.
        xattrs: Whether any inode has an xattr other than this one.
    """

    name: str | None
    version: str | None
    rollback_index: int
    created: int
    acl: bool
    xattrs: bool

    def pack(self) -> bytes:
        """Canonical JSON, the value of the xattr."""
        return rfc8785.dumps(asdict(self))


# An image that says nothing: unnamed, and anything may be in it.
UNKNOWN = Identity(name=None, version=None, rollback_index=0, created=0, acl=True, xattrs=True)


def parse_identity(value: bytes | None) -> Identity:
    """Read the xattr of an image; `UNKNOWN` when it has none.

    Raises:
        FormatError: The value is not what `pack` writes.
    """
    if value is None:
        return UNKNOWN
    try:
        fields = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"xattr {XATTR.decode()} of the root is not JSON: {value[:80]!r}") from error
    if not isinstance(fields, dict):
        raise FormatError(f"xattr {XATTR.decode()} of the root is not a JSON object: {value[:80]!r}")
    for key, types in _TYPES.items():
        if key not in fields or type(fields[key]) not in types:
            raise FormatError(f"xattr {XATTR.decode()} of the root: {key} is {fields.get(key, 'missing')!r}")
    texts_are_valid = all(text is None or _is_valid_text(text) for text in (fields["name"], fields["version"]))
    if not (texts_are_valid and _is_valid_index(fields["rollback_index"]) and _is_safe_integer(fields["created"])):
        raise FormatError(f"xattr {XATTR.decode()} of the root has a value out of range: {value[:80]!r}")
    return Identity(**{key: fields[key] for key in _TYPES})


def identity_of_tree(
    tree: Tree, *, name: str | None, version: str | None, rollback_index: int, created: int | None
) -> Identity:
    """The identity of an image that is to be made of a tree.

    Args:
        tree: The tree.
        name: Given by the caller.
        version: Given by the caller.
        rollback_index: Given by the caller, 0 or more.
        created: SOURCE_DATE_EPOCH; None takes the newest mtime of the tree.

    Raises:
        InputError: A name or version that is empty, too long or not printable, or a negative or huge index
            or time.
    """
    for what, text in (("name", name), ("release", version)):
        if text is not None and not _is_valid_text(text):
            raise InputError(f"image {what} {text!r}: expected 1 to {_MAX_TEXT_CHARS} printable characters")
    if not _is_valid_index(rollback_index):
        raise InputError(f"rollback index {rollback_index}: expected 0 to {_MAX_SAFE_INTEGER}")
    newest = acl = xattrs = None
    for inode in tree.walk():
        newest = max(newest, inode.mtime_ns) if newest is not None else inode.mtime_ns
        names = {key for key, _ in inode.xattrs} - {XATTR}
        xattrs = xattrs or bool(names)
        acl = acl or bool(names & ACL_XATTRS)
    seconds = created if created is not None else (newest or 0) // 10**9
    if not _is_safe_integer(seconds):
        raise InputError(f"time of creation {seconds}: expected at most {_MAX_SAFE_INTEGER} seconds since the epoch")
    return Identity(name, version, rollback_index, seconds, bool(acl), bool(xattrs))


def said_text(text: str | None) -> str | None:
    """A name or version that an image says of itself in another way; None when it is not fit to be one."""
    return text if text is not None and _is_valid_text(text) else None


def _is_valid_text(text: str) -> bool:
    return 0 < len(text) <= _MAX_TEXT_CHARS and text.isprintable()


def _is_valid_index(number: int) -> bool:
    return 0 <= number <= _MAX_SAFE_INTEGER


def _is_safe_integer(number: int) -> bool:
    return -_MAX_SAFE_INTEGER <= number <= _MAX_SAFE_INTEGER


def root_xattrs(root: Inode, identity: Identity) -> tuple[tuple[bytes, bytes], ...]:
    """The root directory's xattrs with the identity among them, sorted by name."""
    others = [(key, value) for key, value in root.xattrs if key != XATTR]
    return tuple(sorted([*others, (XATTR, identity.pack())]))
