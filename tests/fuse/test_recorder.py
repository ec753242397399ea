# SPDX-License-Identifier: Apache-2.0
"""What becomes of a report: a real log, real processes to identify, and ends of its sockets to misuse."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from rofs import durable
from rofs.audit import flood
from rofs.audit.chain import read_lines, verify_chain
from rofs.audit.flood import TokenBucket
from rofs.audit.log import AuditLog
from rofs.fuse import recorder, resolver_link
from rofs.fuse.floodgate import Floodgate
from rofs.fuse.messages import (
    MAX_MESSAGE_BYTES,
    Attempt,
    FaultReport,
    InternalReport,
    PathsAnswer,
    PathsQuestion,
    Report,
    pack_report,
)
from rofs.fuse.recorder import Recorder
from rofs.fuse.reporter import Reporter, acknowledgement
from rofs.fuse.shared import MAX_SLOTS, Number, SharedState, Total
from tests.audit.doubles import FullDisk, open_log

BIG = 2**64 - 1
_NUMBERS = itertools.count()
FOREVER_NS = 2**63  # a caller that is held in its system call as long as we look
PATHS = {1: ("/",), 2: ("/dir",), 3: ("/dir/file", "/hard")}


class Worker:
    """What a worker would hold: its end of the line, and its numbers."""

    def __init__(self, shared: SharedState, slot: int = 0) -> None:
        self.socket, self.other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.shared = shared
        self.slot = slot
        self.numbers = shared.slot(slot)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.other.close()

    async def send(self, report: Report | bytes, *, lost: int = 0) -> None:
        """Send a report, after some that could not be sent."""
        number = self.numbers[Number.REPORTED] + lost + (not isinstance(report, bytes)) & BIG
        data = report if isinstance(report, bytes) else pack_report(report, number=number, held_until_ns=FOREVER_NS)
        while True:
            try:
                self.socket.send(data)
            except BlockingIOError:
                await trio.sleep(0.001)
            else:
                break
        self.numbers[Number.REPORTED] = number

    async def report(self, report: Report, *, lost: int = 0) -> None:
        """Send a report and wait for its acknowledgement."""
        await self.send(report, lost=lost)
        await trio.lowlevel.wait_readable(self.socket)
        assert self.socket.recv(8) == acknowledgement(self.numbers[Number.REPORTED])


class Recording:
    """A recorder, a worker, and what others would hold of it."""

    def __init__(self, path: Path, log: AuditLog, proc_fd: int, worker: Worker, ends: ExitStack) -> None:
        self.path = path
        self.log = log
        self.shared = worker.shared
        self.worker = worker
        self._ends = ends
        gate = Floodgate(proc_fd=proc_fd, attempt_burst_bytes=1 << 30)  # which stands open
        self.recorder = Recorder(log, self.shared, proc_fd=proc_fd, gate=gate)
        self.introduce(worker)
        self.resolver = self.connect_resolver()
        self.questions: list[PathsQuestion] = []
        self.ended = trio.Event()
        self.running = trio.CancelScope()

    def introduce(self, worker: Worker) -> None:
        """As the keeper does it, who keeps its own copy of the line."""
        self.recorder.add_worker(worker.slot, self._ends.enter_context(worker.other.dup()))

    def connect_resolver(self) -> socket.socket:
        """Returns the resolver's end."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.recorder.set_resolver(self._ends.enter_context(ours))
        return self._ends.enter_context(theirs)

    async def run(self) -> None:
        with self.running:
            await self.recorder.run()
        self.ended.set()

    async def resolve(self) -> None:
        connection = trio.socket.from_stdlib_socket(self.resolver)
        while data := await connection.recv(MAX_MESSAGE_BYTES):
            question = PathsQuestion.parse(data)
            self.questions.append(question)
            offset = None if question.block is None else 4096
            await connection.send(PathsAnswer(PATHS.get(question.nid, ()), offset).pack())

    async def recorded(self, count: int) -> None:
        """Wait until there are as many events, and nothing is being worked at."""
        await until(lambda: self.log.seq == count and not self.recorder._recording)

    async def taken(self) -> None:
        """Wait until the recorder has read all that was sent."""
        await until(lambda: not _unread(self.worker.other))

    def events(self) -> list[dict[str, Any]]:
        with self.path.open("rb") as file:
            verify_chain(read_lines(file))
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events() if event["event"] == name]

    @property
    def counts(self) -> tuple[int, int]:
        """Blocked writes and corrupt blocks."""
        return self.shared.get(Total.BLOCKED_WRITES), self.shared.get(Total.CORRUPTION)

    async def end(self) -> list[dict[str, Any]]:
        """The worker ends and all is recorded; returns what."""
        self.recorder.end()
        self.worker.__exit__()
        await self.ended.wait()
        return self.events()


def _unread(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - a file, or the other end of a socket
            await trio.sleep(0.001)


@asynccontextmanager
async def recording(
    directory: Path, *, resolver: bool = True, worker: Worker | None = None
) -> AsyncIterator[Recording]:
    """A recorder that runs; with a worker that lives already, it is a successor."""
    proc_fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    shared = SharedState() if worker is None else worker.shared
    try:
        with open_log(directory / "log") as log, ExitStack() as ends, trio.fail_after(30):
            made = Recording(directory / "log", log, proc_fd, worker or ends.enter_context(Worker(shared)), ends)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.run)
                if resolver:
                    nursery.start_soon(made.resolve)
                yield made
                nursery.cancel_scope.cancel()
    finally:
        os.close(proc_fd)
        if worker is None:
            os.close(shared.fd)


@pytest.fixture
def process() -> Iterator[int]:
    """Somebody who tries to write."""
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child.pid
        child.kill()


def attempt(**fields: Any) -> Attempt:
    """One that is like no other, unless it has a name: repeats are counted."""
    fields.setdefault("name", f"x{next(_NUMBERS)}")
    return Attempt(**{"op": "unlink", "nid": 2, "tid": 0, "uid": 1, "gid": 2, "errno": "EROFS", **fields})


# Attempts


async def test_attempt_has_who_what_and_where(tmp_path: Path, process: int) -> None:
    async with recording(tmp_path) as made:
        await made.worker.report(attempt(tid=process, name="x"))
        (event,) = made.events()
    assert (event["event"], event["op"], event["path"], event["errno"]) == (
        "write_blocked",
        "unlink",
        "/dir/x",
        "EROFS",
    )
    assert (event["pid"], event["tid"], event["ppid"]) == (process, process, os.getpid())
    assert (event["comm"], event["uid"], event["gid"]) == ("sleep", 1, 2)
    assert event["exe"].endswith(("sleep", "coreutils", "busybox"))
    assert "nid" not in event


async def test_attempt_on_an_inode_with_two_names(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        await made.worker.report(attempt(op="open", nid=3, name=None, flags=("O_RDWR",)))
        (event,) = made.events()
    assert (event["paths"], event["nid"], event["flags"]) == (["/dir/file", "/hard"], 3, ["O_RDWR"])
    assert "tid" not in event
    assert "pid" not in event


@pytest.mark.parametrize(("nid2", "path2", "asked"), [(2, "/dir/y", 1), (1, "/y", 2)])
async def test_rename_asks_for_the_second_directory_only_if_it_is_another(
    tmp_path: Path, nid2: int, path2: str, asked: int
) -> None:
    async with recording(tmp_path) as made:
        await made.worker.report(attempt(op="rename", name="x", nid2=nid2, name2="y"))
        (event,) = made.events()
    assert (event["path"], event["path2"]) == ("/dir/x", path2)
    assert len(made.questions) == asked


async def test_process_that_is_gone_leaves_what_the_request_said(tmp_path: Path) -> None:
    child = await trio.run_process(["sh", "-c", "echo $$"], capture_stdout=True)
    pid = int(child.stdout)
    async with recording(tmp_path) as made:
        await made.worker.report(attempt(tid=pid))
        (event,) = made.events()
    assert (event["tid"], event["uid"]) == (pid, 1)
    assert "comm" not in event


async def test_who_is_left_out_when_the_caller_was_not_held(tmp_path: Path, process: int) -> None:
    """It may be gone, or have become another program, before anybody looked."""
    async with recording(tmp_path) as made:
        for number, held_until_ns in enumerate((0, time.monotonic_ns() - 1), 1):
            made.worker.socket.send(pack_report(attempt(tid=process), number=number, held_until_ns=held_until_ns))
        await until(lambda: made.log.seq == 2)
        for event in await made.end():
            assert event["tid"] == process
            assert not {"pid", "comm", "exe", "ppid"} & event.keys()


async def test_a_slow_resolver_does_not_keep_callers_from_being_identified(tmp_path: Path, process: int) -> None:
    async with recording(tmp_path, resolver=False) as made:
        for number in range(1, 4):
            await made.worker.send(attempt(tid=process))
            await until(lambda: _unread(made.worker.socket))
            assert made.worker.socket.recv(8) == acknowledgement(number)
        assert made.log.seq == 0  # nothing has its paths yet
        made.resolver.close()  # the resolver gives up
        await until(lambda: made.log.seq == 4)
        events = [event for event in await made.end() if event["event"] == "write_blocked"]
        assert [event["pid"] for event in events] == [process] * 3


async def test_without_paths_an_event_still_says_which_name(tmp_path: Path) -> None:
    async with recording(tmp_path, resolver=False) as made:
        made.resolver.close()
        await made.worker.report(attempt(name="secret", nid=9))
        event = (await made.end())[-1]
        assert (event["nid"], event["detail"]) == (9, "path unknown: name secret in the directory with nid 9")
        assert "path" not in event


async def test_flood_is_recorded_to_the_last(tmp_path: Path) -> None:
    def flood() -> None:
        made.worker.socket.setblocking(True)
        # A worker that has all the time it needs.
        reporter = Reporter(made.worker.socket, made.worker.numbers, clock=lambda: 0.0)
        for number in range(1000):
            reporter.report(attempt(name=f"f{number}"))

    async with recording(tmp_path) as made:
        await trio.to_thread.run_sync(flood)
        events = await made.end()
    assert [event.get("path") for event in events] == [f"/dir/f{number}" for number in range(1000)]
    assert made.counts == (1000, 0)


async def test_flood_whose_acknowledgements_nobody_reads_is_recorded_all_the_same(tmp_path: Path) -> None:
    """More than a socket holds: the supervisor must not wait for a worker that does not wait for it."""
    async with recording(tmp_path) as made:
        for number in range(2000):
            await made.worker.send(attempt(name=f"f{number}"))
        await until(lambda: made.log.seq == 2000)
    assert made.counts[0] == 2000


async def test_worker_that_dies_with_acknowledgements_unread_loses_nothing(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        for number in range(50):
            await made.worker.send(attempt(name=f"f{number}"))
        await until(lambda: made.log.seq == 50)
        assert made.worker.socket.recv(8) in map(acknowledgement, range(1, 51))  # 49 are left
        assert [event["event"] for event in await made.end()] == ["write_blocked"] * 50


# What is lost


async def test_more_than_may_wait_are_left_in_their_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_MAX_WAITING_REPORTS", 10)
    async with recording(tmp_path, resolver=False) as made, trio.open_nursery() as nursery:
        for number in range(100):
            await made.worker.send(attempt(name=f"f{number}"))
        await trio.testing.wait_all_tasks_blocked()
        assert _unread(made.worker.other)
        nursery.start_soon(made.resolve)
        events = await made.end()
        nursery.cancel_scope.cancel()
    assert [event["path"] for event in events] == [f"/dir/f{number}" for number in range(100)]
    assert made.log.dropped == 0


async def test_what_the_worker_could_not_send_is_recorded(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        await made.worker.report(attempt(), lost=17)
        dropped, blocked = made.events()
    assert (dropped["event"], dropped["count"]) == ("dropped", 17)
    assert blocked["event"] == "write_blocked"
    assert made.log.dropped == 17


async def test_what_the_worker_could_not_send_is_not_lost_again_on_a_full_disk(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        with durable.using(FullDisk()):
            await made.worker.report(attempt(name="lost"), lost=500)
        await made.worker.report(attempt(name="kept"))
        dropped, kept = made.events()
    assert (dropped["event"], dropped["count"], kept["path"]) == ("dropped", 501, "/dir/kept")


@pytest.mark.parametrize("sent", [0, 1, 5])
async def test_what_a_worker_could_not_send_before_it_ended_is_counted_once(tmp_path: Path, sent: int) -> None:
    async with recording(tmp_path) as made:
        for _ in range(sent):
            await made.worker.report(attempt())
        made.worker.numbers[Number.REPORTED] += 3
        await made.end()
        made.recorder.drop_rest()
        made.recorder.drop_rest()
        assert [event["count"] for event in made.named("dropped")] == [3]
        assert len(made.named("write_blocked")) == sent
    assert made.log.dropped == 3


async def test_what_a_worker_could_not_send_before_it_ended_is_counted_when_the_next_one_comes(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        await made.worker.report(attempt())
        made.worker.numbers[Number.REPORTED] += 3
        made.worker.__exit__()
        with Worker(made.shared) as successor:
            made.introduce(successor)
            await until(lambda: made.named("dropped"))
            await successor.report(attempt())
            made.recorder.drop_rest()
        assert [event["event"] for event in made.events()] == ["write_blocked", "dropped", "write_blocked"]
    assert made.log.dropped == 3


async def test_reports_of_the_next_worker_are_not_taken_for_losses_of_the_one_before(tmp_path: Path) -> None:
    """It counts in the same slot, and may do so before anybody has told us of it."""
    async with recording(tmp_path) as made:
        await made.worker.report(attempt())
        with Worker(made.shared) as successor:
            await successor.send(attempt())
            made.worker.__exit__()
            await trio.testing.wait_all_tasks_blocked()
            made.introduce(successor)
            await made.recorded(2)
            made.recorder.drop_rest()
        assert [event["event"] for event in made.events()] == ["write_blocked"] * 2


async def test_what_is_not_recorded_at_the_end_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_MAX_WAITING_REPORTS", 10)
    async with recording(tmp_path, resolver=False) as made:
        await made.worker.send(attempt(), lost=4)
        for _ in range(20):  # one in work, 10 that wait for it, one that waits for room, and more
            await made.worker.send(attempt())
        await trio.testing.wait_all_tasks_blocked()
        made.running.cancel()
        await made.ended.wait()
        for _ in range(3):
            await made.worker.send(attempt(), lost=2)
        await made.worker.send(b"garbage")
        made.recorder.drop_rest()
        made.recorder.drop_rest()  # counts nothing twice
        before, ended = made.named("dropped")
        assert made.named("write_blocked") == []
    assert (before["count"], ended["count"]) == (4, 21 + 3 + 3 * 2)
    assert made.log.dropped == 4 + 21 + 3 + 3 * 2


async def test_what_no_supervisor_ever_took_is_counted(tmp_path: Path) -> None:
    """Of a worker that ended while there was none."""
    async with recording(tmp_path) as made:
        made.shared.slot(MAX_SLOTS - 1)[Number.REPORTED] = 5
        await made.end()
        made.recorder.drop_rest()
        assert [event["count"] for event in made.named("dropped")] == [5]


async def test_nothing_is_counted_at_the_end_when_all_was_recorded(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        await made.worker.report(attempt())
        await made.end()
        made.recorder.drop_rest()
        assert len(made.events()) == 1
    assert made.log.dropped == 0


# A supervisor that follows another


@pytest.fixture
def worker(shared: SharedState) -> Iterator[Worker]:
    """One that lives longer than its supervisor."""
    with Worker(shared) as worker:
        yield worker


async def test_successor_counts_what_its_predecessor_took_and_did_not_record(tmp_path: Path, worker: Worker) -> None:
    async with recording(tmp_path, worker=worker) as made:
        await worker.report(attempt(name="recorded"))
    async with recording(tmp_path, resolver=False, worker=worker) as made:
        for _ in range(3):
            await worker.send(attempt())
        await made.taken()
    await worker.send(attempt(name="waits"), lost=2)
    async with recording(tmp_path, worker=worker) as made:
        await made.recorded(3)
        made.recorder.drop_rest()
        first, dropped, second = made.events()
    assert (first["path"], second["path"]) == ("/dir/recorded", "/dir/waits")
    assert dropped["count"] == made.log.dropped == 3 + 2


async def test_successor_counts_what_was_lost_at_once(tmp_path: Path, worker: Worker) -> None:
    """The worker may never report anything again."""
    async with recording(tmp_path, resolver=False, worker=worker) as made:
        await worker.send(attempt())
        await made.taken()
    async with recording(tmp_path, worker=worker) as made:
        await until(made.events)
        await worker.report(attempt())
        assert [event["event"] for event in made.events()] == ["dropped", "write_blocked"]


async def test_successor_does_not_count_again_what_its_predecessor_did(tmp_path: Path, worker: Worker) -> None:
    async with recording(tmp_path, worker=worker) as made:
        await worker.report(attempt(), lost=2)
        worker.numbers[Number.REPORTED] += 3
        await made.end()
        made.recorder.drop_rest()
    with Worker(worker.shared) as successor:
        async with recording(tmp_path, worker=successor) as made:
            await successor.report(attempt())
            assert made.log.dropped == 0
            assert [event["count"] for event in made.named("dropped")] == [2, 3]


async def test_nothing_is_lost_between_a_supervisor_that_stops_and_its_successor(
    tmp_path: Path, worker: Worker
) -> None:
    """Neither what it had taken, nor what comes at the same moment, nor what waits then."""
    number = 0
    for _ in range(10):
        async with recording(tmp_path, worker=worker) as made:
            for _ in range(3):
                await worker.send(attempt(name=f"f{number}"))
                number += 1
            await trio.testing.wait_all_tasks_blocked()
            await worker.send(attempt(name=f"f{number}"))
            number += 1
            made.recorder.stop()
            await made.ended.wait()
            await worker.send(attempt(name=f"f{number}"))
            number += 1
    async with recording(tmp_path, worker=worker) as made:
        await until(lambda: made.log.seq == number)
        assert [event["path"] for event in made.events()] == [f"/dir/f{n}" for n in range(number)]


async def test_reports_of_the_next_worker_in_a_slot_wait_for_those_of_the_one_before(tmp_path: Path) -> None:
    """Else a report that still waits would be taken for lost."""
    async with recording(tmp_path) as made:
        await made.worker.report(attempt(name="f0"))
        with Worker(made.shared) as successor:
            made.introduce(successor)
            await made.worker.send(attempt(name="f1"))
            await successor.send(attempt(name="f2"))
            await until(lambda: made.log.seq == 2)
            await trio.testing.wait_all_tasks_blocked()
            assert [event["path"] for event in made.events()] == ["/dir/f0", "/dir/f1"]
            made.worker.__exit__()
            await until(lambda: made.log.seq == 3)
            assert made.events()[-1]["path"] == "/dir/f2"
    assert made.log.dropped == 0


async def test_workers_in_different_slots_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        with Worker(made.shared, 5) as other:
            made.introduce(other)
            await other.report(attempt(name="theirs"))
            await made.worker.report(attempt(name="ours"))
            assert [event["path"] for event in made.events()] == ["/dir/theirs", "/dir/ours"]


# A worker that was taken over: it may write anything into the shared memory


@pytest.mark.parametrize("number", [2**40, 2**53, 2**63, BIG])
async def test_absurd_count_of_reports_does_not_break_the_log(tmp_path: Path, number: int) -> None:
    async with recording(tmp_path) as made:
        await made.worker.report(attempt(name="good"))
        made.worker.numbers[Number.REPORTED] = number
        await made.end()
        made.recorder.drop_rest()
        assert made.recorder.write("umount")
        good, dropped, umount = made.events()
    assert (good["path"], dropped["event"], umount["event"]) == ("/dir/good", "dropped", "umount")
    assert dropped["count"] == min(number - 1, 2**40)


@pytest.mark.parametrize("index", Number)
async def test_absurd_numbers_of_a_worker_cost_no_report_of_another(tmp_path: Path, index: Number) -> None:
    async with recording(tmp_path) as made:
        made.worker.numbers[index] = BIG
        with Worker(made.shared, 1) as other:
            made.introduce(other)
            await other.report(attempt())
            await made.worker.send(attempt())
            await other.report(attempt())
        await made.end()
        made.recorder.drop_rest()
        assert len(made.named("write_blocked")) >= 2


@pytest.mark.parametrize("total", Total)
async def test_absurd_totals_break_nothing(tmp_path: Path, total: Total) -> None:
    async with recording(tmp_path) as made:
        made.shared.add(total, BIG - made.shared.get(total))
        await made.worker.report(attempt())
        await made.worker.report(FaultReport(nid=3, kind="mismatch", level=-1, block=7, expected="aa", found="bb"))
        assert len(made.events()) == 2


async def test_absurd_number_of_a_report_costs_only_the_count(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        made.worker.socket.send(pack_report(attempt(), number=BIG, held_until_ns=FOREVER_NS))
        await until(lambda: made.log.seq == 2)
        made.worker.numbers[Number.REPORTED] = 0
        await made.worker.send(attempt())
        await until(lambda: made.log.seq == 3)
        await made.end()
        made.recorder.drop_rest()
        dropped, *blocked = made.events()
    assert dropped["count"] == 2**40
    assert [event["event"] for event in blocked] == ["write_blocked"] * 2


async def test_worker_that_talks_without_end_does_not_hold_up_the_end(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        made.running.cancel()
        await made.ended.wait()
        for _ in range(5):
            await made.worker.send(attempt())
        made.recorder.drop_rest()
    assert made.log.dropped == 5


# Faults


async def test_corruption_has_paths_offset_and_both_digests(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        await made.worker.report(FaultReport(nid=3, kind="mismatch", level=-1, block=7, expected="aa", found="bb"))
        (event,) = made.events()
    assert (event["event"], event["paths"], event["offset"]) == ("corruption", ["/dir/file", "/hard"], 4096)
    assert (event["block"], event["level"], event["expected"], event["found"]) == (7, -1, "aa", "bb")
    assert made.questions == [PathsQuestion(3, -1, 7)]
    assert made.counts == (0, 1)


async def test_failures_of_a_worker_are_io_errors(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        await made.worker.report(FaultReport(nid=3, kind="io", level=0, block=7, expected=None, found=None))
        await made.worker.report(InternalReport(nid=2, detail="read: KeyError"))
        await made.worker.report(InternalReport(nid=None, detail="read: KeyError"))
        first, second, third = made.events()
    assert {event["event"] for event in (first, second, third)} == {"io_error"}
    assert (second["path"], second["detail"], third["detail"]) == ("/dir", "read: KeyError", "read: KeyError")
    assert made.counts[1] == 0


# Floods


async def test_repeats_are_recorded_at_the_end_with_their_paths(tmp_path: Path, process: int) -> None:
    async with recording(tmp_path) as made:
        for _ in range(100):
            await made.worker.report(attempt(tid=process, name="x"))
        assert made.counts == (100, 0)  # at once
        assert made.shared.get(Total.COUNTED) == 99
        first, counted = await made.end()
        assert made.shared.get(Total.COUNTED) == 0
    assert (first["path"], first["pid"]) == (counted["path"], counted["pid"]) == ("/dir/x", process)
    assert (counted["count"], "count" in first) == (99, False)
    assert first["time"] <= counted["time"]
    assert {"first", "last"} <= counted.keys()
    assert made.log.dropped == 0


async def test_repeats_are_recorded_when_their_window_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_WINDOW_SECONDS", 0.01)
    monkeypatch.setattr(flood, "FIRST_WINDOW_NS", 10_000_000)
    async with recording(tmp_path) as made:
        for _ in range(10):
            await made.worker.report(attempt(name="x"))
        await until(lambda: sum(event.get("count", 1) for event in made.events()) == 10)
        await made.worker.report(attempt(name="y"))
        await until(lambda: made.recorder._gate.is_idle)
        assert sum(event.get("count", 1) for event in await made.end()) == 11


async def test_attempts_beyond_the_limit_are_counted_to_the_last(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        made.recorder._gate._attempts = TokenBucket(1, 2000)
        for _ in range(100):
            await made.worker.report(attempt())
        events = await made.end()
        assert made.counts == (100, 0)
    assert sum(event.get("count", 1) for event in events) == 100
    assert (events[-1]["op"], events[-1]["uid"], "path" in events[-1]) == ("unlink", 1, False)
    assert len(events) < 10


async def test_corrupt_block_that_is_read_again_is_counted(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        for _ in range(3):
            await made.worker.report(FaultReport(nid=3, kind="mismatch", level=-1, block=7, expected="aa", found="bb"))
        assert made.counts == (0, 3)
        first, counted = await made.end()
    assert (first["block"], counted["block"], counted["count"]) == (7, 7, 2)
    assert first["paths"] == counted["paths"]


async def test_garbage_without_end_does_not_fill_the_log(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        for number in range(2000):
            await made.worker.send(b"garbage %d" % number)
        await made.taken()
        events = await made.end()
    assert sum(event.get("count", 1) for event in events) == 2000
    assert len(events) < 1000


async def test_repeats_that_a_supervisor_had_counted_when_it_died_are_told_by_its_successor(
    tmp_path: Path, worker: Worker
) -> None:
    async with recording(tmp_path, worker=worker):
        for _ in range(10):
            await worker.report(attempt(name="x"))
    async with recording(tmp_path, worker=worker) as made:
        await worker.report(attempt(name="x"))
        await until(lambda: len(made.events()) == 3)
        first, dropped, again = made.events()
    assert (first["path"], again["path"]) == ("/dir/x", "/dir/x")
    assert (dropped["count"], made.log.dropped) == (9, 9)
    assert dropped["detail"] == "the supervisor that had counted them as repeats is gone"


async def test_supervisor_that_stops_records_what_it_has_counted(tmp_path: Path, worker: Worker) -> None:
    async with recording(tmp_path, worker=worker) as made:
        for _ in range(10):
            await worker.report(attempt(name="x"))
        made.recorder.stop()
        await made.ended.wait()
        assert [event.get("count") for event in made.events()] == [None, 9]
        assert worker.shared.get(Total.COUNTED) == 0


async def test_what_is_counted_when_time_is_up_is_dropped(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        for _ in range(10):
            await made.worker.report(attempt(name="x"))
        made.running.cancel()
        await made.ended.wait()
        made.recorder.drop_rest()
        made.recorder.drop_rest()
        assert [event["count"] for event in made.named("dropped")] == [9]


async def test_counted_repeats_that_do_not_fit_on_the_disk_are_dropped_with_their_number(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        for _ in range(10):
            await made.worker.report(attempt(name="x"))
        with durable.using(FullDisk()):
            await made.end()
        made.recorder.write("umount")
        assert [event["count"] for event in made.named("dropped")] == [9]


async def test_flood_that_is_counted_costs_the_resolver_nothing(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        for _ in range(50):
            await made.worker.report(attempt(name="x"))
        assert len(made.questions) == 1
        await made.end()
        assert len(made.questions) == 2


# Processes that misbehave

GARBAGE = [
    b"garbage",
    b"[]",
    b"{}",
    b"\xff" * 1000,
    b"[" * 100_000,
    pack_report(attempt(), number=1, held_until_ns=FOREVER_NS).replace(b'"unlink"', b'"dance"'),
    pack_report(attempt(), number=1, held_until_ns=FOREVER_NS).replace(b'"nid": 2,', b'"nid": -2,'),
    pack_report(attempt(), number=1, held_until_ns=FOREVER_NS) + b"x" * 200_000,
]


async def test_garbage_of_a_worker_is_recorded_and_the_next_report_too(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        made.worker.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for data in GARBAGE:
            await made.worker.send(data)
        await made.worker.report(attempt())
        *events, last = made.events()
    assert [event["event"] for event in events] == ["io_error"] * len(GARBAGE)
    assert all(event["detail"] for event in events)
    assert last["event"] == "write_blocked"


async def test_hostile_numbers_and_texts_are_recorded_as_far_as_they_go(tmp_path: Path) -> None:
    big = BIG
    async with recording(tmp_path) as made:
        await made.worker.report(
            attempt(nid=big, tid=big, uid=big, gid=big, name="\ud800\x1b[31m\n", xattr="\udcff", errno="\ud800")
        )
        await made.worker.report(
            FaultReport(nid=big, kind="io", level=63, block=big, expected="\ud800", found="x" * 50_000)
        )
        await made.worker.report(InternalReport(nid=big, detail="\x00" * 1000))
        assert len(made.events()) == 3


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"garbage", "a message between processes is not JSON"),
        (b"{}", "the resolver's answer has no paths"),
        (b'{"paths": [1]}', "the resolver's answer has no paths"),
        (b"", "its process is gone"),
        (None, "Broken pipe"),
    ],
)
async def test_resolver_that_fails_costs_the_paths_and_is_recorded_once(
    tmp_path: Path, answer: bytes | None, why: str
) -> None:
    async with recording(tmp_path, resolver=False) as made:
        if answer is None:
            made.resolver.close()
        elif not answer:
            made.resolver.shutdown(socket.SHUT_WR)
        else:
            made.resolver.send(answer)
        for _ in range(3):
            await made.worker.report(attempt())
        failure, *blocked = made.events()
    assert failure["event"] == "io_error"
    assert failure["detail"].startswith(f"resolver: {why}")
    assert failure["detail"].endswith("; events go on without paths")
    assert [event["event"] for event in blocked] == ["write_blocked"] * 3
    assert not any("path" in event or "paths" in event for event in blocked)


async def test_resolver_that_is_silent_for_too_long_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver_link, "_RESOLVER_SECONDS", 0.05)
    async with recording(tmp_path, resolver=False) as made:
        await made.worker.report(attempt())
        with pytest.raises(BrokenPipeError):  # it would be taken for the answer to the next question
            made.resolver.send(PathsAnswer(("/late",)).pack())
        await made.worker.report(attempt())
        assert not any("path" in event for event in made.events())
        (failure,) = made.named("io_error")
    assert failure["detail"] == "resolver: no answer within 0.05 s; events go on without paths"


async def test_next_resolver_is_asked_when_one_has_failed(tmp_path: Path) -> None:
    async with recording(tmp_path, resolver=False) as made:
        made.resolver.close()
        await made.worker.report(attempt())
        made.resolver = made.connect_resolver()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.resolve)
            await made.worker.report(attempt())
            nursery.cancel_scope.cancel()
        _, without, with_path = made.events()
    assert "path" not in without
    assert with_path["path"].startswith("/dir/x")


async def test_who_is_asked_is_replaced_while_it_thinks(tmp_path: Path) -> None:
    """The keeper ends one that may still be at an answer for a supervisor that died."""
    async with recording(tmp_path, resolver=False) as made:
        await made.worker.send(attempt())
        await trio.testing.wait_all_tasks_blocked()
        made.resolver = made.connect_resolver()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.resolve)
            await until(made.events)
            nursery.cancel_scope.cancel()
        (event,) = made.events()
    assert event["path"].startswith("/dir/x")


# Durability


class FlakyMedium(durable.Calls):
    """Counts syncs, of which the first ones fail."""

    def __init__(self, failing: int) -> None:
        self.failing = failing
        self.syncs = 0

    def fsync(self, fd: int) -> None:
        self.syncs += 1
        if self.syncs <= self.failing:
            raise OSError(5, "Input/output error")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_SYNC_SECONDS", 0.01)
    monkeypatch.setattr(recorder, "_FAILED_SYNC_SECONDS", 0.01)


@pytest.mark.usefixtures("soon")
async def test_events_that_came_together_are_synced_together(tmp_path: Path) -> None:
    medium = FlakyMedium(failing=0)
    async with recording(tmp_path) as made, trio.open_nursery() as nursery:
        with durable.using(medium):
            nursery.start_soon(made.recorder.keep_durable)
            for _ in range(5):
                made.recorder.write("mount")
            await until(lambda: medium.syncs == 1)
            for _ in range(5):
                made.recorder.write("mount")
            await until(lambda: medium.syncs == 2)
            await trio.sleep(0.1)
            assert medium.syncs == 2
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("soon")
async def test_sync_that_failed_is_recorded_and_tried_again(tmp_path: Path) -> None:
    medium = FlakyMedium(failing=3)
    async with recording(tmp_path) as made, trio.open_nursery() as nursery:
        with durable.using(medium):
            nursery.start_soon(made.recorder.keep_durable)
            made.recorder.write("mount")
            await until(lambda: made.log.last_error)
            await until(lambda: not made.log.last_error)
            assert medium.syncs == 4
            nursery.cancel_scope.cancel()
        assert [event["event"] for event in made.events()] == ["mount", "io_error"]
