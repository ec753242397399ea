# SPDX-License-Identifier: Apache-2.0
"""Calls that only read. Names are relative to the root of the mount, which is the working directory.

Each returns what a program could see, as JSON has it. What is right is said by the tests, not here.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import itertools
import mmap
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, Final, TypeVar

from tests.mounts.calls import linux
from tests.mounts.calls.changing import LONG_NAME, LONG_PATH, OUTSIDE, access
from tests.mounts.calls.linux import open_only, with_fd

R, W, RW = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
_O_PATH = os.O_PATH
_T = TypeVar("_T")


def each(function: Callable[[str], Any]) -> dict[str, Any]:
    """What a function returns for every name in the root and in one directory."""
    names = (*os.listdir("."), *(f"directory/{name}" for name in os.listdir("directory")), ".")
    return {name: function(name) for name in sorted(names)}


def _fields(*fields: str) -> Callable[[], dict[str, Any]]:
    return lambda: each(lambda name: [getattr(os.lstat(name), field) for field in fields])


def _statfs(*fields: str) -> Callable[[], list[int]]:
    return lambda: [getattr(os.statvfs("."), field) for field in fields]


def _f_type() -> str:
    buffer = ctypes.create_string_buffer(256)
    linux.libc("statfs", b".", buffer)
    return hex(struct.unpack_from("q", buffer)[0])


def _in_directory(name: str, action: Callable[[int], _T]) -> _T:
    return with_fd(name, R | os.O_DIRECTORY, action)


def _names_and_types(name: str, size: int = 32768) -> list[tuple[str, int]]:
    return _in_directory(name, lambda fd: [entry[:2] for entry in linux.all_entries(fd, size)])


def _inode_numbers_agree() -> bool:
    entries = _in_directory("directory", linux.all_entries)
    return all(ino == os.lstat(f"directory/{name}").st_ino for name, _kind, ino, _off in entries if name != "..")


def _every_offset_can_be_returned_to(fd: int) -> bool:
    entries = linux.all_entries(fd)
    for entry, following in itertools.pairwise(entries):
        os.lseek(fd, entry[3], os.SEEK_SET)
        if linux.entries_of(fd, 128)[0][0] != following[0]:
            return False
    os.lseek(fd, entries[-1][3], os.SEEK_SET)
    return not linux.entries_of(fd)


def _rewound(fd: int) -> bool:
    first = linux.all_entries(fd)
    os.lseek(fd, 0, os.SEEK_SET)
    return linux.all_entries(fd) == first


def _xattrs_of(name: str) -> dict[str, str]:
    names = sorted(set(os.listxattr(name, follow_symlinks=False)) - {"user.rofs.image"})
    return {xattr: _value(name, xattr) for xattr in names}


def _value(name: str, xattr: str) -> str:
    try:
        return os.getxattr(name, xattr, follow_symlinks=False).hex()
    except OSError as error:
        return os.strerror(error.errno or 0)


def _digest(name: str) -> str:
    with open(name, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reading(name: str, size: int, offset: int) -> Callable[[], str]:
    return lambda: with_fd(name, R, lambda fd: hashlib.sha256(os.pread(fd, size, offset)).hexdigest())


def _read_length(name: str, size: int, offset: int, flags: int = R) -> Callable[[], int]:
    return lambda: with_fd(name, flags, lambda fd: len(os.pread(fd, size, offset)))


def _read_aligned(fd: int) -> int:
    with mmap.mmap(-1, 1 << 16) as buffer:
        return os.preadv(fd, [buffer], 0)


def _seek(name: str, offset: int, whence: int) -> Callable[[], int]:
    return lambda: with_fd(name, R, lambda fd: os.lseek(fd, offset, whence))


def _mapped(name: str, flags: int, protection: int, length: int = 0) -> Callable[[], str]:
    def action(fd: int) -> str:
        with mmap.mmap(fd, length, flags, protection) as mapping:
            return hashlib.sha256(mapping[:]).hexdigest()

    return lambda: with_fd(name, R, action)


def _private_change(fd: int) -> bool:
    before = os.pread(fd, 10, 0)
    with mmap.mmap(fd, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as mapping:
        mapping[:10] = b"something!"
        return bytes(mapping[:10]) == b"something!" and os.pread(fd, 10, 0) == before


def _beyond_the_end(fd: int) -> str:
    size = os.fstat(fd).st_size
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    pages = -(-size // 4096)
    address = libc.mmap(None, ctypes.c_size_t((pages + 2) * 4096), 1, 1, fd, ctypes.c_long(0))
    return ctypes.string_at(address + (pages + 1) * 4096, 1).hex()  # no page is there: SIGBUS


def _copied_out(fd: int) -> int:
    with tempfile.TemporaryFile(dir=OUTSIDE) as target:
        return os.copy_file_range(fd, target.fileno(), 1000)


def _sent(fd: int) -> int:
    with tempfile.TemporaryFile(dir=OUTSIDE) as target:
        return os.sendfile(target.fileno(), fd, 0, 1000)


def _spliced(fd: int) -> int:
    reading, writing = os.pipe()
    try:
        return os.splice(fd, writing, 1000, offset_src=0)
    finally:
        os.close(reading)
        os.close(writing)


def _ioctl(number: int, argument: bytes, name: str = "file") -> Callable[[], str]:
    return lambda: with_fd(name, R, lambda fd: fcntl.ioctl(fd, number, argument).hex())


def _extents(fd: int) -> int:
    request = struct.pack("QQIIII", 0, (1 << 64) - 1, 0, 0, 0, 0)
    mapped: int = struct.unpack_from("I", fcntl.ioctl(fd, 0xC020660B, request), 20)[0]
    return mapped


def _lock(kind: int) -> Callable[[], None]:
    def action(fd: int) -> None:
        lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(fd, fcntl.F_SETLK, lock)

    return lambda: with_fd("file", R, action)


def _write_to_the_device() -> int:
    return with_fd("null", W, lambda fd: os.write(fd, b"x"))


def _target_by_descriptor() -> str:
    return with_fd("symlink", _O_PATH | os.O_NOFOLLOW, lambda fd: os.readlink("", dir_fd=fd))


def _cut_target() -> str:
    buffer = ctypes.create_string_buffer(11)
    linux.libc("readlink", b"long-link", buffer, ctypes.c_size_t(10))
    return buffer.raw.decode()


def _by_handle(name: str) -> str:
    fd = linux.open_handle(*linux.handle_of(name))
    try:
        return "the same" if os.fstat(fd).st_ino == os.stat(name).st_ino else "another"
    finally:
        os.close(fd)


def _by_bad_handle(change: Callable[[bytes], bytes]) -> Callable[[], None]:
    def call() -> None:
        kind, handle = linux.handle_of("file")
        os.close(linux.open_handle(kind, change(handle)))

    return call


def _watch() -> None:
    group = linux.libc("inotify_init1", 0)
    try:
        linux.libc("inotify_add_watch", group, b"directory", 0xFFF)
    finally:
        os.close(group)


def _readable_length() -> int:
    return with_fd("file", R, lambda fd: int.from_bytes(fcntl.ioctl(fd, 0x541B, bytes(4)), sys.byteorder))


def _exit_code(name: str) -> int:
    return subprocess.run([f"./{name}"], check=False).returncode


READING: Final[dict[str, Callable[[], object]]] = {
    # stat and statfs
    "stat: mode, owner, links, size, rdev": _fields("st_mode", "st_uid", "st_gid", "st_nlink", "st_size", "st_rdev"),
    "stat: times": _fields("st_mtime_ns", "st_atime_ns", "st_ctime_ns"),
    "stat: inode number": _fields("st_ino"),
    "stat: blocks": _fields("st_blocks"),
    "stat: block size": _fields("st_blksize"),
    "statx: mask and attributes": lambda: each(linux.statx),
    "stat of what is missing": lambda: os.stat("absent"),
    "stat below a file": lambda: os.stat("file/below"),
    "stat of a loop": lambda: os.stat("loop"),
    "stat of 255 bytes": lambda: os.stat(LONG_NAME[:255]),
    "stat of 256 bytes": lambda: os.stat(LONG_NAME),
    "stat of 256 bytes, below": lambda: os.stat("directory/" + LONG_NAME),
    "stat of a path of 4096 bytes": lambda: os.stat(LONG_PATH),
    "stat through a link to a long name": lambda: os.stat("long-link"),
    "stat of an empty name": lambda: os.stat(""),
    "stat of the parent of the root": lambda: os.stat("directory/..").st_ino == os.stat(".").st_ino,
    "statfs: type": _f_type,
    "statfs: block sizes": _statfs("f_bsize", "f_frsize"),
    "statfs: blocks": _statfs("f_blocks"),
    "statfs: free": _statfs("f_bfree", "f_bavail", "f_ffree", "f_favail"),
    "statfs: files": _statfs("f_files"),
    "statfs: longest name": _statfs("f_namemax"),
    "statfs: read-only": lambda: bool(os.statvfs("file").f_flag & os.ST_RDONLY),
    "fstatvfs: other flags": lambda: with_fd("file", R, lambda fd: os.fstatvfs(fd).f_flag & ~(os.ST_RDONLY | 0x1000)),
    "statfs: atime": lambda: hex(os.statvfs(".").f_flag & 0x1000),
    # permission
    "access R_OK": lambda: each(lambda name: os.access(name, os.R_OK)),
    "access X_OK": lambda: each(lambda name: os.access(name, os.X_OK)),
    "access F_OK of what is missing": lambda: access("absent", os.F_OK),
    "access W_OK of a FIFO": lambda: access("fifo", os.W_OK),
    "access W_OK of a device": lambda: access("null", os.W_OK),
    "open of what is private": lambda: open_only("private", R),
    "open of what an ACL denies": lambda: open_only("denied", R),
    "list of a closed directory": lambda: os.listdir("closed"),
    "stat in a closed directory": lambda: os.stat("closed/anything"),
    # directories
    "getdents: names and types in order": lambda: each_directory(_names_and_types),
    "getdents: many names in order": lambda: _names_and_types("many"),
    "getdents: many names, little at a time": lambda: _names_and_types("many", 200),
    "getdents: buffer too small": lambda: _in_directory("many", lambda fd: linux.entries_of(fd, 20)),
    "getdents: d_ino is st_ino": _inode_numbers_agree,
    "getdents: every offset can be returned to": lambda: _in_directory("many", _every_offset_can_be_returned_to),
    "getdents: rewinddir": lambda: _in_directory("many", _rewound),
    "getdents of a file": lambda: with_fd("file", R, linux.entries_of),
    "lseek of a directory to its end": _seek("many", 0, os.SEEK_END),
    "lseek of a directory beyond its end": lambda: _in_directory("many", _far_offset),
    "lseek of a directory to a negative offset": _seek("many", -1, os.SEEK_SET),
    "read of a directory": lambda: with_fd("directory", R, lambda fd: os.read(fd, 1)),
    # links
    "readlink": lambda: [os.readlink(name) for name in ("symlink", "dangling", "loop", "long-link")],
    "readlink: buffer too small": _cut_target,
    "readlink of a file": lambda: os.readlink("file"),
    "readlink by descriptor": _target_by_descriptor,
    # extended attributes
    "xattrs": lambda: each(_xattrs_of),
    "listxattr: size": lambda: linux.listxattr("file", 0),
    "listxattr: buffer too small": lambda: linux.listxattr("file", 3),
    "listxattr of what has none": lambda: linux.listxattr("fifo", 0),
    "getxattr: size": lambda: linux.getxattr("file", "user.note", 0),
    "getxattr: buffer just large enough": lambda: linux.getxattr("file", "user.note", 10),
    "getxattr: buffer too small": lambda: linux.getxattr("file", "user.note", 3),
    "getxattr of what is missing": lambda: linux.getxattr("file", "user.absent", 10),
    "getxattr: trusted": lambda: linux.getxattr("file", "trusted.note", 100),
    "getxattr: trusted of a link": lambda: linux.getxattr("symlink", "trusted.note", 100),
    "getxattr: user of a link": lambda: linux.getxattr("symlink", "user.note", 100),
    "getxattr: user of a FIFO": lambda: linux.getxattr("fifo", "user.note", 100),
    "getxattr: security": lambda: linux.getxattr("plain", "security.selinux", 100),
    "getxattr: a capability": lambda: linux.getxattr("program", "security.capability", 100),
    "getxattr: an ACL": lambda: os.getxattr("denied", "system.posix_acl_access").hex(),
    "getxattr: an ACL that is missing": lambda: linux.getxattr("file", "system.posix_acl_access", 100),
    "getxattr: default ACL of a file": lambda: linux.getxattr("file", "system.posix_acl_default", 100),
    "getxattr: an ACL of a link": lambda: linux.getxattr("symlink", "system.posix_acl_access", 100),
    "getxattr: a namespace that is none": lambda: linux.getxattr("file", "nonsense.note", 100),
    "getxattr: a name without a rest": lambda: linux.getxattr("file", "user.", 100),
    "getxattr: a name of 256 bytes": lambda: linux.getxattr("file", "user." + LONG_NAME, 100),
    "getxattr: an empty name": lambda: linux.getxattr("file", "", 100),
    # open
    "open O_PATH": lambda: with_fd("file", _O_PATH, lambda fd: os.fstat(fd).st_size),
    "open O_PATH, then read": lambda: with_fd("file", _O_PATH, lambda fd: os.read(fd, 1)),
    "open O_PATH of a link": lambda: with_fd("symlink", _O_PATH | os.O_NOFOLLOW, lambda fd: os.fstat(fd).st_size),
    "open O_DIRECTORY of a file": lambda: open_only("file", R | os.O_DIRECTORY),
    "open O_DIRECTORY of a link to one": lambda: open_only("link-to-directory", R | os.O_DIRECTORY),
    "open O_NOFOLLOW of a link": lambda: open_only("symlink", R | os.O_NOFOLLOW),
    "open O_NOATIME": lambda: open_only("file", R | os.O_NOATIME),
    "open O_SYNC|O_NONBLOCK|O_APPEND": lambda: open_only("file", R | os.O_SYNC | os.O_NONBLOCK | os.O_APPEND),
    "open O_EXCL": lambda: open_only("file", R | os.O_EXCL),
    "open O_DIRECT": lambda: open_only("file", R | os.O_DIRECT),
    "open O_DIRECT of a directory": lambda: open_only("directory", R | os.O_DIRECT),
    "open of a name that ends in a slash": lambda: open_only("file/", R),
    "open of a dangling link": lambda: open_only("dangling", R),
    "open of a FIFO for writing": lambda: open_only("fifo", RW | os.O_NONBLOCK),
    "open of a FIFO without a reader": lambda: open_only("fifo", W | os.O_NONBLOCK),
    "open of a socket for writing": lambda: open_only("socket", W),
    "open of a device for writing": _write_to_the_device,
    "F_GETFL": lambda: hex(with_fd("file", R | os.O_APPEND, lambda fd: fcntl.fcntl(fd, fcntl.F_GETFL))),
    "openat2 RESOLVE_NO_XDEV|RESOLVE_BENEATH": lambda: linux.openat2("directory/inner", R, 0x09),
    "openat2 RESOLVE_NO_SYMLINKS": lambda: linux.openat2("symlink", R, 0x04),
    # content
    "content": lambda: {name: _digest(name) for name in ("file", "nothing", "sparse", "program", "directory/inner")},
    "pread in the middle": _reading("file", 5000, 4000),
    "pread across the end": _read_length("file", 5000, 20000),
    "pread at the end": _read_length("file", 10, 22500),
    "pread beyond the end": _read_length("file", 10, 1 << 40),
    "pread of the largest offset": _read_length("file", 10, (1 << 63) - 11),
    "pread of a negative offset": _read_length("file", 10, -1),
    "pread of nothing": _read_length("nothing", 10, 0),
    "pread O_DIRECT": lambda: with_fd("file", R | os.O_DIRECT, _read_aligned),
    "pread O_DIRECT, not aligned": _read_length("file", 100, 3, R | os.O_DIRECT),
    "preadv RWF_NOWAIT": lambda: with_fd("file", R, _read_without_waiting),
    "lseek SEEK_END": _seek("file", -1, os.SEEK_END),
    "lseek SEEK_SET beyond the end": _seek("file", 1 << 40, os.SEEK_SET),
    "lseek SEEK_SET to a negative offset": _seek("file", -1, os.SEEK_SET),
    "lseek SEEK_SET of more than a file may have": _seek("file", (1 << 63) - 1, os.SEEK_SET),
    "lseek SEEK_DATA": _seek("file", 5, os.SEEK_DATA),
    "lseek SEEK_HOLE": _seek("file", 5, os.SEEK_HOLE),
    "lseek SEEK_DATA in a hole": _seek("sparse", 0, os.SEEK_DATA),
    "lseek SEEK_HOLE in a hole": _seek("sparse", 0, os.SEEK_HOLE),
    "lseek SEEK_DATA beyond the end": _seek("file", 1 << 30, os.SEEK_DATA),
    "lseek SEEK_HOLE beyond the end": _seek("file", 1 << 30, os.SEEK_HOLE),
    "mmap MAP_SHARED": _mapped("file", mmap.MAP_SHARED, mmap.PROT_READ),
    "mmap MAP_PRIVATE": _mapped("file", mmap.MAP_PRIVATE, mmap.PROT_READ),
    "mmap PROT_EXEC": _mapped("program", mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC),
    "mmap MAP_PRIVATE, then a change": lambda: with_fd("file", R, _private_change),
    "mmap of a directory": _mapped("directory", mmap.MAP_SHARED, mmap.PROT_READ, 4096),
    "mmap beyond the end": lambda: with_fd("file", R, _beyond_the_end),
    "exec": lambda: _exit_code("program"),
    "exec of what is no program": lambda: _exit_code("plain"),
    "copy_file_range out of it": lambda: with_fd("file", R, _copied_out),
    "sendfile": lambda: with_fd("file", R, _sent),
    "splice": lambda: with_fd("file", R, _spliced),
    "posix_fadvise": lambda: with_fd("file", R, lambda fd: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)),
    "readahead": lambda: with_fd("file", R, lambda fd: linux.libc("readahead", fd, ctypes.c_long(0), 4096)),
    # ioctl, locks and the rest
    "FS_IOC_GETFLAGS": _ioctl(0x80086601, bytes(8)),
    "FS_IOC_GETFLAGS of a directory": _ioctl(0x80086601, bytes(8), "directory"),
    "FS_IOC_FSGETXATTR": _ioctl(0x801C581F, bytes(28)),
    "FS_IOC_GETVERSION": _ioctl(0x80087601, bytes(8)),
    "FS_IOC_GETFSLABEL": _ioctl(0x81009431, bytes(256)),
    "FS_IOC_MEASURE_VERITY": _ioctl(0xC0046686, bytes(256)),
    "FS_IOC_FIEMAP": lambda: with_fd("sparse", R, _extents),
    "FIBMAP": _ioctl(1, bytes(4)),
    "FIGETBSZ": _ioctl(2, bytes(4)),
    "FIONREAD": _readable_length,
    "TCGETS": _ioctl(0x5401, bytes(64)),
    "flock LOCK_EX": lambda: with_fd("file", R, lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)),
    "flock LOCK_SH of a directory": lambda: with_fd("directory", R, lambda fd: fcntl.flock(fd, fcntl.LOCK_SH)),
    "F_SETLK for reading": _lock(fcntl.F_RDLCK),
    "F_SETLK for writing": _lock(fcntl.F_WRLCK),
    "F_SETLEASE": lambda: with_fd("plain", R, lambda fd: fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)),
    "F_NOTIFY": lambda: with_fd("directory", R, lambda fd: fcntl.fcntl(fd, fcntl.F_NOTIFY, fcntl.DN_MODIFY)),
    "inotify": _watch,
    "fsync": lambda: with_fd("file", R, os.fsync),
    "fdatasync": lambda: with_fd("file", R, os.fdatasync),
    "fsync of a directory": lambda: with_fd("directory", R, os.fsync),
    "syncfs": lambda: with_fd("file", R, lambda fd: linux.libc("syncfs", fd)),
    "name_to_handle_at": lambda: [linux.handle_of("file")[0], len(linux.handle_of("file")[1])],
    "open_by_handle_at": lambda: [_by_handle(name) for name in ("file", "directory", ".")],
    "open_by_handle_at: handle cut short": _by_bad_handle(lambda handle: handle[:4]),
    "open_by_handle_at: handle of nothing": _by_bad_handle(lambda handle: b"\xff" * len(handle)),
    "open_by_handle_at: handle of another generation": _by_bad_handle(lambda handle: handle[:-1] + b"\x77"),
}


def each_directory(function: Callable[[str], Any]) -> dict[str, Any]:
    """What a function returns for every directory that all may read."""
    return {name: function(name) for name in (".", "directory", "empty", "sticky")}


def _far_offset(fd: int) -> list[Any]:
    os.lseek(fd, (1 << 31) - 1, os.SEEK_SET)
    return linux.entries_of(fd)


def _read_without_waiting(fd: int) -> int:
    os.pread(fd, 100, 0)  # so that it is in the page cache
    rwf_nowait = 8
    return os.preadv(fd, [bytearray(100)], 0, rwf_nowait)
