# SPDX-License-Identifier: Apache-2.0
"""A tar archive as the source of an image: owners, devices and xattrs are the archive's, so no root is needed.

This module opens the archive and gives contents; it knows neither compression (`spool`) nor the format
(`tar_reader`), nor what members make of a tree (`tar_tree`).
"""

from __future__ import annotations

import itertools
import os
import stat
import weakref
from array import array
from collections.abc import Callable, Iterator

from rofs.errors import InputError, printable
from rofs.pieces import first_difference
from rofs.source import tar_format as fmt
from rofs.source.ranges import read_range
from rofs.source.spool import Compression, blocks_of, compression_of, decompressed, spool
from rofs.source.tar_reader import TarReader
from rofs.source.tar_tree import StoredContent, TreeBuilder
from rofs.tree import Inode, Tree

Progress = Callable[[int], Callable[[int], None]]


def silent(_: int) -> Callable[[int], None]:
    """Tell nobody; a `Progress`."""
    return lambda _: None


class TarSource:
    """The tree of one tar archive, read once when it is made.

    A plain archive in a file is read in place; what is compressed or comes through a pipe is kept in a
    temporary file as long as the source lives.

    Args:
        archive: A path, or a descriptor, which is read from where it stands and not closed.
        progress: Called when the archive must be put into a temporary file first, with its length in bytes
            or 0 for a pipe; gives what is to be called with the number of bytes just read.

    Raises:
        InputError: It cannot be read, is no tar archive, is damaged or not whole, or has what cannot be
            kept; names the member.
        HostError: There is no space for the temporary file.
    """

    def __init__(self, archive: str | bytes | int, *, progress: Progress = silent) -> None:
        self._shown = _shown(archive)
        self._fd = _open(archive, self._shown)
        self._closing = weakref.finalize(self, os.close, self._fd)
        try:
            start = self._make_seekable(progress)
            self._status = _unchanging(self._fd)
            self.tree = Tree(self._scan(start))
        except BaseException:
            self._closing()
            raise

    def close(self) -> None:
        """Give back the temporary file; there are no contents afterwards. May be called again."""
        self._closing()

    def contents(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        """The content of a regular file without its holes; see `tree.Source.contents`."""
        content = inode.source_key
        assert isinstance(content, StoredContent)
        return self._contents(content)

    def _contents(self, content: StoredContent) -> Iterator[tuple[int, bytes]]:
        self._check_unchanged()
        extents = content.extents if content.extents is not None else array("q", (0, content.stored_bytes))
        offset = content.offset
        for index in range(0, len(extents), 2):
            start, length = extents[index], extents[index + 1]
            if length:
                for at, data in read_range(self._fd, offset, offset + length, self._shown, self._check_unchanged):
                    yield at - offset + start, data
            offset += length

    def _check_unchanged(self) -> None:
        if _unchanging(self._fd) != self._status:
            raise InputError(
                f"tar archive {self._shown} changed during the build; build from one that nothing writes to"
            )

    def _scan(self, start: int) -> Inode:
        builder = TreeBuilder(self._shown)
        empty = True
        for member in TarReader(self._fd, start, self._shown).members():
            builder.add(member)
            empty = False
        if empty:
            raise InputError(f"tar archive {self._shown} has no members")
        root = builder.finish()
        for path, inode, content in builder.repeated:
            self._check_repeated(path, inode, content)
        return root

    def _check_repeated(self, path: bytes, inode: Inode, content: StoredContent) -> None:
        """See that what a hard link repeats is the content of its file: one inode cannot have two."""
        size = content.stored_bytes
        if inode.size != size or first_difference(self._contents(content), self.contents(inode), size):
            raise InputError(
                f"tar archive {self._shown}: member {printable(path)}: it is a hard link that comes with another "
                "content than its file has; make the archive without contents of links"
            )

    def _make_seekable(self, progress: Progress) -> int:
        """Have a plain archive in `_fd` that can be read anywhere; returns where it begins."""
        in_place = stat.S_ISREG(os.fstat(self._fd).st_mode)
        start = os.lseek(self._fd, 0, os.SEEK_CUR) if in_place else 0
        blocks = blocks_of(self._fd, self._shown)
        head = _head(blocks)
        kind = self._compression(head)
        if kind is None and in_place:
            return start
        total = os.fstat(self._fd).st_size - start if in_place else 0
        stream = _counted(itertools.chain((head,), blocks), progress(total))
        kept = spool(decompressed(stream, kind, self._shown) if kind else stream, self._shown)
        try:
            os.dup2(kept, self._fd, inheritable=False)
        finally:
            os.close(kept)
        return 0

    def _compression(self, head: bytes) -> Compression | None:
        if not head:
            raise InputError(f"source {self._shown} is empty; expected a tar archive")
        block = head[: fmt.BLOCK_BYTES]
        if fmt.is_header(block) or not block.strip(b"\0"):
            return None
        kind = compression_of(head)
        if kind is None:
            raise InputError(
                f"source {self._shown} is neither a directory nor a tar archive; it begins with {head[:16]!r}"
            )
        return kind


def _shown(archive: str | bytes | int) -> str:
    if isinstance(archive, int):
        return "on standard input" if archive == 0 else f"on descriptor {archive}"
    return printable(archive)


def _open(archive: str | bytes | int, shown: str) -> int:
    try:
        if isinstance(archive, int):
            return os.dup(archive)
        return os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"cannot read source {shown}: {os.strerror(error.errno or 0)}") from error


def _head(blocks: Iterator[bytes]) -> bytes:
    """The beginning of a stream, a block at least if it has one."""
    head = b""
    while len(head) < fmt.BLOCK_BYTES and (more := next(blocks, b"")):
        head += more
    return head


def _counted(blocks: Iterator[bytes], advance: Callable[[int], None]) -> Iterator[bytes]:
    for block in blocks:
        advance(len(block))
        yield block


def _unchanging(fd: int) -> tuple[int, int]:
    """What a write to the file changes; its name may go, as it is not opened again."""
    status = os.fstat(fd)
    return status.st_size, status.st_mtime_ns
