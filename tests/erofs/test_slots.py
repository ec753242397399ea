# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from rofs.erofs import format as fmt
from rofs.erofs.slots import Slots

BLOCK = 4096


def test_gaps_are_filled() -> None:
    slots = Slots(fmt.FIRST_FREE_BYTE, BLOCK)
    slots.allocate(64, 4000)  # does not fit behind the superblock
    end = slots.end
    assert slots.allocate(64, 100) == (fmt.FIRST_FREE_BYTE // 32, True)
    assert slots.allocate(64, 0) == (-(-(fmt.FIRST_FREE_BYTE + 164) // 32), False)
    assert slots.end == end


@given(st.lists(st.tuples(st.integers(0, 70_000 // 4), st.integers(0, 4095)), max_size=60))
def test_places_never_overlap(requests: list[tuple[int, int]]) -> None:
    slots = Slots(fmt.FIRST_FREE_BYTE, BLOCK)
    taken: list[tuple[int, int]] = [(0, fmt.FIRST_FREE_BYTE)]
    for xattr_words, tail_bytes in requests:
        header_bytes = 64 + (8 + 4 * xattr_words if xattr_words else 0)
        nid, inline = slots.allocate(header_bytes, tail_bytes)
        start = nid * fmt.SLOT_BYTES
        end = start + header_bytes + (tail_bytes if inline else 0)
        taken.append((start, end))
        if inline:
            assert tail_bytes
            assert (end - tail_bytes) % BLOCK + tail_bytes <= BLOCK
        assert end <= slots.end
    taken.sort()
    for (_, before), (after, _) in itertools.pairwise(taken):
        assert before <= after
