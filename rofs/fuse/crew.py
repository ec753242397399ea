# SPDX-License-Identifier: Apache-2.0
"""The workers of a mount: starts them, each on a clone of its own, replaces what dies or hangs, retires them.

A worker's clone stays open here after its death, until the kernel was told to hand the requests in work
out again: so nobody's call fails. Where the kernel cannot do that, they are aborted at once. Single-threaded;
decides nothing about the mount as a whole, and does not talk to the supervisor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rofs.errors import HostError
from rofs.fuse import kernel, worker
from rofs.fuse.backoff import Backoff
from rofs.fuse.kernel import Handshake
from rofs.fuse.process import WORKER_MEMORY_BYTES, Child, fork
from rofs.fuse.shared import MAX_SLOTS, Number, SharedState
from rofs.image.open import ImageFacts, ImageFiles, reopen_image

# Beyond those that were asked for, in the place of workers that sleep in the kernel.
_MAX_EXTRA = 8
# How often in a row a worker dies over the same request until that is not handed out again. A signal 9 may
# have nothing to do with the request: somebody sent it, or the machine was out of memory.
_CRASHES_OF_ONE_REQUEST = 3
_KILLS_OF_ONE_REQUEST = 20
# Looks, one a second, at which a worker was busy with the same request.
_LOOKS_UNTIL_ASLEEP = 2
_LOOKS_UNTIL_HUNG = 60
_RETIRE_SECONDS = 2.0
_DISMISS_SECONDS = 2.0
_DISMISS_LOOK_SECONDS = 0.005
# For reports while no supervisor reads them; a few thousand.
_REPORTS_BYTES = 2 << 20
_SO_SNDBUFFORCE = 32


@dataclass(slots=True)
class Worker:
    """A worker process.

    Attributes:
        child: Itself.
        slot: Where it counts in the shared memory.
        clone_fd: Our copy of its clone.
        reports: The other end of its line, for a supervisor.
        started: On the monotonic clock.
        looks: At how many looks it was busy with the same request.
        stopped: At how many looks it was stopped.
        hung: Whether it was killed for that.
    """

    child: Child
    slot: int
    clone_fd: int
    reports: socket.socket
    started: float = field(default_factory=time.monotonic)
    looks: int = 0
    stopped: int = 0
    hung: bool = False
    _seen: tuple[int, int] = (0, 0)

    def look(self, numbers: memoryview) -> None:
        """See whether it goes on."""
        seen = numbers[Number.BUSY], numbers[Number.REQUESTS]
        self.looks = self.looks + 1 if seen[0] and seen == self._seen else 0
        self._seen = seen

    @property
    def state(self) -> str:
        """As proc_pid_stat(5): `D` sleeps in the kernel, `T` was stopped, `R` and `S` could go on."""
        try:
            with open(f"/proc/{self.child.pid}/stat", "rb") as file:
                return chr(file.read().rpartition(b") ")[2][0])
        except (OSError, IndexError):
            return "?"


@dataclass(frozen=True, slots=True)
class Served:
    """What workers serve.

    Attributes:
        files: The image.
        facts: What the verifier found out about it.
        fuse_fd: The mounted descriptor.
        handshake: What was agreed on with the kernel.
        shared: The memory of the mount.
    """

    files: ImageFiles
    facts: ImageFacts
    fuse_fd: int
    handshake: Handshake
    shared: SharedState


class Crew:
    """All workers of one mount.

    Args:
        served: What they serve.
        wanted: How many there are to be.
        workers: Those that are there already, when another program had them started.
        on_clone: Told of each clone by its worker's slot, and with None before it is closed.

    Attributes:
        workers: Those that live, and those that have died and were not buried yet.
    """

    def __init__(
        self,
        served: Served,
        wanted: int,
        workers: list[Worker] | None = None,
        on_clone: Callable[[int, int | None], None] = lambda _slot, _fd: None,
    ) -> None:
        self.workers = workers or []
        self._on_clone = on_clone
        self.wanted = wanted
        self._served = served
        self._backoff = Backoff()
        self._due: list[float] = []  # when the next ones are to be started, on the monotonic clock
        self._suspect = 0  # signature of the request that the last one died over
        self._deaths = 0  # how many have died over it, in a row

    # Coming

    def hire(self) -> tuple[Worker, int]:
        """Start one more worker.

        Returns:
            The worker, and a pipe that says `+` when it is about to answer requests.

        Raises:
            HostError: /dev/fuse cannot be opened any more, or no slot is free.
            OSError: The host has no process or descriptor to spare.
        """
        slot = self._free_slot()
        with contextlib.ExitStack() as if_it_fails:
            clone_fd = kernel.clone(self._served.fuse_fd)
            if_it_fails.callback(os.close, clone_fd)
            ours, theirs = _report_line()
            if_it_fails.callback(ours.close)
            with theirs:
                reading, writing = os.pipe()
                if_it_fails.callback(os.close, reading)
                try:
                    child = self._fork(slot, clone_fd, theirs, writing)
                finally:
                    os.close(writing)
            if_it_fails.pop_all()
        hired = Worker(child, slot, clone_fd, ours)
        self.workers.append(hired)
        self._on_clone(slot, clone_fd)
        return hired, reading

    def _fork(self, slot: int, clone_fd: int, reports: socket.socket, ready_fd: int) -> Child:
        served = self._served
        # Those that it replaces go on meanwhile: no more may sleep than there are to be in the end.
        assignment = worker.Assignment(clone_fd, served.handshake, slot, served.shared, self.wanted)

        def ready() -> None:
            with contextlib.suppress(OSError):  # nobody may wait for it
                os.write(ready_fd, b"+")
            os.close(ready_fd)

        def main() -> None:
            worker.serve(assignment, lambda: reopen_image(served.files, served.facts), reports, ready)

        keep = (clone_fd, *served.files.fds, reports.fileno(), ready_fd, served.shared.fd)
        return fork(main, name="worker", keep=keep, unprivileged=True, memory_bytes=WORKER_MEMORY_BYTES)

    def _free_slot(self) -> int:
        used = {member.slot for member in self.workers}
        free = next((slot for slot in range(MAX_SLOTS) if slot not in used), None)
        if free is None:
            raise HostError(f"no more than {MAX_SLOTS} workers can be there at once")
        return free

    def hire_due(self) -> list[Worker]:
        """Start the workers whose time has come. One that cannot be started is tried again later."""
        now = time.monotonic()
        hired = []
        for due in [due for due in self._due if due <= now]:
            self._due.remove(due)
            try:
                member, pipe = self.hire()
            except (HostError, OSError):
                self._due.append(now + self._backoff.seconds_after(0))
                break
            os.close(pipe)
            hired.append(member)
        return hired

    def seconds_until_due(self, at_most: float) -> float:
        """How long until `hire_due` has something to do."""
        return max(0.0, min([at_most, *(due - time.monotonic() for due in self._due)]))

    @property
    def is_complete(self) -> bool:
        """Whether as many are there as there are to be."""
        return len(self.workers) >= self.wanted

    # Going

    def bury(self, member: Worker) -> str | None:
        """Let go of one that has ended, hand on what it was working at, and plan for its successor.

        Returns:
            None when it ended as it should, else how it died.
        """
        failure = member.child.end()
        handed_on = self._is_connected() and self._hand_on(member)
        self._release(member)
        if self._is_connected() and len(self.workers) + len(self._due) < self.wanted:
            lived = time.monotonic() - member.started
            self._due.append(time.monotonic() + self._backoff.seconds_after(lived))
        if failure and not handed_on:
            failure += "; the calls it was answering failed"
        return failure

    def _is_connected(self) -> bool:
        return kernel.is_connected(self._served.fuse_fd)

    def _hand_on(self, member: Worker) -> bool:
        """Give its unanswered requests to the others, but one that has cost several workers their lives."""
        signature = self._served.shared.slot(member.slot)[Number.BUSY]
        self._deaths = self._deaths + 1 if signature and signature == self._suspect else 1
        self._suspect = signature
        by_others = member.child.status == -signal.SIGKILL and not member.hung
        allowed = _KILLS_OF_ONE_REQUEST if by_others else _CRASHES_OF_ONE_REQUEST
        if not self._served.handshake.resend or (signature and self._deaths >= allowed):
            self._deaths = 0
            return not signature  # it was at no request, so none is lost
        with contextlib.suppress(OSError):  # unmounted just now
            kernel.resend(self._served.fuse_fd)
        return True

    def _release(self, member: Worker) -> None:
        self.workers.remove(member)
        self._on_clone(member.slot, None)
        os.close(member.clone_fd)  # not before: this aborts what it has not answered
        member.reports.close()
        self._served.shared.slot(member.slot)[Number.BUSY] = 0

    def retire(self, member: Worker) -> None:
        """Have one finish its request and end; who does not is killed, and what it was at handed on."""
        member.child.ask(worker.RETIRE_SIGNAL, _RETIRE_SECONDS)
        failure = member.child.end()
        if failure and self._served.handshake.resend:
            with contextlib.suppress(OSError):
                kernel.resend(self._served.fuse_fd)
        self._release(member)

    def dismiss(self) -> None:
        """End all of them, at once: the mount is over.

        One that sleeps in the kernel may wait for the answer to a request that nobody will take any more.
        """
        self._due.clear()
        for member in self.workers:
            member.child.kill()
        deadline = time.monotonic() + _DISMISS_SECONDS
        while self.workers and time.monotonic() < deadline:
            for member in [member for member in self.workers if member.child.has_ended()]:
                member.child.end()
                self._release(member)
            if self.workers and not kernel.refuse_request(self._served.fuse_fd):
                self.workers[0].child.ends_within(_DISMISS_LOOK_SECONDS)
        for member in self.workers[:]:
            member.child.end()
            self._release(member)

    # Looking after them

    def look(self) -> list[str]:
        """Once a second: kill who hangs, and have one more for each that sleeps in the kernel.

        A stopped worker hangs no more than a stopped machine does. One that sleeps in the kernel cannot
        be killed; it may wait for an answer that only another worker can give.

        Returns:
            What was done, one line each.
        """
        done = []
        asleep = 0
        for member in self.workers:
            member.look(self._served.shared.slot(member.slot))
            self._help_stopped(member)
            if member.looks < _LOOKS_UNTIL_ASLEEP:
                continue
            state = member.state
            asleep += state == "D"
            if member.looks >= _LOOKS_UNTIL_HUNG and state in {"R", "S"}:
                done.append(f"worker {member.child.pid} was busy with one request for {member.looks} s and is killed")
                member.hung = True
                os.kill(member.child.pid, signal.SIGKILL)
        self._fit(self.wanted + min(asleep, _MAX_EXTRA))
        return done

    def _help_stopped(self, member: Worker) -> None:
        """One that is stopped may have taken a request as its last act, before it could say so: others answer it."""
        member.stopped = member.stopped + 1 if member.state == "T" else 0
        if member.stopped == _LOOKS_UNTIL_ASLEEP and self._served.handshake.resend:
            with contextlib.suppress(OSError):
                kernel.resend(self._served.fuse_fd)

    def _fit(self, wanted: int) -> None:
        """Plan for more workers, or retire one that is too many and has nothing to do."""
        there = len(self.workers) + len(self._due)
        if there < wanted:
            self._due.extend([time.monotonic()] * (wanted - there))
        elif there > wanted and not self._due and not self.workers[-1].looks:
            self.retire(self.workers[-1])


def _report_line() -> tuple[socket.socket, socket.socket]:
    """Our end and a worker's; a worker's reports wait in between while nobody reads them."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        theirs.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _REPORTS_BYTES)
    except PermissionError:  # what is left is net.core.wmem_max
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _REPORTS_BYTES)
    return ours, theirs
