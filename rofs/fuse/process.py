# SPDX-License-Identifier: Apache-2.0
"""Forking the processes of a mount: what a child keeps, and what it gives up before it starts.

Not from a running trio loop. A child never returns into its parent's code.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import select
import signal
import traceback
from collections.abc import Callable, Iterable

# A range of ids that systemd's "Users, Groups, UIDs and GIDs" leaves unused: nobody has such a process.
_FIRST_ID = 0x70000000
_IDS = 0x0FFFFFFE
_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38
_MAX_FAILURE_BYTES = 4096
_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """A child process that has not been waited for.

    Attributes:
        pid: Its process id.
        name: What it is, for messages.
    """

    def __init__(self, pid: int, name: str, failure_fd: int) -> None:
        self.pid = pid
        self.name = name
        self._pidfd = os.pidfd_open(pid)
        self._failure_fd = failure_fd

    def has_ended(self) -> bool:
        """Whether `end` would return at once."""
        return bool(select.select([self._pidfd], [], [], 0)[0])

    def end(self, patience_seconds: float = 0) -> str | None:
        """Wait for it, kill it when it takes too long, and let go of it; call it once.

        Returns:
            None when it ended as it should, else what it said of its failure, or its exit status.
        """
        if not select.select([self._pidfd], [], [], patience_seconds)[0]:
            os.kill(self.pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self._pidfd)
        with os.fdopen(self._failure_fd, "rb") as pipe:
            said = pipe.read(_MAX_FAILURE_BYTES).decode("utf-8", "replace")
        if not code:
            return None
        return said or (f"killed by signal {-code}" if code < 0 else f"exit status {code}")


def fork(main: Callable[[], None], *, name: str, keep: Iterable[int], unprivileged: bool) -> Child:
    """Run `main` in a child process.

    The child ignores SIGINT, SIGTERM and SIGHUP: the keeper alone decides when a mount ends. An
    unprivileged one is killed when its parent dies, so that no half of a mount stays behind.

    Args:
        main: What the child does; its exit status is 0 when it returns and 1 when it raises.
        name: What it is, for messages.
        keep: Descriptors that the child needs besides 0 to 2; all others are closed.
        unprivileged: Whether it gives up all privileges; see `drop_privileges`.
    """
    parent = os.getpid()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return Child(pid, name, reading)
    status = 1
    try:
        _prepare(parent, {0, 1, 2, writing, *keep}, unprivileged=unprivileged)
        main()
        status = 0
    except BaseException as error:  # noqa: BLE001 - nothing may escape into the parent's code
        with contextlib.suppress(OSError):
            os.write(writing, _described(error).encode("utf-8", "backslashreplace"))
    finally:
        os._exit(status)


def _prepare(parent: int, keep: set[int], *, unprivileged: bool) -> None:
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    close_all_but(keep)
    if unprivileged:
        drop_privileges()
        # After the change of user, which clears it.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            raise ProcessLookupError("the parent process is gone")


def _described(error: BaseException) -> str:
    """An error nobody foresaw, in one line with its place: there may be no stderr to print a traceback on."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"[: _MAX_FAILURE_BYTES // 4]


def drop_privileges() -> None:
    """Become a user that nothing else is, without capabilities and without a way to get any.

    The id is drawn at random: even two processes of one mount cannot send each other signals, and no
    service that shares the id of nobody can. A process that is not root has nothing to drop.

    Raises:
        OSError: The kernel refused; the caller must not go on.
    """
    if os.geteuid() == 0:
        for capability in range(_last_capability() + 1):
            _prctl(_PR_CAPBSET_DROP, capability)
        os.setgroups([])
        number = _FIRST_ID + secrets.randbelow(_IDS)
        os.setresgid(number, number, number)
        os.setresuid(number, number, number)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}, {value}): {os.strerror(number)}")


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor that is not named, also those that were inherited without our knowing."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
