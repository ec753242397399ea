# SPDX-License-Identifier: Apache-2.0
"""What is pushed into the page cache at open: only what is small, verified and not there, and only with a token."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from types import SimpleNamespace

import pyfuse3
import pytest

from rofs.errors import ReadError
from rofs.fuse import pusher
from rofs.fuse.pusher import Pusher
from rofs.fuse.shared import Number, SharedState, Tokens
from tests.fuse.doubles import BIN, DEVICE, EMPTY, FILE, LINK, ODD, ROOT, SHELL, MemoryFilesystem, Node

INODE = FILE + 2
CONTENT = b"0123456789" * 1000


class Kernel:
    """Takes what is pushed, or refuses it."""

    def __init__(self) -> None:
        self.stored: list[tuple[int, int, bytes]] = []
        self.error: int | None = None

    def notify_store(self, inode: int, offset: int, data: bytes) -> None:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        self.stored.append((inode, offset, bytes(data)))


class CountedTokens(Tokens):
    """Tells what is held."""

    def __init__(self, fd: int, count: int) -> None:
        super().__init__(fd, count)
        self.free = count
        self.taken = 0

    def take(self) -> int | None:
        if not self.free:
            return None
        self.free -= 1
        self.taken += 1
        return self.free

    def give_back(self, token: int) -> None:
        self.free += 1


class Pushing:
    """A pusher and all around it."""

    def __init__(self, shared: SharedState, kernel: Kernel, tokens: int = 1) -> None:
        self.filesystem = MemoryFilesystem()
        self.kernel = kernel
        self.shared = shared
        self.numbers = shared.slot(0)
        self.tokens = CountedTokens(shared.fd, tokens)
        self.pusher = Pusher(self.filesystem, shared, self.numbers, self.tokens)

    def open(self, nid: int = FILE) -> list[tuple[int, int, bytes]]:
        """Open a file; returns what was pushed now."""
        before = len(self.kernel.stored)
        self.pusher.opened(nid + 2, nid)
        return self.kernel.stored[before:]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(pyfuse3, "notify_store", kernel.notify_store)
    return kernel


@pytest.fixture
def pushing(shared: SharedState, kernel: Kernel) -> Pushing:
    return Pushing(shared, kernel)


def test_content_is_pushed_once(pushing: Pushing) -> None:
    assert pushing.open() == [(INODE, 0, CONTENT)]
    assert pushing.open() == []
    assert pushing.tokens.free == 1
    assert pushing.numbers[Number.PUSHED] == 1


def test_another_worker_does_not_push_it_again(pushing: Pushing, kernel: Kernel) -> None:
    assert pushing.open()
    other = Pushing(pushing.shared, kernel)
    assert other.open() == []
    other.pusher.forgotten([INODE])
    assert pushing.open() == [(INODE, 0, CONTENT)]


def test_it_is_pushed_again_after_the_kernel_has_forgotten_it(pushing: Pushing) -> None:
    pushing.open()
    pushing.open(SHELL)
    pushing.pusher.forgotten([INODE, ODD + 2])
    assert pushing.open(SHELL) == []
    assert pushing.open() == [(INODE, 0, CONTENT)]


def test_read_of_what_was_pushed_shows_that_the_kernel_has_dropped_files(pushing: Pushing) -> None:
    """One READ tells that of all of them; the file itself it has again."""
    pushing.open()
    pushing.open(SHELL)
    pushing.pusher.was_read(INODE)
    assert pushing.open() == []
    assert pushing.open(SHELL) == [(SHELL + 2, 0, b"#!")]
    assert pushing.open(SHELL) == []


def test_memory_that_is_short_does_not_make_every_open_a_push(
    pushing: Pushing, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 10**15
    monkeypatch.setattr(pusher, "time", SimpleNamespace(monotonic_ns=lambda: now))
    pushed = 0
    for _ in range(1000):  # a second, in which each file that is pushed is dropped at once
        now += 1_000_000
        pushed += len(pushing.open()) + len(pushing.open(SHELL))
        pushing.pusher.was_read(INODE)
        pushing.pusher.was_read(SHELL + 2)
    assert pushed <= 4


def test_what_is_read_and_was_never_pushed_says_nothing_about_the_others(pushing: Pushing) -> None:
    pushing.open(SHELL)
    pushing.pusher.was_read(INODE)
    assert pushing.open(SHELL) == []
    assert pushing.open() == []  # and it has been read: at least a part is there


def test_epochs_begin_again_after_the_last_one(pushing: Pushing, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10**15
    monkeypatch.setattr(pusher, "time", SimpleNamespace(monotonic_ns=lambda: now))
    for _ in range(600):
        now += 10**10
        assert pushing.open(SHELL) == [(SHELL + 2, 0, b"#!")]
        pushing.pusher.was_read(SHELL + 2)
        pushing.pusher.forgotten([SHELL + 2])


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, pusher.MAX_BYTES])
def test_nothing_is_pushed_beyond_the_size(pushing: Pushing, size: int) -> None:
    """It would make the file longer."""
    pushing.filesystem.nodes[FILE] = Node(stat.S_IFREG | 0o644, os.urandom(size))
    assert [(offset, len(data)) for _, offset, data in pushing.open()] == [(0, size)]


@pytest.mark.parametrize("size", [pusher.MAX_BYTES + 1, 1 << 30])
def test_large_file_is_left_to_read(pushing: Pushing, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(bytes):
        def __len__(self) -> int:
            return size

    pushing.filesystem.nodes[FILE] = Node(stat.S_IFREG | 0o644, Large())
    monkeypatch.setattr(pushing.filesystem, "read", None)  # not even looked at
    assert pushing.open() == []


@pytest.mark.parametrize("nid", [ROOT, BIN, LINK, DEVICE, EMPTY])
def test_what_has_no_content_is_not_pushed(pushing: Pushing, nid: int) -> None:
    assert pushing.open(nid) == []
    assert pushing.tokens.taken == 0


def test_no_token_no_push(shared: SharedState, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers but one may sleep in the kernel: who is left answers the READ that the others wait for."""
    pushing = Pushing(shared, kernel, tokens=0)
    assert pushing.open() == []
    pushing.tokens.free = 1
    assert pushing.open() == [(INODE, 0, CONTENT)]  # it was not taken for pushed


def test_push_happens_while_the_token_is_held(pushing: Pushing, monkeypatch: pytest.MonkeyPatch) -> None:
    free: list[int] = []
    monkeypatch.setattr(pyfuse3, "notify_store", lambda *_: free.append(pushing.tokens.free))
    pushing.open()
    assert free == [0]


@pytest.mark.parametrize("error", ["corrupt", "malformed", "medium"])
def test_corrupt_content_is_left_to_read(pushing: Pushing, error: str) -> None:
    """READ tells the caller and the log, and only READ: the open itself succeeds."""
    if error == "corrupt":
        pushing.filesystem.corrupt(FILE)
    elif error == "malformed":
        pushing.filesystem.malform(FILE)
    else:
        pushing.filesystem.fail(FILE, ReadError("medium"))
    assert pushing.open() == []
    assert pushing.tokens.free == 1
    assert pushing.open(SHELL) == [(SHELL + 2, 0, b"#!")]


def test_corruption_found_while_the_token_is_held_gives_it_back(
    pushing: Pushing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> bytes:
        raise ReadError("medium")

    monkeypatch.setattr(pushing.filesystem, "read", fail)
    assert pushing.open() == []
    assert (pushing.tokens.taken, pushing.tokens.free) == (1, 1)


@pytest.mark.parametrize("error", [errno.ENOENT, errno.ENOMEM, errno.EINVAL])
def test_kernel_that_refuses_harms_nothing(pushing: Pushing, error: int) -> None:
    """ENOENT is normal: it has forgotten the inode meanwhile."""
    pushing.kernel.error = error
    assert pushing.open() == []
    assert pushing.tokens.free == 1
    assert pushing.numbers[Number.PUSHED] == 0
    pushing.kernel.error = None
    pushing.pusher.forgotten([INODE])
    assert pushing.open() == [(INODE, 0, CONTENT)]


def test_files_that_share_a_flag_are_never_wrong(pushing: Pushing) -> None:
    """At worst one of them is read by READ."""
    index = pushing.pusher._index(INODE)
    twin = next(nid for nid in itertools.count(1000) if pushing.pusher._index(nid + 2) == index)
    pushing.filesystem.nodes[twin] = Node(stat.S_IFREG | 0o644, b"twin")
    assert pushing.open() == [(INODE, 0, CONTENT)]
    assert pushing.open(twin) == []
    pushing.pusher.forgotten([twin + 2])
    assert pushing.open(twin) == [(twin + 2, 0, b"twin")]
