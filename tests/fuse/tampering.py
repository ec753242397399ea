# SPDX-License-Identifier: Apache-2.0
"""A program that watches a mount of its own, runs commands against it, and tells what was seen of each.

In a mount namespace of its own: `unshare -m python -m tests.fuse.tampering DIRECTORY ''|unreadable|untold`.
Commands come on stdin, one a line; for each goes out a JSON list of [path, status, detail]. They run in the
directory, which has the watched mount `m` and beside it `elsewhere` and `other-file`.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import sys
from collections.abc import Callable

import trio
import trio.testing

from rofs.fuse import mountinfo, tamper
from rofs.fuse.mountinfo import Mount
from rofs.fuse.tamper import Tampering

_SETUP = """
mount -t tmpfs base "$PWD"
cd "$PWD"  # into what was mounted
mkdir m elsewhere
touch other-file
mount -t tmpfs -o nosuid ours m
mkdir -p 'm/a b/c' m/baseline m/marker0 m/marker1 m/marker2 m/marker3
touch m/file
mount -t tmpfs was-there-before m/baseline
"""


class _Seen(list[Tampering]):
    """What was reported since the last answer."""

    def __init__(self) -> None:
        super().__init__()
        self._more = trio.Event()

    def report(self, tampering: Tampering) -> None:
        self.append(tampering)
        self._more.set()

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(60):
            while not condition():
                self._more = trio.Event()
                await self._more.wait()


async def main(directory: str, word: str) -> None:
    os.chdir(directory)
    await _sh(_SETUP)
    os.chdir(directory)
    mount = mountinfo.mount_on(os.fsencode(directory) + b"/m")
    assert mount is not None
    inside = os.open("m", os.O_PATH)
    if word == "unreadable":
        _make_unreadable()
    if word == "untold":
        tamper._LOOK_SECONDS = 0.02
    seen = _Seen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tamper.watch, mount.mount_id, seen.report)
        # What is there now has been read; and the watch does not spin, or it would never come to this.
        await trio.testing.wait_all_tasks_blocked(0 if word else 0.1)
        for number in itertools.count():
            command = await trio.to_thread.run_sync(sys.stdin.readline)
            if not command:
                break
            await _sh(command)
            if word == "untold":  # nothing but time must be needed
                await seen.wait_until(lambda: bool(seen))
                _answer(seen)
            else:
                await _mark(inside, number)
                await seen.wait_until(lambda: bool(seen) and seen[-1].path.startswith(b"/marker"))
                _answer(seen[:-1])
            seen.clear()
        nursery.cancel_scope.cancel()


async def _mark(inside: int, number: int) -> None:
    """When this is seen, all that went before was; mounted from inside, since the mount may be hidden."""
    words = ["mount", "-c", "-n", "-t", "tmpfs", "marker", f"marker{number}"]
    await trio.run_process(words, cwd=f"/proc/{os.getpid()}/fd/{inside}")


def _answer(seen: list[Tampering]) -> None:
    sys.stdout.write(json.dumps([(repr(t.path)[2:-1], t.status, t.detail) for t in seen]) + "\n")
    sys.stdout.flush()


def _make_unreadable() -> None:
    """Let two of three reads fail."""
    tamper._RETRY_SECONDS = 0.01
    read, calls = tamper._read, itertools.count()

    def fail_often(file: io.FileIO) -> list[Mount] | None:
        return None if next(calls) % 3 else read(file)

    tamper._read = fail_often


async def _sh(commands: str) -> None:
    await trio.run_process(["sh", "-ec", commands])


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2])
