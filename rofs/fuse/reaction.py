# SPDX-License-Identifier: Apache-2.0
"""Restarting the machine because of a corrupt block, once for each image: `--on-corruption restart`.

A file named after the root hash is on the disk before the restart. If it is there already, the restart before has
not helped, and another one would only be a loop. It does not decide what is corrupt, nor when to ask (`keeper` does).

The restart itself is PID 1's: systemd starts reboot.target on SIGRTMIN+5 (systemd(1), "Signals"). Any other init gets
SIGINT, which is what the kernel sends it for Ctrl-Alt-Del (reboot(2), LINUX_REBOOT_CMD_CAD_OFF) and what busybox,
sysvinit, OpenRC, runit, s6 and dinit restart on, in the order that their configuration says; SIGTERM means that to
some of them only. In a container PID 1 is the container's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from rofs import durable
from rofs.errors import HostError, RofsError, from_os_error, printable
from rofs.fuse import mountinfo

STATE_DIRECTORY = "/var/lib/rofs"
STARTED = "restart"  # the outcomes, as the log has them
REFUSED = "no-restart"

_SYSTEMD = "/run/systemd/system"  # sd_booted(3)
_FORGETFUL = frozenset({b"tmpfs", b"ramfs"})
_MARKER_TEXT = b"A block of the image with this root hash was corrupt, and rofs has restarted the machine.\n"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has become of a restart.

    Attributes:
        status: `STARTED` or `REFUSED`.
        detail: For people.
    """

    status: str
    detail: str


def check(directory: str | None = None) -> None:
    """See whether a restart could be remembered, before it is needed.

    Args:
        directory: Where; None for `STATE_DIRECTORY`.

    Raises:
        HostError: It could not: no permission, or it is in memory, and every restart would be the first.
    """
    directory = directory or STATE_DIRECTORY
    _make(directory)
    if not os.access(directory, os.W_OK):
        raise HostError(f"cannot write to {printable(directory)}, where --on-corruption restart keeps what it did")
    if mountinfo.fstype_of(directory) in _FORGETFUL:
        raise HostError(
            f"{printable(directory)} is in memory: --on-corruption restart would not know that it has restarted for "
            "this image already, and do it for ever; put /var/lib on a disk, or use --on-corruption stop"
        )


def restart_once(
    root_hash: str, *, directory: str | None = None, restart: Callable[[], object] | None = None
) -> Outcome:
    """Restart the machine, unless that was done for this image before or cannot be remembered.

    Args:
        root_hash: Of the image.
        directory: Where what was done is kept; None for `STATE_DIRECTORY`.
        restart: What restarts it; None for `ask_init`.

    Returns:
        What has become of it; this process goes on in any case.
    """
    directory, restart = directory or STATE_DIRECTORY, restart or ask_init
    marker = os.path.join(directory, f"restarted-{root_hash}")
    if os.path.lexists(marker):
        return Outcome(REFUSED, f"it was restarted for this image before, as {marker} says; remove that to allow it")
    try:
        _make(directory)
        durable.write_atomic(marker, _MARKER_TEXT, replace=False)
    except RofsError as error:
        return Outcome(REFUSED, str(error))
    try:
        restart()
    except OSError as error:
        durable.remove(marker)
        return Outcome(REFUSED, f"PID 1 cannot be asked to restart: {error.strerror}")
    return Outcome(STARTED, f"a block is corrupt; {marker} prevents another restart for this image")


def ask_init() -> None:
    """Ask PID 1 for a restart; see this module.

    Raises:
        OSError: It cannot be sent a signal.
    """
    os.kill(1, signal.SIGRTMIN + 5 if os.path.isdir(_SYSTEMD) else signal.SIGINT)


def _make(directory: str) -> None:
    try:
        durable.make_directories(os.fsencode(directory), 0o755)
    except OSError as error:
        raise HostError(str(from_os_error(error, "cannot make", directory))) from error
