# SPDX-License-Identifier: Apache-2.0
"""Open flags: what could write, and what they are called."""

from __future__ import annotations

import os

import pytest

from rofs.fuse.flags import flag_names, wants_write

O_LARGEFILE = 0o100000


@pytest.mark.parametrize(
    ("flags", "writes", "names"),
    [
        (os.O_RDONLY, False, ("O_RDONLY",)),
        (os.O_WRONLY, True, ("O_WRONLY",)),
        (os.O_RDWR, True, ("O_RDWR",)),
        (os.O_ACCMODE, True, ("O_ACCMODE",)),  # ioctl only; the kernel asks for write permission
        (os.O_RDONLY | os.O_TRUNC, True, ("O_RDONLY", "O_TRUNC")),
        (os.O_RDONLY | os.O_APPEND | os.O_NONBLOCK, False, ("O_RDONLY", "O_APPEND", "O_NONBLOCK")),
        (O_LARGEFILE | os.O_CLOEXEC | os.O_RDONLY, False, ("O_RDONLY",)),
        (os.O_WRONLY | os.O_DSYNC, True, ("O_WRONLY", "O_DSYNC")),
        (os.O_WRONLY | os.O_SYNC, True, ("O_WRONLY", "O_DSYNC", "O_SYNC")),  # O_SYNC holds the bit of O_DSYNC
        (os.O_WRONLY | os.O_CREAT | os.O_EXCL, True, ("O_WRONLY", "O_CREAT", "O_EXCL")),
    ],
)
def test_flags(flags: int, writes: bool, names: tuple[str, ...]) -> None:
    assert wants_write(flags) == writes
    assert flag_names(flags) == names
