# SPDX-License-Identifier: Apache-2.0
"""The keeper process: verifies, mounts, forks the others, and ends the mount when it must end.

Single-threaded and without an event loop, so that it can fork; parses nothing of the image. It is the
parent of the supervisor, the worker and the resolver, which it starts from its own warm state. What a
mount can go through is the table in `life`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rofs.errors import HostError, RofsError, StateError
from rofs.fuse import control_server, kernel, resolver, supervisor, verifier, worker
from rofs.fuse.counters import Counters
from rofs.fuse.life import Event, Life, State
from rofs.fuse.messages import MAX_MESSAGE_BYTES
from rofs.fuse.process import fork
from rofs.image.open import ImageFacts, reopen_image
from rofs.trust.verify import TrustPolicy

_START_SECONDS = 60.0  # for a supervisor that waits for the log, or a worker on a slow disk
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_END_SECONDS = 15.0  # for the supervisor's last records


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What is to be mounted where.

    Attributes:
        image_fd: The image, opened once.
        image_path: Absolute; shown to people, never opened again.
        mountpoint: Absolute and resolved.
        policy: Which image is trusted.
        mount_flags: `kernel.MS_NOSUID` and the like.
        log_path: Of the audit log.
        runtime_directory: Of this mount.
    """

    image_fd: int
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
    with _signals() as wakeup:
        _Keeper(request, wakeup).run(announce)


class _Keeper:
    def __init__(self, request: MountRequest, wakeup: int) -> None:
        self._request = request
        self._wakeup = wakeup
        self._life = Life()
        self._children: dict[int, str] = {}  # pid to name, of those that have not been waited for
        self._fuse_fd = -1
        self._mounted = False
        self._failure = ""
        self._stop = False

    def run(self, announce: Callable[[ImageFacts], None]) -> None:
        self._facts = verifier.verify(self._request.image_fd, self._request.policy)
        self._counters = Counters()
        try:
            self._start()
        except BaseException:
            self._life.happen(Event.FAILED)
            self._clean_up()
            raise
        announce(self._facts)
        try:
            while self._life.state is not State.ENDED:
                self._step()
        finally:
            self._clean_up()
        if self._failure:
            raise StateError(self._failure)

    # Start

    def _start(self) -> None:
        self._link, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reports, worker_reports = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        questions, answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with worker_reports, answers:
            with link, reports, questions:
                self._fork_supervisor(link, reports, questions)
            self._expect("ready")
            self._mount()
            self._send({"mounted": True})
            recorded = self._expect("recorded")
            if not recorded["recorded"]:
                raise HostError(f"the audit log cannot be written: {recorded['error']}")
            self._fork_resolver(answers)
            self._fork_worker(worker_reports)
        self._send({"serving": [pid for pid, name in self._children.items() if name == "worker"]})
        self._life.happen(Event.READY)

    def _fork_supervisor(self, link: socket.socket, reports: socket.socket, questions: socket.socket) -> None:
        setup = supervisor.Supervised(
            mountpoint=self._request.mountpoint,
            image_path=self._request.image_path,
            facts=self._facts,
            log_path=self._request.log_path,
            runtime_directory=self._request.runtime_directory,
            counters=self._counters,
            keeper=os.getpid(),
        )

        def main() -> None:
            try:
                supervisor.serve(setup, link, reports, questions)
            except RofsError as error:
                link.send(json.dumps({"failed": verifier.pack_error(error).decode()}).encode())

        keep = (link.fileno(), reports.fileno(), questions.fileno())
        self._children[fork(main, keep=keep, unprivileged=False)] = "supervisor"

    def _mount(self) -> None:
        self._fuse_fd = kernel.open_device()
        request = self._request
        # A source below /dev would make systemd tie the mount to a device unit.
        source = b"rofs:" * request.image_path.startswith(b"/dev/") + request.image_path
        kernel.mount(self._fuse_fd, request.mountpoint, source, request.mount_flags)
        self._mounted = True
        self._init_request = kernel.answer_init(self._fuse_fd, acl=self._facts.identity.acl)

    def _fork_resolver(self, answers: socket.socket) -> None:
        image_fd = self._request.image_fd

        def main() -> None:
            os.nice(5)
            resolver.serve(answers, reopen_image(image_fd, self._facts))

        pid = fork(main, keep=(answers.fileno(), image_fd), unprivileged=True)
        self._children[pid] = "resolver"

    def _fork_worker(self, reports: socket.socket) -> None:
        reading, writing = os.pipe()
        request = self._request

        def main() -> None:
            image = reopen_image(request.image_fd, self._facts)

            def ready() -> None:
                os.write(writing, b"+")
                os.close(writing)

            worker.serve(self._fuse_fd, self._init_request, image, reports, self._counters, ready)

        keep = (self._fuse_fd, request.image_fd, reports.fileno(), writing)
        try:
            self._children[fork(main, keep=keep, unprivileged=True)] = "worker"
        finally:
            os.close(writing)
        try:
            if not select.select([reading], [], [], _START_SECONDS)[0] or os.read(reading, 1) != b"+":
                raise HostError("the worker process did not start")
        finally:
            os.close(reading)

    # Life

    def _step(self) -> None:
        """Wait for the next thing to happen and follow it."""
        ready, _, _ = select.select([self._wakeup, self._link.fileno()], [], [])
        if self._wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                if any(number in STOP_SIGNALS for number in os.read(self._wakeup, 4096)):
                    self._unmount_for_signal()
        if self._link.fileno() in ready:
            message = self._receive()
            if message is None:
                select.select([self._wakeup], [], [])  # its death is about to be reported
            elif "unmount" in message:
                self._send({"unmounted": True, "errno": kernel.unmount(self._request.mountpoint)})
        self._reap()

    def _unmount_for_signal(self) -> None:
        """End because somebody asked the process to: at once if nobody uses the mount, else out of sight."""
        if kernel.unmount(self._request.mountpoint):
            kernel.unmount(self._request.mountpoint, lazy=True)

    def _reap(self) -> None:
        for pid, name in list(self._children.items()):
            waited, status = os.waitpid(pid, os.WNOHANG)
            if waited:
                del self._children[pid]
                self._on_exit(name, pid, os.waitstatus_to_exitcode(status))

    def _on_exit(self, name: str, pid: int, code: int) -> None:
        if self._life.state is not State.SERVING:
            return
        if name == "worker" and code == 0:  # the kernel told it that the filesystem is unmounted
            self._mounted = False
            self._life.happen(Event.UNMOUNTED)
            return
        with contextlib.suppress(OSError):
            self._send({"worker_exit": {"pid": pid, "status": str(code), "detail": name}})
        if name == "resolver":
            return  # events go on without paths
        self._life.happen(Event.WORKER_DIED if name == "worker" else Event.SUPERVISOR_DIED)
        self._failure = f"the {name} process ended unexpectedly (status {code}); the mount was ended"
        self._force_unmount()
        self._life.happen(Event.UNMOUNTED)

    # End

    def _force_unmount(self) -> None:
        if self._mounted:
            kernel.unmount(self._request.mountpoint, lazy=True)
            self._mounted = False

    def _clean_up(self) -> None:
        """Leave nothing behind, whatever went wrong before."""
        self._force_unmount()
        if self._fuse_fd >= 0:
            os.close(self._fuse_fd)
        with contextlib.suppress(OSError):
            self._send({"end": self._failure or "unmounted"})
        for pid, name in self._children.items():
            _end_child(pid, _END_SECONDS if name == "supervisor" else 0)
        self._children.clear()
        self._link.close()
        if self._failure:  # a supervisor that was killed could not do it itself
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
        self._link.settimeout(_START_SECONDS)
        try:
            message = self._receive()
        except TimeoutError as error:
            raise HostError(f"the supervisor process did not answer within {_START_SECONDS:g} s") from error
        finally:
            self._link.settimeout(None)
        if message is not None and "failed" in message:
            raise verifier.unpack_error(message["failed"].encode())
        if message is None or key not in message:
            raise HostError("the supervisor process died during the start")
        return message


def _end_child(pid: int, patience_seconds: float) -> None:
    """Wait for a child, then kill it."""
    pidfd = os.pidfd_open(pid)
    try:
        if not select.select([pidfd], [], [], patience_seconds)[0]:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    finally:
        os.close(pidfd)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """Turn signals into bytes on a descriptor that select(2) can wait for."""
    receiving, sending = socket.socketpair()
    for end in (receiving, sending):
        end.settimeout(0)
    before = {number: signal.signal(number, lambda *_: None) for number in (*STOP_SIGNALS, signal.SIGCHLD)}
    signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
    try:
        yield receiving.fileno()
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
        receiving.close()
        sending.close()
