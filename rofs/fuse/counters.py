# SPDX-License-Identifier: Apache-2.0
"""Numbers that a worker writes and the supervisor reads, in memory that both share."""

from __future__ import annotations

import mmap

_SLOTS = 64


class Counters:
    """Made before the fork; each slot has one writer, so no lock is needed."""

    VERIFIED_BLOCKS = 0
    REQUESTS = 1

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SLOTS * 8)
        self._slots = memoryview(self._memory).cast("Q")

    def set(self, slot: int, value: int) -> None:
        """Store a value."""
        self._slots[slot] = value

    def get(self, slot: int) -> int:
        """The latest value."""
        return self._slots[slot]
