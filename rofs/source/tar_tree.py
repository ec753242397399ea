# SPDX-License-Identifier: Apache-2.0
"""From the members of a tar archive to a tree: what extracting them in their order would give.

Of members with one name the later counts; a directory given again only changes its attributes. Nothing
is ever followed. Reads nothing: contents stay where they are.
"""

from __future__ import annotations

import os
import stat
from array import array
from dataclasses import dataclass

from rofs.errors import InputError, printable
from rofs.source import tar_format as fmt
from rofs.source.implied import implied_directory, take_attributes
from rofs.source.posix_acl import mode_with_acl
from rofs.source.tar_reader import Member
from rofs.source.xattrs import xattrs_of_records
from rofs.tree import Inode
from rofs.vfs import ACL_ACCESS_XATTR, NAME_MAX_BYTES, PATH_MAX_BYTES

_KINDS = {
    fmt.REGULAR: stat.S_IFREG,
    fmt.SYMLINK: stat.S_IFLNK,
    fmt.CHAR: stat.S_IFCHR,
    fmt.BLOCK: stat.S_IFBLK,
    fmt.DIRECTORY: stat.S_IFDIR,
    fmt.FIFO: stat.S_IFIFO,
}
_MAX_MAJOR, _MAX_MINOR = (1 << 12) - 1, (1 << 20) - 1  # linux/kdev_t.h


@dataclass(frozen=True, slots=True)
class StoredContent:
    """Where a file's bytes are; see `tar_reader.Member`."""

    offset: int
    stored_bytes: int
    extents: array[int] | None


@dataclass(frozen=True, slots=True)
class _Pending:
    """A hard link whose target had not come yet.

    Attributes:
        placeholder: What stands at its name meanwhile.
    """

    member: Member
    names: list[bytes]
    target: list[bytes]
    placeholder: Inode


class TreeBuilder:
    """Puts members into a tree, one after another. Every regular file has a `StoredContent` as its key.

    Args:
        shown: What to call the archive in errors.

    Attributes:
        repeated: When finished: path, file and content of each hard link that came with a content of its own,
            which nobody has compared with the file's yet.
    """

    def __init__(self, shown: str) -> None:
        self._shown = shown
        self._root = implied_directory()
        self._pending: dict[int, _Pending] = {}  # by id() of the placeholder
        self.repeated: list[tuple[bytes, Inode, StoredContent]] = []

    def add(self, member: Member) -> None:
        """Add the next member.

        Raises:
            InputError: It cannot be part of a tree, or of an image; names it.
        """
        try:
            self._add(member)
        except ValueError as error:
            raise self._error(member, str(error)) from error

    def finish(self) -> Inode:
        """The root directory, when all members are there.

        Raises:
            InputError: A hard link has no target; names it.
        """
        for pending in self._pending.values():
            if self._find(pending.names) is pending.placeholder:  # no later member took its name
                inode = self._resolved(pending)
                self._parent(pending.names).add(pending.names[-1], inode)
                self._note_repeated(pending.member, inode)
        return self._root

    def _error(self, member: Member, text: str) -> InputError:
        return InputError(f"tar archive {self._shown}: member {printable(member.path)}: {text}")

    def _add(self, member: Member) -> None:
        names = _components(member.path)
        if member.typeflag == fmt.DIRECTORY:
            self._add_directory(names, member)
        elif not names:
            raise ValueError("it would take the place of the root, but is no directory")
        elif member.typeflag == fmt.HARD_LINK:
            self._add_link(names, member)
        else:
            self._parent(names).add(names[-1], _inode(member))

    def _add_directory(self, names: list[bytes], member: Member) -> None:
        described = _inode(member)
        before = self._parent(names).children.get(names[-1]) if names else self._root
        if before is not None and before.is_directory:
            take_attributes(before, described)
        else:
            self._parent(names).add(names[-1], described)

    def _add_link(self, names: list[bytes], member: Member) -> None:
        parent, target = self._parent(names), _components(member.target)
        inode = self._find(target)
        if inode is None or id(inode) in self._pending:
            inode = Inode(mode=stat.S_IFREG)
            self._pending[id(inode)] = _Pending(member, names, target, inode)
        elif inode.is_directory:
            raise ValueError(f"it is a hard link to {printable(member.target)}, which is a directory")
        else:
            self._note_repeated(member, inode)
        parent.add(names[-1], inode)

    def _note_repeated(self, member: Member, inode: Inode) -> None:
        if not member.stored_bytes:
            return
        if not inode.is_regular:
            raise self._error(member, f"it is a hard link with a content to {printable(member.target)}, which has none")
        self.repeated.append((member.path, inode, StoredContent(member.offset, member.stored_bytes, None)))

    def _parent(self, names: list[bytes]) -> Inode:
        directory = self._root
        for count, name in enumerate(names[:-1], 1):
            below = directory.children.get(name)
            if below is None:
                below = implied_directory()
                directory.add(name, below)
            elif not below.is_directory:
                above = printable(b"/".join(names[:count]))
                raise ValueError(f"it lies below {above}, which is no directory in this archive")
            directory = below
        return directory

    def _find(self, names: list[bytes]) -> Inode | None:
        inode: Inode | None = self._root
        for name in names:
            inode = inode.children.get(name) if inode is not None else None
        return inode

    def _resolved(self, link: _Pending) -> Inode:
        seen: set[int] = set()
        pending: _Pending | None = link
        while pending is not None and id(pending.placeholder) not in seen:
            seen.add(id(pending.placeholder))
            inode = self._find(pending.target)
            if inode is None or inode.is_directory:
                what = "not in the archive" if inode is None else "a directory"
                raise self._error(link.member, f"it is a hard link to {printable(pending.member.target)}, {what}")
            pending = self._pending.get(id(inode))
            if pending is None:
                return inode
        raise self._error(link.member, "it is a hard link to itself")


def _components(path: bytes) -> list[bytes]:
    """The names on a path from the root, whether it begins with `/`, `./` or neither."""
    if not path or b"\0" in path:
        raise ValueError("its name is empty or has a NUL in it")
    names = [name for name in path.split(b"/") if name not in {b"", b"."}]
    if b".." in names:
        raise ValueError(f"the path {printable(path)} has a `..`, which could lead out of the tree")
    if any(len(name) > NAME_MAX_BYTES for name in names):
        raise ValueError(f"a name in it has more than {NAME_MAX_BYTES} bytes, which no file can have")
    return names


def _inode(member: Member) -> Inode:
    kind = _KINDS[member.typeflag]
    inode = Inode(
        mode=kind | member.mode,
        uid=member.uid,
        gid=member.gid,
        mtime_ns=member.mtime_ns,
        xattrs=xattrs_of_records(member.records),
    )
    acl = next((value for name, value in inode.xattrs if name == ACL_ACCESS_XATTR), b"")
    inode.mode = mode_with_acl(inode.mode, acl)  # bsdtar stores another mode than the file had
    if kind == stat.S_IFREG:
        inode.size = member.size
        inode.source_key = StoredContent(member.offset, member.stored_bytes, member.extents)
    elif kind == stat.S_IFLNK:
        inode.mode = stat.S_IFLNK | 0o777  # Linux knows no other; some systems' archives do
        inode.target, inode.size = _target(member.target), len(member.target)
    elif kind in {stat.S_IFCHR, stat.S_IFBLK}:
        inode.rdev = _device(member.devmajor, member.devminor)
    return inode


def _target(target: bytes) -> bytes:
    if not 0 < len(target) < PATH_MAX_BYTES or b"\0" in target:
        raise ValueError(
            f"it is a symbolic link to {printable(target[:80])}, of {len(target)} bytes; expected 1 to "
            f"{PATH_MAX_BYTES - 1} without a NUL"
        )
    return target


def _device(major: int, minor: int) -> int:
    if not (0 <= major <= _MAX_MAJOR and 0 <= minor <= _MAX_MINOR):
        raise ValueError(f"its device is {major}:{minor}, expected at most {_MAX_MAJOR}:{_MAX_MINOR}")
    return os.makedev(major, minor)
