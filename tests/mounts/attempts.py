#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Tries to change a mounted `small_tree` in every way a program can; prints what each attempt got as JSON.

Run by test_refusing in a process of its own, as root or another user: attempts.py MOUNT. Standard
library only, for the system's Python, which ordinary users can run.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

MOUNT = sys.argv[1]
LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, UTIME_NOW = -100, (1 << 30) - 1
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
FS_IOC_SETFLAGS, FS_IMMUTABLE_FL = 0x40086602, 0x10
FALLOC_FL_PUNCH_HOLE_KEEP_SIZE = 3
NO_ID = 0xFFFFFFFF


def at(name: str) -> str:
    return os.path.join(MOUNT, name)


def call(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def open_close(name: str, flags: int) -> None:
    os.close(os.open(at(name), flags, 0o644))


def with_fd(name: str, flags: int, action: Callable[[int], Any]) -> None:
    fd = os.open(at(name), flags)
    try:
        action(fd)
    finally:
        os.close(fd)


def renameat2(old: str, new: str, flags: int) -> None:
    call(LIBC.renameat2(AT_FDCWD, at(old).encode(), AT_FDCWD, at(new).encode(), flags))


def utime_now(name: str) -> None:
    now = struct.pack("qqqq", 0, UTIME_NOW, 0, UTIME_NOW)
    call(LIBC.utimensat(AT_FDCWD, at(name).encode(), now, 0))


def bind_socket() -> None:
    os.chdir(MOUNT)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("new-socket")


def shared_writable_mapping(fd: int) -> None:
    mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()


def capability() -> None:
    value = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    os.setxattr(at("program"), "security.capability", value)


def access_list() -> None:
    entries = ((1, 6, NO_ID), (4, 4, NO_ID), (32, 0, NO_ID))
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)
    os.setxattr(at("open-to-all"), "system.posix_acl_access", value)


R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
ATTEMPTS: dict[str, Callable[[], Any]] = {
    "open for writing": lambda: open_close("open-to-all", W),
    "open for reading and writing": lambda: open_close("open-to-all", RW),
    "open for appending": lambda: open_close("open-to-all", W | os.O_APPEND),
    "open for reading with O_TRUNC": lambda: open_close("open-to-all", R | os.O_TRUNC),
    "open through a symlink": lambda: open_close("symlink", W),
    "create": lambda: open_close("new", W | os.O_CREAT),
    "create for reading": lambda: open_close("new", R | os.O_CREAT),
    "create below": lambda: open_close("directory/new", W | os.O_CREAT | os.O_EXCL),
    "O_CREAT of what exists, for reading": lambda: open_close("open-to-all", R | os.O_CREAT),
    "O_EXCL of what exists": lambda: open_close("open-to-all", W | os.O_CREAT | os.O_EXCL),
    "O_TMPFILE": lambda: open_close("directory", os.O_TMPFILE | RW),
    "truncate": lambda: os.truncate(at("open-to-all"), 1),
    "chmod": lambda: os.chmod(at("open-to-all"), 0o600),
    "chmod by descriptor": lambda: with_fd("open-to-all", R, lambda fd: os.fchmod(fd, 0o600)),
    "chmod of a directory": lambda: os.chmod(at("directory"), 0o700),
    "chown": lambda: os.chown(at("open-to-all"), 5, 5),
    "chown of a symlink": lambda: os.lchown(at("symlink"), 5, 5),
    "utime": lambda: os.utime(at("open-to-all"), (1, 1)),
    "utime to now": lambda: utime_now("open-to-all"),
    "mkdir": lambda: os.mkdir(at("new")),
    "mkdir of what exists": lambda: os.mkdir(at("directory")),
    "rmdir": lambda: os.rmdir(at("empty")),
    "rmdir of what is missing": lambda: os.rmdir(at("absent")),
    "unlink": lambda: os.unlink(at("open-to-all")),
    "unlink below": lambda: os.unlink(at("directory/inner")),
    "unlink of what is missing": lambda: os.unlink(at("absent")),
    "rename": lambda: os.rename(at("open-to-all"), at("new")),
    "rename over": lambda: os.rename(at("open-to-all"), at("plain")),
    "rename of a directory": lambda: os.rename(at("directory"), at("new")),
    "rename into a directory": lambda: os.rename(at("open-to-all"), at("directory/new")),
    "rename without replacing": lambda: renameat2("open-to-all", "new", RENAME_NOREPLACE),
    "rename that exchanges": lambda: renameat2("open-to-all", "copy-a", RENAME_EXCHANGE),
    "rename of what is missing": lambda: os.rename(at("absent"), at("new")),
    "link": lambda: os.link(at("open-to-all"), at("new")),
    "link over": lambda: os.link(at("open-to-all"), at("plain")),
    "symlink": lambda: os.symlink("anywhere", at("new")),
    "symlink over": lambda: os.symlink("anywhere", at("plain")),
    "mkfifo": lambda: os.mkfifo(at("new")),
    "mknod of a device": lambda: os.mknod(at("new"), 0o020666, os.makedev(1, 3)),
    "bind of a socket": bind_socket,
    "setxattr": lambda: os.setxattr(at("open-to-all"), "user.new", b"1"),
    "setxattr that creates": lambda: os.setxattr(at("open-to-all"), "user.new", b"1", os.XATTR_CREATE),
    "setxattr that replaces": lambda: os.setxattr(at("open-to-all"), "user.note", b"2", os.XATTR_REPLACE),
    "setxattr trusted": lambda: os.setxattr(at("open-to-all"), "trusted.new", b"1"),
    "setxattr of a capability": capability,
    "setxattr of an ACL": access_list,
    "removexattr": lambda: os.removexattr(at("open-to-all"), "user.note"),
    "FS_IOC_SETFLAGS": lambda: with_fd(
        "open-to-all", R, lambda fd: fcntl.ioctl(fd, FS_IOC_SETFLAGS, struct.pack("l", FS_IMMUTABLE_FL))
    ),
    "write to a descriptor for reading": lambda: with_fd("open-to-all", R, lambda fd: os.write(fd, b"x")),
    "truncate of a descriptor for reading": lambda: with_fd("open-to-all", R, lambda fd: os.ftruncate(fd, 1)),
    "fallocate of a descriptor for reading": lambda: with_fd("open-to-all", R, lambda fd: os.posix_fallocate(fd, 0, 9)),
    "shared writable mapping": lambda: with_fd("open-to-all", R, shared_writable_mapping),
    "open of a FIFO for writing": lambda: open_close("fifo", RW | os.O_NONBLOCK),
    "fsync": lambda: with_fd("open-to-all", R, os.fsync),
    "flock": lambda: with_fd("open-to-all", R, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)),
}


def outcome(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except OSError as error:
        return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode[error.errno or 0]
    return "done"


sys.stdout.write(
    json.dumps({"pid": os.getpid(), "got": {name: outcome(attempt) for name, attempt in ATTEMPTS.items()}})
)
