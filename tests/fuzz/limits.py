# SPDX-License-Identifier: Apache-2.0
"""Counts what one input costs: executed lines of rofs, and memory. No clock: the same input costs the same."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import rofs

_PACKAGE = rofs.__path__[0] + "/"


class UnboundedWorkError(AssertionError):
    """Raised from inside of what does not end."""


def executed_lines(function: Callable[[], object], limit: int) -> int:
    """How many lines of rofs a call executes.

    Raises:
        UnboundedWorkError: More than `limit`; the call was broken off.
    """
    count = 0

    def on_line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count > limit:
                raise UnboundedWorkError(f"more than {limit} lines, now in {frame.f_code.co_name}:{frame.f_lineno}")
        return on_line

    def on_call(frame: FrameType, event: str, argument: object) -> Any:
        return on_line if frame.f_code.co_filename.startswith(_PACKAGE) else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        function()
    finally:
        sys.settrace(before)
    return count


def peak_bytes(function: Callable[[], object]) -> int:
    """How much more memory of Python was in use at once during a call than before it."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        function()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
