# SPDX-License-Identifier: Apache-2.0
"""Follows a log that is being written, from file to file, and checks the chain on the way.

It looks when it is asked to; when to look again, and what to show, is the caller's to say. The chain is
checked from the beginning of the file that the log is in at the start; older files are not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, BinaryIO

from rofs.audit.chain import ChainWalk, check_line, decode_line
from rofs.audit.event import MAX_LINE_BYTES
from rofs.audit.rotation import identity_of, log_files, open_log_file
from rofs.errors import ChainError, InputError, printable


class Follower:
    """Reads what is new in a log, each time it is asked.

    Args:
        path: Of the log.

    Attributes:
        walk: What was checked so far.

    Raises:
        InputError: There is no such file, or it is not a regular one.
        HostError: It cannot be opened.
    """

    def __init__(self, path: str | bytes) -> None:
        self._path = os.fsencode(path)
        self._file = open_log_file(self._path)
        self._name = printable(self._path)
        self._line = 0
        self._partial = b""
        self.walk = ChainWalk()

    def close(self) -> None:
        """Look no more."""
        self._file.close()

    def __enter__(self) -> Follower:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def new_events(self) -> Iterator[dict[str, Any]]:
        """What was written since the last time, through all files that the log has been in meanwhile.

        Yields:
            Each event, after it was checked.

        Raises:
            ChainError: A line is not the next one; the file and line are named.
        """
        while True:
            yield from self._events_of_file()
            if os.fstat(self._file.fileno()).st_size < self._file.tell():
                self._begin(self._file, self._name)  # somebody cut it short, and copied it before
                self._file.seek(0)
                continue
            following = self._next_file()
            if following is None:
                return
            try:
                yield from self._events_of_file()  # what was written between our look and its end
                self._check_end()
            except BaseException:
                following[0].close()
                raise
            self._file.close()
            self._begin(*following)

    def _begin(self, file: BinaryIO, name: str) -> None:
        self._file, self._name, self._line, self._partial = file, name, 0, b""

    def _check_end(self) -> None:
        if self._partial:
            raise ChainError(f"{self._name}: line {self._line + 1}: expected a newline at its end, found none")

    def _events_of_file(self) -> Iterator[dict[str, Any]]:
        while chunk := self._file.readline(MAX_LINE_BYTES + 1 - len(self._partial)):
            line = self._partial + chunk
            place = f"{self._name}: line {self._line + 1}"
            if not line.endswith(b"\n"):
                if len(line) > MAX_LINE_BYTES:
                    raise ChainError(f"{place}: expected at most {MAX_LINE_BYTES} bytes, found more")
                self._partial = line  # its writer is at it
                return
            self._partial = b""
            self.walk.check(place, line)
            self._line += 1
            yield decode_line(place, line)

    def _next_file(self) -> tuple[BinaryIO, str] | None:
        """The file that goes on from ours, None when ours is the log's or there is none yet."""
        files = self._files()
        identities = [identity_of(file) for _, file in files]
        ours = identity_of(self._file)
        if identities and identities[-1] == ours:
            chosen = None
        elif ours in identities:
            chosen = identities.index(ours) + 1
        else:
            chosen = next((i for i, (_, file) in enumerate(files) if self._goes_on_in(file)), len(files) - 1)
        if chosen is not None and not 0 <= chosen < len(files):
            chosen = None
        for index, (_, file) in enumerate(files):
            if index != chosen:
                file.close()
        return None if chosen is None else (files[chosen][1], printable(files[chosen][0]))

    def _files(self) -> list[tuple[bytes, BinaryIO]]:
        """Those there are, the log's own last; none when that is not there just now."""
        files = []
        for name in log_files(self._path):
            try:
                files.append((name, open_log_file(name)))
            except InputError:
                continue
        if not files or files[-1][0] != self._path:
            for _, file in files:
                file.close()
            return []
        return files

    def _goes_on_in(self, file: BinaryIO) -> bool:
        line = file.readline(MAX_LINE_BYTES)
        file.seek(0)
        try:
            return check_line("first line", line).prev == self.walk.head
        except ChainError:
            return False
