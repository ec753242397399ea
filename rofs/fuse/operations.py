# SPDX-License-Identifier: Apache-2.0
"""Answers the kernel's requests from a read-only filesystem; refuses and reports every change.

Handlers are synchronous: none ever awaits, since a worker that sleeps in read(2) for the next request
would leave the awaiting one standing. Node ids are a pure function of nids and file handles are node
ids, so any worker can answer any request. Does not know how the filesystem is stored or verified.

More than 400 lines, since pyfuse3 calls the operations on one object, and none may be left to its base class.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Coroutine, MutableSequence, Sequence
from typing import Any, Concatenate, Final, NoReturn, ParamSpec, Protocol, TypeVar, cast

import pyfuse3
from pyfuse3 import FUSEError

from rofs.audit.event import escape_path
from rofs.errors import CorruptionError, ImageError, ReadError
from rofs.fuse.errnos import errno_of, name_of
from rofs.fuse.flags import flag_names, wants_write
from rofs.fuse.messages import Attempt, FaultReport, InternalReport, Report
from rofs.fuse.pusher import Pusher
from rofs.fuse.shared import Number
from rofs.vfs import ReadOnlyFilesystem

# The image cannot change, so neither can an answer. For a root filesystem this is correctness: while
# systemd has every process stopped, nothing may need us.
FOREVER_SECONDS: Final = 10 * 365 * 86400
_ROOT: Final = 1
_NID_OFFSET: Final = 2  # node id 1 is the root, 0 is none
_NAME_MAX_BYTES = 255
_SELF_AND_PARENT = frozenset({b".", b".."})
_TRUSTED = b"trusted."
# What the kernel's EROFS has; it passes names of any other kind on to FUSE, too.
_XATTR_NAMESPACES = (b"user.", _TRUSTED, b"security.", b"system.posix_acl_")
_CODE_BITS = 12
_CODE_MASK = (1 << _CODE_BITS) - 1
_NUMBER_MASK = (1 << 64) - 1
_REQUESTS, _BUSY = int(Number.REQUESTS), int(Number.BUSY)  # plain, as they are used in each request

_P = ParamSpec("_P")
_R = TypeVar("_R")
_S = TypeVar("_S", bound="Operations")


class Context(Protocol):
    """Who asks: pyfuse3.RequestContext."""

    @property
    def uid(self) -> int: ...  # noqa: D102
    @property
    def gid(self) -> int: ...  # noqa: D102
    @property
    def pid(self) -> int: ...  # noqa: D102


def _handler(
    function: Callable[Concatenate[_S, _P], _R],
) -> Callable[Concatenate[_S, _P], Coroutine[Any, Any, _R]]:
    """Make a synchronous method a pyfuse3 handler that only ever raises FUSEError.

    Anything else that left a handler would end `pyfuse3.main` and with it the filesystem.
    """
    name = function.__name__
    code = hash(name) & _CODE_MASK | 1  # never 0; the same in all workers, which one process has forked
    is_about_inode = name not in {"forget", "statfs"}

    @functools.wraps(function)
    async def handler(self: _S, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        inode = cast("int", args[0]) if is_about_inode else 0
        self.numbers[_BUSY] = (inode << _CODE_BITS) + code & _NUMBER_MASK
        try:
            return function(self, *args, **kwargs)
        except FUSEError:
            raise
        except Exception as error:  # the catch-all is the point
            raise FUSEError(self.explain(name, args, error)) from error
        finally:
            self.count()
            self._count_request()
            self.numbers[_BUSY] = 0

    return cast("Callable[Concatenate[_S, _P], Coroutine[Any, Any, _R]]", handler)


class Operations(pyfuse3.Operations):
    """The handlers of one worker.

    Args:
        filesystem: What is served.
        report: Tells the supervisor; returns when it has recorded the report, or after a moment.
        numbers: Of the worker's slot, by `Number`: what it is busy with, how much it has done.
        count: Called after each request, to count what only the caller knows of.
        xattrs: Whether any file has an extended attribute; if not, the kernel is told to ask for lists no more.
        pusher: Puts files into the page cache when they are opened.
        out_of_memory: Told of a request for which memory did not suffice; may end the process.
    """

    supports_dot_lookup = True

    def __init__(
        self,
        filesystem: ReadOnlyFilesystem,
        report: Callable[[Report], None],
        numbers: MutableSequence[int] | memoryview,
        *,
        count: Callable[[], None] = lambda: None,
        xattrs: bool = True,
        pusher: Pusher | None = None,
        out_of_memory: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._filesystem = filesystem
        self._report = report
        self.numbers = numbers
        self._has_xattrs = xattrs
        self.count = count
        self._pusher = pusher
        self._out_of_memory = out_of_memory
        self._root_nid = filesystem.root_nid
        self._block_size = filesystem.statfs().block_size

    def _count_request(self) -> None:
        # Another worker that was taken over may have written anything there: it must not raise.
        self.numbers[_REQUESTS] = self.numbers[_REQUESTS] + 1 & _NUMBER_MASK

    # Node ids

    def _nid(self, inode: int) -> int:
        return self._root_nid if inode == _ROOT else inode - _NID_OFFSET

    def _inode(self, nid: int) -> pyfuse3.InodeT:
        return _ROOT if nid == self._root_nid else nid + _NID_OFFSET

    # Failures

    def explain(self, handler: str, args: tuple[Any, ...], error: Exception) -> int:
        """Report a failure other than a refusal and choose its errno.

        Args:
            handler: Name of the handler.
            args: Its arguments; the first is a node id or a file handle, which is one.
            error: What it raised.
        """
        if isinstance(error, MemoryError):
            self._out_of_memory()
        number = errno_of(error)
        nid = self._nid(args[0]) if args and isinstance(args[0], int) else None
        if isinstance(error, CorruptionError | ReadError) and error.fault is not None:
            self._report(FaultReport.of(nid or 0, error.fault))
        elif number not in {errno.ENOTDIR, errno.EINVAL}:  # those are answers, not failures
            detail = f"{handler}: {type(error).__name__}: {error}"
            self._report(InternalReport(nid=nid if nid is None or nid >= 0 else None, detail=detail[:1000]))
        return number

    # Reading

    def _attributes(self, nid: int) -> pyfuse3.EntryAttributes:
        status = self._filesystem.stat(nid)
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = self._inode(nid)
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = FOREVER_SECONDS
        entry.st_mode = status.mode
        entry.st_nlink = status.nlink
        entry.st_uid = status.uid
        entry.st_gid = status.gid
        entry.st_rdev = status.rdev
        entry.st_size = status.size
        entry.st_blksize = self._block_size
        entry.st_blocks = status.blocks
        entry.st_atime_ns = entry.st_ctime_ns = entry.st_mtime_ns = status.mtime_ns
        return entry

    @_handler
    def lookup(self, parent_inode: int, name: bytes, ctx: Context) -> pyfuse3.EntryAttributes:  # noqa: ARG002
        """Find a name; that there is none is an answer the kernel may keep, too."""
        if name == b".":  # of a file, too: how the kernel finds an inode again by its handle
            return self._attributes(self._nid(parent_inode))
        if len(name) > _NAME_MAX_BYTES:
            raise FUSEError(errno.ENAMETOOLONG)
        nid = self._filesystem.lookup(self._nid(parent_inode), name)
        if nid is not None:
            return self._attributes(nid)
        nothing = pyfuse3.EntryAttributes()
        nothing.st_ino = 0
        nothing.entry_timeout = FOREVER_SECONDS
        return nothing

    @_handler
    def getattr(self, inode: int, ctx: Context) -> pyfuse3.EntryAttributes:  # noqa: ARG002
        """Attributes of an inode."""
        return self._attributes(self._nid(inode))

    @_handler
    def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is remembered here that could be forgotten; what the kernel has in its page cache is."""
        if self._pusher is not None:
            self._pusher.forgotten(inode for inode, _ in inode_list)

    @_handler
    def readlink(self, inode: int, ctx: Context) -> bytes:  # noqa: ARG002
        """Target of a symbolic link."""
        return self._filesystem.readlink(self._nid(inode))

    @_handler
    def open(self, inode: int, flags: int, ctx: Context) -> pyfuse3.FileInfo:
        """Open for reading; refuse whatever could lead to a write."""
        if wants_write(flags):
            self._refuse("open", ctx, inode, flags=flag_names(flags))
        if self._pusher is not None:
            self._pusher.opened(inode, self._nid(inode))
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    @_handler
    def read(self, fh: int, off: int, size: int) -> bytes:
        """Verified content."""
        if self._pusher is not None:
            self._pusher.was_read(fh)
        return self._filesystem.read(self._nid(fh), off, size)

    async def release(self, fh: int) -> None:  # noqa: ARG002
        """File handles hold nothing. No `_handler`, since it is half of all requests and cannot fail."""
        self._count_request()

    @_handler
    def flush(self, fh: int) -> None:  # noqa: ARG002
        """Tell the kernel once that FLUSH is not needed: there is nothing to write back."""
        raise FUSEError(errno.ENOSYS)

    @_handler
    def fsync(self, fh: int, datasync: bool) -> None:  # noqa: FBT001
        """Everything is on disk already."""

    @_handler
    def opendir(self, inode: int, ctx: Context) -> pyfuse3.FileHandleT:  # noqa: ARG002
        """Open a directory; the handle is its node id."""
        return inode

    @_handler
    def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries with attributes, as many as fit; `start_id` is an entry's `next_offset`."""
        for entry in self._filesystem.readdir(self._nid(fh), start_id):
            if entry.name in _SELF_AND_PARENT:  # whose attributes the kernel does not take from a listing
                attributes = pyfuse3.EntryAttributes()
                attributes.st_ino = self._inode(entry.nid)
                attributes.st_mode = entry.file_type
            else:
                attributes = self._listed_attributes(entry.nid)
            if not pyfuse3.readdir_reply(token, entry.name, attributes, entry.next_offset):
                return

    def _listed_attributes(self, nid: int) -> pyfuse3.EntryAttributes:
        """Attributes for a listing: none for a bad inode, which must not hide the names beside it.

        glibc of Debian 12 leaves out names without an inode number, later ones show it; asked for, it is EIO.
        """
        try:
            return self._attributes(nid)
        except ImageError as error:
            self.explain("readdir", (self._inode(nid),), error)
            return pyfuse3.EntryAttributes()

    async def releasedir(self, fh: int) -> None:  # noqa: ARG002
        """Directory handles hold nothing."""
        self._count_request()

    @_handler
    def fsyncdir(self, fh: int, datasync: bool) -> None:  # noqa: FBT001
        """Everything is on disk already."""

    @_handler
    def statfs(self, ctx: Context) -> pyfuse3.StatvfsData:  # noqa: ARG002
        """Totals; nothing is free."""
        totals = self._filesystem.statfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = totals.block_size
        data.f_blocks = totals.blocks
        data.f_files = totals.files
        data.f_bfree = data.f_bavail = data.f_ffree = data.f_favail = 0
        data.f_namemax = _NAME_MAX_BYTES
        return data

    @_handler
    def getxattr(self, inode: int, name: bytes, ctx: Context) -> bytes:  # noqa: ARG002
        """Value of an extended attribute.

        Never ENOSYS: pyfuse3 also calls this for setxattr(2) with XATTR_CREATE or XATTR_REPLACE, and passes the
        answer on; the kernel would take it for SETXATTR's, and refuse by itself, unseen, from then on.
        """
        value = self._filesystem.getxattr(self._nid(inode), name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR if name.startswith(_XATTR_NAMESPACES) else errno.EOPNOTSUPP)
        return value

    @_handler
    def listxattr(self, inode: int, ctx: Context) -> list[bytes]:
        """Names of the extended attributes; those of `trusted.` are for root alone, as their values are."""
        if not self._has_xattrs:
            raise FUSEError(errno.ENOSYS)  # once, and the kernel asks no more
        names = self._filesystem.listxattr(self._nid(inode))
        return names if ctx.uid == 0 else [name for name in names if not name.startswith(_TRUSTED)]

    @_handler
    def access(self, inode: int, mode: int, ctx: Context) -> bool:  # noqa: ARG002
        """Never asked: the kernel checks permissions itself (default_permissions)."""
        return True

    @_handler
    def poll(self, inode: int, fh: int, poll_handle: object, ctx: Context) -> int:  # noqa: ARG002
        """Tell the kernel once to poll for itself: regular files are always ready."""
        raise FUSEError(errno.ENOSYS)

    # Changing: each of these is refused. The kernel has found the name, or that there is none, before
    # it asks; where it may be wrong about that, EEXIST and ENOENT come before EROFS.

    def _refuse(
        self,
        op: str,
        ctx: Context,
        inode: int,
        name: bytes | None = None,
        *,
        new: tuple[int, bytes] | None = None,
        flags: tuple[str, ...] = (),
        changes: tuple[str, ...] = (),
        xattr: bytes | None = None,
    ) -> NoReturn:
        self._report(
            Attempt(
                op=op,
                nid=self._nid(inode),
                tid=ctx.pid,
                uid=ctx.uid,
                gid=ctx.gid,
                errno=name_of(errno.EROFS),
                name=escape_path(name) if name is not None else None,
                nid2=self._nid(new[0]) if new else None,
                name2=escape_path(new[1]) if new else None,
                flags=flags,
                changes=changes,
                xattr=escape_path(xattr) if xattr is not None else None,
            )
        )
        raise FUSEError(errno.EROFS)

    def _refuse_new(self, op: str, ctx: Context, parent: int, name: bytes, *, flags: tuple[str, ...] = ()) -> NoReturn:
        if self._exists(parent, name, unknown=False):
            raise FUSEError(errno.EEXIST)
        self._refuse(op, ctx, parent, name, flags=flags)

    def _refuse_old(self, op: str, ctx: Context, parent: int, name: bytes) -> NoReturn:
        if not self._exists(parent, name, unknown=True):
            raise FUSEError(errno.ENOENT)
        self._refuse(op, ctx, parent, name)

    def _exists(self, parent: int, name: bytes, *, unknown: bool) -> bool:
        """Whether a name exists; `unknown` when its directory is corrupt: the attempt is refused all the same."""
        try:
            return self._filesystem.lookup(self._nid(parent), name) is not None
        except ImageError:
            return unknown

    @_handler
    def create(self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: Context) -> NoReturn:  # noqa: ARG002
        """Refuse open(2) with O_CREAT of a name that does not exist."""
        self._refuse_new("create", ctx, parent_inode, name, flags=flag_names(flags))

    @_handler
    def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: Context) -> NoReturn:  # noqa: ARG002
        """Refuse mkdir(2)."""
        self._refuse_new("mkdir", ctx, parent_inode, name)

    @_handler
    def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: Context) -> NoReturn:  # noqa: ARG002
        """Refuse mknod(2), mkfifo(3) and bind(2) of a socket."""
        self._refuse_new("mknod", ctx, parent_inode, name)

    @_handler
    def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: Context) -> NoReturn:  # noqa: ARG002
        """Refuse symlink(2)."""
        self._refuse_new("symlink", ctx, parent_inode, name)

    @_handler
    def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: Context) -> NoReturn:
        """Refuse link(2)."""
        if self._exists(new_parent_inode, new_name, unknown=False):
            raise FUSEError(errno.EEXIST)
        self._refuse("link", ctx, inode, new=(new_parent_inode, new_name))

    @_handler
    def unlink(self, parent_inode: int, name: bytes, ctx: Context) -> NoReturn:
        """Refuse unlink(2)."""
        self._refuse_old("unlink", ctx, parent_inode, name)

    @_handler
    def rmdir(self, parent_inode: int, name: bytes, ctx: Context) -> NoReturn:
        """Refuse rmdir(2)."""
        self._refuse_old("rmdir", ctx, parent_inode, name)

    @_handler
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: Context,
    ) -> NoReturn:
        """Refuse rename(2) and renameat2(2)."""
        if not self._exists(parent_inode_old, name_old, unknown=True):
            raise FUSEError(errno.ENOENT)
        names = tuple(n for n in ("RENAME_NOREPLACE", "RENAME_EXCHANGE") if flags & getattr(pyfuse3, n))
        self._refuse("rename", ctx, parent_inode_old, name_old, new=(parent_inode_new, name_new), flags=names)

    @_handler
    def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,  # noqa: ARG002
        fields: pyfuse3.SetattrFields,
        fh: int | None,  # noqa: ARG002
        ctx: Context,
    ) -> NoReturn:
        """Refuse chmod(2), chown(2), truncate(2) and utimensat(2)."""
        changes = tuple(c for c in ("mode", "uid", "gid", "size", "atime", "mtime") if getattr(fields, f"update_{c}"))
        self._refuse("setattr", ctx, inode, changes=changes)

    @_handler
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Context) -> NoReturn:  # noqa: ARG002
        """Refuse setxattr(2)."""
        self._refuse("setxattr", ctx, inode, xattr=name)

    @_handler
    def removexattr(self, inode: int, name: bytes, ctx: Context) -> NoReturn:
        """Refuse removexattr(2)."""
        self._refuse("removexattr", ctx, inode, xattr=name)

    @_handler
    def write(self, fh: int, off: int, buf: bytes) -> NoReturn:  # noqa: ARG002
        """Refuse a write that no open allowed; it cannot come, and names no caller if it does."""
        detail = "a WRITE request came without a writable open"
        self._report(InternalReport(nid=self._nid(fh), detail=detail))
        raise FUSEError(errno.EROFS)
