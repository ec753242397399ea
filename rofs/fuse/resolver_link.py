# SPDX-License-Identifier: Apache-2.0
"""The supervisor's line to the resolver, which has no privileges: its answers are checked, and not waited for long.

The other end is `resolver`. What is done with the paths is the `recorder`'s business.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio

from rofs.errors import FormatError
from rofs.fuse.messages import MAX_MESSAGE_BYTES, PathsAnswer, PathsQuestion

# The first question builds the index; a very large image takes a while.
_RESOLVER_SECONDS = 30.0


class ResolverLink:
    """Asks the resolver one question at a time; one that fails is not asked again, its successor is."""

    def __init__(self, on_failure: Callable[[str], None]) -> None:
        self._connection: trio.socket.SocketType | None = None
        self._on_failure = on_failure
        self._turn = trio.Lock()

    def connect(self, connection: socket.socket) -> None:
        """Ask another resolver; who waits for the one before finds that it is gone."""
        self.close()
        self._connection = trio.socket.from_stdlib_socket(connection)

    def close(self) -> None:
        """Ask nobody any more."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def ask(self, question: PathsQuestion) -> PathsAnswer:
        """The answer; one without paths when there is none to be had."""
        async with self._turn:
            while (connection := self._connection) is not None:
                why = f"no answer within {_RESOLVER_SECONDS:g} s"
                try:
                    with trio.move_on_after(_RESOLVER_SECONDS):
                        return await _exchange(connection, question)
                except trio.ClosedResourceError:
                    continue  # it was replaced meanwhile
                except OSError as error:
                    why = error.strerror or str(error)
                except FormatError as error:
                    why = str(error)
                self._give_up(connection, why)
            return PathsAnswer(())

    def _give_up(self, connection: trio.socket.SocketType, why: str) -> None:
        """A late answer would be taken for that to the next question."""
        if connection is self._connection:
            self._connection = None
        connection.close()
        self._on_failure(why)


async def _exchange(connection: trio.socket.SocketType, question: PathsQuestion) -> PathsAnswer:
    await connection.send(question.pack())
    data = await connection.recv(MAX_MESSAGE_BYTES)
    if not data:
        raise BrokenPipeError("its process is gone")
    return PathsAnswer.parse(data)
