# SPDX-License-Identifier: Apache-2.0
"""A stream as a file that can be read at any offset: decompressed, and in an unlinked temporary file.

The compression is found by the first bytes, never by a name; memory is bounded whatever the stream
says. What is kept here needs no durability, and goes with its descriptor. What the bytes mean is not
known here.
"""

from __future__ import annotations

import bz2
import errno
import lzma
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rofs.errors import HostError, InputError, printable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_CHUNK_BYTES = 1 << 20
_HOLE_BYTES = 64 << 10  # zeros of this length, at multiples of it, become a hole
_ZEROS = bytes(_HOLE_BYTES)
_LZMA_MEMORY_BYTES = 1 << 30  # xz -9 needs 65 MiB
# What the libraries raise for bad data; bz2 has no error of its own.
_DAMAGED = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstd.ZstdError)
_PLACE = "/var/tmp"  # noqa: S108 - file-hierarchy(7): for what is large; the file there has no name


class _Decompressor(Protocol):
    """What bz2, lzma and zstd of the standard library have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib with the interface of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def _lzma() -> _Decompressor:
    return lzma.LZMADecompressor(memlimit=_LZMA_MEMORY_BYTES)


@dataclass(frozen=True, slots=True)
class Compression:
    """One kind of compression.

    Attributes:
        name: As its program is called.
        magics: The bytes with which its streams begin, any one of them.
        make: Makes a decompressor of one stream; None when it is only known by name.
    """

    name: str
    magics: tuple[bytes, ...]
    make: Callable[[], _Decompressor] | None


_SKIPPABLE = tuple(bytes([0x50 + number]) + b"\x2a\x4d\x18" for number in range(16))  # RFC 8878, 3.1.2
_COMPRESSIONS = (
    Compression("gzip", (b"\x1f\x8b",), _Gzip),
    Compression("bzip2", (b"BZh",), bz2.BZ2Decompressor),
    Compression("xz", (b"\xfd7zXZ\0",), _lzma),
    Compression("lzma", (b"\x5d\0\0",), _lzma),
    Compression("zstd", (b"\x28\xb5\x2f\xfd", *_SKIPPABLE), zstd.ZstdDecompressor),
    Compression("lzip", (b"LZIP",), None),
    Compression("lz4", (b"\x04\x22\x4d\x18",), None),
    Compression("lzop", (b"\x89LZO",), None),
    Compression("compress", (b"\x1f\x9d",), None),
    Compression("zip", (b"PK\x03\x04",), None),
)


def compression_of(head: bytes) -> Compression | None:
    """What a stream is compressed with that begins with these bytes; None for nothing that is known."""
    return next((kind for kind in _COMPRESSIONS if head.startswith(kind.magics)), None)


def blocks_of(fd: int, shown: str) -> Iterator[bytes]:
    """What can be read from a descriptor, from where it stands to its end, in pieces.

    Args:
        fd: The descriptor.
        shown: What to call it in errors.

    Raises:
        InputError: It cannot be read.
    """
    while data := _read(fd, shown):
        yield data


def _read(fd: int, shown: str) -> bytes:
    try:
        return os.read(fd, _CHUNK_BYTES)
    except OSError as error:
        raise InputError(f"cannot read source {shown}: {os.strerror(error.errno or 0)}") from error


def decompressed(blocks: Iterator[bytes], kind: Compression, shown: str) -> Iterator[bytes]:
    """The content of a compressed stream, or of several in a row with zeros between, in pieces.

    Args:
        blocks: The stream.
        kind: Its compression.
        shown: What to call it in errors.

    Raises:
        InputError: It is damaged, ends too early, has something else behind, or is of a kind that is not supported.
    """
    if kind.make is None:
        raise InputError(
            f"source {shown} is compressed by {kind.name}, which is not supported; decompress it and give the result, "
            "or `-` and a pipe"
        )
    reader = _Streams(kind.make)
    try:
        for block in blocks:
            yield from reader.feed(block)
    except _DAMAGED as error:
        raise InputError(f"source {shown}: its {kind.name} data is damaged: {error}") from error
    if reader.open:
        raise InputError(f"source {shown}: its {kind.name} data ends too early; it is not whole")


class _Streams:
    """Decompresses streams that follow one another.

    Attributes:
        open: Whether a stream has begun and not ended.
    """

    def __init__(self, make: Callable[[], _Decompressor]) -> None:
        self._make = make
        self._current = make()
        self.open = False

    def feed(self, block: bytes) -> Iterator[bytes]:
        """Take a piece; give what comes of it."""
        while block or not self._current.needs_input:
            if not self.open:
                block = block.lstrip(b"\0")  # padding, as tape drives and xz leave it
                if not block:
                    return
                self.open = True
            data = self._current.decompress(block, _CHUNK_BYTES)
            block = b""
            if data:
                yield data
            if self._current.eof:
                block = self._current.unused_data
                self._current = self._make()
                self.open = False


def spool(blocks: Iterator[bytes], shown: str) -> int:
    """Put a stream into a temporary file without a name.

    Args:
        blocks: The stream; zeros become holes.
        shown: What to call it in errors.

    Returns:
        The file's descriptor.

    Raises:
        HostError: There is no space for it; names the place and what chooses another.
        InputError: From the stream.
    """
    place = os.environ.get("TMPDIR") or (_PLACE if os.path.isdir(_PLACE) else tempfile.gettempdir())
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            fd = os.dup(file.fileno())
    except OSError as error:
        raise _cannot_write(error, place, shown) from error
    try:
        length = 0
        for block in blocks:
            try:
                _write(fd, block, length)
                length += len(block)
                os.ftruncate(fd, length)
            except OSError as error:
                raise _cannot_write(error, place, shown) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def _write(fd: int, block: bytes, offset: int) -> None:
    at = 0
    while at < len(block):
        piece = block[at : at + _HOLE_BYTES - (offset + at) % _HOLE_BYTES]
        at += len(piece) if piece == _ZEROS else os.pwrite(fd, piece, offset + at)


def _cannot_write(error: OSError, place: str, shown: str) -> HostError:
    advice = "; set TMPDIR to a directory with more space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
    reason = os.strerror(error.errno or 0)
    return HostError(f"cannot keep what comes from {shown} in {printable(place)}: {reason}{advice}")
