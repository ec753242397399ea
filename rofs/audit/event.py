# SPDX-License-Identifier: Apache-2.0
"""One audit event: its vocabulary and its encoding as a line of canonical JSON (RFC 8785).

Pure: the clock, the sequence and the previous hash are arguments. It does not write a log (`log`),
does not check one (`chain`), and does not know which keys an event of some name needs.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
from collections.abc import Mapping
from typing import Any

import rfc8785

from rofs.errors import ChainError

VERSION = 1

# The `prev` of the first line of a log, and the head of an empty one.
GENESIS = "0" * 64

# One line, newline included. Paths are at most 4 KiB, escaped four times as much; what has more names
# than fit is cut by whoever lists them. The bound is what lets a hostile log be read safely.
MAX_LINE_BYTES = 1 << 20

EVENTS = frozenset(
    {
        "mount",
        "umount",
        "write_blocked",
        "corruption",
        "io_error",
        "worker_exit",
        "dropped",
        "tamper",
        "trust",
        "rotated",
    }
)

# The status of the `rotated` event that a file begins with when it goes on from another, and of the one that
# a file ends with, if it could still be written to.
BEGINS = "begins"
ENDS = "ends"

OPERATIONS = frozenset(
    {
        "open",
        "create",
        "setattr",
        "mkdir",
        "mknod",
        "symlink",
        "link",
        "unlink",
        "rmdir",
        "rename",
        "setxattr",
        "removexattr",
    }
)

# RFC 8785 section 3.2.2.3: numbers are IEEE 754 doubles, exact only up to here.
MAX_INTEGER = 2**53 - 1

_ESCAPED = re.compile(r"\\(?:(\\)|x([0-9A-Fa-f]{2}))?")


def canonical(fields: Mapping[str, object]) -> bytes:
    """Encode an event as canonical JSON, without newline.

    What has no faithful encoding is left out rather than failing an event: a key whose value is None,
    and a key whose value is an integer beyond 2**53 - 1 (which no JSON number holds exactly). The
    same holds inside of nested objects and for items of lists. A lone surrogate in a string is
    written as its escape.

    Args:
        fields: Strings, integers, booleans, and lists and mappings of these.

    Returns:
        UTF-8 bytes.

    Raises:
        TypeError: A value is of another type.
    """
    return rfc8785.dumps(_encodable_mapping(fields))


def chained_line(fields: Mapping[str, object], prev: str) -> tuple[bytes, str]:
    """Encode an event as a line of a log and chain it to the line before.

    Args:
        fields: The event without `prev` and `hash`; see `canonical`.
        prev: The hash of the previous line, `GENESIS` for the first.

    Returns:
        The line with its newline, and its hash: SHA-256, in hex, of the canonical line without the
        key `hash`.
    """
    linked = {**fields, "prev": prev}
    line_hash = hashlib.sha256(canonical(linked)).hexdigest()
    return canonical({**linked, "hash": line_hash}) + b"\n", line_hash


def escape_path(path: bytes) -> str:
    r"""Write a name or path as text, without loss.

    Args:
        path: Bytes, in no particular encoding.

    Returns:
        The text with `\\` for a backslash and `\xHH` for each byte that is not part of valid UTF-8.
    """
    return path.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def unescape_path(text: str) -> bytes:
    """Undo `escape_path`.

    Args:
        text: What `escape_path` returned.

    Returns:
        The bytes it was given.

    Raises:
        ChainError: The text holds a backslash that begins no escape, or a lone surrogate.
    """
    result = b""
    end = 0
    try:
        for match in _ESCAPED.finditer(text):
            result += text[end : match.start()].encode() + _unescaped(match)
            end = match.end()
        return result + text[end:].encode()
    except UnicodeEncodeError as error:
        raise ChainError(f"path {text!a} holds a surrogate, which no event does") from error


def format_time(time_ns: int) -> str:
    """Write a time as RFC 3339 UTC with nanoseconds.

    Args:
        time_ns: Nanoseconds since 1970-01-01T00:00:00Z.

    Returns:
        Such as `2025-01-31T12:00:00.000000001Z`.
    """
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    moment = dt.datetime.fromtimestamp(seconds, dt.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def _unescaped(match: re.Match[str]) -> bytes:
    if match[1]:
        return b"\\"
    if match[2]:
        return bytes.fromhex(match[2])
    raise ChainError(f"path {match.string!a}: expected \\\\ or \\xHH at character {match.start()}")


def _encodable_mapping(fields: Mapping[str, object]) -> dict[str, Any]:
    return {_encodable_text(key): _encodable(value) for key, value in fields.items() if _has_encoding(value)}


def _encodable(value: object) -> Any:
    if isinstance(value, str):
        return _encodable_text(value)
    if isinstance(value, int):
        return value
    if isinstance(value, Mapping):
        return _encodable_mapping(value)
    if isinstance(value, list | tuple):
        return [_encodable(item) for item in value if _has_encoding(item)]
    raise TypeError(f"an event cannot hold {type(value).__name__}: {value!r}")


def _has_encoding(value: object) -> bool:
    return value is not None and not (isinstance(value, int) and abs(value) > MAX_INTEGER)


def _encodable_text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
