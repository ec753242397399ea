# SPDX-License-Identifier: Apache-2.0
"""The worker process: attaches libfuse to the mount that the keeper made, and serves it.

libfuse wants to do the INIT handshake itself; the keeper has done it. So libfuse does its handshake
with a socket, on a copy of the kernel's request, and then the fuse descriptor takes the socket's place.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
from collections.abc import Callable

import pyfuse3
import trio

from rofs.fuse.counters import Counters
from rofs.fuse.messages import InternalReport, Report
from rofs.fuse.operations import Operations
from rofs.fuse.reporter import Reporter
from rofs.image.open import VerifiedImage

_OUT_HEADER = struct.Struct("<IiQ")  # len, error, unique


def serve(
    fuse_fd: int,
    init_request: bytes,
    image: VerifiedImage,
    connection: socket.socket,
    counters: Counters,
    ready: Callable[[], None],
) -> None:
    """Answer requests until the filesystem is unmounted.

    Args:
        fuse_fd: The mounted descriptor.
        init_request: The kernel's INIT, as the keeper received it.
        image: What is served.
        connection: To the supervisor.
        counters: Where this worker counts.
        ready: Called when the next thing is to answer.

    Raises:
        OSError: The connection to the kernel was aborted.
    """
    requests = 0

    def count() -> None:
        nonlocal requests
        requests += 1
        counters.set(Counters.REQUESTS, requests)
        counters.set(Counters.VERIFIED_BLOCKS, image.device.verified_blocks)

    report = Reporter(connection).report
    logging.getLogger("pyfuse3").addHandler(_LogToSupervisor(report))
    operations = Operations(image.filesystem, report, count)
    _attach(operations, fuse_fd, init_request)
    ready()
    # One task is enough: handlers never wait.
    trio.run(pyfuse3.main, 1, 1)


class _LogToSupervisor(logging.Handler):
    """Passes what pyfuse3 logs on to the supervisor: a worker in the background has no stderr."""

    def __init__(self, report: Callable[[Report], None]) -> None:
        super().__init__(logging.WARNING)
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        # An unmount overtook the answer to a request; nobody waits for it any more.
        if "fuse_reply_* failed" not in record.msg:
            self._report(InternalReport(nid=None, detail=f"pyfuse3: {record.getMessage()}"[:1000]))


def _attach(operations: Operations, fuse_fd: int, init_request: bytes) -> None:
    """Give libfuse a handshake on a socket, then put the fuse descriptor in the socket's place."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    session_fd = theirs.detach()
    pyfuse3.init(operations, f"/dev/fd/{session_fd}", set())
    with ours:
        ours.send(init_request)
        trio.run(_serve_until_answered, ours)
        _length, error, _unique = _OUT_HEADER.unpack_from(ours.recv(4096))
    if error:
        raise OSError(-error, f"libfuse refused the handshake: {os.strerror(-error)}")
    os.dup2(fuse_fd, session_fd, inheritable=False)
    os.close(fuse_fd)


async def _serve_until_answered(connection: socket.socket) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main, 1, 1)
        await trio.lowlevel.wait_readable(connection)
        nursery.cancel_scope.cancel()
