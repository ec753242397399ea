# SPDX-License-Identifier: Apache-2.0
"""A filesystem in memory that lies on demand, a caller, a list of reports, and a look at what is open."""

from __future__ import annotations

import errno
import gc
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from rofs.errors import BlockFault, CorruptionError, FormatError
from rofs.fuse.messages import Report
from rofs.image.identity import Identity
from rofs.image.open import ImageFacts
from rofs.vfs import DirEntry, Extent, Stat, StatFs

ROOT, BIN, FILE, LINK, DEVICE, EMPTY, ODD, SHELL = 36, 40, 50, 60, 70, 80, 90, 100
ODD_NAME = b"n\xff\\"
FAULT = BlockFault("mismatch", -1, 7, b"\x01" * 32, b"\x02" * 32)

FACTS = ImageFacts(
    root_hash="ab" * 32,
    accepted_by="signature",
    signer="CN=rofs tests",
    signer_fingerprint="cd" * 32,
    identity=Identity("edge", "1.2", 3, 1_700_000_000, acl=False, xattrs=False),
    data_offset_bytes=1 << 20,
    data_length_bytes=1 << 20,
    hash_offset_bytes=2 << 20,
    hash_length_bytes=1 << 16,
    superblock="00" * 512,
    warnings=(),
)


@dataclass
class Node:
    mode: int
    content: bytes = b""
    children: dict[bytes, int] = field(default_factory=dict)
    nlink: int = 1
    rdev: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class MemoryFilesystem:
    """A small tree; `corrupt`, `malform` and `fail` make every access to one inode raise."""

    def __init__(self) -> None:
        self.nodes = {
            ROOT: Node(
                stat.S_IFDIR | 0o755,
                children={
                    b".": ROOT,
                    b"..": ROOT,
                    b"bin": BIN,
                    b"device": DEVICE,
                    b"empty": EMPTY,
                    b"file": FILE,
                    b"hard": FILE,
                    b"link": LINK,
                    ODD_NAME: ODD,
                },
                nlink=3,
            ),
            BIN: Node(stat.S_IFDIR | 0o711, children={b".": BIN, b"..": ROOT, b"sh": SHELL}, nlink=2),
            FILE: Node(stat.S_IFREG | 0o640, b"0123456789" * 1000, nlink=2, xattrs={b"user.a": b"1", b"user.b": b""}),
            LINK: Node(stat.S_IFLNK | 0o777, b"bin/sh"),
            DEVICE: Node(stat.S_IFCHR | 0o600, rdev=os.makedev(1, 3)),
            EMPTY: Node(stat.S_IFREG | 0o4755),
            ODD: Node(stat.S_IFREG | 0o644, b"odd"),
            SHELL: Node(stat.S_IFREG | 0o755, b"#!"),
        }
        self._lies: dict[int, Exception] = {}

    def corrupt(self, nid: int) -> None:
        self._lies[nid] = CorruptionError(FAULT)

    def malform(self, nid: int) -> None:
        self._lies[nid] = FormatError("inode: layout 9 is not known")

    def fail(self, nid: int, error: Exception) -> None:
        self._lies[nid] = error

    def _node(self, nid: int) -> Node:
        if nid in self._lies:
            raise self._lies[nid]
        if nid not in self.nodes:
            raise FormatError(f"nid {nid} is not an inode")
        return self.nodes[nid]

    def _directory(self, nid: int) -> Node:
        node = self._node(nid)
        if not stat.S_ISDIR(node.mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return node

    @property
    def root_nid(self) -> int:
        return ROOT

    def statfs(self) -> StatFs:
        return StatFs(4096, 1234, len(self.nodes))

    def stat(self, nid: int) -> Stat:
        node = self._node(nid)
        return Stat(
            nid=nid,
            mode=node.mode,
            nlink=node.nlink,
            uid=nid + 1000,
            gid=nid + 2000,
            size=len(node.content),
            rdev=node.rdev,
            mtime_ns=-1 if nid == ODD else 1_600_000_000_000_000_000 + nid,
            blocks=(len(node.content) + 4095) // 4096 * 8,
        )

    def lookup(self, directory_nid: int, name: bytes) -> int | None:
        return self._directory(directory_nid).children.get(name)

    def readdir(self, directory_nid: int, offset: int = 0) -> Iterator[DirEntry]:
        """Offsets are not consecutive: nobody may count on it."""
        for index, (name, nid) in enumerate(self._directory(directory_nid).children.items()):
            if index * 24 >= offset:
                mode = self.nodes[nid].mode if nid in self.nodes else 0
                yield DirEntry(name, nid, stat.S_IFMT(mode), (index + 1) * 24)

    def readlink(self, nid: int) -> bytes:
        node = self._node(nid)
        if not stat.S_ISLNK(node.mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return node.content

    def read(self, nid: int, offset_bytes: int, length_bytes: int) -> bytes:
        return self._node(nid).content[offset_bytes : offset_bytes + length_bytes]

    def listxattr(self, nid: int) -> list[bytes]:
        return list(self._node(nid).xattrs)

    def getxattr(self, nid: int, name: bytes) -> bytes | None:
        return self._node(nid).xattrs.get(name)

    def inode_extent(self, nid: int) -> Extent:
        return Extent(nid * 32, 32, None)

    def extents(self, nid: int) -> list[Extent]:
        return [self.inode_extent(nid)]


@dataclass(frozen=True)
class Caller:
    """As pyfuse3.RequestContext."""

    pid: int = 4711
    uid: int = 1000
    gid: int = 100


class Reports(list[Report]):
    """What was reported, in order."""

    def __call__(self, report: Report) -> None:
        self.append(report)


def open_descriptors() -> list[str]:
    """Of this process; nothing that an earlier test has left to the garbage collector."""
    gc.collect()
    return os.listdir("/proc/self/fd")
