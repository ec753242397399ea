# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rofs.lru import ByteLru


def test_the_least_recently_used_goes_first() -> None:
    cache: ByteLru[str, int] = ByteLru(30)
    for number, key in enumerate("abc"):
        cache.put(key, number, 10)
    assert cache.get("a") == 0
    cache.put("d", 3, 10)
    assert [cache.get(key) for key in "abcd"] == [0, None, 2, 3]


def test_one_large_entry_drives_out_several() -> None:
    cache: ByteLru[str, int] = ByteLru(30)
    for key in "abc":
        cache.put(key, 1, 10)
    cache.put("d", 2, 21)
    assert ([cache.get(key) for key in "abcd"], cache.used_bytes) == ([None, None, None, 2], 21)


def test_an_entry_beyond_the_limit_is_not_kept_and_drives_out_nothing() -> None:
    cache: ByteLru[str, int] = ByteLru(30)
    cache.put("a", 1, 30)
    cache.put("b", 2, 31)
    assert (cache.get("a"), cache.get("b"), cache.used_bytes) == (1, None, 30)
    cache.put("a", 3, 31)  # the old value must not be found any more
    assert (cache.get("a"), cache.used_bytes) == (None, 0)


def test_a_key_put_again_costs_once() -> None:
    cache: ByteLru[str, int] = ByteLru(30)
    cache.put("a", 1, 20)
    cache.put("b", 2, 10)
    cache.put("a", 3, 15)
    assert (cache.get("a"), cache.get("b"), cache.used_bytes) == (3, 2, 25)


def test_without_room_nothing_is_kept_but_what_is_free() -> None:
    cache: ByteLru[str, int] = ByteLru(0)
    cache.put("a", 1, 1)
    cache.put("b", 2, 0)
    assert (cache.get("a"), cache.get("b"), cache.used_bytes) == (None, 2, 0)


@given(st.integers(0, 50), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40))))
def test_never_more_than_the_limit_and_never_a_wrong_value(limit: int, puts: list[tuple[int, int]]) -> None:
    cache: ByteLru[int, int] = ByteLru(limit)
    last: dict[int, tuple[int, int]] = {}
    for number, (key, cost) in enumerate(puts):
        cache.put(key, number, cost)
        last[key] = number, cost
        kept = {k: v for k in range(6) if (v := cache.get(k)) is not None}
        assert all(last[k][0] == v for k, v in kept.items())
        assert cache.used_bytes == sum(last[k][1] for k in kept) <= limit
