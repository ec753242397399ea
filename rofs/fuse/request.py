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
class Reactions:
    """What is done when something happens to a mount; belongs to it for all its life.

    Attributes:
        on_corruption: What a corrupt block brings about besides EIO: `eio` (nothing), `stop` or `restart`.
        event_hook: Command for the shell that is told of every event; None or empty for none.
        corruption_hook: The same for corruption alone.
    """

    on_corruption: str = "eio"
    event_hook: str | None = None
    corruption_hook: str | None = None


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
        reactions: What is done when something happens to it.
        mountpoint_fd: The mount point, opened by whoever has asked for the mount. Under an automount of systemd
            only processes of the group that it has started get past it, and a keeper in the background is none.
    """

    files: ImageFiles
    place: Place
    mount_flags: int
    workers: int
    allow_other: bool = True
    resend: bool = True
    reactions: Reactions = Reactions()
    mountpoint_fd: int | None = None
