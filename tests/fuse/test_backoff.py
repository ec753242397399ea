# SPDX-License-Identifier: Apache-2.0
"""How long a place stays empty: never at first, never without end, never in a storm."""

from __future__ import annotations

import itertools

from rofs.fuse.backoff import Backoff


def test_first_death_is_followed_at_once() -> None:
    assert Backoff().seconds_after(0) == 0
    assert Backoff().seconds_after(1e6) == 0


def test_who_keeps_dying_is_started_less_and_less_often() -> None:
    backoff = Backoff()
    delays = [backoff.seconds_after(0.01) for _ in range(20)]
    assert all(before < after or after == delays[-1] for before, after in itertools.pairwise(delays))
    assert delays[0] == 0 < delays[1] < 0.2
    assert delays[-1] == 2
    # Not one start in a thousand, in a minute of nothing but deaths.
    assert sum(1 for total in itertools.accumulate(delays) if total < 60) < 40


def test_who_keeps_dying_for_days_is_started_all_the_same() -> None:
    """2.0 ** 1024 would overflow."""
    backoff = Backoff()
    delays = {backoff.seconds_after(0) for _ in range(5000)}
    assert max(delays) == 2


def test_good_life_is_followed_at_once_and_forgives_the_bad_ones() -> None:
    backoff = Backoff()
    for _ in range(10):
        backoff.seconds_after(0)
    assert backoff.seconds_after(60) == 0
    assert backoff.seconds_after(0) == 0
    assert backoff.seconds_after(0) > 0


def test_kinds_of_processes_do_not_wait_for_each_other() -> None:
    first, second = Backoff(), Backoff()
    for _ in range(10):
        first.seconds_after(0)
    assert second.seconds_after(0) == 0
