# SPDX-License-Identifier: Apache-2.0
"""Times as a command line gives them."""

from __future__ import annotations

import datetime as dt
import re

from rofs.cli.options import UsageError
from rofs.errors import printable

_AGO = re.compile(r"(\d{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_NS = 1_000_000_000


def parse_since(text: str, now_ns: int) -> str:
    """A point in time.

    Args:
        text: How long ago, such as 90m or 1d; or a date, or date and time, in local time unless it says otherwise.
        now_ns: Nanoseconds since the epoch.

    Returns:
        As an event has it.

    Raises:
        UsageError: It is neither.
    """
    from rofs.audit.event import format_time

    if match := _AGO.fullmatch(text):
        return format_time(max(0, now_ns - int(match[1]) * _SECONDS[match[2]] * _NS))
    try:
        moment = dt.datetime.fromisoformat(text).astimezone(dt.UTC)
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--since {printable(text)}: expected how long ago (90m, 1d), or a time (2025-01-31T12:00)"
        ) from error
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond * 1000:09d}Z"
