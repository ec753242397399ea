# SPDX-License-Identifier: Apache-2.0
"""Disks that fail, for `durable.using`: at the n-th call, forever, or with the whole process."""

from __future__ import annotations

import errno
import os
import signal

from rofs import durable


class FailingCalls(durable.Calls):
    """Counts the calls; the one numbered `fail_at` fails, and all later ones too when `forever`."""

    def __init__(self, fail_at: int | None = None, *, error: int = errno.ENOSPC, forever: bool = False) -> None:
        self.fail_at = fail_at
        self.error = error
        self.forever = forever
        self.calls: list[str] = []

    def _count(self, name: str) -> None:
        number = len(self.calls)
        self.calls.append(name)
        if self.fail_at is not None and (number == self.fail_at or (self.forever and number > self.fail_at)):
            self.fail()

    def fail(self) -> None:
        raise OSError(self.error, os.strerror(self.error))

    def open(self, path: bytes, flags: int, mode: int) -> int:
        self._count("open")
        return super().open(path, flags, mode)

    def chmod(self, fd: int, mode: int) -> None:
        self._count("chmod")
        super().chmod(fd, mode)

    def mkdir(self, path: bytes, mode: int) -> None:
        self._count("mkdir")
        super().mkdir(path, mode)

    def pwrite(self, fd: int, data: bytes | memoryview, offset_bytes: int) -> int:
        self._count("pwrite")
        return super().pwrite(fd, data, offset_bytes)

    def append(self, fd: int, data: bytes) -> int:
        self._count("append")
        return super().append(fd, data)

    def truncate(self, fd: int, length_bytes: int) -> None:
        self._count("truncate")
        super().truncate(fd, length_bytes)

    def fsync(self, fd: int) -> None:
        self._count("fsync")
        super().fsync(fd)

    def rename(self, source: bytes, target: bytes) -> None:
        self._count("rename")
        super().rename(source, target)

    def link(self, source: bytes, target: bytes) -> None:
        self._count("link")
        super().link(source, target)

    def unlink(self, path: bytes) -> None:
        self._count("unlink")
        super().unlink(path)


class KillingCalls(FailingCalls):
    """The process dies at the n-th call, as by a power cut."""

    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class ShortWrites(durable.Calls):
    """Every write takes at most three bytes."""

    def pwrite(self, fd: int, data: bytes | memoryview, offset_bytes: int) -> int:
        return super().pwrite(fd, data[:3], offset_bytes)

    def append(self, fd: int, data: bytes) -> int:
        return super().append(fd, data[:3])
