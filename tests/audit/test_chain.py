# SPDX-License-Identifier: Apache-2.0
"""The chain: every kind of tampering shows, with its line."""

from __future__ import annotations

import io
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.audit.chain import ChainReport, decode_line, read_lines, verify_chain
from rofs.audit.event import GENESIS, MAX_LINE_BYTES, chained_line
from rofs.errors import ChainError, InputError

from .doubles import written_log


def make_lines(count: int, first_seq: int = 1) -> list[bytes]:
    lines, prev = [], GENESIS
    for seq in range(first_seq, first_seq + count):
        line, prev = chained_line({"v": 1, "seq": seq, "path": "/é"}, prev)
        lines.append(line)
    return lines


def hash_of(line: bytes) -> str:
    value = json.loads(line)["hash"]
    assert isinstance(value, str)
    return value


@pytest.fixture
def lines(tmp_path: pathlib.Path) -> list[bytes]:
    return written_log(tmp_path / "log", 5)


def test_intact_log(lines: list[bytes]) -> None:
    assert verify_chain(lines) == ChainReport(5, hash_of(lines[-1]))
    assert verify_chain(read_lines(io.BytesIO(b"".join(lines)))).events == 5


def test_empty_log() -> None:
    assert verify_chain([]) == ChainReport(0, GENESIS)
    assert verify_chain([], GENESIS).events == 0


def test_any_edited_byte_shows() -> None:
    lines = make_lines(3)
    whole = b"".join(lines)
    for position in range(len(whole)):
        edited = bytearray(whole)
        edited[position] ^= 1
        with pytest.raises(ChainError, match=r"line [1-4]: "):
            verify_chain(read_lines(io.BytesIO(edited)))


@pytest.mark.parametrize(("removed", "reported"), [(0, 1), (2, 3), (3, 4)])
def test_removed_line_shows(lines: list[bytes], removed: int, reported: int) -> None:
    del lines[removed]
    with pytest.raises(ChainError, match=f"line {reported}: prev expected"):
        verify_chain(lines)


def test_swapped_lines_show(lines: list[bytes]) -> None:
    lines[1], lines[2] = lines[2], lines[1]
    with pytest.raises(ChainError, match="line 2: prev"):
        verify_chain(lines)


def test_cut_tail_shows_against_the_head_only(lines: list[bytes]) -> None:
    head = hash_of(lines[-1])
    assert verify_chain(lines, head).head == head
    assert verify_chain(lines[:-1]).events == 4
    with pytest.raises(ChainError, match="tail was cut"):
        verify_chain(lines[:-1], head)
    with pytest.raises(ChainError, match="tail was cut"):
        verify_chain([], head)


def test_older_head_is_in_a_log_that_went_on(lines: list[bytes]) -> None:
    for line in lines:
        assert verify_chain(lines, hash_of(line).upper()).events == 5
    assert verify_chain(lines, GENESIS).events == 5


def test_rewritten_log_shows_against_the_head(lines: list[bytes]) -> None:
    with pytest.raises(ChainError, match="rewritten"):
        verify_chain(make_lines(5), hash_of(lines[2]))


@pytest.mark.parametrize("head", ["", "abc", "g" * 64, "0" * 65])
def test_head_that_is_no_hash_is_refused(head: str) -> None:
    with pytest.raises(InputError, match="64 hex digits"):
        verify_chain([], head)


def test_torn_tail_shows(lines: list[bytes]) -> None:
    lines[-1] = lines[-1][:-1]
    with pytest.raises(ChainError, match="line 5: expected a newline"):
        verify_chain(lines)


def test_gap_in_seq_shows_though_hashes_match() -> None:
    first, prev = chained_line({"v": 1, "seq": 1}, GENESIS)
    second, _ = chained_line({"v": 1, "seq": 3}, prev)
    with pytest.raises(ChainError, match="line 2: seq expected 2, found 3"):
        verify_chain([first, second])


def test_first_seq_may_be_any() -> None:
    assert verify_chain(make_lines(2, first_seq=41)).events == 2


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"not json\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"null\n",
        b"{}\n",
        b'{"v":true}\n',
        b'{"v":2}\n',
        b'{"v":1}\n',
        b'{"v":1,"v":1}\n',
        b'{"seq":1,"v":1}\n',
        b'{ "v":1}\n',
        b'{"a":NaN,"v":1}\n',
        b'{"a":1e999,"v":1}\n',
        b'{"a":' + b"9" * 5000 + b',"v":1}\n',
        b'{"a":99999999999999999999,"v":1}\n',
        b'{"a":"\\ud800","v":1}\n',
        b'{"\\ud800":1,"v":1}\n',
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b',"v":1}\n',
        chained_line({"v": 1, "seq": "1"}, GENESIS)[0],
        chained_line({"v": 1, "seq": True}, GENESIS)[0],
        chained_line({"v": 1, "seq": 1}, 7)[0],  # type: ignore[arg-type]
        chained_line({"v": 1, "seq": 1}, GENESIS)[0].replace(b"\n", b" \n"),
    ],
)
def test_line_that_is_no_event_is_refused(line: bytes) -> None:
    with pytest.raises(ChainError, match="line 1: ") as caught:
        verify_chain([line])
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@given(st.binary())
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    try:
        decode_line("line 1", raw + b"\n")
        verify_chain([raw + b"\n"])
    except ChainError:
        pass


def test_endless_line_is_not_read_whole() -> None:
    file = io.BytesIO(b"x" * (3 * MAX_LINE_BYTES))
    with pytest.raises(ChainError, match="line 1: expected at most"):
        verify_chain(read_lines(file))
    assert file.tell() == MAX_LINE_BYTES + 1
