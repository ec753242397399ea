# SPDX-License-Identifier: Apache-2.0
"""Forking the processes of a mount: what a child keeps, and what it gives up before it starts.

Not from a running trio loop. A child never returns into its parent's code.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import secrets
import select
import signal
import struct
import time
import traceback
from collections.abc import Callable, Iterable

from rofs.fuse.prctl import CAPBSET_DROP, SET_NO_NEW_PRIVS, SET_PDEATHSIG, prctl

# A range of ids that systemd's "Users, Groups, UIDs and GIDs" leaves unused: nobody has such a process.
_FIRST_ID = 0x70000000
_IDS = 0x0FFFFFFE
# What a worker may have of data memory, its caches and what it inherits included: about twice what it needs
# at most. Beyond this the worker is out of memory, not the machine.
WORKER_MEMORY_BYTES = 256 << 20
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_CAPABILITY_SETS_BYTES = 24  # effective, permitted, inheritable; twice 32 bits each
_MAX_FAILURE_BYTES = 4096
_KILLED_SECONDS = 2.0
_MEANINGS = {int(signal.SIGSYS): ", SIGSYS: it made a system call that only somebody who had taken it over would make"}
_AGAIN_SECONDS = 0.02
_libc = ctypes.CDLL(None, use_errno=True)


class Child:
    """A child process that has not been waited for.

    Args:
        pid: Its process id.
        name: What it is, for messages.
        failure_fd: Where it says why it fails.

    Attributes:
        status: Of its exit, once it has ended; minus a signal's number when that killed it.
    """

    def __init__(self, pid: int, name: str, failure_fd: int) -> None:
        self.pid = pid
        self.name = name
        self.failure_fd = failure_fd
        self.status = 0
        self.pidfd = os.pidfd_open(pid)

    def has_ended(self) -> bool:
        """Whether `end` would return at once."""
        return self.ends_within(0)

    def kill(self) -> None:
        """Kill it; `end` is still to be called."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def end(self, patience_seconds: float = 0) -> str | None:
        """Wait for it, kill it when it takes too long, and let go of it; call it once.

        Returns:
            None when it ended as it should, else what it said of its failure, or its exit status.
        """
        if not self.ends_within(patience_seconds):
            os.kill(self.pid, signal.SIGKILL)
            if not self.ends_within(_KILLED_SECONDS):  # it sleeps in the kernel and dies when that wakes it
                self._let_go()
                return "killed, but still asleep in the kernel"
        code = self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        said = os.read(self.failure_fd, _MAX_FAILURE_BYTES).decode("utf-8", "replace")
        self._let_go()
        if not code:
            return None
        return said or (f"killed by signal {-code}{_MEANINGS.get(-code, '')}" if code < 0 else f"exit status {code}")

    def ask(self, number: signal.Signals, patience_seconds: float) -> bool:
        """Send a signal again and again until it has ended: one may come where it interrupts nothing.

        Returns:
            Whether it ended in time; `end` is still to be called.
        """
        deadline = time.monotonic() + patience_seconds
        while not self.ends_within(_AGAIN_SECONDS):
            if time.monotonic() > deadline:
                return False
            signal.pidfd_send_signal(self.pidfd, number)
        return True

    def ends_within(self, seconds: float) -> bool:
        """Wait at most that long for its end; whether it has come."""
        return bool(select.select([self.pidfd], [], [], seconds)[0])

    def _let_go(self) -> None:
        os.close(self.pidfd)
        os.close(self.failure_fd)


def fork(
    main: Callable[[], None],
    *,
    name: str,
    keep: Iterable[int],
    unprivileged: bool,
    memory_bytes: int | None = None,
) -> Child:
    """Run `main` in a child process.

    The child ignores SIGINT, SIGTERM and SIGHUP: the keeper alone decides when a mount ends. An
    unprivileged one is killed when its parent dies, so that no half of a mount stays behind.

    Args:
        main: What the child does; its exit status is 0 when it returns and 1 when it raises.
        name: What it is, for messages.
        keep: Descriptors that the child needs besides 0 to 2; all others are closed.
        unprivileged: Whether it gives up all privileges; see `drop_privileges`.
        memory_bytes: The most data memory it may have, what it inherits included; None for no limit.
    """
    parent = os.getpid()
    reading, writing = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reading)
        os.close(writing)
        raise
    if pid:
        os.close(writing)
        return Child(pid, name, reading)
    status = 1
    try:
        if memory_bytes is not None:
            _limit_memory(memory_bytes)
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
        prctl(SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            raise ProcessLookupError("the parent process is gone")


def _limit_memory(size: int) -> None:
    _soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _described(error: BaseException) -> str:
    """An error nobody foresaw, in one line with its place: there may be no stderr to print a traceback on."""
    while isinstance(error, BaseExceptionGroup):  # says nothing itself
        error = error.exceptions[0]
    frames = list(traceback.walk_tb(error.__traceback__))  # extract_tb reads source files
    place = f" ({os.path.basename(frames[-1][0].f_code.co_filename)}:{frames[-1][1]})" if frames else ""
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
            prctl(CAPBSET_DROP, capability)
        _change_user()
        _drop_capabilities()  # gone already, unless the user could not be changed
    prctl(SET_NO_NEW_PRIVS, 1)


def _change_user() -> None:
    """In a user namespace ids that are not mapped cannot be taken: then it stays who it is there."""
    number = _FIRST_ID + secrets.randbelow(_IDS)
    try:
        os.setresgid(number, number, number)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return
    os.setgroups([])
    os.setresuid(number, number, number)


def _drop_capabilities() -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    if _libc.capset(header, bytes(_CAPABILITY_SETS_BYTES)):
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def _last_capability() -> int:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
        return int(file.read())


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor that is not named, also those that were inherited without our knowing."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
