# SPDX-License-Identifier: Apache-2.0
"""Sets owners, permissions, times and xattrs, and keeps account of what cannot be set. Makes and names no file."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

from rofs.errors import printable
from rofs.vfs import ACL_ACCESS_XATTR, ACL_DEFAULT_XATTR, Stat

PathOf = Callable[[], bytes]
Times = tuple[int, int]  # of the last access and modification, in nanoseconds
Handle = int | bytes  # what attributes are set on: a descriptor, or the path in /proc of one that is only a name

_SET_ID_BITS = stat.S_ISUID | stat.S_ISGID
_NO_CHANGE = 0xFFFFFFFF  # chown(2): leave it as it is, so that the file would stay root's
_MAX_KINDS = 100  # a hostile image has a million names of xattrs
_PRIVILEGED_XATTRS = (b"trusted.", b"security.")


@dataclass(frozen=True, slots=True)
class Attributes:
    """What an entry has besides its content.

    Attributes:
        status: Mode, owner and time are taken from it.
        xattrs: Names with prefix and values, ACLs among them.
    """

    status: Stat
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(slots=True)
class Shortfall:
    """A kind of attribute that could not be set.

    Attributes:
        what: The kind, in the plural.
        reason: What the system said first.
        path: Where first, from the root of the tree.
        expected: Only root could have set it, and we are not root.
        count: On how many entries.
    """

    what: str
    reason: str
    path: bytes
    expected: bool
    count: int = 0


class AttributeSetter:
    """Sets attributes as far as this user may.

    Attributes:
        privileged: Whether this is root, who may give files to others.
        shortfalls: What could not be set so far, each kind once.
    """

    def __init__(self) -> None:
        self.privileged = os.geteuid() == 0
        self.shortfalls: dict[str, Shortfall] = {}

    def set_all(self, handle: Handle, attributes: Attributes, path: PathOf) -> None:
        """Set everything on one entry; what cannot be set is noted, not raised.

        Owner first, which clears set-id bits and capabilities; xattrs before the mode may forbid them;
        time last.

        Args:
            handle: Of the entry.
            attributes: What it shall have.
            path: Gives its path from the root of the tree, for notes.
        """
        status = attributes.status
        mode = stat.S_IMODE(status.mode)
        owned = self._own(handle, status, path)
        if mode & _SET_ID_BITS and not (owned and self.privileged):
            mode &= ~_SET_ID_BITS  # it would be somebody else's authority
            self._miss("setuid and setgid bits", "not given without the owner", path, expected=not self.privileged)
        for name, value in attributes.xattrs:
            expected = not self.privileged and name.startswith(_PRIVILEGED_XATTRS)
            self._try(f"xattrs {printable(name)}", path, os.setxattr, handle, name, value, expected=expected)
        if not stat.S_ISLNK(status.mode):
            self._try("permissions", path, os.chmod, handle, mode)
        times = (status.mtime_ns, status.mtime_ns)
        if self._try("modification times", path, lambda: os.utime(handle, ns=times)):
            found = os.stat(handle).st_mtime_ns
            if found != status.mtime_ns:
                self._miss("modification times", f"the filesystem made {found} ns of {status.mtime_ns} ns", path)

    def restore_times(self, handle: Handle, times: Times, path: PathOf) -> None:
        """Give a directory that was there before its times again, if they changed.

        Args:
            handle: Of the directory.
            times: What `times_of` said before.
            path: Gives its path from the root of the tree, for notes.
        """
        if times_of(handle) != times:
            expected = not self.privileged  # it may be somebody else's
            what = "times of directories that were there"
            self._try(what, path, lambda: os.utime(handle, ns=times), expected=expected)

    def _own(self, handle: Handle, status: Stat, path: PathOf) -> bool:
        """Whether the entry now belongs to whom it should."""
        if _NO_CHANGE in {status.uid, status.gid}:
            self._miss("owners", f"{_NO_CHANGE} is nobody's number", path)
            return False
        if self.privileged:
            return self._try("owners", path, os.chown, handle, status.uid, status.gid)
        found = os.stat(handle)
        if (found.st_uid, found.st_gid) == (status.uid, status.gid):
            return True
        self._miss("owners", "only root can give files to others", path, expected=True)
        return False

    def _try(self, what: str, path: PathOf, call: Callable[..., None], *args: object, expected: bool = False) -> bool:
        try:
            call(*args)
        except OSError as error:
            self._miss(what, os.strerror(error.errno or 0), path, expected=expected)
        except (OverflowError, ValueError) as error:  # a number or name that no system call takes
            self._miss(what, str(error), path)
        else:
            return True
        return False

    def _miss(self, what: str, reason: str, path: PathOf, *, expected: bool = False) -> None:
        if len(self.shortfalls) >= _MAX_KINDS:
            what = "further kinds of xattrs"
        if what not in self.shortfalls:
            self.shortfalls[what] = Shortfall(what, reason, path(), expected)
        self.shortfalls[what].count += 1


def times_of(handle: Handle) -> Times:
    """The times that an entry has now."""
    status = os.stat(handle)
    return status.st_atime_ns, status.st_mtime_ns


def clear_acls(handle: Handle) -> None:
    """Remove ACLs, of which a default one would be inherited by what is made in the directory."""
    for name in (ACL_ACCESS_XATTR, ACL_DEFAULT_XATTR):
        with contextlib.suppress(OSError):  # there is none, or the filesystem knows none
            os.removexattr(handle, name)
