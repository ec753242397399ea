# SPDX-License-Identifier: Apache-2.0
"""Audit events for people: one line each, safe on a terminal whatever is in the log.

It does not check the chain of hashes (`chain` does), so what it shows may have been edited.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from rofs.audit.chain import decode_line, read_lines

# Keys that are shown as NAME=VALUE when present, in this order, behind the fixed part of a line.
_DETAILS = (
    "flags",
    "changes",
    "xattr",
    "errno",
    "count",
    "first",
    "last",
    "nid",
    "offset",
    "level",
    "block",
    "expected",
    "found",
    "status",
    "detail",
)


def read_events(file: BinaryIO) -> Iterator[dict[str, Any]]:
    """Events of a log, one after the other, in bounded memory.

    Args:
        file: Open for reading bytes.

    Yields:
        Each event as it stands there.

    Raises:
        ChainError: A line is torn, too long, or not a JSON object; its number is named.
    """
    for number, line in enumerate(read_lines(file), 1):
        yield decode_line(f"line {number}", line)


def render(event: Mapping[str, Any]) -> str:
    """Describe an event in one line: when, what, where, who, how.

    Args:
        event: As read; any key may be missing or of any type.

    Returns:
        A line without newline, in which every control and other non-printable character is escaped.
    """
    parts = [event.get("time", "-"), event.get("event", "-"), event.get("op"), _where(event)]
    parts.append(_who(event))
    parts += [f"{key}={_plain(event[key])}" for key in _DETAILS if event.get(key) is not None]
    return " ".join(_printable(_plain(part)) for part in parts if part is not None)


def _where(event: Mapping[str, Any]) -> str | None:
    paths = event.get("paths")
    names = list(paths) if isinstance(paths, list) else []
    if event.get("path") is not None:
        names.insert(0, event["path"])
    if not names:
        return None
    where = ", ".join(_plain(name) for name in names)
    return where if event.get("path2") is None else f"{where} -> {_plain(event['path2'])}"


def _who(event: Mapping[str, Any]) -> str | None:
    pid, uid, comm = event.get("pid"), event.get("uid"), event.get("comm")
    if pid is None and uid is None and comm is None:
        return None
    who = f"by {'?' if comm is None else _plain(comm)}[{'?' if pid is None else _plain(pid)}]"
    if comm is None and uid is None:
        who = f"by pid {_plain(pid)}"  # a process of the mount itself
    return who if uid is None else f"{who} uid={_plain(uid)}"


def _plain(value: object) -> str:
    if isinstance(value, list):
        return ",".join(_plain(item) for item in value)
    return str(value)


def _printable(text: str) -> str:
    # Not errors.printable: JSON can hold lone surrogates that no file name has.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
