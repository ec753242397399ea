# SPDX-License-Identifier: Apache-2.0
"""The one writer of an audit log: continues the chain, and loses nothing without a record.

A disk that is full costs events, never a caller: `AuditLog.write` answers False, and the next event
that can be written is preceded by a `dropped` one with the count, which includes what was lost on the
way here. A file that is long enough is kept under another name (`rotation`), and a new one goes on with the
chain; so it does when somebody else renames the file, removes it or cuts it short (logrotate). It does not
decide what is worth an event, collapses no repeats, and syncs only when told.

More than 400 lines: each method is about the same few numbers (head, seq, what was dropped), under one lock.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

from rofs import durable
from rofs.audit import rotation
from rofs.audit.chain import Link, check_line
from rofs.audit.event import (
    BEGINS,
    ENDS,
    EVENTS,
    GENESIS,
    MAX_INTEGER,
    MAX_LINE_BYTES,
    OPERATIONS,
    VERSION,
    chained_line,
    format_time,
)
from rofs.errors import ChainError, RofsError, printable

# How every event begins: a JSON object with at least one key.
_EVENT_START = b'{"'

MAX_FILE_BYTES = 64 << 20
KEPT_FILES = 5
_ROTATE_AGAIN = 16  # after that part of the limit, when it failed

# How many different reasons one `dropped` event lists; a reason can hold a number, so they are unbounded.
_MAX_REASONS = 8


class AuditLog:
    """An audit log open for appending.

    An existing log is continued: its last line is checked, a torn one behind it cut off and noted in
    the next event. Lines further up are `chain.verify_chain`'s business. A log that is empty or not there
    goes on from PATH.1, if that is a log: somebody else has rotated it.

    `sync` may run in another thread, so that a slow disk delays no `write`.

    Args:
        path: Created with mode 0600 when missing.
        mount: The mount point, as text that `event.escape_path` gave.
        image: `name`, `version`, `root_hash` of the image; None where it has none.
        boot_id: The kernel's boot id.
        clock: Nanoseconds since the epoch.
        lock_seconds: How long to wait for another writer to let go.
        max_file_bytes: A file that has become so long is the last but one; None for no limit.
        kept_files: How many older files there may be; the oldest is removed, with all that is in it.
        on_written: Told the line of each event, with its newline, once it is written; from the thread that
            writes or syncs, so it must return at once and may not write itself.

    Raises:
        HostError: Another process holds the log, or no permission, space, or an I/O error.
        InputError: The path is a directory or the like.
        ChainError: The file does not end in an event: it is left as it is.
    """

    def __init__(
        self,
        path: str | bytes,
        *,
        mount: str,
        image: Mapping[str, str | None],
        boot_id: str,
        clock: Callable[[], int] = time.time_ns,
        lock_seconds: float = 5.0,
        max_file_bytes: int | None = MAX_FILE_BYTES,
        kept_files: int = KEPT_FILES,
        on_written: Callable[[bytes], None] | None = None,
    ) -> None:
        self._max_file_bytes = max_file_bytes
        self._kept_files = kept_files
        self._on_written = on_written
        self._always = {
            "v": VERSION,
            "boot_id": boot_id,
            "mount": mount,
            "image": dict(image),
        }
        self._clock = clock
        self._head = GENESIS
        self._seq = 0
        self._note: str | None = None
        self._dropped = 0
        self._unrecorded: dict[str, int] = {}  # why: how many
        self._written_bytes = 0
        self._must_cut = False
        self._end_bytes = 0
        self._rotate_at_bytes = max_file_bytes
        self._has_ended = False  # the file, with a `rotated` event
        self._begin_reason = ""
        self._place_error: str | None = None
        self._previous: list[durable.AppendFile] = []  # not synced yet
        self._closed = False
        self._write_error: str | None = None
        self._sync_error: str | None = None
        self._lock = threading.Lock()
        self._file = durable.AppendFile(path, lock_seconds=lock_seconds)
        try:
            self._continue(lock_seconds)
        except BaseException:
            self._file.close()
            raise
        self._synced_seq = self._seq

    @property
    def head(self) -> str:
        """Hash of the last line, 64 zeros before the first."""
        return self._head

    @property
    def seq(self) -> int:
        """Number of the last event, 0 before the first."""
        return self._seq

    @property
    def written_bytes(self) -> int:
        """How much was written since the log was opened."""
        return self._written_bytes

    @property
    def dropped(self) -> int:
        """How many events were lost since the log was opened, here or on their way here."""
        return self._dropped

    @property
    def last_error(self) -> str | None:
        """What is wrong with the log now: the last line was not written, or not where it belongs, or not synced."""
        return self._write_error or self._place_error or self._sync_error

    def write(self, event: str, **fields: object) -> bool:
        """Append one event; it is in the page cache, not on the medium, when this returns.

        Args:
            event: One of `event.EVENTS`, but not `dropped`: `drop` counts.
            fields: The other keys; None means absent. See `event.canonical`.

        Returns:
            Whether it was written. If not it is counted (by its own `count`, if it has one), and
            `last_error` says why.

        Raises:
            ValueError: `event` or `op` is not a known name, or the log was closed.
        """
        if event not in EVENTS or event == "dropped":
            raise ValueError(f"unknown event {event!r}")
        if fields.get("op") is not None and fields["op"] not in OPERATIONS:
            raise ValueError(f"unknown operation {fields['op']!r}")
        with self._lock:
            self._check_open()
            return self._write(event, fields)

    def drop(self, count: int, why: str) -> bool:
        """Record that events were lost on their way here; if that fails it is done before the next event.

        Args:
            count: How many; 0 changes nothing.
            why: One phrase.

        Returns:
            Whether everything that was lost is recorded now. If not, `last_error` says why.

        Raises:
            ValueError: `count` is negative, or the log was closed.
        """
        if count < 0:
            raise ValueError(f"cannot drop {count} events")
        with self._lock:
            self._check_open()
            if count:
                self._count_dropped(count, why)
            return self._report_dropped()

    def sync(self) -> bool:
        """Make what was written durable.

        The first failure after a success is recorded as an `io_error`: the kernel reports it only once,
        and forgets what it could not write.

        Returns:
            Whether that worked. If not, `last_error` says why until it works again.

        Raises:
            ValueError: The log was closed.
        """
        with self._lock:
            self._check_open()
            seq, files = self._seq, [*self._previous, self._file]
        try:
            for file in files:
                file.sync()
        except RofsError as error:
            with self._lock:
                self._note_sync_error(str(error))
            return False
        with self._lock:
            self._sync_error = None
            self._synced_seq = seq
            self._close_previous(files[:-1])
        return True

    def close(self) -> None:
        """Try once more to record what was dropped, then let the next writer in. May be repeated."""
        with self._lock:
            if not self._closed:
                self._report_dropped()
                self._close_previous(list(self._previous))
                self._file.close()
                self._closed = True

    def __enter__(self) -> AuditLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:  # its descriptor may be another file's by now
            raise ValueError("the audit log is closed")

    def _write(self, event: str, fields: Mapping[str, object]) -> bool:
        if self._report_dropped() and self._append(event, fields):
            return True
        count = fields.get("count")
        self._count_dropped(count if isinstance(count, int) else 1, str(self._write_error))
        return False

    def _count_dropped(self, count: int, why: str) -> None:
        if why not in self._unrecorded and len(self._unrecorded) >= _MAX_REASONS:
            why = "other reasons"
        self._dropped += count
        self._unrecorded[why] = self._unrecorded.get(why, 0) + count

    def _report_dropped(self) -> bool:
        """Record what was dropped; False when that fails too."""
        if not self._unrecorded:
            return True
        count = min(sum(self._unrecorded.values()), MAX_INTEGER)  # a worker's claim can be any number
        if not self._append("dropped", {"count": count, "detail": _listed(self._unrecorded)}):
            return False
        self._unrecorded.clear()
        return True

    def _note_sync_error(self, error: str) -> None:
        is_first = self._sync_error is None
        self._sync_error = error
        if is_first:
            first, last = self._synced_seq + 1, self._seq
            at_risk = f"; events {first} to {last} may not survive a power cut" if first <= last else ""
            self._write("io_error", {"detail": error + at_risk})

    def _append(self, event: str, fields: Mapping[str, object]) -> bool:
        return self._see_to_file() and self._append_here(event, fields)

    def _append_here(self, event: str, fields: Mapping[str, object]) -> bool:
        detail = "; ".join(str(part) for part in (fields.get("detail"), self._note) if part)
        line, line_hash = chained_line(
            {
                **fields,
                **self._always,
                "detail": detail or None,
                "event": event,
                "seq": self._seq + 1,
                "time": format_time(self._clock()),
            },
            self._head,
        )
        if len(line) > MAX_LINE_BYTES:
            self._write_error = f"{event} event has {len(line)} bytes, at most {MAX_LINE_BYTES} fit"
            return False
        try:
            self._append_line(line)
        except RofsError as error:
            self._write_error = str(error)
            return False
        self._seq += 1
        self._head = line_hash
        self._note = None
        self._write_error = None
        self._written_bytes += len(line)
        if self._on_written is not None:
            self._on_written(line)
        return True

    def _append_line(self, line: bytes) -> None:
        if self._must_cut:
            self._file.cut_to(self._end_bytes)
        # Until the append has succeeded, part of the line may be there: cutting it back can fail too.
        self._must_cut = True
        self._file.append(line)
        self._must_cut = False
        self._end_bytes += len(line)

    # The file

    def _see_to_file(self) -> bool:
        """Have a file to append to that is what it was left as; False when there is none."""
        if not self._file.has_its_name() and not self._leave_file():
            return False
        if (size_bytes := self._file.size_bytes) < self._end_bytes:
            self._begin_reason = f"somebody cut the file from {self._end_bytes} to {size_bytes} bytes"
            self._end_bytes = size_bytes
        if self._rotate_at_bytes is not None and self._end_bytes >= self._rotate_at_bytes:
            self._rotate()
        return self._begin_file()

    def _begin_file(self) -> bool:
        """An empty file that goes on from another says so first; one that was cut short says so, too."""
        if not self._begin_reason and (self._end_bytes or self._head == GENESIS):
            return True
        detail = self._begin_reason or "the file before is gone, or not known"
        if not self._append_here("rotated", {"status": BEGINS, "detail": detail}):
            return False
        self._begin_reason = ""
        return True

    def _rotate(self) -> None:
        """Go on in a new file; if that fails, go on in this one for a while."""
        path = self._file.path
        kept_as = rotation.older(path, 1)
        try:
            lost = rotation.shift(path, self._kept_files)
            removed = "" if lost is None else f"; what was {printable(lost)} is gone"
            if not self._end_file(f"it has {self._end_bytes} bytes; kept as {printable(kept_as)}{removed}"):
                return
            self._go_on_in(self._file.replace(kept_as), f"goes on from {printable(kept_as)}")
        except RofsError as error:
            self._place_error = f"the log is not rotated: {error}"
            self._rotate_at_bytes = self._end_bytes + max(1, (self._max_file_bytes or 0) // _ROTATE_AGAIN)

    def _leave_file(self) -> bool:
        """The name is another file's, or nobody's: go on there; as long as that fails in the old one, if it is kept."""
        is_removed, head, place = self._file.is_removed, self._head, printable(self._file.path)
        if not is_removed:
            self._end_file("somebody gave it another name")
        try:
            file = durable.AppendFile(self._file.path, lock_seconds=0)
            try:
                self._check_successor(file, head)
            except BaseException:
                file.close()
                raise
        except RofsError as error:
            self._place_error = str(error)
            if is_removed:
                self._write_error = str(error)
            return not is_removed
        lost = f"; it had events up to {self._seq}" if is_removed else ""
        self._go_on_in(file, f"the file before, {place}, was {'removed' if is_removed else 'renamed'}{lost}")
        return True

    def _check_successor(self, file: durable.AppendFile, head: str) -> None:
        """Somebody else may have made it: it must be empty, or the same log."""
        if not file.size_bytes:
            return
        last, torn = _tail(file.fd, file.size_bytes)
        if torn or last is None or last.hash not in {head, self._head}:
            raise ChainError(
                f"{printable(file.path)} was replaced by a file that does not end as this log does, and was left as "
                "it is; move it away"
            )
        if last.hash == head:  # a copy; what was written to the other one after it is not in it
            self._head, self._seq = head, last.seq

    def _end_file(self, why: str) -> bool:
        if not self._has_ended:
            self._has_ended = self._append_here("rotated", {"status": ENDS, "detail": why})
        return self._has_ended

    def _go_on_in(self, file: durable.AppendFile, why: str) -> None:
        self._previous.append(self._file)  # `sync` may be at it
        self._file = file
        self._end_bytes = file.size_bytes
        self._rotate_at_bytes = self._max_file_bytes
        self._must_cut = self._has_ended = False
        self._begin_reason, self._place_error = why, None

    def _close_previous(self, files: list[durable.AppendFile]) -> None:
        for file in files:
            self._previous.remove(file)
            file.close()

    def _continue(self, lock_seconds: float) -> None:
        """Take over head and number of the last event, and cut off what is torn behind it."""
        self._end_rotation()
        self._take_over_tail()
        if not self._end_bytes:
            self._continue_from_older(lock_seconds)

    def _end_rotation(self) -> None:
        """Undo what an interrupted rotation has left: a file with two names."""
        kept_as = rotation.older(self._file.path, 1)
        if durable.is_same_file(self._file.fd, kept_as):
            durable.remove(kept_as)

    def _continue_from_older(self, lock_seconds: float) -> None:
        """An empty log goes on from PATH.1: somebody rotated it, or a rotation was interrupted."""
        path, ours = rotation.older(self._file.path, 1), self._file
        if not os.path.isfile(path):
            return
        self._file = durable.AppendFile(path, lock_seconds=lock_seconds)
        try:
            self._take_over_tail()
            self._begin_reason = f"goes on from {printable(path)}" if self._seq else ""
        except ChainError:
            pass  # a file of that name which is no log
        finally:
            self._file.close()
            self._file, self._end_bytes = ours, 0

    def _take_over_tail(self) -> None:
        size_bytes = os.fstat(self._file.fd).st_size
        try:
            last, torn = _tail(self._file.fd, size_bytes)
        except ChainError as error:
            raise ChainError(
                f"{printable(self._file.path)} does not end in an event of an audit log, and was "
                f"left as it is: {error}; verify it, then move it away or name another file"
            ) from error
        if last is not None:
            self._head, self._seq = last.hash, last.seq
        self._end_bytes = size_bytes - torn
        if torn:
            self._file.cut_to(self._end_bytes)
            self._note = f"torn_tail_bytes={torn}"


def _listed(reasons: Mapping[str, int]) -> str:
    if len(reasons) == 1:
        return next(iter(reasons))
    return "; ".join(f"{count}: {why}" for why, count in reasons.items())


def _tail(fd: int, size_bytes: int) -> tuple[Link | None, int]:
    """Find the last event of a file and the bytes of a torn line behind it.

    Reads at most the longest event and the longest torn line.
    """
    window_bytes = min(size_bytes, 2 * MAX_LINE_BYTES)
    window = os.pread(fd, window_bytes, size_bytes - window_bytes)
    complete, newline, torn = window.rpartition(b"\n")
    if len(torn) > MAX_LINE_BYTES:
        raise ChainError(f"last line: expected at most {MAX_LINE_BYTES} bytes, found more")
    if newline:
        return check_line("last line", complete[complete.rfind(b"\n") + 1 :] + newline), len(torn)
    # A first event that is torn begins like one; another file is not ours to shorten.
    if not torn.startswith(_EVENT_START[: len(torn)]):
        raise ChainError("last line: expected an event, found none")
    return None, len(torn)
