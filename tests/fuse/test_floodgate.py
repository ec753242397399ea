# SPDX-License-Identifier: Apache-2.0
"""Which reports are let through: real processes that do the same, become others, or cannot be told."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rofs.fuse.floodgate import Floodgate, Record
from rofs.fuse.messages import Attempt, Delivery, FaultReport, InternalReport, Report

FOREVER_NS = 2**63
SECOND = 1_000_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 1000 * SECOND

    def __call__(self) -> int:
        return self.now


class Gate:
    """A gate with a clock of its own."""

    def __init__(self, proc_fd: int | None, **options: Any) -> None:
        self.clock = Clock()
        self.gate = Floodgate(proc_fd=proc_fd, monotonic_ns=self.clock, time_ns=self.clock, **options)

    def admit(self, report: Report, *, held: bool = True, size_bytes: int = 300) -> Record | None:
        return self.gate.admit(Delivery(report, 1, FOREVER_NS if held else 0), size_bytes)

    def after(self, seconds: float) -> list[Record]:
        self.clock.now += int(seconds * SECOND)
        self.gate.close_windows()
        return self.take()

    def take(self) -> list[Record]:
        records = list(self.gate.ready)
        self.gate.ready.clear()
        for record in records:
            self.gate.recorded(record, 600)
        return records


@pytest.fixture
def proc_fd() -> Iterator[int]:
    fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def process() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as child:
        while b"sleep" not in _comm(child.pid):
            time.sleep(0.001)
        yield child.pid
        child.kill()


def _comm(pid: int) -> bytes:
    with open(f"/proc/{pid}/comm", "rb") as file:
        return file.read()


def attempt(**fields: Any) -> Attempt:
    return Attempt(**{"op": "unlink", "nid": 2, "name": "x", "tid": 0, "uid": 1, "gid": 2, "errno": "EROFS", **fields})


def fault(**fields: Any) -> FaultReport:
    return FaultReport(
        **{"nid": 3, "kind": "mismatch", "level": -1, "block": 7, "expected": "aa", "found": "bb", **fields}
    )


def test_repeats_of_a_process_are_one_record_with_a_count(proc_fd: int, process: int) -> None:
    made = Gate(proc_fd)
    first = made.admit(attempt(tid=process))
    assert first is not None
    assert (first.who["pid"], first.who["comm"], first.count) == (process, "sleep", 0)
    assert [made.admit(attempt(tid=process)) for _ in range(5)] == [None] * 5
    assert made.gate.counted == 5
    (record,) = made.after(1)
    assert (record.who, record.count, record.report) == (first.who, 5, first.report)
    assert record.repeats == {
        "count": 5,
        "first": "1970-01-01T00:16:40.000000000Z",
        "last": "1970-01-01T00:16:40.000000000Z",
    }
    assert made.gate.counted == 0


@pytest.mark.parametrize(
    "other",
    [
        *({"op": "rmdir"}, {"nid": 3}, {"name": "y"}, {"uid": 5}, {"gid": 5}, {"errno": "EIO"}, {"xattr": "user.a"}),
        *({"flags": ("O_RDWR",)}, {"changes": ("mode",)}, {"nid2": 4, "name2": "z"}),
    ],
)
def test_what_is_another_attempt_is_let_through(proc_fd: int, process: int, other: dict[str, Any]) -> None:
    made = Gate(proc_fd)
    assert made.admit(attempt(tid=process))
    assert made.admit(attempt(**{"tid": process, **other}))


def test_process_that_becomes_another_program_is_not_taken_for_the_former(proc_fd: int) -> None:
    """Its id and start time stay what they were."""
    made = Gate(proc_fd)
    words = [sys.executable, "-c", "import os, sys; sys.stdin.read(1); os.execlp('sleep', 'sleep', '60')"]
    with subprocess.Popen(words, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        while os.readlink(f"/proc/{child.pid}/exe") != os.path.realpath(sys.executable):
            time.sleep(0.001)
        first = made.admit(attempt(tid=child.pid))
        child.stdin.write(b"x")
        child.stdin.flush()
        while b"sleep" not in _comm(child.pid):
            time.sleep(0.001)
        second = made.admit(attempt(tid=child.pid))
        child.kill()
    assert first is not None
    assert second is not None
    assert first.who["exe"] != second.who["exe"]


def test_id_that_another_process_has_by_now_is_not_taken_for_the_former(
    proc_fd: int, process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rofs.audit.identity import Glance
    from rofs.fuse import floodgate

    made = Gate(proc_fd)
    monkeypatch.setattr(floodgate, "glance", lambda *_, **__: Glance(1, 2, b"sleep", b"/bin/sleep"))
    assert made.admit(attempt(tid=process))
    assert made.admit(attempt(tid=process)) is None
    monkeypatch.setattr(floodgate, "glance", lambda *_, **__: Glance(99, 2, b"sleep", b"/bin/sleep"))
    assert made.admit(attempt(tid=process))


def test_many_processes_of_one_program_become_one_record_without_their_ids(proc_fd: int) -> None:
    made = Gate(proc_fd)
    let_through = 0
    for _ in range(20):
        with subprocess.Popen(["sleep", "60"]) as child:
            while b"sleep" not in _comm(child.pid):
                time.sleep(0.001)
            let_through += made.admit(attempt(tid=child.pid)) is not None
            child.kill()
    assert let_through == 8
    (record,) = made.after(1)
    assert (record.count, record.report) == (12, attempt(tid=0))
    assert record.who["comm"] == "sleep"
    assert record.who["ppid"] == os.getpid()
    assert record.who.keys() == {"comm", "exe", "ppid"}
    assert record.repeats["detail"] == "by several threads or processes of the same program"


@pytest.mark.parametrize("how", ["no /proc", "not held", "gone"])
def test_callers_that_cannot_be_told_are_counted_by_their_thread_id(proc_fd: int, process: int, how: str) -> None:
    made = Gate(None if how == "no /proc" else proc_fd)
    tid = 2**22 + 5 if how == "gone" else process
    first = made.admit(attempt(tid=tid), held=how != "not held")
    assert first is not None
    assert first.who == {}
    assert made.admit(attempt(tid=tid), held=how != "not held") is None
    assert made.admit(attempt(tid=tid + 1), held=False)
    (record,) = made.after(1)
    assert (record.count, record.who) == (1, {})


def test_different_attempts_beyond_the_limit_are_counted_by_operation_and_user() -> None:
    made = Gate(None)
    passed = sum(made.admit(attempt(name=f"f{n}")) is not None for n in range(10_000))
    assert 1000 < passed < 2000
    assert made.gate.counted == 10_000 - passed
    assert made.after(0.9) == []
    assert made.gate.excess() == []
    assert made.after(0.1) == []
    ((event, fields),) = made.gate.excess()
    assert event == "write_blocked"
    assert (fields["op"], fields["uid"], fields["errno"]) == ("unlink", 1, "EROFS")
    assert fields["count"] == 10_000 - passed
    assert "path" not in fields
    assert made.gate.counted == 0
    assert made.admit(attempt(name="late"))  # a second's worth


def test_what_events_take_is_what_counts() -> None:
    made = Gate(None)
    for number in range(10):
        record = made.admit(attempt(name=f"f{number}"))
        assert record is not None
        made.gate.recorded(record, 100_000)
        if number < 7:
            continue
        break
    assert made.admit(attempt(name="more")) is None


def test_attempts_cannot_keep_a_fault_out_of_the_log() -> None:
    made = Gate(None)
    while made.admit(attempt(name=f"f{made.gate.counted}-{time.monotonic_ns()}")):
        pass
    assert made.admit(fault())
    assert made.gate.admit_io_error()


def test_repeats_beyond_the_limit_are_counted_by_operation_and_user(proc_fd: int, process: int) -> None:
    made = Gate(proc_fd)
    made.admit(attempt(tid=process))
    for _ in range(3):
        made.admit(attempt(tid=process))
    while made.admit(attempt(name=f"f{time.monotonic_ns()}")):
        pass
    counted = made.gate.counted
    made.gate.close_all()
    assert made.take() == []
    assert [fields["count"] for _, fields in made.gate.excess(all_of_it=True)] == [counted]
    assert made.gate.counted == 0


def test_faults_of_one_block_are_one_record_with_a_count() -> None:
    made = Gate(None)
    assert made.admit(fault())
    assert made.admit(fault()) is None
    assert made.admit(fault(nid=4))  # an event names not all files that have the block
    assert made.admit(fault(found="cc"))
    assert made.admit(fault(block=8))
    assert made.admit(fault(level=0))
    assert made.admit(InternalReport(nid=1, detail="KeyError"))
    assert made.admit(InternalReport(nid=1, detail="KeyError")) is None
    assert made.admit(InternalReport(nid=1, detail="other"))
    assert [record.count for record in made.after(1)] == [1, 1]


def test_faults_beyond_the_limit_are_counted() -> None:
    made = Gate(None)
    for number in range(5000):
        made.admit(fault(block=number))
        made.admit(fault(block=number, kind="io"))
    made.gate.admit_io_error()
    counts = dict(made.gate.excess(all_of_it=True))
    assert counts.keys() == {"corruption", "io_error"}
    assert counts["io_error"]["count"] == counts["corruption"]["count"] + 1
    assert "op" not in {key for key, value in counts["corruption"].items() if value is not None}


def test_users_without_end_are_folded() -> None:
    made = Gate(None, attempt_burst_bytes=1)
    for uid in range(5000):
        made.admit(attempt(uid=uid, name=f"f{uid}"))
    found = made.gate.excess(all_of_it=True)
    assert len(found) == 65
    assert sum(fields["count"] for _, fields in found) == 4999
    assert {"uid", "gid", "errno"} & {key for key, value in found[-1][1].items() if value is not None} == set()


def test_long_reports_are_not_kept() -> None:
    made = Gate(None)
    assert made.admit(attempt(name="x" * 9000), size_bytes=9500)
    assert made.admit(attempt(name="x" * 9000), size_bytes=9500)
    assert made.gate.is_idle


def test_gate_is_idle_when_nothing_more_will_come() -> None:
    made = Gate(None)
    made.admit(attempt())
    busy = made.gate.is_idle
    assert made.after(1) == []
    assert [busy, made.gate.is_idle] == [False, True]
