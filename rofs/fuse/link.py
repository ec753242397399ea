# SPDX-License-Identifier: Apache-2.0
"""The supervisor's end of its line to the keeper: JSON objects in datagrams, both ways.

Both ends are privileged and trusted. The keeper's end is synchronous and lives in `keeper`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from rofs.fuse.messages import MAX_MESSAGE_BYTES


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
        while data := await self._receive():
            message = json.loads(data)
            waiting = next((self._answers[key] for key in message if key in self._answers), None)
            if waiting is not None:
                waiting.send_nowait(message)
            else:
                await on_message(message)
        await on_end()

    async def _receive(self) -> bytes:
        try:
            return await self._connection.recv(MAX_MESSAGE_BYTES)
        except ConnectionError:
            return b""
