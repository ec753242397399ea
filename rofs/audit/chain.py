# SPDX-License-Identifier: Apache-2.0
"""The chain of hashes through an audit log: reading its lines safely and checking them.

Each line holds the hash of the line before, so an edited, removed, added or reordered line shows by
itself. A tail that was cut off shows only against a head kept elsewhere, as does a log rewritten from
its first line. Pure but for reading the file it is given; it writes and repairs nothing, and does not
judge what the events say.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import rfc8785

from rofs.audit.event import GENESIS, MAX_LINE_BYTES, VERSION
from rofs.errors import ChainError, InputError

_HASH = re.compile(r"[0-9a-f]{64}")

# How much of a foreign value a message repeats.
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class Link:
    """What ties one line of a log to its neighbours.

    Attributes:
        seq: Its number.
        prev: The hash of the line before.
        hash: Its own hash, which has been checked.
    """

    seq: int
    prev: str
    hash: str


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What an intact log is.

    Attributes:
        events: Number of lines.
        head: Hash of the last line, `GENESIS` for an empty log.
    """

    events: int
    head: str


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines of a log, never more than one in memory, and none longer than `MAX_LINE_BYTES`.

    Args:
        file: Open for reading bytes.

    Yields:
        Each line with its newline; the last one without, if the file ends so.

    Raises:
        ChainError: A line is too long for an audit log.
    """
    number = 0
    while line := file.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(line) > MAX_LINE_BYTES:
            raise ChainError(
                f"line {number}: expected at most {MAX_LINE_BYTES} bytes, found more; "
                "this is not an audit log, or it was edited"
            )
        yield line


def verify_chain(lines: Iterable[bytes], head: str | None = None) -> ChainReport:
    """Check a log from its first line to its last.

    1. Each line is complete, canonical JSON, and an event of a known version (`check_line`).
    2. Its hash is that of its content.
    3. Its `prev` is the hash of the line before; 64 zeros for the first.
    4. Its `seq` is that of the line before plus one.
    5. The head kept elsewhere, if given, is the hash of some line: then all up to it is as it was,
       and what follows was added later. 64 zeros are the head of a log before its first event.

    Args:
        lines: As from `read_lines`.
        head: 64 hex digits, or None to leave out step 5.

    Returns:
        What was found.

    Raises:
        ChainError: The first fault, with its line number, expected and found.
        InputError: `head` is not a hash.
    """
    if head is not None:
        head = _parsed_head(head)
    before: Link | None = None
    number = 0
    head_seen = head in {None, GENESIS}
    for number, line in enumerate(lines, 1):
        place = f"line {number}"
        link = check_line(place, line)  # 1. 2.
        _check_order(place, before, link)  # 3. 4.
        head_seen = head_seen or link.hash == head
        before = link
    last_hash = GENESIS if before is None else before.hash
    if not head_seen:  # 5.
        raise ChainError(
            f"no line has the hash {head}, the head kept elsewhere; the log ends after line {number} "
            f"with {last_hash}: its tail was cut, or it was rewritten"
        )
    return ChainReport(number, last_hash)


def check_line(place: str, line: bytes) -> Link:
    """Check one line by itself: complete, canonical, of a known version, its hash right.

    Args:
        place: How messages call it, such as "line 7".
        line: With its newline.

    Returns:
        What its neighbours are compared with.

    Raises:
        ChainError: It is not such a line; expected and found are named.
    """
    event = decode_line(place, line)
    version = event.get("v")
    if type(version) is not int or version != VERSION:  # true equals 1
        raise _fault(place, f"version expected {VERSION}", version)
    if _encoded(event) != line[:-1]:
        raise ChainError(f"{place}: expected canonical JSON (RFC 8785), found another form")
    seq, prev, line_hash = event.get("seq"), event.get("prev"), event.pop("hash", None)
    if type(seq) is not int:
        raise _fault(place, "seq expected a number", seq)
    if not isinstance(prev, str):
        raise _fault(place, "prev expected a hash", prev)
    computed = hashlib.sha256(_encoded(event) or b"").hexdigest()
    if line_hash != computed:
        raise _fault(place, f"hash of its content expected {computed}", line_hash, "it was edited")
    return Link(seq, prev, computed)


def decode_line(place: str, line: bytes) -> dict[str, Any]:
    """Decode one line, without checking the chain.

    Args:
        place: How messages call it, such as "line 7".
        line: With its newline.

    Returns:
        The JSON object.

    Raises:
        ChainError: The line is torn, or not a JSON object in UTF-8.
    """
    if not line.endswith(b"\n"):
        raise ChainError(
            f"{place}: expected a newline at its end, found none after {len(line)} bytes: its "
            "writer was interrupted, or the tail was cut; the next mount that goes on with this log "
            "removes the torn line and notes it"
        )
    try:
        event = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ChainError(f"{place}: expected JSON in UTF-8, found none: {error}") from error
    if not isinstance(event, dict):
        raise _fault(place, "expected a JSON object", event)
    return event


def _check_order(place: str, before: Link | None, link: Link) -> None:
    expected = GENESIS if before is None else before.hash
    if link.prev != expected:
        raise _fault(place, f"prev expected {expected}", link.prev, "lines before it were removed or changed")
    if before is not None and link.seq != before.seq + 1:
        raise _fault(place, f"seq expected {before.seq + 1}", link.seq)


def _parsed_head(head: str) -> str:
    text = head.strip().lower()
    if not _HASH.fullmatch(text):
        raise InputError(f"a head is 64 hex digits, found {ascii(head)[:_SHOWN_CHARACTERS]}")
    return text


def _encoded(event: dict[str, Any]) -> bytes | None:
    """The canonical form, or None when there is none (a number out of range, a surrogate)."""
    try:
        return rfc8785.dumps(event)
    except (ValueError, RecursionError):
        return None


def _fault(place: str, expected: str, found: object, then: str = "") -> ChainError:
    shown = "none" if found is None else ascii(found)[:_SHOWN_CHARACTERS]
    return ChainError(f"{place}: {expected}, found {shown}" + (f": {then}" if then else ""))
