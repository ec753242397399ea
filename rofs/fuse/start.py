# SPDX-License-Identifier: Apache-2.0
"""How a process becomes the keeper of a mount: it makes a new one, takes one over, or goes on with an orphaned one.

What the keeper does from then on is in `keeper`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from rofs.errors import HostError
from rofs.fuse import kernel, mountinfo, signals, usermount
from rofs.fuse.confine import forbid_dumps
from rofs.fuse.crew import Served
from rofs.fuse.handover import Kept
from rofs.fuse.keeper import NOT_MOUNTED, Keeper
from rofs.fuse.life import Event
from rofs.fuse.notify import Notifier
from rofs.fuse.request import MountRequest
from rofs.fuse.shared import SharedState
from rofs.fuse.signals import Signals
from rofs.fuse.verifier import Verification
from rofs.image.open import ImageFacts


def run(
    request: MountRequest,
    verification: Verification,
    caught: Signals,
    announce: Callable[[ImageFacts], None],
    notifier: Notifier,
) -> None:
    """Mount, serve, and return when the mount has ended; the caller is the keeper from here on.

    Args:
        request: What and where.
        verification: Of the image, which goes on meanwhile.
        caught: Signals of this process.
        announce: Called once, when the mount answers and is recorded.
        notifier: To the service manager that has started us, if one has.

    Raises:
        RofsError: It could not be mounted, and nothing is left; or it ended otherwise than by an unmount.
    """
    forbid_dumps()
    _Start(request, caught, notifier).run(verification.finish(caught), announce)


def resume(kept: Kept) -> None:
    """Go on with a living mount in the place of the program that has started it, with new processes.

    Raises:
        RofsError: The mount ended otherwise than by an unmount.
    """
    forbid_dumps()
    with signals.caught() as caught:
        keeper = Keeper(kept, caught, Notifier(kept.notify_address))
        keeper.life.happen(Event.TAKEN_OVER)
        keeper.replace_all()
        keeper.run()


def recover(kept: Kept, notifier: Notifier, caught: Signals, announce: Callable[[ImageFacts], None]) -> None:
    """Go on with a mount whose keeper has died, with all its processes; see `fdstore`.

    Raises:
        RofsError: The processes could not be started, or the mount ended otherwise than by an unmount.
    """
    forbid_dumps()
    keeper = Keeper(kept, caught, notifier)
    keeper.life.happen(Event.TAKEN_OVER)
    try:
        keeper.start_anew(kept.orphans)
    except BaseException as error:
        keeper.clean_up(f"the keeper died, and its successor failed: {error}")
        raise
    announce(kept.served.facts)
    keeper.run()


class _Start:
    """From a request to a mount that answers."""

    def __init__(self, request: MountRequest, caught: Signals, notifier: Notifier) -> None:
        self._request = request
        self._signals = caught
        self._notifier = notifier

    def run(self, facts: ImageFacts, announce: Callable[[ImageFacts], None]) -> None:
        keeper = self._keeper(facts)
        try:
            self._mount(keeper)
            announce(facts)
            keeper.life.happen(Event.READY)
            keeper.tell_manager()
        except BaseException as error:
            keeper.life.happen(Event.FAILED)
            keeper.clean_up(f"the start failed: {error}")
            raise
        keeper.run()

    def _keeper(self, facts: ImageFacts) -> Keeper:
        unknown = kernel.Handshake(b"", resend=False)
        served = Served(self._request.files, facts, NOT_MOUNTED, unknown, SharedState())
        link, _ = socket.socketpair()  # replaced when there is a supervisor
        return Keeper(
            Kept(
                place=self._request.place,
                served=served,
                mount_id=None,
                wanted=self._request.workers,
                workers=[],
                supervisor=None,
                resolver=None,
                link=link,
                reactions=self._request.reactions,
            ),
            self._signals,
            self._notifier,
        )

    def _mount(self, keeper: Keeper) -> None:
        request, acl = self._request, keeper.served.facts.identity.acl
        keeper.start_supervisor()
        keeper.expect("ready")
        try:
            fuse_fd = self._mounted_descriptor()
        finally:
            if request.mountpoint_fd is not None:  # it would keep the filesystem below busy
                os.close(request.mountpoint_fd)
        mount = mountinfo.mount_on(request.place.mountpoint)
        keeper.mounted(fuse_fd, mount)
        keeper.shake_hands(kernel.answer_init(fuse_fd, acl=acl, resend=request.resend))
        if mount is not None:
            kernel.raise_readahead(mount.device)
        keeper.send({"mounted": keeper.mount_id})
        recorded = keeper.expect("recorded")
        if not recorded["recorded"]:
            raise HostError(f"the audit log cannot be written: {recorded['error']}")
        keeper.recorded = True
        keeper.start_resolver()
        keeper.start_workers()

    def _mounted_descriptor(self) -> int:
        place, flags = self._request.place, self._request.mount_flags
        # A source below /dev would make systemd tie the mount to a device unit.
        source = b"rofs:" * place.image_path.startswith(b"/dev/") + place.image_path
        allow_other = self._request.allow_other
        if place.by_user:
            return usermount.mount(place.mountpoint, source, flags, allow_other=allow_other)
        fuse_fd = kernel.open_device()
        try:
            kernel.mount(
                fuse_fd,
                place.mountpoint,
                source,
                flags,
                allow_other=allow_other,
                directory_fd=self._request.mountpoint_fd,
            )
        except HostError:
            os.close(fuse_fd)
            raise
        return fuse_fd
