# SPDX-License-Identifier: Apache-2.0
"""What a system whose root is read-only lacks, and what an image for many machines should not hold.

Only names and attributes are looked at, never a content, and only of a tree that looks like a system's
root. Warns; refuses nothing.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator

from rofs.errors import printable
from rofs.tree import Inode, Tree

_MOUNT_POINTS = (b"dev", b"proc", b"run", b"sys", b"tmp")
_MACHINE_ID = (b"etc", b"machine-id")
_ID_CHARS = 32  # machine-id(5); an unset one is empty or `uninitialized`
_OS_RELEASE = ((b"etc", b"os-release"), (b"usr", b"lib", b"os-release"))
# ssh-keygen(1) and sshd_config(5): the default names of private keys.
_PRIVATE_KEY = re.compile(rb".*/etc/ssh/ssh_host_[^/]*_key|.*/\.ssh/id_[^/]*(?<!\.pub)", re.DOTALL)
_WAL_SUFFIXES = (b"-wal", b"-shm")
_MOST_PATHS = 3


def advise(tree: Tree) -> list[str]:
    """Warnings about a tree that is to be an image, one line each; none for what is no system's root."""
    root = tree.root
    if b"usr" not in root.children and not any(_find(root, path) for path in _OS_RELEASE):
        return []
    return [*_root_warnings(root), *_machine_id_warnings(root), *_mount_point_warnings(root), *_content_warnings(tree)]


def _find(root: Inode, path: tuple[bytes, ...]) -> Inode | None:
    inode: Inode | None = root
    for name in path:
        inode = inode.children.get(name) if inode is not None else None
    return inode


def _root_warnings(root: Inode) -> Iterator[str]:
    mode = stat.S_IMODE(root.mode)
    if mode & 0o555 != 0o555:
        yield f"the root directory has mode {mode:04o}: only its owner could use the system; expected 0755"
    if (root.uid, root.gid) != (0, 0):
        yield f"the root directory belongs to {root.uid}:{root.gid}, expected 0:0; --owner 0:0 gives all to root"


def _machine_id_warnings(root: Inode) -> Iterator[str]:
    inode = _find(root, _MACHINE_ID)
    if inode is None:
        yield "there is no /etc/machine-id, and on a read-only root none can be made; add an empty file"
    elif inode.is_regular and inode.size >= _ID_CHARS:
        yield "/etc/machine-id is filled in, so all machines with this image would have the same; make it empty"


def _mount_point_warnings(root: Inode) -> Iterator[str]:
    missing = [name for name in _MOUNT_POINTS if name not in root.children]
    if missing:
        names = ", ".join(f"/{name.decode()}" for name in missing)
        yield f"mount points are missing, and on a read-only root none can be made: {names}; add empty directories"


def _content_warnings(tree: Tree) -> Iterator[str]:
    keys, databases = [], []
    for inode in tree.walk():
        if inode.is_regular and (path := _private_key(inode)):
            keys.append(path)
        elif inode.is_directory:
            databases += list(_open_databases(inode))
    if keys:
        yield f"private SSH keys, which everyone with the image would have: {_some(keys)}"
    if databases:
        yield (
            f"SQLite databases with a write-ahead log, which cannot be opened read-only as they are: "
            f"{_some(databases)}; checkpoint them, or keep them in application data"
        )


def _private_key(inode: Inode) -> bytes | None:
    if not inode.name.startswith((b"ssh_host_", b"id_")):  # before the path, which costs more
        return None
    path = inode.path()
    return path if _PRIVATE_KEY.fullmatch(path) else None


def _open_databases(directory: Inode) -> Iterator[bytes]:
    for name, inode in directory.children.items():
        if inode.is_regular and any(name + suffix in directory.children for suffix in _WAL_SUFFIXES):
            yield directory.path().rstrip(b"/") + b"/" + name


def _some(paths: list[bytes]) -> str:
    shown = [printable(path) for path in paths[:_MOST_PATHS]]
    more = len(paths) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
