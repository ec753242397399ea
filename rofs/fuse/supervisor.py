# SPDX-License-Identifier: Apache-2.0
"""The supervisor process: records events, finds out who did it, answers the control socket.

It keeps the privileges that reading /proc needs and so parses nothing of the image: the worker and the
resolver do, and what they say is checked. A report is first completed from /proc, at once, while the
caller still waits in its system call; then its paths are looked up, it is written, and acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from rofs.audit.event import escape_path
from rofs.audit.identity import identify
from rofs.audit.log import AuditLog
from rofs.errors import FormatError, HostError
from rofs.fuse import control_server, events
from rofs.fuse.counters import Counters
from rofs.fuse.link import Link
from rofs.fuse.messages import (
    MAX_MESSAGE_BYTES,
    Attempt,
    FaultReport,
    InternalReport,
    PathsAnswer,
    PathsQuestion,
    Report,
    parse_report,
)
from rofs.fuse.reporter import acknowledgement
from rofs.image.open import ImageFacts

# Reports waiting for their paths. Each is a few hundred bytes; beyond this they are counted as dropped.
_MAX_WAITING_REPORTS = 10_000
# The first question builds the index; a very large image takes a while.
_RESOLVER_SECONDS = 120.0
_LAST_RECORDS_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Supervised:
    """What the supervisor of a mount is given.

    Attributes:
        mountpoint: Absolute.
        image_path: For people; it is never opened again.
        facts: What is mounted and why it is trusted.
        log_path: Of the audit log.
        runtime_directory: Where the control socket goes.
        counters: Shared with the worker.
        keeper: Pid of the keeper.
    """

    mountpoint: bytes
    image_path: bytes
    facts: ImageFacts
    log_path: bytes
    runtime_directory: str
    counters: Counters
    keeper: int


def serve(setup: Supervised, keeper: socket.socket, worker: socket.socket, resolver: socket.socket) -> None:
    """Run until the keeper says that the mount has ended, or is gone itself.

    Raises:
        RofsError: The log or the control socket cannot be opened; nothing was started.
    """
    proc_fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    identity = setup.facts.identity
    image = {"name": identity.name, "version": identity.version, "root_hash": setup.facts.root_hash}
    with AuditLog(setup.log_path, mount=escape_path(setup.mountpoint), image=image, boot_id=_boot_id()) as log:
        supervisor = _Supervisor(setup, log, proc_fd)
        with control_server.listening(setup.runtime_directory) as listener:
            trio.run(supervisor.run, listener, keeper, worker, resolver)
        log.sync()


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class _Supervisor:
    def __init__(self, setup: Supervised, log: AuditLog, proc_fd: int) -> None:
        self._setup = setup
        self._log = log
        self._proc_fd = proc_fd
        self._counts = {"blocked_writes": 0, "corruption": 0, "dropped": 0}
        self._worker_pids: list[int] = []
        self._unsynced = trio.Event()
        self._ended = trio.Event()
        self._end_reason = ""
        self._overflowed = 0  # reports dropped since one was recorded

    async def run(
        self, listener: socket.socket, keeper: socket.socket, worker: socket.socket, resolver: socket.socket
    ) -> None:
        self._keeper = Link(trio.socket.from_stdlib_socket(keeper))
        self._worker = trio.socket.from_stdlib_socket(worker)
        self._acknowledgements = worker  # never waited for: recording goes on whatever the worker does
        self._resolver = _ResolverLink(trio.socket.from_stdlib_socket(resolver))
        waiting, reports = trio.open_memory_channel[tuple[Report, int, dict[str, int | str]]](_MAX_WAITING_REPORTS)
        async with trio.open_nursery() as background:
            background.start_soon(self._keeper.receive, self._on_keeper_message, self._keeper_is_gone)
            background.start_soon(self._sync)
            async with trio.open_nursery() as serving:
                serving.start_soon(control_server.serve, listener, self._answer, self._ended)
                serving.start_soon(self._receive_reports, waiting)
                serving.start_soon(self._record_reports, reports)
                await self._keeper.send({"ready": True})
                await self._ended.wait()
                # The worker's end closes with it, so this takes longer only when paths do.
                serving.cancel_scope.deadline = trio.current_time() + _LAST_RECORDS_SECONDS
            self._write("umount", detail=self._end_reason)
            background.cancel_scope.cancel()

    # Reports of the worker

    async def _receive_reports(self, waiting: trio.MemorySendChannel[tuple[Report, int, dict[str, int | str]]]) -> None:
        async with waiting:
            while data := await self._next_report():
                try:
                    report, number, dropped = parse_report(data)
                except FormatError as error:
                    self._write("io_error", detail=str(error))
                    continue
                who = identify(report.tid, proc_fd=self._proc_fd) if isinstance(report, Attempt) and report.tid else {}
                self._note_dropped(dropped, "the supervisor did not take them in time")
                try:
                    waiting.send_nowait((report, number, who))
                except trio.WouldBlock:
                    self._overflowed += 1

    async def _next_report(self) -> bytes:
        """The worker's next datagram, empty when there will be none."""
        try:
            return await self._worker.recv(MAX_MESSAGE_BYTES)
        except ConnectionResetError:  # it ended with acknowledgements unread; said once, before what it sent last
            return await self._worker.recv(MAX_MESSAGE_BYTES)

    async def _record_reports(
        self, reports: trio.MemoryReceiveChannel[tuple[Report, int, dict[str, int | str]]]
    ) -> None:
        async for report, number, who in reports:
            await self._record(report, who)
            overflowed, self._overflowed = self._overflowed, 0
            self._note_dropped(overflowed, "too many waited to be recorded")
            with contextlib.suppress(OSError):  # the worker is gone, or has so many unread that it waits for none
                self._acknowledgements.send(acknowledgement(number), socket.MSG_DONTWAIT)

    async def _record(self, report: Report, who: Mapping[str, int | str]) -> None:
        if isinstance(report, Attempt):
            paths = (await self._resolver.ask(PathsQuestion(report.nid))).paths
            same = report.nid2 is None or report.nid2 == report.nid
            new_paths = paths if same else (await self._resolver.ask(PathsQuestion(report.nid2 or 0))).paths
            self._counts["blocked_writes"] += 1
            self._write("write_blocked", **events.of_attempt(report, who, paths, new_paths))
        elif isinstance(report, FaultReport):
            answer = await self._resolver.ask(PathsQuestion(report.nid, report.level, report.block))
            event, fields = events.of_fault(report, answer)
            self._counts["corruption"] += event == "corruption"
            self._write(event, **fields)
        else:
            await self._record_internal(report)

    async def _record_internal(self, report: InternalReport) -> None:
        paths = (await self._resolver.ask(PathsQuestion(report.nid))).paths if report.nid is not None else ()
        self._write("io_error", **events.of_internal(report, paths))

    def _note_dropped(self, count: int, why: str) -> None:
        if count:
            self._counts["dropped"] += count
            self._write("dropped", count=count, detail=why)

    # The log

    def _write(self, event: str, **fields: object) -> bool:
        written = self._log.write(event, **fields)
        self._unsynced.set()
        return written

    async def _sync(self) -> None:
        """Make events durable in the background: a slow disk never delays an answer."""
        while True:
            await self._unsynced.wait()
            self._unsynced = trio.Event()
            try:
                await trio.to_thread.run_sync(self._log.sync)
            except HostError as error:
                self._log.last_error = str(error)
            await trio.sleep(0.5)

    # The keeper

    async def _on_keeper_message(self, message: Mapping[str, Any]) -> None:
        if "mounted" in message:
            await self._keeper.send({"recorded": self._record_mount(), "error": self._log.last_error})
        elif "serving" in message:
            self._worker_pids = list(message["serving"])
        elif "worker_exit" in message:
            self._write("worker_exit", **message["worker_exit"])
        elif "end" in message:
            self._end(message["end"])

    async def _keeper_is_gone(self) -> None:
        """Nothing can be served without the keeper; say so while somebody can."""
        self._write("worker_exit", detail="the keeper process is gone", pid=self._setup.keeper)
        self._end("the keeper process is gone")

    def _end(self, reason: str) -> None:
        self._end_reason = reason
        self._ended.set()

    def _record_mount(self) -> bool:
        facts = self._setup.facts
        accepted = facts.accepted_by
        by = f"{accepted}: {facts.signer} ({facts.signer_fingerprint})" if facts.signer else accepted
        return self._write("trust", status=accepted, detail=by) and self._write(
            "mount", detail=escape_path(self._setup.image_path), pid=self._setup.keeper
        )

    # The control socket

    async def _answer(self, command: str) -> dict[str, Any]:
        commands: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
            "status": self._status,
            "umount": self._unmount,
        }
        if command not in commands:
            return {"ok": False, "error": f"unknown command {command!r}"}
        return await commands[command]()

    async def _status(self) -> dict[str, Any]:
        setup, facts = self._setup, self._setup.facts
        return {
            "ok": True,
            "status": {
                "mountpoint": escape_path(setup.mountpoint),
                "image": escape_path(setup.image_path),
                "name": facts.identity.name,
                "version": facts.identity.version,
                "root_hash": facts.root_hash,
                "accepted_by": facts.accepted_by,
                "signer": facts.signer,
                "mode": "audit",
                "keeper": setup.keeper,
                "supervisor": os.getpid(),
                "workers": [{"pid": pid} for pid in self._worker_pids],
                "verified_blocks": setup.counters.get(Counters.VERIFIED_BLOCKS),
                "requests": setup.counters.get(Counters.REQUESTS),
                **self._counts,
                "audit_log": escape_path(setup.log_path),
                "audit_head": self._log.head,
                "audit_error": self._log.last_error,
            },
        }

    async def _unmount(self) -> dict[str, Any]:
        try:
            answer = await self._keeper.request({"unmount": True}, "unmounted")
        except OSError:
            return {"ok": False, "error": "the keeper process is gone; the mount is ending"}
        if answer["errno"] == 0:
            return {"ok": True}
        reason = os.strerror(answer["errno"])
        return {"ok": False, "error": f"{reason}; end what uses it (fuser -vm shows what) and try again"}


class _ResolverLink:
    """Asks the resolver one question at a time; a resolver that fails once is not asked again."""

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self._connection = connection
        self._turn = trio.Lock()
        self._failed = False

    async def ask(self, question: PathsQuestion) -> PathsAnswer:
        """The answer; one without paths when there is none to be had."""
        async with self._turn:
            if self._failed:
                return PathsAnswer(())
            self._failed = True  # unless the answer comes: a late one would be taken for the next
            try:
                with trio.move_on_after(_RESOLVER_SECONDS):
                    await self._connection.send(question.pack())
                    answer = PathsAnswer.parse(await self._connection.recv(MAX_MESSAGE_BYTES))
                    self._failed = False
                    return answer
            except (OSError, FormatError):
                pass
            return PathsAnswer(())
