# SPDX-License-Identifier: Apache-2.0
"""The keeper process: verifies, mounts, forks the others, and ends the mount when it must end.

Single-threaded and without an event loop, so that it can fork; parses nothing of the image. It is the
parent of the supervisor, the worker and the resolver, which it starts from its own warm state. What a
mount can go through is the table in `life`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rofs.errors import HostError, RofsError, StateError
from rofs.fuse import control_server, kernel, mountinfo, resolver, signals, supervisor, verifier, worker
from rofs.fuse.counters import Counters
from rofs.fuse.life import Event, Life, State
from rofs.fuse.messages import MAX_MESSAGE_BYTES
from rofs.fuse.process import Child, fork
from rofs.fuse.signals import Signals
from rofs.image.open import ImageFacts, ImageFiles, reopen_image
from rofs.trust.verify import TrustPolicy

_START_SECONDS = 60.0  # for a supervisor that waits for the log, or a worker on a slow disk
_END_SECONDS = 15.0  # for the supervisor's last records


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What is to be mounted where.

    Attributes:
        files: The image, opened once.
        image_path: Absolute; shown to people, never opened again.
        mountpoint: Absolute and resolved.
        policy: Which image is trusted.
        mount_flags: `kernel.MS_NOSUID` and the like.
        log_path: Of the audit log.
        runtime_directory: Of this mount.
    """

    files: ImageFiles
    image_path: bytes
    mountpoint: bytes
    policy: TrustPolicy
    mount_flags: int
    log_path: bytes
    runtime_directory: str


def run(request: MountRequest, announce: Callable[[ImageFacts], None]) -> None:
    """Mount, serve, and return when the mount has ended; the caller is the keeper from here on.

    Args:
        request: What and where.
        announce: Called once, when the mount answers and is recorded.

    Raises:
        RofsError: It could not be mounted, and nothing is left; or it ended otherwise than by an unmount.
    """
    with signals.caught() as caught:
        _Keeper(request, caught).run(announce)


class _Keeper:
    def __init__(self, request: MountRequest, caught: Signals) -> None:
        self._request = request
        self._signals = caught
        self._life = Life()
        self._children: dict[str, Child] = {}
        self._link, self._supervisors_link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._counters = Counters()
        self._fuse_fd = -1
        self._mount_id: int | None = None  # while it is mounted, as far as we know
        self._recorded = False
        self._failure: str | None = None

    def run(self, announce: Callable[[ImageFacts], None]) -> None:
        try:
            facts = verifier.verify(self._request.files, self._request.policy, self._signals)
            self._start(facts)
            announce(facts)
            self._life.happen(Event.READY)
        except BaseException as error:
            self._life.happen(Event.FAILED)
            self._failure = f"the start failed: {error}"
            self._clean_up()
            raise
        try:
            while self._life.state is not State.ENDED:
                self._step()
        finally:
            self._clean_up()
        if self._failure:
            raise StateError(self._failure)

    # Start

    def _start(self, facts: ImageFacts) -> None:
        reports, worker_reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        questions, answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with worker_reports, answers:
            with reports, questions:
                self._fork_supervisor(facts, reports, questions)
            self._expect("ready")
            init_request = self._mount(facts)
            self._send({"mounted": True})
            recorded = self._expect("recorded")
            if not recorded["recorded"]:
                raise HostError(f"the audit log cannot be written: {recorded['error']}")
            self._recorded = True
            self._fork_resolver(facts, answers)
            self._fork_worker(facts, init_request, worker_reports)
        self._send({"serving": [self._children["worker"].pid]})

    def _fork_supervisor(self, facts: ImageFacts, reports: socket.socket, questions: socket.socket) -> None:
        setup = supervisor.Supervised(
            mountpoint=self._request.mountpoint,
            image_path=self._request.image_path,
            facts=facts,
            log_path=self._request.log_path,
            runtime_directory=self._request.runtime_directory,
            counters=self._counters,
            keeper=os.getpid(),
        )
        link = self._supervisors_link

        def main() -> None:
            try:
                supervisor.serve(setup, link, reports, questions)
            except RofsError as error:
                link.send(json.dumps({"failed": verifier.pack_error(error).decode()}).encode())

        keep = (link.fileno(), reports.fileno(), questions.fileno())
        self._children["supervisor"] = fork(main, name="supervisor", keep=keep, unprivileged=False)
        link.close()  # so that its end shows

    def _mount(self, facts: ImageFacts) -> bytes:
        """Mount and shake hands with the kernel. Returns its INIT request, for the worker."""
        self._fuse_fd = kernel.open_device()
        request = self._request
        # A source below /dev would make systemd tie the mount to a device unit.
        source = b"rofs:" * request.image_path.startswith(b"/dev/") + request.image_path
        kernel.mount(self._fuse_fd, request.mountpoint, source, request.mount_flags)
        mount = mountinfo.mount_on(request.mountpoint)
        self._mount_id = mount.mount_id if mount else None
        return kernel.answer_init(self._fuse_fd, acl=facts.identity.acl)

    def _fork_resolver(self, facts: ImageFacts, answers: socket.socket) -> None:
        files = self._request.files

        def main() -> None:
            os.nice(5)
            resolver.serve(answers, reopen_image(files, facts))

        keep = (answers.fileno(), *files.fds)
        self._children["resolver"] = fork(main, name="resolver", keep=keep, unprivileged=True)

    def _fork_worker(self, facts: ImageFacts, init_request: bytes, reports: socket.socket) -> None:
        reading, writing = os.pipe()
        files = self._request.files

        def ready() -> None:
            os.write(writing, b"+")
            os.close(writing)

        def main() -> None:
            image = reopen_image(files, facts)
            worker.serve(self._fuse_fd, init_request, image, reports, self._counters, ready)

        keep = (self._fuse_fd, *files.fds, reports.fileno(), writing)
        try:
            self._children["worker"] = fork(main, name="worker", keep=keep, unprivileged=True)
        finally:
            os.close(writing)
        try:
            self._signals.wait_for(reading, _START_SECONDS, "the worker process")
            if os.read(reading, 1) != b"+":
                raise HostError(f"the worker process did not start: {self._children.pop('worker').end(1)}")
        finally:
            os.close(reading)

    # Life

    def _step(self) -> None:
        """Wait for the next thing to happen and follow it."""
        link = self._link.fileno()
        readable = self._signals.wait([link] if "supervisor" in self._children else [])
        if self._signals.stop:
            self._signals.stop = False
            # At once if nobody uses the mount, else out of sight.
            if self._unmount():
                self._unmount(lazy=True)
        if readable:
            message = self._receive()
            if message is None:
                self._on_exit(self._children.pop("supervisor"))
            elif "unmount" in message:
                self._send({"unmounted": True, "errno": self._unmount()})
        for child in [child for child in self._children.values() if child.has_ended()]:
            self._on_exit(self._children.pop(child.name))

    def _on_exit(self, child: Child) -> None:
        failure = child.end(1)
        if self._life.state is not State.SERVING:
            return
        if child.name == "worker" and failure is None:  # the kernel told it that the filesystem is unmounted
            self._mount_id = None
            self._life.happen(Event.UNMOUNTED)
            return
        with contextlib.suppress(OSError):
            detail = f"{child.name}: {failure or 'it ended by itself'}"
            self._send({"worker_exit": {"pid": child.pid, "detail": detail}})
        if child.name == "resolver":
            return  # events go on without paths
        self._life.happen(Event.WORKER_DIED if child.name == "worker" else Event.SUPERVISOR_DIED)
        self._failure = f"the {child.name} process ended unexpectedly ({failure}); the mount was ended"
        self._unmount(lazy=True)
        self._life.happen(Event.UNMOUNTED)

    # End

    def _unmount(self, *, lazy: bool = False) -> int:
        """Unmount our mount, wherever it was moved to, and nothing that somebody has mounted over it.

        Returns:
            0, also when it is gone already, or the errno.
        """
        mount = mountinfo.mount_with(self._mount_id) if self._mount_id is not None else None
        if mount is None:
            return 0
        if mountinfo.mount_on(mount.mountpoint) != mount:
            return errno.EBUSY
        return kernel.unmount(mount.mountpoint, lazy=lazy)

    def _clean_up(self) -> None:
        """Leave nothing behind, whatever went wrong before."""
        self._unmount(lazy=True)
        if self._fuse_fd >= 0:
            os.close(self._fuse_fd)  # with the worker's gone too, the kernel aborts what still waits
        with contextlib.suppress(OSError):
            self._send({"end": self._failure or "unmounted"})
        for child in self._children.values():
            child.end(_END_SECONDS if child.name == "supervisor" else 0)
        self._children.clear()
        self._link.close()
        self._supervisors_link.close()
        if self._failure and self._recorded:  # a supervisor that was killed could not do it itself
            control_server.remove(self._request.runtime_directory)

    # The line to the supervisor

    def _send(self, message: dict[str, Any]) -> None:
        self._link.send(json.dumps(message).encode())

    def _receive(self) -> dict[str, Any] | None:
        """The next message; None when the supervisor is gone."""
        try:
            data = self._link.recv(MAX_MESSAGE_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            return None
        message: dict[str, Any] = json.loads(data)
        return message

    def _expect(self, key: str) -> dict[str, Any]:
        """Wait during the start for one message.

        Raises:
            RofsError: What the supervisor failed with, or that it does not answer.
        """
        self._signals.wait_for(self._link.fileno(), _START_SECONDS, "the supervisor process")
        message = self._receive()
        if message is not None and "failed" in message:
            raise verifier.unpack_error(message["failed"].encode())
        if message is None or key not in message:
            raise HostError(f"the supervisor process did not start: {self._children.pop('supervisor').end(1)}")
        return message
