# SPDX-License-Identifier: Apache-2.0
"""Confines the processes that read untrusted bytes: no file, no socket, no other process is in their reach.

Landlock takes the filesystem, TCP and signals, seccomp takes all system calls but a few; each would do for
most of it alone, and where a kernel lacks one the other is left. What is open already stays usable. Who a
process is, and what it inherits, is `process`'s business.

Libraries were looked for: those for Python are young or asleep, and the early boot is no place for one more.
Source: seccomp(2), landlock(7), PR_SET_DUMPABLE(2const); Linux include/uapi/linux/{seccomp,landlock,prctl}.h.
"""

from __future__ import annotations

import codecs
import ctypes
import errno
import os
import struct
from dataclasses import dataclass

from rofs.fuse import seccomp
from rofs.fuse.prctl import SET_DUMPABLE, SET_NO_NEW_PRIVS, prctl
from rofs.fuse.seccomp import RESOLVER, VERIFIER, WORKER, Profile

__all__ = ["RESOLVER", "VERIFIER", "WORKER", "Profile", "Support", "confine", "forbid_dumps", "support"]

_SET_MODE_FILTER, _GET_ACTION_AVAIL = 1, 2
_SPEC_ALLOW = 4  # SECCOMP_FILTER_FLAG_SPEC_ALLOW
# The same on all machines that `seccomp` knows, but for the first.
_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277}
_SYS_LANDLOCK_CREATE_RULESET, _SYS_LANDLOCK_RESTRICT_SELF = 444, 446
_CREATE_RULESET_VERSION = 1

# Rights by the Landlock ABI that brought them (landlock(7)): of files 13, then "refer", "truncate", "ioctl on
# devices", "resolve a socket's name"; of the network to bind and connect TCP; scopes: abstract sockets, signals.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: 1 << 13, 3: 1 << 14, 5: 1 << 15, 9: 1 << 16}
_NETWORK_RIGHTS = {4: 3}
_SCOPES = {6: 3}
_LAST_ABI = 9

# A confined process cannot read the files of a codec that it needs late: they are found before.
for _name in ("ascii", "latin-1", "unicode_escape", "utf-16-le"):
    codecs.lookup(_name)

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Support:
    """What this kernel can confine a process with.

    Attributes:
        seccomp: Whether it filters system calls.
        landlock_abi: The version of Landlock, 0 when there is none.
    """

    seccomp: bool
    landlock_abi: int

    @property
    def lacks(self) -> list[str]:
        """What is missing and what that means, one line each."""
        lines = []
        if not self.seccomp:
            lines.append("seccomp is missing here: system calls of the processes that read the image are not filtered")
        if not self.landlock_abi:
            lines.append("Landlock is missing here: files are out of those processes' reach by seccomp alone")
        if len(lines) > 1:
            lines = ["seccomp and Landlock are missing here: an image that takes a process over has an ordinary user"]
        return lines


def support() -> Support:
    """What this kernel, or the container that this runs in, has."""
    try:
        version = _syscall("landlock_create_ruleset", _SYS_LANDLOCK_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    except OSError:  # ENOSYS, EOPNOTSUPP when it is off, EPERM in a container
        version = 0
    return Support(_has_filters(), version)


def _has_filters() -> bool:
    machine = _machine()
    if not seccomp.knows(machine):
        return False
    action = ctypes.c_uint32(seccomp.RET_KILL_PROCESS)
    try:
        _syscall("seccomp", _SYS_SECCOMP[machine], _GET_ACTION_AVAIL, 0, ctypes.byref(action))
    except OSError:  # older than Linux 4.14, without CONFIG_SECCOMP_FILTER, or EPERM in a container
        return False
    return True


def _machine() -> str:
    """As uname(2) says; nothing that `seccomp` knows for a 32-bit program, whose system calls are others."""
    return os.uname().machine if ctypes.sizeof(ctypes.c_void_p) == 8 else ""


def confine(profile: Profile) -> list[str]:
    """Give up, for good, everything that a process of that kind does not need; it must have one thread only.

    Returns:
        What could not be done since the kernel lacks it, one line each; see `Support.lacks`.

    Raises:
        OSError: The kernel has it and refused all the same; the caller must not go on.
    """
    forbid_dumps()
    prctl(SET_NO_NEW_PRIVS, 1)
    has = support()
    if has.landlock_abi:
        _restrict(min(has.landlock_abi, _LAST_ABI))
    if has.seccomp:
        _filter(seccomp.program(profile, _machine(), os.getpid()))
    return has.lacks


def forbid_dumps() -> None:
    """No core is dumped of this process, and nobody of the same user reads its memory or traces it.

    What belongs to root then in /proc/PID is not what anybody needs: `stat`, `statm` and `status` stay
    readable for all.
    """
    prctl(SET_DUMPABLE, 0)


def _restrict(abi: int) -> None:
    """Handle every right that there is and grant none."""
    fields = [_up_to(abi, rights) for rights in (_FILE_RIGHTS, _NETWORK_RIGHTS, _SCOPES)]
    # struct landlock_ruleset_attr; older kernels take a longer one if what they do not know is 0.
    attributes = struct.pack("<3Q", *fields)
    ruleset = _syscall("landlock_create_ruleset", _SYS_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _syscall("landlock_restrict_self", _SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _up_to(abi: int, rights: dict[int, int]) -> int:
    return sum(bits for since, bits in rights.items() if since <= abi)


class _Program(ctypes.Structure):  # struct sock_fprog
    _fields_ = [
        ("len", ctypes.c_ushort),
        ("filter", ctypes.c_char_p),
    ]


def _filter(code: bytes) -> None:
    arguments = _SYS_SECCOMP[_machine()], _SET_MODE_FILTER
    program = ctypes.byref(_Program(len(code) // 8, code))
    try:
        # Kernels before 5.16 would else switch a mitigation on that slows all of the process down (Spectre v4):
        # it is for programs that run others' code beside their own secrets, and these have neither.
        _syscall("seccomp", *arguments, _SPEC_ALLOW, program)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _syscall("seccomp", *arguments, 0, program)  # before 4.17 that flag is unknown


def _syscall(name: str, number: int, *arguments: object) -> int:
    """Make a system call that the C library has no function for."""
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in (number, *arguments)]
    result: int = _libc.syscall(*words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result
