# SPDX-License-Identifier: Apache-2.0
"""prctl(2), for those of its operations that take one number. Which to use, and when, is for others to know."""

from __future__ import annotations

import ctypes
import os
from typing import Final

# linux/prctl.h
SET_PDEATHSIG: Final = 1
SET_DUMPABLE: Final = 4
CAPBSET_DROP: Final = 24
SET_NO_NEW_PRIVS: Final = 38

_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, value: int) -> None:
    """Set something of this process.

    Raises:
        OSError: The kernel refused.
    """
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}, {value}): {os.strerror(number)}")
