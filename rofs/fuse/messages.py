# SPDX-License-Identifier: Apache-2.0
"""What the processes of a mount say to each other: one JSON object in one datagram.

Workers and the resolver have no privileges and handle untrusted bytes, so what they send is checked
field by field. Names travel as `audit.event.escape_path` writes them. Pure: no sockets here.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final, TypeGuard

from rofs.audit.event import OPERATIONS
from rofs.errors import BlockFault, FormatError

MAX_MESSAGE_BYTES: Final = 128 * 1024  # a few escaped names of 255 bytes, or the paths of one event
_MAX_NUMBER = 1 << 64

WRITE_BLOCKED: Final = "write_blocked"
FAULT: Final = "fault"
INTERNAL: Final = "internal"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A request to change something, refused.

    Attributes:
        op: As in the event.
        nid: The inode it was about, or the directory that `name` stands in.
        name: Escaped; None when the operation knows only the inode.
        nid2: For rename and link: the directory of the new name.
        name2: The new name, escaped.
        flags: Open flags by name.
        changes: Attributes that were to change.
        xattr: Name of the extended attribute, escaped.
        tid: Thread that asked, in the mounter's pid namespace; 0 when not visible there.
        uid: Filesystem uid of the caller.
        gid: Filesystem gid of the caller.
        errno: The answer, by name.
    """

    op: str
    nid: int
    tid: int
    uid: int
    gid: int
    errno: str
    name: str | None = None
    nid2: int | None = None
    name2: str | None = None
    flags: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    xattr: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultReport:
    """A block that did not verify or could not be read.

    Attributes:
        nid: The inode that was being read.
        kind, level, block, expected, found: As in `errors.BlockFault`, digests in hex.
    """

    nid: int
    kind: str
    level: int
    block: int
    expected: str | None
    found: str | None

    @classmethod
    def of(cls, nid: int, fault: BlockFault) -> FaultReport:
        """From the error's own description."""
        return cls(
            nid=nid,
            kind=fault.kind,
            level=fault.level,
            block=fault.block,
            expected=fault.expected.hex() if fault.expected is not None else None,
            found=fault.found.hex() if fault.found is not None else None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InternalReport:
    """A handler failed in a way that nobody foresaw, or the filesystem is malformed.

    Attributes:
        nid: The inode the request was about, None when unknown.
        detail: What happened, one line.
    """

    nid: int | None
    detail: str


Report = Attempt | FaultReport | InternalReport
_KINDS: dict[str, type[Attempt | FaultReport | InternalReport]] = {
    WRITE_BLOCKED: Attempt,
    FAULT: FaultReport,
    INTERNAL: InternalReport,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}
_OPTIONAL_TEXT = frozenset({"name", "name2", "xattr", "expected", "found"})
_OPTIONAL_NUMBERS = frozenset({"nid2"})
_LISTS = frozenset({"flags", "changes"})
_TEXT = frozenset({"errno", "detail", *_OPTIONAL_TEXT})
_CHOICES = {"op": OPERATIONS, "kind": frozenset({"mismatch", "io"})}


def pack_report(report: Report, *, number: int, held_until_ns: int) -> bytes:
    """A report as a datagram.

    Args:
        report: What happened.
        number: Counted on from the report before; comes back in the acknowledgement.
        held_until_ns: Until when, on CLOCK_MONOTONIC, the caller is sure to be held in its system
            call and so is who it was; 0 when it is not held.
    """
    return json.dumps(
        {
            "report": _NAMES[type(report)],
            "number": number,
            "held_until_ns": held_until_ns,
            "fields": asdict(report),
        }
    ).encode()


@dataclass(frozen=True, slots=True)
class Delivery:
    """A report as it arrives; see `pack_report`."""

    report: Report
    number: int
    held_until_ns: int


def parse_report(data: bytes) -> Delivery:
    """Read a worker's datagram.

    Raises:
        FormatError: Not what `pack_report` writes.
    """
    message = _object(data)
    kind = _KINDS.get(str(message.get("report")))
    number, held, fields = (message.get(key) for key in ("number", "held_until_ns", "fields"))
    if kind is None or not isinstance(fields, dict):
        raise FormatError("a worker's message has no known kind or no fields")
    if not _is_number(number) or not _is_number(held):
        raise FormatError("a worker's message has a wrong number")
    for key, value in fields.items():
        if not _field_fits(kind, key, value):
            raise FormatError(f"a worker's message has a wrong field {key[:80]!r}")
    for key in _LISTS & fields.keys():
        fields[key] = tuple(fields[key])
    try:
        return Delivery(kind(**fields), number, held)
    except TypeError as error:
        raise FormatError(f"a worker's message lacks a field: {str(error)[:200]}") from error


def _field_fits(kind: type[object], key: str, value: object) -> bool:
    if key in _CHOICES:
        return isinstance(value, str) and value in _CHOICES[key]
    if key in _TEXT:
        return isinstance(value, str) or (value is None and key in _OPTIONAL_TEXT)
    if key in _LISTS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if key == "level":
        return type(value) is int and -1 <= value < 64
    if key in _OPTIONAL_NUMBERS or (key == "nid" and kind is InternalReport):
        return value is None or _is_number(value)
    return _is_number(value)


def _is_number(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value < _MAX_NUMBER


@dataclass(frozen=True, slots=True)
class PathsQuestion:
    """What the supervisor asks the resolver.

    Attributes:
        nid: An inode.
        level: With `block`: also everything else that lies in that block, as in `BlockFault`.
        block: None to ask for the inode's own paths.
    """

    nid: int
    level: int = -1
    block: int | None = None

    def pack(self) -> bytes:
        """As a datagram."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, data: bytes) -> PathsQuestion:
        """From a datagram of the supervisor, which is trusted."""
        return cls(**_object(data))


@dataclass(frozen=True, slots=True)
class PathsAnswer:
    """What the resolver knows.

    Attributes:
        paths: Escaped.
        offset: Byte of the inode's content where the bad block begins, None when it holds none of it.
    """

    paths: tuple[str, ...]
    offset: int | None = None

    def pack(self) -> bytes:
        """As a datagram; paths that do not fit are left out."""
        paths = list(self.paths)
        while len(data := json.dumps({"paths": paths, "offset": self.offset}).encode()) > MAX_MESSAGE_BYTES:
            paths.pop()
        return data

    @classmethod
    def parse(cls, data: bytes) -> PathsAnswer:
        """From a datagram of the resolver.

        Raises:
            FormatError: Not what `pack` writes.
        """
        message = _object(data)
        paths, offset = message.get("paths"), message.get("offset")
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise FormatError("the resolver's answer has no paths")
        if offset is not None and not _is_number(offset):
            raise FormatError("the resolver's answer has a wrong offset")
        return cls(tuple(paths), offset)


def _object(data: bytes) -> dict[str, Any]:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"a message between processes is not JSON: {error}") from error
    if not isinstance(message, dict):
        raise FormatError("a message between processes is not a JSON object")
    return message
