# SPDX-License-Identifier: Apache-2.0
"""Programs of the administrator's that are told of events: `--event-hook`, `--corruption-hook`.

A hook gets one event, the line of the log, on its standard input, and runs through /bin/sh in a process group
of its own with a few environment variables. One process of each hook runs at a time, not more often than every
second, and not longer than it may; events that come faster wait, and the rest is only counted. Nobody waits for
a hook: it can delay or lose nothing but what it is told itself. It does not write the log, and does not decide
what is an event.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

import trio

_SHELL: Final = "/bin/sh"
_SECONDS_BETWEEN = 1.0
_TIMEOUT_SECONDS = 30.0
_MAX_WAITING = 16
_FAILURE_PAUSE_SECONDS = 5.0  # when not even a shell can be started
_INHERITED = ("PATH", "LANG", "TZ")
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# What the log writes is canonical, and a quote in a path is escaped, so this is nowhere else.
_CORRUPTION = b'"event":"corruption"'


class Hook:
    """One program that is told of events.

    Args:
        name: What messages call it.
        command: For the shell.
        on_failure: Told why, when it fails after it has worked, or for the first time.
        timeout_seconds: How long one process may take before it is killed, with its process group.
        seconds_between: From the start of one process to that of the next.

    Attributes:
        failures: How many processes have failed, or could not be started.
        skipped: How many events it was not told of, because too many came.
    """

    def __init__(
        self,
        name: str,
        command: str,
        on_failure: Callable[[str], object],
        *,
        timeout_seconds: float = _TIMEOUT_SECONDS,
        seconds_between: float = _SECONDS_BETWEEN,
    ) -> None:
        self.name = name
        self.failures = 0
        self.skipped = 0
        self._command = command
        self._on_failure = on_failure
        self._timeout_seconds = timeout_seconds
        self._seconds_between = seconds_between
        self._waiting: deque[bytes] = deque()
        self._untold = 0  # skipped since the last process was started
        self._wake = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._ending = False
        self._is_failing = False

    def offer(self, line: bytes) -> None:
        """Have it told of an event, as soon as that may be; from any thread, and at once.

        Args:
            line: Of the log.
        """
        if len(self._waiting) >= _MAX_WAITING:
            self.skipped += 1
            self._untold += 1
            return
        self._waiting.append(line)
        self._notify()

    def end(self) -> None:
        """No more events will come: `run` returns when those that wait are told."""
        self._ending = True
        self._notify()

    async def run(self) -> None:
        """Tell it of events until `end`, or until cancelled: then a process that runs is killed."""
        self._token = trio.lowlevel.current_trio_token()
        while True:
            self._wake = trio.Event()
            while self._waiting:
                next_start = trio.current_time() + self._seconds_between
                await self._tell(self._waiting.popleft())
                if self._waiting or not self._ending:
                    await trio.sleep_until(next_start)
            if self._ending:
                return
            await self._wake.wait()

    def _notify(self) -> None:
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._wake_up, idempotent=True)

    def _wake_up(self) -> None:
        self._wake.set()

    async def _tell(self, line: bytes) -> None:
        skipped, self._untold = self._untold, 0
        try:
            environment = _environment(self.name, skipped)
            pid = await trio.to_thread.run_sync(_spawn, self._command, line, environment)
        except OSError as error:
            self._fail(f"cannot be started: {error.strerror}")
            await trio.sleep(_FAILURE_PAUSE_SECONDS)
            return
        why = await _wait(pid, self._timeout_seconds)
        if why is None:
            self._is_failing = False
        else:
            self._fail(why)

    def _fail(self, why: str) -> None:
        self.failures += 1
        if not self._is_failing:
            self._is_failing = True
            self._on_failure(f"{self.name}: {why}")


class Hooks:
    """The hooks of a mount.

    Args:
        event: Command that is told of every event; None for none.
        corruption: Command that is told of every `corruption` event; None for none.
        on_failure: Told why, when one fails after it has worked, or for the first time.
    """

    def __init__(self, event: str | None, corruption: str | None, on_failure: Callable[[str], object]) -> None:
        self._event = None if event is None else Hook("event-hook", event, on_failure)
        self._corruption = None if corruption is None else Hook("corruption-hook", corruption, on_failure)
        self.all = [hook for hook in (self._event, self._corruption) if hook is not None]

    def offer(self, line: bytes) -> None:
        """Tell those whom it concerns of an event; from any thread, and at once: `AuditLog`'s `on_written`.

        Args:
            line: Of the log.
        """
        if self._event is not None:
            self._event.offer(line)
        if self._corruption is not None and _CORRUPTION in line:
            self._corruption.offer(line)

    def end(self) -> None:
        """No more events will come: `run` returns when those that wait are told."""
        for hook in self.all:
            hook.end()

    async def run(self) -> None:
        """Tell them of events until `end`, or until cancelled."""
        async with trio.open_nursery() as nursery:
            for hook in self.all:
                nursery.start_soon(hook.run)


def _environment(name: str, skipped: int) -> Mapping[str, str]:
    inherited = {key: os.environ[key] for key in _INHERITED if key in os.environ}
    return {"PATH": _DEFAULT_PATH, **inherited, "ROFS_HOOK": name, "ROFS_SKIPPED": str(skipped)}


def _spawn(command: str, line: bytes, environment: Mapping[str, str]) -> int:
    """Start it with the event as a file, so that nobody waits for it to read.

    posix_spawn, because signals that we ignore would otherwise be ignored by whatever the hook starts.
    """
    fd = os.memfd_create("rofs-event", os.MFD_CLOEXEC)
    try:
        os.write(fd, line)
        os.lseek(fd, 0, os.SEEK_SET)
        return os.posix_spawn(
            _SHELL,
            [_SHELL, "-c", command],
            environment,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, fd, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setpgroup=0,
            setsigmask=(),
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )
    finally:
        os.close(fd)


async def _wait(pid: int, seconds: float) -> str | None:
    """Wait for the end of our child, and bring it about in the end; returns what went wrong."""
    try:
        pidfd = os.pidfd_open(pid)
        try:
            with trio.move_on_after(seconds):
                await trio.lowlevel.wait_readable(pidfd)
                return _failure(_reap(pid))
            _kill(pid)
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
    except trio.Cancelled:
        _kill(pid)
        raise
    _reap(pid)
    return f"killed after {seconds:g} s"


def _reap(pid: int) -> int:
    """The exit code of a child that has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _failure(code: int) -> str | None:
    if code == 0:
        return None
    return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
