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
        mountpoint: Absolute.
        fstype: Such as `fuse.rofs`.
        source: What the filesystem calls its device.
    """

    mountpoint: bytes
    fstype: bytes
    source: bytes


def parse(text: bytes) -> list[Mount]:
    """All mounts, in the order of mounting: the last one on a mount point is the one that is seen."""
    mounts = []
    for line in text.splitlines():
        before, separator, behind = line.partition(b" - ")
        left, right = before.split(b" "), behind.split(b" ")
        if separator and len(left) > 4 and len(right) > 1:
            mounts.append(Mount(_unescape(left[4]), right[0], _unescape(right[1])))
    return mounts


def mount_on(mountpoint: bytes) -> Mount | None:
    """The mount that is seen at a path; None when it is no mount point."""
    with open("/proc/self/mountinfo", "rb") as file:
        found = [mount for mount in parse(file.read()) if mount.mountpoint == mountpoint]
    return found[-1] if found else None


def _unescape(field: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)
