# SPDX-License-Identifier: Apache-2.0
"""pyfuse3's loop without an event loop: what it needs of trio, how it ends, and that nothing may wait in it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any

import pyfuse3
import pytest
import trio

from rofs.fuse import blocking_loop
from rofs.fuse.blocking_loop import BlockingLoop, ClosedResourceError

Main = Callable[[int, int], Awaitable[None]]


def yes() -> bool:
    return True


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Main], None]]:
    """Takes what pyfuse3 does instead of serving; the module must be found as it was."""
    yield lambda main: monkeypatch.setattr(pyfuse3, "main", main)
    assert pyfuse3.trio is trio  # type: ignore[attr-defined]


def loop() -> Any:
    """As pyfuse3, which has no types, finds it."""
    found = pyfuse3.trio  # type: ignore[attr-defined]
    assert isinstance(found, BlockingLoop)
    return found


def test_session_is_served_as_pyfuse3_does_it(main: Callable[[Main], None]) -> None:
    done: list[object] = []

    async def session(number: int, name: str) -> None:
        async with loop().Lock():
            assert loop().lowlevel.current_task().name
            await loop().lowlevel.wait_readable(0)
            done.append((number, name))

    async def serve(minimum: int, maximum: int) -> None:
        assert (minimum, maximum) == (1, 1)  # one task: another one would never run
        assert loop().lowlevel.current_trio_token() is None
        async with loop().open_nursery() as nursery:
            nursery.start_soon(session, 1, "a", name="session")
            nursery.start_soon(session, 2, "b")
            assert done == []
        loop().lowlevel.notify_closing(0)

    main(serve)
    blocking_loop.run(yes)
    assert done == [(1, "a"), (2, "b")]


def test_it_ends_when_it_may_not_go_on(main: Callable[[Main], None]) -> None:
    requests = iter((True, True, True, False))
    served = 0

    async def serve(*_: int) -> None:
        nonlocal served
        while True:
            try:
                await loop().lowlevel.wait_readable(0)
            except loop().ClosedResourceError:
                return
            served += 1

    main(serve)
    blocking_loop.run(lambda: next(requests))
    assert served == 3


def test_exception_that_ends_the_loop_is_the_one_that_pyfuse3_looks_for() -> None:
    with pytest.raises(ClosedResourceError):
        BlockingLoop(lambda: False).wait_readable(0)
    assert BlockingLoop.ClosedResourceError is ClosedResourceError


def test_handler_that_awaits_is_an_error_and_not_a_worker_that_sleeps_for_ever(main: Callable[[Main], None]) -> None:
    closed = []

    async def serve(*_: int) -> None:
        try:
            await trio.sleep_forever()
        finally:
            closed.append(True)

    async def handler(*_: int) -> None:
        await Nothing()

    class Nothing:
        def __await__(self) -> Generator[None, None, None]:
            try:
                yield
            finally:
                closed.append(True)

    main(handler)
    with pytest.raises(RuntimeError, match="awaited something"):
        blocking_loop.run(yes)
    assert closed == [True]  # it was not left hanging
    main(serve)
    with pytest.raises(RuntimeError):  # trio itself says that it is not running
        blocking_loop.run(yes)


def test_abort_of_the_connection_comes_out(main: Callable[[Main], None]) -> None:
    async def serve(*_: int) -> None:
        raise OSError(103, os.strerror(103))

    main(serve)
    with pytest.raises(ConnectionAbortedError):
        blocking_loop.run(yes)


def test_what_a_session_raises_comes_out_of_its_nursery(main: Callable[[Main], None]) -> None:
    async def fail() -> None:
        raise OSError(19, os.strerror(19))

    async def serve(*_: int) -> None:
        async with loop().open_nursery() as nursery:
            nursery.start_soon(fail)

    main(serve)
    with pytest.raises(OSError, match=os.strerror(19)):
        blocking_loop.run(yes)
