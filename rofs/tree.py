# SPDX-License-Identifier: Apache-2.0
"""A file tree in memory, as a source gives it to an image writer: attributes and names, never content.

Memory is proportional to the number of entries. Sources (`source/`) make it, writers (`erofs/`) read
it; neither knows the other. Nothing here does I/O.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

_NO_CHILDREN: dict[bytes, Inode] = {}


@dataclass(slots=True, eq=False)
class Inode:
    """One inode of a source tree; hard links are one object under several names.

    Attributes:
        mode: File type and permission bits, as st_mode.
        mtime_ns: Nanoseconds since the epoch; may be negative.
        size: Bytes of a regular file's content; the target's length for a symbolic link.
        rdev: As `os.makedev`, for device nodes.
        xattrs: Names with prefix and values, sorted by name.
        target: Of a symbolic link.
        children: Of a directory: name to inode, in no particular order.
        parent: The directory it was first found in; None for the root.
        name: The name it was first found under.
        source_key: What the source needs to find the content again.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    rdev: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    target: bytes = b""
    children: dict[bytes, Inode] = field(default_factory=lambda: _NO_CHILDREN)
    parent: Inode | None = None
    name: bytes = b""
    nlink: int = 1
    source_key: object = None

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    def path(self) -> bytes:
        """Its first path, relative to the root, beginning with `/`."""
        names: list[bytes] = []
        inode: Inode | None = self
        while inode is not None and inode.parent is not None:
            names.append(inode.name)
            inode = inode.parent
        return b"/" + b"/".join(reversed(names))


class Source(Protocol):
    """A tree and the way to its contents."""

    @property
    def root(self) -> Inode:
        """The root directory, with everything below it."""
        ...

    def chunks(self, inode: Inode) -> Iterator[bytes]:
        """The content of a regular file in pieces, exactly `inode.size` bytes in all.

        Raises:
            InputError: It cannot be read, or changed since the tree was read; names the path.
        """
        ...


def walk(root: Inode) -> Iterator[Inode]:
    """Every inode once, in the canonical order: depth first, names bytewise.

    The order depends on names alone, never on the order in which a directory lists them. There is
    no recursion: a tree may be deeper than Python's stack.
    """
    seen: set[int] = set()
    stack = [root]
    while stack:
        inode = stack.pop()
        if inode.nlink > 1 and not inode.is_directory:
            if id(inode) in seen:
                continue
            seen.add(id(inode))
        yield inode
        stack.extend(child for _, child in sorted(inode.children.items(), reverse=True))


def finish(root: Inode) -> None:
    """Set every `nlink`, and `parent` and `name` to the canonically first name of each inode.

    Sources call it once when the tree is complete: the result does not depend on the order in
    which they found the names.
    """
    counts: dict[int, int] = {}
    stack = [root]
    while stack:
        directory = stack.pop()
        directory.nlink = 2
        for name, child in sorted(directory.children.items(), reverse=True):
            if child.is_directory:
                directory.nlink += 1
                child.parent, child.name = directory, name
                stack.append(child)
            else:
                counts[id(child)] = child.nlink = counts.get(id(child), 0) + 1
    _set_first_names(root)


def _set_first_names(root: Inode) -> None:
    named: set[int] = set()
    stack: list[tuple[Inode, bytes, Inode]] = [
        (root, name, child) for name, child in sorted(root.children.items(), reverse=True)
    ]
    while stack:
        directory, name, inode = stack.pop()
        if inode.is_directory:
            stack.extend((inode, n, c) for n, c in sorted(inode.children.items(), reverse=True))
        elif id(inode) not in named:
            inode.parent, inode.name = directory, name
            if inode.nlink > 1:
                named.add(id(inode))
