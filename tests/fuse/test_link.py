# SPDX-License-Identifier: Apache-2.0
"""Both ends of the line between supervisor and keeper."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from rofs.fuse.link import KeeperLink, Link


class Ends:
    """A link that is being received from, and what it handed out."""

    def __init__(self) -> None:
        self.stdlib, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.keeper, supervisor = map(trio.socket.from_stdlib_socket, (self.stdlib, theirs))
        self.connection = supervisor
        self.link = Link(supervisor)
        self.messages: list[Mapping[str, Any]] = []
        self.ended = trio.Event()

    async def say(self, message: Mapping[str, Any]) -> None:
        await self.keeper.send(json.dumps(message).encode())

    async def heard(self) -> Any:
        return json.loads(await self.keeper.recv(4096))

    async def _on_message(self, message: Mapping[str, Any]) -> None:
        self.messages.append(message)

    async def _on_end(self) -> None:
        self.ended.set()

    async def receive(self) -> None:
        await self.link.receive(self._on_message, self._on_end)


@asynccontextmanager
async def connected() -> AsyncIterator[Ends]:
    ends = Ends()
    with trio.fail_after(5), ends.keeper, ends.connection:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.receive)
            yield ends
            nursery.cancel_scope.cancel()


async def test_messages_until_the_keeper_is_gone() -> None:
    async with connected() as ends:
        for number in range(3):
            await ends.say({"number": number})
        ends.keeper.close()
        await ends.ended.wait()
        assert [message["number"] for message in ends.messages] == [0, 1, 2]


async def test_answer_goes_to_who_asked_and_nothing_else_does() -> None:
    async with connected() as ends:
        answers: list[Mapping[str, Any]] = []

        async def ask() -> None:
            answers.append(await ends.link.request({"unmount": True}, "unmounted"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            assert await ends.heard() == {"unmount": True}
            await ends.say({"serving": [1]})
            await ends.say({"unmounted": True, "errno": 16})
        assert answers == [{"unmounted": True, "errno": 16}]
        await ends.say({"unmounted": True, "errno": 0})  # nobody asked any more
        with trio.fail_after(10):
            while len(ends.messages) < 2:
                await trio.lowlevel.checkpoint()
        assert ends.messages == [{"serving": [1]}, {"unmounted": True, "errno": 0}]


async def test_who_asks_at_the_same_time_waits_for_his_turn() -> None:
    async with connected() as ends:
        answers: list[int] = []

        async def ask() -> None:
            answers.append((await ends.link.request({"unmount": True}, "unmounted"))["errno"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
            for number in (1, 2):
                assert await ends.heard() == {"unmount": True}
                await ends.say({"unmounted": True, "errno": number})
        assert sorted(answers) == [1, 2]


async def test_asking_a_keeper_that_is_gone() -> None:
    async with connected() as ends:
        ends.keeper.close()
        await ends.ended.wait()
        with pytest.raises(OSError, match="Broken pipe"):
            await ends.link.request({"unmount": True}, "unmounted")


async def test_keeper_that_dies_with_messages_unread() -> None:
    async with connected() as ends:
        await ends.link.send({"ready": True})
        ends.keeper.close()
        await ends.ended.wait()


async def test_descriptor_arrives_with_its_message_and_no_other() -> None:
    reading, writing = os.pipe()
    try:
        async with connected() as ends:
            keeper = KeeperLink(ends.stdlib)
            keeper.send({"number": 0})
            keeper.send({"number": 1}, reading)
            keeper.send({"number": 2})
            with trio.fail_after(5):
                while len(ends.messages) < 3:
                    await trio.lowlevel.checkpoint()
            assert ["fd" in message for message in ends.messages] == [False, True, False]
            fd = ends.messages[1]["fd"]
            try:
                assert os.path.sameopenfile(fd, reading)
                assert fd != reading
                assert not os.get_inheritable(fd)  # or a hook would have it
            finally:
                os.close(fd)
    finally:
        os.close(reading)
        os.close(writing)


@pytest.fixture
def ends() -> Iterator[tuple[KeeperLink, socket.socket]]:
    """The keeper's, and the socket of a supervisor."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield KeeperLink(ours), theirs


def test_supervisor_that_reads_nothing_does_not_hold_up_the_keeper(ends: tuple[KeeperLink, socket.socket]) -> None:
    keeper, _ = ends

    def talk() -> None:
        while True:
            keeper.send({"detail": "x" * 1000})

    with pytest.raises(BlockingIOError):
        talk()


@pytest.mark.parametrize("unread", [True, False])
def test_keeper_sees_that_the_supervisor_is_gone(ends: tuple[KeeperLink, socket.socket], unread: bool) -> None:
    keeper, supervisor = ends
    supervisor.send(b'{"ready": true}')
    if unread:
        keeper.send({"mounted": 1})
    supervisor.close()
    received = [keeper.receive(), keeper.receive()]
    assert None in received
    assert keeper.receive() is None
    with pytest.raises(OSError, match="Broken pipe"):
        keeper.send({"end": "x"})
