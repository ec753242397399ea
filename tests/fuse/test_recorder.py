# SPDX-License-Identifier: Apache-2.0
"""What becomes of a report: a real log, real processes to identify, and ends of its sockets to misuse."""

from __future__ import annotations

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

from rofs import durable
from rofs.audit.chain import read_lines, verify_chain
from rofs.audit.log import AuditLog
from rofs.fuse import recorder
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
from tests.audit.doubles import FullDisk, open_log

FOREVER_NS = 2**63  # a caller that is held in its system call as long as we look
PATHS = {1: ("/",), 2: ("/dir",), 3: ("/dir/file", "/hard")}


class Recording:
    """A recorder, and what worker and resolver would hold of it."""

    def __init__(self, path: Path, log: AuditLog, proc_fd: int) -> None:
        self.path = path
        self.log = log
        self.worker, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.resolver, resolver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ends = (self.worker, worker, self.resolver, resolver)
        self.worker.setblocking(False)
        self.recorder = Recorder(log, worker, resolver, proc_fd=proc_fd)
        self.questions: list[PathsQuestion] = []
        self.number = 0
        self.ended = trio.Event()
        self.running = trio.CancelScope()

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

    async def send(self, report: Report | bytes, *, dropped: int = 0) -> None:
        self.number += 1
        data = (
            report
            if isinstance(report, bytes)
            else pack_report(report, number=self.number, dropped=dropped, held_until_ns=FOREVER_NS)
        )
        while True:
            try:
                self.worker.send(data)
            except BlockingIOError:
                await trio.sleep(0.001)
            else:
                return

    async def report(self, report: Report, *, dropped: int = 0) -> None:
        """Send a report and wait for its acknowledgement."""
        await self.send(report, dropped=dropped)
        await trio.lowlevel.wait_readable(self.worker)
        assert self.worker.recv(8) == acknowledgement(self.number)

    async def taken(self) -> None:
        """Wait until the recorder has read all that was sent."""
        await until(lambda: not _unread(self.ends[1]))

    def events(self) -> list[dict[str, Any]]:
        with self.path.open("rb") as file:
            verify_chain(read_lines(file))
        return [json.loads(line) for line in self.path.read_bytes().splitlines()]

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events() if event["event"] == name]

    async def end(self) -> list[dict[str, Any]]:
        """The worker ends and all is recorded; returns what."""
        self.worker.close()
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
async def recording(directory: Path, *, resolver: bool = True) -> AsyncIterator[Recording]:
    proc_fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with open_log(directory / "log") as log, ExitStack() as ends, trio.fail_after(30):
            made = Recording(directory / "log", log, proc_fd)
            for end in made.ends:
                ends.enter_context(end)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.run)
                if resolver:
                    nursery.start_soon(made.resolve)
                yield made
                nursery.cancel_scope.cancel()
    finally:
        os.close(proc_fd)


@pytest.fixture
def process() -> Iterator[int]:
    """Somebody who tries to write."""
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child.pid
        child.kill()


def attempt(**fields: Any) -> Attempt:
    return Attempt(**{"op": "unlink", "nid": 2, "name": "x", "tid": 0, "uid": 1, "gid": 2, "errno": "EROFS", **fields})


# Attempts


async def test_attempt_has_who_what_and_where(tmp_path: Path, process: int) -> None:
    async with recording(tmp_path) as made:
        await made.report(attempt(tid=process, name="x"))
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
        await made.report(attempt(op="open", nid=3, name=None, flags=("O_RDWR",)))
        (event,) = made.events()
    assert (event["paths"], event["nid"], event["flags"]) == (["/dir/file", "/hard"], 3, ["O_RDWR"])
    assert "tid" not in event
    assert "pid" not in event


@pytest.mark.parametrize(("nid2", "path2", "asked"), [(2, "/dir/y", 1), (1, "/y", 2)])
async def test_rename_asks_for_the_second_directory_only_if_it_is_another(
    tmp_path: Path, nid2: int, path2: str, asked: int
) -> None:
    async with recording(tmp_path) as made:
        await made.report(attempt(op="rename", nid2=nid2, name2="y"))
        (event,) = made.events()
    assert (event["path"], event["path2"]) == ("/dir/x", path2)
    assert len(made.questions) == asked


async def test_process_that_is_gone_leaves_what_the_request_said(tmp_path: Path) -> None:
    child = await trio.run_process(["sh", "-c", "echo $$"], capture_stdout=True)
    pid = int(child.stdout)
    async with recording(tmp_path) as made:
        await made.report(attempt(tid=pid))
        (event,) = made.events()
    assert (event["tid"], event["uid"]) == (pid, 1)
    assert "comm" not in event


async def test_who_is_left_out_when_the_caller_was_not_held(tmp_path: Path, process: int) -> None:
    """It may be gone, or have become another program, before anybody looked."""
    async with recording(tmp_path) as made:
        for held_until_ns in (0, time.monotonic_ns() - 1):
            made.number += 1
            report = attempt(tid=process)
            made.worker.send(pack_report(report, number=made.number, dropped=0, held_until_ns=held_until_ns))
        await until(lambda: made.log.seq == 2)
        for event in await made.end():
            assert event["tid"] == process
            assert not {"pid", "comm", "exe", "ppid"} & event.keys()


async def test_a_slow_resolver_does_not_keep_callers_from_being_identified(tmp_path: Path, process: int) -> None:
    async with recording(tmp_path, resolver=False) as made:
        for number in range(1, 4):
            await made.send(attempt(tid=process))
            await until(lambda: _unread(made.worker))
            assert made.worker.recv(8) == acknowledgement(number)
        assert made.log.seq == 0  # nothing has its paths yet
        made.ends[2].close()  # the resolver gives up
        await until(lambda: made.log.seq == 4)
        events = [event for event in await made.end() if event["event"] == "write_blocked"]
        assert [event["pid"] for event in events] == [process] * 3


async def test_without_paths_an_event_still_says_which_name(tmp_path: Path) -> None:
    async with recording(tmp_path, resolver=False) as made:
        made.ends[2].close()
        await made.report(attempt(name="secret", nid=9))
        event = (await made.end())[-1]
        assert (event["nid"], event["detail"]) == (9, "path unknown: name secret in the directory with nid 9")
        assert "path" not in event


async def test_flood_is_recorded_to_the_last(tmp_path: Path) -> None:
    def flood() -> int:
        made.worker.setblocking(True)
        reporter = Reporter(made.worker, clock=lambda: 0.0)  # a worker that has all the time it needs
        for number in range(1000):
            reporter.report(attempt(name=f"f{number}"))
        return reporter._dropped

    async with recording(tmp_path) as made:
        assert await trio.to_thread.run_sync(flood) == 0
        events = await made.end()
    assert [event.get("path") for event in events] == [f"/dir/f{number}" for number in range(1000)]
    assert made.recorder.counts == {"blocked_writes": 1000, "corruption": 0}


async def test_flood_whose_acknowledgements_nobody_reads_is_recorded_all_the_same(tmp_path: Path) -> None:
    """More than a socket holds: the supervisor must not wait for a worker that does not wait for it."""
    async with recording(tmp_path) as made:
        for number in range(2000):
            await made.send(attempt(name=f"f{number}"))
        await until(lambda: made.log.seq == 2000)
    assert made.recorder.counts["blocked_writes"] == 2000


async def test_worker_that_dies_with_acknowledgements_unread_loses_nothing(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        for number in range(50):
            await made.send(attempt(name=f"f{number}"))
        await until(lambda: made.log.seq == 50)
        assert made.worker.recv(8) in map(acknowledgement, range(1, 51))  # 49 are left
        assert [event["event"] for event in await made.end()] == ["write_blocked"] * 50


# What is lost


async def test_more_than_may_wait_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_MAX_WAITING_REPORTS", 10)
    async with recording(tmp_path, resolver=False) as made, trio.open_nursery() as nursery:
        for number in range(100):
            await made.send(attempt(name=f"f{number}"))
        await made.taken()
        nursery.start_soon(made.resolve)
        await made.end()
        blocked, dropped = made.named("write_blocked"), made.named("dropped")
        nursery.cancel_scope.cancel()
    assert len(blocked) < 20
    assert len(blocked) + sum(event["count"] for event in dropped) == 100
    assert made.log.dropped == 100 - len(blocked)
    assert len(dropped) <= 3


async def test_what_the_worker_could_not_send_is_recorded(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        await made.report(attempt(), dropped=17)
        dropped, blocked = made.events()
    assert (dropped["event"], dropped["count"]) == ("dropped", 17)
    assert blocked["event"] == "write_blocked"
    assert made.log.dropped == 17


async def test_what_the_worker_could_not_send_is_not_lost_again_on_a_full_disk(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        with durable.using(FullDisk()):
            await made.report(attempt(name="lost"), dropped=500)
        await made.report(attempt(name="kept"))
        dropped, kept = made.events()
    assert (dropped["event"], dropped["count"], kept["path"]) == ("dropped", 501, "/dir/kept")


async def test_what_is_not_recorded_at_the_end_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "_MAX_WAITING_REPORTS", 10)
    async with recording(tmp_path, resolver=False) as made:
        for _ in range(20):  # one in work, 10 that wait for it, and more
            await made.send(attempt())
        await made.taken()
        made.running.cancel()
        await made.ended.wait()
        for _ in range(3):
            await made.send(attempt(), dropped=2)
        await made.send(b"garbage")
        made.recorder.drop_rest()
        ended, overflowed = made.named("dropped")
    assert ended["count"] == 1 + 10 + 3 + 3 * 2 + 1
    assert overflowed["count"] == 20 - 1 - 10
    assert made.log.dropped == ended["count"] + overflowed["count"]
    assert len(made.events()) == 2


async def test_nothing_is_counted_at_the_end_when_all_was_recorded(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        await made.report(attempt())
        await made.end()
        made.recorder.drop_rest()
        assert len(made.events()) == 1
    assert made.log.dropped == 0


async def test_worker_that_goes_on_sending_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_MAX_WAITING_REPORTS", 3)
    async with recording(tmp_path) as made:
        made.running.cancel()
        await made.ended.wait()
        for _ in range(5):
            await made.send(attempt())
        made.recorder.drop_rest()
    assert made.log.dropped == 3


# Faults


async def test_corruption_has_paths_offset_and_both_digests(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        await made.report(FaultReport(nid=3, kind="mismatch", level=-1, block=7, expected="aa", found="bb"))
        (event,) = made.events()
    assert (event["event"], event["paths"], event["offset"]) == ("corruption", ["/dir/file", "/hard"], 4096)
    assert (event["block"], event["level"], event["expected"], event["found"]) == (7, -1, "aa", "bb")
    assert made.questions == [PathsQuestion(3, -1, 7)]
    assert made.recorder.counts == {"blocked_writes": 0, "corruption": 1}


async def test_failures_of_a_worker_are_io_errors(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        await made.report(FaultReport(nid=3, kind="io", level=0, block=7, expected=None, found=None))
        await made.report(InternalReport(nid=2, detail="read: KeyError"))
        await made.report(InternalReport(nid=None, detail="read: KeyError"))
        first, second, third = made.events()
    assert {event["event"] for event in (first, second, third)} == {"io_error"}
    assert (second["path"], second["detail"], third["detail"]) == ("/dir", "read: KeyError", "read: KeyError")
    assert made.recorder.counts["corruption"] == 0


# Processes that misbehave

GARBAGE = [
    b"garbage",
    b"[]",
    b"{}",
    b"\xff" * 1000,
    b"[" * 100_000,
    pack_report(attempt(), number=1, dropped=0, held_until_ns=FOREVER_NS).replace(b'"unlink"', b'"dance"'),
    pack_report(attempt(), number=1, dropped=0, held_until_ns=FOREVER_NS).replace(b'"nid": 2,', b'"nid": -2,'),
    pack_report(attempt(), number=1, dropped=0, held_until_ns=FOREVER_NS) + b"x" * 200_000,
]


async def test_garbage_of_a_worker_is_recorded_and_the_next_report_too(tmp_path: Path) -> None:
    async with recording(tmp_path) as made:
        made.worker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        for data in GARBAGE:
            await made.send(data)
        await made.report(attempt())
        *events, last = made.events()
    assert [event["event"] for event in events] == ["io_error"] * len(GARBAGE)
    assert all(event["detail"] for event in events)
    assert last["event"] == "write_blocked"


async def test_hostile_numbers_and_texts_are_recorded_as_far_as_they_go(tmp_path: Path) -> None:
    big = 2**64 - 1
    async with recording(tmp_path) as made:
        await made.report(
            attempt(nid=big, tid=big, uid=big, gid=big, name="\ud800\x1b[31m\n", xattr="\udcff", errno="\ud800")
        )
        await made.report(FaultReport(nid=big, kind="io", level=63, block=big, expected="\ud800", found="x" * 50_000))
        await made.report(InternalReport(nid=big, detail="\x00" * 1000), dropped=big)
        assert len(made.events()) == 4
        assert made.named("dropped")[0]["count"] == 2**53 - 1


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
            await made.report(attempt())
        failure, *blocked = made.events()
    assert failure["event"] == "io_error"
    assert failure["detail"].startswith(f"resolver: {why}")
    assert failure["detail"].endswith("; events go on without paths")
    assert [event["event"] for event in blocked] == ["write_blocked"] * 3
    assert not any("path" in event or "paths" in event for event in blocked)


async def test_resolver_that_is_silent_for_too_long_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_RESOLVER_SECONDS", 0.05)
    async with recording(tmp_path, resolver=False) as made:
        await made.report(attempt())
        made.resolver.send(PathsAnswer(("/late",)).pack())  # would be taken for the answer to the next question
        await made.report(attempt())
        assert not any("path" in event for event in made.events())
        (failure,) = made.named("io_error")
    assert failure["detail"] == "resolver: no answer within 0.05 s; events go on without paths"


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
