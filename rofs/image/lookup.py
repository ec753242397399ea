# SPDX-License-Identifier: Apache-2.0
"""Finding one's way inside an image: a path to an inode, a directory to what is below it, a file to its bytes.

Symbolic links are followed inside of the image only, as if it were the root of the system. What a
hostile image can make endless is bounded here. Does not read the attributes of anything for its caller,
and writes nothing.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rofs.errors import FormatError, ImageError, InputError, printable
from rofs.vfs import DirEntry, ReadOnlyFilesystem

MAX_SYMLINKS = 40  # path_resolution(7)
_CHUNK_BYTES = 1 << 20
# No verity data block is smaller: reading by these finds every good byte before a bad block.
_SMALLEST_BLOCK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Found:
    """Where a path leads.

    Attributes:
        nid: The inode.
        names: Its path without symbolic links, `.` and `..`; empty for the root.
    """

    nid: int
    names: tuple[bytes, ...]

    @property
    def path(self) -> bytes:
        """The same as one path, beginning with `/`."""
        return b"/" + b"/".join(self.names)


def find(filesystem: ReadOnlyFilesystem, path: bytes, *, follow: bool) -> Found:
    """Resolve a path inside of an image, as path_resolution(7) has it for a process whose root the image is.

    Args:
        filesystem: Of the image.
        path: Of any length; a leading `/` makes no difference.
        follow: Whether a symbolic link at its end is followed; one that `/` comes behind always is.

    Returns:
        The inode and where it really stands.

    Raises:
        InputError: No such name, a name below what is no directory, or too many symbolic links.
        ImageError: A directory or a symbolic link on the way is malformed or corrupt.
    """
    if not path:
        raise InputError("an empty path names nothing in the image")
    way: list[tuple[bytes, int]] = []  # names walked down and their inodes: `..` never asks the image
    # A name at the end gets a dot behind it when there is a slash, which asks for a directory.
    pending = [name or b"." for name in path.split(b"/")][::-1]
    links = 0
    while pending:
        name = pending.pop()
        directory = way[-1][1] if way else filesystem.root_nid
        here = Found(directory, tuple(name for name, _ in way))
        with at(here.path):
            mode = filesystem.stat(directory).mode
        if not stat.S_ISDIR(mode):
            raise InputError(f"{printable(path)}: {printable(here.path)} in the image is not a directory")
        if name == b"..":
            way[-1:] = []
        if name in {b".", b".."}:
            continue
        nid = _lookup(filesystem, here, name, path)
        target = _target(filesystem, nid, Found(nid, (*here.names, name))) if follow or pending else None
        if target is None:
            way.append((name, nid))
            continue
        links += 1
        if links > MAX_SYMLINKS:
            raise InputError(f"{printable(path)}: more than {MAX_SYMLINKS} symbolic links in the image on the way")
        if target.startswith(b"/"):
            way.clear()
        pending += [part or b"." for part in target.split(b"/")][::-1]
    return Found(way[-1][1] if way else filesystem.root_nid, tuple(name for name, _ in way))


def _lookup(filesystem: ReadOnlyFilesystem, directory: Found, name: bytes, asked: bytes) -> int:
    with at(directory.path):
        nid = filesystem.lookup(directory.nid, name)
    if nid is None:
        missing = Found(0, (*directory.names, name)).path
        behind = "" if missing.strip(b"/") == asked.strip(b"/") else f" ({printable(missing)})"
        raise InputError(f"{printable(asked)}: no such file in the image{behind}")
    return nid


def _target(filesystem: ReadOnlyFilesystem, nid: int, found: Found) -> bytes | None:
    """What a symbolic link says, None for anything else."""
    with at(found.path):
        return filesystem.readlink(nid) if stat.S_ISLNK(filesystem.stat(nid).mode) else None


def children(filesystem: ReadOnlyFilesystem, directory_nid: int) -> Iterator[DirEntry]:
    """The entries of a directory in stored order, without `.` and `..` wherever they stand.

    Raises:
        ImageError: A part of the directory is malformed or corrupt; what comes before it was yielded.
        NotADirectoryError: It is none.
    """
    for entry in filesystem.readdir(directory_nid):
        if entry.name not in {b".", b".."}:
            yield entry


class OnceOnly:
    """Sees to it that a directory is entered once: a hostile one contains itself, or stands in a million places."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def enter(self, nid: int) -> None:
        """Note a directory.

        Raises:
            FormatError: It was there before.
        """
        if nid in self._seen:
            raise FormatError(f"EROFS: directory {nid} stands in a second place, or contains itself")
        self._seen.add(nid)


def contents(filesystem: ReadOnlyFilesystem, nid: int) -> Iterator[tuple[int, bytes]]:
    """The verified content of a regular file in ascending pieces of at most 1 MiB.

    Args:
        filesystem: Of the image.
        nid: A regular file.

    Yields:
        Offset in bytes, and what stands there. What lies between pieces, and behind the last one up to
        the size of the file, is a hole and reads as zeros.

    Raises:
        ImageError: A block is malformed, corrupt or unreadable; every good byte before it was yielded.
    """
    for extent in filesystem.extents(nid):
        if extent.file_offset_bytes is None:
            continue
        end = extent.file_offset_bytes + extent.length_bytes
        for offset in range(extent.file_offset_bytes, end, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, end - offset)
            try:
                data = filesystem.read(nid, offset, length)
            except ImageError:
                yield from _good_start(filesystem, nid, offset, length)
                raise
            yield offset, data


def _good_start(filesystem: ReadOnlyFilesystem, nid: int, offset: int, length: int) -> Iterator[tuple[int, bytes]]:
    for start in range(offset, offset + length, _SMALLEST_BLOCK_BYTES):
        try:
            data = filesystem.read(nid, start, min(_SMALLEST_BLOCK_BYTES, offset + length - start))
        except ImageError:
            return
        yield start, data


@contextlib.contextmanager
def at(path: bytes | Callable[[], bytes]) -> Iterator[None]:
    """Let errors about the image say at which path of it, or at what gives it; they stay what they are."""
    try:
        yield
    except ImageError as error:
        error.args = (f"{printable(path if isinstance(path, bytes) else path())}: {error}",)
        raise
