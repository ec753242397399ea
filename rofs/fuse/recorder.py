# SPDX-License-Identifier: Apache-2.0
"""Makes events of what workers report: who did it, where, into the audit log, acknowledged.

A report is first completed from /proc, at once, while the caller still waits in its system call, or only
counted when it is one of a flood (`floodgate` decides); then its paths are looked up, it is written, and
acknowledged. If paths take long the acknowledgement comes before: the worker must go on waiting for the next
caller to be identified. A slow resolver delays records, a slow disk nothing. It does not talk to the keeper
or to users (`supervisor` does), and does not read the image: the resolver does, without privileges, and what
it says is checked.
"""

from __future__ import annotations

import contextlib
import math
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from rofs.audit.log import AuditLog
from rofs.errors import FormatError
from rofs.fuse import events
from rofs.fuse.floodgate import Floodgate, Record, kind_of
from rofs.fuse.messages import (
    MAX_MESSAGE_BYTES,
    Attempt,
    FaultReport,
    PathsQuestion,
    Report,
    parse_report,
)
from rofs.fuse.reporter import ACK_SECONDS, acknowledgement
from rofs.fuse.resolver_link import ResolverLink
from rofs.fuse.shared import MAX_SLOTS, Number, SharedState, Total

# Reports waiting for their paths. Each is a few hundred bytes; beyond this they wait in their sockets.
_MAX_WAITING_REPORTS = 10_000
# A worker that was taken over could claim any number.
_MAX_LOST_AT_ONCE = 1 << 40
_PATIENCE_SECONDS = ACK_SECONDS / 2  # for the record, before the worker is let go without
_SYNC_SECONDS = 0.5
_FAILED_SYNC_SECONDS = 5.0  # until it is tried again
_WINDOW_SECONDS = 0.25  # how often is looked whether a count is due, while anything is counted


class _Slot:
    """A worker slot as this process sees it.

    Attributes:
        numbers: Its shared numbers.
        last: Number of the last report that was taken or counted as lost; a gap behind it is a loss.
        pending: Reports that were taken and are not recorded yet.
        turn: Held by who takes its reports: a successor's wait for what its predecessor has sent.
    """

    def __init__(self, numbers: memoryview) -> None:
        self.numbers = numbers
        self.last = numbers[Number.ACCOUNTED]
        self.pending = 0
        self.turn = trio.Lock()

    @property
    def unaccounted(self) -> int:
        """How many reports are neither recorded nor counted as lost."""
        return self.pending + max(0, self.numbers[Number.REPORTED] - self.last)

    def account(self, recorded: int) -> None:
        """Tell a successor how far it need not look, when this report and those before it are recorded."""
        self.numbers[Number.ACCOUNTED] = recorded if self.pending else self.last

    def pass_to(self, number: int) -> None:
        """This report and those before it are taken care of, without being recorded here."""
        before, self.last = self.numbers[Number.ACCOUNTED], max(self.last, number)
        self.account(before)


@dataclass(slots=True)
class _Received:
    """A record on its way to the log; of a worker's report, unless it stands for repeats."""

    record: Record
    number: int = 0
    slot: _Slot | None = None
    worker: socket.socket | None = None
    acknowledged: bool = False


class Recorder:
    """Writes the events of a mount: those that its workers report, and those it is told.

    Every report has a number, in memory that workers and supervisors share; one that was neither
    recorded nor counted as lost by a supervisor is found by its successor.

    Args:
        log: Nobody else writes to it meanwhile.
        shared: The memory of the mount; counts of what was recorded go there.
        proc_fd: An open directory descriptor of /proc; None when it shows other processes than ours.
        gate: What keeps floods out of the log; None for the usual limits.
        on_corruption: Told of each report of a corrupt block, when it is in the log if it can be, or counted.
    """

    def __init__(
        self,
        log: AuditLog,
        shared: SharedState,
        *,
        proc_fd: int | None,
        gate: Floodgate | None = None,
        on_corruption: Callable[[], object] = lambda: None,
    ) -> None:
        self._log = log
        self._shared = shared
        self._gate = gate or Floodgate(proc_fd=proc_fd)
        self._on_corruption = on_corruption
        self._flooded = trio.Event()
        self._resolver = ResolverLink(self._resolver_failed)
        self._proc_fd = proc_fd
        self._unsynced = trio.Event()
        self._send, self._receive = trio.open_memory_channel[_Received](_MAX_WAITING_REPORTS)
        self._new_workers, self._workers = trio.open_memory_channel[tuple[_Slot, socket.socket]](math.inf)
        self._slots = [_Slot(shared.slot(index)) for index in range(MAX_SLOTS)]
        self._taking = trio.CancelScope()
        self._recording = 0  # reports that were taken and are not recorded yet
        self._drop(shared.get(Total.COUNTED), "the supervisor that had counted them as repeats is gone")
        self._share_count()

    @property
    def can_identify(self) -> bool:
        """Whether events can name the process that made an attempt."""
        return self._proc_fd is not None

    def write(self, event: str, **fields: object) -> bool:
        """Write an event now and make it durable soon; see `AuditLog.write`."""
        written = self._log.write(event, **fields)
        self._unsynced.set()
        return written

    def add_worker(self, slot: int, connection: socket.socket) -> None:
        """Take what a worker reports, from now until it ends.

        Args:
            slot: Where it counts.
            connection: The other end of its `Reporter`'s; what is in it already counts.
        """
        self._new_workers.send_nowait((self._slots[slot], connection))

    def set_resolver(self, connection: socket.socket) -> None:
        """Ask this resolver from now on."""
        self._resolver.connect(connection)

    async def run(self) -> None:
        """Record what the workers report until `end`, and they are gone, and everything is recorded."""
        with contextlib.closing(self._resolver):
            async with trio.open_nursery() as nursery, self._send:
                nursery.start_soon(self._record_reports)
                async with trio.open_nursery() as counting:
                    counting.start_soon(self._record_counts)
                    with self._taking:
                        async with trio.open_nursery() as nursery_of_workers:
                            async for slot, connection in self._workers:
                                nursery_of_workers.start_soon(self._take_reports, slot, connection)
                    counting.cancel_scope.cancel()
                self._gate.close_all()
                await self._send_ready()

    def end(self) -> None:
        """No more workers will come; those that there are go on reporting until they end."""
        self._new_workers.close()

    def stop(self) -> None:
        """Take no more reports, though the workers live on: a successor will. What was taken is recorded."""
        self._taking.cancel()

    def drop_rest(self) -> None:
        """Count what is not recorded yet as dropped, after `run` has ended or was cancelled."""
        for slot in self._slots:
            self._drop(slot.unaccounted, "the mount ended before they were recorded")
            slot.pending = 0
            slot.pass_to(slot.numbers[Number.REPORTED])
        self._drop(self._gate.counted, "the mount ended before they were recorded")
        self._gate.counted = 0
        self._share_count()

    async def keep_durable(self) -> None:
        """Sync the log in the background, soon after each event, until cancelled."""
        while True:
            await self._unsynced.wait()
            self._unsynced = trio.Event()
            if await trio.to_thread.run_sync(self._log.sync):
                await trio.sleep(_SYNC_SECONDS)
            else:
                self._unsynced.set()
                await trio.sleep(_FAILED_SYNC_SECONDS)

    # From the workers

    async def _take_reports(self, slot: _Slot, worker: socket.socket) -> None:
        with worker:
            async with slot.turn:
                # What died with the supervisor before is not in the socket any more, and not recorded.
                reported = slot.numbers[Number.REPORTED]
                while data := _waiting_report(worker):
                    await self._take(slot, worker, data)
                self._lose_up_to(slot, reported)
                connection = trio.socket.from_stdlib_socket(worker)
                while data := await _next_report(connection):
                    await self._take(slot, worker, data)
                # What it could not send is counted by its successor's turn, or in the end: a successor may
                # count in the slot already.

    async def _take(self, slot: _Slot, worker: socket.socket, data: bytes) -> None:
        try:
            delivery = parse_report(data)
        except FormatError as error:
            if self._gate.admit_io_error():
                self.write("io_error", detail=str(error))
            self._flooded.set()
            return
        self._lose_up_to(slot, delivery.number - 1)
        record = self._gate.admit(delivery, len(data))
        self._flooded.set()
        if record is None:
            self._count(delivery.report)
            slot.pass_to(delivery.number)
            _acknowledge_number(worker, delivery.number)
            return
        slot.last = max(slot.last, delivery.number)
        received = _Received(record, delivery.number, slot, worker)
        if self._recording:  # others are before it
            _acknowledge(received)
        self._recording += 1
        slot.pending += 1
        try:
            self._send.send_nowait(received)  # `send` would leave it when we are told to stop just now
        except trio.WouldBlock:
            await self._send.send(received)

    def _lose_up_to(self, slot: _Slot, number: int) -> None:
        """Count the reports up to that number that did not come."""
        if number > slot.last:
            self._drop(number - slot.last, "the supervisor did not take them in time")
            slot.pass_to(number)

    # Floods

    def _count(self, report: Report) -> None:
        """A report was counted, and will be in the log with others."""
        self._add_to_totals(report)
        self._share_count()
        self._react_to(report)

    def _share_count(self) -> None:
        """What is counted here and not recorded is lost with this process: its successor is to know."""
        self._shared.set(Total.COUNTED, self._gate.counted)

    async def _record_counts(self) -> None:
        """Record each count when its window closes, until cancelled."""
        while True:
            await self._flooded.wait()
            while not self._gate.is_idle:
                await trio.sleep(_WINDOW_SECONDS)
                self._gate.close_windows()
                await self._send_ready()
                self._record_excess(all_of_it=False)
            self._flooded = trio.Event()

    async def _send_ready(self) -> None:
        while self._gate.ready:
            await self._send.send(_Received(self._gate.ready[0]))
            self._gate.ready.popleft()

    def _record_excess(self, *, all_of_it: bool) -> None:
        for event, fields in self._gate.excess(all_of_it=all_of_it):
            self.write(event, **fields)
        self._share_count()

    # To the log

    async def _record_reports(self) -> None:
        async for received in self._receive:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_acknowledge_before_long, received)
                await self._record(received.record)
                nursery.cancel_scope.cancel()
            if received.slot is not None:
                self._recording -= 1
                received.slot.pending -= 1
                received.slot.account(received.number)
            _acknowledge(received)
        self._record_excess(all_of_it=True)

    async def _record(self, record: Record) -> None:
        event, fields = await self._event_of(record)
        if not record.count:
            self._add_to_totals(record.report)
        before_bytes = self._log.written_bytes
        details = [str(part["detail"]) for part in (fields, record.repeats) if part.get("detail")]
        self.write(event, **{**fields, **record.repeats, "detail": "; ".join(details) or None})
        self._gate.recorded(record, self._log.written_bytes - before_bytes)
        self._share_count()
        self._react_to(record.report)

    async def _event_of(self, record: Record) -> tuple[str, Mapping[str, object]]:
        report = record.report
        if isinstance(report, Attempt):
            paths = await self._paths(report.nid)
            same = report.nid2 is None or report.nid2 == report.nid
            new_paths = paths if same else await self._paths(report.nid2)
            return "write_blocked", events.of_attempt(report, record.who, paths, new_paths)
        if isinstance(report, FaultReport):
            answer = await self._resolver.ask(PathsQuestion(report.nid, report.level, report.block))
            return events.of_fault(report, answer)
        return "io_error", events.of_internal(report, await self._paths(report.nid))

    def _add_to_totals(self, report: Report) -> None:
        event = kind_of(report).event
        if event == "write_blocked":
            self._shared.add(Total.BLOCKED_WRITES)
        elif event == "corruption":
            self._shared.add(Total.CORRUPTION)

    def _react_to(self, report: Report) -> None:
        if kind_of(report).event == "corruption":
            self._on_corruption()

    async def _paths(self, nid: int | None) -> tuple[str, ...]:
        return () if nid is None else (await self._resolver.ask(PathsQuestion(nid))).paths

    def _drop(self, count: int, why: str) -> None:
        if count:
            self._log.drop(min(count, _MAX_LOST_AT_ONCE), why)
            self._unsynced.set()

    def _resolver_failed(self, why: str) -> None:
        self.write("io_error", detail=f"resolver: {why}; events go on without paths")


def _acknowledge(received: _Received) -> None:
    """Let the worker go on, once; never waited for: recording goes on whatever the worker does."""
    if not received.acknowledged and received.worker is not None:
        received.acknowledged = True
        _acknowledge_number(received.worker, received.number)


def _acknowledge_number(worker: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # it is gone, or has so many unread that it waits for none
        worker.send(acknowledgement(number), socket.MSG_DONTWAIT)


async def _acknowledge_before_long(received: _Received) -> None:
    await trio.sleep(_PATIENCE_SECONDS)
    _acknowledge(received)


async def _next_report(connection: trio.socket.SocketType) -> bytes:
    """A worker's next datagram, empty when there will be none."""
    try:
        return await connection.recv(MAX_MESSAGE_BYTES)
    except ConnectionResetError:  # it ended with acknowledgements unread; said once, before what it sent last
        return await connection.recv(MAX_MESSAGE_BYTES)


def _waiting_report(worker: socket.socket) -> bytes:
    """A datagram that has come already, empty when there is none."""
    try:
        return worker.recv(MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
    except OSError:
        return b""
