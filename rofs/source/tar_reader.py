# SPDX-License-Identifier: Apache-2.0
"""The members of an uncompressed tar archive, one after another, with everything that is said about each.

Extended headers, long names and sparse maps are put together here; every length is checked against the
file before anything is read or allocated. The archive must be whole: only its end mark, with nothing
but zeros behind, ends it. Contents are not read, and what members mean to a tree is not known here.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from rofs.errors import InputError, printable
from rofs.source import tar_format as fmt
from rofs.source.ranges import read_range
from rofs.source.tar_format import BLOCK_BYTES, Header

# All xattrs of an inode of an image fit into 256 KiB; bsdtar writes each twice, and sparse maps come on top.
_MAX_RECORDS_BYTES = 8 << 20
_MAX_GLOBALS_BYTES = 64 << 10
_MAX_NAME_BYTES = 1 << 20  # 4000 components of the longest names
_WINDOW_BYTES = 32 << 10  # headers of small files stand close together
_MAX_ID = (1 << 32) - 2  # the last one means "no user"

_UNSUPPORTED = {
    b"M": "the continuation of a file from another volume",
    b"N": "an old GNU list of long names",
    b"A": "a Solaris ACL",
    b"X": "a Solaris extended header",
}


@dataclass(slots=True)
class Member:
    """One member, after extended headers have had their say.

    Attributes:
        path: As the archive has it.
        typeflag: REGULAR, HARD_LINK, SYMLINK, CHAR, BLOCK, DIRECTORY or FIFO of `tar_format`.
        mtime_ns: Nanoseconds since the epoch.
        target: Of a link.
        records: Of its extended header and the global ones.
        size: Bytes of the file.
        offset: Where its content stands in the archive, in bytes.
        stored_bytes: How much stands there: less than `size` for a sparse file.
        extents: What of a sparse file is stored: offset, length, and so on; None for a plain one.
    """

    path: bytes
    typeflag: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    target: bytes
    devmajor: int
    devminor: int
    records: dict[bytes, bytes]
    size: int = 0
    offset: int = 0
    stored_bytes: int = 0
    extents: array[int] | None = None


@dataclass(slots=True)
class _Said:
    """What was said about the member to come."""

    records: list[tuple[bytes, bytes]] = field(default_factory=list)
    name: bytes | None = None
    link: bytes | None = None


class TarReader:
    """Reads an archive from a file that can be read at any offset.

    Args:
        fd: The file; it is not closed.
        start: Offset in bytes where the archive begins.
        shown: What to call it in errors.
    """

    def __init__(self, fd: int, start: int, shown: str) -> None:
        self._fd = fd
        self._shown = shown
        self._at = start
        self._end = os.fstat(fd).st_size
        self._window, self._window_at = b"", start
        self._globals: dict[bytes, bytes] = {}
        self._extents = 0  # of all members so far
        self._archives: set[int] = set()  # sizes of contents so far that are archives themselves
        self._where: tuple[str, bytes] | None = None  # at or after which member we are, for errors

    def members(self) -> Iterator[Member]:
        """All members in the archive's order.

        Raises:
            InputError: The archive is damaged, not whole or not understood; names the member.
        """
        said: _Said | None = None
        while (header := self._header()) is not None:
            if header.typeflag in _SAY:
                said = said or _Said()
                _SAY[header.typeflag](self, header, said)
            elif header.typeflag == fmt.PAX_GLOBAL:
                self._add_globals(self._records(header))
            elif header.typeflag != fmt.GNU_LABEL:
                yield self._member(header, said or _Said())
                said = None
        if said is not None:
            raise self._error("an extended header has no member behind it")
        self._check_rest()

    def _add_globals(self, records: Iterable[tuple[bytes, bytes]]) -> None:
        """Every member repeats them, so they have to be few; git-archive(1) writes one, a comment."""
        self._globals |= records
        if sum(len(key) + len(value) for key, value in self._globals.items()) > _MAX_GLOBALS_BYTES:
            raise self._error(f"its global headers have more than {_MAX_GLOBALS_BYTES} bytes")

    # Reading

    def _header(self) -> Header | None:
        if self._at == self._end:
            raise self._error(f"the archive ends at byte {self._end} without an end mark; it is not whole")
        block = self._read(BLOCK_BYTES, "a header")
        if not block.strip(b"\0"):
            return None
        try:
            return fmt.parse_header(block)
        except ValueError as error:
            raise self._error(f"at byte {self._at - BLOCK_BYTES}: {error}; the archive is damaged") from error

    def _read(self, length: int, what: str) -> bytes:
        if self._at + length > self._end:
            raise self._error(f"the archive ends at byte {self._end}, within {what}; it is not whole")
        start = self._at - self._window_at
        if not 0 <= start <= len(self._window) - length:
            self._window_at, start = self._at, 0
            self._window = self._pread(max(length, _WINDOW_BYTES), self._at)
        data = self._window[start : start + length]
        if len(data) < length:
            raise self._error("the archive became shorter while it was read")
        self._at += length
        return data

    def _pread(self, length: int, offset: int) -> bytes:
        try:
            return os.pread(self._fd, length, offset)
        except OSError as error:
            raise InputError(f"cannot read source {self._shown}: {os.strerror(error.errno or 0)}") from error

    def _error(self, text: str) -> InputError:
        where = f" {self._where[0]} member {printable(self._where[1])}:" if self._where else ""
        return InputError(f"tar archive {self._shown}:{where} {text}")

    @contextlib.contextmanager
    def _wrong_values(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise self._error(str(error)) from error

    def _check_rest(self) -> None:
        """After the first block of zeros; the second one may be missing, as no member can hide there."""
        for at, data in read_range(self._fd, self._at, self._end, self._shown, lambda: None):
            other = len(data) - len(data.lstrip(b"\0"))
            if other < len(data):
                raise self._error(
                    f"byte {at + other}, behind the end mark, is not zero; the archive is damaged, or several "
                    "were put together: give each as a source of its own"
                )
        self._at = self._end

    # What is said before a member

    def _before(self, header: Header, limit: int) -> bytes:
        if not 0 <= header.size <= limit:
            raise self._error(f"an extended header has {header.size} bytes, expected at most {limit}")
        data = self._read(header.size, "an extended header")
        self._at += -header.size % BLOCK_BYTES
        return data

    def _records(self, header: Header) -> list[tuple[bytes, bytes]]:
        data = self._before(header, _MAX_RECORDS_BYTES)
        with self._wrong_values():
            return fmt.parse_records(data)

    def _say_records(self, header: Header, said: _Said) -> None:
        said.records += self._records(header)

    def _say_name(self, header: Header, said: _Said) -> None:
        said.name = self._before(header, _MAX_NAME_BYTES).rstrip(b"\0")

    def _say_link(self, header: Header, said: _Said) -> None:
        said.link = self._before(header, _MAX_NAME_BYTES).rstrip(b"\0")

    # The member

    def _member(self, header: Header, said: _Said) -> Member:
        records = {**self._globals, **dict(said.records)}
        path = records.get(b"GNU.sparse.name") or records.get(b"path") or said.name or header.name
        self._where = "at", path
        with self._wrong_values():
            member = _described(path, header, records, said.link)
            if header.typeflag in fmt.WITH_CONTENT:
                self._find_content(member, header, said)
            elif header.typeflag == fmt.HARD_LINK:
                self._find_repeated(member, header)
            elif header.typeflag not in fmt.WITHOUT_CONTENT:
                what = _UNSUPPORTED.get(header.typeflag, "which no rofs knows")
                raise ValueError(f"its type is {header.typeflag!r}, {what}; make the archive with --format=pax")
        self._where = "after", path
        return member

    def _find_content(self, member: Member, header: Header, said: _Said) -> None:
        records = member.records
        stored = _stored_bytes(header, records)
        if header.typeflag == fmt.GNU_SPARSE:
            member.extents, member.size = self._sparse_header(header)
        end = self._at + stored
        if end > self._end:
            raise ValueError(
                f"its content has {stored} bytes, but the archive ends after {max(0, self._end - self._at)} of them; "
                "it is not whole"
            )
        if header.typeflag != fmt.GNU_SPARSE:
            member.extents = self._sparse_records(records, said, end)
            text = records.get(b"GNU.sparse.realsize") or records.get(b"GNU.sparse.size")
            member.size = fmt.parse_decimal("real size", text) if text and member.extents is not None else stored
        member.offset, member.stored_bytes = self._at, end - self._at
        if member.size > fmt.MAX_FILE_BYTES:
            raise ValueError(f"its size is {member.size}, at most {fmt.MAX_FILE_BYTES} bytes fit into an image")
        if member.extents is not None:
            fmt.check_map(member.extents, stored_bytes=member.stored_bytes, size=member.size)
            self._extents += len(member.extents) // 2
            if self._extents > fmt.MAX_EXTENTS:
                raise ValueError(f"the sparse maps of the archive have more than {fmt.MAX_EXTENTS} pieces")
        if self._boundary(member.offset) == "header":
            self._archives |= {stored, member.size}
        self._at = end + -stored % BLOCK_BYTES
        _settle_type(member)

    def _find_repeated(self, member: Member, header: Header) -> None:
        """The content that a hard link has once more, as POSIX allows (pax, `-o linkdata`).

        Many programs leave the file's size there without any content, so what stands behind must tell.
        """
        stored = _stored_bytes(header, member.records)
        if not stored:
            return
        behind = self._at + stored + -stored % BLOCK_BYTES
        here, there = self._boundary(self._at), self._boundary(behind)
        if not here and not there:
            raise ValueError(
                f"it is a hard link of size {stored}, and a header is neither behind it nor behind a content of "
                "that length; the archive is damaged or not whole"
            )
        if here == "header" and there and stored in self._archives:
            raise ValueError(
                f"it is a hard link of size {stored}, perhaps to an archive, and it cannot be told whether that "
                "follows or the next member; make the archive without contents of links, as GNU tar does"
            )
        if there and (not here or (here, there) == ("end mark", "header")):
            if any(key.startswith(b"GNU.sparse.") for key in member.records):
                raise ValueError("it is a hard link with a sparse content, which is not supported")
            member.offset, member.stored_bytes = self._at, stored
            self._at = behind

    def _boundary(self, place: int) -> Literal["header", "end mark", ""]:
        """What between members stands somewhere."""
        start = place - self._window_at
        block = self._window[start : start + BLOCK_BYTES] if start >= 0 else b""
        if len(block) < BLOCK_BYTES <= self._end - place:
            block = self._pread(BLOCK_BYTES, place)
        if fmt.is_header(block):
            return "header"
        return "end mark" if len(block) == BLOCK_BYTES and not block.strip(b"\0") else ""

    def _sparse_header(self, header: Header) -> tuple[array[int], int]:
        if not header.gnu:
            raise ValueError("it is a sparse file as star writes them, which is not supported; expected GNU tar's")
        extents, size, more = fmt.header_map(header.block)
        while more:
            added, more = fmt.extension_map(self._read(BLOCK_BYTES, "a sparse map"))
            extents += added
            if len(extents) > 2 * fmt.MAX_EXTENTS:
                raise ValueError(f"its sparse map has more than {fmt.MAX_EXTENTS} pieces")
        return extents, size

    def _sparse_records(self, records: dict[bytes, bytes], said: _Said, end: int) -> array[int] | None:
        version = records.get(b"GNU.sparse.major", b"0"), records.get(b"GNU.sparse.minor", b"0")
        if version == (b"1", b"0"):
            return fmt.content_map(self._lines(end))
        if version[0] != b"0":
            raise ValueError(f"its sparse format is {version[0][:20]!r}.{version[1][:20]!r}, expected 0.0, 0.1 or 1.0")
        return fmt.records_map(said.records)

    def _lines(self, end: int) -> Iterator[bytes]:
        """Lines from here on, at most to `end`."""
        rest = b""
        while self._at < end:
            data = rest + self._read(min(BLOCK_BYTES, end - self._at), "a sparse map")
            *lines, rest = data.split(b"\n")
            yield from lines
            if len(rest) >= BLOCK_BYTES:  # no number is that long
                yield rest


_SAY: dict[bytes, Callable[[TarReader, Header, _Said], None]] = {
    fmt.PAX_MEMBER: TarReader._say_records,  # noqa: SLF001 - its own table
    fmt.GNU_LONG_NAME: TarReader._say_name,  # noqa: SLF001
    fmt.GNU_LONG_LINK: TarReader._say_link,  # noqa: SLF001
}


def _stored_bytes(header: Header, records: dict[bytes, bytes]) -> int:
    """How much content an archive says to hold of a member."""
    stored = fmt.parse_decimal("size", text) if (text := records.get(b"size")) else header.size
    if stored < 0:
        raise ValueError(f"its size is {stored}")
    return stored


def _described(path: bytes, header: Header, records: dict[bytes, bytes], link: bytes | None) -> Member:
    """All but the content."""
    text = records.get(b"mtime")

    def number(key: bytes, otherwise: int) -> int:
        value = records.get(key)
        return fmt.parse_decimal(key.decode(), value) if value else otherwise

    member = Member(
        path=path,
        typeflag=header.typeflag,
        mode=header.mode & 0o7777,
        uid=number(b"uid", header.uid),
        gid=number(b"gid", header.gid),
        mtime_ns=fmt.parse_time(text) if text else header.mtime * 10**9,
        target=records.get(b"linkpath") or link or header.linkname,
        devmajor=number(b"SCHILY.devmajor", header.devmajor),
        devminor=number(b"SCHILY.devminor", header.devminor),
        records=records,
    )
    for what, value in (("uid", member.uid), ("gid", member.gid)):
        if not 0 <= value <= _MAX_ID:
            raise ValueError(f"its {what} is {value}, expected 0 to {_MAX_ID}")
    if not -fmt.MAX_SECONDS <= member.mtime_ns // 10**9 <= fmt.MAX_SECONDS:
        raise ValueError(f"its time is {header.mtime} seconds, no time that a file can have")
    return member


def _settle_type(member: Member) -> None:
    """Of the types with content, which the member is to a tree."""
    if member.typeflag == fmt.GNU_DUMPDIR:
        member.typeflag = fmt.DIRECTORY
    elif member.path.endswith(b"/"):  # as old programs write directories
        if member.size:
            raise ValueError("it is a regular file with content, but its name ends in a slash")
        member.typeflag = fmt.DIRECTORY
    else:
        member.typeflag = fmt.REGULAR
