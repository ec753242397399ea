#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Uses a mount without a pause and checks all that it gets, until told to stop; prints what went wrong as JSON.

Run by test_torture in processes of their own: torture.py ROLE MOUNT SOURCE SEED STOP. SOURCE is the tree
that the image was built from, STOP a file that appears at the end. What is corrupt in the image is called so.
"""

import ctypes
import errno
import functools
import json
import mmap
import os
import random
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

CORRUPT, BAD_BLOCK, BLOCK = "corrupt", 3, 4096
MANY, LARGE, PROGRAM = "many", "large", "bin/cat"
LIBC: Any = ctypes.CDLL(None, use_errno=True)
LIBC.opendir.restype = LIBC.readdir.restype = ctypes.c_void_p
LIBC.telldir.restype = ctypes.c_long


class User:
    """What one process does, and what became of it."""

    def __init__(self, mount: str, source: str, chance: random.Random) -> None:
        self.mount = mount
        self.source = source
        self.chance = chance
        self.done = 0
        self.wrong: list[str] = []
        self.failed: Counter[str] = Counter()
        self.files = sorted(
            os.path.relpath(os.path.join(place, name), source)
            for place, _, names in os.walk(source)
            for name in names
            if name != CORRUPT and stat.S_ISREG(os.lstat(os.path.join(place, name)).st_mode)
        )
        self.tree = _tree(source)

    def right(self, found: object, expected: object, what: str) -> None:
        if found != expected and len(self.wrong) < 20:
            self.wrong.append(f"{what}: {str(found)[:80]} instead of {str(expected)[:80]}")

    def any_file(self) -> tuple[str, bytes]:
        """The path of a file in the mount, and its content."""
        name = self.chance.choice(self.files)
        with open(os.path.join(self.source, name), "rb") as file:
            return os.path.join(self.mount, name), file.read()

    # Roles: one round each

    def read(self) -> None:
        """Files as a whole and in pieces, from the page cache and past it."""
        path, content = self.any_file()
        fd = os.open(path, os.O_RDONLY)
        try:
            if self.chance.random() < 0.5:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for _ in range(4):
                start = self.chance.randrange(len(content) + 1)
                length = self.chance.choice((1, BLOCK, 70_000, 1 << 20))
                self.right(os.pread(fd, length, start), content[start : start + length], f"{path} from {start}")
        finally:
            os.close(fd)
        with open(path, "rb") as file:
            self.right(file.read(), content, path)

    def find(self) -> None:
        """The whole tree, with attributes."""
        self.right(_tree(self.mount), self.tree, "the tree")

    def execute(self) -> None:
        """A program that lies in the image."""
        path, content = self.any_file()
        done = subprocess.run([os.path.join(self.mount, PROGRAM), path], check=False, capture_output=True)
        if done.returncode:
            self.failed[f"exit status {done.returncode}: {done.stderr[:100]!r}"] += 1
        else:
            self.right(done.stdout, content, f"the output for {path}")

    def map(self) -> None:
        """A shared mapping whose pages are dropped again and again."""
        with open(os.path.join(self.source, LARGE), "rb") as file:
            content = file.read()
        fd = os.open(os.path.join(self.mount, LARGE), os.O_RDONLY)
        with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
            for _ in range(20):
                start = self.chance.randrange(len(content))
                self.right(mapping[start : start + 50_000], content[start : start + 50_000], f"the mapping at {start}")
                mapping.madvise(mmap.MADV_DONTNEED)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)

    def seek(self) -> None:
        """A large directory, with seekdir(3) to every kind of place and rewinddir(3)."""
        stream = _checked(LIBC.opendir(os.path.join(self.mount, MANY).encode()))
        try:
            places = [LIBC.telldir(stream)]
            names = []
            while name := _next_name(stream):
                names.append(name)
                places.append(LIBC.telldir(stream))
            self.right(sorted(names), sorted([".", "..", *os.listdir(os.path.join(self.source, MANY))]), "the names")
            for _ in range(10):
                index = self.chance.randrange(len(names))
                LIBC.seekdir(stream, ctypes.c_long(places[index]))
                self.right(_next_name(stream), names[index], f"the name at {places[index]}")
                if self.chance.random() < 0.3:
                    LIBC.rewinddir(stream)
                    self.right(_next_name(stream), names[0], "the first name")
        finally:
            LIBC.closedir(stream)

    def read_corrupt(self) -> None:
        """A file with a bad block: EIO there each time, right bytes beside it."""
        with open(os.path.join(self.source, CORRUPT), "rb") as file:
            content = file.read()
        fd = os.open(os.path.join(self.mount, CORRUPT), os.O_RDONLY)
        try:
            bad = BAD_BLOCK * BLOCK
            for start in (bad, bad + 1, bad + BLOCK - 1):
                got = _errno_of(functools.partial(os.pread, fd, 1, start))
                self.right(got, errno.EIO, f"a read of bad byte {start}")
            for start in (0, bad - BLOCK, bad + BLOCK):
                self.right(os.pread(fd, BLOCK, start), content[start : start + BLOCK], f"good block at {start}")
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        time.sleep(0.05)  # each is an event

    def write(self) -> None:
        """Every round is one attempt."""
        number = self.chance.randrange(1000)
        new = os.path.join(self.mount, f"new-{number}")
        # Not the program: the kernel holds off exec(2) with ETXTBSY while an open for writing waits for its answer.
        path = os.path.join(self.mount, self.chance.choice([name for name in self.files if name != PROGRAM]))
        attempts: list[Callable[[], Any]] = [
            lambda: os.mkdir(new),
            lambda: os.close(os.open(path, os.O_WRONLY)),
            lambda: os.close(os.open(new, os.O_WRONLY | os.O_CREAT)),
            lambda: os.unlink(path),
            lambda: os.rename(path, new),
            lambda: os.truncate(path, 0),
            lambda: os.chmod(path, 0o777),
            lambda: os.symlink("x", new),
            lambda: os.setxattr(path, "user.new", b"1"),
        ]
        self.right(_errno_of(self.chance.choice(attempts)), errno.EROFS, "an attempt to write")


ROLES: dict[str, Callable[[User], None]] = {
    "read": User.read,
    "find": User.find,
    "execute": User.execute,
    "map": User.map,
    "seek": User.seek,
    "read-corrupt": User.read_corrupt,
    "write": User.write,
}


def _tree(top: str) -> list[tuple[Any, ...]]:
    """All names below a directory, with attributes that a mount has in common with its source."""
    found = []
    for place, directories, files in os.walk(top, onerror=_raise):
        for name in directories + files:
            status = os.lstat(os.path.join(place, name))
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            found.append((os.path.relpath(os.path.join(place, name), top), status.st_mode, size, status.st_mtime_ns))
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error


def _errno_of(call: Callable[[], Any]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def _checked(pointer: int | None) -> ctypes.c_void_p:
    if not pointer:
        raise OSError(ctypes.get_errno(), "opendir")
    return ctypes.c_void_p(pointer)


def _next_name(stream: ctypes.c_void_p) -> str | None:
    """Of readdir(3): d_name is at 19 where off_t and ino_t have 64 bits."""
    ctypes.set_errno(0)
    entry = LIBC.readdir(stream)
    if entry:
        return ctypes.string_at(entry + 19).decode()
    if ctypes.get_errno():
        raise OSError(ctypes.get_errno(), "readdir")
    return None


def main(role: str, mount: str, source: str, seed: str, stop: str) -> None:
    user = User(mount, source, random.Random(f"{seed}-{role}"))
    while not os.path.exists(stop):
        try:
            ROLES[role](user)
        except OSError as error:
            user.failed[errno.errorcode.get(error.errno or 0, str(error))] += 1
        user.done += 1
    sys.stdout.write(json.dumps({"done": user.done, "wrong": user.wrong, "failed": user.failed}))


if __name__ == "__main__":
    main(*sys.argv[1:])
