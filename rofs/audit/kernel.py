# SPDX-License-Identifier: Apache-2.0
"""Records of the kernel's audit subsystem with the key of our `rules`, as attempts like those in our log.

Takes what `ausearch --key rofs --raw` prints, or an audit.log. Lines of other programs may be among them, and
lines may be cut. Pure; it does not decide which attempts rofs has recorded itself.

Source: the Linux Audit message specification (github.com/linux-audit/audit-documentation, specs/messages and
specs/fields), auditd.conf(5) `log_format`.
"""

from __future__ import annotations

import errno
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rofs.audit.event import escape_path, format_time
from rofs.audit.rules import KEY
from rofs.audit.syscalls import name_of

_RECORD = re.compile(rb"type=(\w+) msg=audit\((\d{1,12})\.(\d{3}):(\d{1,20})\): ?(.*)", re.DOTALL)
_FIELD = re.compile(rb"([\w-]+)=(\"[^\"]*\"|\S*)")
_ENRICHED = b"\x1d"  # behind it, what auditd has looked up: names for people
_UNSET = 4294967295
# The records of one event come close together; between them, those of others.
_OPEN_EVENTS = 1000
_LONGEST_LINE_BYTES = 64 * 1024
_LAST_PATHS = 64
_HEX = re.compile(rb"(?:[0-9A-Fa-f]{2})+")


@dataclass(slots=True)
class _Event:
    time: str
    call: dict[bytes, bytes] = field(default_factory=dict)
    directory: bytes = b"/"
    paths: list[tuple[bytes, bytes]] = field(default_factory=list)  # name and its type


def refusals(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Attempts that the kernel has seen fail.

    Args:
        lines: Of audit records.

    Yields:
        Each as an event has it: `time, event, op, path, path2, errno, pid, ppid, uid, gid, auid, comm, exe`, what is
        not known being absent; `op` is the system call, and paths are absolute.
    """
    events: OrderedDict[tuple[bytes, ...], _Event] = OrderedDict()
    for line in lines:
        match = _RECORD.search(line[:_LONGEST_LINE_BYTES])
        if match is None:
            continue
        kind, seconds, milliseconds, serial, text = match.groups()
        key = seconds, milliseconds, serial
        if key not in events:
            events[key] = _Event(format_time((int(seconds) * 1000 + int(milliseconds)) * 1_000_000))
        if kind == b"EOE":
            yield from _refusal(events.pop(key))
            continue
        _add(events[key], kind, text.partition(_ENRICHED)[0])
        if len(events) > _OPEN_EVENTS:
            yield from _refusal(events.popitem(last=False)[1])
    for event in events.values():
        yield from _refusal(event)


def _add(event: _Event, kind: bytes, text: bytes) -> None:
    fields: dict[bytes, bytes] = dict(_FIELD.findall(text))
    if kind == b"SYSCALL":
        event.call = fields
    elif kind == b"CWD":
        event.directory = _decoded(fields.get(b"cwd")) or b"/"
    elif kind == b"PATH" and len(event.paths) < _LAST_PATHS:
        name = _decoded(fields.get(b"name"))
        if name is not None:
            event.paths.append((name, fields.get(b"nametype", b"")))


def _refusal(event: _Event) -> Iterator[dict[str, Any]]:
    """The event, if our rules have found it and it failed."""
    call = event.call
    number = _number(call.get(b"exit"))
    keys = (_decoded(call.get(b"key")) or b"").split(b"\x01")
    if KEY.encode() not in keys or number is None or number >= 0:
        return
    found = {
        "time": event.time,
        "event": "write_blocked",
        "op": name_of(_plain(call, b"arch"), _plain(call, b"syscall")),
        **_paths(event),
        "errno": errno.errorcode.get(-number, str(-number)),
        "pid": _number(call.get(b"pid")),
        "ppid": _number(call.get(b"ppid")),
        "uid": _number(call.get(b"fsuid", call.get(b"uid"))),
        "gid": _number(call.get(b"fsgid", call.get(b"gid"))),
        "auid": None if (auid := _number(call.get(b"auid"))) == _UNSET else auid,
        "comm": _name(call.get(b"comm")),
        "exe": _name(call.get(b"exe")),
    }
    yield {key: value for key, value in found.items() if value is not None}


def _paths(event: _Event) -> dict[str, str]:
    """What the call was about, and for two names the second; the directory with a slash when the name is not known."""
    absolute = [(os.path.normpath(os.path.join(event.directory, name)), kind) for name, kind in event.paths]
    named = [path for path, kind in absolute if kind != b"PARENT"]
    named = named or [path.rstrip(b"/") + b"/" for path, _ in absolute]
    return dict(zip(("path", "path2"), map(escape_path, named), strict=False))


def _plain(call: dict[bytes, bytes], key: bytes) -> str:
    return call.get(key, b"").decode("ascii", "replace")


def _name(value: bytes | None) -> str | None:
    decoded = _decoded(value)
    return None if decoded is None else escape_path(decoded)


def _decoded(value: bytes | None) -> bytes | None:
    """A string that others have chosen: in quotes, or in hexadecimal when it holds what could confuse."""
    if not value or value == b"(null)":
        return None
    if value.startswith(b'"'):
        return value.strip(b'"')
    return bytes.fromhex(value.decode()) if _HEX.fullmatch(value) else value


def _number(value: bytes | None) -> int | None:
    try:
        return None if value is None else int(value[:20])
    except ValueError:
        return None
