# SPDX-License-Identifier: Apache-2.0
"""Reads a range of an open file in pieces, and what the file has as holes not at all.

A hole is believed only as long as the file is what it was: whoever cuts or rewrites it meanwhile is
noticed, and never becomes zeros. What the bytes mean is not known here.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

from rofs.errors import InputError

_CHUNK_BYTES = 1 << 20


def read_range(fd: int, start: int, end: int, shown: str, check: Callable[[], None]) -> Iterator[tuple[int, bytes]]:
    """What stands in a range of a file that is not to change, see `pieces`.

    Args:
        fd: The file; its own place moves.
        start: First byte of the range.
        end: Behind the last one.
        shown: What to call it in errors.
        check: Raises when the file is not what it was. Called after every read and once more at the end.

    Yields:
        Offset in the file, and at most 1 MiB that stands there.

    Raises:
        InputError: It cannot be read, or ends before the range does.
        And what `check` raises.
    """
    at = start
    while at < end:
        try:
            at, behind = _data(fd, at, end)
            while at < behind:
                data = os.pread(fd, min(_CHUNK_BYTES, behind - at), at)
                check()
                if not data:
                    raise InputError(f"source {shown} ends at byte {at}, expected at least {end} bytes")
                yield at, data
                at += len(data)
        except OSError as error:
            raise InputError(f"cannot read source {shown}: {os.strerror(error.errno or 0)}") from error
    check()


def _data(fd: int, at: int, end: int) -> tuple[int, int]:
    """Where the next data of a file begins and ends, both `end` when none comes before it."""
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        return (start, min(os.lseek(fd, start, os.SEEK_HOLE), end)) if start < end else (end, end)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return end, end  # nothing but a hole, or the file became shorter: which of them, `check` knows
