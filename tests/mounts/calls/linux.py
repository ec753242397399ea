# SPDX-License-Identifier: Apache-2.0
"""System calls and structures of Linux that Python has no words for. Nothing here knows what is mounted."""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Callable
from typing import Any, TypeVar

AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_REMOVEDIR, AT_EMPTY_PATH = -100, 0x100, 0x200, 0x1000
UTIME_NOW = (1 << 30) - 1
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FS_IMMUTABLE_FL = 0x10
_NO_ID = 0xFFFFFFFF
_SYS_FCHMODAT2, _SYS_OPENAT2 = 452, 437  # the same number on all architectures
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_T = TypeVar("_T")


def libc(name: str, *arguments: object) -> int:
    """Call a function of the C library.

    Raises:
        OSError: It returned less than 0.
    """
    result: int = getattr(_LIBC, name)(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


def with_fd(name: str, flags: int, action: Callable[[int], _T]) -> _T:
    """Open, do something with the descriptor, close."""
    fd = os.open(name, flags, 0o644)
    try:
        return action(fd)
    finally:
        os.close(fd)


def open_only(name: str, flags: int) -> None:
    """Open and close."""
    os.close(os.open(name, flags, 0o644))


def openat2(name: str, flags: int, resolve: int = 0) -> None:
    how = struct.pack("QQQ", flags, 0o644 if flags & os.O_CREAT else 0, resolve)
    os.close(libc("syscall", ctypes.c_long(_SYS_OPENAT2), AT_FDCWD, name.encode(), how, ctypes.c_size_t(len(how))))


def renameat2(old: str, new: str, flags: int) -> None:
    libc("renameat2", AT_FDCWD, old.encode(), AT_FDCWD, new.encode(), flags)


def fchmodat2(name: str, mode: int, flags: int) -> None:
    libc("syscall", ctypes.c_long(_SYS_FCHMODAT2), AT_FDCWD, name.encode(), mode, flags)


def utimensat(name: str, nanoseconds: int, flags: int = 0) -> None:
    times = struct.pack("qqqq", 0, nanoseconds, 0, nanoseconds)
    libc("utimensat", AT_FDCWD, name.encode(), times, flags)


def utimes_now(name: str) -> None:
    libc("utimes", name.encode(), None)


def change_flags(fd: int) -> None:
    """chflags(1) of other systems: make a file immutable."""
    ioctl_set_flags = 0x40086602
    fcntl.ioctl(fd, ioctl_set_flags, struct.pack("l", FS_IMMUTABLE_FL))


def capability() -> bytes:
    """The xattr that gives a program CAP_NET_BIND_SERVICE."""
    return struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)


def access_list(*users: tuple[int, int]) -> bytes:
    """The xattr of an ACL: owner and group read and write, others read, and users as given."""
    entries = [(1, 6, _NO_ID), *((2, bits, uid) for uid, bits in users), (4, 6, _NO_ID), (16, 6, _NO_ID)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in [*entries, (32, 4, _NO_ID)])


def statx(name: str) -> dict[str, Any]:
    """What statx(2) has beyond stat(2)."""
    mask, wanted, layout = 0, 0x7FFFFFFF, "<IIQIIIHxxQQQQ"
    buffer = ctypes.create_string_buffer(256)
    libc("statx", AT_FDCWD, name.encode(), AT_SYMLINK_NOFOLLOW, wanted & ~(1 << 31), buffer)
    mask, _blksize, attributes, *_others = struct.unpack_from(layout, buffer)
    return {"mask": hex(mask), "attributes": hex(attributes)}


def entries_of(fd: int, size: int = 32768) -> list[tuple[str, int, int, int]]:
    """Name, d_type, d_ino and d_off of what one getdents64(2) gives."""
    buffer = ctypes.create_string_buffer(size)
    length = libc("getdents64", fd, buffer, ctypes.c_size_t(size))
    found, at = [], 0
    while at < length:
        ino, off, reclen, kind = struct.unpack_from("<QqHB", buffer, at)
        found.append((buffer.raw[at + 19 : at + reclen].split(b"\0")[0].decode(), kind, ino, off))
        at += reclen
    return found


def all_entries(fd: int, size: int = 32768) -> list[tuple[str, int, int, int]]:
    """All that getdents64(2) gives from here to the end."""
    found = []
    while part := entries_of(fd, size):
        found.extend(part)
    return found


def handle_of(name: str) -> tuple[int, bytes]:
    """Type and content of a file handle, by name_to_handle_at(2)."""
    buffer = ctypes.create_string_buffer(struct.pack("Ii", 128, 0), 8 + 128)
    libc("name_to_handle_at", AT_FDCWD, name.encode(), buffer, ctypes.byref(ctypes.c_int()), 0)
    length, kind = struct.unpack_from("Ii", buffer)
    return kind, buffer.raw[8 : 8 + length]


def open_handle(kind: int, handle: bytes) -> int:
    """Open by open_by_handle_at(2), on the filesystem of the working directory."""
    buffer = struct.pack("Ii", len(handle), kind) + handle
    return with_fd(".", os.O_RDONLY, lambda here: libc("open_by_handle_at", here, buffer, os.O_RDONLY))


def getxattr(name: str, xattr: str, size: int) -> int:
    """What lgetxattr(2) returns, given a buffer of a size."""
    return libc(
        "lgetxattr", name.encode(), xattr.encode(), ctypes.create_string_buffer(size + 1), ctypes.c_size_t(size)
    )


def listxattr(name: str, size: int) -> int:
    """What llistxattr(2) returns, given a buffer of a size."""
    return libc("llistxattr", name.encode(), ctypes.create_string_buffer(size + 1), ctypes.c_size_t(size))


def descriptor_of_an_event(name: str) -> None:
    """Have fanotify(7) open a file for writing, to go with an event about it."""
    nonblocking, report_fd_error, on_open = 2, 0x2000, 0x20
    group = libc("fanotify_init", nonblocking | report_fd_error, os.O_RDWR)
    try:
        libc("fanotify_mark", group, 1, ctypes.c_uint64(on_open), AT_FDCWD, name.encode())
        open_only(name, os.O_RDONLY)
        fd: int
        (fd,) = struct.unpack_from("<i", os.read(group, 4096), 16)
        if fd < 0:
            raise OSError(-fd, "fanotify")
        os.close(fd)
    finally:
        os.close(group)
