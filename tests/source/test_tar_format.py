# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.source import tar_format as fmt

from .archives import GNU, base256, header, record, with_checksum


@pytest.mark.parametrize(
    ("field", "number"),
    [
        (b"0000644\0", 0o644),
        (b"   644 \0", 0o644),
        (b"644\0garb"[:4], 0o644),
        (b"        ", 0),
        (bytes(8), 0),
        (b"77777777", 0o77777777),
        (base256(1 << 40, 12), 1 << 40),
        (base256(-1, 12), -1),
        (base256(-(1 << 40), 12), -(1 << 40)),
        (b"\x80" + bytes(10) + b"\x05", 5),
    ],
)
def test_numbers(field: bytes, number: int) -> None:
    assert fmt.parse_number(field) == number


@pytest.mark.parametrize(
    "field", [b"0000648\0", b"-1      ", b"+1      ", b"1_0     ", b"0x10    ", b"6 4     ", b"1\0001    "]
)
def test_numbers_that_are_none(field: bytes) -> None:
    with pytest.raises(ValueError, match="no octal number"):
        fmt.parse_number(field)


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        (b"1700000000.123456789", 1_700_000_000_123_456_789),
        (b"0", 0),
        (b"1.", 10**9),
        (b"1.5", 1_500_000_000),
        (b"-0.000000001", -1),
        (b"-1", -(10**9)),
        (b"-1.5", -1_500_000_000),
        (b"1.0000000019", 1_000_000_001),
        (b"-1.0000000011", -1_000_000_002),
        (b"-1.0000000010", -1_000_000_001),
        (b"9223372036854775807.999999999", (1 << 63) * 10**9 - 1),
    ],
)
def test_times_are_exact(text: bytes, time_ns: int) -> None:
    assert fmt.parse_time(text) == time_ns


@pytest.mark.parametrize(
    "text", [b"", b".5", b"1e9", b"nan", b"inf", b"+1", b" 1", b"1,5", b"--1", b"9" * 30, b"9223372036854775808"]
)
def test_times_that_are_none(text: bytes) -> None:
    with pytest.raises(ValueError, match="no time"):
        fmt.parse_time(text)


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=20).filter(lambda key: b"=" not in key), st.binary(max_size=300)))
)
def test_records_of_any_bytes(records: list[tuple[bytes, bytes]]) -> None:
    assert fmt.parse_records(b"".join(record(*pair) for pair in records)) == records


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        b"5 a=b",
        b"7 a=b\n",
        b"5 a=b\n",
        b"0 a=b\n",
        b"6 a=bb",
        b"6 ab\n\n",
        b"-6 a=b\n",
        b"4 a=",
        b"99999999999 a=b\n",
        bytes(6),
    ],
)
def test_records_that_are_damaged(data: bytes) -> None:
    with pytest.raises(ValueError, match="damaged at byte 0"):
        fmt.parse_records(data)


def test_names_with_a_prefix() -> None:
    assert fmt.parse_header(header(b"name", prefix=b"some/where")).name == b"some/where/name"
    # GNU keeps times there, star in its end, and others nothing.
    assert fmt.parse_header(header(b"name", prefix=b"14000000000", magic=GNU)).name == b"name"
    assert fmt.parse_header(header(b"name", prefix=b"junk", magic=bytes(8))).name == b"name"
    star = bytearray(header(b"name", prefix=b"some".ljust(131, b"\0") + b"14000000000"))
    star[508:] = b"tar\0"
    assert fmt.parse_header(with_checksum(bytes(star))).name == b"some/name"


def test_a_name_that_fills_its_field() -> None:
    assert fmt.parse_header(header(b"n" * 100, prefix=b"p" * 155)).name == b"p" * 155 + b"/" + b"n" * 100


def test_checksums_of_signed_characters() -> None:
    block = header(b"\xff\xfe")
    signed = sum(byte - 256 * (byte > 127) for byte in block[:148] + b" " * 8 + block[156:])
    assert fmt.is_header(header(b"\xff\xfe", checksum=signed))
    assert not fmt.is_header(header(b"\xff\xfe", checksum=signed + 1))


@pytest.mark.parametrize("block", [bytes(512), b"", b"x" * 512, header(b"a")[:-1]])
def test_what_is_no_header(block: bytes) -> None:
    assert not fmt.is_header(block)
    with pytest.raises(ValueError, match="checksum"):
        fmt.parse_header(block)


@pytest.mark.parametrize("field", ["mode", "uid", "gid", "size", "mtime"])
def test_the_wrong_field_is_named(field: str) -> None:
    with pytest.raises(ValueError, match=f"its {field} is b'junk"):
        fmt.parse_header(header(b"a", **{field: b"junk"}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("numbers", "stored", "size", "reason"),
    [
        ((0, 10), 10, 9, "10 bytes at 0, in a file of 9"),
        ((5, 5, 0, 5), 10, 10, "5 bytes at 0, in a file of 10 bytes after 10"),
        ((0, 6, 5, 5), 11, 20, "5 bytes at 5"),
        ((0, 5), 6, 10, "about 5 bytes, but 6 are stored"),
        ((0, 5, 7), 5, 10, "3 numbers, expected pairs"),
        ((0, (1 << 63) - 1, 5, 5), 5, 10, "9223372036854775807 bytes at 0"),
    ],
)
def test_sparse_maps_that_lie(numbers: tuple[int, ...], stored: int, size: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fmt.check_map(array("q", numbers), stored_bytes=stored, size=size)


def test_sparse_maps_with_numbers_no_file_has() -> None:
    with pytest.raises(ValueError, match="over 63 bits"):
        fmt.to_map([0, 1 << 63])
    with pytest.raises(ValueError, match="negative"):
        fmt.to_map([-1, 5])
    with pytest.raises(ValueError, match="at most 1048576"):
        fmt.content_map([b"1048577"])
    with pytest.raises(ValueError, match="no decimal number"):
        fmt.content_map([b"2", b"0", b"1"])
