# SPDX-License-Identifier: Apache-2.0
"""A file tree in memory, as a source gives it to an image writer: attributes and names, never content.

A source makes `Inode`s, puts them under names with `add` in any order, and hands over a `Tree`, which
nothing but its constructor makes: it works out what depends on all the names. Memory is proportional to
the number of entries. Sources (`source/`) make it, writers (`erofs/`) read it; neither knows the other.
Nothing here does I/O.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

# Shared by all that is no directory: nobody can put anything into it.
_NO_CHILDREN: Mapping[bytes, Inode] = MappingProxyType({})


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
        children: Of a directory: name to inode, in no particular order; `add` changes it.
        parent: The directory it was first put into; in a `Tree`, where its canonically first name stands.
        name: The name that goes with `parent`.
        nlink: Right in a `Tree` only.
        source_key: What the source needs to find the content again.

    Raises:
        ValueError: Children of what is no directory.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    rdev: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    target: bytes = b""
    children: Mapping[bytes, Inode] = field(default_factory=lambda: _NO_CHILDREN)
    parent: Inode | None = None
    name: bytes = b""
    nlink: int = 1
    source_key: object = None

    def __post_init__(self) -> None:
        if self.is_directory:
            self.children = dict(self.children)
        elif self.children:
            raise ValueError(f"an inode of mode {self.mode:#o} has no children")

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_regular(self) -> bool:
        """Whether it is a regular file."""
        return stat.S_ISREG(self.mode)

    def add(self, name: bytes, child: Inode) -> None:
        """Put an inode into this directory, in place of what had the name.

        Args:
            name: One component of a path.
            child: A directory under one name only; anything else under as many as it has links.

        Raises:
            ValueError: This is no directory, or no file can have the name.
        """
        if not self.is_directory:
            raise ValueError(f"an inode of mode {self.mode:#o} has no children")
        if name in {b"", b".", b".."} or b"/" in name or b"\0" in name:
            raise ValueError(f"no file can have the name {name!r}")
        assert isinstance(self.children, dict)
        self.children[name] = child
        if child.parent is None:
            child.parent, child.name = self, name

    def path(self) -> bytes:
        """Its first path, relative to the root, beginning with `/`."""
        names: list[bytes] = []
        inode: Inode | None = self
        while inode is not None and inode.parent is not None:
            names.append(inode.name)
            inode = inode.parent
        return b"/" + b"/".join(reversed(names))


class Tree:
    """A complete tree, in which every inode knows its number of links and its canonically first name.

    Making one is what finishes a tree: the result depends on the names alone, never on the order in
    which they were put in. After a change below `root` make another.

    Args:
        root: The root directory, with everything below it.

    Raises:
        ValueError: The root is no directory, or a directory stands under two names.
    """

    def __init__(self, root: Inode) -> None:
        if not root.is_directory:
            raise ValueError(f"the root of a tree has mode {root.mode:#o}; expected a directory")
        self._root = root
        self._finish()

    @property
    def root(self) -> Inode:
        """The root directory."""
        return self._root

    def walk(self) -> Iterator[Inode]:
        """Every inode once, in the canonical order: depth first, names bytewise."""
        yield self._root
        for directory, name, inode in _names(self._root):
            if inode.parent is directory and inode.name == name:
                yield inode

    def _finish(self) -> None:
        root = self._root
        root.nlink, root.parent, root.name = 2, None, b""
        seen = {id(root)}
        for directory, name, inode in _names(root):
            first = id(inode) not in seen
            if inode.is_directory:
                if not first:
                    raise ValueError(f"the directory {inode.path()!r} has another name, {name!r}")
                directory.nlink += 1
            if first:
                seen.add(id(inode))
                inode.nlink = 2 if inode.is_directory else 1
                inode.parent, inode.name = directory, name
            else:
                inode.nlink += 1


class Source(Protocol):
    """A tree and the way to its contents."""

    @property
    def tree(self) -> Tree:
        """All names and attributes."""
        ...

    def contents(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        """The content of a regular file as `pieces`, at most 1 MiB each; zeros elsewhere, up to `inode.size`.

        That the source knows of a hole shows nowhere but in time. It ends well only when the content is still
        what it was when the tree was read: until then nobody may rely on what was left out.

        Raises:
            InputError: It cannot be read, or changed since the tree was read; names the path.
        """
        ...


def _names(root: Inode) -> Iterator[tuple[Inode, bytes, Inode]]:
    """Every name in canonical order, as (directory, name, inode); a directory before what it holds.

    There is no recursion: a tree may be deeper than Python's stack.
    """
    stack = _reversed_entries(root)
    while stack:
        entry = stack.pop()
        yield entry
        inode = entry[2]
        if inode.children:
            stack += _reversed_entries(inode)


def _reversed_entries(directory: Inode) -> list[tuple[Inode, bytes, Inode]]:
    return [(directory, name, child) for name, child in sorted(directory.children.items(), reverse=True)]
