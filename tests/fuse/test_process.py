# SPDX-License-Identifier: Apache-2.0
"""What a forked process of a mount keeps, and what it has given up."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from rofs.fuse.process import fork

from .doubles import open_descriptors

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root has something to give up")


def told_by_child(tell: Callable[[], Any], *, unprivileged: bool, keep: tuple[int, ...] = ()) -> Any:
    """Run `tell` in a child; returns its result, which must be JSON."""
    reading, writing = os.pipe()

    def main() -> None:
        os.write(writing, json.dumps(tell()).encode())

    child = fork(main, name="teller", keep=(writing, *keep), unprivileged=unprivileged)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    assert child.end(10) is None
    return json.loads(told)


def status_fields() -> dict[str, str]:
    with open("/proc/self/status", encoding="utf-8") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


@pytest.mark.parametrize("unprivileged", [True, False])
def test_only_kept_descriptors_are_open(unprivileged: bool) -> None:
    kept, other = os.pipe()
    try:

        def open_descriptors() -> list[int]:
            found = []
            for name in os.listdir("/proc/self/fd"):
                try:
                    os.fstat(int(name))
                except OSError:
                    continue  # that of the listing itself
                found.append(int(name))
            return found

        found = told_by_child(open_descriptors, unprivileged=unprivileged, keep=(kept,))
        assert {0, 1, 2, kept} <= set(found)
        assert other not in found
        assert len(found) == 6  # and the pipes that tell us, and that say why it failed
    finally:
        os.close(kept)
        os.close(other)


@needs_root
def test_unprivileged_child_is_nobody_without_capabilities() -> None:
    fields = told_by_child(status_fields, unprivileged=True)
    (uid,), (gid,) = set(fields["Uid"].split()), set(fields["Gid"].split())
    assert uid == gid
    assert 0x70000000 <= int(uid) < 0x7FFFFFFF
    assert uid not in told_by_child(status_fields, unprivileged=True)["Uid"].split()
    assert fields["Groups"] == ""
    assert {int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb", "CapBnd")} == {0}
    assert fields["NoNewPrivs"] == "1"


def test_privileged_child_keeps_who_it_is() -> None:
    fields = told_by_child(status_fields, unprivileged=False)
    assert fields["Uid"] == status_fields()["Uid"]
    assert fields["NoNewPrivs"] == status_fields()["NoNewPrivs"]


@needs_root
def test_unprivileged_child_cannot_become_root_again() -> None:
    def attempt() -> str:
        try:
            os.setuid(0)
        except PermissionError:
            return "refused"
        return "root"

    assert told_by_child(attempt, unprivileged=True) == "refused"


@pytest.mark.parametrize("unprivileged", [True, False])
def test_child_ignores_what_only_the_keeper_decides_about(unprivileged: bool) -> None:
    def survive() -> str:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        return "alive"

    assert told_by_child(survive, unprivileged=unprivileged) == "alive"


def test_a_child_says_why_it_failed() -> None:
    def fail() -> None:
        raise ValueError("what went wrong")

    for unprivileged in (True, False):
        said = fork(fail, name="x", keep=(), unprivileged=unprivileged).end(10)
        assert said is not None
        assert re.fullmatch(r"ValueError: what went wrong \(test_process\.py:\d+\)", said)


def test_a_child_that_is_killed_or_exits_says_so() -> None:
    def leave() -> None:
        os._exit(3)

    assert fork(leave, name="x", keep=(), unprivileged=True).end(10) == "exit status 3"
    assert fork(signal.pause, name="x", keep=(), unprivileged=True).end(0) == "killed by signal 9"


def test_whether_a_child_has_ended() -> None:
    child = fork(signal.pause, name="x", keep=(), unprivileged=False)
    assert not child.has_ended()
    os.kill(child.pid, signal.SIGKILL)
    while not child.has_ended():
        os.sched_yield()
    assert child.end(10) == "killed by signal 9"


def test_how_a_child_ended_is_kept() -> None:
    for leave, status in ((lambda: os._exit(3), 3), (signal.pause, -signal.SIGKILL), (lambda: None, 0)):
        child = fork(leave, name="x", keep=(), unprivileged=False)
        child.end(0 if status < 0 else 10)
        assert child.status == status


def test_signal_that_came_too_early_is_sent_again() -> None:
    """One that comes between a look at its flag and read(2) interrupts nothing."""

    def be_deaf_at_first() -> None:
        heard = 0

        def hear(*_: object) -> None:
            nonlocal heard
            heard += 1

        signal.signal(signal.SIGUSR1, hear)
        os.write(writing, b"+")
        while heard < 3:
            signal.pause()

    reading, writing = os.pipe()
    child = fork(be_deaf_at_first, name="x", keep=(writing,), unprivileged=True)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        assert pipe.read(1) == b"+"
        assert child.ask(signal.SIGUSR1, 10)
    assert child.end() is None


def test_child_that_does_not_do_what_it_is_asked_is_left_to_be_ended() -> None:
    def refuse() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        os.write(writing, b"+")
        while True:
            signal.pause()

    reading, writing = os.pipe()
    child = fork(refuse, name="x", keep=(writing,), unprivileged=True)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        assert pipe.read(1) == b"+"
        assert not child.ask(signal.SIGUSR1, 0.05)
    assert not child.has_ended()
    assert child.end() == "killed by signal 9"


def test_memory_beyond_its_limit_is_a_memory_error_and_not_the_machines_trouble() -> None:
    def need_much() -> None:
        needed = bytearray(64 << 20)
        del needed

    assert fork(need_much, name="x", keep=(), unprivileged=True).end(10) is None
    for size in (32 << 20, 1 << 20):
        said = fork(need_much, name="x", keep=(), unprivileged=True, memory_bytes=size).end(10)
        assert said is not None
        assert said.startswith("MemoryError")


def test_host_that_has_no_process_to_spare_loses_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fail)
    before = open_descriptors()
    with pytest.raises(BlockingIOError):
        fork(signal.pause, name="x", keep=(), unprivileged=True)
    assert open_descriptors() == before


def test_child_that_exits_does_not_return_into_our_code() -> None:
    def leave() -> None:
        raise SystemExit(0)

    child = fork(leave, name="x", keep=(), unprivileged=False)
    assert child.pid != 0
    child.end(10)


def test_unprivileged_child_dies_with_its_parent() -> None:
    """A parent that is killed leaves a grandchild that would sleep for a minute."""
    reading, writing = os.pipe()

    def parent() -> None:
        fork(lambda: time.sleep(60), name="grandchild", keep=(writing,), unprivileged=True)
        os.write(writing, b"+")
        signal.pause()

    child = fork(parent, name="parent", keep=(writing,), unprivileged=False)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        assert pipe.read(1) == b"+"
        os.kill(child.pid, signal.SIGKILL)
        child.end(10)
        assert select.select([pipe], [], [], 10)[0], "the grandchild lives on"
        assert pipe.read(1) == b""
