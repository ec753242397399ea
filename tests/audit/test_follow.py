# SPDX-License-Identifier: Apache-2.0
"""Following a log: across rotations of any kind, nothing twice, nothing missed, and what was edited shows."""

from __future__ import annotations

import os
import pathlib
import shutil

import pytest

from rofs.audit.event import MAX_LINE_BYTES
from rofs.audit.follow import Follower
from rofs.audit.log import AuditLog
from rofs.errors import ChainError, InputError

from .doubles import open_log, written_log


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "log"


def fill(log: AuditLog, *numbers: int) -> None:
    for number in numbers:
        assert log.write("write_blocked", op="unlink", path=f"/{number}", errno="EROFS")


def new(follower: Follower) -> list[int]:
    return [int(event["path"][1:]) for event in follower.new_events() if "path" in event]


def test_new_events_are_told_once(path: pathlib.Path) -> None:
    with open_log(path) as log, Follower(str(path)) as follower:
        assert new(follower) == []
        fill(log, 1, 2)
        assert new(follower) == [1, 2]
        assert new(follower) == []
        fill(log, 3)
        assert new(follower) == [3]
        assert follower.walk.head == log.head


def test_line_that_is_being_written_is_waited_for(path: pathlib.Path) -> None:
    (line,) = written_log(path, 1)
    path.write_bytes(line[:20])
    with Follower(str(path)) as follower:
        assert list(follower.new_events()) == []
        with path.open("ab") as file:
            file.write(line[20:])
        assert len(list(follower.new_events())) == 1


@pytest.mark.parametrize("rotations", [1, 2, 4])
def test_rotations_between_two_looks(path: pathlib.Path, rotations: int) -> None:
    with open_log(path) as log, Follower(str(path)) as follower:
        fill(log, 1)
        assert new(follower) == [1]
        for number in range(2, 2 + rotations):
            log._rotate_at_bytes = 0
            fill(log, number)
        assert new(follower) == list(range(2, 2 + rotations))
        fill(log, 99)
        assert new(follower) == [99]


def test_file_that_was_rotated_away_altogether(path: pathlib.Path) -> None:
    """Its number is gone, and so are events: that shows."""
    with open_log(path, kept_files=1) as log, Follower(str(path)) as follower:
        fill(log, 1)
        assert new(follower) == [1]
        for number in range(2, 6):
            log._rotate_at_bytes = 0
            fill(log, number)
        with pytest.raises(ChainError, match=r"log: line 1: prev expected"):
            new(follower)


def test_log_that_others_rename_truncate_or_remove(path: pathlib.Path) -> None:
    with open_log(path) as log, Follower(str(path)) as follower:
        fill(log, 1)
        path.rename(f"{path}-old")
        assert new(follower) == [1]  # and the name is nobody's
        fill(log, 2)
        assert new(follower) == [2]
        shutil.copy(path, f"{path}.1")
        os.truncate(path, 0)
        fill(log, 3)
        assert new(follower) == [3]
        path.unlink()
        assert new(follower) == []
        fill(log, 4)
        assert new(follower) == [4]


def test_edited_line_shows(path: pathlib.Path) -> None:
    lines = written_log(path, 3)
    path.write_bytes(lines[0])
    with Follower(str(path)) as follower:
        assert len(list(follower.new_events())) == 1
        with path.open("ab") as file:
            file.write(lines[2])
        with pytest.raises(ChainError, match=r"log: line 2: prev expected"):
            list(follower.new_events())


def test_torn_line_at_the_end_of_a_rotated_file_shows(path: pathlib.Path) -> None:
    lines = written_log(path, 3)
    path.write_bytes(lines[0] + lines[1][:10])
    with Follower(str(path)) as follower:
        list(follower.new_events())
        path.rename(f"{path}.1")
        path.write_bytes(lines[1])
        with pytest.raises(ChainError, match=r"log: line 2: expected a newline"):
            list(follower.new_events())


def test_endless_line_is_not_kept(path: pathlib.Path) -> None:
    path.write_bytes(b"x" * (MAX_LINE_BYTES + 10))
    with Follower(str(path)) as follower, pytest.raises(ChainError, match="expected at most"):
        list(follower.new_events())


def test_no_log_is_told_at_once(path: pathlib.Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Follower(str(path))
