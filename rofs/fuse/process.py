# SPDX-License-Identifier: Apache-2.0
"""Forking the processes of a mount: what a child keeps, and what it gives up before it starts.

Not from a running trio loop. A child never returns into its parent's code.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable

NOBODY = 65534  # the overflow uid and gid: owns nothing
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_libc = ctypes.CDLL(None, use_errno=True)


def fork(main: Callable[[], None], *, keep: Iterable[int], unprivileged: bool) -> int:
    """Run `main` in a child process.

    The child ignores SIGINT, SIGTERM and SIGHUP: the keeper alone decides when a mount ends. It is killed when
    its parent dies, so that no half of a mount stays behind.

    Args:
        main: What the child does; its exit status is 0 when it returns and 1 when it raises.
        keep: Descriptors that the child needs besides 0 to 2; all others are closed.
        unprivileged: Whether it becomes nobody, without capabilities and without a way to get any.

    Returns:
        Its pid.
    """
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        close_all_but({0, 1, 2, *keep})
        if unprivileged:
            drop_privileges()
        _die_with(parent, signal.SIGKILL if unprivileged else None)
        main()
        status = 0
    except BaseException:  # noqa: BLE001 - nothing may escape into the parent's code
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(status)


def drop_privileges() -> None:
    """Become nobody for good. A process that is not root has nothing to drop."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _die_with(parent: int, number: signal.Signals | None) -> None:
    """Have the kernel send a signal when the parent dies; None leaves it to an end of file on a socket."""
    if number is not None:
        # After the change of user, which clears it.
        _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor that is not named, also those that were inherited without our knowing."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):
                os.close(int(name))
