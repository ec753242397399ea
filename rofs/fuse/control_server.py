# SPDX-License-Identifier: Apache-2.0
"""The serving end of the control socket: one JSON line in, one JSON line out. `control` is the client.

Only its owner and root reach it: the socket has mode 0600 in a directory of mode 0700.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from rofs.durable import make_directories
from rofs.errors import HostError, from_os_error, printable
from rofs.fuse.control import VERSION
from rofs.fuse.places import CONTROL_SOCKET

_MAX_REQUEST_BYTES = 64 * 1024
_REQUEST_SECONDS = 5.0
_ANSWER_SECONDS = 120.0  # a hand-over starts a program and all processes anew
_LAST_ANSWER_SECONDS = 2.0
_MAX_CLIENTS = 16


@dataclass(slots=True)
class Listening:
    """A control socket that listens.

    Attributes:
        socket: Itself.
        stays: Whether its name is left in place at the end, for a successor to replace.
    """

    socket: socket.socket
    stays: bool = False


@contextlib.contextmanager
def listening(directory: str) -> Iterator[Listening]:
    """A listening control socket in a mount's runtime directory; both are removed at the end.

    What a mount that died has left there is replaced.

    Raises:
        HostError: It cannot be made, belongs to somebody else, or a living mount uses it.
    """
    try:
        _make_private(directory)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"cannot use runtime directory {printable(directory)}: {error.strerror}") from error
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            _bind(listener, directory, fd)
            made = Listening(listener)
            try:
                yield made
            finally:
                if not made.stays:
                    remove(directory)
    finally:
        os.close(fd)


def remove(directory: str) -> None:
    """Remove a mount's runtime directory, if it is there: the supervisor's last act, or the keeper's for it."""
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(directory, CONTROL_SOCKET))
    with contextlib.suppress(OSError):
        os.rmdir(directory)


def _bind(listener: socket.socket, directory: str, fd: int) -> None:
    # Through /proc: a socket address holds only 107 bytes.
    address = f"/proc/self/fd/{fd}/{CONTROL_SOCKET}"
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # for as long as the mount lives, however it ends
    except BlockingIOError:
        raise HostError(f"mount point is busy: another rofs mount uses {printable(directory)}") from None
    with contextlib.suppress(FileNotFoundError):
        os.unlink(CONTROL_SOCKET, dir_fd=fd)
    before = os.umask(0o177)
    try:
        listener.bind(address)
    except OSError as error:
        raise from_os_error(error, "cannot make control socket in", directory) from error
    finally:
        os.umask(before)
    listener.listen()


def _make_private(directory: str) -> None:
    make_directories(os.fsencode(os.path.dirname(directory)), 0o755 if os.geteuid() == 0 else 0o700)
    make_directories(os.fsencode(directory), 0o700)
    for path in (os.path.dirname(directory), directory):
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise HostError(f"runtime directory {path} is not a directory that only this user can write to; remove it")


async def serve(
    listener: socket.socket, answer: Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]], ended: trio.Event
) -> None:
    """Answer clients, one request each, until the mount has ended; who is being answered still is."""
    server = trio.socket.from_stdlib_socket(listener)
    limit = trio.CapacityLimiter(_MAX_CLIENTS)

    async def client(connection: trio.socket.SocketType) -> None:
        async with trio.SocketStream(connection) as stream, limit:
            with contextlib.suppress(trio.BrokenResourceError):
                line = b""
                with trio.move_on_after(_REQUEST_SECONDS):
                    line = await _receive_line(stream)
                with trio.move_on_after(_ANSWER_SECONDS):
                    await stream.send_all(json.dumps({"v": VERSION, **await answer(_request(line))}).encode() + b"\n")

    async def accept(clients: trio.Nursery) -> None:
        while True:
            connection, _ = await server.accept()
            clients.start_soon(client, connection)

    async with trio.open_nursery() as clients:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(accept, clients)
            await ended.wait()
            accepting.cancel_scope.cancel()
        clients.cancel_scope.deadline = trio.current_time() + _LAST_ANSWER_SECONDS


async def _receive_line(stream: trio.SocketStream) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < _MAX_REQUEST_BYTES:
        chunk = await stream.receive_some(_MAX_REQUEST_BYTES)
        if not chunk:
            break
        data += chunk
    return data


def _request(line: bytes) -> Mapping[str, Any]:
    """A request, empty when it is none that this version understands."""
    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(request, dict) or request.get("v") != VERSION:
        return {}
    return request
