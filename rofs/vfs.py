# SPDX-License-Identifier: Apache-2.0
"""What a filesystem server needs of a filesystem reader: a few small values, limits, and one protocol.

`erofs/` gives it, `fuse/` and `image/` use it; neither knows the other. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

# linux/limits.h
NAME_MAX_BYTES: Final = 255
PATH_MAX_BYTES: Final = 4096  # with the terminating NUL

# linux/xattr.h: the names under which POSIX ACLs travel.
ACL_ACCESS_XATTR: Final = b"system.posix_acl_access"
ACL_DEFAULT_XATTR: Final = b"system.posix_acl_default"
ACL_XATTRS: Final = frozenset({ACL_ACCESS_XATTR, ACL_DEFAULT_XATTR})


class Stat(NamedTuple):
    """The attributes of one inode, as stat(2) has them.

    Attributes:
        nid: Inode number of the image (EROFS: 32-byte slot in the metadata area).
        mode: File type and permission bits.
        nlink: Number of names; a directory has 2 plus its subdirectories.
        size: Length in bytes.
        rdev: Device number as `os.makedev` makes it, 0 for all but device nodes.
        mtime_ns: Modification time in nanoseconds since the epoch; may be negative.
        blocks: Allocated 512-byte units, as the kernel's EROFS counts them.
    """

    nid: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    rdev: int
    mtime_ns: int
    blocks: int


class DirEntry(NamedTuple):
    """One name in a directory, `.` and `..` included.

    Attributes:
        name: Bytes, never empty, without `/` and NUL.
        nid: The inode it names.
        file_type: S_IFMT bits as the directory says, 0 when unknown; the inode decides.
        next_offset: Where `readdir` continues after this entry.
    """

    name: bytes
    nid: int
    file_type: int
    next_offset: int


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of the device that an inode depends on.

    Attributes:
        offset_bytes: From the start of the filesystem's device.
        length_bytes: May be zero.
        file_offset_bytes: What of the content lies there; None for the inode itself.
    """

    offset_bytes: int
    length_bytes: int
    file_offset_bytes: int | None


@dataclass(frozen=True, slots=True)
class StatFs:
    """Totals of a filesystem, for statfs(2).

    Attributes:
        block_size: In bytes.
        blocks: Size in blocks; nothing is ever free.
        files: Number of inodes.
    """

    block_size: int
    blocks: int
    files: int


class ReadOnlyFilesystem(Protocol):
    """A filesystem whose content never changes; every method may raise `ImageError`.

    A nid that is not an inode's raises `FormatError`: nids may come from hostile callers.
    """

    @property
    def root_nid(self) -> int:
        """The inode of the root directory."""
        ...

    def statfs(self) -> StatFs:
        """Totals of the filesystem."""
        ...

    def stat(self, nid: int) -> Stat:
        """Attributes of an inode."""
        ...

    def lookup(self, directory_nid: int, name: bytes) -> int | None:
        """The nid that `name` has in a directory, None when there is no such name.

        Raises:
            NotADirectoryError: `directory_nid` is not a directory.
        """
        ...

    def readdir(self, directory_nid: int, offset: int = 0) -> Iterator[DirEntry]:
        """Entries in stored order from `offset` (0, or an entry's `next_offset`).

        Raises:
            NotADirectoryError: `directory_nid` is not a directory.
        """
        ...

    def readlink(self, nid: int) -> bytes:
        """Target of a symbolic link.

        Raises:
            OSError: EINVAL, `nid` is not a symbolic link.
        """
        ...

    def read(self, nid: int, offset_bytes: int, length_bytes: int) -> bytes:
        """Up to `length_bytes` of a regular file; shorter only at its end."""
        ...

    def listxattr(self, nid: int) -> list[bytes]:
        """Names of the extended attributes, with their prefixes."""
        ...

    def getxattr(self, nid: int, name: bytes) -> bytes | None:
        """Value of one extended attribute, None when there is no such name."""
        ...

    def inode_extent(self, nid: int) -> Extent:
        """Where the inode itself lies; reads nothing."""
        ...

    def extents(self, nid: int) -> Iterable[Extent]:
        """Every range of the device that the inode and its content occupy: first the inode, content in its order.

        Holes have none. There may be millions, so they are not kept; errors come while they are taken.
        """
        ...
