# SPDX-License-Identifier: Apache-2.0
"""The supervisor process: records the life of a mount, follows its keeper, answers the control socket.

It keeps the privileges that reading /proc needs and so parses nothing of the image: the workers and the
resolver do, and what they say is checked. What becomes of a worker's report is `recorder`'s business.
It may die: what it must not forget is in the shared memory and in the log, and the keeper starts another.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import trio

from rofs import __version__
from rofs.audit.event import escape_path
from rofs.audit.log import AuditLog
from rofs.fuse import confine, control_server, tamper
from rofs.fuse.hooks import Hooks
from rofs.fuse.link import Link
from rofs.fuse.process import WORKER_MEMORY_BYTES
from rofs.fuse.recorder import Recorder
from rofs.fuse.request import Reactions
from rofs.fuse.shared import MAX_WORKERS, Number, SharedState, Total
from rofs.image.open import ImageFacts

_LAST_RECORDS_SECONDS = 10.0
_RETIRE_SECONDS = 2.0
_MAX_PROGRAM_BYTES = 32 * 1024  # well within a message to the keeper
# For what hooks are at in the end, so that with the above the keeper does not lose its patience ...
_HOOKS_SECONDS = 4.0
_RETIRED_HOOKS_SECONDS = 2.0  # ... nor a successor, which waits for the log


@dataclass(frozen=True, slots=True)
class Supervised:
    """What the supervisor of a mount is given.

    Attributes:
        mountpoint: Absolute.
        image_path: For people; it is never opened again.
        facts: What is mounted and why it is trusted.
        log_path: Of the audit log.
        runtime_directory: Where the control socket goes.
        mode: `audit` or `sealed`.
        shared: The memory of the mount.
        keeper: Pid of the keeper.
        stored: Whether somebody keeps the mount for the case that its keeper dies.
        mount_id: Of the mount that it is in the place of another supervisor for; None for the first.
        workers_wanted: How many workers there are to be.
        reactions: What is done when something happens to the mount.
    """

    mountpoint: bytes
    image_path: bytes
    facts: ImageFacts
    log_path: bytes
    runtime_directory: str
    mode: str
    shared: SharedState
    keeper: int
    mount_id: int | None = None
    stored: bool = False
    workers_wanted: int = 0
    reactions: Reactions = field(default_factory=Reactions)


def serve(setup: Supervised, keeper: socket.socket) -> None:
    """Run until the keeper says that the mount has ended, or is gone itself, or another one takes over.

    Raises:
        RofsError: The log or the control socket cannot be opened; nothing was started.
    """
    proc_fd = _open_proc()
    identity = setup.facts.identity
    image = {"name": identity.name, "version": identity.version, "root_hash": setup.facts.root_hash}
    mount, reactions = escape_path(setup.mountpoint), setup.reactions
    hooks = Hooks(
        reactions.event_hook or None,
        reactions.corruption_hook or None,
        lambda why: recorder.write("worker_exit", detail=why),
    )
    corrupt = trio.Event()
    with AuditLog(setup.log_path, mount=mount, image=image, boot_id=_boot_id(), on_written=hooks.offer) as log:
        recorder = Recorder(log, setup.shared, proc_fd=proc_fd, on_corruption=corrupt.set)
        link = Link(trio.socket.from_stdlib_socket(keeper))
        supervisor = _Supervisor(setup, log, recorder, link, hooks, corrupt)
        with control_server.listening(setup.runtime_directory) as listening:
            trio.run(supervisor.run, listening.socket)
            listening.stays = supervisor.retired
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
    def __init__(
        self, setup: Supervised, log: AuditLog, recorder: Recorder, keeper: Link, hooks: Hooks, corrupt: trio.Event
    ) -> None:
        self._setup = setup
        self._log = log
        self._recorder = recorder
        self._keeper = keeper
        self._hooks = hooks
        self._hooks_ended = trio.Event()
        self._corrupt = corrupt
        self._workers: list[tuple[int, int]] = []  # pid and slot
        self._ended = trio.Event()
        self._end_reason = ""
        self._mount_recorded = setup.mount_id is not None
        self._watched = trio.Event()
        self._mount_id = setup.mount_id
        self.retired = False

    async def run(self, listener: socket.socket) -> None:
        async with trio.open_nursery() as background:
            background.start_soon(self._keeper.receive, self._on_keeper_message, self._keeper_is_gone)
            background.start_soon(self._recorder.keep_durable)
            background.start_soon(self._run_hooks)
            async with trio.open_nursery() as serving:
                serving.start_soon(control_server.serve, listener, self._answer, self._ended)
                serving.start_soon(self._recorder.run)
                background.start_soon(self._watch_mounts)
                await self._keeper.send({"ready": True})
                background.start_soon(self._tell_of_corruption)
                await self._ended.wait()
                # The workers' ends close with them, so this takes longer only when paths do.
                seconds = _RETIRE_SECONDS if self.retired else _LAST_RECORDS_SECONDS
                serving.cancel_scope.deadline = trio.current_time() + seconds
            if not self.retired:
                self._recorder.drop_rest()
                if self._mount_recorded:
                    self._recorder.write("umount", detail=self._end_reason)
            self._hooks.end()
            with trio.move_on_after(_RETIRED_HOOKS_SECONDS if self.retired else _HOOKS_SECONDS):
                await self._hooks_ended.wait()
            background.cancel_scope.cancel()

    async def _run_hooks(self) -> None:
        await self._hooks.run()
        self._hooks_ended.set()

    async def _tell_of_corruption(self) -> None:
        """Have the keeper do what is to be done; a supervisor before us may not have come so far."""
        if self._setup.reactions.on_corruption == "eio":
            return
        if not self._setup.shared.get(Total.CORRUPTION):
            await self._corrupt.wait()
        with contextlib.suppress(OSError):
            await self._keeper.send({"corruption": True})

    async def _watch_mounts(self) -> None:
        if self._mount_id is None:
            await self._watched.wait()
        if self._mount_id is not None:
            await tamper.watch(self._mount_id, self._on_tampering)

    def _on_tampering(self, tampering: tamper.Tampering) -> None:
        path = escape_path(tampering.path)
        self._recorder.write("tamper", path=path, status=tampering.status, detail=tampering.detail)

    # The keeper

    async def _on_keeper_message(self, message: Mapping[str, Any]) -> None:
        if "mounted" in message:
            self._mount_recorded = self._record_mount()
            self._mount_id = message["mounted"]
            self._watched.set()
            await self._keeper.send({"recorded": self._mount_recorded, "error": self._log.last_error})
        elif "worker" in message:
            self._recorder.add_worker(message["worker"], socket.socket(fileno=message["fd"]))
        elif "resolver" in message:
            self._recorder.set_resolver(socket.socket(fileno=message["fd"]))
        elif "serving" in message:
            self._workers = [(pid, slot) for pid, slot in message["serving"]]
        elif "worker_exit" in message:
            self._recorder.write("worker_exit", **message["worker_exit"])  # `detail` is "PROCESS: what"
            with contextlib.suppress(OSError):
                await self._keeper.send({"exit_recorded": message["worker_exit"]})
        elif "took_over" in message:
            detail = f"{message['took_over']}, rofs {__version__}"
            self._recorder.write("mount", status="takeover", detail=detail, pid=self._setup.keeper)
        elif "reaction" in message:
            self._recorder.write("mount", **message["reaction"], pid=self._setup.keeper)
        elif "retire" in message:
            self.retired = True
            self._recorder.stop()
            self._ended.set()
        elif "end" in message:
            self._recorder.end()
            self._end(message["end"])

    async def _keeper_is_gone(self) -> None:
        """Nothing can be served without the keeper; say so while somebody can."""
        if not self.retired:
            self._recorder.write("worker_exit", detail="keeper: ended unexpectedly", pid=self._setup.keeper)
            self._recorder.end()
            if self._setup.stored:  # another keeper goes on with it
                self._mount_recorded, self.retired = False, True
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
        by = "; ".join((by, *confine.support().lacks))
        image_path = escape_path(self._setup.image_path)
        return self._recorder.write("trust", status=accepted, detail=by) and self._recorder.write(
            "mount", detail=image_path, pid=self._setup.keeper
        )

    # The control socket

    async def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        commands: dict[str, Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]]] = {
            "status": self._status,
            "umount": self._unmount,
            "takeover": self._take_over,
        }
        command = str(request.get("command", ""))
        if command not in commands:
            return {"ok": False, "error": f"unknown command {command!r}"}
        return await commands[command](request)

    async def _status(self, _request: Mapping[str, Any]) -> dict[str, Any]:
        setup, facts, shared = self._setup, self._setup.facts, self._setup.shared
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
                "mode": setup.mode,
                "on_corruption": setup.reactions.on_corruption,
                "program_version": __version__,
                "keeper": setup.keeper,
                "supervisor": os.getpid(),
                "workers_wanted": setup.workers_wanted,
                "workers": [_worker_status(shared, pid, slot) for pid, slot in self._workers],
                "confinement": asdict(confine.support()),
                "restarts": shared.get(Total.RESTARTS),
                "verified_blocks": shared.sum(Number.VERIFIED_BLOCKS),
                "cache_hits": shared.sum(Number.CACHE_HITS),
                "requests": shared.sum(Number.REQUESTS),
                "blocked_writes": shared.get(Total.BLOCKED_WRITES),
                "corruption": shared.get(Total.CORRUPTION),
                "dropped": self._log.dropped,
                "audit_log": escape_path(setup.log_path),
                "audit_head": self._log.head,
                "audit_error": self._log.last_error,
            },
        }

    async def _unmount(self, request: Mapping[str, Any]) -> dict[str, Any]:
        lazy = request.get("lazy") is True
        try:
            answer = await self._keeper.request({"unmount": True, "lazy": lazy}, "unmounted")
        except OSError:
            return {"ok": False, "error": "the keeper process is gone; the mount is ending"}
        if answer["errno"] == 0:
            return {"ok": True, "in_use": answer.get("in_use", False)}
        reason = os.strerror(answer["errno"])
        return {"ok": False, "error": f"{reason}; end what uses it (fuser -vm shows what) and try again"}

    async def _take_over(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Hand the mount over to the program that asks, which runs as the same user or as root."""
        program = {key: request.get(key) for key in ("argv", "environment", "workers")}
        if not _is_program(program):  # the keeper must not stumble over it
            return {"ok": False, "error": "the request to take over names no program that could be started"}
        try:
            answer = await self._keeper.request({"takeover": program}, "taken_over")
        except OSError:
            return {"ok": False, "error": "the keeper process is gone; the mount is ending"}
        return {"ok": answer["error"] is None, "error": answer["error"]}


def _is_program(program: Mapping[str, Any]) -> bool:
    argv, environment, workers = (program[key] for key in ("argv", "environment", "workers"))
    return (
        isinstance(argv, list)
        and bool(argv)
        and all(isinstance(word, str) for word in argv)
        and isinstance(environment, dict)
        and all(isinstance(value, str) for value in environment.values())
        and (workers is None or (type(workers) is int and 0 < workers <= MAX_WORKERS))
        and len(json.dumps(program)) < _MAX_PROGRAM_BYTES
    )


def _worker_status(shared: SharedState, pid: int, slot: int) -> dict[str, int]:
    numbers = shared.slot(slot)
    status = {
        "pid": pid,
        "requests": numbers[Number.REQUESTS],
        "verified_blocks": numbers[Number.VERIFIED_BLOCKS],
        "memory_limit_bytes": WORKER_MEMORY_BYTES,
    }
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            status["rss_bytes"] = int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        pass  # it has just ended, or /proc is that of others
    return status
