# SPDX-License-Identifier: Apache-2.0
"""What is to be mounted and where: plain values, light to import, for whoever starts a keeper and for it."""

from __future__ import annotations

from dataclasses import dataclass

from rofs.image.files import ImageFiles


@dataclass(frozen=True, slots=True)
class Place:
    """Where a mount is, and under which names; nothing of it changes.

    Attributes:
        image_path: Absolute; shown to people, never opened again.
        mountpoint: Absolute and resolved.
        log_path: Of the audit log.
        runtime_directory: Of this mount.
        mode: `audit` or `sealed`.
        by_user: Whether fusermount3 mounts and unmounts it, for an ordinary user.
    """

    image_path: bytes
    mountpoint: bytes
    log_path: bytes
    runtime_directory: str
    mode: str
    by_user: bool = False


@dataclass(frozen=True, slots=True)
class MountRequest:
    """What is to be mounted where.

    Attributes:
        files: The image, opened once.
        place: Where, and under which names.
        mount_flags: `kernel.MS_NOSUID` and the like.
        workers: How many processes answer requests.
        allow_other: Whether other users than the one who mounts may use it; the usual with root.
        resend: Whether unanswered requests are handed out again where the kernel can.
    """

    files: ImageFiles
    place: Place
    mount_flags: int
    workers: int
    allow_other: bool = True
    resend: bool = True
