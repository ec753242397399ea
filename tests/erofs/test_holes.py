# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.erofs.holes import HoleScan, data_runs, whole_blocks
from rofs.pieces import filled
from tests.trees import content

BLOCK = 4096


def pieces_of(data: bytes, sizes: list[int], *, holes: bool = False) -> list[tuple[int, bytes]]:
    """Cut as the sizes say, over and over; pieces of zeros may be left out."""
    found: list[tuple[int, bytes]] = []
    at = number = 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        if not holes or any(data[at : at + size]):
            found.append((at, data[at : at + size]))
        at += size
        number += 1
    return found


def content_of(blocks: list[bool], tail: bytes = b"") -> bytes:
    return b"".join(content(BLOCK, n) if is_data else bytes(BLOCK) for n, is_data in enumerate(blocks)) + tail


CONTENTS = st.builds(
    content_of,
    st.lists(st.booleans(), max_size=40),
    st.sampled_from([b"", bytes(1), b"x", bytes(4095), b"\0" * 9 + b"x"]),
)


SIZES = st.lists(st.integers(1, 20_000), min_size=1, max_size=4)


@given(CONTENTS, SIZES, st.booleans())
def test_pieces_become_whole_blocks(data: bytes, sizes: list[int], holes: bool) -> None:
    found = list(whole_blocks(pieces_of(data, sizes, holes=holes), len(data), BLOCK))
    assert b"".join(filled(found, len(data))) == data
    assert all(piece and at % BLOCK == 0 for at, piece in found)
    assert all(len(piece) % BLOCK == 0 or at + len(piece) == len(data) for at, piece in found)


@given(CONTENTS, SIZES, st.booleans())
def test_runs_are_what_is_not_zero(data: bytes, sizes: list[int], holes: bool) -> None:
    rebuilt = bytearray(len(data))
    for at, run in data_runs(whole_blocks(pieces_of(data, sizes, holes=holes), len(data), BLOCK), BLOCK):
        assert at % BLOCK == 0
        assert all(any(run[n : n + BLOCK]) for n in range(0, len(run), BLOCK))
        rebuilt[at : at + len(run)] = run
    assert rebuilt == data


def test_a_block_that_only_begins_with_zeros_is_data() -> None:
    data = bytes(BLOCK - 1) + b"x" + bytes(BLOCK) + b"x" + bytes(BLOCK - 1)
    assert [(at, len(run)) for at, run in data_runs([(0, data)], BLOCK)] == [(0, BLOCK), (2 * BLOCK, BLOCK)]


def best(size: int, runs: list[tuple[int, int]]) -> int | None:
    scan = HoleScan(size, BLOCK)
    for at, length in runs:
        scan.add(at, length)
    return scan.chunk_blkbits()


@pytest.mark.parametrize(
    ("size", "runs", "expected"),
    [
        pytest.param(0, [], None, id="empty"),
        pytest.param(BLOCK, [], None, id="one block of zeros is not worth a table"),
        pytest.param(1 << 16, [], None, id="64 KiB of zeros less their table are not enough"),
        pytest.param((1 << 16) + 1, [], 5, id="a little more is, as one chunk"),
        pytest.param(1 << 20, [(0, 1 << 20)], None, id="no zeros"),
        pytest.param(1 << 20, [(0, BLOCK)], 0, id="short chunks where there is data"),
        pytest.param(5 << 30, [], 21, id="a hole of 5 GiB is one chunk"),
        pytest.param(1 << 62, [], 31, id="the longest chunk there is"),
        pytest.param(8 << 20, [(0, (8 << 20) - 100_000)], None, id="a 64th at least"),
        pytest.param(4 << 20, [(0, (4 << 20) - 100_000)], 3, id="a hole at the end"),
        pytest.param(200_001, [(196_608, 3393)], 4, id="the last chunk ends with the content"),
    ],
)
def test_the_chunk_length_that_stores_least(size: int, runs: list[tuple[int, int]], expected: int | None) -> None:
    assert best(size, runs) == expected


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.integers(1, BLOCK))
def test_no_other_chunk_length_stores_less(blocks: list[bool], last_bytes: int) -> None:
    size = (len(blocks) - 1) * BLOCK + last_bytes
    costs = {}
    for bits in range(10):
        chunks = [blocks[n : n + (1 << bits)] for n in range(0, len(blocks), 1 << bits)]
        costs[bits] = sum(len(chunk) * BLOCK for chunk in chunks if any(chunk)) + 4 * len(chunks)
    least = min(costs.values())
    worth = len(blocks) * BLOCK - least >= max(1 << 16, size // 64)
    found = best(size, [(n * BLOCK, BLOCK) for n, is_data in enumerate(blocks) if is_data])
    assert found == (min(bits for bits in costs if costs[bits] == least) if worth else None)


def test_runs_that_touch_count_once() -> None:
    """As they come when a source gives a content in pieces."""
    one = [(1 << 19, 1 << 18)]
    cut = [((1 << 19) + n * BLOCK, BLOCK) for n in range(64)]
    assert best(1 << 21, one) == best(1 << 21, cut)
