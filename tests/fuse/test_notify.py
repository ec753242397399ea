# SPDX-License-Identifier: Apache-2.0
"""sd_notify(3) and the descriptor store, against a real datagram socket."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rofs.fuse import notify
from rofs.fuse.notify import Notifier, stored_fds


class Manager:
    """The end of the socket that is systemd's."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0", 1) if address[0] == "@" else address)
        self._socket.settimeout(10)

    def next(self) -> list[str]:
        """The lines of a message without descriptors."""
        lines, fds = self.next_with_fds()
        assert fds == []
        return lines

    def next_with_fds(self) -> tuple[list[str], list[int]]:
        data, fds, _flags, _address = socket.recv_fds(self._socket, 4096, 253)
        return data.decode().split("\n"), list(fds)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    name = f"rofs-test-{os.getpid()}-{time.monotonic_ns()}"
    manager = Manager(str(tmp_path / "notify") if request.param == "path" else f"@{name}")
    yield manager
    manager.close()


@pytest.fixture
def notifier(manager: Manager) -> Notifier:
    return Notifier(manager.address)


def test_life_of_a_service(notifier: Notifier, manager: Manager) -> None:
    assert notifier.ready("serving\nand\x1b more")
    assert manager.next() == ["READY=1", "STATUS=serving\\nand\\x1b more"]
    before = time.monotonic_ns() // 1000
    assert notifier.reloading()
    reloading, monotonic = manager.next()
    assert reloading == "RELOADING=1"
    assert before <= int(monotonic.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert notifier.status("x" * 9000)
    assert manager.next() == [f"STATUS={'x' * 500}"]
    assert notifier.main_pid(17)
    assert manager.next() == ["MAINPID=17"]
    assert notifier.stopping("ends")
    assert manager.next() == ["STOPPING=1", "STATUS=ends"]


def test_descriptors_are_sent_with_their_name(notifier: Notifier, manager: Manager, tmp_path: Path) -> None:
    fds = [os.open(tmp_path, os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)]
    try:
        assert notifier.store("fuse", fds, poll=False)
        lines, received = manager.next_with_fds()
        assert lines == ["FDSTORE=1", "FDNAME=fuse", "FDPOLL=0"]
        assert [os.fstat(fd).st_ino for fd in received] == [os.fstat(fd).st_ino for fd in fds]
        assert notifier.remove("fuse")
        assert manager.next() == ["FDSTOREREMOVE=1", "FDNAME=fuse"]
    finally:
        for fd in [*fds, *received]:
            os.close(fd)


def test_more_descriptors_than_a_message_holds(notifier: Notifier, manager: Manager) -> None:
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(300)]
    received: list[int] = []
    try:
        assert notifier.store("many", fds)
        for count in (253, 47):
            lines, part = manager.next_with_fds()
            received += part
            assert (lines, len(part)) == (["FDSTORE=1", "FDNAME=many"], count)
    finally:
        for fd in [*fds, *received]:
            os.close(fd)


@pytest.mark.parametrize("name", ["", "a:b", "a b", "a\n", "\xff", "x" * 256])
def test_a_name_that_would_not_come_back_is_refused(notifier: Notifier, name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        notifier.store(name, [0])
    with pytest.raises(ValueError, match="no name"):
        notifier.remove(name)


def test_barrier_waits_for_the_manager(notifier: Notifier, manager: Manager) -> None:
    def read() -> None:
        lines, (fd,) = manager.next_with_fds()
        assert lines == ["BARRIER=1"]
        os.close(fd)

    thread = threading.Thread(target=read)
    thread.start()
    assert notifier.barrier(10)
    thread.join()
    assert not notifier.barrier(0.01)  # nobody reads any more
    os.close(manager.next_with_fds()[1][0])


@pytest.mark.parametrize("address", [None, "", "/", "@", "relative", "vsock:2:1234", "/does/not/exist", "@nobody"])
def test_nobody_listens(address: str | None) -> None:
    notifier = Notifier(address)
    fds = len(os.listdir("/proc/self/fd"))
    assert not notifier.ready()
    assert not notifier.store("x", [0])
    assert not notifier.barrier(10)
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_manager_that_does_not_read_or_has_gone_holds_nobody_up(
    notifier: Notifier, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_SEND_SECONDS", 0.01)
    sent = 0
    while notifier.ready():
        sent += 1
        assert sent < 100_000
    assert sent > 0
    manager.close()
    assert not notifier.ready()


def test_children_do_not_inherit_the_address() -> None:
    environment = {"NOTIFY_SOCKET": "@name", "OTHER": "x"}
    notifier = Notifier.from_environment(environment)
    assert (notifier.address, environment) == ("@name", {"OTHER": "x"})
    assert Notifier.from_environment(environment).address is None


# Descriptors that come back


def _in_child(environment: dict[str, str], count: int) -> tuple[list[tuple[str, int]], list[bool], dict[str, str]]:
    """What a process with `count` descriptors from 3 on takes; a fork, because 3 is in use here."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            high = 200
            os.dup2(writing, high)
            for fd in range(3, 3 + count):
                os.dup2(os.open("/dev/null", os.O_RDONLY), fd, inheritable=True)
            environment = {key: value.replace("SELF", str(os.getpid())) for key, value in environment.items()}
            taken = stored_fds(environment)
            os.write(high, repr((taken, [os.get_inheritable(fd) for _, fd in taken], environment)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    found: tuple[list[tuple[str, int]], list[bool], dict[str, str]] = eval(said)
    return found


def test_kept_descriptors_come_back_once_and_are_not_inherited() -> None:
    environment = {"LISTEN_PID": "SELF", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "fuse:clone:clone", "OTHER": "x"}
    taken, inheritable, left = _in_child(environment, 3)
    assert taken == [("fuse", 3), ("clone", 4), ("clone", 5)]
    assert inheritable == [False] * 3
    assert left == {"OTHER": "x"}


def test_kept_descriptors_without_names() -> None:
    assert _in_child({"LISTEN_PID": "SELF", "LISTEN_FDS": "1"}, 1)[0] == [("unknown", 3)]
    names = {"LISTEN_FDNAMES": "one:two"}
    assert _in_child({"LISTEN_PID": "SELF", "LISTEN_FDS": "1", **names}, 1)[0] == [("unknown", 3)]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"LISTEN_FDS": "1"},
        {"LISTEN_PID": "1", "LISTEN_FDS": "1"},
        {"LISTEN_PID": "SELF"},
        {"LISTEN_PID": "SELF", "LISTEN_FDS": "-1"},
        {"LISTEN_PID": "SELF", "LISTEN_FDS": "0"},
        {"LISTEN_PID": "SELF", "LISTEN_FDS": "99999999"},
        {"LISTEN_PID": "SELF", "LISTEN_FDS": "\N{SUPERSCRIPT TWO}"},
    ],
)
def test_descriptors_of_others_are_not_taken(environment: dict[str, str]) -> None:
    assert _in_child(environment, 1) == ([], [], {})


def test_a_descriptor_that_is_closed_is_left_out() -> None:
    assert _in_child({"LISTEN_PID": "SELF", "LISTEN_FDS": "150"}, 2)[0][:2] == [("unknown", 3), ("unknown", 4)]
