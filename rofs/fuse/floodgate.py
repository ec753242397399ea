# SPDX-License-Identifier: Apache-2.0
"""Decides which reports become events of their own, and counts the others, so that no flood fills the log.

Repeats of the same are counted (`audit.flood.Collapser`); what is new is held to a number of bytes per
second, attempts and faults each by themselves, so that attempts cannot keep a fault out of the log; what
goes beyond that is counted by operation and user. Everything that is counted comes out as a record with a
count. It writes nothing and looks up no paths.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rofs.audit.event import format_time
from rofs.audit.flood import Collapser, Excess, Repeats, TokenBucket
from rofs.audit.identity import Glance, glance, identify
from rofs.fuse.messages import Attempt, Delivery, FaultReport, Report

# Ten seconds of the worst make less than a megabyte; a thousand different attempts in a burst are all kept.
_ATTEMPT_RATE_BYTES: Final = 16 * 1024
_ATTEMPT_BURST_BYTES: Final = 768 * 1024
_FAULT_RATE_BYTES: Final = 4 * 1024
_FAULT_BURST_BYTES: Final = 128 * 1024
_EXPECTED_BYTES: Final = 512  # of an event, until it is written
# A worker that was taken over could have us keep long texts. Four escaped names of 255 bytes fit.
_LONGEST_COLLAPSED_BYTES: Final = 8 * 1024

_EXCESS = "beyond the bytes per second of the log: counted by operation and user, without paths and processes"
_SEVERAL = "by several threads or processes of the same program"


@dataclass(frozen=True, slots=True)
class Record:
    """What is to be recorded, with its paths.

    Attributes:
        report: What happened; without thread id when it stands for several.
        who: As `audit.identity` tells it; empty when nobody knows.
        repeats: When it stands for repeats: their keys of the event, as `count_fields` gives them.
    """

    report: Report
    who: Mapping[str, int | str]
    repeats: Mapping[str, Any]

    @property
    def count(self) -> int:
        """How many repeats it stands for; 0 when for none but itself."""
        return int(self.repeats.get("count", 0))


@dataclass(frozen=True, slots=True)
class Kind:
    """Under what is counted that goes beyond the limit, in the words of the event."""

    event: str
    op: str | None = None
    errno: str | None = None
    uid: int | None = None
    gid: int | None = None

    def folded(self) -> Kind:
        """Coarser: there are only so many operations, but any number of users."""
        return Kind(self.event, self.op)


@dataclass(frozen=True, slots=True)
class _Sample:
    report: Report
    who: Mapping[str, int | str]


class Floodgate:
    """Which reports become events of their own.

    Args:
        proc_fd: An open directory descriptor of /proc; None when it shows other processes than ours.
        monotonic_ns: The clock of windows and limits.
        time_ns: The clock of events.
        attempt_burst_bytes: How many bytes of attempts may come at once.

    Attributes:
        ready: Repeats that are to be recorded; whoever takes one out has seen to that.
        counted: How many reports are counted and not yet `recorded`.
    """

    def __init__(
        self,
        *,
        proc_fd: int | None,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
        time_ns: Callable[[], int] = time.time_ns,
        attempt_burst_bytes: int = _ATTEMPT_BURST_BYTES,
    ) -> None:
        self._proc_fd = proc_fd
        self._monotonic_ns = monotonic_ns
        self._time_ns = time_ns
        self._collapser: Collapser[_Sample] = Collapser()
        self._excess: Excess[Kind] = Excess(Kind.folded)
        self._attempts = TokenBucket(_ATTEMPT_RATE_BYTES, attempt_burst_bytes)
        self._faults = TokenBucket(_FAULT_RATE_BYTES, _FAULT_BURST_BYTES)
        self.ready: deque[Record] = deque()
        self.counted = 0

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to record, now or later."""
        return not self.ready and self._collapser.is_idle and self._excess.is_idle

    def admit(self, delivery: Delivery, size_bytes: int) -> Record | None:
        """Decide about a report while its caller is held.

        1. Look at who the caller is, cheaply.
        2. Count a repeat.
        3. Count what goes beyond the limit.
        4. Find out all about the caller.

        Args:
            delivery: The report.
            size_bytes: How long it is.

        Returns:
            What is to be recorded now, None when it was counted.
        """
        report = delivery.report
        seen = self._glance(delivery)  # 1.
        what, program, thread = _key_of(report, seen)
        collapses = size_bytes <= _LONGEST_COLLAPSED_BYTES
        time_ns, now_ns = self._time_ns(), self._monotonic_ns()
        if collapses and self._collapser.count(what, program, thread, time_ns):  # 2.
            self.counted += 1
            return None
        if not self._bucket(report).admit(_EXPECTED_BYTES, now_ns):  # 3.
            self._excess.add(kind_of(report), 1, first_ns=time_ns, last_ns=time_ns, now_ns=now_ns)
            self.counted += 1
            return None
        who = self._identify(delivery) if seen is not None else {}  # 4.
        if collapses:
            self._collapser.begin(what, program, thread, _Sample(report, who), now_ns)
        return Record(report, who, {})

    def admit_io_error(self) -> bool:
        """Whether an `io_error` of our own may be written, which others can bring about; else it is counted."""
        now_ns = self._monotonic_ns()
        if self._faults.admit(_EXPECTED_BYTES, now_ns):
            return True
        time_ns = self._time_ns()
        self._excess.add(Kind("io_error"), 1, first_ns=time_ns, last_ns=time_ns, now_ns=now_ns)
        self.counted += 1
        return False

    def recorded(self, record: Record, written_bytes: int) -> None:
        """Something of `ready`, or that `admit` gave, is in the log.

        Args:
            record: What.
            written_bytes: How much that took.
        """
        self.counted -= record.count
        self._bucket(record.report).charge(written_bytes - _EXPECTED_BYTES)

    def close_windows(self) -> None:
        """Make `ready` what is due."""
        self._make_ready(self._collapser.due(self._monotonic_ns()))

    def close_all(self) -> None:
        """Make `ready` all that is counted, but for the excess: when these are recorded there may be more."""
        self._make_ready(self._collapser.rest())

    def excess(self, *, all_of_it: bool = False) -> list[tuple[str, dict[str, Any]]]:
        """What went beyond the limit, as events and their fields, to be written at once.

        Args:
            all_of_it: Whether it is due or not.
        """
        repeats = self._excess.rest() if all_of_it else self._excess.due(self._monotonic_ns())
        self.counted -= sum(each.count for each in repeats)
        return [_excess_event(each) for each in repeats]

    def _glance(self, delivery: Delivery) -> Glance | None:
        report = delivery.report
        if self._proc_fd is None or not isinstance(report, Attempt) or not report.tid:
            return None
        seen = glance(report.tid, proc_fd=self._proc_fd)
        return seen if self._is_held(delivery) else None

    def _identify(self, delivery: Delivery) -> Mapping[str, int | str]:
        """Who the caller is, if it was held in its system call all the time that we looked."""
        report = delivery.report
        if self._proc_fd is None or not isinstance(report, Attempt):
            return {}
        who = identify(report.tid, proc_fd=self._proc_fd)
        return who if self._is_held(delivery) else {}

    def _is_held(self, delivery: Delivery) -> bool:
        return self._monotonic_ns() <= delivery.held_until_ns

    def _bucket(self, report: Report) -> TokenBucket:
        return self._attempts if isinstance(report, Attempt) else self._faults

    def _make_ready(self, repeats: list[Repeats[_Sample]]) -> None:
        for each in repeats:
            record, now_ns = _record_of(each), self._monotonic_ns()
            if self._bucket(record.report).admit(_EXPECTED_BYTES, now_ns):
                self.ready.append(record)
            else:
                kind = kind_of(record.report)
                self._excess.add(kind, each.count, first_ns=each.first_ns, last_ns=each.last_ns, now_ns=now_ns)


def kind_of(report: Report) -> Kind:
    """Under what a report is counted when there are too many."""
    if isinstance(report, Attempt):
        return Kind("write_blocked", report.op, report.errno, report.uid, report.gid)
    return Kind("corruption" if isinstance(report, FaultReport) and report.kind == "mismatch" else "io_error")


def count_fields(repeats: Repeats[Any]) -> dict[str, Any]:
    """The keys `count`, `first` and `last` of an event."""
    first, last = format_time(repeats.first_ns), format_time(repeats.last_ns)
    return {"count": repeats.count, "first": first, "last": last}


def _key_of(report: Report, seen: Glance | None) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """What was done, by which program, by which thread of it.

    A thread that could not be looked at is nobody's: its id may be another's by the next time, but nothing
    is said of it then but that id, and that only as long as it is the same.
    """
    if not isinstance(report, Attempt):
        if isinstance(report, FaultReport):
            # With the file: an event names at most 64 of those that have the block.
            block = (report.level, report.block, report.expected, report.found)
            return ("fault", report.kind, report.nid, *block), (), ()
        return ("internal", report.nid, report.detail), (), ()
    what = (
        *(report.op, report.nid, report.name, report.nid2, report.name2, report.flags, report.changes),
        *(report.xattr, report.uid, report.gid, report.errno),
    )
    if seen is None:
        return what, (), (report.tid,)
    return what, (seen.ppid, seen.comm, seen.exe), (report.tid, seen.start_time)


def _record_of(repeats: Repeats[_Sample]) -> Record:
    report, who = repeats.sample.report, repeats.sample.who
    fields = count_fields(repeats)
    if repeats.several and isinstance(report, Attempt):
        report = dataclasses.replace(report, tid=0)
        who = {key: who[key] for key in ("ppid", "comm", "exe") if key in who}
        fields["detail"] = _SEVERAL
    return Record(report, who, fields)


def _excess_event(repeats: Repeats[Kind]) -> tuple[str, dict[str, Any]]:
    kind = dataclasses.asdict(repeats.sample)
    return kind.pop("event"), {**kind, **count_fields(repeats), "detail": _EXCESS}
