# SPDX-License-Identifier: Apache-2.0
"""The line between keeper and supervisor: JSON objects in datagrams both ways, descriptors to the supervisor.

Both ends are privileged and trusted. `Link` is the supervisor's, `KeeperLink` the keeper's, which is
synchronous. A message with a descriptor has it under the key `fd`.
"""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from rofs.fuse.messages import MAX_MESSAGE_BYTES

_FD_BYTES = array.array("i").itemsize


class Link:
    """Messages to and from the keeper."""

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self._connection = connection
        self._turn = trio.Lock()
        self._answers: dict[str, trio.MemorySendChannel[Mapping[str, Any]]] = {}

    async def send(self, message: Mapping[str, Any]) -> None:
        """Send a message.

        Raises:
            OSError: The keeper is gone.
        """
        await self._connection.send(json.dumps(message).encode())

    async def request(self, message: Mapping[str, Any], answer_key: str) -> Mapping[str, Any]:
        """Send a message and wait for the one that has `answer_key`."""
        async with self._turn:
            sender, receiver = trio.open_memory_channel[Mapping[str, Any]](1)
            self._answers[answer_key] = sender
            try:
                await self.send(message)
                return await receiver.receive()
            finally:
                del self._answers[answer_key]

    async def receive(
        self,
        on_message: Callable[[Mapping[str, Any]], Awaitable[None]],
        on_end: Callable[[], Awaitable[None]],
    ) -> None:
        """Hand out messages until the keeper is gone; answers go to whoever asked."""
        while (message := await self._receive()) is not None:
            waiting = next((self._answers[key] for key in message if key in self._answers), None)
            if waiting is not None:
                waiting.send_nowait(message)
            else:
                await on_message(message)
        await on_end()

    async def _receive(self) -> Mapping[str, Any] | None:
        try:
            data, ancillary, _flags, _address = await self._connection.recvmsg(
                MAX_MESSAGE_BYTES,
                socket.CMSG_SPACE(_FD_BYTES),
                socket.MSG_CMSG_CLOEXEC,  # a hook is none of those that they are for
            )
        except ConnectionError:
            return None
        if not data:
            return None
        message: dict[str, Any] = json.loads(data)
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                message["fd"] = array.array("i", content)[0]
        return message


class KeeperLink:
    """The keeper's end.

    Args:
        connection: Of a SOCK_SEQPACKET pair.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def send(self, message: Mapping[str, Any], fd: int | None = None) -> None:
        """Send a message, with a descriptor if there is one.

        Raises:
            OSError: The supervisor is gone, or reads nothing any more.
        """
        fds = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        # Not send_fds, which ignores the flags (Python 3.11).
        self.connection.sendmsg([json.dumps(message).encode()], fds, socket.MSG_DONTWAIT)

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the supervisor is gone."""
        try:
            data = self.connection.recv(MAX_MESSAGE_BYTES)
        except ConnectionError:
            return None
        try:
            message: dict[str, Any] = json.loads(data)
        except ValueError:  # nothing, or one that was cut off: it must not end the mount
            return None
        return message
