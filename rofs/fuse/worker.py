# SPDX-License-Identifier: Apache-2.0
"""A worker process: attaches libfuse to the mount that the keeper made, and serves it.

libfuse wants to do the INIT handshake itself; the keeper has done it. So libfuse does its handshake
with a socket, on a copy of the kernel's request, and then the fuse descriptor takes the socket's place.
A worker keeps nothing that another one would miss, and may die at any time.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

import pyfuse3

from rofs.fuse import blocking_loop
from rofs.fuse.confine import WORKER, confine
from rofs.fuse.kernel import OUT_HEADER, Handshake
from rofs.fuse.messages import InternalReport, Report
from rofs.fuse.operations import Operations
from rofs.fuse.pusher import Pusher
from rofs.fuse.reporter import Reporter
from rofs.fuse.shared import Number, SharedState, Tokens
from rofs.image.open import VerifiedImage

RETIRE_SIGNAL = signal.SIGUSR1
OUT_OF_MEMORY_STATUS = 71
_VERIFIED_BLOCKS = int(Number.VERIFIED_BLOCKS)
_CACHE_HITS = int(Number.CACHE_HITS)
_SANE = (1 << 62) - 1


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is given.

    Attributes:
        fuse_fd: Its own clone of the mounted descriptor.
        handshake: What the keeper and the kernel have agreed on.
        slot: Where it counts in the shared memory.
        shared: The memory of the mount.
        workers: How many workers serve; all but one may sleep in the kernel.
    """

    fuse_fd: int
    handshake: Handshake
    slot: int
    shared: SharedState
    workers: int


def serve(
    assignment: Assignment,
    open_image: Callable[[], VerifiedImage],
    connection: socket.socket,
    ready: Callable[[], None],
) -> None:
    """Answer requests until the filesystem is unmounted, or `RETIRE_SIGNAL` comes.

    Args:
        assignment: What to serve, and as whom.
        open_image: Opens what is served; called when this process is confined.
        connection: To the supervisor.
        ready: Called when the next thing is to answer.

    Raises:
        OSError: The connection to the kernel was aborted.
    """
    retired = False

    def retire(*_: object) -> None:
        nonlocal retired
        retired = True

    signal.signal(RETIRE_SIGNAL, retire)
    numbers = assignment.shared.slot(assignment.slot)
    report = Reporter(connection, numbers).report
    logging.getLogger("pyfuse3").addHandler(_LogToSupervisor(report))
    handshake = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    confine(WORKER)
    _attach(_operations(assignment, open_image(), report, numbers), assignment, *handshake)
    ready()
    blocking_loop.run(lambda: not retired)


def _operations(
    assignment: Assignment, image: VerifiedImage, report: Callable[[Report], None], numbers: memoryview
) -> Operations:
    tokens = Tokens(assignment.shared.fd, assignment.workers - 1)
    for number in (Number.REQUESTS, Number.VERIFIED_BLOCKS, Number.PUSHED, Number.CACHE_HITS):
        numbers[number] &= _SANE  # a worker that was taken over may have left them about to overflow
    device, before, hits_before = image.device, numbers[Number.VERIFIED_BLOCKS], numbers[Number.CACHE_HITS]

    def count() -> None:
        numbers[_VERIFIED_BLOCKS] = before + device.verified_blocks
        numbers[_CACHE_HITS] = hits_before + device.cache_hits

    numbers[Number.BUSY] = 0
    return Operations(
        image.filesystem,
        report,
        numbers,
        count=count,
        xattrs=image.identity.xattrs,
        pusher=Pusher(image.filesystem, assignment.shared, numbers, tokens),
        # Another worker may have more luck; without RESEND the call would fail in another way.
        out_of_memory=(lambda: os._exit(OUT_OF_MEMORY_STATUS)) if assignment.handshake.resend else lambda: None,
    )


class _LogToSupervisor(logging.Handler):
    """Passes what pyfuse3 logs on to the supervisor: a worker in the background has no stderr."""

    def __init__(self, report: Callable[[Report], None]) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        # An unmount overtook the answer to a request, or another worker answered it, too, after a RESEND.
        if "fuse_reply_* failed" not in record.msg:
            self._report(InternalReport(nid=None, detail=f"pyfuse3: {record.getMessage()}"[:1000]))


def _attach(operations: Operations, assignment: Assignment, ours: socket.socket, theirs: socket.socket) -> None:
    """Give libfuse a handshake on a socket, then put the fuse descriptor in the socket's place."""
    session_fd = theirs.detach()
    pyfuse3.init(operations, f"/dev/fd/{session_fd}", set())
    with ours:
        ours.send(assignment.handshake.request)
        requests = iter((True,))
        blocking_loop.run(lambda: next(requests, False))
        _length, error, _unique = OUT_HEADER.unpack_from(ours.recv(4096))
    if error:
        raise OSError(-error, f"libfuse refused the handshake: {os.strerror(-error)}")
    os.dup2(assignment.fuse_fd, session_fd, inheritable=False)
    os.close(assignment.fuse_fd)
