# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rofs import durable
from rofs.errors import HostError, InputError, RofsError
from tests.audit.doubles import FullDisk
from tests.faults import FailingCalls, KillingCalls, ShortWrites


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "dir").mkdir()
    return tmp_path / "dir" / "file"


def names(target: Path) -> list[str]:
    return sorted(os.listdir(target.parent))


def count_calls(target: Path, *, replace: bool) -> list[str]:
    calls = FailingCalls()
    with durable.using(calls):
        durable.write_atomic(str(target), b"new", replace=replace)
    return calls.calls


def test_the_order_of_a_durable_write(target: Path) -> None:
    assert count_calls(target, replace=True) == ["open", "chmod", "pwrite", "fsync", "rename", "fsync"]
    target.unlink()
    assert count_calls(target, replace=False) == ["open", "chmod", "pwrite", "fsync", "link", "unlink", "fsync"]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("fail_at", range(7))
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_fault_at_any_call_leaves_old_or_new(target: Path, old: bytes | None, fail_at: int, error: int) -> None:
    if old is not None:
        target.write_bytes(old)
    calls = FailingCalls(fail_at, error=error)
    fails = fail_at < (7 if old is None else 6)
    expected = pytest.raises(HostError, match=str(target)) if fails else contextlib.nullcontext()
    with durable.using(calls), expected:
        durable.write_atomic(str(target), b"new", replace=old is not None)
    found = target.read_bytes() if target.exists() else None
    renamed = {"rename", "link"} & set(calls.calls[:fail_at])
    assert found == (b"new" if renamed else old)
    assert names(target) == (["file"] if found is not None else [])


@pytest.mark.parametrize("fail_at", range(7))
@pytest.mark.parametrize("replace", [True, False])
def test_a_power_cut_at_any_call_leaves_old_or_new(target: Path, fail_at: int, replace: bool) -> None:
    if replace:
        target.write_bytes(b"old")
    child = os.fork()
    if not child:
        try:
            with durable.using(KillingCalls(fail_at)):
                durable.write_atomic(str(target), b"new", replace=replace)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    if replace:
        assert target.read_bytes() in {b"old", b"new"}
    elif target.exists():
        assert target.read_bytes() == b"new"


def test_a_directory_that_cannot_be_synced_is_no_error(target: Path) -> None:
    with durable.using(FailingCalls(5, error=errno.EINVAL)):
        durable.write_atomic(str(target), b"new")
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o755])
def test_modes_are_exact(target: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        durable.write_atomic(str(target), b"", mode=mode)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_an_existing_file_is_left_as_it_is(target: Path) -> None:
    target.write_bytes(b"old")
    with pytest.raises(InputError, match="exists already"):
        durable.write_atomic(str(target), b"new", replace=False)
    assert target.read_bytes() == b"old"
    # Another one may come into being meanwhile.
    target.unlink()
    with durable.NewFile(str(target)) as new:
        target.write_bytes(b"other")
        with pytest.raises(InputError, match="exists"):
            new.commit()
    assert target.read_bytes() == b"other"
    assert names(target) == ["file"]


def test_a_dangling_symlink_counts_as_existing(target: Path) -> None:
    target.symlink_to("nowhere")
    with pytest.raises(InputError, match="exists already"):
        durable.NewFile(str(target))
    durable.write_atomic(str(target), b"new")
    assert not target.is_symlink()


def test_a_directory_is_never_replaced(target: Path) -> None:
    with pytest.raises(InputError, match="not a regular file"):
        durable.write_atomic(str(target.parent), b"")


def test_a_missing_directory_is_named(target: Path) -> None:
    with pytest.raises(InputError, match=r"none/file: No such file"):
        durable.write_atomic(str(target.parent / "none" / "file"), b"")


@pytest.mark.parametrize("name", [b"n" * 255, b"\xff\n", b".hidden", b"-rf"])
def test_any_name(target: Path, name: bytes) -> None:
    durable.write_atomic(os.fsencode(target.parent) + b"/" + name, b"x")
    assert os.listdir(os.fsencode(target.parent)) == [name]


def test_without_commit_nothing_remains(target: Path) -> None:
    with durable.NewFile(str(target)) as new:
        new.write_at(0, b"x")
    assert names(target) == []

    def interrupted() -> None:
        with durable.NewFile(str(target)) as new:
            new.write_at(0, b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(target) == []


def test_writes_in_any_order_and_gaps(target: Path) -> None:
    with durable.using(ShortWrites()), durable.NewFile(str(target)) as new:
        new.write_at(10, b"later")
        new.write_at(0, memoryview(b"first"))
        new.truncate(20)
        assert names(target) != ["file"]
        new.commit()
    assert target.read_bytes() == b"first" + bytes(5) + b"later" + bytes(5)


# Append


@pytest.fixture
def log(target: Path) -> Iterator[durable.AppendFile]:
    file = durable.AppendFile(str(target), lock_seconds=0)
    yield file
    file.close()


def test_append_cut_and_append_again(log: durable.AppendFile, target: Path) -> None:
    log.append(b"one\n")
    with durable.using(ShortWrites()):
        log.append(b"second\n")
    assert target.read_bytes() == b"one\nsecond\n"
    log.cut_to(4)
    log.append(b"2\n")
    log.sync()
    assert target.read_bytes() == b"one\n2\n"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_nothing_remains_of_a_failed_append(log: durable.AppendFile, target: Path) -> None:
    log.append(b"one\n")
    with durable.using(FullDisk(2)), pytest.raises(HostError, match="free some space"):
        log.append(b"second\n")
    assert target.read_bytes() == b"one\n"
    with durable.using(FullDisk(2, truncate_fails=True)), pytest.raises(HostError, match="cannot write"):
        log.append(b"second\n")


def test_faults_of_an_open_log(log: durable.AppendFile) -> None:
    calls: list[Callable[[], None]] = [lambda: log.append(b"x"), lambda: log.cut_to(0), log.sync]
    for call in calls:
        with durable.using(FailingCalls(0, error=errno.EIO)), pytest.raises(HostError, match="file: Input/output"):
            call()


@pytest.mark.parametrize("fail_at", range(2))
def test_faults_while_a_log_is_opened(target: Path, fail_at: int) -> None:
    with durable.using(FailingCalls(fail_at, error=errno.EIO)), pytest.raises(HostError, match="file: Input/output"):
        durable.AppendFile(str(target), lock_seconds=0)
    durable.AppendFile(str(target), lock_seconds=0).close()  # the lock was let go


def test_one_writer_at_a_time(log: durable.AppendFile, target: Path) -> None:
    with pytest.raises(HostError, match="in use by another rofs process"):
        durable.AppendFile(str(target), lock_seconds=0.06)


def test_the_next_writer_waits(target: Path) -> None:
    first = durable.AppendFile(str(target))
    timer = threading.Timer(0.05, first.close)
    timer.start()
    durable.AppendFile(str(target), lock_seconds=30).close()
    timer.join()


def test_directories_are_made_for_the_owner_only(target: Path) -> None:
    path = target.parent / "a" / "b" / "log"
    durable.AppendFile(str(path)).close()
    for made in (path.parent, path.parent.parent):
        assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_log_is_no_symlink_and_no_directory(target: Path) -> None:
    target.symlink_to("elsewhere")
    for path in (target, target.parent):
        with pytest.raises(InputError):
            durable.AppendFile(str(path))
    assert not (target.parent / "elsewhere").exists()


def test_a_file_in_place_of_a_directory(target: Path) -> None:
    target.write_bytes(b"")
    with pytest.raises(RofsError, match="cannot open"):
        durable.AppendFile(str(target / "log"))


def replace_in_place(target: Path, calls: durable.Calls) -> None:
    fd = os.open(target, os.O_RDWR)
    try:
        with durable.using(calls):
            durable.replace_in_place(fd, str(target), 100, b"H" * 10 + b"body", head_bytes=10)
    finally:
        os.close(fd)


def test_in_place_the_head_is_blank_until_the_body_is_on_the_medium(target: Path) -> None:
    target.write_bytes(b"." * 200)
    calls = FailingCalls()
    replace_in_place(target, calls)
    assert calls.calls == ["pwrite", "fsync"] * 3
    assert target.read_bytes() == b"." * 100 + b"H" * 10 + b"body" + b"." * 86
    for fail_at, head in ((1, bytes(10)), (2, bytes(10)), (3, bytes(10)), (4, bytes(10)), (5, b"H" * 10)):
        target.write_bytes(b"." * 200)
        with pytest.raises(HostError, match="cannot write"):
            replace_in_place(target, FailingCalls(fail_at))
        assert target.read_bytes()[100:110] == head


def test_a_file_is_changed_by_one_process_at_a_time(target: Path) -> None:
    target.touch()
    with target.open("rb") as one, target.open("rb") as two:
        durable.lock(one.fileno(), str(target))
        with pytest.raises(HostError, match="is being changed by another process"):
            durable.lock(two.fileno(), str(target))
