# SPDX-License-Identifier: Apache-2.0
"""Runs pyfuse3's main loop without an event loop: a worker that waits in read(2) itself.

A worker has one thing to wait for, the next request, and its handlers never await. An event loop would
only add an epoll_wait(2) and a scheduler to each request, and it wakes all idle workers for one request,
where the kernel wakes one of those that wait in read(2). pyfuse3 looks its event loop up in the module
attribute `pyfuse3.trio`, which its asyncio mode replaces in the same way; the classes here are the few
names that it uses. Nothing here can wait for anything else: no timeouts, no second task.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any

import pyfuse3


class ClosedResourceError(Exception):
    """Ends pyfuse3's loop, as trio's exception of that name does."""


class _Task:
    name = "worker"


class _Done:
    """To await it takes no time; cheaper than a coroutine that returns at once."""

    def __await__(self) -> Iterator[None]:
        return iter(())


_DONE = _Done()


class _Lock:
    """Never contended: there is one task."""

    def __aenter__(self) -> _Done:
        return _DONE

    def __aexit__(self, kind: object, error: object, trace: object) -> _Done:
        return _DONE


class _Nursery:
    """Runs what it was given, one after the other, when its block ends."""

    def __init__(self) -> None:
        self._tasks: list[Awaitable[object]] = []

    def start_soon(self, function: Callable[..., Awaitable[object]], *args: object, name: object = None) -> None:  # noqa: ARG002
        self._tasks.append(function(*args))

    async def __aenter__(self) -> _Nursery:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._tasks:
            await self._tasks.pop(0)


class BlockingLoop:
    """What pyfuse3 finds in the place of trio.

    Args:
        may_go_on: Asked before each request; when it says no, `run` returns. Whoever sets what it says
            from a signal handler must send the signal again until the process has ended: one that comes
            between the answer and read(2) interrupts nothing.
    """

    Lock = _Lock
    ClosedResourceError = ClosedResourceError

    def __init__(self, may_go_on: Callable[[], bool]) -> None:
        self._may_go_on = may_go_on
        self.lowlevel = self  # the names that trio has in a module of their own

    def open_nursery(self) -> _Nursery:
        """Where pyfuse3 starts its session loop."""
        return _Nursery()

    def current_task(self) -> _Task:
        """For a name in pyfuse3's log."""
        return _Task()

    def current_trio_token(self) -> None:
        """There is no other thread to call from."""

    def notify_closing(self, fd: int) -> None:
        """Nobody waits."""

    def wait_readable(self, fd: int) -> _Done:  # noqa: ARG002
        """Return at once: read(2) does the waiting.

        Raises:
            ClosedResourceError: The loop is to end.
        """
        if not self._may_go_on():
            raise ClosedResourceError
        return _DONE


def run(may_go_on: Callable[[], bool]) -> None:
    """Serve pyfuse3's session until the filesystem is unmounted, or until told not to go on.

    Raises:
        OSError: The connection to the kernel was aborted.
        RuntimeError: A handler awaited something.
    """
    trio = pyfuse3.trio  # type: ignore[attr-defined]
    pyfuse3.trio = BlockingLoop(may_go_on)  # type: ignore[attr-defined]
    main: Coroutine[Any, Any, None] = pyfuse3.main(1, 1)
    try:
        main.send(None)
    except StopIteration:
        return
    finally:
        main.close()
        pyfuse3.trio = trio  # type: ignore[attr-defined]
    raise RuntimeError("a handler of the worker awaited something; nothing would ever wake it")
