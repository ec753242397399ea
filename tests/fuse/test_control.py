# SPDX-License-Identifier: Apache-2.0
"""The control socket, client and server over a real one, with everything a client can get wrong."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from rofs.errors import HostError, StateError
from rofs.fuse import control, control_server, places

STATUS = {"mountpoint": "/mnt", "keeper": os.getpid()}


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of our own."""
    directory = tmp_path / "rofs"
    monkeypatch.setattr(places, "runtime_directory", lambda: str(directory))
    return directory


async def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    command = request.get("command", "")
    if command == "status":
        return {"ok": True, "status": STATUS}
    return {"ok": False, "error": f"unknown command {command!r}"}


@asynccontextmanager
async def serving(
    directory: str, answer: Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]] = answer
) -> AsyncIterator[trio.Event]:
    """A server on the control socket of a mount; it is ended with the block."""
    ended = trio.Event()
    with trio.fail_after(20), control_server.listening(directory) as listening:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control_server.serve, listening.socket, answer, ended)
            yield ended
            ended.set()


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await trio.to_thread.run_sync(partial(function, *arguments))


def exchange(directory: str, request: bytes) -> bytes:
    """What comes back for some bytes, until the server closes."""
    with control.connect(directory) as connection:
        connection.settimeout(10)
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # it has answered already
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
        except ConnectionResetError:
            pass  # it left some of the request unread
        return received


def directory_of(mountpoint: bytes) -> str:
    return places.mount_directory(mountpoint)


# Good clients


@pytest.mark.parametrize("name", [b"/mnt", b"/\xff-\\x", b"/" + b"long" * 250, b"/deep" * 100])
async def test_status(name: bytes) -> None:
    async with serving(directory_of(name)):
        assert await in_thread(control.status, name) == STATUS
        assert await in_thread(control.mounts) == [STATUS]
        assert await in_thread(control.is_alive, name)
    assert not control.is_alive(name)
    assert control.mounts() == []


async def test_mount_point_is_resolved_like_the_mount_did(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    async with serving(directory_of(os.fsencode(tmp_path / "real"))):
        assert await in_thread(control.status, str(tmp_path / "link")) == STATUS
        assert await in_thread(control.status, f"{tmp_path}/real/../link/") == STATUS


async def test_only_the_owner_reaches_it(runtime: Path) -> None:
    async with serving(directory_of(b"/mnt")):
        directory = runtime / "mnt"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE((directory / "control").stat().st_mode) == 0o600
    assert list(runtime.iterdir()) == []


async def test_failed_unmount_says_why() -> None:
    async def busy(request: Mapping[str, Any]) -> dict[str, Any]:
        return (
            await answer(request)
            if request["command"] == "status"
            else {"ok": False, "error": "Device or resource busy"}
        )

    async with serving(directory_of(b"/mnt"), busy):
        with pytest.raises(HostError, match="cannot unmount /mnt: Device or resource busy"):
            await in_thread(control.unmount, "/mnt")


async def test_unmount_waits_for_the_keeper_to_end() -> None:
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, ["sleep", "0.2"]))

        async def gone(request: Mapping[str, Any]) -> dict[str, Any]:
            status = {"keeper": process.pid}
            return {"ok": True, "status": status} if request["command"] == "status" else {"ok": True}

        async with serving(directory_of(b"/mnt"), gone):
            await in_thread(control.unmount, "/mnt")
            with trio.fail_after(1):  # it has ended, and only its exit status is still to be taken
                await process.wait()


async def test_lazy_unmount_does_not_wait_for_a_mount_in_use() -> None:
    asked: list[Mapping[str, Any]] = []

    async def in_use(request: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(request)
        return {"ok": True, "status": STATUS, "in_use": True}

    async with serving(directory_of(b"/mnt"), in_use):
        assert await in_thread(control.unmount_lazily, "/mnt") == os.getpid()
    assert (asked[-1]["command"], asked[-1]["lazy"]) == ("umount", True)


def test_lazy_unmount_of_what_is_no_rofs_mount() -> None:
    for place in ("/proc", "/nowhere"):
        with pytest.raises(StateError, match="is not a rofs mount of this user"):
            control.unmount_lazily(place)


def test_what_a_dead_mount_left_is_removed_but_not_that_of_a_living_one(runtime: Path) -> None:
    directory = directory_of(b"/mnt")
    with control_server.listening(directory):
        control._remove_if_left(directory)
        assert os.path.exists(f"{directory}/control")
    os.mkdir(directory)
    control._remove_if_left(directory)
    assert not os.path.exists(directory)
    control._remove_if_left(directory)


async def test_last_client_is_still_answered_when_the_mount_has_ended() -> None:
    asked, go_on = trio.Event(), trio.Event()

    async def slow(request: Mapping[str, Any]) -> dict[str, Any]:
        asked.set()
        await go_on.wait()
        return {"ok": True, "status": {"keeper": 1, "late": True}}

    results = []

    async def client() -> None:
        results.append(await in_thread(control.status, "/mnt"))

    async with trio.open_nursery() as nursery, serving(directory_of(b"/mnt"), slow) as ended:
        nursery.start_soon(client)
        await asked.wait()
        ended.set()
        await trio.sleep(0.05)
        go_on.set()
    assert results == [{"keeper": 1, "late": True}]


# Bad clients


@pytest.mark.parametrize(
    "request_",
    [
        b"",
        b"\n",
        b"garbage\n",
        b"\xff\xfe\x00\n",
        b"[1, 2]\n",
        b"null\n",
        b'{"v": 2, "command": "status"}\n',
        b'{"command": "status"}\n',
        b'{"v": 1}\n',
        b'{"v": 1, "command": "party"}\n',
        b'{"v": 1, "command": {"status": 1}}\n',
        b"[" * 4000 + b"\n",
        b"x" * 1_000_000,
        b'{"v": 1, "command": "' + b"x" * 1_000_000 + b'"}\n',
    ],
)
async def test_bad_request_is_refused_and_the_next_client_served(request_: bytes) -> None:
    directory = directory_of(b"/mnt")
    async with serving(directory):
        received = await in_thread(exchange, directory, request_)
        if received:  # nothing, when the rest of a long request was thrown away with the connection
            reply = json.loads(received)
            assert (reply["v"], reply["ok"]) == (1, False)
            assert "unknown command" in reply["error"]
        else:
            assert len(request_) > 4096
        assert await in_thread(control.status, "/mnt") == STATUS


async def test_request_without_newline_is_answered_at_its_end() -> None:
    directory = directory_of(b"/mnt")
    async with serving(directory):
        assert json.loads(await in_thread(exchange, directory, b'{"v": 1, "command": "status"}'))["ok"]


async def test_silent_clients_do_not_block_others() -> None:
    directory = directory_of(b"/mnt")
    async with serving(directory):
        silent = [control.connect(directory) for _ in range(5)]
        try:
            with trio.fail_after(2):
                assert await in_thread(control.status, "/mnt") == STATUS
        finally:
            for connection in silent:
                connection.close()


async def test_client_that_goes_away_harms_nobody() -> None:
    directory = directory_of(b"/mnt")
    async with serving(directory):
        for request in (b"", b'{"v": 1', b'{"v": 1, "command": "status"}\n'):
            with control.connect(directory) as connection:
                connection.sendall(request)
        assert await in_thread(control.status, "/mnt") == STATUS


# Bad servers


@pytest.fixture
def impostor(runtime: Path) -> Iterator[Callable[[bytes], None]]:
    """Something that listens in the place of a mount, and answers one client whatever it is told."""
    (runtime / "mnt").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(runtime / "mnt" / "control"))
        listener.listen()

        def speak(reply: bytes) -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)

        yield speak


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"garbage\n",
        b"null\n",
        b"[]\n",
        b'{"v": 2, "ok": true, "status": {}}\n',
        b'{"v": 1, "ok": false, "error": "no"}\n',
        b'{"v": 1}\n',
    ],
)
async def test_answer_that_is_none_is_an_error(impostor: Callable[[bytes], None], reply: bytes) -> None:
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, impostor, reply)
            with pytest.raises(StateError, match="rofs mount at /mnt"):
                await in_thread(control.status, "/mnt")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_thread, impostor, reply)
            assert await in_thread(control.mounts) == []


def test_nothing_there(runtime: Path) -> None:
    for _ in range(2):
        assert control.mounts() == []
        for function in (control.status, control.unmount):
            with pytest.raises(StateError, match="/mnt is not a rofs mount of this user"):
                function("/mnt")
        (runtime / "mnt").mkdir(parents=True, exist_ok=True)


def test_runtime_directory_that_is_a_file(runtime: Path) -> None:
    runtime.write_text("")
    assert control.mounts() == []
    with pytest.raises(StateError):
        control.status("/mnt")


# The directory


async def test_what_a_dead_mount_left_is_replaced(runtime: Path) -> None:
    (runtime / "mnt").mkdir(parents=True)
    runtime.chmod(0o700)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(runtime / "mnt" / "control"))
    (runtime / "mnt").chmod(0o700)
    async with serving(directory_of(b"/mnt")):
        assert await in_thread(control.status, "/mnt") == STATUS


async def test_living_mount_keeps_its_directory() -> None:
    directory = directory_of(b"/mnt")
    async with serving(directory):
        with pytest.raises(HostError, match="another rofs mount uses"), control_server.listening(directory):
            pass
        assert await in_thread(control.status, "/mnt") == STATUS


def test_directory_of_somebody_else_is_refused(runtime: Path) -> None:
    runtime.mkdir()
    runtime.chmod(0o777)
    with pytest.raises(HostError, match="only this user can write to"), control_server.listening(directory_of(b"/mnt")):
        pass


def test_directory_that_is_a_link_is_refused(runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    runtime.symlink_to(tmp_path / "other")
    with pytest.raises(HostError, match="not a directory that only"), control_server.listening(directory_of(b"/mnt")):
        pass


def test_directory_that_cannot_be_made(runtime: Path) -> None:
    runtime.write_text("")
    with (
        pytest.raises(HostError, match=r"runtime directory .*: Not a directory"),
        control_server.listening(directory_of(b"/mnt")),
    ):
        pass
