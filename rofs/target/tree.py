# SPDX-License-Identifier: Apache-2.0
"""A directory that a tree is unpacked into, entry by entry, and nothing outside of it whatever the names say.

Every step is taken from an open directory with one name, never along a path and never through a symbolic
link. A new entry belongs to nobody else until it is complete: mode 0600 or 0700. A directory that was there
and is only passed on the way is kept: its mode, owner and xattrs are never touched, its times given back
however the work ends. The writes are plain ones: an unpacked tree is nothing that rofs relies on, so nothing
is synced (`durable` does that for what rofs keeps). Does not know where the tree comes from, and does not
decide what is to be unpacked.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from rofs.errors import HostError, InputError, RofsError, from_os_error, printable
from rofs.target.attributes import Attributes, AttributeSetter, Shortfall, Times, clear_acls, times_of

_T = TypeVar("_T")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_STEP = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# After these the next entry would fail as well.
_HOPELESS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_ZERO_BLOCK = bytes(4096)  # what is punched out: the usual block of a filesystem


@dataclass(frozen=True, slots=True)
class _Level:
    """A directory that was entered.

    Attributes:
        identity: Device and inode.
        kept: The times of one that was there before and stays as it is; None for all others.
    """

    identity: tuple[int, int]
    kept: Times | None


class TargetTree:
    """The directory and the place in it where entries are being made; a context manager.

    Args:
        path: The directory; made, mode 0700, when it is missing.
        replace: Whether it may hold anything already. What has a name that is wanted is replaced then,
            except that a directory stays one, and one that is in the way of something else is an error.
        keep: Whether the directory, if it is there already, stays as it is but for what is made in it.

    Raises:
        InputError: It is no directory, its parent is missing, or it is not empty (without `replace`).
        HostError: No permission.
    """

    def __init__(self, path: str | bytes, *, replace: bool = False, keep: bool = False) -> None:
        self._path = os.fsencode(path)
        self._replace = replace
        self._attributes = AttributeSetter()
        self._names: list[bytes] = []
        self._levels: list[_Level] = []  # from the top to here: one more than names; those kept come first
        self._closed: list[tuple[tuple[bytes, ...], Attributes]] = []
        try:
            made = _mkdir(self._path)
            self._top = os.open(self._path, _DIRECTORY & ~os.O_NOFOLLOW)  # whoever named it may name a link
        except OSError as error:
            raise from_os_error(error, "cannot extract into", path) from error
        self._here = os.dup(self._top)
        self._levels.append(_level(self._top, keep=keep and not made))
        try:
            self._check_empty()
            if self._levels[0].kept is None:
                clear_acls(self._top)  # new entries would inherit a default one
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> TargetTree:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory; what is unfinished stays as it is, what was to be kept is as it was."""
        try:
            with contextlib.suppress(OSError):  # nobody is left to be told
                self._restore_kept()
        finally:
            os.close(self._here)
            os.close(self._top)

    @property
    def shortfalls(self) -> tuple[Shortfall, ...]:
        """What attributes could not be set so far, each kind once."""
        return tuple(self._attributes.shortfalls.values())

    def path_of(self, name: bytes | None = None) -> bytes:
        """The path of an entry here, or of this directory, from the root of the tree."""
        return _join(self._names if name is None else (*self._names, name))

    def enter(self, name: bytes, *, keep: bool = False) -> None:
        """Make a directory, and go into it.

        Args:
            name: Of an entry here.
            keep: Whether one that is there already stays as it is but for what is made in it, whatever
                attributes it is left with.

        Raises:
            InputError: It cannot be made or entered.
            HostError: Nothing can be made any more.
        """
        self._check_name(name)
        with self._failing(name):
            made = _mkdir(name, self._here) or self._make_way_for_directory(name, keep=keep)
            below = os.open(name, _DIRECTORY, dir_fd=self._here)
        if made:
            self._disinherit(below)
        self._levels.append(_level(below, keep=keep and not made))
        self._names.append(name)
        os.close(self._here)
        self._here = below

    def leave(self, attributes: Attributes) -> None:
        """Give this directory its attributes unless it is kept, and go back up.

        Raises:
            HostError: It was moved meanwhile, so that there is no way back.
        """
        with self._failing():
            above = os.open(b"..", _DIRECTORY, dir_fd=self._here)
        if _identity(above) != self._levels[-2].identity:
            os.close(above)
            raise HostError(f"{self._shown()} was moved while it was extracted; run it again, undisturbed")
        try:
            self._finish_directory(attributes)
        finally:
            os.close(self._here)
            self._here = above
            self._levels.pop()
            self._names.pop()

    def finish(self, attributes: Attributes | None) -> None:
        """Give the topmost directory its attributes unless it is kept, and those theirs that had to wait."""
        for names, waiting in self._closed:
            with self._failing(), self._opened(names, _DIRECTORY) as fd:
                self._attributes.set_all(fd, waiting, functools.partial(_join, names))
        kept = self._levels[0].kept
        if kept is not None:
            self._attributes.restore_times(self._top, kept, lambda: b"/")
        elif attributes is not None:
            self._attributes.set_all(self._top, attributes, lambda: b"/")

    def add_file(self, name: bytes, content: Iterable[tuple[int, bytes]], attributes: Attributes) -> None:
        """Make a regular file; blocks of zeros become holes. It is removed again when its content breaks off.

        Args:
            name: Of a new entry here.
            content: Offsets in bytes and what stands there; zeros elsewhere up to the size in `attributes`.
            attributes: Its own.

        Raises:
            InputError: It cannot be made.
            HostError: Nothing can be made any more.
            And what `content` raises.
        """
        with self._failing(name):
            fd = self._create(name, "a file", lambda: os.open(name, _NEW_FILE, 0o600, dir_fd=self._here))
        try:
            self._disinherit(fd)
            try:
                for offset, data in content:
                    with self._failing(name):
                        _write(fd, offset, data)
                with self._failing(name):
                    os.ftruncate(fd, attributes.status.size)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._here)
                raise
            self._attributes.set_all(fd, attributes, lambda: self.path_of(name))
        finally:
            os.close(fd)

    def add_symlink(self, name: bytes, target: bytes, attributes: Attributes) -> None:
        """Make a symbolic link; where it leads does not matter, since none is ever followed.

        Raises:
            As `add_file`.
        """
        with self._failing(name):
            self._create(name, "a symbolic link", lambda: os.symlink(target, name, dir_fd=self._here))
        self._finish_nameonly(name, attributes)

    def add_node(self, name: bytes, attributes: Attributes) -> None:
        """Make a FIFO, a socket or a device node, as the mode and the device number say.

        Raises:
            As `add_file`.
        """
        kind, rdev = stat.S_IFMT(attributes.status.mode), attributes.status.rdev
        with self._failing(name):
            self._create(name, "a special file", lambda: os.mknod(name, kind | 0o600, rdev, dir_fd=self._here))
        self._finish_nameonly(name, attributes)

    def add_link(self, name: bytes, existing: tuple[bytes, ...]) -> None:
        """Make another name of an entry that was made before.

        Args:
            name: Of the new one, here.
            existing: The names that lead to the old one from the top.

        Raises:
            As `add_file`.
        """
        with self._failing(name), self._opened(existing[:-1], _STEP) as directory:
            self._create(
                name,
                "a hard link",
                lambda: os.link(existing[-1], name, src_dir_fd=directory, dst_dir_fd=self._here, follow_symlinks=False),
            )

    def _check_empty(self) -> None:
        # A new ext4 filesystem has a lost+found.
        if not self._replace and set(os.listdir(self._top)) - {"lost+found"}:
            raise InputError(
                f"{printable(self._path)} is not empty; --force extracts into it and replaces what is in the way"
            )

    def _check_name(self, name: bytes) -> None:
        """Whoever reads trees checks names; nothing leaves this directory if one does not."""
        if name in {b"", b".", b".."} or b"/" in name:
            raise InputError(f"cannot extract an entry of the name {printable(name)!r} into {self._shown()}")

    def _create(self, name: bytes, what: str, make: Callable[[], _T]) -> _T:
        self._check_name(name)
        try:
            return make()
        except FileExistsError:
            if not self._replace:
                raise
        try:
            os.unlink(name, dir_fd=self._here)
        except IsADirectoryError as error:
            raise InputError(f"{self._shown(name)} is a directory, in the way of {what}; remove it") from error
        return make()

    def _make_way_for_directory(self, name: bytes, *, keep: bool) -> bool:
        """Whether a new one was made in the place of something else."""
        if not self._replace:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if not stat.S_ISDIR(os.stat(name, dir_fd=self._here, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=self._here)
            os.mkdir(name, 0o700, dir_fd=self._here)
            return True
        if keep:
            return False
        fd = os.open(name, _STEP, dir_fd=self._here)
        try:  # as a new one would be: ours alone, and nothing to inherit
            clear_acls(_proc(fd))
            os.chmod(_proc(fd), 0o700)
        finally:
            os.close(fd)
        return False

    def _disinherit(self, handle: int | bytes) -> None:
        """A new entry: a kept directory may have given it a default ACL, which its mode made void so far."""
        if self._levels[-1].kept is not None:
            clear_acls(handle)

    def _restore_kept(self) -> None:
        """From the top to here, as far as they still stand where they were; nothing is left to do if all went well."""
        fd = os.dup(self._top)
        try:
            for number, level in enumerate(self._levels):
                if number:
                    below = os.open(self._names[number - 1], _DIRECTORY, dir_fd=fd)
                    os.close(fd)
                    fd = below
                if level.kept is None or _identity(fd) != level.identity:
                    break
                self._attributes.restore_times(fd, level.kept, functools.partial(_join, self._names[:number]))
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _opened(self, names: tuple[bytes, ...], flags: int) -> Iterator[int]:
        """A directory by the names that lead to it, none of which may be a symbolic link."""
        fd = os.dup(self._top)
        try:
            for number, name in enumerate(names, 1):
                below = os.open(name, flags if number == len(names) else _STEP, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _finish_directory(self, attributes: Attributes) -> None:
        """Now; or later, if we could not pass it any more and may have to, for a hard link."""
        kept = self._levels[-1].kept
        if kept is not None:
            self._attributes.restore_times(self._here, kept, self.path_of)
        elif not self._attributes.privileged and not attributes.status.mode & stat.S_IXUSR:
            self._closed.append((tuple(self._names), attributes))
        else:
            self._attributes.set_all(self._here, attributes, self.path_of)

    def _finish_nameonly(self, name: bytes, attributes: Attributes) -> None:
        """Attributes of what cannot be opened: through a descriptor that stands for its name."""
        with self._failing(name):
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._here)
        try:
            status = os.fstat(fd)
            if stat.S_IFMT(status.st_mode) != stat.S_IFMT(attributes.status.mode) or status.st_nlink != 1:
                raise InputError(f"{self._shown(name)} was replaced by somebody else while it was extracted")
            self._disinherit(_proc(fd))
            self._attributes.set_all(_proc(fd), attributes, lambda: self.path_of(name))
        finally:
            os.close(fd)

    def _shown(self, name: bytes | None = None) -> str:
        return printable(self._path.rstrip(b"/") + self.path_of(name))

    @contextlib.contextmanager
    def _failing(self, name: bytes | None = None) -> Iterator[None]:
        """Say which entry a system call failed on, and whether that is the end."""
        try:
            yield
        except OSError as error:
            raise self._failure(error, name) from error
        except (OverflowError, ValueError) as error:
            raise InputError(f"cannot extract {self._shown(name)}: {error}") from error

    def _failure(self, error: OSError, name: bytes | None) -> RofsError:
        text = f"cannot extract {self._shown(name)}: {os.strerror(error.errno or 0)}"
        if error.errno not in _HOPELESS:
            return InputError(text)
        hint = "; free some space there and run it again" if error.errno in {errno.ENOSPC, errno.EDQUOT} else ""
        return HostError(f"{text}{hint}; what was extracted before is left there")


def _join(names: Sequence[bytes]) -> bytes:
    return b"/" + b"/".join(names)


def _proc(fd: int) -> bytes:
    return b"/proc/self/fd/%d" % fd


def _mkdir(name: bytes, dir_fd: int | None = None) -> bool:
    """Whether there was nothing of the name."""
    try:
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    except FileExistsError:
        return False
    return True


def _level(fd: int, *, keep: bool) -> _Level:
    return _Level(_identity(fd), times_of(fd) if keep else None)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _write(fd: int, offset: int, data: bytes) -> None:
    """Write what is not zero, whole blocks at a time; nothing needs to be written for the rest."""
    view = memoryview(data)
    for start, end in _runs(data):
        at = start
        while at < end:
            at += os.pwrite(fd, view[at:end], offset + at)


def _runs(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each run of blocks that are not all zeros."""
    start: int | None = None
    for at in range(0, len(data), len(_ZERO_BLOCK)):
        zero = data.startswith(_ZERO_BLOCK[: len(data) - at], at)
        if zero and start is not None:
            yield start, at
            start = None
        elif not zero and start is None:
            start = at
    if start is not None:
        yield start, len(data)
