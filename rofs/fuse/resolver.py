# SPDX-License-Identifier: Apache-2.0
"""The resolver process: turns inodes and bad blocks into paths for the supervisor's events.

A process of its own, without privileges: it parses directories, which the supervisor must not, and it
may take its time, which a worker must not. It dies with the mount and holds no state but its index.
"""

from __future__ import annotations

import contextlib
import socket

from rofs.audit.event import escape_path
from rofs.errors import BlockFault, ImageError, ReadError
from rofs.fuse.messages import MAX_MESSAGE_BYTES, PathsAnswer, PathsQuestion
from rofs.image.open import VerifiedImage
from rofs.image.paths import MAX_PATHS, ReverseIndex


def serve(connection: socket.socket, image: VerifiedImage) -> None:
    """Answer questions until the supervisor is gone."""
    resolver = Resolver(image)
    with contextlib.suppress(ConnectionError):  # it died with an answer unread, or before one
        while data := connection.recv(MAX_MESSAGE_BYTES):
            connection.send(resolver.answer(PathsQuestion.parse(data)).pack())


class Resolver:
    """Answers from a reverse index, which the first question builds."""

    def __init__(self, image: VerifiedImage) -> None:
        self._image = image
        self._index = ReverseIndex(image.filesystem)

    def answer(self, question: PathsQuestion) -> PathsAnswer:
        """Paths of an inode, or of all that a bad block holds, the asked inode's first."""
        paths = self._index.paths(question.nid)
        if question.block is None:
            return PathsAnswer(tuple(map(escape_path, paths)))
        fault = BlockFault("mismatch", question.level, question.block)
        start, length = self._image.device.covered_range(fault)
        others = self._index.paths_of_range(start, length)
        # The file that failed comes first, so that no limit cuts it off.
        ordered = list(dict.fromkeys([*paths, *others]))[:MAX_PATHS]
        return PathsAnswer(tuple(map(escape_path, ordered)), self._offset(question.nid, start, length))

    def _offset(self, nid: int, start: int, length: int) -> int | None:
        """Where in the inode's content the bad range begins; None when it holds none of it."""
        try:
            for extent in self._image.filesystem.extents(nid):
                end = extent.offset_bytes + extent.length_bytes
                if extent.file_offset_bytes is not None and extent.offset_bytes < start + length and start < end:
                    return extent.file_offset_bytes + max(0, start - extent.offset_bytes)
        except (ImageError, ReadError):
            pass
        return None
