# SPDX-License-Identifier: Apache-2.0
"""From an inode, or a bad block, back to paths: what an event or a report has to name.

EROFS files do not know their parents, so the directories are read once, when first asked. Kept for each
name is where it stands, not the name: it is read there when needed. Beyond a limit the index says nothing
rather than use more memory. Does not know why somebody asks.

Measured on one core of a cloud VM, files of 4100 bytes, 100 to a directory (time; what the process grew by):

    names        reading names     reading inodes      then, a bad block    a bad hash block
    100,000      0.17 s, 20 MB     0.9 s, 13 MB        0.03 ms              0.5 ms
    1,000,000    2.0 s, 44 MB      10 s, 45 MB         0.1 ms               0.6 ms

The reader's caches are part of this. While it sorts, 1,000,000 names take up to 46 MB more.
"""

from __future__ import annotations

import stat
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from rofs.errors import ImageError
from rofs.image.ranges import RangeIndex, sort_keys
from rofs.vfs import DirEntry, ReadOnlyFilesystem

MAX_NAMES = 4_000_000  # 16 bytes each: 64 MB
MAX_DIRECTORIES = 500_000  # about 150 bytes each: 75 MB
MAX_PATHS = 64  # of one inode or block; an event is one line
_MAX_PATH_BYTES = 1 << 16  # a hostile tree may nest its directories as deep as it has any
_SEQUENCE_BITS = 24  # MAX_NAMES in the order in which they were found
_NID_BITS = 64 - _SEQUENCE_BITS  # an EROFS of 16 TiB has nids of 39 bits


class ReverseIndex:
    """Paths of the inodes of one filesystem.

    Directories that cannot be read are left out: their own path is still known, from their parent.
    """

    def __init__(self, filesystem: ReadOnlyFilesystem) -> None:
        self._filesystem = filesystem
        self._names = _Names()
        self._ranges: RangeIndex | None = None
        self._built = False

    def paths(self, nid: int) -> list[bytes]:
        """Every path of an inode, beginning with `/`, at most `MAX_PATHS`; empty when unknown."""
        self._build()
        if nid == self._filesystem.root_nid:
            return [b"/"]
        paths: list[bytes] = []
        for directory, offset in self._names.places(nid):
            path = self._join(directory, nid, offset)
            if path is not None:
                paths.append(path)
            if len(paths) == MAX_PATHS:
                break
        return paths

    def paths_of_range(self, offset_bytes: int, length_bytes: int) -> list[bytes]:
        """Paths of everything that depends on a range of the filesystem's device, at most `MAX_PATHS`.

        Identical contents share blocks, and a metadata block holds many inodes, so there may be several.
        The first question reads every inode.
        """
        self._build()
        if self._ranges is None:
            self._ranges = RangeIndex(self._filesystem, self._names.nids())
        found: dict[bytes, None] = {}
        for nid in self._ranges.inodes(offset_bytes, length_bytes):
            found.update(dict.fromkeys(self.paths(nid)))
            if len(found) >= MAX_PATHS:
                break
        return list(found)[:MAX_PATHS]

    def _build(self) -> None:
        if self._built:
            return
        self._built = True
        self._names.add_root(self._filesystem.root_nid)
        pending = [self._filesystem.root_nid]
        # Beyond the limits nothing can be kept, so nothing more is read: directories of a hostile image can
        # share their blocks, and then have more names than the image has bytes.
        while pending and not self._names.are_full():
            directory = pending.pop()
            self._names.begin(directory)
            offset = 0
            for entry in _entries(self._filesystem, directory, 0):
                if entry.name not in {b".", b".."}:
                    if not self._is_directory(entry):
                        self._names.add_file(entry.nid, offset)
                    elif self._names.add_directory(entry.nid, offset):
                        pending.append(entry.nid)
                if self._names.are_full():
                    break
                offset = entry.next_offset
        self._names.sort()

    def _is_directory(self, entry: DirEntry) -> bool:
        if entry.file_type:
            return stat.S_ISDIR(entry.file_type)
        try:  # the directory does not say
            return stat.S_ISDIR(self._filesystem.stat(entry.nid).mode)
        except ImageError:
            return False

    def _join(self, directory: int, nid: int, offset: int) -> bytes | None:
        """The path of the name that stands at a place; None when a name on the way cannot be read."""
        names: list[bytes] = []
        length = 0
        while True:
            entry = next(_entries(self._filesystem, directory, offset), None)
            if entry is None or entry.nid != nid:
                return None
            names.append(entry.name)
            length += 1 + len(entry.name)
            if length > _MAX_PATH_BYTES:
                return None
            if directory == self._filesystem.root_nid:
                return b"/" + b"/".join(reversed(names))
            nid = directory
            directory, offset = next(self._names.places(nid))


class _Names:
    """Where each name stands: the directory and the offset that `readdir` finds it at.

    Files are found by their nid in sorted keys of nid and sequence number; the offset stands at the
    sequence number, and the directory is the one whose names had begun there.
    """

    def __init__(self) -> None:
        self._keys = array("Q")
        self._offsets = array("Q")
        self._read = array("Q")  # directories in the order in which they were read
        self._first = array("Q")  # the sequence number that each began with
        self._root = 0
        self._directories: dict[int, int] = {}  # nid to index in the next two
        self._parents = array("Q")
        self._parent_offsets = array("Q")

    def are_full(self) -> bool:
        """Whether as many names or directories are known as may be."""
        return len(self._offsets) >= MAX_NAMES or len(self._directories) >= MAX_DIRECTORIES

    def add_root(self, nid: int) -> None:
        """The root has no name, but it is a directory, and its name in a hostile one does not count."""
        self._root = nid
        self._directories[nid] = 0
        self._parents.append(nid)
        self._parent_offsets.append(0)

    def begin(self, directory: int) -> None:
        """What is added from now on stands in this directory."""
        self._read.append(directory)
        self._first.append(len(self._offsets))

    def add_directory(self, nid: int, offset: int) -> bool:
        """Whether it is a new one, whose names are to be read."""
        if nid in self._directories or len(self._directories) >= MAX_DIRECTORIES:
            return False
        self._directories[nid] = len(self._parents)
        self._parents.append(self._read[-1])
        self._parent_offsets.append(offset)
        return True

    def add_file(self, nid: int, offset: int) -> None:
        if len(self._offsets) < MAX_NAMES and not nid >> _NID_BITS:
            self._keys.append(nid << _SEQUENCE_BITS | len(self._offsets))
            self._offsets.append(offset)

    def sort(self) -> None:
        self._keys = sort_keys(self._keys)

    def places(self, nid: int) -> Iterator[tuple[int, int]]:
        """The places of an inode's names: one for a directory, as many as it has for a file."""
        number = self._directories.get(nid)
        if number is not None:
            yield self._parents[number], self._parent_offsets[number]
            return
        if not 0 <= nid < 1 << _NID_BITS:
            return
        for at in range(bisect_left(self._keys, nid << _SEQUENCE_BITS), len(self._keys)):
            if self._keys[at] >> _SEQUENCE_BITS != nid:
                return
            sequence = self._keys[at] & (1 << _SEQUENCE_BITS) - 1
            yield self._read[bisect_right(self._first, sequence) - 1], self._offsets[sequence]

    def nids(self) -> Iterator[int]:
        """Every inode once."""
        yield from self._directories
        previous = None
        for key in self._keys:
            nid = key >> _SEQUENCE_BITS
            if nid != previous and nid not in self._directories:
                yield nid
            previous = nid


def _entries(filesystem: ReadOnlyFilesystem, directory: int, offset: int) -> Iterator[DirEntry]:
    """The entries of a directory from an offset on, as far as they can be read."""
    try:
        yield from filesystem.readdir(directory, offset)
    except (ImageError, NotADirectoryError):
        return
