# SPDX-License-Identifier: Apache-2.0
"""Memory that all processes of a mount share: counters, who is busy with what, which files the kernel has.

Made by the keeper in a memfd, so that it outlives each process and, by its descriptor, a new program in
the keeper's place. Numbers are 64 bits wide and each has one writer, so no lock is needed. A worker may
write anything here: nobody trusts it further than a counter.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from enum import IntEnum
from typing import Final

from rofs.errors import StateError

MAX_WORKERS: Final = 32
MAX_SLOTS: Final = 2 * MAX_WORKERS  # alive at once: those that serve, and their successors during a hand-over
_VERSION = 1
_MAGIC = 0x726F_6673_0000 | _VERSION
_HEADER_NUMBERS = 16
_SLOT_NUMBERS = 16  # 128 bytes: no two workers write to one cache line
_NUMBERS = _HEADER_NUMBERS + MAX_SLOTS * _SLOT_NUMBERS
_MASK = (1 << 64) - 1
_CACHED_BYTES = 1 << 18  # a power of two
_SIZE = _NUMBERS * 8 + _CACHED_BYTES


class Total(IntEnum):
    """A number of the whole mount, by its index."""

    MAGIC = 0
    BLOCKED_WRITES = 1  # written by the supervisor, as the next
    CORRUPTION = 2
    RESTARTS = 3  # processes replaced; written by the keeper
    CACHE_EPOCH = 4  # 1 to 255: counts how often the kernel was seen to have dropped files; any worker's
    CACHE_EPOCH_NS = 5  # when that was last, on CLOCK_MONOTONIC
    COUNTED = 6  # repeats that the supervisor has counted and not recorded yet


class Number(IntEnum):
    """A number of one worker slot, by its index. A successor in the slot goes on counting."""

    REQUESTS = 0
    VERIFIED_BLOCKS = 1
    BUSY = 2  # what is being worked at, 0 when nothing is
    REPORTED = 3  # number of the last report that was made
    ACCOUNTED = 4  # number of the last report that was recorded or counted as lost; the supervisor's
    PUSHED = 5  # files pushed into the page cache
    CACHE_HITS = 6  # hash blocks found verified in memory


class SharedState:
    """The memory of one mount.

    Args:
        fd: Of a mount that lives already; None to make a new one. Becomes this object's own.

    Attributes:
        fd: The memfd.
        cached: A byte per group of inodes: in which cache epoch the kernel was given one's content.
    """

    def __init__(self, fd: int | None = None) -> None:
        self.fd = os.memfd_create("rofs-shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING) if fd is None else fd
        if fd is None:
            os.ftruncate(self.fd, _SIZE)
            # A worker that cut it short would end the others with SIGBUS.
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        elif os.fstat(fd).st_size != _SIZE:
            raise StateError("the shared memory of the mount is not as this version of rofs makes it")
        self._memory = mmap.mmap(self.fd, _SIZE)
        whole = memoryview(self._memory)
        self._numbers = whole[: _NUMBERS * 8].cast("Q")
        self.cached = whole[_NUMBERS * 8 :]
        if fd is None:
            self._numbers[Total.MAGIC] = _MAGIC
            self._numbers[Total.CACHE_EPOCH] = 1
        elif self._numbers[Total.MAGIC] != _MAGIC:
            raise StateError("the shared memory of the mount is that of another version of rofs")

    def get(self, total: Total) -> int:
        """A number of the whole mount."""
        return self._numbers[total]

    def set(self, total: Total, value: int) -> None:
        """Set a number of the whole mount."""
        self._numbers[total] = value

    def add(self, total: Total, count: int = 1) -> None:
        """Add to a number of the whole mount; only its one writer may."""
        # A worker that was taken over may have written anything here: it must not raise.
        self._numbers[total] = self._numbers[total] + count & _MASK

    def slot(self, index: int) -> memoryview:
        """The numbers of a worker slot, by `Number`.

        Args:
            index: 0 to `MAX_SLOTS` - 1.
        """
        start = _HEADER_NUMBERS + index * _SLOT_NUMBERS
        return self._numbers[start : start + _SLOT_NUMBERS]

    def sum(self, number: Number) -> int:
        """A number of all workers there are and ever were."""
        return sum(self._numbers[_HEADER_NUMBERS + number :: _SLOT_NUMBERS])


class Tokens:
    """Permission for all workers but one to sleep in the kernel at the same time.

    A token is a record lock on a byte of the shared memory: it never waits, and the holder's death
    releases it (fcntl(2), F_SETLK).

    Args:
        fd: The memfd of the shared memory.
        count: How many there are.
    """

    def __init__(self, fd: int, count: int) -> None:
        self._fd = fd
        self._count = count

    def take(self) -> int | None:
        """A free token, None when all are taken."""
        for token in range(self._count):
            try:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, token)
            except OSError:
                continue
            return token
        return None

    def give_back(self, token: int) -> None:
        """Let another worker have it."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, token)
