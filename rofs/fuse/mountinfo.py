# SPDX-License-Identifier: Apache-2.0
"""What is mounted where, from /proc/self/mountinfo. Source: proc_pid_mountinfo(5).

It reads when it is asked; `tamper` waits for changes. It knows only the mount namespace of this process.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

PATH = "/proc/self/mountinfo"

_OCTAL = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line.

    Attributes:
        mount_id: Unique while it is mounted, and kept when it is moved.
        mountpoint: Absolute.
        fstype: Such as `fuse.rofs`.
        source: What the filesystem calls its device.
        parent_id: The mount that it is mounted on; not always one that can be seen.
        root: The directory or file of its filesystem that is seen here; not `/` for many bind mounts.
        options: Of this mount alone, such as `ro` or `nosuid`.
        super_options: Of the filesystem, wherever it is mounted.
        device: `MAJOR:MINOR` of the filesystem.
    """

    mount_id: int
    mountpoint: bytes
    fstype: bytes
    source: bytes
    parent_id: int = 0
    root: bytes = b"/"
    options: frozenset[bytes] = frozenset()
    super_options: frozenset[bytes] = frozenset()
    device: str = ""


def parse(text: bytes) -> list[Mount]:
    """All mounts, in the order of mounting: the last one on a mount point is the one that is seen."""
    # No splitlines: a mount point may hold a carriage return.
    return [mount for line in text.split(b"\n") if (mount := _parse_line(line)) is not None]


def _parse_line(line: bytes) -> Mount | None:
    before, separator, behind = line.partition(b" - ")
    left, right = before.split(b" "), behind.split(b" ")
    if not separator or len(left) < 6 or len(right) < 3 or not (left[0].isdigit() and left[1].isdigit()):
        return None
    mount_id, parent_id, device, root, mountpoint, options = left[:6]  # optional fields follow
    fstype, source, super_options = right[:3]
    return Mount(
        mount_id=int(mount_id),
        mountpoint=_unescape(mountpoint),
        fstype=fstype,
        source=_unescape(source),
        parent_id=int(parent_id),
        root=_unescape(root),
        options=_parse_options(options),
        super_options=_parse_options(super_options),
        device=device.decode("ascii", "replace"),
    )


def mount_on(mountpoint: bytes) -> Mount | None:
    """The mount that is seen at a path; None when it is no mount point."""
    return next((mount for mount in reversed(_read()) if mount.mountpoint == mountpoint), None)


def fstype_of(path: str | bytes) -> bytes | None:
    """The type of the filesystem that a file is on; None when no mount that can be seen has its device number."""
    number = os.stat(path).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    return next((mount.fstype for mount in _read() if mount.device == device), None)


def mount_with(mount_id: int, device: str) -> Mount | None:
    """The mount of that id, wherever it is now; None when it is gone.

    Args:
        mount_id: The kernel gives it to another mount as soon as this one is gone.
        device: Of its filesystem: that is unique while somebody serves it.
    """
    return next((mount for mount in _read() if (mount.mount_id, mount.device) == (mount_id, device)), None)


def resolve(path: str | bytes) -> bytes:
    """A path without symbolic links, absolute; a mount point is not looked at, since its mount may hang."""
    absolute = os.path.abspath(os.fsencode(path))
    literal = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
    return literal if mount_on(literal) is not None else os.path.realpath(absolute)


def _read() -> list[Mount]:
    with open(PATH, "rb") as file:
        return parse(file.read())


def _parse_options(field: bytes) -> frozenset[bytes]:
    options = frozenset(field.split(b","))
    return options if b"\\" not in field else frozenset(map(_unescape, options))


def _unescape(field: bytes) -> bytes:
    return field if b"\\" not in field else _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)
