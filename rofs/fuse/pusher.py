# SPDX-License-Identifier: Apache-2.0
"""Puts a small file's verified content into the kernel's page cache when it is opened, so that no READ follows.

A push can sleep in the kernel: a READ of the same page that waits for a worker holds the page's lock. So
all workers but one may push at the same time, and who gets no token leaves the file to READ. Knows nothing
of how content is verified; what cannot be read is left to READ as well, which reports it.

All workers note what the kernel was given. It tells when it forgets an inode, but not when it drops content alone;
when it reads a file that it was given, it has dropped that one, and probably more: then a new epoch begins, and
what was given in the one before is pushed again when it is opened: at most one needless push a file and epoch.
"""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import Iterable
from typing import Final

import pyfuse3

from rofs.errors import ImageError, ReadError
from rofs.fuse.shared import Number, SharedState, Tokens, Total
from rofs.vfs import ReadOnlyFilesystem

MAX_BYTES: Final = 128 << 10  # what the kernel would read ahead; above it, a reader may want only a part
_LAST_EPOCH = 255
_MIX = 0x9E3779B1  # 2^32 divided by the golden ratio (Knuth, multiplicative hashing)
_SHORTEST_EPOCH_NS = 2_000_000_000  # while memory is short, files are dropped all the time


class Pusher:
    """Pushes for one worker.

    Args:
        filesystem: Where content comes from.
        shared: The memory of the mount: what any worker has pushed already.
        numbers: Of the worker's slot.
        tokens: Who may push.
    """

    def __init__(
        self, filesystem: ReadOnlyFilesystem, shared: SharedState, numbers: memoryview, tokens: Tokens
    ) -> None:
        self._filesystem = filesystem
        self._shared = shared
        self._cached = shared.cached
        self._mask = len(shared.cached) - 1
        self._numbers = numbers
        self._tokens = tokens

    def opened(self, inode: int, nid: int) -> None:
        """Push the content of a file that is being opened, unless it is there already, large or no file."""
        index = self._index(inode)
        epoch = self._shared.get(Total.CACHE_EPOCH) & _LAST_EPOCH
        if self._cached[index] == epoch:
            return
        try:
            status = self._filesystem.stat(nid)
            if not stat.S_ISREG(status.mode) or not 0 < status.size <= MAX_BYTES:
                return
            token = self._tokens.take()
            if token is None:
                return
            try:
                self._push(inode, self._filesystem.read(nid, 0, status.size))
                self._cached[index] = epoch
            finally:
                self._tokens.give_back(token)
        except (ImageError, ReadError):
            return

    def _push(self, inode: int, content: bytes) -> None:
        # Never beyond the size, which would make the file longer.
        with contextlib.suppress(OSError):  # the kernel has forgotten the inode, or has no memory to spare
            pyfuse3.notify_store(inode, 0, content)
            self._numbers[Number.PUSHED] += 1

    def _index(self, inode: int) -> int:
        # Inodes lie at the starts of blocks more often than not: their low bits are much alike.
        return (inode * _MIX >> 10) & self._mask

    def forgotten(self, inodes: Iterable[int]) -> None:
        """The kernel has forgotten these inodes and what it had of them."""
        for inode in inodes:
            self._cached[self._index(inode)] = 0

    def was_read(self, inode: int) -> None:
        """The kernel reads a file, of which it then has at least a part."""
        index = self._index(inode)
        epoch = self._shared.get(Total.CACHE_EPOCH) & _LAST_EPOCH
        if self._cached[index] == epoch:
            epoch = self._begin_epoch(epoch)
        self._cached[index] = epoch

    def _begin_epoch(self, epoch: int) -> int:
        now = time.monotonic_ns()
        if now - self._shared.get(Total.CACHE_EPOCH_NS) < _SHORTEST_EPOCH_NS:
            return epoch
        following = epoch % _LAST_EPOCH + 1
        self._shared.set(Total.CACHE_EPOCH_NS, now)
        self._shared.set(Total.CACHE_EPOCH, following)
        return following
