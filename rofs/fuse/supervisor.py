# SPDX-License-Identifier: Apache-2.0
"""The supervisor process: records the life of a mount, follows its keeper, answers the control socket.

It keeps the privileges that reading /proc needs and so parses nothing of the image: the worker and the
resolver do, and what they say is checked. What becomes of a worker's report is `recorder`'s business.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from rofs.audit.event import escape_path
from rofs.audit.log import AuditLog
from rofs.fuse import control_server
from rofs.fuse.counters import Counters
from rofs.fuse.link import Link
from rofs.fuse.recorder import Recorder
from rofs.image.open import ImageFacts

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
    proc_fd = _open_proc()
    identity = setup.facts.identity
    image = {"name": identity.name, "version": identity.version, "root_hash": setup.facts.root_hash}
    with AuditLog(setup.log_path, mount=escape_path(setup.mountpoint), image=image, boot_id=_boot_id()) as log:
        recorder = Recorder(log, worker, resolver, proc_fd=proc_fd)
        supervisor = _Supervisor(setup, log, recorder, Link(trio.socket.from_stdlib_socket(keeper)))
        with control_server.listening(setup.runtime_directory) as listener:
            trio.run(supervisor.run, listener)
        log.sync()


def _open_proc() -> int | None:
    """/proc, if it shows the processes that the kernel will name to us; None for that of another pid namespace."""
    fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.readlink("self", dir_fd=fd) == str(os.getpid()):
            return fd
    except OSError:  # "self" leads nowhere for a process that is not in that namespace
        pass
    os.close(fd)
    return None


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class _Supervisor:
    def __init__(self, setup: Supervised, log: AuditLog, recorder: Recorder, keeper: Link) -> None:
        self._setup = setup
        self._log = log
        self._recorder = recorder
        self._keeper = keeper
        self._worker_pids: list[int] = []
        self._ended = trio.Event()
        self._end_reason = ""
        self._mount_recorded = False

    async def run(self, listener: socket.socket) -> None:
        async with trio.open_nursery() as background:
            background.start_soon(self._keeper.receive, self._on_keeper_message, self._keeper_is_gone)
            background.start_soon(self._recorder.keep_durable)
            async with trio.open_nursery() as serving:
                serving.start_soon(control_server.serve, listener, self._answer, self._ended)
                serving.start_soon(self._recorder.run)
                await self._keeper.send({"ready": True})
                await self._ended.wait()
                # The worker's end closes with it, so this takes longer only when paths do.
                serving.cancel_scope.deadline = trio.current_time() + _LAST_RECORDS_SECONDS
            self._recorder.drop_rest()
            if self._mount_recorded:
                self._recorder.write("umount", detail=self._end_reason)
            background.cancel_scope.cancel()

    # The keeper

    async def _on_keeper_message(self, message: Mapping[str, Any]) -> None:
        if "mounted" in message:
            self._mount_recorded = self._record_mount()
            await self._keeper.send({"recorded": self._mount_recorded, "error": self._log.last_error})
        elif "serving" in message:
            self._worker_pids = list(message["serving"])
        elif "worker_exit" in message:
            self._recorder.write("worker_exit", **message["worker_exit"])  # `detail` is "PROCESS: what"
        elif "end" in message:
            self._end(message["end"])

    async def _keeper_is_gone(self) -> None:
        """Nothing can be served without the keeper; say so while somebody can."""
        self._recorder.write("worker_exit", detail="keeper: ended unexpectedly", pid=self._setup.keeper)
        self._end("the keeper process is gone")

    def _end(self, reason: str) -> None:
        self._end_reason = reason
        self._ended.set()

    def _record_mount(self) -> bool:
        facts = self._setup.facts
        accepted = facts.accepted_by
        by = f"{accepted}: {facts.signer} ({facts.signer_fingerprint})" if facts.signer else accepted
        if not self._recorder.can_identify:
            by += "; /proc is that of another pid namespace, so events will not name processes"
        image_path = escape_path(self._setup.image_path)
        return self._recorder.write("trust", status=accepted, detail=by) and self._recorder.write(
            "mount", detail=image_path, pid=self._setup.keeper
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
                **self._recorder.counts,
                "dropped": self._log.dropped,
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
