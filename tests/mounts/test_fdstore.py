# SPDX-License-Identifier: Apache-2.0
"""A keeper that dies under a service manager: the next one takes the descriptors, and the mount goes on.

The manager here speaks systemd's protocol; tests/systemd has the real one.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rofs.fuse import kernel, mountinfo
from tests.mounts.harness import ROFS, is_mount, kill, read_events, rofs

_FIRST_FD = 3
_FAR = 200  # above what is handed over


class Manager:
    """Listens on NOTIFY_SOCKET, keeps descriptors, starts the service."""

    def __init__(self, place: Path, words: list[str | Path]) -> None:
        self.words = list(map(str, words))
        self.store: list[tuple[str, int]] = []
        self.said: list[str] = []
        self.path = place / "notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(30)
        self.pid = 0

    def start(self) -> int:
        """Start the service with what is stored, and return when it is ready."""
        self.pid = os.fork()
        if self.pid == 0:
            self._become_service()
        self.hear("READY=1")
        return self.pid

    def _become_service(self) -> None:
        try:
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, _FAR) for _, fd in self.store]
            for number, fd in enumerate(high):
                os.dup2(fd, _FIRST_FD + number)
            os.closerange(_FIRST_FD + len(high), _FAR * 2)
            listening = {
                "LISTEN_PID": str(os.getpid()),
                "LISTEN_FDS": str(len(high)),
                "LISTEN_FDNAMES": ":".join(name for name, _ in self.store),
            }
            environment = {**os.environ, "NOTIFY_SOCKET": str(self.path), **(listening if high else {})}
            os.execve(self.words[0], self.words, environment)
        finally:
            os._exit(127)

    def hear(self, until: str) -> None:
        """Take messages until one says this."""
        while True:
            data, fds, _, _ = socket.recv_fds(self.socket, 65536, 64)
            lines = data.decode().split("\n")
            fields = dict(line.split("=", 1) for line in lines)
            if "FDSTORE" in fields:
                self.store += [(fields["FDNAME"], fd) for fd in fds]
            elif "FDSTOREREMOVE" in fields:
                gone = [(name, fd) for name, fd in self.store if name == fields["FDNAME"]]
                self.store = [entry for entry in self.store if entry not in gone]
                fds += [fd for _, fd in gone]
            if "FDSTORE" not in fields:
                for fd in fds:
                    os.close(fd)
            self.said += lines
            if until in lines:
                return

    def hear_the_rest(self) -> None:
        self.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            self.hear("nothing says this")


@contextmanager
def managed(image: Path, trust: Path, place: Path, *options: str) -> Iterator[Manager]:
    directory = place / "mnt"
    directory.mkdir()
    words: list[str | Path] = [
        ROFS,
        "mount",
        "-f",
        image,
        directory,
        "--trust",
        trust,
        "--audit-log",
        place / "log",
        *options,
    ]
    manager = Manager(place, words)
    try:
        yield manager
    finally:
        rofs("umount", directory, check=False)
        if is_mount(directory):
            kernel.unmount(os.fsencode(directory), lazy=True)
        for _, fd in manager.store:
            os.close(fd)
        manager.socket.close()
        if manager.pid:
            os.kill(manager.pid, signal.SIGKILL)
            os.waitpid(manager.pid, 0)


_READER = """
import hashlib, os, sys
while os.getppid() == int(sys.argv[2]):
    for directory, _, names in os.walk(sys.argv[1]):
        for name in names:
            path = os.path.join(directory, name)
            if os.path.isfile(path):
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                if not os.read(fd, 1 << 20):
                    sys.exit(3)
                os.close(fd)
    print("round", flush=True)
"""


@contextmanager
def _reading(directory: Path) -> Iterator[subprocess.Popen[str]]:
    words = [sys.executable, "-c", _READER, str(directory), str(os.getpid())]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as reader:
        try:
            yield reader
        finally:
            reader.kill()


def _rounds(reader: subprocess.Popen[str], count: int) -> None:
    assert reader.stdout is not None
    for _ in range(count):
        assert reader.stdout.readline() == "round\n", "the reader failed"


def test_a_killed_keeper_is_followed_by_one_that_goes_on(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with managed(small_image, trust, tmp_path) as manager:
        manager.start()
        before = mountinfo.mount_on(bytes(tmp_path / "mnt"))
        with _reading(tmp_path / "mnt") as reader:
            for _ in range(3):
                _rounds(reader, 2)
                kill(manager.pid)
                os.waitpid(manager.pid, 0)
                manager.start()
            _rounds(reader, 3)  # which began after the last of them
        assert mountinfo.mount_on(bytes(tmp_path / "mnt")) == before is not None
        with pytest.raises(OSError, match="Read-only"):
            (tmp_path / "mnt" / "new").mkdir()
        names = [event["event"] for event in read_events(tmp_path / "log")]
        assert names == ["trust", "mount", *["worker_exit", "mount"] * 3, "write_blocked"]
        assert rofs("audit", "verify", tmp_path / "log").returncode == 0


def test_stopping_leaves_nothing_stored(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with managed(small_image, trust, tmp_path) as manager:
        pid = manager.start()
        assert {name.rpartition("-")[0] if "clone" in name else name for name, _ in manager.store} == {
            *("rofs-data", "rofs-hash", "rofs-fuse", "rofs-shared", "rofs-state", "rofs-clone")
        }
        os.kill(pid, signal.SIGTERM)
        assert os.waitpid(pid, 0)[1] == 0
        manager.pid = 0
        manager.hear_the_rest()
        assert manager.store == []
        assert "STOPPING=1" in manager.said


def test_a_replaced_workers_clone_is_kept_no_longer(small_image: Path, trust: Path, tmp_path: Path) -> None:
    """Or the requests in work on it would be held for ever where they cannot be handed on."""
    with managed(small_image, trust, tmp_path, "-o", "noresend") as manager:
        manager.start()
        before = sorted(name for name, _ in manager.store)
        (children,) = Path(f"/proc/{manager.pid}/task").glob("*/children")
        for pid in map(int, children.read_text().split()):
            if b"Seccomp:\t2" in Path(f"/proc/{pid}/status").read_bytes():
                kill(pid)
        assert (tmp_path / "mnt" / "plain").stat()
        manager.hear_the_rest()
        assert sorted(name for name, _ in manager.store) == before
        assert (tmp_path / "mnt" / "large").read_bytes()


def test_what_is_stored_of_a_mount_that_is_gone_is_left(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with managed(small_image, trust, tmp_path) as manager:
        manager.start()
        kill(manager.pid)
        os.waitpid(manager.pid, 0)
        assert kernel.unmount(os.fsencode(tmp_path / "mnt"), lazy=True) == 0
        manager.start()
        assert (tmp_path / "mnt" / "plain").read_bytes()
        assert [event["event"] for event in read_events(tmp_path / "log")].count("trust") == 2
