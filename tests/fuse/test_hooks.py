# SPDX-License-Identifier: Apache-2.0
"""Hooks: real shells that are slow, fail, hang, or cannot be started; nobody waits for them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from rofs.fuse import hooks
from rofs.fuse.hooks import Hook, Hooks, _reap
from tests.audit.doubles import open_log


@asynccontextmanager
async def running(command: str, *, seconds: float = 30) -> AsyncIterator[tuple[Hook, list[str]]]:
    failures: list[str] = []
    hook = Hook("event-hook", command, failures.append, seconds_between=0, timeout_seconds=seconds)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hook.run)
            yield hook, failures
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - a file of another process
        await trio.sleep(0.005)


async def test_hook_is_told_of_each_event_as_it_is_in_the_log(tmp_path: Path) -> None:
    out = tmp_path / "out"
    hook = Hook("event-hook", f"cat >> {out}", print, seconds_between=0)
    with open_log(tmp_path / "log") as log:
        log._on_written = hook.offer
        log.write("mount")
        log.write("write_blocked", op="open", path='/"event":"corruption"')
    hook.end()
    await hook.run()
    assert out.read_bytes() == (tmp_path / "log").read_bytes()
    assert (hook.failures, hook.skipped) == (0, 0)


async def test_corruption_hook_is_told_of_corruption_only(tmp_path: Path) -> None:
    out, every = tmp_path / "out", tmp_path / "every"
    both = Hooks(f"cat > {every}", f"cat > {out}", print)
    with open_log(tmp_path / "log") as log:
        log._on_written = both.offer
        log.write("write_blocked", op="open", path='/"event":"corruption"')
        log.write("corruption", nid=1)
        log.write("write_blocked", op="open", path="/")
    both.end()
    await both.run()
    assert json.loads(out.read_bytes())["seq"] == 2
    assert json.loads(every.read_bytes())["seq"] == 3


async def test_no_hooks_are_no_hooks() -> None:
    none = Hooks(None, None, print)
    none.offer(b"{}\n")
    await none.run()


async def test_hook_that_fails_is_recorded_once_until_it_works_again(tmp_path: Path) -> None:
    async with running(f"test -e {tmp_path}/ok") as (hook, failures):
        for number in range(1, 4):
            hook.offer(b"{}")
            await until(partial(_has_failed, hook, number))
        assert failures == ["event-hook: exit status 1"]
        (tmp_path / "ok").touch()
        hook.offer(b"{}")
        await until(lambda: not hook._is_failing)
        (tmp_path / "ok").unlink()
        hook.offer(b"{}")
        await until(lambda: len(failures) == 2)
    assert hook.failures == 4


async def test_hook_that_does_not_end_is_killed_with_what_it_started(tmp_path: Path) -> None:
    async with running(f"sleep 60 & echo $! > {tmp_path}/pid; sleep 61", seconds=0.2) as (hook, failures):
        hook.offer(b"{}")
        await until(lambda: failures)
        assert failures == ["event-hook: killed after 0.2 s"]
        pid = int((tmp_path / "pid").read_text())
        await until(lambda: _is_gone(pid))


async def test_hook_that_runs_at_the_end_is_killed(tmp_path: Path) -> None:
    async with running(f"echo $$ > {tmp_path}/pid; sleep 60") as (hook, _):
        hook.offer(b"{}")
        await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    await until(lambda: _is_gone(pid))
    assert _reap(pid) == -signal.SIGKILL


async def test_one_process_runs_at_a_time(tmp_path: Path) -> None:
    command = f"mkdir {tmp_path}/lock && sleep 0.05 && rmdir {tmp_path}/lock"
    hook = Hook("event-hook", command, print, seconds_between=0)
    for _ in range(5):
        hook.offer(b"{}")
    hook.end()
    await hook.run()
    assert hook.failures == 0


async def test_what_comes_too_fast_is_counted_and_told(tmp_path: Path) -> None:
    out = tmp_path / "out"
    hook = Hook("event-hook", f"echo $ROFS_HOOK $ROFS_SKIPPED >> {out}", print, seconds_between=0)
    for _ in range(100):
        hook.offer(b"{}")
    hook.end()
    await hook.run()
    assert out.read_text().splitlines() == ["event-hook 84", *["event-hook 0"] * 15]
    assert hook.skipped == 84


async def test_processes_are_not_started_more_often_than_allowed(autojump_clock: trio.testing.MockClock) -> None:
    starts: list[float] = []

    async def tell(line: bytes) -> None:
        starts.append(trio.current_time())

    hook = Hook("event-hook", "true", print)
    hook._tell = tell  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hook.run)
        for _ in range(3):
            hook.offer(b"{}")
        await trio.sleep(10)
        hook.offer(b"{}")
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert [start - starts[0] for start in starts] == [0, 1, 2, 10]


async def test_shell_that_cannot_be_started_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(hooks, "_SHELL", "/nowhere/sh")
    failures: list[str] = []
    hook = Hook("event-hook", "true", failures.append)
    hook.offer(b"{}")
    hook.end()
    await hook.run()
    assert failures == ["event-hook: cannot be started: No such file or directory"]


async def test_event_of_another_thread_wakes_it(tmp_path: Path) -> None:
    async with running(f"touch {tmp_path}/told") as (hook, _):
        await trio.testing.wait_all_tasks_blocked()
        await trio.to_thread.run_sync(hook.offer, b"{}")
        await until((tmp_path / "told").exists)


async def test_hook_that_does_not_read_is_no_failure() -> None:
    async with running("exit 0") as (hook, failures):
        hook.offer(b"x" * (1 << 20))
        await until(lambda: not hook._waiting)
        await trio.sleep(0.1)
        assert failures == []


async def test_hook_has_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptors, no variables, and signals as a program expects them."""
    out = tmp_path / "out"
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        hook = Hook("event-hook", f"(ls /proc/self/fd; env; cat /proc/self/status) > {out}", print)
        hook.offer(b"{}")
        hook.end()
        await hook.run()
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    text = out.read_text()
    assert "SECRET" not in text
    fds = {int(word) for word in text.splitlines() if word.isdigit()}
    ours = {fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_inheritable(fd)}
    assert fds - ours <= {0, 1, 2, 3, 10}  # 3 is the listing itself, 10 a shell's own
    status = dict(line.split(":", 1) for line in text.splitlines() if ":\t" in line)
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigIgn"], 16) & 1 << signal.SIGTERM - 1 == 0


def _is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def _has_failed(hook: Hook, number: int) -> bool:
    return hook.failures == number


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
