# SPDX-License-Identifier: Apache-2.0
"""What systemd keeps of a mount in case its keeper dies, and how the next keeper of the unit goes on with it.

Systemd holds copies of the descriptors: the mounted one, the clones with the requests in work on them, the
image, the shared memory and the keeper's state (`handover`). The dead keeper's children end with it; their
callers wait until a new keeper has started workers and has the requests handed out again. Without a service
manager nothing is kept. Source: systemd.service(5), FileDescriptorStoreMax=; sd_notify(3).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Final

from rofs.errors import StateError
from rofs.fuse import handover, kernel, mountinfo
from rofs.fuse.handover import Kept
from rofs.fuse.notify import Notifier

_STATE: Final = "rofs-state"
_CLONE: Final = "rofs-clone-"
_FDS: Final = {"rofs-data": "data_fd", "rofs-hash": "hash_fd", "rofs-fuse": "fuse_fd", "rofs-shared": "shared_fd"}


class FdStore:
    """The unit's descriptor store.

    Args:
        notifier: To the manager; when it has no address nothing is kept.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._clones: set[int] = set()

    @property
    def is_there(self) -> bool:
        """Whether anybody keeps anything."""
        return self._notifier.address is not None

    def keep(self, kept: Kept) -> None:
        """Have all of a mount kept; what was kept of it before is replaced."""
        if not self.is_there:
            return
        self.clear()
        served = kept.served
        fds = (served.files.data_fd, served.files.hash_fd, served.fuse_fd, served.shared.fd)
        for name, fd in zip(_FDS, fds, strict=True):
            self._store(name, fd)
        for member in kept.workers:
            self.clone(member.slot, member.clone_fd)
        state = handover.write_state(kept)
        try:
            self._store(_STATE, state)  # last: without it the others are of no use
        finally:
            os.close(state)

    def clone(self, slot: int, fd: int | None) -> None:
        """A worker's clone is there, or will be closed: then its requests must not be held any longer."""
        if slot in self._clones:
            self._notifier.remove(f"{_CLONE}{slot}")
            self._clones.discard(slot)
        if fd is not None and self.is_there:
            self._store(f"{_CLONE}{slot}", fd)
            self._clones.add(slot)

    def clear(self) -> None:
        """Have nothing kept any more: the mount is over, or it is kept anew."""
        for name in (_STATE, *_FDS, *(f"{_CLONE}{slot}" for slot in self._clones)):
            self._notifier.remove(name)
        self._clones.clear()

    def _store(self, name: str, fd: int) -> None:
        # Not polled: the manager would be woken by each request.
        self._notifier.store(name, [fd], poll=False)


def recover(stored: Sequence[tuple[str, int]]) -> Kept | None:
    """What a dead keeper of this unit has left, if its mount is still there.

    Args:
        stored: Of `notify.stored_fds`; they are closed unless they are part of the result.

    Returns:
        The mount, without processes; `orphans` are the clones that its workers had. None when there is none.
    """
    fds = dict(stored)
    found = {key: fds[name] for name, key in _FDS.items() if name in fds}
    if "data_fd" in found:  # of a disk image both are one, and the manager keeps no descriptor twice
        found.setdefault("hash_fd", found["data_fd"])
    kept = None
    if _STATE in fds and len(found) == len(_FDS) and kernel.is_connected(found["fuse_fd"]):
        orphans = [fd for name, fd in stored if name.startswith(_CLONE)]
        with contextlib.suppress(StateError):  # of a version that this one does not know
            kept = handover.load_without_processes(os.dup(fds[_STATE]), found, orphans)
    if kept is None or not _is_mounted(kept):
        for _, fd in stored:
            os.close(fd)
        return None
    os.close(fds[_STATE])
    return kept


def _is_mounted(kept: Kept) -> bool:
    mount = mountinfo.mount_on(kept.place.mountpoint)
    return mount is not None and (mount.mount_id, mount.device) == (kept.mount_id, kept.device)
