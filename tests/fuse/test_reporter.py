# SPDX-License-Identifier: Apache-2.0
"""The worker's line to the supervisor, over a real socket pair: it waits for who answers, and for nobody else.

Time is made up: a call that would wait says for how long, and what comes meanwhile is said beforehand.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rofs.fuse.messages import MAX_MESSAGE_BYTES, InternalReport, parse_report
from rofs.fuse.reporter import ACK_SECONDS, Reporter, acknowledgement
from rofs.fuse.shared import Number, SharedState

_JIFFY = 0.01  # the kernel rounds a timeout up to these


class Socket(socket.socket):
    """Never waits: a call that would waits in `now`, for what `Line.later` said, or until its timeout."""

    line: Line

    def recv(self, size: int, flags: int = 0) -> bytes:
        while True:
            try:
                return super().recv(size, flags | socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(socket.SO_RCVTIMEO, flags)

    def send(self, data: Any, flags: int = 0) -> int:
        while True:
            try:
                return super().send(data, flags | socket.MSG_DONTWAIT)
            except BlockingIOError:
                self._wait(socket.SO_SNDTIMEO, flags)

    def _wait(self, option: int, flags: int) -> None:
        """Wait for the next thing to happen.

        Raises:
            BlockingIOError: The timeout came first.
        """
        if flags & socket.MSG_DONTWAIT:
            raise BlockingIOError
        seconds, microseconds = struct.unpack("@ll", self.getsockopt(socket.SOL_SOCKET, option, 16))
        timeout = seconds + microseconds / 1_000_000
        assert timeout > 0, "it would wait for ever"
        if not self.line.happen_within(timeout):
            raise BlockingIOError


class Line:
    """A reporter, and the supervisor's end of its socket."""

    def __init__(self) -> None:
        self.supervisor, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.supervisor.setblocking(False)
        self.worker = Socket(fileno=worker.detach())
        self.worker.line = self
        self.now = 1000.0
        self.numbers = [0] * len(Number)
        self.reporter = Reporter(self.worker, self.numbers, clock=lambda: self.now)
        self._later: list[tuple[float, int | None]] = []

    def report(self, detail: str = "x") -> float:
        """Report something; returns how many seconds that waited."""
        before = self.now
        self.reporter.report(InternalReport(nid=None, detail=detail))
        return self.now - before

    def later(self, seconds: float, acknowledged: int | None = None) -> None:
        """Each follows on the one before. Without a number the supervisor reads all that was sent."""
        self._later.append((seconds, acknowledged))

    def happen_within(self, timeout: float) -> bool:
        if not self._later or self._later[0][0] > timeout:
            self.now += timeout
            return False
        seconds, number = self._later.pop(0)
        self.now += seconds
        if number is None:
            self.received()
        else:
            self.acknowledge(number)
        return True

    def received(self) -> list[tuple[str, int]]:
        """Detail and number of all reports that have come."""
        found: list[tuple[str, int]] = []
        while True:
            try:
                delivery = parse_report(self.supervisor.recv(MAX_MESSAGE_BYTES))
            except BlockingIOError:
                return found
            assert isinstance(delivery.report, InternalReport)
            found.append((delivery.report.detail, delivery.number))

    @property
    def reported(self) -> int:
        """What the supervisor sees of it in the shared memory."""
        return self.numbers[Number.REPORTED]

    def acknowledge(self, number: int) -> None:
        self.supervisor.send(acknowledgement(number))

    def fill(self) -> None:
        """Leave no room for a report in the socket."""
        self.worker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.worker.send(FILLING, socket.MSG_DONTWAIT)


FILLING = b'{"report": "internal", "number": 0, "held_until_ns": 0, "fields": {"nid": null, "detail": ""}}'
FULL_WAIT = pytest.approx(ACK_SECONDS, abs=2 * _JIFFY)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    with line.supervisor, line.worker:
        yield line


def test_recorded_report_costs_nothing(line: Line) -> None:
    for number in range(1, 5):
        line.acknowledge(number)
        assert line.report(f"r{number}") == 0
    assert line.received() == [(f"r{n}", n) for n in range(1, 5)]
    assert line.reported == 4


def test_report_takes_as_long_as_its_acknowledgement(line: Line) -> None:
    for number in (1, 2, 3):
        line.later(0.06, number)
        assert line.report() == pytest.approx(0.06)


def test_silent_supervisor_costs_one_wait_and_then_nothing(line: Line) -> None:
    assert line.report() == FULL_WAIT
    assert sum(line.report() for _ in range(50)) == 0
    assert [number for _, number in line.received()] == list(range(1, 52))


def test_real_socket_waits_in_real_time() -> None:
    supervisor, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with supervisor, worker:
        reporter = Reporter(worker, [0] * len(Number))
        before = time.monotonic()
        reporter.report(InternalReport(nid=None, detail="x"))
        assert time.monotonic() - before >= 0.9 * ACK_SECONDS


def test_acknowledgements_of_older_reports_do_not_prolong_the_wait(line: Line) -> None:
    line.acknowledge(1)
    line.report()
    for _ in range(100):
        line.later(0.03, 1)  # again, as nobody should
    assert line.report() == FULL_WAIT


def test_flood_of_older_acknowledgements_does_not_prolong_the_wait(line: Line) -> None:
    line.acknowledge(1)
    line.report()
    for _ in range(1000):
        line.later(0.001, 1)
    assert line.report() == FULL_WAIT


def test_sending_and_waiting_have_one_deadline(line: Line) -> None:
    line.fill()
    line.later(0.07)
    assert line.report() == FULL_WAIT
    assert [number for _, number in line.received()] == [1]


def test_what_is_left_of_the_deadline_is_enough(line: Line) -> None:
    line.fill()
    line.later(0.07)
    line.later(0.02, 1)
    assert line.report() == pytest.approx(0.09)
    line.later(0.09, 2)
    assert line.report() == pytest.approx(0.09)  # it is still waited for


def test_who_has_caught_up_is_waited_for_again(line: Line) -> None:
    for _ in range(3):
        line.report()
    for number in (1, 2, 3):
        line.acknowledge(number)
    line.acknowledge(4)
    assert line.report() == 0
    assert line.report() == FULL_WAIT  # it waits again


def test_who_is_still_behind_is_not_waited_for(line: Line) -> None:
    for _ in range(3):
        line.report()
    line.acknowledge(1)
    line.acknowledge(2)
    assert line.report() == 0
    line.acknowledge(3)
    line.acknowledge(4)
    assert line.report() == FULL_WAIT


def test_late_acknowledgement_of_an_older_report_is_not_taken_for_this_one(line: Line) -> None:
    line.acknowledge(1)
    line.report()
    line.acknowledge(1)  # again, as nobody should
    assert line.report() == FULL_WAIT


def test_acknowledgement_that_was_lost_does_not_end_the_waiting_for_good(line: Line) -> None:
    line.report()
    line.report()  # 2 is never acknowledged
    line.report()
    line.acknowledge(3)
    line.acknowledge(4)
    assert line.report() == 0
    assert line.report() == FULL_WAIT


def test_full_socket_leaves_a_gap_between_the_numbers(line: Line) -> None:
    line.fill()
    line.report("first")
    assert sum(line.report("lost") for _ in range(9)) == 0
    assert line.reported == 10
    assert {detail for detail, _ in line.received()} == {""}  # what filled it
    line.report("again")
    line.report("more")
    assert line.received() == [("again", 11), ("more", 12)]


def test_full_socket_costs_one_wait(line: Line) -> None:
    line.fill()
    assert line.report() == FULL_WAIT
    assert line.report() == 0
    assert line.reported == 2


def test_report_that_could_not_be_sent_does_not_wait_for_an_older_acknowledgement(line: Line) -> None:
    """Once there is room again, the next report is what tells whether anybody answers."""
    line.acknowledge(1)
    line.report()
    line.received()
    line.fill()
    assert line.report() == FULL_WAIT
    line.received()
    line.acknowledge(3)
    assert line.report() == 0


def test_successor_in_a_slot_goes_on_counting(line: Line) -> None:
    """Else its reports would be taken for those of its predecessor, and a loss between them for none."""
    line.acknowledge(1)
    line.report()
    supervisor, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with supervisor, worker:
        supervisor.send(acknowledgement(2))
        Reporter(worker, line.numbers).report(InternalReport(nid=None, detail="x"))
        assert parse_report(supervisor.recv(MAX_MESSAGE_BYTES)).number == 2
    assert line.reported == 2


def test_report_counts_only_once_it_was_sent(line: Line) -> None:
    """Who dies in between is followed by one that uses the same number: nothing seems lost."""

    class DeadError(Exception):
        pass

    def die(data: bytes, flags: int = 0) -> int:
        raise DeadError

    line.worker.send = die  # type: ignore[method-assign]
    with pytest.raises(DeadError):
        line.report()
    assert line.reported == 0


def test_who_is_not_waited_for_is_not_said_to_be_held(line: Line) -> None:
    """Its caller may be gone, or another program, when the supervisor looks."""
    line.report()
    line.report()
    first, second = (parse_report(line.supervisor.recv(MAX_MESSAGE_BYTES)) for _ in range(2))
    assert first.held_until_ns == int((1000.0 + ACK_SECONDS) * 1e9)
    assert second.held_until_ns == 0


@pytest.mark.parametrize("number", [2**64 - 1, 2**64 - 2])
def test_number_that_another_worker_made_absurd_breaks_nothing(shared: SharedState, number: int) -> None:
    """The memory is shared with workers that may have been taken over; a handler that raised would end this one."""
    supervisor, worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with supervisor, worker:
        supervisor.shutdown(socket.SHUT_WR)  # nobody waits
        numbers = shared.slot(0)
        numbers[Number.REPORTED] = number
        reporter = Reporter(worker, numbers)
        for _ in range(3):
            reporter.report(InternalReport(nid=None, detail="x"))
            assert parse_report(supervisor.recv(MAX_MESSAGE_BYTES)).number == numbers[Number.REPORTED]


@pytest.mark.parametrize("acknowledged", [True, False])
def test_supervisor_that_is_gone_costs_nothing(line: Line, acknowledged: bool) -> None:
    if acknowledged:
        line.acknowledge(1)
    line.report()
    line.supervisor.close()
    assert sum(line.report() for _ in range(20)) == 0
    assert line.reported == 21


def test_supervisor_that_dies_while_it_is_waited_for(line: Line) -> None:
    line.supervisor.shutdown(socket.SHUT_WR)
    assert line.report() == 0
    assert line.report() == 0
