# SPDX-License-Identifier: Apache-2.0
"""The two kinds of tree that can be compared, an image's and a directory's, in the words of one protocol.

What names an image (its identity) is not part of its tree. Does not compare anything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rofs.image.identity import XATTR
from rofs.image.lookup import OnceOnly, children, contents
from rofs.image.open import VerifiedImage
from rofs.tree import Inode, Source

Key = Any  # what a side calls an inode: hashable, and its own matter


@dataclass(frozen=True, slots=True)
class EntryFacts:
    """What is compared of an entry besides its content.

    Attributes:
        mode: File type and permission bits.
        size: Bytes of content of a regular file; 0 for all else.
        rdev: As `os.makedev`; 0 for all but device nodes.
        target: Of a symbolic link.
        xattrs: By name.
        linked: Whether it may have several names.
    """

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    rdev: int
    target: bytes
    xattrs: Mapping[bytes, bytes]
    linked: bool


class Side(Protocol):
    """One of the two trees; its errors about an image do not say of which, nor where in it."""

    @property
    def name(self) -> bytes:
        """What errors shall call it."""
        ...

    @property
    def root(self) -> Key:
        """The root directory."""
        ...

    def facts(self, key: Key) -> EntryFacts:
        """All but the content.

        Raises:
            ImageError: It cannot be read.
        """
        ...

    def names(self, key: Key) -> Mapping[bytes, Key]:
        """What is in a directory.

        Raises:
            ImageError: It cannot be read to its end, or was entered before.
        """
        ...

    def contents(self, key: Key) -> Iterator[tuple[int, bytes]]:
        """Of a regular file: offsets in bytes and what stands there, ascending; holes may be left out.

        Raises:
            ImageError: A block is malformed, corrupt or unreadable.
            InputError: It changed meanwhile.
        """
        ...


class ImageSide:
    """The tree of an image; an inode is its nid.

    Args:
        image: Trusted; its blocks are verified as they are read.
        name: What errors call it.
    """

    def __init__(self, image: VerifiedImage, name: str | bytes = "image") -> None:
        self._filesystem = image.filesystem
        self._name = os.fsencode(name)
        self._once = OnceOnly()

    @property
    def name(self) -> bytes:
        """See `Side`."""
        return self._name

    @property
    def root(self) -> int:
        """See `Side`."""
        return self._filesystem.root_nid

    def facts(self, key: int) -> EntryFacts:
        """See `Side`."""
        status = self._filesystem.stat(key)
        xattrs = {name: self._filesystem.getxattr(key, name) or b"" for name in self._filesystem.listxattr(key)}
        target = self._filesystem.readlink(key) if stat.S_ISLNK(status.mode) else b""
        if key == self.root:
            xattrs.pop(XATTR, None)
        return EntryFacts(
            mode=status.mode,
            uid=status.uid,
            gid=status.gid,
            mtime_ns=status.mtime_ns,
            size=status.size if stat.S_ISREG(status.mode) else 0,
            rdev=status.rdev,
            target=target,
            xattrs=xattrs,
            linked=status.nlink > 1,
        )

    def names(self, key: int) -> Mapping[bytes, int]:
        """See `Side`."""
        self._once.enter(key)
        return {entry.name: entry.nid for entry in children(self._filesystem, key)}

    def contents(self, key: int) -> Iterator[tuple[int, bytes]]:
        """See `Side`."""
        yield from contents(self._filesystem, key)


class SourceSide:
    """The tree of a source of images, such as a directory."""

    def __init__(self, source: Source) -> None:
        self._source = source

    @property
    def name(self) -> bytes:
        """See `Side`; its errors name files themselves."""
        return b"directory"

    @property
    def root(self) -> Inode:
        """See `Side`."""
        return self._source.tree.root

    def facts(self, key: Inode) -> EntryFacts:
        """See `Side`."""
        xattrs = dict(key.xattrs)
        if key is self.root:
            xattrs.pop(XATTR, None)
        return EntryFacts(
            mode=key.mode,
            uid=key.uid,
            gid=key.gid,
            mtime_ns=key.mtime_ns,
            size=key.size if key.is_regular else 0,
            rdev=key.rdev,
            target=key.target,
            xattrs=xattrs,
            linked=key.nlink > 1,
        )

    def names(self, key: Inode) -> Mapping[bytes, Inode]:
        """See `Side`."""
        return key.children

    def contents(self, key: Inode) -> Iterator[tuple[int, bytes]]:
        """See `Side`."""
        return self._source.contents(key)
