# SPDX-License-Identifier: Apache-2.0
"""Floods: what is counted comes out, once, and in time; memory is bounded whatever comes."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.audit.flood import (
    FIRST_WINDOW_NS,
    LONGEST_WINDOW_NS,
    MAX_THREADS,
    Collapser,
    Excess,
    Repeats,
    TokenBucket,
)

SECOND = 1_000_000_000


def offer(collapser: Collapser[str], what: str, thread: int = 1, now_s: float = 0, program: str = "p") -> bool:
    """Whether it was new."""
    now = int(now_s * SECOND)
    if collapser.count(what, program, thread, now):
        return False
    collapser.begin(what, program, thread, f"{what}/{thread}", now)
    return True


# Collapser


def test_first_is_new_and_repeats_are_counted() -> None:
    collapser: Collapser[str] = Collapser()
    assert offer(collapser, "a", now_s=0)
    assert not offer(collapser, "a", now_s=0.5)
    assert not offer(collapser, "a", now_s=0.75)
    assert collapser.due(SECOND - 1) == []
    assert collapser.due(SECOND) == [Repeats("a/1", 2, SECOND // 2, 3 * SECOND // 4)]
    assert collapser.due(SECOND) == []


def test_what_is_not_repeated_is_forgotten_when_its_window_closes() -> None:
    collapser: Collapser[str] = Collapser()
    offer(collapser, "a")
    assert collapser.due(FIRST_WINDOW_NS) == []
    assert collapser.is_idle
    assert offer(collapser, "a", now_s=1)


def test_windows_grow_up_to_the_longest_and_begin_short_again() -> None:
    collapser: Collapser[str] = Collapser()
    offer(collapser, "a")
    closed: list[int] = []
    now = 0
    while len(closed) < 9:
        offer(collapser, "a", now_s=now / SECOND)
        now += SECOND // 4
        if collapser.due(now):
            closed.append(now)
    assert [b - a for a, b in zip([0, *closed], closed, strict=False)] == [
        *(SECOND * 2**n for n in range(6)),
        *[LONGEST_WINDOW_NS] * 3,
    ]
    assert collapser.due(now + LONGEST_WINDOW_NS) == []
    assert offer(collapser, "a", now_s=now / SECOND + 60)
    offer(collapser, "a", now_s=now / SECOND + 60)
    assert len(collapser.due(now + 61 * SECOND)) == 1


@pytest.mark.parametrize("other", [{"what": "b"}, {"program": "q"}, {"thread": 2}])
def test_what_differs_is_new(other: dict[str, object]) -> None:
    collapser: Collapser[str] = Collapser()
    assert offer(collapser, "a")
    assert offer(collapser, **{"what": "a", **other})  # type: ignore[arg-type]


def test_program_that_is_started_again_and_again_counts_as_one() -> None:
    collapser: Collapser[str] = Collapser()
    new = [offer(collapser, "a", thread=thread) for thread in range(100)]
    assert new == [True] * MAX_THREADS + [False] * (100 - MAX_THREADS)
    offer(collapser, "a", thread=3)
    assert collapser.due(SECOND) == [
        Repeats("a/3", 1, 0, 0),
        Repeats("a/0", 100 - MAX_THREADS, 0, 0, several=True),
    ]


def test_what_was_seen_longest_ago_is_handed_out_first() -> None:
    collapser: Collapser[str] = Collapser(max_entries=2)
    for what in ("a", "b", "a", "b", "a"):
        offer(collapser, what)
    offer(collapser, "c")
    assert collapser.due(0) == [Repeats("b/1", 1, 0, 0)]
    assert offer(collapser, "b")
    assert collapser.due(0) == [Repeats("a/1", 2, 0, 0)]


def test_rest_is_all_and_then_there_is_none() -> None:
    collapser: Collapser[str] = Collapser(max_entries=1)
    for what in ("a", "a", "b", "b", "b"):
        offer(collapser, what)
    assert collapser.rest() == [Repeats("a/1", 1, 0, 0), Repeats("b/1", 2, 0, 0)]
    assert collapser.rest() == []
    assert collapser.is_idle


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.integers(0, 20), st.sampled_from([0, 1, SECOND, 10 * SECOND])),
        max_size=300,
    )
)
def test_every_one_is_recorded_or_counted_once(offers: list[tuple[str, int, int]]) -> None:
    collapser: Collapser[str] = Collapser(max_entries=3)
    found: Counter[str] = Counter()
    now = 0

    def add(repeats: list[Repeats[str]]) -> None:
        for each in repeats:
            assert each.count
            assert each.first_ns <= each.last_ns <= now
            found[each.sample[0]] += each.count

    for what, thread, later in offers:
        now += later
        found[what] += offer(collapser, what, thread, now / SECOND)
        if later:
            add(collapser.due(now))
    add(collapser.rest())
    assert found == Counter(what for what, _, _ in offers)


# Token bucket


def test_burst_then_rate() -> None:
    bucket = TokenBucket(rate_bytes=100, burst_bytes=1000)
    assert sum(bucket.admit(100, 0) for _ in range(100)) == 10
    assert not bucket.admit(100, 0)
    assert sum(bucket.admit(100, now) for now in range(0, 10 * SECOND, SECOND // 10)) in {9, 10}
    assert sum(bucket.admit(100, 10**15) for _ in range(100)) == 10  # no more than a burst, however long it was quiet


def test_what_was_charged_beyond_is_waited_for() -> None:
    bucket = TokenBucket(rate_bytes=100, burst_bytes=1000)
    assert bucket.admit(100, 0)
    bucket.charge(5000)
    assert not bucket.admit(1, 41 * SECOND)
    assert bucket.admit(1, 42 * SECOND)
    bucket.charge(-10_000)
    assert sum(bucket.admit(100, 42 * SECOND) for _ in range(100)) == 10


# Excess


def test_excess_comes_out_when_its_window_closes() -> None:
    excess: Excess[str] = Excess(lambda _: "other")
    assert excess.is_idle
    excess.add("a", 1, first_ns=5, last_ns=5, now_ns=0)
    excess.add("a", 3, first_ns=1, last_ns=9, now_ns=0)
    excess.add("b", 1, first_ns=7, last_ns=7, now_ns=0)
    assert excess.due(SECOND - 1) == []
    assert excess.due(SECOND) == [Repeats("a", 4, 1, 9), Repeats("b", 1, 7, 7)]
    excess.add("a", 1, first_ns=5, last_ns=5, now_ns=SECOND)
    assert excess.due(2 * SECOND) == []  # the next one is longer
    assert excess.due(3 * SECOND) == [Repeats("a", 1, 5, 5)]
    assert excess.due(60 * SECOND) == []
    assert excess.is_idle


def test_excess_of_too_many_kinds_is_folded() -> None:
    excess: Excess[str] = Excess(lambda _: "other", max_keys=3)
    for number in range(100):
        excess.add(f"k{number}", 1, first_ns=number, last_ns=number, now_ns=0)
    excess.add("k1", 1, first_ns=100, last_ns=100, now_ns=0)
    counts = {each.sample: each.count for each in excess.rest()}
    assert counts == {"k0": 1, "k1": 2, "k2": 1, "other": 97}
    assert excess.rest() == []
    assert excess.is_idle
