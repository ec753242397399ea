# SPDX-License-Identifier: Apache-2.0
"""Which error becomes which errno."""

from __future__ import annotations

import errno

import pytest

from rofs.errors import BlockFault, CorruptionError, FormatError, HostError, ImageError, ReadError
from rofs.fuse.errnos import errno_of, name_of


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (CorruptionError(BlockFault("mismatch", -1, 0)), errno.EIO),
        (ReadError("medium"), errno.EIO),
        (FormatError("malformed"), errno.EUCLEAN),
        (ImageError("other"), errno.EIO),
        (HostError("other"), errno.EIO),
        (NotADirectoryError(errno.ENOTDIR, "not a directory"), errno.ENOTDIR),
        (OSError(errno.EINVAL, "no link"), errno.EINVAL),
        (FileNotFoundError(errno.ENOENT, "unforeseen"), errno.EIO),
        (OSError("without a number"), errno.EIO),
        (KeyError("x"), errno.EIO),
    ],
)
def test_table(error: Exception, number: int) -> None:
    assert errno_of(error) == number


def test_names() -> None:
    assert (name_of(errno.EROFS), name_of(errno.EUCLEAN), name_of(99_999)) == ("EROFS", "EUCLEAN", "99999")
