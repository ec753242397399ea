# SPDX-License-Identifier: Apache-2.0
"""A content as pieces: offsets in bytes and what stands there, ascending; all between and behind is zeros.

So holes cost nothing, however long, from where a content comes to where it goes. How it was cut says
nothing: pieces may be zeros too, and the same content comes in others from elsewhere. No I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

Piece = tuple[int, bytes]

_ZEROS = bytes(1 << 20)


def filled(pieces: Iterable[Piece], size: int) -> Iterator[bytes]:
    """All bytes of a content one after another, at most 1 MiB of zeros at a time.

    Args:
        pieces: The content.
        size: Its length in bytes.
    """
    end = 0
    for offset, data in pieces:
        yield from _zeros(offset - end)
        yield data
        end = offset + len(data)
    yield from _zeros(size - end)


def first_difference(
    one: Iterable[Piece], other: Iterable[Piece], size: int, progress: Callable[[int], None] = lambda _: None
) -> tuple[int, int] | None:
    """Where two contents of one length differ first.

    Args:
        one: A content.
        other: Another one.
        size: Their length in bytes.
        progress: Called with the number of bytes just compared, holes included.

    Returns:
        Offset and length in bytes of the range in which the first difference is; None when there is none.
    """
    streams = _Stream(one, size), _Stream(other, size)
    offset = 0
    while offset < size:
        first, second = (stream.at(offset) for stream in streams)
        length = min(first.length, second.length)
        if not _equal(first.data, second.data, length):
            return offset, length
        offset += length
        progress(length)
    # What comes at their ends: that a content has changed meanwhile shows only there.
    for stream in streams:
        stream.finish()
    return None


class _Part(NamedTuple):
    """What stands in a content from some offset on; no data is a hole."""

    length: int
    data: bytes | memoryview | None


class _Stream:
    """A content, to be asked for ascending offsets."""

    def __init__(self, pieces: Iterable[Piece], size: int) -> None:
        self._pieces = iter(pieces)
        self._size = size
        self._start, self._data = 0, b""

    def at(self, offset: int) -> _Part:
        while self._start + len(self._data) <= offset < self._size:
            self._start, self._data = next(self._pieces, (self._size, b""))
        if offset < self._start:
            return _Part(self._start - offset, None)
        if offset == self._start:
            return _Part(len(self._data), self._data)
        data = memoryview(self._data)[offset - self._start :]
        return _Part(len(data), data)

    def finish(self) -> None:
        for _ in self._pieces:
            pass


def _equal(old: bytes | memoryview | None, new: bytes | memoryview | None, length: int) -> bool:
    """Whether both begin with the same bytes, a hole with zeros."""
    if old is None and new is None:
        return True
    zeros = b"" if old is not None and new is not None else _zeros_of(length)
    return (zeros if old is None else old[:length]) == (zeros if new is None else new[:length])


def _zeros_of(length: int) -> bytes:
    return _ZEROS[:length] if length <= len(_ZEROS) else bytes(length)


def _zeros(length: int) -> Iterator[bytes]:
    while length > 0:
        yield _ZEROS if length >= len(_ZEROS) else _ZEROS[:length]
        length -= len(_ZEROS)
