# SPDX-License-Identifier: Apache-2.0
"""The control socket of a mount as its clients see it: one JSON line there, one JSON line back.

`status` and `umount` use it. The supervisor serves the other end (`control_server`); a mount whose socket
does not answer is dead. Synchronous and light, so that `rofs status` starts fast.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rofs.errors import HostError, StateError, printable
from rofs.fuse import mountinfo, places

VERSION: Final = 1
MAX_LINE_BYTES: Final = 1 << 20
_ANSWER_SECONDS = 10.0
_TAKEOVER_SECONDS = 120.0  # a program starts, and all processes anew
_LOOK_AGAIN_SECONDS = 0.02
_END_SECONDS = 20.0  # the last records may take half of it
_LAZY_SECONDS = 2.0  # for an answer, and for the end of one that nobody seems to use


def mounts() -> list[dict[str, Any]]:
    """The status of every mount of this user that answers."""
    found = []
    directory = places.runtime_directory()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        for name in sorted(os.listdir(directory)):
            with contextlib.suppress(StateError):
                found.append(_status(os.path.join(directory, name)))
    return found


def status(mountpoint: str | bytes) -> dict[str, Any]:
    """The status of one mount.

    Raises:
        StateError: There is no rofs mount there, or it does not answer.
    """
    return _status(_directory_of(mountpoint), mountpoint)


def unmount(mountpoint: str | bytes) -> None:
    """Unmount, and return when the mount's processes have ended.

    Raises:
        StateError: There is no rofs mount there, or it does not answer.
        HostError: Something on it is in use, or the kernel refused; the mount stays.
    """
    keeper, has_ended = _unmount(mountpoint, lazy=False)
    if not has_ended:
        raise HostError(
            f"{printable(mountpoint)} is unmounted, but still in use by open files or in another mount namespace; "
            f"its processes end when that lets go (keeper {keeper})"
        )


def unmount_lazily(mountpoint: str | bytes) -> int | None:
    """Take a mount out of sight; its processes go on for those who use it still, and then end by themselves.

    One that does not answer, since its processes are gone or hang, is taken out of sight by ourselves.

    Returns:
        Pid of the keeper that goes on; None when none does, or it is not known.

    Raises:
        StateError: There is no rofs mount there.
        HostError: The kernel refused; the mount stays.
    """
    try:
        keeper, has_ended = _unmount(mountpoint, lazy=True)
    except StateError:
        from rofs.fuse import kernel, usermount  # noqa: PLC0415 - seldom of use, and status starts fast

        path = mountinfo.resolve(mountpoint)
        mount = mountinfo.mount_on(path)
        if mount is None or mount.fstype != kernel.FILESYSTEM_TYPE.encode():
            raise
        if number := (usermount.unmount if os.geteuid() else kernel.unmount)(path, lazy=True):
            raise HostError(f"cannot unmount {printable(mountpoint)}: {os.strerror(number)}") from None
        _remove_if_left(_directory_of(mountpoint))
        return None
    return None if has_ended else keeper


def _remove_if_left(directory: str) -> None:
    """Remove the runtime directory of a mount whose supervisor is gone: a living one holds a lock on it."""
    from rofs.fuse import control_server  # noqa: PLC0415 - knows us, and is heavy

    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            control_server.remove(directory)
        finally:
            os.close(fd)


def _unmount(mountpoint: str | bytes, *, lazy: bool) -> tuple[int, bool]:
    """The keeper's pid, and whether it has ended soon."""
    directory = _directory_of(mountpoint)
    # Who wants it out of sight in any case does not wait long for one that hangs.
    keeper = _status(directory, mountpoint, _LAZY_SECONDS if lazy else _ANSWER_SECONDS)["keeper"]
    with _process(keeper) as pidfd:
        answer = _ask(directory, "umount", mountpoint, {"lazy": lazy})
        if answer.get("ok") is not True:
            raise HostError(f"cannot unmount {printable(mountpoint)}: {answer.get('error', 'it does not say why')}")
        seconds = _END_SECONDS if not lazy else 0 if answer.get("in_use") else _LAZY_SECONDS
        return keeper, pidfd is None or bool(select.select([pidfd], [], [], seconds)[0])


def take_over(
    mountpoint: str | bytes, argv: Sequence[str], environment: Mapping[str, str], workers: int | None
) -> None:
    """Have another program keep the mount, and return when its supervisor answers.

    Args:
        mountpoint: Of the mount.
        argv: How the program is started, but for its last argument.
        environment: Added to the keeper's.
        workers: How many workers there are to be; None for as many as there are.

    Raises:
        StateError: There is no rofs mount there, or it does not answer.
        HostError: The program cannot take over, or did so and then did not answer.
    """
    directory = _directory_of(mountpoint)
    before = _status(directory, mountpoint)["supervisor"]
    fields = {"argv": list(argv), "environment": dict(environment), "workers": workers}
    answer = _ask(directory, "takeover", mountpoint, fields, seconds=_TAKEOVER_SECONDS)
    shown = printable(mountpoint)
    if answer.get("ok") is not True:
        raise HostError(f"cannot take over {shown}: {answer.get('error', 'it does not say why')}")
    deadline = time.monotonic() + _TAKEOVER_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(StateError):  # there is no supervisor for a moment
            if _status(directory, mountpoint)["supervisor"] != before:
                return
        time.sleep(_LOOK_AGAIN_SECONDS)
    raise HostError(f"{shown} was taken over, but its new supervisor does not answer; reads go on")


def is_alive(mountpoint: bytes) -> bool:
    """Whether a mount at this place answers."""
    try:
        _ask(places.mount_directory(mountpoint), "status")
    except StateError:
        return False
    return True


def _directory_of(mountpoint: str | bytes) -> str:
    return places.mount_directory(mountinfo.resolve(mountpoint))


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int | None]:
    try:
        fd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)


def _status(directory: str, mountpoint: str | bytes | None = None, seconds: float = _ANSWER_SECONDS) -> dict[str, Any]:
    answer = _ask(directory, "status", mountpoint, seconds=seconds)
    status = answer.get("status")
    if not isinstance(status, dict) or type(status.get("keeper")) is not int:
        shown = printable(mountpoint if mountpoint is not None else directory)
        raise StateError(f"the rofs mount at {shown} does not tell its status: {answer.get('error')}")
    return status


def _ask(
    directory: str,
    command: str,
    mountpoint: str | bytes | None = None,
    fields: Mapping[str, Any] | None = None,
    *,
    seconds: float = _ANSWER_SECONDS,
) -> dict[str, Any]:
    shown = printable(mountpoint if mountpoint is not None else directory)
    try:
        with connect(directory) as connection:
            connection.settimeout(seconds)
            request = {"v": VERSION, "command": command, **(fields or {})}
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(_read_line(connection))
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise StateError(f"{shown} is not a rofs mount of this user") from error
    except PermissionError as error:
        raise StateError(f"the rofs mount at {shown} belongs to another user") from error
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"the rofs mount at {shown} does not answer: {error}") from error
    if not isinstance(answer, dict) or answer.get("v") != VERSION:
        raise StateError(f"the rofs mount at {shown} speaks another version of the control protocol: {answer!r}")
    return answer


def connect(directory: str) -> socket.socket:
    """Connect to the control socket in a mount's runtime directory.

    A socket address holds 107 bytes; the directory is entered through /proc so that its name may be longer.

    Raises:
        OSError: As open(2) and connect(2).
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            connection.connect(f"/proc/self/fd/{fd}/{places.CONTROL_SOCKET}")
        finally:
            os.close(fd)
    except BaseException:
        connection.close()
        raise
    return connection


def _read_line(connection: socket.socket) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < MAX_LINE_BYTES:
        chunk = connection.recv(65536)
        if not chunk:
            break
        data += chunk
    return data
