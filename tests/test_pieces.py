# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.errors import InputError
from rofs.pieces import Piece, filled, first_difference

HUGE = 1 << 62

CONTENTS = st.lists(st.sampled_from([b"\0", b"x", b"y"]), max_size=12).map(b"".join)


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[Piece]:
    """A content in any pieces; zeros may be left out of them."""
    ends = sorted({0, len(data), *draw(st.lists(st.integers(0, len(data)), max_size=5))})
    pieces = [(start, data[start:end]) for start, end in itertools.pairwise(ends)]
    return [(at, piece) for at, piece in pieces if any(piece) or draw(st.booleans())]


@given(st.data(), CONTENTS)
def test_filled_is_the_content_however_it_was_cut(draw: st.DataObject, data: bytes) -> None:
    assert b"".join(filled(draw.draw(cut(data)), len(data))) == data


def test_a_long_hole_is_filled_in_pieces() -> None:
    found = list(filled([(3 << 20, b"x")], (4 << 20) + 5))
    assert b"".join(found) == bytes(3 << 20) + b"x" + bytes((1 << 20) + 4)
    assert max(map(len, found)) == 1 << 20


@given(st.data(), CONTENTS, CONTENTS)
def test_difference_is_of_the_bytes_and_not_of_how_they_were_cut(draw: st.DataObject, one: bytes, other: bytes) -> None:
    size = min(len(one), len(other))
    one, other = one[:size], other[:size]
    seen = 0

    def progress(count: int) -> None:
        nonlocal seen
        seen += count

    found = first_difference(draw.draw(cut(one)), draw.draw(cut(other)), size, progress)
    assert (found is None) == (one == other)
    if found is None:
        assert seen == size
    else:
        at, length = found
        assert seen == at
        assert one[:at] == other[:at]
        assert one[at : at + length] != other[at : at + length]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([], [], None),
        ([(HUGE, b"end")], [(HUGE, b"e"), (HUGE + 1, b"nd")], None),
        ([(HUGE, b"end")], [], (HUGE, 3)),
        ([(5, bytes(1 << 20))], [], None),
        ([(5, bytes((1 << 20) + 9))], [], None),
    ],
)
def test_hole_of_any_size_costs_nothing(one: list[Piece], other: list[Piece], expected: tuple[int, int] | None) -> None:
    assert first_difference(one, other, HUGE + 3) == expected
    assert first_difference(other, one, HUGE + 3) == expected


def test_what_a_content_says_at_its_end_is_heard() -> None:
    """That a file was cut shows when its last piece was taken: until then its end looks like a hole."""

    def changed() -> Iterator[Piece]:
        yield 0, b"data"
        raise InputError("changed")

    with pytest.raises(InputError, match="changed"):
        first_difference([(0, b"data")], changed(), 4)
    with pytest.raises(InputError, match="changed"):
        first_difference([(0, b"data")], changed(), HUGE)
