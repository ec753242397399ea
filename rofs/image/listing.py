# SPDX-License-Identifier: Apache-2.0
"""Lists what an image holds, as ls(1) and find(1) do; goes on after what cannot be read.

Never follows a symbolic link, except on the way to the path that was asked for. Knows nothing of how a
list is shown.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from rofs.errors import ImageError
from rofs.image.lookup import Found, OnceOnly, at, children, find
from rofs.vfs import DirEntry, ReadOnlyFilesystem, Stat


@dataclass(frozen=True, slots=True)
class Listed:
    """One line of a list.

    Attributes:
        path: From the root of the image, beginning with `/`.
        status: Attributes; None when the inode cannot be read.
        target: Of a symbolic link, else None.
        xattrs: Extended attributes by name.
        error: Why something of it is missing: a message that names the path.
    """

    path: bytes
    status: Stat | None
    target: bytes | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    error: ImageError | None = None


def list_path(filesystem: ReadOnlyFilesystem, path: bytes, *, recursive: bool) -> Iterator[Listed]:
    """What a path in an image is, or, for a directory, what is in it.

    Args:
        filesystem: Of the image.
        path: A symbolic link at its end is followed only when `/` comes behind it.
        recursive: Whether everything below is listed, depth first, a directory before what it holds.

    Yields:
        Entries in stored order. A directory that cannot be read to its end comes once more with the
        reason when it is recursed into or asked for itself.

    Raises:
        InputError: There is no such path.
        ImageError: The way to it is malformed or corrupt.
    """
    found = find(filesystem, path, follow=False)
    with at(found.path):
        directory = stat.S_ISDIR(filesystem.stat(found.nid).mode)
    if not directory:
        yield _listed(filesystem, found.path, found.nid)
        return
    yield from _below(filesystem, found, recursive=recursive)


def _below(filesystem: ReadOnlyFilesystem, top: Found, *, recursive: bool) -> Iterator[Listed]:
    once = OnceOnly()
    once.enter(top.nid)
    stack = [(top.path, children(filesystem, top.nid))]
    while stack:
        directory, entries = stack[-1]
        entry = _next(directory, entries)
        if not isinstance(entry, DirEntry):
            stack.pop()
            if entry is not None:
                yield Listed(directory, None, error=entry)
            continue
        path = directory.rstrip(b"/") + b"/" + entry.name
        listed = _listed(filesystem, path, entry.nid)
        yield listed
        if recursive and listed.status is not None and stat.S_ISDIR(listed.status.mode):
            try:
                with at(path):
                    once.enter(entry.nid)
                stack.append((path, children(filesystem, entry.nid)))
            except ImageError as error:
                yield Listed(path, None, error=error)


def _next(directory: bytes, entries: Iterator[DirEntry]) -> DirEntry | ImageError | None:
    try:
        with at(directory):
            return next(entries, None)
    except ImageError as error:
        return error


def _listed(filesystem: ReadOnlyFilesystem, path: bytes, nid: int) -> Listed:
    status = target = None
    try:
        with at(path):
            status = filesystem.stat(nid)
            if stat.S_ISLNK(status.mode):
                target = filesystem.readlink(nid)
            xattrs = [(name, filesystem.getxattr(nid, name) or b"") for name in filesystem.listxattr(nid)]
    except ImageError as error:
        return Listed(path, status, target, error=error)
    return Listed(path, status, target, tuple(xattrs))
