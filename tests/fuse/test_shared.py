# SPDX-License-Identifier: Apache-2.0
"""The shared memory of a mount, and the tokens on it, with processes that hold them and die."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from rofs.errors import StateError
from rofs.fuse.process import fork
from rofs.fuse.shared import MAX_SLOTS, Number, SharedState, Tokens, Total

_F_SEAL_FUTURE_WRITE = 0x10  # include/uapi/linux/fcntl.h


def in_child(ask: Callable[[], int | None]) -> int | None:
    """What another process gets, which has ended then."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, repr(ask()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(pid, 0)
    return None if answer == "None" else int(answer)


# Memory


@pytest.mark.parametrize("size", [0, 4096, 1 << 24])
def test_no_worker_can_change_its_size(shared: SharedState, size: int) -> None:
    """The others would end with SIGBUS."""
    with pytest.raises(PermissionError):
        os.ftruncate(shared.fd, size)


def test_no_worker_can_seal_it_against_writing(shared: SharedState) -> None:
    with pytest.raises(PermissionError):
        fcntl.fcntl(shared.fd, fcntl.F_ADD_SEALS, _F_SEAL_FUTURE_WRITE)


@pytest.fixture
def memory(shared: SharedState) -> Iterator[int]:
    """Of another mount, and without seals: to be spoilt."""
    fd = os.memfd_create("spoilt", os.MFD_CLOEXEC)
    os.write(fd, os.pread(shared.fd, 1 << 24, 0))
    yield fd
    os.close(fd)


def test_memory_of_this_version_is_taken(memory: int) -> None:
    assert SharedState(memory).get(Total.RESTARTS) == 0


@pytest.mark.parametrize("change", [-8, 8, 1, -(1 << 30)])
def test_memory_of_another_size_is_refused(memory: int, change: int) -> None:
    os.ftruncate(memory, max(0, os.fstat(memory).st_size + change))
    with pytest.raises(StateError, match="not as this version of rofs makes it"):
        SharedState(memory)


@pytest.mark.parametrize("data", [bytes(8), b"\x02", b"\xff" * 8])
def test_memory_of_another_version_is_refused(memory: int, data: bytes) -> None:
    os.pwrite(memory, data, 0)
    with pytest.raises(StateError, match="another version of rofs"):
        SharedState(memory)


def test_a_program_in_its_place_finds_what_there_was(shared: SharedState) -> None:
    shared.add(Total.CORRUPTION, 7)
    shared.slot(MAX_SLOTS - 1)[Number.REPORTED] = 2**64 - 1
    shared.cached[-1] = 1
    again = SharedState(os.dup(shared.fd))
    try:
        assert again.get(Total.CORRUPTION) == 7
        assert again.slot(MAX_SLOTS - 1)[Number.REPORTED] == 2**64 - 1
        assert again.cached[-1] == 1
        again.slot(0)[Number.REQUESTS] = 5
        assert shared.slot(0)[Number.REQUESTS] == 5
    finally:
        os.close(again.fd)


def test_sums_are_of_one_number_in_all_slots(shared: SharedState) -> None:
    for index in range(MAX_SLOTS):
        slot = shared.slot(index)
        assert list(slot) == [0] * len(slot)
        for number in Number:
            slot[number] = (index + 1) * 300**number
    for number in Number:
        assert shared.sum(number) == sum(range(1, MAX_SLOTS + 1)) * 300**number
    assert (shared.get(Total.BLOCKED_WRITES), shared.get(Total.RESTARTS)) == (0, 0)
    assert not any(shared.cached)


def test_totals_of_the_mount_are_not_in_the_sums(shared: SharedState) -> None:
    for total in Total:
        shared.add(total)
    assert [shared.sum(number) for number in Number] == [0] * len(Number)


@pytest.mark.parametrize("total", Total)
def test_number_that_a_worker_made_absurd_does_not_break_who_counts_on(shared: SharedState, total: Total) -> None:
    """The keeper counts here, too: what it stumbles over ends the mount."""
    shared.add(total, 2**64 - 1 - shared.get(total))
    shared.add(total)
    assert shared.get(total) == 0


def test_number_of_groups_of_inodes_is_a_power_of_two(shared: SharedState) -> None:
    """Inodes are mapped to them by a mask."""
    assert len(shared.cached).bit_count() == 1


# Tokens


@contextmanager
def holding(tokens: Tokens) -> Iterator[int]:
    """A process that holds a token and sleeps; its pid."""
    reading, writing = os.pipe()

    def hold() -> None:
        os.write(writing, b"-" if tokens.take() is None else b"+")
        signal.pause()

    child = fork(hold, name="holder", keep=(tokens._fd, writing), unprivileged=True)
    os.close(writing)
    try:
        assert os.read(reading, 1) == b"+"
        yield child.pid
    finally:
        child.end()
        os.close(reading)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_there_are_as_many_tokens_as_said(shared: SharedState, count: int) -> None:
    tokens = Tokens(shared.fd, count)
    taken = []

    def take_all(left: int) -> None:
        if left == 0:
            taken.append(tokens.take())
            return
        with holding(tokens):
            take_all(left - 1)

    take_all(count)
    assert taken == [None]  # and it did not wait


def test_death_of_the_holder_releases_its_token(shared: SharedState) -> None:
    tokens = Tokens(shared.fd, 1)
    with holding(tokens) as pid:
        assert tokens.take() is None
        os.kill(pid, signal.SIGKILL)
        while tokens.take() is None:
            os.sched_yield()


def test_token_that_was_given_back_is_another_workers(shared: SharedState) -> None:
    tokens = Tokens(shared.fd, 1)
    token = tokens.take()
    assert token is not None
    assert in_child(tokens.take) is None
    tokens.give_back(token)
    assert in_child(tokens.take) == token


def test_a_process_never_holds_more_than_one(shared: SharedState) -> None:
    """Else one worker could take them all and the others would push nothing."""
    tokens = Tokens(shared.fd, 3)
    assert {tokens.take() for _ in range(5)} == {0}
    assert in_child(tokens.take) == 1


def test_fork_does_not_copy_a_token(shared: SharedState) -> None:
    tokens = Tokens(shared.fd, 1)
    assert tokens.take() == 0
    assert in_child(tokens.take) is None
    assert in_child(lambda: tokens.give_back(0)) is None
    assert in_child(tokens.take) is None
