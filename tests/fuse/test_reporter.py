# SPDX-License-Identifier: Apache-2.0
"""The worker's line to the supervisor, over a real socket pair: it waits for who answers, and for nobody else."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest

from rofs.fuse.messages import MAX_MESSAGE_BYTES, InternalReport, parse_report
from rofs.fuse.reporter import ACK_SECONDS, Reporter, acknowledgement

SOON = 0.03  # seconds; far below the wait for an acknowledgement


class Line:
    """A reporter, and the supervisor's end of its socket."""

    def __init__(self) -> None:
        self.supervisor, self.worker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.supervisor.setblocking(False)
        self.reporter = Reporter(self.worker)
        self.number = 0

    def report(self, detail: str = "x") -> float:
        """Report something; returns how long that took."""
        self.number += 1
        before = time.monotonic()
        self.reporter.report(InternalReport(nid=None, detail=detail))
        return time.monotonic() - before

    def received(self) -> list[tuple[str, int, int]]:
        """Detail, number and dropped count of all reports that have come."""
        found: list[tuple[str, int, int]] = []
        while True:
            try:
                report, number, dropped = parse_report(self.supervisor.recv(MAX_MESSAGE_BYTES))
            except BlockingIOError:
                return found
            assert isinstance(report, InternalReport)
            found.append((report.detail, number, dropped))

    def acknowledge(self, number: int) -> None:
        self.supervisor.send(acknowledgement(number))


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    with line.supervisor, line.worker:
        yield line


def test_recorded_report_costs_next_to_nothing(line: Line) -> None:
    for number in range(1, 5):
        line.acknowledge(number)
        assert line.report(f"r{number}") < SOON
    assert line.received() == [(f"r{n}", n, 0) for n in range(1, 5)]


def test_silent_supervisor_costs_one_wait_and_then_nothing(line: Line) -> None:
    assert ACK_SECONDS * 0.9 <= line.report() < 4 * ACK_SECONDS
    assert sum(line.report() for _ in range(50)) < SOON
    assert [number for _, number, _ in line.received()] == list(range(1, 52))


def test_who_has_caught_up_is_waited_for_again(line: Line) -> None:
    for _ in range(3):
        line.report()
    for number in (1, 2, 3):
        line.acknowledge(number)
    line.acknowledge(4)
    assert line.report() < SOON
    assert line.report() >= ACK_SECONDS * 0.9  # it waits again


def test_who_is_still_behind_is_not_waited_for(line: Line) -> None:
    for _ in range(3):
        line.report()
    line.acknowledge(1)
    line.acknowledge(2)
    assert line.report() < SOON
    line.acknowledge(3)
    line.acknowledge(4)
    assert line.report() >= ACK_SECONDS * 0.9


def test_late_acknowledgement_of_an_older_report_is_not_taken_for_this_one(line: Line) -> None:
    line.acknowledge(1)
    line.report()
    line.acknowledge(1)  # again, as nobody should
    assert line.report() >= ACK_SECONDS * 0.9


def test_acknowledgement_that_was_lost_does_not_end_the_waiting_for_good(line: Line) -> None:
    line.report()
    line.report()  # 2 is never acknowledged
    line.report()
    line.acknowledge(3)
    line.acknowledge(4)
    assert line.report() < SOON
    assert line.report() >= ACK_SECONDS * 0.9


def test_full_socket_drops_and_tells_later(line: Line) -> None:
    line.worker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    line.report("first")
    sent = 0
    while line.reporter._dropped == 0:
        line.report("x" * 500)
        sent += 1
        assert sent < 1000
    assert sum(line.report("lost") for _ in range(9)) < SOON
    assert line.reporter._dropped == 10
    before = line.received()
    assert [dropped for _, _, dropped in before] == [0] * len(before)
    line.report("again")
    line.report("more")
    assert line.received() == [("again", line.number - 1, 10), ("more", line.number, 0)]


def test_full_socket_costs_one_wait(line: Line) -> None:
    line.worker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    line.worker.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            line.worker.send(b"x" * 500)
    line.worker.setblocking(True)
    assert line.report() < 4 * ACK_SECONDS
    assert line.report() < SOON
    assert line.reporter._dropped == 2


@pytest.mark.parametrize("acknowledged", [True, False])
def test_supervisor_that_is_gone_costs_nothing(line: Line, acknowledged: bool) -> None:
    if acknowledged:
        line.acknowledge(1)
    line.report()
    line.supervisor.close()
    assert sum(line.report() for _ in range(20)) < SOON
    assert line.reporter._dropped >= 19


def test_supervisor_that_dies_while_it_is_waited_for(line: Line) -> None:
    line.worker.send(b"")  # so that the report is not the first that the other end loses
    line.supervisor.shutdown(socket.SHUT_WR)
    assert line.report() < SOON
    assert line.report() < SOON
