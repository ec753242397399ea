# SPDX-License-Identifier: Apache-2.0
"""The supervisor in a thread, with a real log, and what keeper, worker and resolver hold of it."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import socket
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rofs import durable
from rofs.audit.chain import read_lines, verify_chain
from rofs.errors import ChainError, HostError
from rofs.fuse import control, places, supervisor
from rofs.fuse.link import KeeperLink
from rofs.fuse.messages import MAX_MESSAGE_BYTES, Attempt, FaultReport, PathsAnswer, PathsQuestion, Report, pack_report
from rofs.fuse.reporter import acknowledgement
from rofs.fuse.request import Reactions
from rofs.fuse.shared import Number, SharedState, Total
from tests.audit.doubles import FullDisk

from .doubles import FACTS

_NUMBERS = itertools.count()
FOREVER_NS = 2**63  # a caller that is held in its system call as long as we look
PATHS = {2: ("/dir",)}


class Mount:
    """A supervisor, and what keeper, a worker and the resolver would hold of it."""

    MOUNT_ID = -1  # nobody's: there is nothing to watch

    def __init__(self, directory: Path, shared: SharedState) -> None:
        self.log = directory / "log" / "mnt.jsonl"
        keeper, self._keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeper = KeeperLink(keeper)
        self.worker, self.reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.resolver, self.questions = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.shared = shared
        self.failure: BaseException | None = None
        for end in (keeper, self.worker, self.resolver):
            end.settimeout(10)
        self.setup = supervisor.Supervised(
            mountpoint=b"/mnt",
            image_path=b"/images/\xff.raw",
            facts=FACTS,
            log_path=os.fsencode(self.log),
            runtime_directory=places.mount_directory(b"/mnt"),
            mode="audit",
            shared=shared,
            keeper=os.getpid(),
            workers_wanted=3,
        )
        self._threads = [threading.Thread(target=self._serve), threading.Thread(target=self._resolve)]

    def _serve(self) -> None:
        try:
            with self._keeper:
                supervisor.serve(self.setup, self._keeper)
        except BaseException as error:  # noqa: BLE001 - raised again by `join`
            self.failure = error

    def _resolve(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.resolver.recv(MAX_MESSAGE_BYTES):
                self.resolver.send(PathsAnswer(PATHS.get(PathsQuestion.parse(data).nid, ())).pack())

    def start(self, *, resolver: bool = True) -> None:
        self._threads[0].start()
        if resolver:
            self._threads[1].start()
        assert self.told()["ready"]
        self.keeper.send({"resolver": 1}, self.questions.fileno())
        self.questions.close()
        self.keeper.send({"worker": 0}, self.reports.fileno())

    def follow(self, **changes: Any) -> None:
        """The supervisor is gone; start another one in its place."""
        self.join()
        keeper, self._keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeper.connection.close()
        self.keeper = KeeperLink(keeper)
        keeper.settimeout(10)
        self.setup = replace(self.setup, **changes)
        self._threads[0] = threading.Thread(target=self._serve)
        self._threads[0].start()
        assert self.told()["ready"]

    def tell(self, **message: Any) -> None:
        self.keeper.send(message)

    def told(self) -> Any:
        return self.keeper.receive()

    def be_mounted(self) -> None:
        self.tell(mounted=self.MOUNT_ID)
        assert self.told()["recorded"]

    def send(self, report: Report) -> int:
        """Send a report; returns its number."""
        numbers = self.shared.slot(0)
        number = numbers[Number.REPORTED] + 1
        self.worker.send(pack_report(report, number=number, held_until_ns=FOREVER_NS))
        numbers[Number.REPORTED] = number
        return number

    @property
    def unread(self) -> int:
        """Bytes that the worker has sent and nobody has taken."""
        return int.from_bytes(fcntl.ioctl(self.worker, termios.TIOCOUTQ, bytes(4)), sys.byteorder)

    def report(self, report: Report) -> None:
        """Send a report and wait for its acknowledgement."""
        number = self.send(report)
        assert self.worker.recv(8) == acknowledgement(number)

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
        self.keeper.connection.close()
        self.worker.close()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(20)
        self.resolver.close()
        for end in (self._keeper, self.reports, self.questions):
            end.close()


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: SharedState) -> Iterator[Mount]:
    monkeypatch.setattr(places, "runtime_directory", lambda: str(tmp_path / "run"))
    mount = Mount(tmp_path, shared)
    yield mount
    mount.close()


def attempt(**fields: Any) -> Attempt:
    """One that is like no other, unless it has a name: repeats are counted."""
    fields.setdefault("name", f"x{next(_NUMBERS)}")
    return Attempt(**{"op": "unlink", "nid": 2, "tid": 0, "uid": 1, "gid": 2, "errno": "EROFS", **fields})


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The life of a mount


def test_mount_is_recorded_before_the_keeper_goes_on(mount: Mount) -> None:
    mount.start()
    mount.tell(mounted=mount.MOUNT_ID)
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
    mount.tell(mounted=mount.MOUNT_ID)
    mount.told()
    mount.tell(serving=[[os.getpid(), 3], [2**22 + 1, 4]])  # no pid is that high
    for slot, number, count in (
        (3, Number.VERIFIED_BLOCKS, 70),
        (4, Number.REQUESTS, 5),
        (9, Number.VERIFIED_BLOCKS, 7),
        (9, Number.CACHE_HITS, 6),
        (3, Number.CACHE_HITS, 5),
    ):
        mount.shared.slot(slot)[number] = count
    mount.shared.add(Total.RESTARTS, 2)
    mount.report(attempt())
    until(lambda: control.status("/mnt")["workers"])
    status = control.status("/mnt")
    living, gone = status["workers"]
    assert (living["pid"], living["verified_blocks"], living["requests"]) == (os.getpid(), 70, 0)
    assert living["rss_bytes"] > 1 << 20
    assert (gone["requests"], "rss_bytes" in gone) == (5, False)
    assert (status["requests"], status["restarts"], status["supervisor"]) == (5, 2, os.getpid())
    assert (status["mountpoint"], status["image"], status["mode"]) == ("/mnt", "/images/\\xff.raw", "audit")
    assert (status["verified_blocks"], status["blocked_writes"], status["corruption"]) == (77, 1, 0)
    assert (status["root_hash"], status["signer"], status["version"]) == (FACTS.root_hash, FACTS.signer, "1.2")
    assert (status["workers_wanted"], status["cache_hits"], status["on_corruption"]) == (3, 11, "eio")
    assert status["audit_head"] == mount.events()[-1]["hash"]
    assert (status["keeper"], status["audit_error"], status["dropped"]) == (os.getpid(), None, 0)


@pytest.mark.parametrize(("number", "message"), [(0, None), (16, "busy.*fuser -vm")])
def test_unmount_is_the_keepers_to_do(mount: Mount, number: int, message: str | None) -> None:
    mount.start()
    replies: list[Any] = []
    directory = places.mount_directory(b"/mnt")
    client = threading.Thread(target=lambda: replies.append(control._ask(directory, "umount")))
    client.start()
    assert mount.told() == {"unmount": True, "lazy": False}
    mount.tell(unmounted=True, errno=number)
    client.join(10)
    assert replies[0]["ok"] == (number == 0)
    if message is not None:
        assert re.search(message, replies[0]["error"])
    mount.end()


@pytest.mark.parametrize(("asked", "lazy"), [(True, True), (False, False), ("yes", False), (1, False)])
def test_only_true_unmounts_lazily(mount: Mount, asked: object, lazy: bool) -> None:
    mount.start()
    replies: list[Any] = []
    directory = places.mount_directory(b"/mnt")
    client = threading.Thread(target=lambda: replies.append(control._ask(directory, "umount", None, {"lazy": asked})))
    client.start()
    assert mount.told() == {"unmount": True, "lazy": lazy}
    mount.tell(unmounted=True, errno=0, in_use=True)
    client.join(10)
    assert (replies[0]["ok"], replies[0]["in_use"]) == (True, True)
    mount.end()


# Reactions


def corruption(block: int = 7) -> FaultReport:
    return FaultReport(nid=2, kind="mismatch", level=-1, block=block, expected="aa" * 32, found="bb" * 32)


def reacting(mount: Mount, **reactions: Any) -> Mount:
    mount.setup = replace(mount.setup, reactions=Reactions(**reactions))
    return mount


def test_first_corruption_is_told_to_the_keeper_once(mount: Mount) -> None:
    reacting(mount, on_corruption="stop").start()
    mount.be_mounted()
    for block in range(3):
        mount.report(corruption(block))
    assert mount.told() == {"corruption": True}
    assert mount.events()[-1]["event"] == "corruption"
    mount.tell(worker_exit={"pid": 7})
    assert "exit_recorded" in mount.told()  # and nothing before it
    mount.end()


def test_corruption_that_the_log_cannot_hold_is_told_all_the_same(mount: Mount) -> None:
    reacting(mount, on_corruption="stop").start()
    mount.be_mounted()
    with durable.using(FullDisk()):
        mount.report(corruption())
        assert mount.told() == {"corruption": True}
    mount.end()


def test_successor_tells_of_corruption_that_was_met_before(mount: Mount) -> None:
    mount.shared.add(Total.CORRUPTION)
    reacting(mount, on_corruption="restart").start()
    assert mount.told() == {"corruption": True}
    mount.end()


def test_block_that_cannot_be_read_is_not_corrupt(mount: Mount) -> None:
    reacting(mount, on_corruption="stop").start()
    mount.be_mounted()
    mount.report(replace(corruption(), kind="io", found=None))
    mount.tell(worker_exit={"pid": 7})
    assert "exit_recorded" in mount.told()
    mount.end()


def test_keeper_is_not_asked_when_nothing_is_to_be_done(mount: Mount) -> None:
    mount.start()
    mount.be_mounted()
    mount.report(corruption())
    mount.tell(worker_exit={"pid": 7})
    assert "exit_recorded" in mount.told()
    mount.end()


def test_reaction_is_recorded(mount: Mount) -> None:
    mount.start()
    mount.tell(reaction={"status": "no-restart", "detail": "why"})
    event = mount.end()[0]
    assert (event["event"], event["status"], event["detail"]) == ("mount", "no-restart", "why")


def test_hooks_hear_all_there_is_to_the_last(mount: Mount, tmp_path: Path) -> None:
    hook = f"cat >> {tmp_path}/told"
    reacting(mount, event_hook=hook, corruption_hook="").start()
    mount.tell(worker_exit={"pid": 7, "detail": "worker: gone"})
    until((tmp_path / "told").exists)
    mount.end()
    assert (tmp_path / "told").read_bytes() == mount.log.read_bytes()


def test_hook_that_hangs_delays_the_end_only_for_a_moment(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_HOOKS_SECONDS", 0.1)
    reacting(mount, event_hook="sleep 1000").start()
    mount.tell(worker_exit={"pid": 7, "detail": "worker: gone"})
    assert len(mount.end()) == 1


def test_worker_exit_is_recorded(mount: Mount) -> None:
    mount.start()
    mount.tell(worker_exit={"pid": 7, "detail": "worker: killed by signal 9"})
    event = mount.end()[0]
    assert (event["event"], event["pid"], event["detail"]) == ("worker_exit", 7, "worker: killed by signal 9")


def test_keeper_that_is_gone_is_recorded_and_ends_it(mount: Mount) -> None:
    mount.start()
    mount.be_mounted()
    mount.report(attempt())
    mount.keeper.connection.close()
    mount.worker.close()
    mount.join()
    _, _, _, gone, umount = mount.events()
    assert (gone["event"], gone["pid"], gone["detail"]) == ("worker_exit", os.getpid(), "keeper: ended unexpectedly")
    assert (umount["event"], umount["detail"]) == ("umount", "the keeper process is gone")


def test_a_mount_that_was_never_recorded_is_not_unmounted_in_the_log(mount: Mount) -> None:
    mount.start()
    assert mount.end() == []


def test_log_that_cannot_be_used_is_an_error_before_anything_starts(mount: Mount) -> None:
    mount.log.parent.mkdir()
    mount.log.write_text("not a log\n")
    mount._threads[0].start()
    with pytest.raises(ChainError, match=r"mnt\.jsonl does not end in an event"):
        mount.join()
    assert mount.log.read_text() == "not a log\n"


# Another supervisor in its place


def test_successor_goes_on_where_its_predecessor_stopped(mount: Mount) -> None:
    mount.start()
    mount.be_mounted()
    mount.report(attempt(name="before"))
    directory = Path(places.mount_directory(b"/mnt"))
    kept = mount.worker, mount.shared
    mount.tell(retire=True)
    mount.join()
    assert (directory / "control").exists()  # who connects meanwhile is told to try again, not that there is no mount
    mount.follow(mount_id=mount.MOUNT_ID)
    assert control.status("/mnt")["blocked_writes"] == 1
    assert kept == (mount.worker, mount.shared)
    *_, umount = mount.end()
    assert [event["event"] for event in mount.events()] == ["trust", "mount", "write_blocked", "umount"]
    assert umount["detail"] == "unmounted"
    assert not directory.exists()


def test_what_its_predecessor_left_undone_is_counted(mount: Mount) -> None:
    mount.start(resolver=False)
    mount.be_mounted()
    mount.send(attempt())
    until(lambda: mount.unread == 0)
    mount.shared.slot(7)[Number.REPORTED] = 3  # of a worker that has died since
    mount.tell(retire=True)
    mount.resolver.close()  # it gives up on the paths
    mount.follow(mount_id=mount.MOUNT_ID)
    mount.end()
    events = [event for event in mount.events() if event["event"] in {"write_blocked", "dropped"}]
    assert [event["event"] for event in events] == ["write_blocked", "dropped"]
    assert events[1]["count"] == 3


def test_retiring_does_not_record_an_unmount_nor_count_what_waits(mount: Mount) -> None:
    mount.start()
    mount.be_mounted()
    mount.tell(retire=True)
    mount.join()
    mount.send(attempt())
    assert [event["event"] for event in mount.events()] == ["trust", "mount"]


@pytest.mark.parametrize(
    ("error", "answer"),
    [(None, None), ("python9 cannot be started", "cannot take over /mnt: python9 cannot be started")],
)
def test_takeover_is_the_keepers_to_do(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, error: str | None, answer: str | None
) -> None:
    mount.start()
    monkeypatch.setattr(control, "_TAKEOVER_SECONDS", 0.1 if error is None else 10)
    results: list[str] = []

    def take_over() -> None:
        try:
            control.take_over("/mnt", ["python9", "-x"], {"PYTHONPATH": "/x"}, 3)
        except HostError as failure:
            results.append(str(failure))

    client = threading.Thread(target=take_over)
    client.start()
    program = {"argv": ["python9", "-x"], "environment": {"PYTHONPATH": "/x"}, "workers": 3}
    assert mount.told() == {"takeover": program}
    mount.tell(taken_over=True, error=error)
    client.join(20)
    # Here no other supervisor comes.
    assert results == [answer or "/mnt was taken over, but its new supervisor does not answer; reads go on"]
    mount.end()


@pytest.mark.parametrize(
    "program",
    [
        {},
        {"argv": []},
        {"argv": "sh"},
        {"argv": ["sh", 1]},
        {"environment": None},
        {"environment": {"A": 1}},
        {"environment": ["A"]},
        {"workers": 0},
        {"workers": -1},
        {"workers": 33},
        {"workers": 10**30},
        {"workers": True},
        {"workers": "2"},
    ],
)
def test_takeover_by_what_is_no_program_does_not_reach_the_keeper(mount: Mount, program: dict[str, Any]) -> None:
    """A keeper that stumbled over it would take the mount with it."""
    mount.start()
    fields = {"argv": ["sh"], "environment": {}, "workers": 2, **program} if program else {}
    answer = control._ask(places.mount_directory(b"/mnt"), "takeover", None, fields)
    assert not answer["ok"]
    assert "no program" in answer["error"]
    mount.keeper.connection.settimeout(0)
    with pytest.raises(BlockingIOError):
        mount.told()
    mount.keeper.connection.settimeout(10)
    mount.end()


# The end


@pytest.mark.parametrize("resolver", [True, False])
def test_what_has_no_paths_in_time_is_counted_before_the_umount(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, resolver: bool
) -> None:
    monkeypatch.setattr(supervisor, "_LAST_RECORDS_SECONDS", 20 if resolver else 0.05)
    mount.start(resolver=resolver)
    mount.be_mounted()
    for _ in range(5):
        mount.send(attempt())
    _, _, *before, umount = mount.end()
    assert umount["event"] == "umount"
    if resolver:
        assert [event["event"] for event in before] == ["write_blocked"] * 5
    else:
        assert [(event["event"], event["count"]) for event in before] == [("dropped", 5)]
        assert before[0]["detail"] == "the mount ended before they were recorded"


# A disk that is full


def test_full_disk_costs_events_never_an_answer(mount: Mount) -> None:
    mount.start()
    with durable.using(FullDisk()):
        mount.report(attempt())
        mount.report(attempt())
        status = control.status("/mnt")
        assert "free some space" in status["audit_error"]
        assert (status["blocked_writes"], status["dropped"]) == (2, 2)
    mount.report(attempt(name="kept"))
    dropped, kept = mount.events()
    assert (dropped["event"], dropped["count"]) == ("dropped", 2)
    assert kept["path"] == "/dir/kept"
    status = control.status("/mnt")
    assert (status["audit_error"], status["dropped"]) == (None, 2)


def test_mount_that_cannot_be_recorded_is_refused(mount: Mount) -> None:
    mount.start()
    with durable.using(FullDisk()):
        mount.tell(mounted=mount.MOUNT_ID)
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
        mount.report(attempt())
        assert "cannot sync" in control.status("/mnt")["audit_error"]
        assert [event["event"] for event in mount.end()] == ["write_blocked", "io_error", "write_blocked"]
