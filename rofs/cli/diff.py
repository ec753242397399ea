# SPDX-License-Identifier: Apache-2.0
"""`rofs diff`: what differs between two trees."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rofs.audit.event import escape_path
from rofs.cli.entries import (
    complaint,
    device_number,
    iso_time,
    mode_digits,
    opened,
    out_json_list,
    shown,
    type_name,
)
from rofs.cli.options import UsageError
from rofs.cli.render import TerminalProgress, out
from rofs.cli.trust_options import add_trust_options, trust_policy
from rofs.errors import printable

if TYPE_CHECKING:
    from rofs.image.diff import Change, Difference
    from rofs.image.problems import Problems
    from rofs.image.progress import Meter
    from rofs.image.sides import Side
    from rofs.trust.verify import TrustPolicy

HELP = """
Compare two images, or an image and a directory: types, modes, owners, times, contents, link targets, device
numbers, xattrs, and which names are hard links of each other. Every byte of an image that is compared is
verified. One line for each entry: + is in B alone, - in A alone, ~ differs, and in what; ? could not be
read. Nothing is printed when they are equal. What an image says of itself (name, version) is not compared.
The exit code is 0 when they are equal, 1 when they differ. The trust options hold for both.

example:
  rofs diff tree-1.raw tree-2.raw --trust keys/rofs.crt
"""
_SIGNS = {"added": "+", "removed": "-", "changed": "~", "unreadable": "?"}
_DIFFERENT = 1
_VALUES: dict[str, Callable[[Any], str]] = {
    "type": type_name,
    "mode": mode_digits,
    "owner": lambda owner: f"{owner[0]}:{owner[1]}",
    "mtime": iso_time,
    "device": device_number,
    "target": escape_path,
    "links": escape_path,
    "xattr": bytes.hex,
}


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("old", metavar="A", help="an image, or a directory")
    parser.add_argument("new", metavar="B", help="an image, or a directory")
    parser.add_argument("--json", action="store_true", help="print the differences as a JSON list")
    add_trust_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the verb."""
    from rofs.image.diff import diff_trees
    from rofs.image.problems import Problems
    from rofs.image.progress import Meter

    if os.path.isdir(arguments.old) and os.path.isdir(arguments.new):
        raise UsageError("two directories: one of A and B must be an image; diff -r compares directories")
    policy = trust_policy(arguments)
    with _side(arguments.old, policy) as (old, old_bytes), _side(arguments.new, policy) as (new, new_bytes):
        meter = Meter(TerminalProgress(), "comparing", max(old_bytes, new_bytes))
        counted = _Counted(meter, Problems())
        differences = counted.all(diff_trees(old, new, progress=meter.add))
        if arguments.json:
            out_json_list(map(_fields, differences))
        else:
            for difference in differences:
                out(_line(difference))
    if counted.problems.count:
        raise complaint(counted.problems, "entries could not be compared; the first:")
    return _DIFFERENT if counted.number else 0


class _Counted:
    """Differences on their way through: how many, and which could not be told."""

    def __init__(self, meter: Meter, problems: Problems) -> None:
        self.number = 0
        self.problems = problems
        self._meter = meter

    def all(self, differences: Iterator[Difference]) -> Iterator[Difference]:
        for difference in differences:
            self._meter.end()  # a bar and lines on one terminal would be in each other's way
            self.number += 1
            if difference.error is not None:
                self.problems.add(difference.error)
            yield difference
        self._meter.end()


@contextlib.contextmanager
def _side(path: str, policy: TrustPolicy) -> Iterator[tuple[Side, int]]:
    """One of the two, and about how many bytes it has."""
    from rofs.image.sides import ImageSide, SourceSide
    from rofs.source.directory import DirectorySource

    if os.path.isdir(path):
        yield SourceSide(DirectorySource(path)), 0
        return
    with opened(path, policy) as image:
        yield ImageSide(image, path), image.device.size_bytes


def _line(difference: Difference) -> str:
    start = f"{_SIGNS[difference.kind]} {shown(difference.path)}"
    if difference.error is not None:
        return f"{start} ({str(difference.error).replace(f': {printable(difference.path)}: ', ': ', 1)})"
    return f"{start} ({', '.join(map(_phrase, difference.changes))})" if difference.changes else start


def _phrase(change: Change) -> str:
    name = f" {shown(change.name)}" if change.name else ""
    if change.what == "content":
        return "content"
    if change.what == "xattr":  # values are binary and long
        kind = "removed" if change.new is None else "added" if change.old is None else "changed"
        return f"xattr{name} {kind}"
    old, new = (_text(change.what, value) for value in (change.old, change.new))
    return f"{change.what} {old} → {new}"


def _text(what: str, value: Any) -> str:
    if isinstance(value, bytes):
        return shown(value) or "-"
    return "-" if value is None else str(_value(what, value))


def _value(what: str, value: Any) -> Any:
    """As it stands in JSON."""
    return value if value is None or what not in _VALUES else _VALUES[what](value)


def _fields(difference: Difference) -> dict[str, Any]:
    fields: dict[str, Any] = {"path": escape_path(difference.path), "kind": difference.kind}
    if difference.error is not None:
        return {**fields, "error": str(difference.error)}
    fields["type"] = type_name(difference.mode)
    if difference.kind == "changed":
        fields["changes"] = [_change_fields(change) for change in difference.changes]
    return fields


def _change_fields(change: Change) -> dict[str, Any]:
    fields: dict[str, Any] = {"what": change.what}
    if change.name:
        fields["name"] = escape_path(change.name)
    if change.what != "content":
        fields |= {"old": _value(change.what, change.old), "new": _value(change.what, change.new)}
    return fields
