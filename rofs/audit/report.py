# SPDX-License-Identifier: Apache-2.0
"""Counts what is in logs: who tried what how often, what is corrupt, who tampered, what is not recorded.

Events that stand for many count as many. Takes any values, as a log that was edited can hold them, and checks
no chain. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rofs.audit.event import MAX_INTEGER

# What a report about a hostile log may keep in memory of different names; what comes later is counted together.
MAX_NAMES = 200_000
OTHERS = "(others)"
_HOUR = len("2025-01-31T12")


@dataclass(slots=True)
class Report:
    """Counts.

    Attributes:
        events: Lines that were counted.
        first: Time of the first event, None when there is none.
        last: Time of the last one.
        by_event: How often what happened.
        attempts: Refused attempts to write.
        kernel: How many of these only the kernel saw.
        seen_twice: Records of the kernel that were left out: rofs has recorded the same.
        programs: Attempts by program.
        users: Attempts by user id.
        paths: Attempts by absolute path.
        operations: Attempts by operation.
        hours: Attempts by hour, as `2025-01-31T12`.
        corruption: Corrupt reads by absolute path.
        tamper: Every `tamper` event.
        dropped: Events that are not recorded.
    """

    events: int = 0
    first: str | None = None
    last: str | None = None
    by_event: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    kernel: int = 0
    seen_twice: int = 0
    programs: Counter[str] = field(default_factory=Counter)
    users: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    hours: Counter[str] = field(default_factory=Counter)
    corruption: Counter[str] = field(default_factory=Counter)
    tamper: list[dict[str, str]] = field(default_factory=list)
    dropped: int = 0
    _seen: set[tuple[str, str]] = field(default_factory=set)

    def add(self, event: Mapping[str, Any]) -> None:
        """Count an event of a log."""
        count = _count(event)
        self._note_time(event)
        kind = _text(event.get("event"))
        _add(self.by_event, kind, count)
        if kind == "write_blocked":
            self._add_attempt(event, count)
        elif kind == "corruption":
            for path in _paths(event) or [OTHERS]:
                _add(self.corruption, path, count)
        elif kind == "tamper" and len(self.tamper) < MAX_NAMES:
            path = next(iter(_paths(event)), "-")
            self.tamper.append({"path": path, **{key: _text(event.get(key)) for key in ("time", "status", "detail")}})
        elif kind == "dropped":
            self.dropped += count

    def add_kernel(self, record: Mapping[str, Any]) -> None:
        """Count a record of the kernel's, as `kernel.refusals` gives it, after the logs.

        What rofs has refused itself is in its own log, too.
        """
        if record.get("errno") == "EROFS" and (_text(record.get("path")), _program(record)) in self._seen:
            self.seen_twice += 1
            return
        self._note_time(record)
        self.kernel += 1
        self._add_attempt(record, 1)

    def as_json(self) -> dict[str, Any]:
        """All of it, names in the order of their counts."""
        shown = {
            name: [{"name": key, "count": count} for key, count in top(getattr(self, name))]
            for name in ("programs", "users", "paths", "operations", "corruption")
        }
        return {
            "events": self.events,
            "first": self.first,
            "last": self.last,
            "by_event": dict(sorted(self.by_event.items())),
            "attempts": self.attempts,
            "kernel": self.kernel,
            "seen_twice": self.seen_twice,
            "dropped": self.dropped,
            **shown,
            "hours": [{"name": key, "count": count} for key, count in sorted(self.hours.items())],
            "tamper": self.tamper,
        }

    def _note_time(self, event: Mapping[str, Any]) -> None:
        self.events += 1
        time = event.get("time")
        if isinstance(time, str):
            self.first = time if self.first is None else min(self.first, time)
            self.last = time if self.last is None else max(self.last, time)

    def _add_attempt(self, event: Mapping[str, Any], count: int) -> None:
        self.attempts += count
        program = _program(event)
        _add(self.programs, program, count)
        _add(self.users, _text(event.get("uid")), count)
        _add(self.operations, _text(event.get("op")), count)
        _add(self.hours, _text(event.get("time"))[:_HOUR], count)
        for path in _paths(event) or [OTHERS]:
            _add(self.paths, path, count)
            if len(self._seen) < MAX_NAMES:
                self._seen.add((path, program))


def report_on(events: Iterable[Mapping[str, Any]], since: str | None = None) -> Report:
    """Count the events of logs.

    Args:
        events: As read; of several logs one after the other.
        since: Leave out what was recorded before, in the form of `event.format_time`.
    """
    report = Report()
    for event in events:
        if since is None or _text(event.get("time")) >= since:
            report.add(event)
    return report


def top(counts: Counter[str], number: int | None = None) -> list[tuple[str, int]]:
    """The most frequent names, by count, then by name.

    Args:
        counts: By name.
        number: How many at most; None for all.
    """
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:number]


def _add(counts: Counter[str], name: str, count: int) -> None:
    counts[name if name in counts or len(counts) < MAX_NAMES else OTHERS] += count


def _count(event: Mapping[str, Any]) -> int:
    count = event.get("count", 1)
    return count if type(count) is int and 0 < count <= MAX_INTEGER else 1


def _program(event: Mapping[str, Any]) -> str:
    return _text(event.get("exe") or event.get("comm"))


def _paths(event: Mapping[str, Any]) -> list[str]:
    """Absolute, as far as is known."""
    mount = event.get("mount")
    prefix = mount.rstrip("/") if isinstance(mount, str) else ""
    several = event.get("paths")
    names = [event.get("path"), *(several if isinstance(several, list) else [])]
    return [prefix + name for name in names if isinstance(name, str)]


def _text(value: object) -> str:
    return "-" if value is None else str(value)
