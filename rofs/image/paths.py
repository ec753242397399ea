# SPDX-License-Identifier: Apache-2.0
"""From an inode, or a bad block, back to paths: what an event or a report has to name.

EROFS files do not know their parents, so the directories are read once, when first asked. Kept are two
numbers for each name, not the names: these are looked up in the parent when needed. Beyond a limit the
index says nothing rather than use more memory. Does not know why somebody asks.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterator

from rofs.errors import ImageError
from rofs.vfs import DirEntry, Extent, ReadOnlyFilesystem

MAX_NAMES = 4_000_000  # 16 bytes each: 64 MB
MAX_DIRECTORIES = 500_000  # about 100 bytes each
MAX_PATHS = 64  # of one inode or block; an event is one line
_MAX_DEPTH = 65_536  # a hostile tree may contain itself


class ReverseIndex:
    """Paths of the inodes of one filesystem.

    Directories that cannot be read are left out: their own path is still known, from their parent.
    """

    def __init__(self, filesystem: ReadOnlyFilesystem) -> None:
        self._filesystem = filesystem
        self._nids = array("Q")  # of each name that is not a directory's
        self._parents = array("Q")  # the directory it stands in, at the same index
        self._directories: dict[int, int] = {}  # nid of a directory to its parent's
        self._built = False

    def paths(self, nid: int) -> list[bytes]:
        """Every path of an inode, beginning with `/`, at most `MAX_PATHS`; empty when unknown."""
        self._build()
        if nid == self._filesystem.root_nid:
            return [b"/"]
        if nid in self._directories:
            return self._join(self._directories[nid], nid)
        return [path for parent in self._parents_of(nid) for path in self._join(parent, nid)][:MAX_PATHS]

    def paths_of_range(self, offset_bytes: int, length_bytes: int) -> list[bytes]:
        """Paths of everything that depends on a range of the filesystem's device, at most `MAX_PATHS`.

        Identical contents share blocks, and a metadata block holds many inodes, so there may be several.
        """
        self._build()
        found: dict[bytes, None] = {}
        for nid in self._inodes():
            if any(_overlap(extent, offset_bytes, length_bytes) for extent in self._extents(nid)):
                found.update(dict.fromkeys(self.paths(nid)))
                if len(found) >= MAX_PATHS:
                    break
        return list(found)[:MAX_PATHS]

    def _build(self) -> None:
        if self._built:
            return
        self._built = True
        root = self._filesystem.root_nid
        self._directories[root] = root
        pending = [root]
        while pending:
            directory = pending.pop()
            for entry in _entries(self._filesystem, directory):
                if stat.S_ISDIR(entry.file_type):
                    if entry.nid not in self._directories and len(self._directories) < MAX_DIRECTORIES:
                        self._directories[entry.nid] = directory
                        pending.append(entry.nid)
                elif len(self._nids) < MAX_NAMES:
                    self._nids.append(entry.nid)
                    self._parents.append(directory)

    def _parents_of(self, nid: int) -> Iterator[int]:
        """The directories a file has names in, each once."""
        seen = set()
        at = -1
        for _ in range(self._nids.count(nid)):
            at = self._nids.index(nid, at + 1)
            if self._parents[at] not in seen:
                seen.add(self._parents[at])
                yield self._parents[at]

    def _join(self, parent: int, nid: int) -> list[bytes]:
        """Paths of the names that `nid` has in one directory."""
        below: list[bytes] = []
        directory = parent
        while directory != self._filesystem.root_nid:
            above = self._directories[directory]
            names = _names(self._filesystem, above, directory)
            if not names or len(below) > _MAX_DEPTH:
                return []
            below.append(names[0])
            directory = above
        prefix = b"".join(b"/" + name for name in reversed(below))
        return [prefix + b"/" + name for name in _names(self._filesystem, parent, nid)]

    def _inodes(self) -> Iterator[int]:
        yield from self._directories
        seen: set[int] = set()
        for nid in self._nids:
            if nid not in seen:
                seen.add(nid)
                yield nid

    def _extents(self, nid: int) -> list[Extent]:
        try:
            return self._filesystem.extents(nid)
        except ImageError:  # its own block is the bad one: where it starts is known without reading it
            try:
                return [self._filesystem.inode_extent(nid)]
            except ImageError:
                return []


def _overlap(extent: Extent, offset: int, length: int) -> bool:
    return extent.offset_bytes < offset + length and offset < extent.offset_bytes + extent.length_bytes


def _entries(filesystem: ReadOnlyFilesystem, directory: int) -> Iterator[DirEntry]:
    """The entries of a directory but `.` and `..`, as far as they can be read."""
    try:
        for entry in filesystem.readdir(directory):
            if entry.name not in {b".", b".."}:
                yield entry
    except (ImageError, NotADirectoryError):
        return


def _names(filesystem: ReadOnlyFilesystem, directory: int, nid: int) -> list[bytes]:
    return [entry.name for entry in _entries(filesystem, directory) if entry.nid == nid]
