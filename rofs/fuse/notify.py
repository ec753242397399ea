# SPDX-License-Identifier: Apache-2.0
"""What a process and systemd tell each other: sd_notify(3), and descriptors that systemd keeps for it.

Without a service manager that listens, nothing is sent and nothing comes back. Decides nothing: the keeper says
when it is ready and what is to be kept.

Our own, because no library that is kept does it without a C extension on libsystemd (systemd-python, cysystemd;
sdnotify has had no release since 2017 and sends no descriptors). The protocol is stable by promise.

Source: sd_notify(3), sd_listen_fds(3), sd_pid_notify_with_fds(3), "File Descriptor Store" in systemd's documentation.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import time
from collections.abc import MutableMapping, Sequence
from typing import Final

from rofs.errors import one_line

MAX_NAME_CHARS: Final = 255  # sd_pid_notify_with_fds(3), FDNAME=
FIRST_FD: Final = 3  # SD_LISTEN_FDS_START
_MAX_FDS_OF_MESSAGE = 253  # SCM_MAX_FD of the kernel
_MAX_FDS = 1 << 16  # far beyond what a service may store
_SEND_SECONDS = 2.0
_NAME = re.compile(r"[!-9;-~]+")  # printable ASCII without the colon, which separates names
_MAX_STATUS_CHARS = 500  # for one line of systemctl


class Notifier:
    """Tells the service manager how this process is; it may have to be the unit's main process (NotifyAccess=).

    Args:
        address: `NOTIFY_SOCKET`: a path, or `@` and an abstract name. None when nobody listens.
    """

    def __init__(self, address: str | None) -> None:
        self._address = _socket_address(address)

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] | None = None) -> Notifier:
        """For the manager that `NOTIFY_SOCKET` names.

        The variable is removed, so that no program that this process starts speaks in its place; who executes
        itself anew sets it again from `address`.
        """
        environment = os.environ if environment is None else environment
        return cls(environment.pop("NOTIFY_SOCKET", None))

    @property
    def address(self) -> str | None:
        """What `NOTIFY_SOCKET` was; None when nobody listens."""
        return None if self._address is None else re.sub("^\0", "@", self._address)

    def ready(self, status: str | None = None) -> bool:
        """Say that the service is usable (`READY=1`): after its start, and at the end of a reload.

        Args:
            status: One line for `systemctl status`.

        Returns:
            Whether the manager was told; as for every method here.
        """
        return self._send(["READY=1", *_status(status)])

    def reloading(self, status: str | None = None) -> bool:
        """Say that a reload begins (`RELOADING=1`); `ready` says that it has ended."""
        return self._send(["RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", *_status(status)])

    def stopping(self, status: str | None = None) -> bool:
        """Say that the service ends (`STOPPING=1`)."""
        return self._send(["STOPPING=1", *_status(status)])

    def status(self, text: str) -> bool:
        """Give one line for `systemctl status`."""
        return self._send(_status(text))

    def main_pid(self, pid: int) -> bool:
        """Say which process the unit's main process is (`MAINPID=`)."""
        return self._send([f"MAINPID={pid}"])

    def store(self, name: str, fds: Sequence[int], *, poll: bool = True) -> bool:
        """Have the manager keep copies of descriptors (`FDSTORE=1`), within `FileDescriptorStoreMax=`.

        They come back, under this name, to the next process of the unit (`stored_fds`). The manager does not
        say whether it has kept them, and a descriptor that it has already is not kept twice.

        Args:
            name: For all of them; any number of descriptors may have the same one.
            fds: At least one.
            poll: Whether the manager drops one by itself when it reports an error or a hang-up.
        """
        lines = ["FDSTORE=1", f"FDNAME={_checked(name)}", *([] if poll else ["FDPOLL=0"])]
        parts = [fds[at : at + _MAX_FDS_OF_MESSAGE] for at in range(0, len(fds), _MAX_FDS_OF_MESSAGE)]
        return all(self._send(lines, part) for part in parts)

    def remove(self, name: str) -> bool:
        """Have the manager drop all descriptors of that name (`FDSTOREREMOVE=1`)."""
        return self._send(["FDSTOREREMOVE=1", f"FDNAME={_checked(name)}"])

    def barrier(self, seconds: float) -> bool:
        """Wait until the manager has read everything that was sent before (`BARRIER=1`).

        To be used before this process ends or becomes another program: what comes from a process that is gone
        may not be accepted.

        Returns:
            Whether it has, within that time.
        """
        reading, writing = os.pipe()
        try:
            sent = self._send(["BARRIER=1"], [writing])
            os.close(writing)
            waiting = select.poll()
            waiting.register(reading, 0)  # only for the hang-up: the manager closes its copy of the writing end
            return sent and bool(waiting.poll(seconds * 1000))
        finally:
            os.close(reading)

    def _send(self, lines: Sequence[str], fds: Sequence[int] = ()) -> bool:
        if self._address is None:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.settimeout(_SEND_SECONDS)  # its queue may be full, and it may be stopped
            try:
                connection.connect(self._address)
                socket.send_fds(connection, ["\n".join(lines).encode()], list(fds))
            except OSError:  # the manager is gone; that must not end what it manages
                return False
        return True


def stored_fds(environment: MutableMapping[str, str] | None = None) -> list[tuple[str, int]]:
    """Descriptors that the manager has kept for this unit and hands to this process; call it once, early.

    They are marked close-on-exec, and the variables are removed so that no child takes them for its own.

    Returns:
        Names and descriptors, in the order in which they were stored; a name is `unknown` when none was given.
    """
    environment = os.environ if environment is None else environment
    pid, count, names = (environment.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    environment.pop("LISTEN_PIDFDID", None)
    if not (_is_number(pid) and int(pid) == os.getpid() and _is_number(count) and int(count) <= _MAX_FDS):
        return []
    fds = range(FIRST_FD, FIRST_FD + int(count))
    found = names.split(":") if names else []
    named = found if len(found) == len(fds) else ["unknown"] * len(fds)
    taken = []
    for name, fd in zip(named, fds, strict=True):
        with contextlib.suppress(OSError):  # somebody has closed it
            os.set_inheritable(fd, False)  # noqa: FBT003
            taken.append((name, fd))
    return taken


def _socket_address(text: str | None) -> str | None:
    """For connect(2); None for what is no address of a datagram socket, such as vsock in a VM."""
    if not text or text[0] not in "/@" or len(text) < 2:
        return None
    return f"\0{text[1:]}" if text[0] == "@" else text


def _status(text: str | None) -> list[str]:
    return [] if text is None else [f"STATUS={one_line(text)[:_MAX_STATUS_CHARS]}"]


def _checked(name: str) -> str:
    if not (_NAME.fullmatch(name) and len(name) <= MAX_NAME_CHARS):
        raise ValueError(f"{name!r} is no name of stored descriptors")
    return name


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10
