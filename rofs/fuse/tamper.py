# SPDX-License-Identifier: Apache-2.0
"""Sees that somebody remounts a mount or mounts over it, which the kernel does without asking its daemon.

It does not say who, nor prevent or undo anything, and it writes no event: `report` does. It sees the mount
namespace of this process only: what another one mounts over its own copy of the mount stays unknown. What
is done and undone between two reads leaves no trace, and is none. Mounts that move, or go, are not its
business either. Source: proc_pid_mountinfo(5).
"""

from __future__ import annotations

import contextlib
import io
import select
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import trio

from rofs.audit.event import escape_path
from rofs.fuse import mountinfo
from rofs.fuse.mountinfo import Mount

# Of a superblock that another mount namespace remounts, or fsconfig(2) reconfigures, mountinfo shows the new
# options, but its poll(2) does not tell (seen on 6.18): so look also when nothing was told.
_LOOK_SECONDS = 30.0
_RETRY_SECONDS = 1.0

# Options of which a mount has one or none: one became the other.
_ALTERNATIVES = {b"ro": b"rw", b"noatime": b"relatime"}


@dataclass(frozen=True, slots=True)
class Tampering:
    """What was done to a mount.

    Attributes:
        path: What it was done to, relative to the mount; `/` is the mount itself.
        status: What was done.
        detail: How, in one line.
    """

    path: bytes
    status: Literal["remounted", "mounted over"]
    detail: str


def changes(before: Sequence[Mount], after: Sequence[Mount], mount_id: int) -> list[Tampering]:
    """What was done to a mount between two reads of mountinfo.

    Args:
        before: All mounts then: what covered the mount at that time is not reported.
        after: All mounts now.
        mount_id: Of the mount.

    Returns:
        At most one remount, then new mounts in their order; nothing when the mount is not there any more.
    """
    old, new = _mount_with(before, mount_id), _mount_with(after, mount_id)
    if new is None or (old is not None and not _is_same(old, new)):
        return []
    found = [] if old is None else _remounted(old, new)
    known = set() if old is None else {_place(mount, old) for mount in _covering(before, old)}
    return found + [_mounted_over(mount, new) for mount in _covering(after, new) if _place(mount, new) not in known]


async def watch(mount_id: int, report: Callable[[Tampering], None]) -> None:
    """Report what is done to a mount from now on, until cancelled.

    Args:
        mount_id: Of the mount. When it is gone, nothing is reported any more.
        report: Called for each change once; must not block.
    """
    before: list[Mount] | None = None
    with await _open() as file, select.epoll() as epoll:
        # Not trio itself: mountinfo counts as always readable.
        epoll.register(file.fileno(), select.EPOLLPRI)
        wake, woken = trio.open_memory_channel[None](1)
        async with trio.open_nursery() as nursery:
            await nursery.start(_wake, epoll, wake)
            while True:
                started = trio.current_time()
                after = _read(file)
                if before is not None and after is not None:
                    for tampering in changes(before, after, mount_id):
                        report(tampering)
                before = _newer(before, after, mount_id)
                # Whoever mounts without end gets no more than half of our time.
                await trio.sleep(trio.current_time() - started)
                with trio.move_on_after(_RETRY_SECONDS if after is None else _LOOK_SECONDS):
                    await woken.receive()


async def _wake(epoll: select.epoll, wake: trio.MemorySendChannel[None], task_status: trio.TaskStatus[None]) -> None:
    """Wake the reader at each change.

    Whoever polls mountinfo takes the news of a change away, and adding to an epoll polls. So this must wait
    again before the reader reads, as it does when it is a task of its own, and not ask the epoll what is up.
    """
    task_status.started()
    while True:
        await trio.lowlevel.wait_readable(epoll.fileno())
        with contextlib.suppress(trio.WouldBlock):  # it will read anyway
            wake.send_nowait(None)


async def _open() -> io.FileIO:
    """Mountinfo, as soon as it can be opened."""
    while True:
        try:
            return io.FileIO(mountinfo.PATH)
        except OSError:
            await trio.sleep(_RETRY_SECONDS)


def _read(file: io.FileIO) -> list[Mount] | None:
    """All mounts now; None when they cannot be read."""
    try:
        file.seek(0)
        return mountinfo.parse(file.readall())
    except OSError:
        return None


def _newer(before: list[Mount] | None, after: list[Mount] | None, mount_id: int) -> list[Mount] | None:
    """What to compare with next: for good the last that showed our mount, once it is gone."""
    if before is None or after is None:
        return after or before
    old, new = _mount_with(before, mount_id), _mount_with(after, mount_id)
    return after if old is None or (new is not None and _is_same(old, new)) else before


# What covers a mount


def _mount_with(mounts: Sequence[Mount], mount_id: int) -> Mount | None:
    return next((mount for mount in mounts if mount.mount_id == mount_id), None)


def _is_same(old: Mount, new: Mount) -> bool:
    """Whether a mount is not another one that was given its id."""
    return (old.fstype, old.source, old.device) == (new.fstype, new.source, new.device)


def _covering(mounts: Sequence[Mount], ours: Mount) -> list[Mount]:
    """Mounts on our mount or on what is mounted on it, and those that hide it with its mount point."""
    by_id = {mount.mount_id: mount for mount in mounts}
    lineage = [ours, *_ancestors(ours, by_id)]
    hidden_by = {below.parent_id: below.mountpoint for below in lineage}
    own = {mount.mount_id for mount in lineage}
    return [
        mount
        for mount in mounts
        if mount.mount_id not in own
        and (
            any(above.mount_id == ours.mount_id for above in _ancestors(mount, by_id))
            or (mount.parent_id in hidden_by and _is_below(hidden_by[mount.parent_id], mount.mountpoint))
        )
    ]


def _ancestors(mount: Mount, by_id: dict[int, Mount]) -> Iterator[Mount]:
    """The mounts that a mount stands on, the nearest first."""
    seen = {mount.mount_id}  # the uppermost may be its own parent
    while (above := by_id.get(mount.parent_id)) is not None and above.mount_id not in seen:
        seen.add(above.mount_id)
        yield above
        mount = above


def _is_below(path: bytes, directory: bytes) -> bool:
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def _place(mount: Mount, ours: Mount) -> tuple[object, ...]:
    """What makes a mount another one: ids are used again, and a mount that is moved keeps its id."""
    return mount.mount_id, _relative(mount, ours), mount.fstype, mount.source, mount.root, mount.device


def _relative(mount: Mount, ours: Mount) -> bytes:
    """The mount point of a mount as a path of ours; `/` also for what hides ours from above."""
    if mount.mountpoint == ours.mountpoint or not _is_below(mount.mountpoint, ours.mountpoint):
        return b"/"
    return b"/" + mount.mountpoint[len(ours.mountpoint) :].lstrip(b"/")


# In words


def _mounted_over(mount: Mount, ours: Mount) -> Tampering:
    what = f"{escape_path(mount.fstype)} from {escape_path(mount.source)}"
    part = "" if mount.root == b"/" else f" ({escape_path(mount.root)} in it)"
    above = "" if _is_below(mount.mountpoint, ours.mountpoint) else f" on {escape_path(mount.mountpoint)}"
    detail = f"{what}{part} mounted{above}, mount id {mount.mount_id}"
    return Tampering(_relative(mount, ours), "mounted over", detail)


def _remounted(old: Mount, new: Mount) -> list[Tampering]:
    differences = [
        *_differences(old.options, new.options),
        *(f"superblock {difference}" for difference in _differences(old.super_options, new.super_options)),
    ]
    return [Tampering(b"/", "remounted", ", ".join(differences))] if differences else []


def _differences(old: frozenset[bytes], new: frozenset[bytes]) -> Iterator[str]:
    removed = {_kind(option): option for option in sorted(old - new)}
    added = {_kind(option): option for option in sorted(new - old)}
    for kind in sorted(removed.keys() | added.keys()):
        if kind in removed and kind in added:
            yield f"{escape_path(removed[kind])} became {escape_path(added[kind])}"
        elif kind in removed:
            yield f"{escape_path(removed[kind])} was removed"
        else:
            yield f"{escape_path(added[kind])} was added"


def _kind(option: bytes) -> bytes:
    """What an option is about: two of the same kind are one that changed."""
    return _ALTERNATIVES.get(option, option).partition(b"=")[0]
