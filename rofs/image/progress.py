# SPDX-License-Identifier: Apache-2.0
"""How long work tells about itself; a terminal shows it, a pipe gets silence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """Receives the stages of a long operation."""

    def stage(self, name: str, total_bytes: int) -> Callable[[int], None]:
        """Begin a stage; the result is called with the number of bytes just done."""
        ...


class Silent:
    """Shows nothing."""

    def stage(self, name: str, total_bytes: int) -> Callable[[int], None]:  # noqa: ARG002
        """Begin a stage that nobody watches."""
        return lambda _: None


class Meter:
    """A stage of work whose size is only estimated: never more than announced, and all of it at the end.

    Args:
        progress: Told about it.
        name: What is being done.
        total_bytes: The estimate.
    """

    def __init__(self, progress: Progress, name: str, total_bytes: int) -> None:
        self._advance = progress.stage(name, total_bytes)
        self._left = total_bytes

    def add(self, count_bytes: int) -> None:
        """Say that so many bytes more are done."""
        count_bytes = min(count_bytes, self._left)
        self._left -= count_bytes
        self._advance(count_bytes)

    def end(self) -> None:
        """Say that all is done; more than once is no harm."""
        self.add(self._left)
