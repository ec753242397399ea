# SPDX-License-Identifier: Apache-2.0
"""Rotation: the chain goes on from file to file, whoever moved them, and whatever failed in the middle."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from rofs import durable
from rofs.audit.chain import ChainReport, read_lines, verify_files
from rofs.audit.event import GENESIS
from rofs.audit.log import AuditLog
from rofs.audit.rotation import log_files, older, opened_log, shift
from rofs.errors import ChainError, HostError, InputError
from tests.faults import FailingCalls

from .doubles import open_log, written_log


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "log"


def verify(path: pathlib.Path, **options: Any) -> ChainReport:
    with opened_log(str(path)) as files:
        return verify_files([(name, read_lines(file)) for name, file in files], **options)


def events(path: pathlib.Path) -> list[dict[str, Any]]:
    """Those of all files; the chain is checked on the way."""
    verify(path)
    with opened_log(str(path)) as files:
        return [json.loads(line) for _, file in files for line in file]


def names(path: pathlib.Path) -> list[str]:
    return sorted(entry.name for entry in path.parent.iterdir())


def fill(log: AuditLog, count: int = 5, begin: int = 0) -> None:
    for n in range(begin, begin + count):
        assert log.write("write_blocked", op="unlink", path=f"/file{n}", errno="EROFS")


def paths(found: list[dict[str, Any]]) -> list[str]:
    return [event["path"] for event in found if "path" in event]


def statuses(found: list[dict[str, Any]]) -> list[str]:
    return [event["status"] for event in found if event["event"] == "rotated"]


# By size


def test_full_file_is_kept_and_the_chain_goes_on(path: pathlib.Path) -> None:
    with open_log(path, max_file_bytes=1500, kept_files=50) as log:
        fill(log, 20)
        head, seq = log.head, log.seq
    found = events(path)
    assert paths(found) == [f"/file{n}" for n in range(20)]
    assert [event["seq"] for event in found] == list(range(1, seq + 1))
    assert found[-1]["hash"] == head == verify(path).head
    for name in names(path)[1:]:
        lines = [json.loads(line) for line in (path.parent / name).read_bytes().splitlines()]
        assert (lines[-1]["event"], lines[-1]["status"]) == ("rotated", "ends")
    first = json.loads(path.read_bytes().splitlines()[0])
    assert (first["event"], first["status"], first["detail"]) == ("rotated", "begins", f"goes on from {path}.1")
    assert log.last_error is None


def test_oldest_file_goes_and_what_is_left_is_still_a_chain(path: pathlib.Path) -> None:
    with open_log(path, max_file_bytes=1500, kept_files=2) as log:
        fill(log, 20)
        log.sync()
    assert names(path) == ["log", "log.1", "log.2"]
    report = verify(path)
    assert report.after != GENESIS
    assert verify(path, after=report.after) == report
    with pytest.raises(ChainError, match=r"log\.2: line 1: prev expected"):
        verify(path, after="a" * 64)
    (ends,) = [e for e in events(path.parent / "log.1") if (e["event"], e.get("status")) == ("rotated", "ends")]
    assert ends["detail"].endswith(f"kept as {path}.1; what was {path}.2 is gone")


def test_the_log_is_nobodys_at_no_time(path: pathlib.Path) -> None:
    class Watching(durable.Calls):
        def rename(self, source: bytes, target: bytes) -> None:
            super().rename(source, target)
            assert path.exists()

        def link(self, source: bytes, target: bytes) -> None:
            super().link(source, target)
            assert path.exists()

    with open_log(path, max_file_bytes=1500) as log, durable.using(Watching()):
        fill(log, 20)


def test_without_hard_links(path: pathlib.Path) -> None:
    class Vfat(durable.Calls):
        def link(self, source: bytes, target: bytes) -> None:
            raise PermissionError(1, "Operation not permitted")

    with open_log(path, max_file_bytes=1500, kept_files=50) as log, durable.using(Vfat()):
        fill(log, 20)
    assert len(paths(events(path))) == 20
    assert "log.1" in names(path)


def test_second_writer_that_waited_does_not_get_the_old_file(path: pathlib.Path) -> None:
    log = open_log(path)
    waiting = os.open(path, os.O_RDWR | os.O_APPEND)  # it has opened the file, and would get the lock next
    log._rotate_at_bytes = 0
    fill(log)
    with pytest.raises(HostError, match="in use by another"):
        open_log(path, lock_seconds=0)
    log.close()
    file = durable.AppendFile(str(path))
    assert not os.path.samestat(os.fstat(file.fd), os.fstat(waiting))
    file.close()
    os.close(waiting)


def test_what_was_written_before_the_rotation_is_synced_after_it(path: pathlib.Path) -> None:
    class Counting(durable.Calls):
        def __init__(self) -> None:
            self.synced: set[int] = set()

        def fsync(self, fd: int) -> None:
            self.synced.add(os.fstat(fd).st_ino)

    with open_log(path, max_file_bytes=1500) as log:
        fill(log)
        counting = Counting()
        with durable.using(counting):
            assert log.sync()
        assert {entry.stat().st_ino for entry in path.parent.iterdir()} <= counting.synced
        assert log._previous == []


def count_calls(path: pathlib.Path) -> int:
    calls = FailingCalls()
    with open_log(path, max_file_bytes=1500, kept_files=2) as log:
        fill(log, 10)
        with durable.using(calls):
            log._rotate_at_bytes = 0
            fill(log, 1, 10)
    shutil.rmtree(path.parent)
    path.parent.mkdir()
    return len(calls.calls)


class PowerCutError(BaseException):
    """Nothing catches it."""


class PowerCut(FailingCalls):
    """The process ends at the n-th call."""

    def fail(self) -> None:
        raise PowerCutError


def test_crash_in_the_middle_of_a_rotation_leaves_a_log_that_goes_on(path: pathlib.Path) -> None:
    number = count_calls(path)
    assert number > 8
    for fail_at in range(number):
        log = open_log(path, max_file_bytes=1500, kept_files=2)
        fill(log, 10)
        before = paths(events(path))
        log._rotate_at_bytes = 0
        with durable.using(PowerCut(fail_at, forever=True)), pytest.raises(PowerCutError):
            fill(log, 1, 10)
        os.close(log._file.fd)
        for file in log._previous:
            file.close()
        del log
        with open_log(path, max_file_bytes=1500, kept_files=2) as log:
            fill(log, 8, 10)
        found = events(path)
        assert paths(found)[-8:] == [f"/file{n}" for n in range(10, 18)], fail_at
        assert all(name in ("log", "log.1", "log.2") for name in names(path)), fail_at
        assert before
        shutil.rmtree(path.parent)
        path.parent.mkdir()


def test_rotation_that_fails_costs_no_event_and_is_told(path: pathlib.Path) -> None:
    class Stubborn(durable.Calls):
        def link(self, source: bytes, target: bytes) -> None:
            raise OSError(5, "Input/output error")

    with open_log(path, max_file_bytes=1500, kept_files=50) as log:
        with durable.using(Stubborn()):
            fill(log, 20)
            assert "the log is not rotated: cannot replace" in str(log.last_error)
            assert log.dropped == 0
        fill(log, 20, 20)
        assert log.last_error is None
    assert paths(events(path)) == [f"/file{n}" for n in range(40)]
    assert statuses(events(path)).count("ends") == statuses(events(path)).count("begins")


@pytest.mark.parametrize("fail_at", range(12))
def test_full_disk_in_the_middle_of_a_rotation(path: pathlib.Path, fail_at: int) -> None:
    with open_log(path, max_file_bytes=1500) as log:
        with durable.using(FailingCalls(fail_at, forever=True)):
            for n in range(10):
                log.write("write_blocked", op="unlink", path=f"/{n}", errno="EROFS")
        lost = log.dropped
        assert lost
        fill(log, 10)
        assert log.last_error is None
    found = events(path)
    assert len(paths(found)) + sum(event.get("count", 0) for event in found) == 20
    assert sum(event["count"] for event in found if event["event"] == "dropped") == lost


# By somebody else


def test_renamed_log_ends_and_a_new_one_begins(path: pathlib.Path) -> None:
    """As logrotate does it without telling anybody."""
    with open_log(path) as log:
        fill(log, 2)
        path.rename(f"{path}.1")
        fill(log, 2, 2)
        path.rename(f"{path}.2")
        pathlib.Path(f"{path}.1").rename(f"{path}.3")
        fill(log, 2, 4)
        assert log.last_error is None
    found = events(path)
    assert paths(found) == [f"/file{n}" for n in range(6)]
    assert statuses(found) == ["ends", "begins"] * 2
    assert found[3]["detail"] == f"the file before, {path}, was renamed"


def test_renamed_log_and_a_new_file_in_its_place(path: pathlib.Path) -> None:
    with open_log(path) as log:
        fill(log, 2)
        path.rename(f"{path}.1")
        path.touch(mode=0o640)
        fill(log, 2, 2)
    assert paths(events(path)) == [f"/file{n}" for n in range(4)]
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("remove", [lambda path: path.unlink(), lambda path: shutil.rmtree(path.parent)])
def test_removed_log_is_made_anew_and_what_was_lost_is_told(
    path: pathlib.Path, remove: Callable[[pathlib.Path], None]
) -> None:
    path = path.parent / "directory" / "log"
    with open_log(path) as log:
        fill(log, 3)
        remove(path)
        fill(log, 2, 3)
        assert (log.dropped, log.last_error) == (0, None)
    begins, *rest = events(path)
    assert begins["detail"] == f"the file before, {path}, was removed; it had events up to 3"
    assert begins["seq"] == 4
    assert paths(rest) == ["/file3", "/file4"]


def test_truncated_log_goes_on(path: pathlib.Path) -> None:
    """As logrotate's copytruncate does it."""
    with open_log(path) as log:
        fill(log, 3)
        shutil.copy(path, f"{path}.1")
        os.truncate(path, 0)
        fill(log, 2, 3)
    found = events(path)
    assert paths(found) == [f"/file{n}" for n in range(5)]
    assert "somebody cut the file from" in found[3]["detail"]


def test_file_of_somebody_else_in_its_place_is_left_alone(path: pathlib.Path) -> None:
    with open_log(path) as log:
        fill(log, 2)
        path.rename(f"{path}.1")
        path.write_bytes(b"not a log\n")
        fill(log, 2, 2)  # goes where the log went
        assert "does not end in an event" in str(log.last_error) or "last line" in str(log.last_error)
        assert path.read_bytes() == b"not a log\n"
        path.unlink()
        fill(log, 2, 4)
        assert log.last_error is None
    assert paths(events(path)) == [f"/file{n}" for n in range(6)]


def test_removed_log_whose_place_is_taken_drops_and_says_so(path: pathlib.Path) -> None:
    with open_log(path) as log:
        fill(log, 2)
        path.unlink()
        path.mkdir()
        assert not log.write("mount")
        assert not log.write("mount")
        assert str(path) in str(log.last_error)
        path.rmdir()
        fill(log, 1, 2)
        assert (log.dropped, log.last_error) == (2, None)
    assert [event["event"] for event in events(path)] == ["rotated", "dropped", "write_blocked"]


def test_log_that_was_edited_in_place_of_the_real_one_shows(path: pathlib.Path) -> None:
    """An editor writes a new file and renames it."""
    with open_log(path) as log:
        fill(log, 2)
        edited = path.read_bytes().replace(b"/file0", b"/xile0")
        path.unlink()
        path.write_bytes(edited)
        fill(log, 1, 2)  # its last line is as it was
    with pytest.raises(ChainError, match=r"log: line 1: hash|line 1: hash"):
        verify(path)


def test_log_that_was_rotated_while_nobody_wrote_goes_on(path: pathlib.Path) -> None:
    written_log(path, 3)
    path.rename(f"{path}.1")
    with open_log(path) as log:
        assert (log.seq, log.head) == (3, verify(path).head)
        fill(log, 1, 3)
    found = events(path)
    assert paths(found) == [f"/file{n}" for n in range(4)]
    assert found[3]["detail"] == f"goes on from {path}.1"


def test_torn_tail_of_a_log_that_was_rotated_is_cut_off(path: pathlib.Path) -> None:
    lines = written_log(path, 3)
    pathlib.Path(f"{path}.1").write_bytes(b"".join(lines)[:-10])
    path.unlink()
    with open_log(path) as log:
        fill(log, 1, 3)
    assert "torn_tail_bytes=" in events(path)[2]["detail"]


def test_file_named_like_an_older_one_that_is_no_log_is_left_alone(path: pathlib.Path) -> None:
    pathlib.Path(f"{path}.1").write_bytes(b"notes\n")
    with open_log(path) as log:
        fill(log, 1)
    assert pathlib.Path(f"{path}.1").read_bytes() == b"notes\n"
    assert json.loads(path.read_bytes())["prev"] == GENESIS


# The chain through several files


def test_removed_file_in_the_middle_shows(path: pathlib.Path) -> None:
    with open_log(path, max_file_bytes=1500) as log:
        fill(log, 20)
    pathlib.Path(f"{path}.2").unlink()
    with pytest.raises(ChainError, match=r"log\.1: line 1: prev expected"):
        verify(path)


def test_removed_first_line_of_an_older_file_shows(path: pathlib.Path) -> None:
    with open_log(path, max_file_bytes=1500, kept_files=1) as log:
        fill(log, 20)
    kept = pathlib.Path(f"{path}.1")
    kept.write_bytes(b"".join(kept.read_bytes().splitlines(keepends=True)[1:]))
    with pytest.raises(ChainError, match=r"log\.1: line 1: prev expected"):
        verify(path)


def test_one_file_alone_given_the_head_of_the_one_before(path: pathlib.Path) -> None:
    with open_log(path, max_file_bytes=1500) as log:
        fill(log, 10)
    with opened_log(f"{path}.1", alone=True) as ((_, file),):
        before = verify_files([("", read_lines(file))], after=verify(pathlib.Path(f"{path}.2")).head)
    with opened_log(str(path), alone=True) as ((_, file),):
        assert verify_files([("", read_lines(file))], after=before.head).head == log.head


def test_files_of_a_log_and_no_others(path: pathlib.Path) -> None:
    for name in ("log", "log.1", "log.10", "log.2", "log.02", "log.gz", "log.1.gz", "log.0", "log.next", "xlog.1"):
        (path.parent / name).touch()
    (path.parent / "log.3").mkdir()
    found = [os.path.basename(name) for name in log_files(os.fsencode(path))]
    assert found == [b"log.10", b"log.3", b"log.2", b"log.1", b"log"]
    with opened_log(str(path)) as files:
        assert [name for name, _ in files] == [f"{path}.10", f"{path}.2", f"{path}.1", str(path)]
    (path.parent / "log").unlink()
    with pytest.raises(InputError, match="No such file"), opened_log(str(path)):
        pass


def test_shifting_stops_at_a_gap(path: pathlib.Path) -> None:
    for number in (1, 2, 4, 5):
        pathlib.Path(f"{path}.{number}").write_text(str(number))
    raw = os.fsencode(path)
    assert shift(raw, 5) is None
    assert [int(pathlib.Path(os.fsdecode(older(raw, n))).read_text()) for n in (2, 3, 4, 5)] == [1, 2, 4, 5]
    pathlib.Path(f"{path}.1").write_text("0")
    assert shift(raw, 5) == older(raw, 5)
    assert names(path) == ["log.2", "log.3", "log.4", "log.5"]
