# SPDX-License-Identifier: Apache-2.0
"""Signals as something to wait for together with descriptors, for a process without an event loop."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from collections.abc import Iterable, Iterator

from rofs.errors import HostError, StateError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Signals that have come.

    Attributes:
        stop: Whether somebody has asked this process to end.
    """

    def __init__(self, receiving: socket.socket) -> None:
        self._receiving = receiving
        self.stop = False

    def wait(self, fds: Iterable[int], seconds: float | None = None) -> set[int]:
        """Wait until a descriptor can be read, a signal has come (a child's death is one), or time is up.

        Returns:
            The descriptors that can be read; empty for a signal or when time is up.
        """
        wakeup = self._receiving.fileno()
        ready = set(select.select([wakeup, *fds], [], [], seconds)[0])
        if wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                self.stop = self.stop or any(number in STOP_SIGNALS for number in self._receiving.recv(4096))
        return ready - {wakeup}

    def wait_for(self, fd: int, seconds: float, what: str) -> None:
        """Wait for one descriptor; signals other than those that ask to stop do not matter.

        Raises:
            HostError: Time is up; `what` has not answered.
            StateError: This process was asked to end meanwhile.
        """
        deadline = time.monotonic() + seconds
        while not self.stop:
            if fd in self.wait([fd], max(0.0, deadline - time.monotonic())):
                return
            if time.monotonic() >= deadline:
                raise HostError(f"{what} did not answer within {seconds:g} s")
        raise StateError("stopped by a signal before the mount was ready")


@contextlib.contextmanager
def caught() -> Iterator[Signals]:
    """Catch SIGCHLD and the signals that ask to stop; what they did before is restored at the end."""
    receiving, sending = socket.socketpair()
    for end in (receiving, sending):
        end.settimeout(0)
    # Whoever started us may have blocked signals, which is inherited; then no child's death would show.
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, ())
    numbers = [
        n for n in (*STOP_SIGNALS, signal.SIGCHLD) if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}  # nohup(1) is respected
    signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
    try:
        yield Signals(receiving)
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        receiving.close()
        sending.close()
