# SPDX-License-Identifier: Apache-2.0
"""Errors that did not end a piece of work: it went on, and tells them afterwards. Does not know how they are shown."""

from __future__ import annotations

from rofs.errors import ImageError, ReadError, RofsError

MAX_KEPT = 1000  # a hostile image has millions


class Problems:
    """How many errors there were, the first ones, and the worst.

    Attributes:
        first: At most `MAX_KEPT`, in the order in which they came.
        count: Of all.
        worst: One of the gravest kind: corrupt or malformed, then unreadable, then everything else; the
            first of them. None when there was no error.
    """

    def __init__(self) -> None:
        self.first: list[RofsError] = []
        self.count = 0
        self.worst: RofsError | None = None

    def add(self, error: RofsError) -> None:
        """Note an error."""
        self.count += 1
        if len(self.first) < MAX_KEPT:
            self.first.append(error)
        if self.worst is None or _gravity(error) > _gravity(self.worst):
            self.worst = error


def _gravity(error: RofsError) -> int:
    if isinstance(error, ReadError):
        return 1
    return 2 if isinstance(error, ImageError) else 0
