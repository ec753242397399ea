# SPDX-License-Identifier: Apache-2.0
"""Makes events of what a worker reports: who did it, where, into the audit log, acknowledged.

A report is first completed from /proc, at once, while the caller still waits in its system call; then
its paths are looked up, it is written, and acknowledged. If paths take long the acknowledgement comes
before: the worker must go on waiting for the next caller to be identified. A slow resolver delays
records, a slow disk nothing. It does not talk to the keeper or to users (`supervisor` does), and does
not read the image: the resolver does, without privileges, and what it says is checked.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from rofs.audit.identity import identify
from rofs.audit.log import AuditLog
from rofs.errors import FormatError
from rofs.fuse import events
from rofs.fuse.messages import (
    MAX_MESSAGE_BYTES,
    Attempt,
    Delivery,
    FaultReport,
    InternalReport,
    PathsAnswer,
    PathsQuestion,
    Report,
    parse_report,
)
from rofs.fuse.reporter import ACK_SECONDS, acknowledgement

# Reports waiting for their paths. Each is a few hundred bytes; beyond this they are counted as dropped.
_MAX_WAITING_REPORTS = 10_000
# The first question builds the index; a very large image takes a while.
_RESOLVER_SECONDS = 30.0
_PATIENCE_SECONDS = ACK_SECONDS / 2  # for the record, before the worker is let go without
_SYNC_SECONDS = 0.5
_FAILED_SYNC_SECONDS = 5.0  # until it is tried again


@dataclass(slots=True)
class _Received:
    report: Report
    number: int
    who: Mapping[str, int | str]
    acknowledged: bool = False


class Recorder:
    """Writes the events of a mount: those that a worker reports, and those it is told.

    Args:
        log: Nobody else writes to it meanwhile.
        worker: Where reports come from and acknowledgements go.
        resolver: Who knows the paths.
        proc_fd: An open directory descriptor of /proc; None when it shows other processes than ours.

    Attributes:
        counts: Blocked writes and corruptions so far, recorded or dropped by the log, by key of the status.
    """

    def __init__(self, log: AuditLog, worker: socket.socket, resolver: socket.socket, *, proc_fd: int | None) -> None:
        self.counts = {"blocked_writes": 0, "corruption": 0}
        self._log = log
        self._worker = worker
        self._reports = trio.socket.from_stdlib_socket(worker)
        self._resolver = _ResolverLink(trio.socket.from_stdlib_socket(resolver), self._resolver_failed)
        self._proc_fd = proc_fd
        self._unsynced = trio.Event()
        self._send, self._receive = trio.open_memory_channel[_Received](_MAX_WAITING_REPORTS)
        self._recording = 0  # reports that were taken and are not recorded yet: one at most
        self._overflowed = 0  # reports dropped since one was recorded

    @property
    def can_identify(self) -> bool:
        """Whether events can name the process that made an attempt."""
        return self._proc_fd is not None

    def write(self, event: str, **fields: object) -> bool:
        """Write an event now and make it durable soon; see `AuditLog.write`."""
        written = self._log.write(event, **fields)
        self._unsynced.set()
        return written

    async def run(self) -> None:
        """Record what the worker reports until it is gone and everything is recorded."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_reports)
            nursery.start_soon(self._record_reports)

    def drop_rest(self) -> None:
        """Count what is not recorded yet as dropped, after `run` was cancelled."""
        waiting = self._receive.statistics().current_buffer_used
        self._drop(self._recording + waiting + self._discard_unread(), "the mount ended before they were recorded")
        self._recording = 0
        self._drop_overflowed()

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

    # From the worker

    async def _take_reports(self) -> None:
        async with self._send:
            while data := await self._next_report():
                try:
                    delivery = parse_report(data)
                except FormatError as error:
                    self.write("io_error", detail=str(error))
                    continue
                received = _Received(delivery.report, delivery.number, self._who(delivery))
                self._drop(delivery.dropped, "the supervisor did not take them in time")
                if self._recording:  # others are before it
                    self._acknowledge(received)
                try:
                    self._send.send_nowait(received)
                except trio.WouldBlock:
                    self._overflowed += 1

    def _who(self, delivery: Delivery) -> Mapping[str, int | str]:
        """Who the caller is, if it was held in its system call all the time that we looked."""
        report = delivery.report
        if self._proc_fd is None or not isinstance(report, Attempt) or not report.tid:
            return {}
        who = identify(report.tid, proc_fd=self._proc_fd)
        return who if time.monotonic_ns() <= delivery.held_until_ns else {}

    def _acknowledge(self, received: _Received) -> None:
        """Let the worker go on, once; never waited for: recording goes on whatever the worker does."""
        if not received.acknowledged:
            received.acknowledged = True
            with contextlib.suppress(OSError):  # it is gone, or has so many unread that it waits for none
                self._worker.send(acknowledgement(received.number), socket.MSG_DONTWAIT)

    async def _next_report(self) -> bytes:
        """The worker's next datagram, empty when there will be none."""
        try:
            return await self._reports.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:  # it ended with acknowledgements unread; said once, before what it sent last
            return await self._reports.recv(MAX_MESSAGE_BYTES)

    def _discard_unread(self) -> int:
        """How many events were still in the socket; a worker that goes on sending is not waited for."""
        count = 0
        for _ in range(_MAX_WAITING_REPORTS):
            try:
                data = self._worker.recv(MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT)
            except ConnectionResetError:
                continue
            except OSError:
                break
            if not data:
                break
            count += 1
            with contextlib.suppress(FormatError):
                count += parse_report(data).dropped
        return count

    # To the log

    async def _record_reports(self) -> None:
        async for received in self._receive:
            self._recording = 1
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._acknowledge_before_long, received)
                await self._record(received.report, received.who)
                nursery.cancel_scope.cancel()
            self._recording = 0
            self._drop_overflowed()
            self._acknowledge(received)

    async def _acknowledge_before_long(self, received: _Received) -> None:
        await trio.sleep(_PATIENCE_SECONDS)
        self._acknowledge(received)

    async def _record(self, report: Report, who: Mapping[str, int | str]) -> None:
        if isinstance(report, Attempt):
            paths = await self._paths(report.nid)
            same = report.nid2 is None or report.nid2 == report.nid
            new_paths = paths if same else await self._paths(report.nid2)
            self.counts["blocked_writes"] += 1
            self.write("write_blocked", **events.of_attempt(report, who, paths, new_paths))
        elif isinstance(report, FaultReport):
            answer = await self._resolver.ask(PathsQuestion(report.nid, report.level, report.block))
            event, fields = events.of_fault(report, answer)
            self.counts["corruption"] += event == "corruption"
            self.write(event, **fields)
        else:
            await self._record_internal(report)

    async def _record_internal(self, report: InternalReport) -> None:
        self.write("io_error", **events.of_internal(report, await self._paths(report.nid)))

    async def _paths(self, nid: int | None) -> tuple[str, ...]:
        return () if nid is None else (await self._resolver.ask(PathsQuestion(nid))).paths

    def _drop(self, count: int, why: str) -> None:
        if count:
            self._log.drop(count, why)
            self._unsynced.set()

    def _drop_overflowed(self) -> None:
        count, self._overflowed = self._overflowed, 0
        self._drop(count, "too many waited to be recorded")

    def _resolver_failed(self, why: str) -> None:
        self.write("io_error", detail=f"resolver: {why}; events go on without paths")


class _ResolverLink:
    """Asks the resolver one question at a time; a resolver that fails once is not asked again."""

    def __init__(self, connection: trio.socket.SocketType, on_failure: Callable[[str], None]) -> None:
        self._connection = connection
        self._on_failure = on_failure
        self._turn = trio.Lock()
        self._failed = False

    async def ask(self, question: PathsQuestion) -> PathsAnswer:
        """The answer; one without paths when there is none to be had."""
        async with self._turn:
            if self._failed:
                return PathsAnswer(())
            self._failed = True  # unless the answer comes: a late one would be taken for the next
            why = f"no answer within {_RESOLVER_SECONDS:g} s"
            try:
                with trio.move_on_after(_RESOLVER_SECONDS):
                    answer = await self._exchange(question)
                    self._failed = False
                    return answer
            except OSError as error:
                why = error.strerror or str(error)
            except FormatError as error:
                why = str(error)
            self._on_failure(why)
            return PathsAnswer(())

    async def _exchange(self, question: PathsQuestion) -> PathsAnswer:
        await self._connection.send(question.pack())
        data = await self._connection.recv(MAX_MESSAGE_BYTES)
        if not data:
            raise BrokenPipeError("its process is gone")
        return PathsAnswer.parse(data)
