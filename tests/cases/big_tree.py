# SPDX-License-Identifier: Apache-2.0
"""The odd tree with what is only large: entries, subdirectories, links and a sparse file by the ten thousand.

It makes the tree and takes it away again; what must hold of it is `test_big_tree.py`'s.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from tests.trees import write_odd_tree

from .disks import filesystem

MAKE = ("mkfs.ext4", "-q", "-O", "^has_journal", "-N", "500000")
DISK_BYTES = 3 << 30

ENTRIES = 100_000
SUBDIRECTORIES = 70_000  # more than 16 bits of links
EMPTY_FILES = 70_000
LINKS = 64_000  # ext4 allows 65,000 to one file
HUGE = "huge-and-sparse"
SPARSE_BYTES = 5 << 30
SPARSE_ISLANDS = (0, (1 << 32) - 3, SPARSE_BYTES - 1)
LAST_BYTES = b"island!"


@contextlib.contextmanager
def big_tree(place: Path) -> Iterator[Path]:
    """Everything odd and everything large, without the sockets, which no archive can hold.

    On a disk of its own: to delete half a million files one by one takes longer than all else.
    """
    with filesystem(place, MAKE, DISK_BYTES) as disk:
        write_odd_tree(disk / "tree")
        (disk / "tree" / "nodes" / "socket").unlink()
        _write_large(disk / "tree")
        yield disk / "tree"


def _write_large(top: Path) -> None:
    for name, count in (("entries", ENTRIES), ("empty", EMPTY_FILES)):
        (top / name).mkdir()
        _in_directory(top / name, count)
    (top / "subdirectories").mkdir()
    base = os.fsencode(top / "subdirectories")
    for number in range(SUBDIRECTORIES):
        os.mkdir(b"%s/%05d" % (base, number))
    (top / "links-to-one").mkdir()
    base = os.fsencode(top / "links-to-one")
    Path(os.fsdecode(base), "first").write_bytes(b"stored once")
    for number in range(LINKS - 1):
        os.link(base + b"/first", b"%s/%05d" % (base, number))
    _write_sparse(top / HUGE)


def _in_directory(top: Path, count: int) -> None:
    fd = os.open(top, os.O_RDONLY)
    try:
        for number in range(count):
            os.close(os.open(b"%06d" % number, os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    finally:
        os.close(fd)


def _write_sparse(path: Path) -> None:
    with path.open("wb") as new:
        for at in SPARSE_ISLANDS:
            new.seek(at)
            new.write(LAST_BYTES)
        new.truncate(SPARSE_BYTES)
