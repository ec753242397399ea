# SPDX-License-Identifier: Apache-2.0
"""What is mounted where, from /proc/self/mountinfo. Source: proc_pid_mountinfo(5)."""

from __future__ import annotations

import re
from dataclasses import dataclass

_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line.

    Attributes:
        mount_id: Unique while it is mounted, and kept when it is moved.
        mountpoint: Absolute.
        fstype: Such as `fuse.rofs`.
        source: What the filesystem calls its device.
    """

    mount_id: int
    mountpoint: bytes
    fstype: bytes
    source: bytes


def parse(text: bytes) -> list[Mount]:
    """All mounts, in the order of mounting: the last one on a mount point is the one that is seen."""
    mounts = []
    for line in text.split(b"\n"):  # no splitlines: a mount point may hold a carriage return
        before, separator, behind = line.partition(b" - ")
        left, right = before.split(b" "), behind.split(b" ")
        if separator and len(left) > 4 and len(right) > 1 and left[0].isdigit():
            mounts.append(Mount(int(left[0]), _unescape(left[4]), right[0], _unescape(right[1])))
    return mounts


def mount_on(mountpoint: bytes) -> Mount | None:
    """The mount that is seen at a path; None when it is no mount point."""
    return next((mount for mount in reversed(_read()) if mount.mountpoint == mountpoint), None)


def mount_with(mount_id: int) -> Mount | None:
    """The mount of that id, wherever it is now; None when it is gone."""
    return next((mount for mount in _read() if mount.mount_id == mount_id), None)


def _read() -> list[Mount]:
    with open("/proc/self/mountinfo", "rb") as file:
        return parse(file.read())


def _unescape(field: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)
