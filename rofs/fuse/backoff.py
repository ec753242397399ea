# SPDX-License-Identifier: Apache-2.0
"""How long to wait before a process that died is started again: not at all, unless it keeps dying. Pure."""

from __future__ import annotations

from typing import Final

# Who lived this long has done its work; its death says nothing of the next one's.
_GOOD_LIFE_SECONDS: Final = 1.0
_FIRST_SECONDS: Final = 0.02
_LONGEST_SECONDS: Final = 2.0
_MOST_DOUBLINGS: Final = 10  # a float holds no more than a thousand


class Backoff:
    """Of one kind of process."""

    def __init__(self) -> None:
        self._short_lives = 0

    def seconds_after(self, lived_seconds: float) -> float:
        """Until the next start.

        Args:
            lived_seconds: How long the one that died has lived.
        """
        if lived_seconds >= _GOOD_LIFE_SECONDS:
            self._short_lives = 0
            return 0.0
        self._short_lives = min(self._short_lives + 1, _MOST_DOUBLINGS)
        # The first one could be bad luck.
        return 0.0 if self._short_lives == 1 else min(_LONGEST_SECONDS, _FIRST_SECONDS * 2.0**self._short_lives)
