# SPDX-License-Identifier: Apache-2.0
"""Numbers of the system calls that change files, by architecture, as the kernel's audit subsystem knows them.

Source: asm/unistd.h of each architecture, linux/audit.h (AUDIT_ARCH_*).
"""

from __future__ import annotations

from typing import Final

# Those that open: whether one is meant to write, its flags say.
OPENING: Final = frozenset({"open", "openat", "openat2"})

# They are newer than the audit tools of Debian 12 and 13, which take the number in place of the name.
NEWER_THAN_TOOLS: Final = frozenset({"fchmodat2", "setxattrat", "removexattrat"})


def _table(text: str) -> dict[str, int]:
    pairs = (entry.split("=") for entry in text.split())
    return {name: int(number) for name, number in pairs}


_EVERYWHERE = {"openat2": 437, "fchmodat2": 452, "setxattrat": 463, "removexattrat": 466}

_X86_64 = _EVERYWHERE | _table(
    """
    open=2 openat=257 creat=85 truncate=76 ftruncate=77 mkdir=83 mkdirat=258
    mknod=133 mknodat=259 rmdir=84 unlink=87 unlinkat=263 rename=82 renameat=264
    renameat2=316 link=86 linkat=265 symlink=88 symlinkat=266 chmod=90 fchmod=91
    fchmodat=268 chown=92 fchown=93 lchown=94 fchownat=260 utime=132 utimes=235
    futimesat=261 utimensat=280 setxattr=188 lsetxattr=189 fsetxattr=190
    removexattr=197 lremovexattr=198 fremovexattr=199
    """
)
_AARCH64 = _EVERYWHERE | _table(
    """
    openat=56 truncate=45 ftruncate=46 mkdirat=34 mknodat=33 unlinkat=35
    renameat=38 renameat2=276 linkat=37 symlinkat=36 fchmod=52 fchmodat=53
    fchown=55 fchownat=54 utimensat=88 setxattr=5 lsetxattr=6 fsetxattr=7
    removexattr=14 lremovexattr=15 fremovexattr=16
    """
)
_32_BIT = _EVERYWHERE | _table(  # what i386 and arm have in common
    """
    open=5 creat=8 truncate=92 ftruncate=93 truncate64=193 ftruncate64=194 mkdir=39
    mknod=14 rmdir=40 unlink=10 rename=38 link=9 symlink=83 chmod=15 fchmod=94
    chown=182 fchown=95 lchown=16 chown32=212 fchown32=207 lchown32=198
    setxattr=226 lsetxattr=227 fsetxattr=228 removexattr=235 lremovexattr=236
    fremovexattr=237 utimensat_time64=412
    """
)
_I386 = _32_BIT | _table(
    """
    openat=295 mkdirat=296 mknodat=297 fchownat=298 futimesat=299 unlinkat=301
    renameat=302 linkat=303 symlinkat=304 fchmodat=306 utime=30 utimes=271
    utimensat=320 renameat2=353
    """
)
_ARM = _32_BIT | _table(
    """
    openat=322 mkdirat=323 mknodat=324 fchownat=325 futimesat=326 unlinkat=328
    renameat=329 linkat=330 symlinkat=331 fchmodat=333 utimes=269 utimensat=348
    renameat2=382
    """
)

# By the machine's name, as uname(2) gives it: what its 64-bit and its 32-bit programs call.
OF_MACHINE: Final = {"x86_64": {"b64": _X86_64, "b32": _I386}, "aarch64": {"b64": _AARCH64, "b32": _ARM}}

# By `arch` of an audit record, in hexadecimal.
_OF_AUDIT_ARCH = {"c000003e": _X86_64, "40000003": _I386, "c00000b7": _AARCH64, "40000028": _ARM}


def name_of(audit_arch: str, number: str) -> str:
    """What a system call of an audit record is called.

    Args:
        audit_arch: As in the record.
        number: As in the record.

    Returns:
        Its name, or its number when it is none of those here.
    """
    table = _OF_AUDIT_ARCH.get(audit_arch.lower(), {})
    return next((name for name, known in table.items() if str(known) == number), number)
