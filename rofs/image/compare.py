# SPDX-License-Identifier: Apache-2.0
"""Compares a filesystem with the source tree it was written from: every name, attribute and byte.

The last step before an image is signed: whatever went wrong, in the writer, the disk or the source,
shows here. Does not write and does not know how the filesystem is stored.
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from rofs.errors import ImageError, printable
from rofs.image.lookup import contents
from rofs.pieces import first_difference
from rofs.tree import Inode, Source
from rofs.vfs import ReadOnlyFilesystem


def compare_with_source(
    source: Source,
    filesystem: ReadOnlyFilesystem,
    *,
    root_xattrs: tuple[tuple[bytes, bytes], ...],
    progress: Callable[[int], None] = lambda _: None,
) -> None:
    """Read everything back.

    Args:
        source: What was written; its contents are read once more.
        filesystem: What came of it.
        root_xattrs: What the root directory must have in place of its own.
        progress: Called with the number of content bytes just compared.

    Raises:
        ImageError: The first difference, with path, expected and found.
        InputError: The source changed meanwhile.
    """
    _Comparison(source, filesystem, root_xattrs, progress).run()


class _Comparison:
    def __init__(
        self,
        source: Source,
        filesystem: ReadOnlyFilesystem,
        root_xattrs: tuple[tuple[bytes, bytes], ...],
        progress: Callable[[int], None],
    ) -> None:
        self._source = source
        self._filesystem = filesystem
        self._root_xattrs = root_xattrs
        self._progress = progress
        self._nids: dict[int, int] = {}  # id() of a source inode to the nid that it has become
        self._owners: dict[int, int] = {}  # and back: two inodes must not share one

    def run(self) -> None:
        stack = [(self._source.tree.root, self._filesystem.root_nid)]
        while stack:
            inode, nid = stack.pop()
            first_name = id(inode) not in self._nids
            known = self._nids.setdefault(id(inode), nid)
            self._expect(inode, "inode of a hard link", known, nid)
            if self._owners.setdefault(nid, id(inode)) != id(inode):
                self._expect(inode, "inode of its own", "one", f"nid {nid} of another file")
            if first_name:
                self._compare_inode(inode, nid)
            if inode.is_directory:
                stack.extend(self._compare_names(inode, nid))

    def _compare_names(self, directory: Inode, nid: int) -> list[tuple[Inode, int]]:
        found: dict[bytes, int] = {}
        types: dict[bytes, int] = {}
        for entry in self._filesystem.readdir(nid):
            if entry.name in found:
                self._expect(directory, "entries", "each once", f"{printable(entry.name)} twice")
            found[entry.name], types[entry.name] = entry.nid, entry.file_type
        parent = directory.parent if directory.parent is not None else directory
        self._expect(directory, "entry .", self._nids[id(directory)], found.pop(b".", None))
        self._expect(directory, "entry ..", self._nids[id(parent)], found.pop(b"..", None))
        missing, extra = directory.children.keys() - found.keys(), found.keys() - directory.children.keys()
        self._expect(directory, "names only on one side", ([], []), (sorted(missing)[:5], sorted(extra)[:5]))
        for name, child_nid in found.items():
            self._expect(directory, f"lookup of {printable(name)}", child_nid, self._filesystem.lookup(nid, name))
            file_type = stat.S_IFMT(directory.children[name].mode)
            self._expect(directory, f"file type of {printable(name)}", file_type, types[name])
        return [(child, found[name]) for name, child in directory.children.items()]

    def _compare_inode(self, inode: Inode, nid: int) -> None:
        status = self._filesystem.stat(nid)
        for what, expected, got in (
            ("mode", inode.mode, status.mode),
            ("uid", inode.uid, status.uid),
            ("gid", inode.gid, status.gid),
            ("mtime", inode.mtime_ns, status.mtime_ns),
            ("link count", inode.nlink, status.nlink),
            ("device number", inode.rdev, status.rdev),
            ("size", status.size if inode.is_directory else inode.size, status.size),
        ):
            self._expect(inode, what, expected, got)
        xattrs = self._root_xattrs if inode is self._source.tree.root else inode.xattrs
        stored = {name: self._filesystem.getxattr(nid, name) for name in self._filesystem.listxattr(nid)}
        self._expect(inode, "xattrs", dict(xattrs), stored)
        if inode.is_regular:
            self._compare_content(inode, nid)
        elif stat.S_ISLNK(inode.mode):
            self._expect(inode, "link target", inode.target, self._filesystem.readlink(nid))

    def _compare_content(self, inode: Inode, nid: int) -> None:
        expected, found = self._source.contents(inode), contents(self._filesystem, nid)
        different = first_difference(expected, found, inode.size, self._progress)
        if different is not None:
            offset, length = different
            self._expect(inode, "content", "the source's", f"other bytes within {length} bytes at {offset}")

    @staticmethod
    def _expect(inode: Inode, what: str, expected: object, found: object) -> None:
        if expected != found:
            raise ImageError(
                f"the new image does not read back as its source at {printable(inode.path())}: "
                f"{what} expected {expected!r}, found {found!r}; nothing was signed"
            )
