# SPDX-License-Identifier: Apache-2.0
"""The tree on which the calls are made: something of every kind. It makes it and does nothing else."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from tests.mounts.calls.linux import access_list, capability

ORDINARY_USER = 1000
MANY = 300
LONG_TARGET = "x" * 1000


def make(root: Path, *, xattrs: bool = True) -> None:
    """Make the tree in a new directory, with extended attributes and ACLs or without."""
    root.mkdir()
    _files(root)
    _directories(root)
    for name, target in (("symlink", "file"), ("dangling", "absent"), ("loop", "loop"), ("long-link", LONG_TARGET)):
        (root / name).symlink_to(target)
    (root / "link-to-directory").symlink_to("directory")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(root / "socket"))
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    for name in ("fifo", "socket", "null"):
        (root / name).chmod(0o666)
    if xattrs:
        _xattrs(root)
    root.chmod(0o777)


def _files(root: Path) -> None:
    lines = b"".join(b"%08d\n" % i for i in range(2500))
    files = (("file", 0o666), ("other", 0o666), ("plain", 0o644), ("private", 0o600), ("denied", 0o644))
    for name, mode in files:
        (root / name).write_bytes(lines)
        (root / name).chmod(mode)
    (root / "nothing").touch()
    (root / "program").write_text("#!/bin/sh\nexit 7\n")
    (root / "program").chmod(0o4755)
    with open(root / "sparse", "wb") as sparse:
        sparse.seek(1 << 20)
        sparse.write(lines)


def _xattrs(root: Path) -> None:
    os.setxattr(root / "symlink", "trusted.note", b"of a link", follow_symlinks=False)
    os.setxattr(root / "file", "user.note", b"some value")
    os.setxattr(root / "file", "trusted.note", b"for root")
    os.setxattr(root / "program", "security.capability", capability())
    os.setxattr(root / "denied", "system.posix_acl_access", access_list((ORDINARY_USER, 0)))


def _directories(root: Path) -> None:
    for name, mode in (("directory", 0o777), ("empty", 0o777), ("sticky", 0o1777), ("closed", 0o700), ("many", 0o755)):
        (root / name).mkdir()
        (root / name).chmod(mode)
    for name in ("inner", "other"):
        (root / "directory" / name).write_text(name)
        (root / "directory" / name).chmod(0o666)  # else protected_hardlinks of proc_sys_fs(5) decides
    (root / "directory" / "deeper").mkdir()
    (root / "sticky" / "file").touch()
    os.link(root / "plain", root / "directory" / "hard-link")
    for number in range(MANY):
        (root / "many" / f"entry number {number} of many").touch()
