# SPDX-License-Identifier: Apache-2.0
"""Trees to make images of: small ones in memory, and on disk the ones that break image builders and readers."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rofs.tree import Inode, Tree

Xattrs = tuple[tuple[bytes, bytes], ...]

DEPTH = 1100  # beyond Python's recursion limit; with DEEP_NAME beyond PATH_MAX
DEEP_NAME = b"deep"
WHITEOUT = os.makedev(0, 0)

# What fits behind a 64-byte inode in one block is 4032 bytes.
SIZES = (0, 1, 2, 63, 64, 4031, 4032, 4033, 4095, 4096, 4097, 8127, 8128, 8129, 8191, 8192, 8193, 12288 + 4032, 100_001)
TARGET_LENGTHS = (1, 2, 59, 60, 61, 1000, 2016, 4030, 4031, 4032, 4033, 4094, 4095)
ENTRY_COUNTS = (0, 1, 22, 23, 24, 127, 128, 1000)
DIRECTORY_BYTES = (4031, 4032, 4033, 4095, 4096, 8191, 8192)
TIMES_NS = (-1_000_000_000, -1, 0, 1, (1 << 31) * 10**9, (1 << 32) * 10**9 + 999_999_999, 1_700_000_000_123_456_789)
OWNERS = (0, 1000, 65535, 65536, 2_097_152, 4_294_967_294)
NAMES = (
    b"!",
    b"\x01",
    b"-rf",
    b" ",
    b"...",
    b".hidden",
    b"~",
    b"\xff\xfe",
    b"new\nline",
    b"tab\t",
    b"back\\slash",
    b'"quote"',
    b"\x7f",
    "\U0001f980".encode(),
    b"n" * 255,
)
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in (
        (0x01, 6, 0xFFFFFFFF),
        (0x02, 4, 1234),
        (0x04, 4, 0xFFFFFFFF),
        (0x10, 6, 0xFFFFFFFF),
        (0x20, 4, 0xFFFFFFFF),
    )
)
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service, effective


@functools.lru_cache(maxsize=64)
def content(size: int, seed: int = 0) -> bytes:
    """Bytes that differ everywhere, the same for the same arguments."""
    return random.Random(seed << 32 | size).randbytes(size)


# In memory


def file(data: bytes = b"", mode: int = 0o644, xattrs: Xattrs = ()) -> Inode:
    return Inode(mode=stat.S_IFREG | mode, size=len(data), source_key=data, xattrs=xattrs)


def directory(children: Mapping[bytes, Inode] | None = None, mode: int = 0o755, xattrs: Xattrs = ()) -> Inode:
    return Inode(mode=stat.S_IFDIR | mode, children=children or {}, xattrs=xattrs)


def symlink(target: bytes) -> Inode:
    return Inode(mode=stat.S_IFLNK | 0o777, size=len(target), target=target)


def node(kind: int, rdev: int = 0) -> Inode:
    return Inode(mode=kind | 0o600, rdev=rdev)


class MemorySource:
    """A tree in memory; the content of a file is its `source_key`."""

    def __init__(self, root: Inode, *, chunk_bytes: int = 1 << 20) -> None:
        self.tree = Tree(root)
        self.chunk_bytes = chunk_bytes

    def contents(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        data = inode.source_key
        assert isinstance(data, bytes)
        for start in range(0, len(data), self.chunk_bytes):
            yield start, data[start : start + self.chunk_bytes]


def find(root: Inode, path: bytes) -> Inode:
    for name in path.split(b"/"):
        root = root.children[name] if name else root
    return root


# On disk


def write_plain_tree(top: Path, *, seed: int = 0) -> None:
    """A tree that any user can make and read; `seed` changes the order in which it is made, and nothing else."""
    base = os.fsencode(top)
    files: dict[bytes, Callable[[bytes], None]] = {}
    for size in SIZES:
        files[b"sizes/%d" % size] = functools.partial(_write, size=size)
    for name in NAMES:
        files[b"names/" + name] = functools.partial(_write, size=len(name))
    for number in range(200):
        files[b"many/%03d" % number] = functools.partial(_write, size=number % 3)
    for length in TARGET_LENGTHS:
        files[b"targets/%d" % length] = functools.partial(os.symlink, b"t" * length)
    files[b"same/a"] = files[b"same/b"] = functools.partial(_write, size=20_000)
    files[b"fifo"] = os.mkfifo
    links = [(b"sizes/4097", b"same/link"), (b"sizes/4097", b"sizes/again"), (b"targets/60", b"same/symlink")]
    directories = [b"sizes", b"names", b"many", b"targets", b"same", b"empty"]
    order = random.Random(seed)
    for group in (directories, links):
        order.shuffle(group)
    os.mkdir(base)
    for name in directories:
        os.mkdir(os.path.join(base, name))
    for name in order.sample(sorted(files), len(files)):
        files[name](os.path.join(base, name))
    for source, target in links:
        os.link(os.path.join(base, source), os.path.join(base, target), follow_symlinks=False)
    settle(top)


def settle(top: Path) -> None:
    """Give everything times and permissions of its own that depend on its name alone."""
    for path, names, files in os.walk(os.fsencode(top), topdown=False):
        for name in sorted(names + files):
            whole = os.path.join(path, name)
            status = os.lstat(whole)
            if not stat.S_ISLNK(status.st_mode):
                os.chmod(whole, 0o755 if stat.S_ISDIR(status.st_mode) else 0o644)
            if status.st_nlink == 1 or stat.S_ISDIR(status.st_mode):
                time = 1_600_000_000 * 10**9 + sum(name) * 1001
            else:
                time = 1_600_000_000 * 10**9 + status.st_size
            os.utime(whole, ns=(time, time), follow_symlinks=False)
    os.chmod(top, 0o755)
    os.utime(top, ns=(10**18, 10**18))


def write_odd_tree(top: Path) -> None:
    """Everything that breaks image builders and readers; needs root. Remove it with `remove_tree`."""
    base = os.fsencode(top)
    os.mkdir(base)
    parts: dict[bytes, Callable[[bytes], None]] = {
        b"sizes": _sizes,
        b"names": _names,
        b"counts": _counts,
        b"lengths": _directory_lengths,
        b"links": _links,
        b"targets": _targets,
        b"attributes": _attributes,
        b"nodes": _nodes,
        b"xattrs": _xattrs,
        b"copies": _copies,
        b"deep": _deep,
    }
    for name, part in parts.items():
        path = os.path.join(base, name)
        os.mkdir(path)
        part(path)


@contextlib.contextmanager
def odd_tree(top: Path) -> Iterator[Path]:
    """`write_odd_tree`, removed afterwards: pytest's own cleaning does not survive its depth."""
    write_odd_tree(top)
    try:
        yield top
    finally:
        remove_deep(top / "deep")


def _write(path: bytes, size: int, seed: int = 0) -> None:
    with open(path, "wb") as new:
        new.write(content(size, seed))


def _sizes(top: bytes) -> None:
    for size in SIZES:
        _write(os.path.join(top, b"%d" % size), size)
    with open(os.path.join(top, b"sparse"), "wb") as new:
        new.truncate(300_000)


def _names(top: bytes) -> None:
    for name in NAMES:
        _write(os.path.join(top, name), len(name))
    lengths = os.path.join(top, b"lengths")
    os.mkdir(lengths)
    for length in range(1, 256):
        _write(os.path.join(lengths, b"%c" % (0x40 + length % 60) * length), 0)


def _counts(top: bytes) -> None:
    for count in ENTRY_COUNTS:
        below = os.path.join(top, b"%d" % count)
        os.mkdir(below)
        for number in range(count):
            _write(os.path.join(below, b"entry-%d" % number), 0)
    below = os.path.join(top, b"directories")
    os.mkdir(below)
    for number in range(300):
        os.mkdir(os.path.join(below, b"%d" % number))


def names_for_directory_bytes(size: int) -> list[bytes]:
    """Names that make a directory of one or two blocks as long as that, `.` and `..` included.

    Each name of a block costs 12 bytes more than its length, and a block is full at 4096.
    """
    names: list[bytes] = []
    for number, start in enumerate(range(0, size, 4096)):
        left = min(4096, size - start) - (27 if number == 0 else 0)
        while left:
            take = left if left <= 267 else min(212, left - 13)
            names.append((b"%c%03d-" % (0x61 + number, len(names))).ljust(take - 12, b"x")[: take - 12])
            left -= take
    return names


def _directory_lengths(top: bytes) -> None:
    for size in DIRECTORY_BYTES:
        below = os.path.join(top, b"%d" % size)
        os.mkdir(below)
        for name in names_for_directory_bytes(size):
            _write(os.path.join(below, name), 0)


def _links(top: bytes) -> None:
    other = os.path.join(top, b"other")
    os.mkdir(other)
    first = os.path.join(top, b"m")
    _write(first, 5000)
    for name in (b"a", b"z", b"other/n"):
        os.link(first, os.path.join(top, name))
    os.symlink(b"m", os.path.join(top, b"symlink"))
    os.link(os.path.join(top, b"symlink"), os.path.join(other, b"symlink-again"), follow_symlinks=False)
    os.symlink(b"loop", os.path.join(top, b"loop"))


def _targets(top: bytes) -> None:
    for length in TARGET_LENGTHS:
        os.symlink(b"t" * length, os.path.join(top, b"%d" % length))
    os.symlink(b"\xff\n/..//", os.path.join(top, b"odd"))


def _attributes(top: bytes) -> None:
    for mode in (0o000, 0o4755, 0o2755, 0o1777, 0o7777, 0o600):
        path = os.path.join(top, b"mode-%o" % mode)
        _write(path, 10)
        os.chmod(path, mode)
    closed = os.path.join(top, b"closed")
    os.mkdir(closed)
    _write(os.path.join(closed, b"file"), 10)
    os.chmod(closed, 0o000)
    for owner in OWNERS:
        path = os.path.join(top, b"owner-%d" % owner)
        _write(path, 10)
        os.chown(path, owner, OWNERS[-1] - owner)
        os.symlink(b"target", path + b"-symlink")
        os.chown(path + b"-symlink", owner, owner, follow_symlinks=False)
    for time in TIMES_NS:
        path = os.path.join(top, b"time%d" % time)
        os.symlink(b"target", path)
        os.utime(path, ns=(time, time), follow_symlinks=False)


def _nodes(top: bytes) -> None:
    os.mkfifo(os.path.join(top, b"fifo"))
    os.mknod(os.path.join(top, b"socket"), stat.S_IFSOCK | 0o755)
    for kind, name in ((stat.S_IFCHR, b"char"), (stat.S_IFBLK, b"block")):
        for major, minor in ((0, 0), (1, 3), (255, 255), (259, 256), (4095, (1 << 20) - 1)):
            os.mknod(os.path.join(top, b"%s-%d-%d" % (name, major, minor)), kind | 0o600, os.makedev(major, minor))


def _xattrs(top: bytes) -> None:
    for length in (*range(40), 255, 256, 3000):
        path = os.path.join(top, b"value-%d" % length)
        _write(path, 4000 - length)
        os.setxattr(path, b"user.value", content(length))
    path = os.path.join(top, b"several")
    _write(path, 100)
    for name in (b"user.a", b"user." + b"b" * 250, b"trusted.c", b"user.\xff", b"security.odd"):
        os.setxattr(path, name, name)
    os.setxattr(path, b"security.capability", CAPABILITY)
    os.setxattr(path, b"system.posix_acl_access", ACL)
    below = os.path.join(top, b"opaque")
    os.mkdir(below)
    os.setxattr(below, b"trusted.overlay.opaque", b"y")
    os.setxattr(below, b"system.posix_acl_default", ACL)
    link = os.path.join(top, b"symlink")
    os.symlink(b"target", link)
    os.setxattr(link, b"trusted.on-a-symlink", b"", follow_symlinks=False)
    for kind in (stat.S_IFIFO, stat.S_IFCHR):
        path = os.path.join(top, b"node-%d" % kind)
        os.mknod(path, kind | 0o600, os.makedev(1, 3))
        os.setxattr(path, b"trusted.on-a-node", b"\0")


def _copies(top: bytes) -> None:
    for name in (b"a", b"b", b"c"):
        _write(os.path.join(top, name), 50_000)
    _write(os.path.join(top, b"shorter"), 49_000)
    # A symbolic link that takes a block of its own right behind a content that was a copy.
    os.symlink(b"t" * 4095, os.path.join(top, b"d"))


def _deep(top: bytes) -> None:
    fd = os.open(top, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir(DEEP_NAME, dir_fd=fd)
        below = os.open(DEEP_NAME, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open(b"bottom", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    os.close(fd)


def remove_deep(top: Path) -> None:
    """Remove the chain that `_deep` made, without recursion."""
    chain = [os.open(top, os.O_RDONLY)]
    with contextlib.suppress(FileNotFoundError):
        while True:
            chain.append(os.open(DEEP_NAME, os.O_RDONLY, dir_fd=chain[-1]))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(b"bottom", dir_fd=chain[-1])
    os.close(chain.pop())
    while chain:
        os.rmdir(DEEP_NAME, dir_fd=chain[-1])
        os.close(chain.pop())
