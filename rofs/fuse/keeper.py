# SPDX-License-Identifier: Apache-2.0
"""The keeper process: starts the others and replaces them when they die, hands the mount over, and ends it.

Single-threaded and without an event loop, so that it can fork; parses nothing of the image. It is the
parent of the supervisor, the workers (`crew`) and the resolver, which it starts from its own warm state.
What a mount can go through is the table in `life`; that another program takes its place is in `handover`; how
it begins, in `start`. Long, since all of it is about the same few processes and the one table.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from rofs.errors import HostError, ImageError, RofsError, StateError, printable
from rofs.fuse import (
    control_server,
    handover,
    kernel,
    mountinfo,
    reaction,
    resolver,
    supervisor,
    usermount,
    verifier,
)
from rofs.fuse.confine import RESOLVER, confine
from rofs.fuse.crew import Crew, Worker
from rofs.fuse.fdstore import FdStore
from rofs.fuse.handover import Kept
from rofs.fuse.life import Event, Life, State
from rofs.fuse.link import KeeperLink
from rofs.fuse.notify import Notifier
from rofs.fuse.post import Post
from rofs.fuse.process import fork
from rofs.fuse.shared import Total
from rofs.fuse.signals import Signals
from rofs.image.open import reopen_image

_START_SECONDS = 60.0  # for a supervisor that waits for the log, or a worker on a slow disk
_END_SECONDS = 15.0  # for the supervisor's last records
_LOOK_SECONDS = 1.0
_MANAGER_SECONDS = 2.0
NOT_MOUNTED: Final = -1  # in the place of a descriptor
_CLOSE_SECONDS = 5.0  # for open files, when a signal has asked us to end
_STOP_SECONDS = 1.0  # for the answers that workers are at
_MAX_UNRECORDED = 100  # deaths that no supervisor has recorded


class Keeper:
    """A mount that lives, or is just being made.

    Attributes:
        life: Where it is in its life.
        served: What its workers serve.
        mount_id: While it is mounted, as far as we know.
        device: Of its filesystem; a mount of that id and another device is not ours.
        recorded: Whether the log says that it is mounted.
    """

    def __init__(self, kept: Kept, caught: Signals, notifier: Notifier) -> None:
        self.life = Life()
        self.served = kept.served
        self.mount_id = kept.mount_id
        self.device = kept.device
        self.recorded = kept.supervisor is not None or kept.mount_id is not None
        self._place = kept.place
        self._reactions = kept.reactions
        self._signals = caught
        self._notifier = notifier
        self._store = FdStore(notifier)
        self._crew = Crew(kept.served, kept.wanted, kept.workers, self._store.clone)
        self._supervisor = Post(kept.supervisor)
        self._resolver = Post(kept.resolver)
        self._link = KeeperLink(kept.link)
        self._unrecorded: list[dict[str, Any]] = []
        self._next_look = 0.0
        self._failure: RofsError | None = None
        self._stop_at: float | None = None
        self._has_reacted = False

    def mounted(self, fuse_fd: int, mount: mountinfo.Mount | None) -> None:
        """The kernel has mounted it."""
        if mount is not None:
            self.mount_id, self.device = mount.mount_id, mount.device
        self.served = replace(self.served, fuse_fd=fuse_fd)

    def shake_hands(self, handshake: kernel.Handshake) -> None:
        """The kernel has been answered; there can be workers from now on."""
        self.served = replace(self.served, handshake=handshake)
        self._crew = Crew(self.served, self._crew.wanted, on_clone=self._store.clone)

    def run(self) -> None:
        """Keep the mount until it has ended.

        Raises:
            RofsError: It ended otherwise than by an unmount.
        """
        try:
            while self.life.state is not State.ENDED:
                self._step()
        finally:
            self.clean_up(str(self._failure) if self._failure else None)
        if self._failure:
            raise self._failure

    # Starting the others

    def start_supervisor(self) -> None:
        """Start one, the first or a successor, and tell it what there is."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        place, served = self._place, self.served
        setup = supervisor.Supervised(
            mountpoint=place.mountpoint,
            image_path=place.image_path,
            facts=served.facts,
            log_path=place.log_path,
            runtime_directory=place.runtime_directory,
            mode=place.mode,
            shared=served.shared,
            keeper=os.getpid(),
            mount_id=self.mount_id if self.recorded else None,
            stored=self._store.is_there,
            workers_wanted=self._crew.wanted,
            reactions=self._reactions,
        )

        def main() -> None:
            try:
                supervisor.serve(setup, theirs)
            except RofsError as error:
                theirs.send(json.dumps({"failed": verifier.pack_error(error).decode()}).encode())
                raise

        keep = (theirs.fileno(), served.shared.fd)
        self._supervisor.fill(fork(main, name="supervisor", keep=keep, unprivileged=False))
        theirs.close()  # so that its end shows
        self._link.connection.close()
        self._link = KeeperLink(ours)
        for message in self._unrecorded:
            self.send(message)

    def start_resolver(self) -> None:
        """Start one, and have the supervisor ask it."""
        questions, answers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        files, facts = self.served.files, self.served.facts

        def main() -> None:
            os.nice(5)
            confine(RESOLVER)
            resolver.serve(answers, reopen_image(files, facts))

        with questions, answers:
            keep = (answers.fileno(), *files.fds)
            child = fork(main, name="resolver", keep=keep, unprivileged=True)
            self._resolver.fill(child)
            self.send({"resolver": child.pid}, questions.fileno())

    def start_workers(self) -> None:
        """Start as many as there are to be, and wait until they answer.

        Raises:
            HostError: One did not start; those that did are left to the caller.
        """
        hired: list[tuple[Worker, int]] = []
        try:
            for _ in range(self._crew.wanted):
                hired.append(self._crew.hire())  # noqa: PERF401 - one that fails leaves the others here
            for member, pipe in hired:
                self._signals.wait_for(pipe, _START_SECONDS, "a worker process")
                if os.read(pipe, 1) != b"+":
                    raise HostError(f"a worker process did not start: {self._crew.bury(member)}")
        finally:
            for _, pipe in hired:
                os.close(pipe)
        for member, _ in hired:
            self._introduce(member)
        self._tell_who_serves()

    def introduce_workers(self) -> None:
        """Tell a new supervisor, once it has a resolver: it begins with their reports at once."""
        for member in self._crew.workers:
            self._introduce(member)
        self._tell_who_serves()

    def _introduce(self, member: Worker) -> None:
        self.send({"worker": member.slot}, member.reports.fileno())

    def _tell_who_serves(self) -> None:
        self.send({"serving": [[member.child.pid, member.slot] for member in self._crew.workers]})

    # Life

    def _step(self) -> None:
        """Wait for the next thing to happen and follow it."""
        link = self._link.connection.fileno()
        readable = self._signals.wait([link] if self._supervisor.child else [], self._seconds_to_wait())
        if self._signals.stop:
            self._signals.stop = False
            # At once if nobody uses the mount, else out of sight; who still has a file open has a moment to close it.
            if self._unmount():
                self._unmount(lazy=True)
                self._stop_at = time.monotonic() + _CLOSE_SECONDS
        if readable:
            self._on_message(self._link.receive())
        self._bury_the_dead()
        if self._stop_at is not None and time.monotonic() >= self._stop_at and self.life.state is not State.ENDED:
            self.life.happen(Event.UNMOUNTED)  # whoever has still something open there gets ENOTCONN
        if self.life.state is not State.ENDED:
            self._replace_due()

    def _seconds_to_wait(self) -> float:
        dues = [post.due for post in (self._supervisor, self._resolver) if post.child is None]
        dues += [] if self._stop_at is None else [self._stop_at]
        return self._crew.seconds_until_due(max(0.0, min([self._next_look, *dues]) - time.monotonic()))

    def _on_message(self, message: dict[str, Any] | None) -> None:
        """From the supervisor; its death shows by itself."""
        if message is None:
            return
        if "unmount" in message:
            number, in_use = self._unmount(), False
            if number == errno.EBUSY and message.get("lazy"):
                number, in_use = self._unmount(lazy=True), True
            self.send({"unmounted": True, "errno": number, "in_use": in_use})
        elif "corruption" in message:
            self._react()
        elif "exit_recorded" in message:
            if (recorded := {"worker_exit": message["exit_recorded"]}) in self._unrecorded:
                self._unrecorded.remove(recorded)
        elif "takeover" in message:
            self.send({"taken_over": True, "error": self._hand_over(message["takeover"])})

    def _react(self) -> None:
        """A corrupt block was met, and its event is in the log, if it can be."""
        if self._has_reacted:
            return
        self._has_reacted = True
        if self._reactions.on_corruption == "stop":
            self._failure = ImageError("a block is corrupt, and --on-corruption stop has ended the mount")
            self._unmount(lazy=True)
            self._stop_at = time.monotonic() + _STOP_SECONDS
        elif self._reactions.on_corruption == "restart":
            outcome = reaction.restart_once(self.served.facts.root_hash)
            self.send({"reaction": {"status": outcome.status, "detail": outcome.detail}})

    def _bury_the_dead(self) -> None:
        for member in [member for member in self._crew.workers if member.child.has_ended()]:
            failure = self._crew.bury(member)
            if self.life.state is State.ENDED:
                continue
            if not kernel.is_connected(self.served.fuse_fd):
                self._on_disconnected()
                continue
            self._on_death("worker", member.child.pid, failure)
            self._tell_who_serves()
        for post in (self._supervisor, self._resolver):
            if self.life.state is not State.ENDED and (child := post.find_dead()) is not None:
                failure = child.end()
                if failure or post is not self._resolver:  # which ends by itself when the supervisor is gone
                    self._on_death(child.name, child.pid, failure)

    def _on_disconnected(self) -> None:
        """A worker has ended since the kernel will send no more requests."""
        if self.mount_id is not None and mountinfo.mount_with(self.mount_id, self.device) is not None:
            self._failure = StateError("the connection to the kernel was aborted; the mount was ended")
            self._unmount(lazy=True)
        self.mount_id = None
        self.life.happen(Event.UNMOUNTED)

    def _on_death(self, name: str, pid: int, failure: str | None) -> None:
        self.life.happen(Event.DIED)
        self.served.shared.add(Total.RESTARTS)
        self._tell_of_exit(pid=pid, detail=f"{name}: {failure or 'it ended by itself'}")

    def _replace_due(self) -> None:
        is_new = self._supervisor.is_due and self._supervisor.try_to_fill(self.start_supervisor)
        if is_new:
            self._resolver.end()  # it may still be at an answer for the one that died
        if self._resolver.is_due:
            self._resolver.try_to_fill(self.start_resolver)
        if is_new:
            self.introduce_workers()
        if hired := self._crew.hire_due():
            for member in hired:
                self._introduce(member)
            self._tell_who_serves()
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_SECONDS
            before = len(self._crew.workers)
            for line in self._crew.look():
                self._tell_of_exit(detail=line)
            if len(self._crew.workers) != before:  # it has let one go
                self._tell_who_serves()
        complete = self._crew.is_complete and self._supervisor.child and self._resolver.child
        if complete and self.life.state is State.DEGRADED:
            self.life.happen(Event.REPLACED)

    # Another program

    def _hand_over(self, program: dict[str, Any]) -> str | None:
        """Make another program the keeper, if it starts.

        Returns:
            Why that is not possible; does not return otherwise.
        """
        argv, environment = list(map(str, program["argv"])), dict(program["environment"])
        if self.life.state not in {State.SERVING, State.DEGRADED}:  # what keeps dying may be why it is replaced
            return f"the mount is {self.life.state.value}; try again"
        kept = replace(self._kept(), wanted=program["workers"] or self._crew.wanted)
        if why := handover.check(argv, environment, kept):
            return why
        self._notifier.reloading()
        self._notifier.barrier(_MANAGER_SECONDS)
        error = handover.execute(argv, environment, kept)
        self._notifier.ready()
        return f"{argv[0]} cannot be executed: {error.strerror}"

    def _kept(self) -> Kept:
        return Kept(
            place=self._place,
            served=self.served,
            mount_id=self.mount_id,
            device=self.device,
            wanted=self._crew.wanted,
            workers=self._crew.workers,
            supervisor=self._supervisor.child,
            resolver=self._resolver.child,
            link=self._link.connection,
            notify_address=self._notifier.address,
            reactions=self._reactions,
        )

    def tell_manager(self) -> None:
        """The mount answers: have the service manager know, and keep what a successor of ours would need."""
        self._store.keep(self._kept())
        self._notifier.ready(f"serving {printable(self._place.mountpoint)}")

    def start_anew(self, orphans: Sequence[int]) -> None:
        """Start all processes of a mount that has none, and hand on what those before were working at.

        Raises:
            RofsError: They do not start.
        """
        if not self.served.handshake.resend:
            _close(orphans)  # or their callers would wait for ever
        self.start_supervisor()
        self.expect("ready")
        self.send({"took_over": "resumed after the keeper's death"})
        self.start_resolver()
        self.start_workers()
        if self.served.handshake.resend:
            kernel.resend(self.served.fuse_fd)
            _close(orphans)
        self.life.happen(Event.REPLACED)
        self.tell_manager()

    def replace_all(self) -> None:
        """Put processes of this program in the places of those of the program before.

        Workers first: if they cannot be started, the old ones go on. Then the supervisor, so that no report
        waits long, and only then the old workers go.
        """
        old = self._crew.workers[:]
        try:
            self.start_workers()
        except (RofsError, OSError) as error:
            for member in [member for member in self._crew.workers if member not in old]:
                self._crew.retire(member)
            self.send({"taken_over": True, "error": f"{error}; the processes of the version before go on"})
            self.life.happen(Event.REPLACED)
            self.tell_manager()
            return
        self.send({"taken_over": True, "error": None})
        self.send({"retire": True})
        self._supervisor.end(_END_SECONDS)
        self._resolver.end()
        self._supervisor.try_to_fill(self.start_supervisor)
        self.send({"took_over": "by another program"})
        self._resolver.try_to_fill(self.start_resolver)
        self.introduce_workers()
        for member in old:
            self._crew.retire(member)
        self._tell_who_serves()
        self.life.happen(Event.REPLACED)
        self.tell_manager()

    # End

    def _unmount(self, *, lazy: bool = False) -> int:
        """Unmount our mount, wherever it was moved to, and nothing that somebody has mounted over it.

        Returns:
            0, also when it is gone already, or the errno.
        """
        mount = mountinfo.mount_with(self.mount_id, self.device) if self.mount_id is not None else None
        if mount is None:
            return 0
        on_top = mountinfo.mount_on(mount.mountpoint)
        if on_top is None or on_top.mount_id != mount.mount_id:
            return errno.EBUSY
        unmount = usermount.unmount if self._place.by_user else kernel.unmount
        return unmount(mount.mountpoint, lazy=lazy)

    def clean_up(self, failure: str | None) -> None:
        """Leave nothing behind, whatever went wrong before."""
        self._notifier.stopping()
        self._unmount(lazy=True)
        self._store.clear()
        if self._supervisor.child is None and self.recorded:
            self._supervisor.try_to_fill(self.start_supervisor)  # for the last records
            self.introduce_workers()
        with contextlib.suppress(OSError):
            self._link.send({"end": failure or "unmounted"})
        self._crew.dismiss()
        if self.served.fuse_fd != NOT_MOUNTED:
            os.close(self.served.fuse_fd)  # with the workers' gone too, the kernel aborts what still waits
        self._supervisor.end(_END_SECONDS)
        self._resolver.end()
        self._link.connection.close()
        if failure and self.recorded:  # a supervisor that was killed could not do it itself
            control_server.remove(self._place.runtime_directory)

    # The line to the supervisor

    def send(self, message: dict[str, Any], fd: int | None = None) -> None:
        """Tell the supervisor; when there is none, its successor is told all that it must know."""
        try:
            self._link.send(message, fd)
        except BlockingIOError:
            # It has not read some hundred messages. A successor is told anew who is there.
            if self._supervisor.child is not None:
                os.kill(self._supervisor.child.pid, signal.SIGKILL)
        except OSError:
            pass

    def _tell_of_exit(self, **fields: Any) -> None:
        """Have it recorded; by its successor, when the supervisor dies before it has done so."""
        message = {"worker_exit": fields}
        if len(self._unrecorded) < _MAX_UNRECORDED:
            self._unrecorded.append(message)
        self.send(message)

    def expect(self, key: str) -> dict[str, Any]:
        """Wait during the start for one message.

        Raises:
            RofsError: What the supervisor failed with, or that it does not answer.
        """
        self._signals.wait_for(self._link.connection.fileno(), _START_SECONDS, "the supervisor process")
        message = self._link.receive()
        if message is not None and "failed" in message:
            raise verifier.unpack_error(message["failed"].encode())
        if message is None or key not in message:
            child, self._supervisor.child = self._supervisor.child, None
            raise HostError(f"the supervisor process did not start: {child.end(1) if child else 'it has ended'}")
        return message


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
