# SPDX-License-Identifier: Apache-2.0
"""The same work on many pieces, on all cores, with results in order.

Processes, not threads: hashing 4 KiB at a time lets go of the interpreter's lock too often to gain by
threads. Children are forked, so the function may close over anything that is open here, and read it
with pread(2). Does not know what the pieces are.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from rofs.errors import HostError

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_PIECES_AHEAD = 2  # per process: enough to keep it busy, few enough to bound what waits to be used

# What the children run. Set before they are forked: a function that closes over something cannot be
# sent to them.
_function: Callable[[Any], Any] | None = None


def available_processes() -> int:
    """How many processes can run at once: the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def ordered_map(
    function: Callable[[_Item], _Result], items: Iterable[_Item], *, processes: int | None = None
) -> Iterator[_Result]:
    """Apply a function to each item, several at a time, and yield the results in order.

    Args:
        function: Runs in a child process, or here when one process is enough; what it returns and
            raises must be picklable.
        items: Picklable; taken a few ahead of the results.
        processes: At most so many; None for as many as there are cores.

    Raises:
        HostError: A child process died, as when memory runs out.
        Exception: What the function raises.
    """
    count = available_processes() if processes is None else processes
    if count <= 1:
        yield from map(function, items)
        return
    global _function  # noqa: PLW0603 - see above
    before, _function = _function, function
    try:
        context = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(count, mp_context=context) as pool:
            yield from _results(pool, items, count * _PIECES_AHEAD)
    except BrokenProcessPool as error:
        raise HostError("a process that shared the work died; is there enough memory?") from error
    finally:
        _function = before


def _results(pool: ProcessPoolExecutor, items: Iterable[Any], ahead: int) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:  # nobody wants the rest
            future.cancel()


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)
