# SPDX-License-Identifier: Apache-2.0
"""The worker's line to the supervisor: send a report, wait a moment for it to be taken.

Taken means that the supervisor knows who the caller is, and has recorded the report unless that takes
longer than a moment. Blocking on purpose: handlers never await. A supervisor that is slow costs one
request 100 ms, then nobody waits for it until it answers again. Reports are numbered in memory that the
supervisor shares, so that it finds out about those that could not be sent, or died with it.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, MutableSequence

from rofs.fuse.messages import Report, pack_report
from rofs.fuse.shared import Number

ACK_SECONDS = 0.1
_MASK = (1 << 64) - 1
_ACK = struct.Struct("<Q")
_TIMEVAL = struct.Struct("@ll")


class Reporter:
    """Sends reports over one end of a SOCK_SEQPACKET pair.

    Args:
        connection: Blocking; its timeouts are set here.
        numbers: Of this worker's slot, by `Number`; what was reported there before is gone on from.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        connection: socket.socket,
        numbers: MutableSequence[int] | memoryview,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._numbers = numbers
        self._clock = clock
        self._last_sent = 0
        self._waiting = True  # whether the supervisor answered last time
        self._limit(socket.SO_SNDTIMEO, ACK_SECONDS)  # sending comes first, so it may use up all of it

    def report(self, report: Report) -> None:
        """Send a report and wait until it is taken, at most `ACK_SECONDS` for both."""
        deadline = self._clock() + ACK_SECONDS
        number = self._numbers[Number.REPORTED] + 1 & _MASK  # another worker may have written anything there
        self._drain()
        # Who is not waited for may be long gone, or another program, when the supervisor looks.
        held_until_ns = int(deadline * 1e9) if self._waiting else 0
        flags = 0 if self._waiting else socket.MSG_DONTWAIT
        try:
            self._connection.send(pack_report(report, number=number, held_until_ns=held_until_ns), flags)
            self._last_sent = number
        except OSError:  # full, or nobody is there
            self._waiting = False
        # After it was sent: if we die between, the next report has the same number and none seems lost.
        self._numbers[Number.REPORTED] = number
        if self._waiting:
            self._waiting = self._receive_until(number, deadline)

    def _drain(self) -> None:
        """Take acknowledgements that came late: who has caught up is worth waiting for again."""
        while not self._waiting:
            try:
                data = self._connection.recv(_ACK.size, socket.MSG_DONTWAIT)
            except OSError:
                return
            if not data:
                return
            self._waiting = _ACK.unpack(data)[0] == self._last_sent

    def _receive_until(self, number: int, deadline: float) -> bool:
        """Whether the acknowledgement came in time; older ones do not prolong that."""
        while (seconds := deadline - self._clock()) > 0:
            self._limit(socket.SO_RCVTIMEO, seconds)
            try:
                data = self._connection.recv(_ACK.size)
            except OSError:
                return False
            if not data:
                return False
            if _ACK.unpack(data)[0] >= number:
                return True
        return False

    def _limit(self, option: int, seconds: float) -> None:
        microseconds = max(1, int(seconds * 1_000_000))  # 0 would be for ever
        self._connection.setsockopt(socket.SOL_SOCKET, option, _TIMEVAL.pack(0, microseconds))


def acknowledgement(number: int) -> bytes:
    """What the supervisor sends back for the report of that number."""
    return _ACK.pack(number)
