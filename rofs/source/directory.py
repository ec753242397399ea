# SPDX-License-Identifier: Apache-2.0
"""A directory as the source of an image: everything lstat(2) and the xattr calls show.

Symbolic links are never followed; other filesystems mounted below are taken in. Contents are opened
when they are asked for, not kept. This module does not write anything and does not know the format.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from rofs.errors import InputError, RofsError, from_os_error, printable
from rofs.source.ranges import read_range
from rofs.source.xattrs import can_be_kept, is_of_the_storage
from rofs.tree import Inode, Tree
from rofs.vfs import PATH_MAX_BYTES


class DirectorySource:
    """The tree below one directory, read once when it is made.

    Args:
        path: A directory; it becomes the root of the tree.

    Raises:
        InputError: Not a directory, or something below it cannot be read or kept; names the path.
    """

    def __init__(self, path: str | bytes) -> None:
        self._path = os.path.abspath(os.fsencode(path))
        self._links: dict[tuple[int, int], Inode] = {}
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise from_os_error(error, "cannot read source", path) from error
        if not stat.S_ISDIR(status.st_mode):
            raise InputError(f"source {printable(path)} is not a directory")
        try:
            with _Directory(self._path) as top:
                root = self._inode(top, b".", status)
        except OSError as error:
            raise _unreadable(error, printable(self._path)) from error
        self._scan(root)
        self.tree = Tree(root)

    def contents(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        """The content of a regular file without its holes; see `tree.Source.contents`."""
        shown = self._shown(inode)
        try:
            # Non-blocking: a FIFO may have taken the file's place.
            fd = _open_below(self._path, inode.path(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise _unreadable(error, shown) from error
        try:
            _check_unchanged(fd, inode, shown)
            yield from read_range(fd, 0, inode.size, shown, lambda: _check_unchanged(fd, inode, shown))
        finally:
            os.close(fd)

    def _scan(self, root: Inode) -> None:
        stack = [root]
        while stack:
            directory = stack.pop()
            self._add_children(directory)
            stack.extend(c for c in directory.children.values() if c.is_directory)

    def _add_children(self, parent: Inode) -> None:
        path = _join(self._path, parent.path())
        name = b""
        try:
            with _Directory(path) as directory:
                for name in os.listdir(directory.proc_path):
                    status = os.lstat(name, dir_fd=directory.fd)
                    parent.add(name, self._inode(directory, name, status))
        except OSError as error:
            raise _unreadable(error, printable(os.path.join(path, name))) from error

    def _inode(self, directory: _Directory, name: bytes, status: os.stat_result) -> Inode:
        linked = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
        key = (status.st_dev, status.st_ino)
        if linked and key in self._links:
            return self._links[key]
        inode = Inode(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            xattrs=_xattrs(directory, name),
            source_key=(status.st_dev, status.st_ino, status.st_ctime_ns),
        )
        if inode.is_regular:
            inode.size = status.st_size
        elif stat.S_ISLNK(status.st_mode):
            inode.target = os.readlink(name, dir_fd=directory.fd)
            inode.size = len(inode.target)
        elif stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
            inode.rdev = status.st_rdev
        if linked:
            self._links[key] = inode
        return inode

    def _shown(self, inode: Inode) -> str:
        return printable(_join(self._path, inode.path()))


class _Directory:
    """An open directory, and a path to it that is short however deep it lies."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.fd = _open_below(b"/", path, os.O_RDONLY | os.O_DIRECTORY)
        self.proc_path = b"/proc/self/fd/%d" % self.fd

    def __enter__(self) -> _Directory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _join(top: bytes, path: bytes) -> bytes:
    return top.rstrip(b"/") + path if path != b"/" else top


def _open_below(top: bytes, path: bytes, flags: int) -> int:
    """Open a path of any length: in one call when the kernel takes it, else piece by piece."""
    whole = _join(top, path)
    flags |= os.O_CLOEXEC
    if len(whole) < PATH_MAX_BYTES:
        return os.open(whole, flags)
    names = whole.split(b"/")[1:]
    fd = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names[:-1]:
        try:
            below = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    try:
        return os.open(names[-1], flags, dir_fd=fd)
    finally:
        os.close(fd)


def _xattrs(directory: _Directory, name: bytes) -> tuple[tuple[bytes, bytes], ...]:
    path = directory.proc_path + b"/" + name
    try:
        names = [os.fsencode(n) for n in os.listxattr(path, follow_symlinks=False)]
        kept = sorted(name for name in names if not is_of_the_storage(name))
        pairs = [(name, os.getxattr(path, name, follow_symlinks=False)) for name in kept]
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return ()
        raise
    for xattr, _ in pairs:
        if not can_be_kept(xattr):
            raise InputError(
                f"{printable(os.path.join(directory.path, name))}: xattr {printable(xattr)} cannot be kept in an "
                "image; remove it from the source or leave the file out"
            )
    return tuple(pairs)


def _check_unchanged(fd: int, inode: Inode, shown: str) -> None:
    status = os.fstat(fd)
    now = (status.st_dev, status.st_ino, status.st_ctime_ns)
    if now != inode.source_key or status.st_size != inode.size:
        raise InputError(f"source file {shown} changed during the build; build from a tree that nothing writes to")


def _unreadable(error: OSError, shown: str) -> RofsError:
    return InputError(f"cannot read source {shown}: {os.strerror(error.errno or 0)}")
