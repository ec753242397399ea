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

from rofs.audit.event import BEGINS, GENESIS, MAX_LINE_BYTES, VERSION
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
        begins_file: Whether it is the event that the second file of a log begins with, and later ones.
    """

    seq: int
    prev: str
    hash: str
    begins_file: bool = False


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What an intact log is.

    Attributes:
        events: Number of lines.
        head: Hash of the last line, `GENESIS` for an empty log.
        after: Hash of the line before the first, which is not here: that file was rotated away. `GENESIS`
            when nothing was before it.
    """

    events: int
    head: str
    after: str = GENESIS


def read_lines(file: BinaryIO, name: str = "") -> Iterator[bytes]:
    """Lines of a log, never more than one in memory, and none longer than `MAX_LINE_BYTES`.

    Args:
        file: Open for reading bytes.
        name: What messages call it.

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
                f"{_place(name, number)}: expected at most {MAX_LINE_BYTES} bytes, found more; "
                "this is not an audit log, or it was edited"
            )
        yield line


def verify_chain(lines: Iterable[bytes], head: str | None = None) -> ChainReport:
    """Check a log that is one file; see `verify_files`."""
    return verify_files([("", lines)], head)


def verify_files(
    files: Iterable[tuple[str, Iterable[bytes]]], head: str | None = None, after: str | None = None
) -> ChainReport:
    """Check a log from its first line to its last, through all its files.

    1. Each line is complete, canonical JSON, and an event of a known version (`check_line`).
    2. Its hash is that of its content.
    3. Its `prev` is the hash of the line before; 64 zeros for the first one there ever was. The first one
       here may also be the `rotated` event that a file begins with: older files are gone.
    4. Its `seq` is that of the line before plus one.
    5. The head kept elsewhere, if given, is the hash of some line: then all up to it is as it was,
       and what follows was added later. 64 zeros are the head of a log before its first event.

    Args:
        files: Oldest first: what messages call it ("" when there is only one), and its lines as from
            `read_lines`.
        head: 64 hex digits, or None to leave out step 5.
        after: The head of the file before the first; None when there is none, or it is not known.

    Returns:
        What was found.

    Raises:
        ChainError: The first fault, with its line number, expected and found.
        InputError: `head` or `after` is not a hash.
    """
    head = None if head is None else parsed_head(head)
    walk = ChainWalk(None if after is None else parsed_head(after))
    head_seen = head in {None, GENESIS}
    place = "line 0"
    for name, lines in files:
        for number, line in enumerate(lines, 1):
            place = _place(name, number)
            head_seen = walk.check(place, line).hash == head or head_seen
    if not head_seen:  # 5.
        raise ChainError(
            f"no line has the hash {head}, the head kept elsewhere; the log ends after {place} "
            f"with {walk.head}: its tail was cut, or it was rewritten"
        )
    return ChainReport(walk.events, walk.head, walk.after or GENESIS)


class ChainWalk:
    """Follows a log line by line, as `verify_files` describes it, steps 1 to 4.

    Args:
        after: Hash that the first line goes on from; None when it is not known.

    Attributes:
        events: How many lines were right.
        after: Hash that the first line went on from, None before it.
        head: Hash of the last line.
    """

    def __init__(self, after: str | None = None) -> None:
        self.events = 0
        self.after = after
        self.head = after or GENESIS
        self._before: Link | None = None

    def check(self, place: str, line: bytes) -> Link:
        """Go on by one line.

        Args:
            place: How messages call it, such as "line 7".
            line: With its newline.

        Raises:
            ChainError: It is not the next line; this stays as it is.
        """
        link = check_line(place, line)  # 1. 2.
        if self.after is None and link.begins_file:
            self.head = link.prev
        _check_order(place, self.head, self._before, link)  # 3. 4.
        self.after = link.prev if self.after is None else self.after
        self.events += 1
        self.head = link.hash
        self._before = link
        return link


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
    return Link(seq, prev, computed, (event.get("event"), event.get("status")) == ("rotated", BEGINS))


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


def _place(name: str, number: int) -> str:
    return f"{name}: line {number}" if name else f"line {number}"


def _check_order(place: str, expected: str, before: Link | None, link: Link) -> None:
    if link.prev != expected:
        raise _fault(place, f"prev expected {expected}", link.prev, "lines before it were removed or changed")
    if before is not None and link.seq != before.seq + 1:
        raise _fault(place, f"seq expected {before.seq + 1}", link.seq)


def parsed_head(head: str) -> str:
    """A hash as somebody wrote it down.

    Raises:
        InputError: It is none.
    """
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
