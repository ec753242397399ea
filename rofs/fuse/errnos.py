# SPDX-License-Identifier: Apache-2.0
"""The one table from rofs's errors to errno values that a caller of the filesystem sees."""

from __future__ import annotations

import errno

from rofs.errors import CorruptionError, FormatError, ReadError

# The first match counts. EUCLEAN ("structure needs cleaning") is what the kernel's filesystems answer
# to malformed metadata; bytes that fail verification are EIO, as with dm-verity.
_ERRNOS: tuple[tuple[type[Exception], int], ...] = (
    (CorruptionError, errno.EIO),
    (ReadError, errno.EIO),
    (FormatError, errno.EUCLEAN),
)


def errno_of(error: Exception) -> int:
    """The errno that answers a request which failed with `error`; EIO for what nobody foresaw."""
    if isinstance(error, OSError) and error.errno in {errno.ENOTDIR, errno.EINVAL}:
        return error.errno
    return next((number for kind, number in _ERRNOS if isinstance(error, kind)), errno.EIO)


def name_of(number: int) -> str:
    """An errno as a name, such as `EROFS`."""
    return errno.errorcode.get(number, str(number))
