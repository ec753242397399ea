# SPDX-License-Identifier: Apache-2.0
"""The place of a process of which a mount has one, the supervisor or the resolver: who fills it, and when again."""

from __future__ import annotations

import time
from collections.abc import Callable

from rofs.fuse.backoff import Backoff
from rofs.fuse.process import Child

_TRY_AGAIN_SECONDS = 1.0


class Post:
    """The place of a process of which there is one, and how soon it is filled again.

    Attributes:
        child: None while nobody fills it.
        due: When it is to be filled, on the monotonic clock.
    """

    def __init__(self, child: Child | None) -> None:
        self.child = child
        self.due = 0.0
        self._started = time.monotonic()
        self._backoff = Backoff()

    def fill(self, child: Child) -> None:
        """Somebody has been started."""
        self.child = child
        self._started = time.monotonic()

    def try_to_fill(self, start: Callable[[], None]) -> bool:
        """Start somebody who calls `fill`; if the host has no process or descriptor to spare, later."""
        try:
            start()
        except OSError:
            self.due = time.monotonic() + _TRY_AGAIN_SECONDS
        return self.child is not None

    def find_dead(self) -> Child | None:
        """Who has filled it until now, if he has died; still to be ended."""
        child = self.child
        if child is None or not child.has_ended():
            return None
        now = time.monotonic()
        self.child, self.due = None, now + self._backoff.seconds_after(now - self._started)
        return child

    def end(self, patience_seconds: float = 0) -> None:
        """End who fills it, if anybody does."""
        if self.child is not None:
            self.child.end(patience_seconds)
            self.child = None

    @property
    def is_due(self) -> bool:
        """Whether it is empty and should be no longer."""
        return self.child is None and self.due <= time.monotonic()
