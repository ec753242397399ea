# SPDX-License-Identifier: Apache-2.0
"""Open flags by name, as events show them."""

from __future__ import annotations

import os

# O_LARGEFILE (which 64-bit programs always have) and what only open(2) itself looks at are left out.
_FLAGS = (
    "O_APPEND",
    "O_CREAT",
    "O_DIRECT",
    "O_DSYNC",
    "O_EXCL",
    "O_NOATIME",
    "O_NOFOLLOW",
    "O_NONBLOCK",
    "O_SYNC",
    "O_TRUNC",
)
_ACCESS = {os.O_RDONLY: "O_RDONLY", os.O_WRONLY: "O_WRONLY", os.O_RDWR: "O_RDWR"}


def wants_write(flags: int) -> bool:
    """Whether an open with these flags could change the file."""
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)


def flag_names(flags: int) -> tuple[str, ...]:
    """The access mode and every known flag, by name."""
    access = _ACCESS.get(flags & os.O_ACCMODE, "O_ACCMODE")
    return (access, *(name for name in _FLAGS if flags & getattr(os, name) == getattr(os, name)))
