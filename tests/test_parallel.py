# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from rofs import parallel
from rofs.errors import FormatError, HostError
from rofs.parallel import ordered_map


@pytest.mark.parametrize("processes", [1, 2, 5, None])
def test_results_come_in_order(processes: int | None) -> None:
    base = 100  # closed over
    assert list(ordered_map(lambda n: base + n, range(50), processes=processes)) == list(range(100, 150))


def test_it_is_really_shared() -> None:
    pids = set(ordered_map(lambda _: os.getpid(), range(50), processes=2))
    assert os.getpid() not in pids
    assert len(pids) <= 2


def test_one_process_is_this_one() -> None:
    assert set(ordered_map(lambda _: os.getpid(), range(3), processes=1)) == {os.getpid()}


def test_items_are_taken_only_a_few_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = ordered_map(lambda n: n, items(), processes=2)
    assert next(results) == 1
    assert taken <= 10
    results.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_the_function_comes_out(processes: int) -> None:
    def fail(number: int) -> int:
        raise FormatError(f"piece {number} is bad")

    with pytest.raises(FormatError, match="piece 0 is bad"):
        list(ordered_map(fail, range(5), processes=processes))


def test_a_child_that_is_killed_is_an_error() -> None:
    with pytest.raises(HostError, match="died"):
        list(ordered_map(lambda _: os.kill(os.getpid(), signal.SIGKILL), range(3), processes=2))


def test_nothing_is_kept_of_the_function() -> None:
    list(ordered_map(str, range(3), processes=2))
    assert parallel._function is None
