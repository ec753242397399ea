# SPDX-License-Identifier: Apache-2.0
"""The supervisor in a thread, with a real log, and what keeper, worker and resolver hold of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
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
from rofs.fuse.messages import MAX_MESSAGE_BYTES, Attempt, PathsAnswer, PathsQuestion, Report, pack_report
from rofs.fuse.reporter import acknowledgement
from tests.audit.doubles import FullDisk

from .doubles import FACTS

FOREVER_NS = 2**63  # a caller that is held in its system call as long as we look
PATHS = {2: ("/dir",)}


class Mount:
    """A supervisor, and what keeper, worker and resolver would hold of it."""

    def __init__(self, directory: Path) -> None:
        self.log = directory / "log" / "mnt.jsonl"
        self.keeper, self._keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.worker, self._worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.resolver, self._resolver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.counters = Counters()
        self.number = 0
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
                self.resolver.send(PathsAnswer(PATHS.get(PathsQuestion.parse(data).nid, ())).pack())

    def start(self, *, resolver: bool = True) -> None:
        self._threads[0].start()
        if resolver:
            self._threads[1].start()
        assert self.told()["ready"]

    def tell(self, **message: Any) -> None:
        self.keeper.send(json.dumps(message).encode())

    def told(self) -> Any:
        return json.loads(self.keeper.recv(MAX_MESSAGE_BYTES))

    def be_mounted(self) -> None:
        self.tell(mounted=True)
        assert self.told()["recorded"]

    def report(self, report: Report, *, dropped: int = 0) -> None:
        """Send a report and wait for its acknowledgement."""
        self.number += 1
        self.worker.send(pack_report(report, number=self.number, dropped=dropped, held_until_ns=FOREVER_NS))
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
    mount.tell(worker_exit={"pid": 7, "detail": "worker: killed by signal 9"})
    event = mount.end()[0]
    assert (event["event"], event["pid"], event["detail"]) == ("worker_exit", 7, "worker: killed by signal 9")


def test_keeper_that_is_gone_is_recorded_and_ends_it(mount: Mount) -> None:
    mount.start()
    mount.be_mounted()
    mount.report(attempt())
    mount.keeper.close()
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


# The end


@pytest.mark.parametrize("resolver", [True, False])
def test_what_has_no_paths_in_time_is_counted_before_the_umount(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, resolver: bool
) -> None:
    monkeypatch.setattr(supervisor, "_LAST_RECORDS_SECONDS", 20 if resolver else 0.05)
    mount.start(resolver=resolver)
    mount.be_mounted()
    for number in range(5):
        mount.worker.send(pack_report(attempt(), number=number + 1, dropped=0, held_until_ns=FOREVER_NS))
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
        mount.report(attempt(name="lost"))
        mount.report(attempt(name="lost"))
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
        mount.report(attempt())
        assert "cannot sync" in control.status("/mnt")["audit_error"]
        assert [event["event"] for event in mount.end()] == ["write_blocked", "io_error", "write_blocked"]
