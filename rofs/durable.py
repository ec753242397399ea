# SPDX-License-Identifier: Apache-2.0
"""Durable changes of the disk: the only place of rofs that writes, syncs and renames files which it keeps.

A new file is complete and on the medium before its name appears, or it never appears. The system calls
that this rests on go through one `Calls` object, the seam where tests inject a full disk, an I/O error
or a power cut. This module does not know what it writes. A tree that is unpacked for somebody else is not
kept: `target` makes it, with plain writes.

More than 400 lines, because whatever is to survive a fault goes through the one seam, which stays private.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from types import TracebackType

from rofs.errors import HostError, InputError, from_os_error, printable

_LOCK_POLL_SECONDS = 0.05
_APPEND_FLAGS = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK


class Calls:
    """The system calls that change a disk; a test replaces the object with `using`."""

    def open(self, path: bytes, flags: int, mode: int) -> int:
        """Call open(2)."""
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def chmod(self, fd: int, mode: int) -> None:
        """Call fchmod(2)."""
        os.fchmod(fd, mode)

    def mkdir(self, path: bytes, mode: int) -> None:
        """Call mkdir(2)."""
        os.mkdir(path, mode)

    def pwrite(self, fd: int, data: bytes | memoryview, offset_bytes: int) -> int:
        """Call pwrite(2), which may write less than asked."""
        return os.pwrite(fd, data, offset_bytes)

    def append(self, fd: int, data: bytes) -> int:
        """Call write(2) on a descriptor opened with O_APPEND, which may write less than asked."""
        return os.write(fd, data)

    def truncate(self, fd: int, length_bytes: int) -> None:
        """Call ftruncate(2)."""
        os.ftruncate(fd, length_bytes)

    def fsync(self, fd: int) -> None:
        """Call fsync(2)."""
        os.fsync(fd)

    def rename(self, source: bytes, target: bytes) -> None:
        """Call rename(2), replacing the target."""
        os.rename(source, target)

    def link(self, source: bytes, target: bytes) -> None:
        """Call link(2), which fails when the target exists."""
        os.link(source, target)

    def unlink(self, path: bytes) -> None:
        """Call unlink(2)."""
        os.unlink(path)


_calls = Calls()


@contextlib.contextmanager
def using(calls: Calls) -> Iterator[None]:
    """Send every change of the disk through `calls` for the duration of a test."""
    global _calls  # noqa: PLW0603 - the one seam; a parameter on every function would be noise
    before, _calls = _calls, calls
    try:
        yield
    finally:
        _calls = before


class NewFile:
    """A file that gets its name only when it is complete: temporary name, fsync, rename, fsync of the directory.

    Use as a context manager: leaving it by an exception removes everything, leaving it normally
    without `commit()` does too. Writes may come in any order; gaps read as zeros.

    Args:
        path: The final name.
        mode: Permission bits, exact: the umask is not applied.
        replace: Whether an existing file of that name is replaced; if not, it is an error.

    Raises:
        InputError: The name exists (without `replace`), or its directory does not.
        HostError: No permission, no space, an I/O error.
    """

    def __init__(self, path: str | bytes, *, mode: int = 0o644, replace: bool = False) -> None:
        self._path = os.path.abspath(os.fsencode(path))
        self._replace = replace
        directory, name = os.path.split(self._path)
        # 255 bytes is the limit of a name: a long one is cut, the random part keeps it unique.
        self._temporary = os.path.join(directory, b".%s.%s.tmp" % (name[:200], secrets.token_hex(6).encode()))
        if not replace and os.path.lexists(self._path):
            raise InputError(f"{printable(self._path)} exists already; it was left as it is")
        if replace and os.path.lexists(self._path) and not _is_replaceable(self._path):
            raise InputError(f"{printable(self._path)} is not a regular file; it was left as it is")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        with _translated("cannot create", self._path):
            self.fd = _calls.open(self._temporary, flags, mode)
            try:
                _calls.chmod(self.fd, mode)
            except BaseException:
                self._discard()
                raise

    def write_at(self, offset_bytes: int, data: bytes | memoryview) -> None:
        """Write all of `data` at an offset."""
        with _translated("cannot write", self._path):
            _write_all(self.fd, offset_bytes, data)

    def truncate(self, length_bytes: int) -> None:
        """Set the length; what is added reads as zeros."""
        with _translated("cannot resize", self._path):
            _calls.truncate(self.fd, length_bytes)

    def commit(self) -> None:
        """Make the file durable, then give it its name, then make the name durable."""
        with _translated("cannot finish writing", self._path):
            _calls.fsync(self.fd)
            if self._replace:
                _calls.rename(self._temporary, self._path)
            else:
                _calls.link(self._temporary, self._path)
            if not self._replace:
                _calls.unlink(self._temporary)
            fsync_directory(os.path.dirname(self._path))

    def __enter__(self) -> NewFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        os.close(self.fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary)


def write_atomic(path: str | bytes, data: bytes, *, mode: int = 0o644, replace: bool = True) -> None:
    """Write a whole small file: readers see the old content or the new, never a mix.

    Raises:
        InputError: The directory does not exist, or the file does and `replace` is False.
        HostError: No permission, no space, an I/O error.
    """
    with NewFile(path, mode=mode, replace=replace) as new:
        new.write_at(0, data)
        new.commit()


def replace_in_place(fd: int, path: str | bytes, offset_bytes: int, data: bytes, *, head_bytes: int) -> None:
    """Replace a range of an open file so that a reader never takes a half-written one for whole.

    1. Zeros over the head, without which the range means nothing to its readers; sync.
    2. Everything behind the head; sync.
    3. The head; sync.

    After a power cut the range holds the old bytes, the new ones, or a head of zeros; if the cut came in
    the middle of step 1 or 3 and the medium tears a sector, a head that is neither.

    Args:
        fd: Open for writing.
        path: Its name, for messages.
        offset_bytes: Where the range begins.
        data: The new content.
        head_bytes: Length of the head, at most a sector.

    Raises:
        HostError: No space or an I/O error; the range is as after a power cut.
    """
    path = os.fsencode(path)
    with _translated("cannot write", path):
        for start, part in (
            (0, bytes(min(head_bytes, len(data)))),  # 1.
            (head_bytes, data[head_bytes:]),  # 2.
            (0, data[:head_bytes]),  # 3.
        ):
            _write_all(fd, offset_bytes + start, part)
            _calls.fsync(fd)


def _write_all(fd: int, offset_bytes: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        written = _calls.pwrite(fd, view, offset_bytes)
        view = view[written:]
        offset_bytes += written


def lock(fd: int, path: str | bytes) -> None:
    """Be the only process that changes an open file, as long as it is open; waits for nobody.

    Raises:
        HostError: Another process changes it.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise HostError(f"{printable(path)} is being changed by another process; run it again later") from None
    except OSError as error:
        raise from_os_error(error, "cannot lock", path) from error


def remove(path: str | bytes) -> None:
    """Remove a file that is there, and make that durable.

    Raises:
        InputError: It does not exist.
        HostError: No permission, or an I/O error.
    """
    path = os.path.abspath(os.fsencode(path))
    with _translated("cannot remove", path):
        _calls.unlink(path)
        fsync_directory(os.path.dirname(path))


def rename(source: str | bytes, target: str | bytes) -> None:
    """Rename a file that is kept already, replacing the target; durable with the next sync of the directory.

    Raises:
        InputError: The source does not exist.
        HostError: No permission, or an I/O error.
    """
    source, target = os.path.abspath(os.fsencode(source)), os.path.abspath(os.fsencode(target))
    with _translated("cannot rename", source):
        _calls.rename(source, target)


def is_same_file(fd: int, path: str | bytes) -> bool:
    """Whether a name leads to an open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError:
        return False


class AppendFile:
    """A file that only grows, with one writer at a time (flock).

    Args:
        path: Created with `mode` when missing; its directories too, mode 0700.
        lock_seconds: How long to wait for another writer to let go.
        fd: Open already, locked and of that name; then nothing is created or waited for.

    Raises:
        HostError: Another process still holds the file, or no permission, space, or an I/O error.
        InputError: The path is a directory.
    """

    def __init__(
        self, path: str | bytes, *, mode: int = 0o600, lock_seconds: float = 5.0, fd: int | None = None
    ) -> None:
        self.path = os.path.abspath(os.fsencode(path))
        if fd is not None:
            self.fd = fd
            return
        deadline = time.monotonic() + lock_seconds
        while not self._open(mode, lock_seconds):
            # Its writer gave the name to a new file while we waited; on and on, if it does nothing else.
            if time.monotonic() > deadline:
                raise HostError(f"{printable(self.path)} is replaced again and again; name another file")

    def _open(self, mode: int, lock_seconds: float) -> bool:
        """Open and lock it; False when the name is another file's by then."""
        with _translated("cannot open", self.path):
            make_directories(os.path.dirname(self.path))
            self.fd = _calls.open(self.path, _APPEND_FLAGS | os.O_CREAT, mode)
        try:
            _check_regular(self.fd, self.path)
            _lock(self.fd, self.path, lock_seconds)
            if not self.has_its_name():
                os.close(self.fd)
                return False
            with _translated("cannot sync the directory of", self.path):
                fsync_directory(os.path.dirname(self.path))
        except BaseException:
            os.close(self.fd)
            raise
        return True

    def has_its_name(self) -> bool:
        """Whether the name still leads to this file; True when that cannot be known."""
        try:
            return os.path.samestat(os.lstat(self.path), os.fstat(self.fd))
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    @property
    def is_removed(self) -> bool:
        """Whether no name leads to it any more."""
        return os.fstat(self.fd).st_nlink == 0

    @property
    def size_bytes(self) -> int:
        """Its length."""
        return os.fstat(self.fd).st_size

    def replace(self, kept_as: str | bytes, *, mode: int = 0o600) -> AppendFile:
        """Give the name to a new, empty file, and another name to this one, which stays open.

        At no time is the name nobody's, where the filesystem has hard links; the new file is locked before
        it has its name.

        Args:
            kept_as: What this file is called from now on; what was called so is replaced.
            mode: Of the new file.

        Returns:
            The new file.

        Raises:
            HostError: No permission, space, or an I/O error; this file may have both names by then.
        """
        kept_as = os.path.abspath(os.fsencode(kept_as))
        temporary = self.path + b".next"
        with _translated("cannot replace", self.path):
            with contextlib.suppress(FileNotFoundError):  # of a writer that was interrupted here
                _calls.unlink(temporary)
            fd = _calls.open(temporary, _APPEND_FLAGS | os.O_CREAT | os.O_EXCL, mode)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _give_second_name(self.path, kept_as)
                _calls.rename(temporary, self.path)
                fsync_directory(os.path.dirname(self.path))
            except BaseException:
                os.close(fd)
                with contextlib.suppress(OSError):
                    _calls.unlink(temporary)
                raise
        return AppendFile(self.path, fd=fd)

    def append(self, data: bytes) -> None:
        """Append all of `data`; nothing of it remains when that fails."""
        start = os.fstat(self.fd).st_size
        view = memoryview(data)
        try:
            while view:
                view = view[_calls.append(self.fd, bytes(view)) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                _calls.truncate(self.fd, start)
            raise from_os_error(error, "cannot write", self.path) from error

    def cut_to(self, length_bytes: int) -> None:
        """Drop everything behind `length_bytes`."""
        with _translated("cannot shorten", self.path):
            _calls.truncate(self.fd, length_bytes)

    def sync(self) -> None:
        """Make what was appended durable."""
        with _translated("cannot sync", self.path):
            _calls.fsync(self.fd)

    def close(self) -> None:
        """Close the file and let the next writer in."""
        os.close(self.fd)


def make_directories(path: bytes, mode: int = 0o700) -> None:
    """Create a directory and its missing parents, each made durable.

    Raises:
        OSError: As mkdir(2).
    """
    missing = []
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        with contextlib.suppress(FileExistsError):
            _calls.mkdir(directory, mode)
        fsync_directory(os.path.dirname(directory))


def fsync_directory(path: bytes) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: As open(2) and fsync(2).
    """
    fd = os.open(path or b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _calls.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a filesystem that cannot sync directories (some FUSE, 9p)
            raise
    finally:
        os.close(fd)


def _give_second_name(path: bytes, second: bytes) -> None:
    """Link it there; where there are no hard links it has only the second name then."""
    with contextlib.suppress(FileNotFoundError):
        _calls.unlink(second)
    try:
        _calls.link(path, second)
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}:
            raise
        _calls.rename(path, second)


def _is_replaceable(path: bytes) -> bool:
    """A file, or a symbolic link, which is replaced itself; never a directory, a device or a FIFO."""
    mode = os.lstat(path).st_mode
    return stat.S_ISREG(mode) or stat.S_ISLNK(mode)


def _check_regular(fd: int, path: bytes) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise InputError(f"{printable(path)} is not a regular file")


def _lock(fd: int, path: bytes, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
    deadline = clock() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if clock() >= deadline:
                raise HostError(
                    f"{printable(path)} is in use by another rofs process (waited {seconds:g} s); "
                    "unmount that one, or name another file"
                ) from None
            time.sleep(_LOCK_POLL_SECONDS)
        else:
            return


@contextlib.contextmanager
def _translated(doing: str, path: bytes) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise from_os_error(error, doing, path) from error
