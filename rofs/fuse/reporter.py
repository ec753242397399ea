# SPDX-License-Identifier: Apache-2.0
"""The worker's line to the supervisor: send a report, wait a moment for it to be recorded.

Blocking on purpose: handlers never await. A supervisor that is slow costs one request 100 ms, then
nobody waits for it until it answers again; what cannot even be sent is counted and told later.
"""

from __future__ import annotations

import socket
import struct

from rofs.fuse.messages import Report, pack_report

ACK_SECONDS = 0.1
_ACK = struct.Struct("<Q")
_TIMEVAL = struct.Struct("@ll")


class Reporter:
    """Sends reports over one end of a SOCK_SEQPACKET pair."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._number = 0
        self._dropped = 0
        self._last_sent = 0
        self._waiting = True  # whether the supervisor answered last time
        timeout = _TIMEVAL.pack(0, int(ACK_SECONDS * 1_000_000))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)

    def report(self, report: Report) -> None:
        """Send a report and wait until it is recorded, at most `ACK_SECONDS`."""
        self._number += 1
        self._drain()
        flags = 0 if self._waiting else socket.MSG_DONTWAIT
        try:
            self._connection.send(pack_report(report, number=self._number, dropped=self._dropped), flags)
        except OSError:  # full, or nobody is there
            self._dropped += 1
            self._waiting = False
            return
        self._dropped = 0
        self._last_sent = self._number
        if self._waiting:
            self._waiting = self._receive_until(self._number)

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

    def _receive_until(self, number: int) -> bool:
        while True:
            try:
                data = self._connection.recv(_ACK.size)
            except OSError:
                return False
            if not data:
                return False
            if _ACK.unpack(data)[0] >= number:
                return True


def acknowledgement(number: int) -> bytes:
    """What the supervisor sends back for the report of that number."""
    return _ACK.pack(number)
