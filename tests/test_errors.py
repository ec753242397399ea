# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs import errors
from rofs.errors import BlockFault, CorruptionError, HostError, InputError, from_os_error, printable


def test_every_error_has_one_root_and_a_meaning() -> None:
    found = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, Exception)]
    assert len(found) > 5
    assert all(issubclass(c, errors.RofsError) and c.__doc__ for c in found)


@pytest.mark.parametrize(
    ("number", "leaf"),
    [
        (errno.ENOENT, InputError),
        (errno.ENOTDIR, InputError),
        (errno.ELOOP, InputError),
        (errno.EACCES, HostError),
        (errno.EIO, HostError),
        (errno.ENOSPC, HostError),
    ],
)
def test_an_os_error_becomes_the_leaf_at_fault(number: int, leaf: type[Exception]) -> None:
    error = from_os_error(OSError(number, os.strerror(number)), "cannot open", b"/a\n\xff")
    assert type(error) is leaf
    assert str(error).startswith(f"cannot open /a\\n\\xff: {os.strerror(number)}")
    assert ("free some space" in str(error)) == (number == errno.ENOSPC)


def test_an_os_error_without_a_number() -> None:
    assert str(from_os_error(OSError("odd"), "cannot open", "x")) == "cannot open x: odd"


@given(st.binary())
def test_paths_are_one_printable_line(path: bytes) -> None:
    text = printable(path)
    assert text.isprintable() or not text
    assert printable(os.fsdecode(path)) == text


def test_plain_and_foreign_names_stay_readable() -> None:
    assert printable("/srv/données \U0001f980") == "/srv/données \U0001f980"
    assert printable(b"\x1b[31m\x7f\xff") == "\\x1b[31m\\x7f\\xff"


def test_a_fault_says_where_and_what() -> None:
    data = BlockFault("mismatch", -1, 7, b"\x01", b"\x02")
    assert str(CorruptionError(data)) == "corrupt image: data block 7: digest expected 01, found 02"
    assert str(BlockFault("io", 1, 3)) == "hash block 3 of tree level 1 cannot be read"
    assert "unknown" in str(BlockFault("mismatch", 0, 0))
