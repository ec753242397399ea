# SPDX-License-Identifier: Apache-2.0
"""The files of one audit log: NAME, which is written to, and NAME.1, NAME.2 and so on, older and older.

Names only: the chain that leads through the files is `chain`'s business, when a file is full `log`'s.
Numbers may be missing: a rotation that was interrupted, or a file that was taken away. Compressed files are
nobody's here.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from rofs import durable
from rofs.errors import InputError, from_os_error, printable

# Files change their names while they are being opened when their log is rotated just then.
_ATTEMPTS = 10


def older(path: bytes, number: int) -> bytes:
    """The name of the file that was rotated away so many times.

    Args:
        path: Of the log.
        number: 1 or more.
    """
    return b"%s.%d" % (path, number)


def shift(path: bytes, keep: int) -> bytes | None:
    """Make NAME.1 free: each older file gets the next number, as far as the next one is not free anyway.

    Args:
        path: Of the log.
        keep: How many older files there may be.

    Returns:
        The name of the file that had no number left and was replaced, None when none had to be.

    Raises:
        RofsError: One cannot be renamed.
    """
    last = next((number for number in range(1, keep + 1) if not os.path.lexists(older(path, number))), keep)
    lost = older(path, keep) if last == keep and os.path.lexists(older(path, keep)) else None
    for number in range(last - 1, 0, -1):
        durable.rename(older(path, number), older(path, number + 1))
    return lost


def log_files(path: bytes) -> list[bytes]:
    """The names of a log's files, oldest first, the one that is written to last.

    Args:
        path: Of the log; it alone when its directory cannot be listed.
    """
    directory, name = os.path.split(path)
    numbers = []
    with contextlib.suppress(OSError):
        for entry in os.listdir(directory or b"."):
            base, dot, number = entry.rpartition(b".")
            if dot and base == name and number.isdigit() and not number.startswith(b"0") and len(number) < 10:
                numbers.append(int(number))
    return [*(older(path, number) for number in sorted(numbers, reverse=True)), path]


@contextlib.contextmanager
def opened_log(path: str | bytes, *, alone: bool = False) -> Iterator[list[tuple[str, BinaryIO]]]:
    """Open all files of a log for reading, oldest first; one that has two names just now only once.

    Args:
        path: Of the log.
        alone: Only this file.

    Yields:
        Each file, with its name for messages.

    Raises:
        InputError: There is no such file, or it is not a regular one.
        HostError: It cannot be opened.
    """
    path = os.fsencode(path)
    with contextlib.ExitStack() as stack:
        for _ in range(_ATTEMPTS):
            with contextlib.ExitStack() as attempt:
                files = [(name, attempt.enter_context(open_log_file(name))) for name in _names(path, alone=alone)]
                if alone or _are_named(files):
                    stack.push(attempt.pop_all())
                    break
        else:
            raise InputError(f"cannot read audit log {printable(path)}: it is rotated again and again")
        yield [(printable(name), file) for name, file in _without_second_names(files)]


def open_log_file(path: bytes) -> BinaryIO:
    """Open one file of a log for reading.

    Raises:
        InputError: There is no such file, or it is not a regular one.
        HostError: It cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise from_os_error(error, "cannot read audit log", path) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # a FIFO would block, a device is nobody's log
        os.close(fd)
        raise InputError(f"cannot read audit log {printable(path)}: it is not a regular file")
    return os.fdopen(fd, "rb")


def identity_of(file: BinaryIO) -> tuple[int, int]:
    """Which file it is, whatever its name."""
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino


def _names(path: bytes, *, alone: bool) -> list[bytes]:
    if alone:
        return [path]
    # What is called so and is no file is not the log's.
    return [name for name in log_files(path) if name == path or os.path.isfile(name)]


def _are_named(files: list[tuple[bytes, BinaryIO]]) -> bool:
    try:
        return all((status := os.stat(name)) and (status.st_dev, status.st_ino) == identity_of(f) for name, f in files)
    except OSError:
        return False


def _without_second_names(files: list[tuple[bytes, BinaryIO]]) -> list[tuple[bytes, BinaryIO]]:
    return list({identity_of(file): (name, file) for name, file in files}.values())
