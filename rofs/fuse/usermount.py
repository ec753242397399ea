# SPDX-License-Identifier: Apache-2.0
"""Mounting as an ordinary user: fusermount3, which is setuid root, mounts and hands the descriptor over.

It always mounts nosuid,nodev, checks that the mount point is the user's, and lets other users in only if
/etc/fuse.conf says `user_allow_other`. Source: libfuse util/fusermount.c, its protocol over _FUSE_COMMFD.
Does not shake hands with the kernel and serves nothing: that is done as for root.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
from typing import Final

from rofs.errors import HostError, printable
from rofs.fuse import kernel

PROGRAM: Final = "fusermount3"
_SUBTYPE = kernel.FILESYSTEM_TYPE.partition(".")[2]
_SECONDS = 30.0


def mount(mountpoint: bytes, source: bytes, flags: int, *, allow_other: bool) -> int:
    """Mount a filesystem for this user.

    Args:
        mountpoint: A directory that the user may write to, absolute.
        source: What /proc/mounts shows as the device.
        flags: `kernel.MS_RDONLY` and `kernel.MS_NOEXEC`; the others are not for users.
        allow_other: Whether other users may use it, too.

    Returns:
        The mounted descriptor.

    Raises:
        HostError: fusermount3 is missing or has refused; says what to do.
    """
    options = [b"fsname=" + _escape(source), b"subtype=" + _SUBTYPE.encode(), b"default_permissions"]
    options += [b"allow_other"] * allow_other
    options += [b"ro"] * bool(flags & kernel.MS_RDONLY) + [b"noexec"] * bool(flags & kernel.MS_NOEXEC)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            os.set_inheritable(theirs.fileno(), True)  # noqa: FBT003
            _run(
                [b"-o", b",".join(options), b"--", mountpoint],
                environment={"_FUSE_COMMFD": str(theirs.fileno())},
                keep=theirs.fileno(),
                failure=f"cannot mount on {printable(mountpoint)}",
            )
        fd = _receive(ours)
    if fd is None:
        raise HostError(f"cannot mount on {printable(mountpoint)}: {PROGRAM} has handed nothing over")
    return fd


def unmount(mountpoint: bytes, *, lazy: bool = False) -> int:
    """Unmount what this user has mounted.

    Returns:
        0, or EBUSY when it is in use, or EPERM for any other refusal.
    """
    try:
        _run([b"-u", *([b"-z"] if lazy else []), b"--", mountpoint], environment={}, failure="")
    except HostError as error:
        return errno.EBUSY if "busy" in str(error).lower() else errno.EPERM
    return 0


def _run(arguments: list[bytes], *, environment: dict[str, str], failure: str, keep: int | None = None) -> None:
    program = shutil.which(PROGRAM)
    if program is None:
        raise HostError(f"{PROGRAM} is missing, which mounts for ordinary users: install the package fuse3")
    try:
        done = subprocess.run(
            [program, *arguments],
            env={**os.environ, "LC_ALL": "C", **environment},
            pass_fds=() if keep is None else (keep,),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"{failure}: {PROGRAM} cannot be run: {error}") from error
    if done.returncode:
        raise HostError(f"{failure}: {_explained(done.stderr.decode('utf-8', 'replace'))}")


def _explained(said: str) -> str:
    """What fusermount3 said, and what to do about what users meet most."""
    lines = said.strip().splitlines()
    last = lines[-1] if lines else f"{PROGRAM} does not say why"
    if "user_allow_other" in last:
        return f"{last}; or leave out -o allow_other"
    if "/dev/fuse" in last and "ermission" in last:
        return f"{last}; udev gives it mode 0666"
    return last


def _receive(connection: socket.socket) -> int | None:
    connection.settimeout(_SECONDS)
    _data, fds, _flags, _address = socket.recv_fds(connection, 1, 1)
    for fd in fds:
        os.set_inheritable(fd, False)  # noqa: FBT003
    return fds[0] if fds else None


def _escape(text: bytes) -> bytes:
    return text.replace(b"\\", b"\\\\").replace(b",", b"\\,")
