# SPDX-License-Identifier: Apache-2.0
"""What an image made by others says of itself: IMAGE_ID and IMAGE_VERSION of its os-release(5).

Source: UAPI os-release (the syntax of shell assignments, without a shell). `parse_os_release` is pure;
`os_release_of` looks for the file inside the image, under its root hash, and nowhere else. Does not
know what rofs writes into its own images (`identity`).
"""

from __future__ import annotations

import re
import stat

from rofs.errors import ImageError, InputError
from rofs.image.lookup import find
from rofs.vfs import ReadOnlyFilesystem

# Where the file stands in a tree that is mounted on / or on /usr.
_PATHS = {"root": (b"usr/lib/os-release", b"etc/os-release"), "usr": (b"lib/os-release",)}
_MAX_BYTES = 65536  # real ones have less than one KiB
_ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)")
_DOUBLE_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SINGLE_QUOTED = re.compile(r"'([^']*)'")
_UNQUOTED = re.compile(r"""(?:[^\s'"\\$`;&|<>()]|\\.)*""")
_ESCAPE_IN_QUOTES = re.compile(r'\\(["$`\\])')  # a shell leaves any other backslash as it is
_ESCAPE = re.compile(r"\\(.)")


def parse_os_release(data: bytes) -> dict[str, str]:
    """Parse the content of an os-release file.

    Comments, empty lines and lines that are no assignment are passed over; of several assignments to one
    name the last counts.

    Args:
        data: UTF-8; what is not is replaced.

    Returns:
        Names and values, quotes and escapes resolved.
    """
    values = {}
    for line in data.decode("utf-8", "replace").split("\n"):
        match = _ASSIGNMENT.fullmatch(line.strip())
        value = _unquoted(match[2]) if match else None
        if match and value is not None:
            values[match[1]] = value
    return values


def _unquoted(text: str) -> str | None:
    """The value behind `=`; None when a shell would not read it as one word."""
    if match := _DOUBLE_QUOTED.fullmatch(text):
        return _ESCAPE_IN_QUOTES.sub(r"\1", match[1])
    if match := _SINGLE_QUOTED.fullmatch(text):
        return match[1]
    return _ESCAPE.sub(r"\1", text) if _UNQUOTED.fullmatch(text) else None


def os_release_of(filesystem: ReadOnlyFilesystem, designator: str) -> tuple[str | None, str | None]:
    """The IMAGE_ID and IMAGE_VERSION of an image, from the first file that has either.

    A file that is missing, malformed, too large or leads out of the image says nothing.

    Args:
        filesystem: Of the image; only what is read of it is verified.
        designator: What the image is mounted on: `root` or `usr`.

    Returns:
        Name and version, each None when it is not said.
    """
    for path in _PATHS[designator]:
        values = parse_os_release(_content(filesystem, path))
        name, version = values.get("IMAGE_ID") or None, values.get("IMAGE_VERSION") or None
        if name or version:
            return name, version
    return None, None


def _content(filesystem: ReadOnlyFilesystem, path: bytes) -> bytes:
    try:
        nid = find(filesystem, path, follow=True).nid
        status = filesystem.stat(nid)
        if not stat.S_ISREG(status.mode) or status.size > _MAX_BYTES:
            return b""
        return filesystem.read(nid, 0, status.size)
    except (InputError, ImageError):
        return b""
