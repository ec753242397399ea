# SPDX-License-Identifier: Apache-2.0
"""Who did it: real processes and threads, and the parsers on made-up content."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.audit.identity import (
    Glance,
    ThreadStatus,
    glance,
    identify,
    parse_cgroup,
    parse_stat_start_time,
    parse_status,
)


@pytest.fixture
def proc_fd() -> Iterator[int]:
    fd = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    yield fd
    os.close(fd)


def test_child_process(proc_fd: int) -> None:
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        who = identify(child.pid, proc_fd=proc_fd)
    assert (who["pid"], who["tid"], who["ppid"]) == (child.pid, child.pid, os.getpid())
    assert who["comm"] == "cat"
    assert str(who["exe"]).endswith("/cat")
    assert "nspid" in who
    assert str(who["cgroup"]).startswith("/")
    assert who.get("auid") != 4294967295
    assert set(who) <= {"pid", "tid", "ppid", "nspid", "auid", "comm", "exe", "cgroup"}


def test_dead_process_is_nobody(proc_fd: int) -> None:
    with subprocess.Popen(["/bin/true"]) as child:
        child.wait()
    assert identify(child.pid, proc_fd=proc_fd) == {}


@pytest.mark.parametrize("tid", [0, -1, 2**40])
def test_id_that_names_no_thread_is_nobody(proc_fd: int, tid: int) -> None:
    assert identify(tid, proc_fd=proc_fd) == {}


def test_glance_tells_what_identify_does(proc_fd: int) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        while (seen := glance(child.pid, proc_fd=proc_fd)) is None or seen.comm != b"sleep":
            pass
        who = identify(child.pid, proc_fd=proc_fd)
        assert (seen.ppid, seen.comm.decode()) == (who["ppid"], who["comm"])
        assert seen.exe == os.fsencode(str(who["exe"]))
        start_time = parse_stat_start_time(pathlib.Path(f"/proc/{child.pid}/stat").read_bytes())
        assert seen.start_time == start_time
        child.kill()
        child.wait()
        assert glance(child.pid, proc_fd=proc_fd) is None


def test_thread_belongs_to_its_process(proc_fd: int) -> None:
    ready, done = threading.Event(), threading.Event()

    def wait() -> None:
        pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text("worker")
        ready.set()
        done.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    ready.wait()
    assert thread.native_id is not None
    who = identify(thread.native_id, proc_fd=proc_fd)
    done.set()
    thread.join()
    assert (who["pid"], who["tid"]) == (os.getpid(), thread.native_id)
    assert who["comm"] == pathlib.Path("/proc/self/comm").read_text().strip() != "worker"


def test_name_that_is_not_utf8_is_escaped(proc_fd: int) -> None:
    program = "import sys; open('/proc/self/comm', 'wb').write(b') (\\xff'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        who = identify(child.pid, proc_fd=proc_fd)
        child.kill()
    assert who["comm"] == ") (\\xff"


class FakeProc:
    """A directory that looks like /proc with one thread in it."""

    def __init__(self, root: pathlib.Path) -> None:
        self.thread = root / "5"
        self.thread.mkdir()
        self.set("stat", stat_line(b"x", 100))
        self.set("status", b"Tgid:\t5\nPPid:\t1\nNStgid:\t5\t2\nUid:\t0\t0\t0\t0\n")
        self.set("comm", b"x\n")
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)

    def set(self, name: str, content: bytes) -> None:
        (self.thread / name).write_bytes(content)


def stat_line(comm: bytes, start_time: int) -> bytes:
    return b"5 (%s) S %s %d 0 0\n" % (comm, b" ".join([b"7"] * 18), start_time)


@pytest.fixture
def fake(tmp_path: pathlib.Path) -> Iterator[FakeProc]:
    fake = FakeProc(tmp_path)
    yield fake
    os.close(fake.fd)


def test_what_cannot_be_read_is_absent(fake: FakeProc) -> None:
    assert identify(5, proc_fd=fake.fd) == {
        "pid": 5,
        "tid": 5,
        "ppid": 1,
        "nspid": 2,
        "comm": "x",
    }


@pytest.mark.parametrize(("loginuid", "auid"), [(b"1000", 1000), (b"4294967295", None), (b"", None)])
def test_login_id_that_is_not_set_is_absent(fake: FakeProc, loginuid: bytes, auid: int | None) -> None:
    fake.set("loginuid", loginuid)
    assert identify(5, proc_fd=fake.fd).get("auid") == auid


def test_thread_that_changed_meanwhile_is_nobody(fake: FakeProc, monkeypatch: pytest.MonkeyPatch) -> None:
    def readlink(path: bytes, *, dir_fd: int) -> bytes:
        fake.set("stat", stat_line(b"x", 101))
        return b"/bin/other"

    monkeypatch.setattr(os, "readlink", readlink)
    assert identify(5, proc_fd=fake.fd) == {}


@pytest.mark.parametrize("comm", [b"a b", b") (", b"x) S 1 2 (", b"\xff\n"])
def test_glance_at_any_name(fake: FakeProc, comm: bytes) -> None:
    fake.set("stat", stat_line(comm, 99))
    assert glance(5, proc_fd=fake.fd) == Glance(99, 7, comm, None)
    fake.set("stat", b"5 (" + comm + b") S 7\n")
    assert glance(5, proc_fd=fake.fd) is None


def test_thread_without_start_time_is_nobody(fake: FakeProc) -> None:
    fake.set("stat", b"")
    assert identify(5, proc_fd=fake.fd) == {}


@given(comm=st.binary(max_size=15), start_time=st.integers(0, 2**63))
def test_start_time_behind_any_name(comm: bytes, start_time: int) -> None:
    assert parse_stat_start_time(stat_line(comm, start_time)) == start_time
    assert parse_stat_start_time(stat_line(comm + b") (", start_time)) == start_time


@given(st.binary())
def test_parsers_take_any_bytes(raw: bytes) -> None:
    parse_status(raw)
    parse_cgroup(raw)
    parse_stat_start_time(raw)


def test_status_that_says_nothing() -> None:
    assert parse_status(b"Tgid:\nPPid: x\nNStgid\n") == ThreadStatus(None, None, None)


@pytest.mark.parametrize(
    ("cgroup", "path"),
    [
        (b"0::/system.slice/a.service\n", b"/system.slice/a.service"),
        (b"4:memory:/m\n1:name=systemd:/s\n0::/v2:x\n", b"/v2:x"),
        (b"4:memory:/m\n1:cpu:/c\n", b"/m"),
        (b"", None),
        (b"junk\n", None),
    ],
)
def test_cgroup(cgroup: bytes, path: bytes | None) -> None:
    assert parse_cgroup(cgroup) == path
