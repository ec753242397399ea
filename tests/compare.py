# SPDX-License-Identifier: Apache-2.0
"""Compares two directory trees the way a program would see them: lstat, xattrs, targets, bytes, entry by entry."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

IDENTITY_XATTR = "user.rofs.image"
_FIELDS = ("st_mode", "st_uid", "st_gid", "st_mtime_ns", "st_rdev")
_MOST = 20


def differences(expected: Path, found: Path) -> list[str]:
    """What differs, at most 20 lines; empty when the trees are equal.

    The identity xattr of the root is left out, st_nlink of directories is not a property of every
    filesystem, and inode numbers count only as the structure of hard links.
    """
    return _Walk().run(os.fsencode(expected), os.fsencode(found))


class _Walk:
    def __init__(self) -> None:
        self._found: list[str] = []
        self._links: tuple[dict[tuple[int, int], str], dict[tuple[int, int], str]] = ({}, {})

    def run(self, a_root: bytes, b_root: bytes) -> list[str]:
        """Walk with one descriptor per tree: paths may be longer than PATH_MAX, directories as many as there are."""
        self._attributes("/", os.stat(a_root), os.stat(b_root))
        here = (os.open(a_root, os.O_RDONLY), os.open(b_root, os.O_RDONLY))
        try:
            self._expect("/", "xattrs", _xattrs(here[0], b"."), _xattrs(here[1], b"."))
            levels = [self._directory("", *here)]
            while levels and len(self._found) < _MOST:
                if levels[-1]:
                    path, name = levels[-1].pop()
                    here = _move(here, name)
                    levels.append(self._directory(path, *here))
                else:
                    levels.pop()
                    here = _move(here, b"..") if levels else here
        finally:
            for fd in here:
                os.close(fd)
        return self._found

    def _directory(self, prefix: str, a: int, b: int) -> list[tuple[str, bytes]]:
        """Compare what is in a directory; what is a directory itself is returned."""
        a_names, b_entries = set(os.listdir(_proc(a))), list(os.scandir(_proc(b)))
        b_names = [entry.name for entry in b_entries]
        self._expect(prefix, "names", sorted(a_names), sorted(b_names))
        below = []
        for entry in b_entries:
            if entry.name in a_names:
                path = f"{prefix}/{os.fsdecode(entry.name)!r}"
                x, y = os.lstat(entry.name, dir_fd=a), os.lstat(entry.name, dir_fd=b)
                self._expect(path, "d_ino", y.st_ino, entry.inode())
                self._entry(path, entry.name, (a, x), (b, y))
                if stat.S_ISDIR(x.st_mode) and stat.S_ISDIR(y.st_mode):
                    below.append((path, entry.name))
        return below

    def _entry(self, path: str, name: bytes, a: tuple[int, os.stat_result], b: tuple[int, os.stat_result]) -> None:
        (a_fd, x), (b_fd, y) = a, b
        self._attributes(path, x, y)
        self._expect(path, "xattrs", _xattrs(a_fd, name), _xattrs(b_fd, name))
        if stat.S_ISDIR(x.st_mode):
            return
        self._expect(path, "st_nlink", x.st_nlink, y.st_nlink)
        self._expect(path, "st_size", x.st_size, y.st_size)
        first = [seen.setdefault((s.st_dev, s.st_ino), path) for seen, s in zip(self._links, (x, y), strict=True)]
        self._expect(path, "hard links", first[0], first[1])
        if stat.S_ISREG(x.st_mode) and stat.S_ISREG(y.st_mode):
            self._expect(path, "content", _digest(name, a_fd), _digest(name, b_fd))
            self._expect(path, "has blocks", bool(x.st_size), bool(y.st_blocks))
        elif stat.S_ISLNK(x.st_mode):
            self._expect(path, "target", os.readlink(name, dir_fd=a_fd), os.readlink(name, dir_fd=b_fd))

    def _attributes(self, path: str, x: os.stat_result, y: os.stat_result) -> None:
        for field in _FIELDS:
            self._expect(path, field, getattr(x, field), getattr(y, field))

    def _expect(self, path: str, what: str, expected: object, found: object) -> None:
        if expected != found and len(self._found) < _MOST:
            self._found.append(f"{path}: {what}: expected {expected!r}, found {found!r}")


def _proc(fd: int) -> bytes:
    return b"/proc/self/fd/%d" % fd


def _move(here: tuple[int, int], name: bytes) -> tuple[int, int]:
    """Go into a directory, or back with `..`, in both trees at once."""
    a = _open(name, here[0])
    try:
        b = _open(name, here[1])
    except OSError:
        os.close(a)
        raise
    for fd in here:
        os.close(fd)
    return a, b


def _open(name: bytes, directory: int) -> int:
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)


def _xattrs(directory: int, name: bytes) -> dict[str, bytes]:
    path = _proc(directory) + b"/" + name
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return {}  # so a mount of an image that has none answers
    return {n: os.getxattr(path, n, follow_symlinks=False) for n in names if n != IDENTITY_XATTR}


def _digest(name: bytes, directory: int) -> str:
    with os.fdopen(_open(name, directory), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
