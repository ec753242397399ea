# SPDX-License-Identifier: Apache-2.0
"""Tar structures: header block, numbers, PAX records, times, sparse maps; constants and checks, no I/O.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; the GNU tar manual,
"Basic Tar Format" and "Storing Sparse Files"; star(5) for its prefix field. What members mean to a
tree is not known here. The standard library's tarfile is not used: at a damaged header it takes the
archive for finished, it reads extended headers of any length into memory, and it rounds times.
"""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

BLOCK_BYTES = 512

# name, mode, uid, gid, size, mtime, chksum, typeflag, linkname, magic and version, uname, gname,
# devmajor, devminor, prefix, and twelve bytes that only star uses
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12s")
_CHKSUM = slice(148, 156)
_MAGIC_POSIX = b"ustar\x0000"
_MAGIC_GNU = b"ustar  \0"
_STAR_TAIL = b"tar\0"
_STAR_PREFIX_BYTES = 131  # then atime and ctime

REGULAR, HARD_LINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
REGULAR_V7, CONTIGUOUS = b"\0", b"7"
GNU_SPARSE, GNU_LONG_NAME, GNU_LONG_LINK, GNU_LABEL, GNU_DUMPDIR = b"S", b"L", b"K", b"V", b"D"
PAX_MEMBER, PAX_GLOBAL = b"x", b"g"
# Behind these no content follows, whatever their size field says. Behind a hard link one may.
WITHOUT_CONTENT = frozenset({SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO})
WITH_CONTENT = frozenset({REGULAR, REGULAR_V7, CONTIGUOUS, GNU_SPARSE, GNU_DUMPDIR})

# GNU sparse, in the header: four pairs, a flag, the real size; in each extension block: 21 pairs, a flag
_SPARSE_AT, _SPARSE_PAIRS, _SPARSE_FLAG_AT, _SPARSE_SIZE = 386, 4, 482, slice(483, 495)
_EXTENSION_PAIRS, _EXTENSION_FLAG_AT = 21, 504
_PAIR_BYTES = 24

# Of all members together: 16 MiB of memory. Archives of a few kilobytes can hold millions of empty pieces.
MAX_EXTENTS = 1 << 20
# What 2^32 blocks of 4096 bytes hold, which is the most that EROFS can address.
MAX_FILE_BYTES = ((1 << 32) - 1) * 4096

_RECORD = re.compile(rb"([0-9]{1,10}) ([^=]+)=")
_TIME = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?")
_SECOND_NS = 10**9
MAX_SECONDS = (1 << 63) - 1  # what an inode's field holds


@dataclass(frozen=True, slots=True)
class Header:
    """A header block.

    Attributes:
        name: With the prefix, as it stands there.
        mtime: Seconds since the epoch.
        typeflag: One byte.
        gnu: Whether the magic is GNU tar's.
        block: The whole of it, for what else a type keeps there.
    """

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    typeflag: bytes
    linkname: bytes
    devmajor: int
    devminor: int
    gnu: bool
    block: bytes


def is_header(block: bytes) -> bool:
    """Whether a block has the checksum of a header; a block of zeros has not."""
    if len(block) != BLOCK_BYTES:
        return False
    try:
        expected = parse_number(block[_CHKSUM])
    except ValueError:
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    total = sum(rest)
    # Some old programs added signed characters.
    return expected == total or expected == total - 256 * sum(byte > 127 for byte in rest)


def parse_header(block: bytes) -> Header:
    """Read a header block.

    Raises:
        ValueError: Its checksum or a number is wrong; the text says which.
    """
    if not is_header(block):
        raise ValueError("this is no tar header, its checksum is wrong")
    name, mode, uid, gid, size, mtime, _, kind, link, magic, _, _, major, minor, prefix, tail = _HEADER.unpack(block)
    name = _text(name)
    if magic == _MAGIC_POSIX:
        star = tail[-len(_STAR_TAIL) :] == _STAR_TAIL
        before = _text(prefix[:_STAR_PREFIX_BYTES] if star else prefix)
        name = before + b"/" + name if before else name
    is_node = kind in {CHAR, BLOCK}
    return Header(
        name=name,
        mode=_field("mode", mode),
        uid=_field("uid", uid),
        gid=_field("gid", gid),
        size=_field("size", size),
        mtime=_field("mtime", mtime),
        typeflag=kind,
        linkname=_text(link),
        # Old programs leave them undefined where they mean nothing.
        devmajor=_field("devmajor", major) if is_node else 0,
        devminor=_field("devminor", minor) if is_node else 0,
        gnu=magic == _MAGIC_GNU,
        block=block,
    )


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _field(what: str, field: bytes) -> int:
    try:
        return parse_number(field)
    except ValueError as error:
        raise ValueError(f"its {what} is {error}") from None


def parse_number(field: bytes) -> int:
    """A number: octal digits, or base 256 when the highest bit is set, two's complement below it.

    Raises:
        ValueError: It is neither.
    """
    if field[0] & 0x80:
        negative = field[0] & 0x40
        return int.from_bytes(field if negative else bytes([field[0] & 0x3F]) + field[1:], "big", signed=bool(negative))
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise ValueError(f"{field!r}, no octal number")
    return int(digits or b"0", 8)


def parse_decimal(what: str, text: bytes) -> int:
    """A decimal number of a PAX record, 0 or more.

    Raises:
        ValueError: It is none, or has more than 20 digits; the text names it as `what`.
    """
    if not re.fullmatch(rb"[0-9]{1,20}", text):
        raise ValueError(f"its {what} is {text[:40]!r}, no decimal number")
    return int(text)


def parse_time(text: bytes) -> int:
    """A time of a PAX record, decimal seconds with a fraction, in nanoseconds since the epoch.

    Exact; what is finer than a nanosecond is cut towards the past, as a filesystem would.

    Raises:
        ValueError: It is none, or no inode can have it.
    """
    match = _TIME.fullmatch(text)
    if not match or int(match[2]) > MAX_SECONDS:
        raise ValueError(f"its time is {text[:40]!r}, no time that a file can have")
    fraction = match[3] or b""
    time_ns = int(match[2]) * _SECOND_NS + int(fraction[:9].ljust(9, b"0"))
    if not match[1]:
        return time_ns
    return -time_ns - (1 if fraction[9:].strip(b"0") else 0)


def parse_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """The records of an extended header in their order; keys may repeat. Values are bytes in any case.

    Raises:
        ValueError: A record's length does not fit.
    """
    records = []
    at = 0
    while at < len(data):
        match = _RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(data) or data[end - 1] != 0x0A:
            raise ValueError(f"its extended header is damaged at byte {at}")
        records.append((match[2], data[match.end() : end - 1]))
        at = end
    return records


# Sparse files: a map is an array of offset, length, offset, length, ...


def header_map(block: bytes) -> tuple[array[int], int, bool]:
    """What a GNU sparse header says.

    Returns:
        The map's beginning, the real size in bytes, and whether extension blocks follow.

    Raises:
        ValueError: A number in it is wrong.
    """
    flat = _pairs(block[_SPARSE_AT : _SPARSE_AT + _SPARSE_PAIRS * _PAIR_BYTES])
    return flat, _field("real size", block[_SPARSE_SIZE]), bool(block[_SPARSE_FLAG_AT])


def extension_map(block: bytes) -> tuple[array[int], bool]:
    """What an extension block adds to the map, and whether another one follows; see `header_map`."""
    return _pairs(block[: _EXTENSION_PAIRS * _PAIR_BYTES]), bool(block[_EXTENSION_FLAG_AT])


def _pairs(data: bytes) -> array[int]:
    fields = [data[at : at + 12] for at in range(0, len(data), 12)]
    used = next((index for index in range(0, len(fields), 2) if not fields[index + 1].strip(b"\0")), len(fields))
    return to_map(_field("sparse map", field) for field in fields[:used])


def records_map(records: Iterable[tuple[bytes, bytes]]) -> array[int] | None:
    """The sparse map that the PAX records of GNU formats 0.0 and 0.1 hold; None when they hold none.

    Raises:
        ValueError: A number in it is wrong.
    """
    # 0.0 repeats two keys in turn, 0.1 has one list.
    pairs = [value for key, value in records if key in {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}]
    lists = [value for key, value in records if key == b"GNU.sparse.map"]
    if not any(key.startswith(b"GNU.sparse.") for key, _ in records):
        return None
    numbers = lists[-1].split(b",") if lists else pairs
    return to_map(parse_decimal("sparse map", number) for number in numbers if number)


def content_map(lines: Iterable[bytes]) -> array[int]:
    """The sparse map of GNU format 1.0: a decimal number a line, the number of pairs first.

    Args:
        lines: What stands before the content; no more of it is taken than belongs to the map.

    Raises:
        ValueError: A number in it is wrong, or lines are missing.
    """
    source = iter(lines)
    count = parse_decimal("sparse map", next(source, b""))
    if count > MAX_EXTENTS:
        raise ValueError(f"its sparse map has {count} pieces, at most {MAX_EXTENTS} are supported")
    return to_map(parse_decimal("sparse map", next(source, b"")) for _ in range(2 * count))


def to_map(numbers: Iterable[int]) -> array[int]:
    """Make a map of numbers.

    Raises:
        ValueError: One is negative or over 63 bits.
    """
    try:
        flat = array("q", numbers)
    except OverflowError:
        raise ValueError("its sparse map has a number over 63 bits") from None
    if flat and min(flat) < 0:
        raise ValueError("its sparse map has a negative number")
    return flat


def check_map(flat: array[int], *, stored_bytes: int, size: int) -> None:
    """Check that a map fits its member.

    Args:
        flat: The map.
        stored_bytes: How much content stands in the archive.
        size: How long the file is.

    Raises:
        ValueError: It is out of order, too long, or about another amount of content.
    """
    if len(flat) % 2 or len(flat) > 2 * MAX_EXTENTS:
        raise ValueError(f"its sparse map has {len(flat)} numbers, expected pairs, at most {MAX_EXTENTS}")
    end = total = 0
    for index in range(0, len(flat), 2):
        offset, length = flat[index], flat[index + 1]
        if offset < end or offset + length > size:
            raise ValueError(f"its sparse map has {length} bytes at {offset}, in a file of {size} bytes after {end}")
        end = offset + length
        total += length
    if total != stored_bytes:
        raise ValueError(f"its sparse map is about {total} bytes, but {stored_bytes} are stored")
