# SPDX-License-Identifier: Apache-2.0
"""Logs made in a few words, and a disk that fills up."""

from __future__ import annotations

import errno
import pathlib
from collections.abc import Callable

from rofs import durable
from rofs.audit.log import MAX_FILE_BYTES, AuditLog

IMAGE = {"name": "os", "version": "1", "root_hash": "ab" * 32}


def ticking() -> Callable[[], int]:
    """A clock that advances by a second each time it is read."""
    now = 1_700_000_000_000_000_000

    def clock() -> int:
        nonlocal now
        now += 1_000_000_000
        return now

    return clock


def open_log(
    path: pathlib.Path, lock_seconds: float = 0.1, *, max_file_bytes: int = MAX_FILE_BYTES, kept_files: int = 5
) -> AuditLog:
    return AuditLog(
        str(path),
        mount="/mnt",
        image=IMAGE,
        boot_id="boot",
        clock=ticking(),
        lock_seconds=lock_seconds,
        max_file_bytes=max_file_bytes,
        kept_files=kept_files,
    )


def written_log(path: pathlib.Path, count: int) -> list[bytes]:
    """A log of `count` blocked writes; returns its lines."""
    with open_log(path) as log:
        for n in range(count):
            assert log.write("write_blocked", op="unlink", path=f"/file{n}", errno="EROFS")
    return path.read_bytes().splitlines(keepends=True)


class FullDisk(durable.Calls):
    """Appends write `room` bytes more and then fail; so may cutting back."""

    def __init__(self, room: int = 0, *, truncate_fails: bool = False) -> None:
        self.room = room
        self.truncate_fails = truncate_fails

    def append(self, fd: int, data: bytes) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, "full")
        written = super().append(fd, data[: self.room])
        self.room -= written
        return written

    def truncate(self, fd: int, length_bytes: int) -> None:
        if self.truncate_fails:
            raise OSError(errno.EIO, "broken")
        super().truncate(fd, length_bytes)
