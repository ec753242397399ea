# SPDX-License-Identifier: Apache-2.0
"""Calls that would change a filesystem. Names are relative to the root of the mount, which is the working directory.

What each of them must get is said by the tests, not here.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable
from typing import Final

from tests.mounts.calls import linux
from tests.mounts.calls.linux import open_only, with_fd

R, W, RW, C = os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_CREAT
OUTSIDE: Final = "../outside"  # a directory beside the mount, to which everyone may write
LONG_NAME: Final = "n" * 256
LONG_PATH: Final = "directory/../" * 400 + "file"


def access(name: str, mode: int) -> None:
    linux.libc("access", name.encode(), mode)


def bind() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("new")


def from_outside(action: Callable[[str], None]) -> None:
    """Do something with a file that is not on the mount."""
    name = f"{OUTSIDE}/{os.getpid()}"
    open_only(name, W | C)
    try:
        action(name)
    finally:
        os.unlink(name)


def at_directory(action: Callable[[int], None]) -> None:
    with_fd("directory", R, action)


def map_for_writing(fd: int) -> None:
    mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()


def copy_within() -> None:
    with_fd("file", R, lambda source: with_fd("other", R, lambda target: os.copy_file_range(source, target, 100)))


CHANGING: Final[dict[str, Callable[[], object]]] = {
    # open
    "open O_WRONLY": lambda: open_only("file", W),
    "open O_RDWR": lambda: open_only("file", RW),
    "open O_RDONLY|O_TRUNC": lambda: open_only("file", R | os.O_TRUNC),
    "open O_APPEND": lambda: open_only("file", W | os.O_APPEND),
    "open O_CREAT": lambda: open_only("new", R | C),
    "open O_CREAT|O_RDWR": lambda: open_only("new", RW | C),
    "open O_CREAT|O_EXCL of what exists": lambda: open_only("file", W | C | os.O_EXCL),
    "open O_CREAT of what exists, for reading": lambda: open_only("file", R | C),
    "open O_CREAT through a dangling link": lambda: open_only("dangling", W | C),
    "open O_CREAT of a directory": lambda: open_only("directory", R | C),
    "open O_CREAT of a name that ends in a slash": lambda: open_only("new/", W | C),
    "open O_CREAT below what is missing": lambda: open_only("absent/new", W | C),
    "open O_CREAT below a file": lambda: open_only("file/new", W | C),
    "open O_WRONLY of what is missing": lambda: open_only("absent", W),
    "open O_WRONLY of a directory": lambda: open_only("directory", W),
    "open O_WRONLY through a link": lambda: open_only("symlink", W),
    "open O_WRONLY of another's file": lambda: open_only("plain", W),
    "open O_TMPFILE": lambda: open_only("directory", os.O_TMPFILE | RW),
    "openat O_CREAT": lambda: at_directory(lambda fd: os.close(os.open("new", W | C, 0o644, dir_fd=fd))),
    "openat2 O_CREAT": lambda: linux.openat2("new", W | C),
    "openat2 O_WRONLY": lambda: linux.openat2("file", W),
    "creat": lambda: os.close(linux.libc("creat", b"new", 0o644)),
    "creat of what exists": lambda: os.close(linux.libc("creat", b"file", 0o644)),
    "acct": lambda: linux.libc("acct", b"file"),
    "descriptor of a fanotify event": lambda: linux.descriptor_of_an_event("file"),
    "access W_OK of the root": lambda: access(".", os.W_OK),
    "access W_OK of a file": lambda: access("file", os.W_OK),
    "access W_OK of another's file": lambda: access("plain", os.W_OK),
    # attributes
    "chmod": lambda: os.chmod("file", 0o600),
    "chmod of the root": lambda: os.chmod(".", 0o700),
    "fchmod": lambda: with_fd("file", R, lambda fd: os.fchmod(fd, 0o644)),
    "fchmodat2 AT_SYMLINK_NOFOLLOW": lambda: linux.fchmodat2("file", 0o600, linux.AT_SYMLINK_NOFOLLOW),
    "fchmodat2 AT_SYMLINK_NOFOLLOW of a link": lambda: linux.fchmodat2("symlink", 0o600, linux.AT_SYMLINK_NOFOLLOW),
    "chmod through a dangling link": lambda: os.chmod("dangling", 0o600),
    "chown": lambda: os.chown("file", 65533, 65533),
    "chown of the root": lambda: os.chown(".", os.geteuid(), os.getegid()),
    "chown to nobody else": lambda: os.chown("file", -1, -1),
    "fchown": lambda: with_fd("file", R, lambda fd: os.fchown(fd, 65533, 65533)),
    "fchownat": lambda: at_directory(lambda fd: os.chown("inner", 65533, 65533, dir_fd=fd)),
    "lchown of a link": lambda: os.lchown("symlink", 65533, 65533),
    "lchown of the root": lambda: os.lchown(".", os.geteuid(), os.getegid()),
    "truncate": lambda: os.truncate("file", 1234),
    "truncate of a directory": lambda: os.truncate("directory", 0),
    "truncate of a FIFO": lambda: os.truncate("fifo", 0),
    "ftruncate of a descriptor for reading": lambda: with_fd("file", R, lambda fd: os.ftruncate(fd, 1)),
    "utime": lambda: os.utime("file", (1, 1)),
    "utime of the root": lambda: os.utime(".", (1, 1)),
    "utimes to now": lambda: linux.utimes_now("file"),
    "utimensat to now": lambda: linux.utimensat("file", linux.UTIME_NOW),
    "utimensat of a link": lambda: linux.utimensat("symlink", 1, flags=linux.AT_SYMLINK_NOFOLLOW),
    "futimens": lambda: with_fd("file", R, lambda fd: os.utime(fd, (1, 1))),
    "chflags": lambda: with_fd("file", R, linux.change_flags),
    # names
    "mkdir": lambda: os.mkdir("new"),
    "mkdir of what exists": lambda: os.mkdir("directory"),
    "mkdir below what is missing": lambda: os.mkdir("absent/new"),
    "mkdir of a name that ends in a slash": lambda: os.mkdir("new/"),
    "mkdir of 256 bytes": lambda: os.mkdir(LONG_NAME),
    "mkdirat": lambda: at_directory(lambda fd: os.mkdir("new", dir_fd=fd)),
    "rmdir": lambda: os.rmdir("empty"),
    "rmdir of a directory that is not empty": lambda: os.rmdir("directory"),
    "rmdir of what is missing": lambda: os.rmdir("absent"),
    "rmdir of a file": lambda: os.rmdir("file"),
    "rmdir of .": lambda: os.rmdir("empty/."),
    "unlink": lambda: os.unlink("file"),
    "unlink of what is missing": lambda: os.unlink("absent"),
    "unlink of a directory": lambda: os.unlink("empty"),
    "unlinkat": lambda: at_directory(lambda fd: os.unlink("inner", dir_fd=fd)),
    "unlinkat AT_REMOVEDIR": lambda: at_directory(lambda fd: os.rmdir("deeper", dir_fd=fd)),
    "unlink where one may not write": lambda: os.unlink("many/entry number 1 of many"),
    "unlink in a sticky directory": lambda: os.unlink("sticky/file"),
    "unlink of 256 bytes": lambda: os.unlink(LONG_NAME),
    "rename": lambda: os.rename("file", "new"),
    "rename over a file": lambda: os.rename("file", "other"),
    "rename onto itself": lambda: os.rename("file", "file"),
    "rename onto a hard link of itself": lambda: os.rename("plain", "directory/hard-link"),
    "rename of what is missing": lambda: os.rename("absent", "new"),
    "rename over a directory": lambda: os.rename("file", "directory"),
    "rename of a directory over a file": lambda: os.rename("empty", "file"),
    "rename of a directory into itself": lambda: os.rename("directory", "directory/new"),
    "rename of .": lambda: os.rename("directory/.", "new"),
    "rename out of it": lambda: os.rename("file", f"{OUTSIDE}/{os.getpid()}"),
    "rename into it": lambda: from_outside(lambda name: os.rename(name, "new")),
    "rename to 256 bytes": lambda: os.rename("file", LONG_NAME),
    "renameat": lambda: at_directory(lambda fd: os.rename("inner", "new", src_dir_fd=fd, dst_dir_fd=fd)),
    "renameat2 RENAME_NOREPLACE": lambda: linux.renameat2("file", "new", linux.RENAME_NOREPLACE),
    "renameat2 RENAME_NOREPLACE over a file": lambda: linux.renameat2("file", "other", linux.RENAME_NOREPLACE),
    "renameat2 RENAME_EXCHANGE": lambda: linux.renameat2("file", "other", linux.RENAME_EXCHANGE),
    "renameat2 RENAME_EXCHANGE with nothing": lambda: linux.renameat2("file", "new", linux.RENAME_EXCHANGE),
    "renameat2 RENAME_WHITEOUT": lambda: linux.renameat2("file", "new", linux.RENAME_WHITEOUT),
    "link": lambda: os.link("file", "new"),
    "link over a file": lambda: os.link("file", "other"),
    "link of what is missing": lambda: os.link("absent", "new"),
    "link of a directory": lambda: os.link("directory", "new"),
    "link from outside": lambda: from_outside(lambda name: os.link(name, "new")),
    "linkat": lambda: at_directory(lambda fd: os.link("inner", "new", src_dir_fd=fd, dst_dir_fd=fd)),
    "symlink": lambda: os.symlink("anywhere", "new"),
    "symlink over a file": lambda: os.symlink("anywhere", "file"),
    "symlink to nothing": lambda: os.symlink("", "new"),
    "symlinkat": lambda: at_directory(lambda fd: os.symlink("anywhere", "new", dir_fd=fd)),
    "mkfifo": lambda: os.mkfifo("new", 0o644),
    "mknod of a file": lambda: os.mknod("new", 0o100644),
    "mknod of a socket": lambda: os.mknod("new", 0o140644),
    "mknod of a device": lambda: os.mknod("new", 0o020644, os.makedev(1, 3)),
    "mknod of what exists": lambda: os.mknod("fifo", 0o010644),
    "mknodat of a FIFO": lambda: at_directory(lambda fd: os.mknod("new", 0o010644, dir_fd=fd)),
    "bind": bind,
    # extended attributes
    "setxattr": lambda: os.setxattr("file", "user.new", b"1"),
    "setxattr XATTR_CREATE": lambda: os.setxattr("file", "user.new", b"1", os.XATTR_CREATE),
    "setxattr XATTR_CREATE of what exists": lambda: os.setxattr("file", "user.note", b"1", os.XATTR_CREATE),
    "setxattr XATTR_REPLACE": lambda: os.setxattr("file", "user.note", b"1", os.XATTR_REPLACE),
    "setxattr XATTR_REPLACE of what is missing": lambda: os.setxattr("file", "user.new", b"1", os.XATTR_REPLACE),
    "setxattr user of a link": lambda: os.setxattr("symlink", "user.new", b"1", follow_symlinks=False),
    "setxattr trusted of a link": lambda: os.setxattr("symlink", "trusted.new", b"1", follow_symlinks=False),
    "setxattr user of a FIFO": lambda: os.setxattr("fifo", "user.new", b"1"),
    "setxattr of a namespace that is none": lambda: os.setxattr("file", "nonsense.new", b"1"),
    "setxattr of a capability": lambda: os.setxattr("program", "security.capability", linux.capability()),
    "setxattr of an ACL": lambda: os.setxattr("file", "system.posix_acl_access", linux.access_list()),
    "setxattr of a name of 256 bytes": lambda: os.setxattr("file", "user." + LONG_NAME, b"1"),
    "setxattr of more than 64 KiB": lambda: os.setxattr("file", "user.new", bytes(65537)),
    "fsetxattr": lambda: with_fd("file", R, lambda fd: os.setxattr(fd, "user.new", b"1")),
    "removexattr": lambda: os.removexattr("file", "user.note"),
    "removexattr of what is missing": lambda: os.removexattr("file", "user.absent"),
    "fremovexattr": lambda: with_fd("file", R, lambda fd: os.removexattr(fd, "user.note")),
    # through a descriptor for reading
    "write to a descriptor for reading": lambda: with_fd("file", R, lambda fd: os.write(fd, b"x")),
    "shared mapping for writing": lambda: with_fd("file", R, map_for_writing),
    "fallocate": lambda: with_fd("file", R, lambda fd: os.posix_fallocate(fd, 0, 9)),
    "copy_file_range within": copy_within,
}
