# SPDX-License-Identifier: Apache-2.0
"""Other people's EROFS tools, in two versions, and what a filesystem of theirs must look like to our reader."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from rofs.blockdev import FileDevice
from rofs.erofs.reader import ErofsReader


@dataclass(frozen=True)
class Tools:
    """mkfs.erofs and fsck.erofs of the host, or of a Debian root whose programs run where they lie.

    Its own loader and libraries make that work: no chroot, so no mounts, and paths mean what they say.
    """

    root: Path | None = None

    def run(self, program: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._program(program), *words],
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            check=False,
        )
        assert done.returncode == 0, f"{program} {words}: {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    def mkfs(self, image: Path, tree: Path, *options: str) -> Path:
        self.run("mkfs.erofs", *options, image, tree)
        return image

    def _program(self, name: str) -> list[str | Path]:
        if self.root is None:
            assert shutil.which(name), f"{name} is missing; scripts/setup installs it"
            return [name]
        (loader, *_) = sorted(self.root.glob("lib*/ld-linux-*.so.*"))
        libraries = ":".join(str(path) for path in self.root.glob("usr/lib/*-linux-gnu"))
        return [loader, "--library-path", libraries, self.root / "usr" / "bin" / name]


def view_differences(image: Path, mounted: Path) -> list[str]:
    """What our reader says of an image and the kernel says otherwise: every name, attribute, xattr and byte."""
    fd = os.open(image, os.O_RDONLY)
    try:
        return _View(ErofsReader(FileDevice(fd))).differences(os.fsencode(mounted))
    finally:
        os.close(fd)


class _View:
    def __init__(self, reader: ErofsReader) -> None:
        self._reader = reader
        self._found: list[str] = []

    def differences(self, mounted: bytes) -> list[str]:
        pending = [(mounted, self._reader.root_nid)]
        while pending:
            path, nid = pending.pop()
            self._inode(path, nid)
            if os.path.isdir(path) and not os.path.islink(path):
                pending.extend(self._names(path, nid))
        totals, theirs = self._reader.statfs(), os.statvfs(mounted)
        self._expect(mounted, "statfs", (theirs.f_bsize, theirs.f_blocks), (totals.block_size, totals.blocks))
        return self._found

    def _names(self, path: bytes, nid: int) -> list[tuple[bytes, int]]:
        theirs = {entry.name: entry.inode() for entry in os.scandir(path)}
        ours = {entry.name: entry for entry in self._reader.readdir(nid)}
        assert {b".", b".."} <= ours.keys()
        self._expect(path, "names", sorted([b".", b"..", *theirs]), list(ours))
        for name, inode in theirs.items():
            entry = ours[name]
            self._expect(path, f"nid of {name!r}", inode, entry.nid)
            self._expect(path, f"lookup of {name!r}", inode, self._reader.lookup(nid, name))
            mode = os.lstat(os.path.join(path, name)).st_mode
            self._expect(path, f"type of {name!r}", stat.S_IFMT(mode), entry.file_type)
        self._expect(path, "lookup of a name that is not there", None, self._reader.lookup(nid, b"not there"))
        return [(os.path.join(path, name), inode) for name, inode in theirs.items()]

    def _inode(self, path: bytes, nid: int) -> None:
        theirs, ours = os.lstat(path), self._reader.stat(nid)
        for field in ("mode", "nlink", "uid", "gid", "size", "rdev", "mtime_ns", "blocks"):
            self._expect(path, field, getattr(theirs, f"st_{field}"), getattr(ours, field))
        self._expect(path, "inode number", theirs.st_ino, nid)
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = {os.fsencode(name): os.getxattr(path, name, follow_symlinks=False) for name in names}
        found = {name: self._reader.getxattr(nid, name) for name in self._reader.listxattr(nid)}
        self._expect(path, "xattrs", xattrs, found)
        if stat.S_ISLNK(theirs.st_mode):
            self._expect(path, "target", os.readlink(path), self._reader.readlink(nid))
        elif stat.S_ISREG(theirs.st_mode):
            self._content(path, nid, theirs.st_size)

    def _content(self, path: bytes, nid: int, size: int) -> None:
        """By odd pieces, which begin and end anywhere in a block."""
        with open(path, "rb") as file:
            for at in range(0, size, 70_001):
                if file.read(70_001) != self._reader.read(nid, at, 70_001):
                    self._found.append(f"{path!r}: content at {at}")

    def _expect(self, path: bytes, what: str, expected: object, found: object) -> None:
        if expected != found:
            self._found.append(f"{path!r}: {what}: the kernel says {expected!r:.200}, we say {found!r:.200}")
