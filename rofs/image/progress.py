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
