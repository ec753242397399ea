# SPDX-License-Identifier: Apache-2.0
"""The supervisor in a thread, with a real log, real processes to identify, and ends of its sockets to misuse."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rofs import durable
from rofs.audit.chain import read_lines, verify_chain
from rofs.errors import ChainError
from rofs.fuse import control, places, supervisor
from rofs.fuse.counters import Counters
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
from rofs.fuse.reporter import Reporter, acknowledgement
from tests.audit.doubles import FullDisk

from .doubles import FACTS

PATHS = {1: ("/",), 2: ("/dir",), 3: ("/dir/file", "/hard")}


class Mount:
    """A supervisor, and what keeper, worker and resolver would hold of it."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "log" / "mnt.jsonl"
        self.keeper, self._keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker, self._worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.resolver, self._resolver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.counters = Counters()
        self.number = 0
        self.questions: list[PathsQuestion] = []
        self.failure: BaseException | None = None
        for end in (self.keeper, self.worker, self.resolver):
            end.settimeout(10)
        self._setup = supervisor.Supervised(
            mountpoint=b"/mnt",
            image_path=b"/images/\xff.raw",
            facts=FACTS,
            log_path=os.fsencode(self.log),
            runtime_directory=places.mount_directory(b"/mnt"),
            counters=self.counters,
            keeper=os.getpid(),
        )
        self._threads = [threading.Thread(target=self._serve), threading.Thread(target=self._resolve)]

    def _serve(self) -> None:
        try:
            with self._keeper, self._worker, self._resolver:
                supervisor.serve(self._setup, self._keeper, self._worker, self._resolver)
        except BaseException as error:  # noqa: BLE001 - raised again by `join`
            self.failure = error

    def _resolve(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.resolver.recv(MAX_MESSAGE_BYTES):
                question = PathsQuestion.parse(data)
                self.questions.append(question)
                offset = None if question.block is None else 4096
                self.resolver.send(PathsAnswer(PATHS.get(question.nid, ()), offset).pack())

    def start(self, *, resolver: bool = True) -> None:
        self._threads[0].start()
        if resolver:
            self._threads[1].start()
        assert self.told()["ready"]

    def tell(self, **message: Any) -> None:
        self.keeper.send(json.dumps(message).encode())

    def told(self) -> Any:
        return json.loads(self.keeper.recv(MAX_MESSAGE_BYTES))

    def report(self, report: Report, *, dropped: int = 0) -> None:
        """Send a report and wait for its acknowledgement."""
        self.number += 1
        self.worker.send(pack_report(report, number=self.number, dropped=dropped))
        assert self.worker.recv(8) == acknowledgement(self.number)

    def end(self) -> list[dict[str, Any]]:
        """Unmount; returns what was recorded."""
        self.worker.close()
        with contextlib.suppress(OSError):
            self.tell(end="unmounted")
        self.join()
        return self.events()

    def join(self) -> None:
        self._threads[0].join(20)
        assert not self._threads[0].is_alive()
        if self.failure is not None:
            raise self.failure

    def events(self) -> list[dict[str, Any]]:
        with self.log.open("rb") as file:
            verify_chain(read_lines(file))
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]

    def close(self) -> None:
        for end in (self.keeper, self.worker):
            end.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(20)
        self.resolver.close()
        for end in (self._keeper, self._worker, self._resolver):
            end.close()


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mount]:
    monkeypatch.setattr(places, "runtime_directory", lambda: str(tmp_path / "run"))
    mount = Mount(tmp_path)
    yield mount
    mount.close()


@pytest.fixture
def process() -> Iterator[int]:
    """Somebody who tries to write."""
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child.pid
        child.kill()


def attempt(**fields: Any) -> Attempt:
    return Attempt(**{"op": "unlink", "nid": 2, "name": "x", "tid": 0, "uid": 1, "gid": 2, "errno": "EROFS", **fields})


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The life of a mount


def test_mount_is_recorded_before_the_keeper_goes_on(mount: Mount) -> None:
    mount.start()
    mount.tell(mounted=True)
    assert mount.told() == {"recorded": True, "error": None}
    trust, mounted = mount.events()
    assert (trust["event"], trust["status"], trust["image"]["name"]) == ("trust", "signature", "edge")
    assert FACTS.signer_fingerprint is not None
    assert FACTS.signer_fingerprint in trust["detail"]
    assert (mounted["event"], mounted["detail"], mounted["mount"]) == ("mount", "/images/\\xff.raw", "/mnt")
    *_, umount = mount.end()
    assert (umount["event"], umount["detail"]) == ("umount", "unmounted")
    assert not Path(places.mount_directory(b"/mnt")).exists()


def test_status(mount: Mount) -> None:
    mount.start()
    mount.tell(mounted=True)
    mount.told()
    mount.tell(serving=[4, 5])
    mount.counters.set(Counters.VERIFIED_BLOCKS, 77)
    mount.report(attempt())
    until(lambda: control.status("/mnt")["workers"])
    status = control.status("/mnt")
    assert status["workers"] == [{"pid": 4}, {"pid": 5}]
    assert (status["mountpoint"], status["image"], status["mode"]) == ("/mnt", "/images/\\xff.raw", "audit")
    assert (status["verified_blocks"], status["blocked_writes"], status["corruption"]) == (77, 1, 0)
    assert (status["root_hash"], status["signer"], status["version"]) == (FACTS.root_hash, FACTS.signer, "1.2")
    assert status["audit_head"] == mount.events()[-1]["hash"]
    assert (status["keeper"], status["audit_error"], status["dropped"]) == (os.getpid(), None, 0)


@pytest.mark.parametrize(("number", "message"), [(0, None), (16, "busy.*fuser -vm")])
def test_unmount_is_the_keepers_to_do(mount: Mount, number: int, message: str | None) -> None:
    mount.start()
    replies: list[Any] = []
    directory = places.mount_directory(b"/mnt")
    client = threading.Thread(target=lambda: replies.append(control._ask(directory, "umount")))
    client.start()
    assert mount.told() == {"unmount": True}
    mount.tell(unmounted=True, errno=number)
    client.join(10)
    assert replies[0]["ok"] == (number == 0)
    if message is not None:
        assert re.search(message, replies[0]["error"])
    mount.end()


def test_worker_exit_is_recorded(mount: Mount) -> None:
    mount.start()
    mount.tell(worker_exit={"pid": 7, "status": "-9", "detail": "worker"})
    event = mount.end()[0]
    assert (event["event"], event["pid"], event["status"]) == ("worker_exit", 7, "-9")


def test_keeper_that_is_gone_is_recorded_and_ends_it(mount: Mount) -> None:
    mount.start()
    mount.report(attempt())
    mount.keeper.close()
    mount.worker.close()
    mount.join()
    _, gone, umount = mount.events()
    assert (gone["event"], gone["pid"], gone["detail"]) == ("worker_exit", os.getpid(), "the keeper process is gone")
    assert (umount["event"], umount["detail"]) == ("umount", "the keeper process is gone")


def test_log_that_cannot_be_used_is_an_error_before_anything_starts(mount: Mount) -> None:
    mount.log.parent.mkdir()
    mount.log.write_text("not a log\n")
    mount._threads[0].start()
    with pytest.raises(ChainError, match=r"mnt\.jsonl does not end in an event"):
        mount.join()
    assert mount.log.read_text() == "not a log\n"


# Attempts


def test_attempt_has_who_what_and_where(mount: Mount, process: int) -> None:
    mount.start()
    mount.report(attempt(tid=process, name="x"))
    event = mount.events()[-1]
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


def test_attempt_on_an_inode_with_two_names(mount: Mount) -> None:
    mount.start()
    mount.report(attempt(op="open", nid=3, name=None, flags=("O_RDWR",)))
    event = mount.events()[-1]
    assert (event["paths"], event["nid"], event["flags"]) == (["/dir/file", "/hard"], 3, ["O_RDWR"])
    assert "tid" not in event
    assert "pid" not in event


@pytest.mark.parametrize(("nid2", "path2", "asked"), [(2, "/dir/y", 1), (1, "/y", 2)])
def test_rename_asks_for_the_second_directory_only_if_it_is_another(
    mount: Mount, nid2: int, path2: str, asked: int
) -> None:
    mount.start()
    mount.report(attempt(op="rename", nid2=nid2, name2="y"))
    event = mount.events()[-1]
    assert (event["path"], event["path2"]) == ("/dir/x", path2)
    assert len(mount.questions) == asked


def test_process_that_is_gone_leaves_what_the_request_said(mount: Mount) -> None:
    with subprocess.Popen(["true"]) as child:
        child.wait()
    mount.start()
    mount.report(attempt(tid=child.pid))
    event = mount.events()[-1]
    assert (event["tid"], event["uid"]) == (child.pid, 1)
    assert "comm" not in event


def test_flood_is_recorded_to_the_last(mount: Mount) -> None:
    mount.start()
    reporter = Reporter(mount.worker)
    for number in range(1000):
        reporter.report(attempt(name=f"f{number}"))
    assert reporter._dropped == 0
    events = mount.end()
    assert [event.get("path") for event in events[:-1]] == [f"/dir/f{number}" for number in range(1000)]


def test_flood_whose_acknowledgements_nobody_reads_is_recorded_all_the_same(mount: Mount) -> None:
    """More than a socket holds: the supervisor must not wait for a worker that does not wait for it."""
    mount.start()
    for number in range(2000):
        mount.worker.send(pack_report(attempt(name=f"f{number}"), number=number + 1, dropped=0))
    until(lambda: len(mount.log.read_bytes().splitlines()) == 2000)
    assert control.status("/mnt")["blocked_writes"] == 2000


def test_worker_that_dies_with_acknowledgements_unread_loses_nothing(mount: Mount) -> None:
    mount.start()
    for number in range(50):
        mount.worker.send(pack_report(attempt(name=f"f{number}"), number=number + 1, dropped=0))
    until(lambda: mount.log.read_bytes().count(b"\n") == 50)
    assert mount.worker.recv(8) == acknowledgement(1)  # 49 are left
    events = mount.end()
    assert [event["event"] for event in events] == ["write_blocked"] * 50 + ["umount"]


def test_more_than_may_wait_are_counted(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_MAX_WAITING_REPORTS", 10)
    mount.start(resolver=False)  # which does not answer yet
    for number in range(100):
        mount.worker.send(pack_report(attempt(name=f"f{number}"), number=number + 1, dropped=0))
    until(lambda: not _unread(mount._worker))
    mount._threads[1].start()
    events = mount.end()
    blocked = [event for event in events if event["event"] == "write_blocked"]
    dropped = [event for event in events if event["event"] == "dropped"]
    assert len(blocked) < 20
    assert len(blocked) + sum(event["count"] for event in dropped) == 100
    assert len(dropped) <= 3


def _unread(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def test_what_the_worker_could_not_send_is_recorded(mount: Mount) -> None:
    mount.start()
    mount.report(attempt(), dropped=17)
    dropped, blocked = mount.events()
    assert (dropped["event"], dropped["count"]) == ("dropped", 17)
    assert blocked["event"] == "write_blocked"
    assert control.status("/mnt")["dropped"] == 17


# Faults


def test_corruption_has_paths_offset_and_both_digests(mount: Mount) -> None:
    mount.start()
    mount.report(FaultReport(nid=3, kind="mismatch", level=-1, block=7, expected="aa", found="bb"))
    event = mount.events()[-1]
    assert (event["event"], event["paths"], event["offset"]) == ("corruption", ["/dir/file", "/hard"], 4096)
    assert (event["block"], event["level"], event["expected"], event["found"]) == (7, -1, "aa", "bb")
    assert mount.questions == [PathsQuestion(3, -1, 7)]
    assert control.status("/mnt")["corruption"] == 1


def test_failures_of_a_worker_are_io_errors(mount: Mount) -> None:
    mount.start()
    mount.report(FaultReport(nid=3, kind="io", level=0, block=7, expected=None, found=None))
    mount.report(InternalReport(nid=2, detail="read: KeyError"))
    mount.report(InternalReport(nid=None, detail="read: KeyError"))
    first, second, third = mount.events()
    assert {event["event"] for event in (first, second, third)} == {"io_error"}
    assert (second["path"], second["detail"], third["detail"]) == ("/dir", "read: KeyError", "read: KeyError")
    assert control.status("/mnt")["corruption"] == 0


# Processes that misbehave

GARBAGE = [
    b"garbage",
    b"[]",
    b"{}",
    b"\xff" * 1000,
    b"[" * 100_000,
    pack_report(attempt(), number=1, dropped=0).replace(b'"unlink"', b'"dance"'),
    pack_report(attempt(), number=1, dropped=0).replace(b'"nid": 2,', b'"nid": -2,'),
    pack_report(attempt(), number=1, dropped=0) + b"x" * 200_000,
]


def test_garbage_of_a_worker_is_recorded_and_the_next_report_too(mount: Mount) -> None:
    mount.start()
    for data in GARBAGE:
        mount.worker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        mount.worker.send(data)
    mount.report(attempt())
    *events, last = mount.events()
    assert [event["event"] for event in events] == ["io_error"] * len(GARBAGE)
    assert all(event["detail"] for event in events)
    assert last["event"] == "write_blocked"


def test_hostile_numbers_and_texts_are_recorded_as_far_as_they_go(mount: Mount) -> None:
    mount.start()
    big = 2**64 - 1
    mount.report(attempt(nid=big, tid=big, uid=big, gid=big, name="\ud800\x1b[31m\n", xattr="\udcff", errno="\ud800"))
    mount.report(FaultReport(nid=big, kind="io", level=63, block=big, expected="\ud800", found="x" * 50_000))
    mount.report(InternalReport(nid=big, detail="\x00" * 1000))
    assert len(mount.events()) == 3


@pytest.mark.parametrize("answer", [b"garbage", b"{}", b'{"paths": [1]}', None])
def test_resolver_that_fails_costs_the_paths_and_nothing_else(mount: Mount, answer: bytes | None) -> None:
    mount.start(resolver=False)
    if answer is None:
        mount.resolver.close()
    else:
        mount.resolver.send(answer)
    for _ in range(3):
        mount.report(attempt())
    events = mount.events()
    assert [event["event"] for event in events] == ["write_blocked"] * 3
    assert not any("path" in event or "paths" in event for event in events)


def test_resolver_that_is_silent_for_too_long_is_not_asked_again(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_RESOLVER_SECONDS", 0.05)
    mount.start(resolver=False)
    mount.report(attempt())
    mount.resolver.send(PathsAnswer(("/late",)).pack())  # would be taken for the answer to the next question
    mount.report(attempt())
    assert not any("path" in event for event in mount.events())


# A disk that is full


def test_full_disk_costs_events_never_an_answer(mount: Mount) -> None:
    mount.start()
    with durable.using(FullDisk()):
        mount.report(attempt(name="lost"))
        mount.report(attempt(name="lost"))
        status = control.status("/mnt")
        assert "free some space" in status["audit_error"]
        assert status["blocked_writes"] == 2
    mount.report(attempt(name="kept"))
    dropped, kept = mount.events()
    assert (dropped["event"], dropped["count"]) == ("dropped", 2)
    assert kept["path"] == "/dir/kept"
    assert control.status("/mnt")["audit_error"] is None


def test_mount_that_cannot_be_recorded_is_refused(mount: Mount) -> None:
    mount.start()
    with durable.using(FullDisk()):
        mount.tell(mounted=True)
        answer = mount.told()
    assert answer["recorded"] is False
    assert "free some space" in answer["error"]


def test_medium_that_fails_to_sync_shows_in_the_status(mount: Mount) -> None:
    class Broken(durable.Calls):
        def fsync(self, fd: int) -> None:
            raise OSError(5, "Input/output error")

    mount.start()
    with durable.using(Broken()):
        mount.report(attempt())
        until(lambda: control.status("/mnt")["audit_error"])
        assert "cannot sync" in control.status("/mnt")["audit_error"]
