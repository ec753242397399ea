# SPDX-License-Identifier: Apache-2.0
"""Uses a filesystem as a kernel, a resolver and an attacker would, and checks what it answers against itself.

Only what `vfs.ReadOnlyFilesystem` allows may leave a method. Work is bounded by the walk's own limits, so
what is unbounded all the same is the reader's fault.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import stat
from collections.abc import Iterator, Sequence

from rofs.erofs.reader import ErofsReader
from rofs.errors import RofsError
from rofs.fuse.messages import PathsAnswer
from rofs.fuse.operations import Operations
from rofs.fuse.shared import Number
from rofs.image.paths import MAX_PATHS, ReverseIndex
from rofs.vfs import NAME_MAX_BYTES, PATH_MAX_BYTES

MAX_INODES = 300
MAX_ENTRIES = 1500
MAX_EXTENTS = 300
# What the protocol allows a method to raise.
TOLERATED = contextlib.suppress(RofsError, NotADirectoryError)
_READ_BYTES = 128 << 10  # the most that the kernel asks for at once
_ODD_OFFSETS = (1, 11, 12, 4095, 4096, 1 << 31, 1 << 62)


def walk(filesystem: ErofsReader, numbers: Sequence[int]) -> None:
    """Everything of every inode that is reachable, and of some that are not.

    Args:
        filesystem: Hostile.
        numbers: Of the fuzzer: further nids, offsets and lengths.
    """
    nids = _reachable(filesystem)
    operations = Operations(filesystem, lambda _report: None, [0] * len(Number))
    for nid in [*nids, *numbers, *(n - 2 for n in numbers), -1, 1 << 64]:
        _use(filesystem, operations, nid, numbers)
    filesystem.statfs()
    _use_index(filesystem, nids, numbers)


def _reachable(filesystem: ErofsReader) -> list[int]:
    """Breadth first from the root, each once."""
    nids = {filesystem.root_nid: None}
    entries = 0
    for nid in _growing(nids):
        with TOLERATED:
            for entry in filesystem.readdir(nid):
                assert 0 < len(entry.name) <= NAME_MAX_BYTES
                assert b"/" not in entry.name
                assert b"\0" not in entry.name
                entries += 1
                if len(nids) < MAX_INODES:
                    nids.setdefault(entry.nid)
                if entries > MAX_ENTRIES:
                    return list(nids)
    return list(nids)


def _growing(nids: dict[int, None]) -> Iterator[int]:
    """The keys of a dictionary that grows meanwhile."""
    done = 0
    while done < len(nids):
        batch = list(nids)[done:]
        yield from batch
        done += len(batch)


def _use(filesystem: ErofsReader, operations: Operations, nid: int, numbers: Sequence[int]) -> None:
    mode = 0
    with TOLERATED:
        status = filesystem.stat(nid)
        mode = status.mode
        assert 0 <= status.size < 1 << 63
        assert status.nlink > 0
        operations._attributes(nid)  # as they go to the kernel: every number fits its field
    with TOLERATED:
        _use_xattrs(filesystem, nid)
    with TOLERATED:
        _read(filesystem, nid, numbers) if stat.S_ISREG(mode) else filesystem.read(nid, 0, 1)
    with TOLERATED:
        _list(filesystem, nid, numbers) if stat.S_ISDIR(mode) else next(filesystem.readdir(nid), None)
    with TOLERATED:
        _read_link(filesystem, nid)
    with TOLERATED:
        filesystem.inode_extent(nid)
    with TOLERATED:
        for extent in itertools.islice(filesystem.extents(nid), MAX_EXTENTS):
            assert extent.offset_bytes >= 0
            assert extent.length_bytes >= 0


def _use_xattrs(filesystem: ErofsReader, nid: int) -> None:
    for name in filesystem.listxattr(nid)[:50]:
        assert filesystem.getxattr(nid, name) is not None
    assert filesystem.getxattr(nid, b"user.no such name") is None


def _read(filesystem: ErofsReader, nid: int, numbers: Sequence[int]) -> None:
    size = filesystem.stat(nid).size
    start = filesystem.read(nid, 0, _READ_BYTES)
    assert len(start) == min(size, _READ_BYTES)
    for offset in (*_ODD_OFFSETS, *numbers, max(size - 100, 0)):
        with TOLERATED:
            piece = filesystem.read(nid, offset, 5000)
            assert len(piece) == max(0, min(5000, size - offset))
            assert offset + 5000 > len(start) or piece == start[offset : offset + 5000]


def _list(filesystem: ErofsReader, nid: int, numbers: Sequence[int]) -> None:
    for offset in (*_ODD_OFFSETS, *numbers):
        with TOLERATED:
            _take(filesystem, nid, offset, 20)
    for name in (b"good", b"no such name", b"", b".", b"\xff" * 255, b"a/b"):
        with TOLERATED:
            filesystem.lookup(nid, name)
    # A directory that can be listed to its end is in order, so each of its names is found.
    listed = _take(filesystem, nid, 0, MAX_ENTRIES)
    if len(listed) < MAX_ENTRIES:
        for name, entry_nid, following in listed[:: 1 + len(listed) // 20]:
            assert filesystem.lookup(nid, name) == entry_nid
            rest = _take(filesystem, nid, following, 2)
            assert rest == listed[listed.index((name, entry_nid, following)) + 1 :][:2]


def _take(filesystem: ErofsReader, nid: int, offset: int, count: int) -> list[tuple[bytes, int, int]]:
    found = []
    for entry in filesystem.readdir(nid, offset):
        found.append((entry.name, entry.nid, entry.next_offset))
        assert entry.next_offset > offset  # a reader of the directory comes to its end
        offset = entry.next_offset
        if len(found) == count:
            break
    return found


def _read_link(filesystem: ErofsReader, nid: int) -> None:
    try:
        target = filesystem.readlink(nid)
    except OSError as error:
        if error.errno != errno.EINVAL or stat.S_ISLNK(filesystem.stat(nid).mode):
            raise
    else:
        assert 0 < len(target) < PATH_MAX_BYTES


def _use_index(filesystem: ErofsReader, nids: Sequence[int], numbers: Sequence[int]) -> None:
    """The reverse index answers whatever it is asked: it raises nothing."""
    index = ReverseIndex(filesystem)
    for nid in [*nids[:60], *numbers]:
        paths = index.paths(nid)
        assert len(paths) <= MAX_PATHS
        assert all(path.startswith(b"/") for path in paths)
        PathsAnswer.parse(PathsAnswer(tuple(repr(path) for path in paths), nid & 0xFFFF).pack())
    for number in (0, 1024, *numbers):
        index.paths_of_range(number, 4096)
