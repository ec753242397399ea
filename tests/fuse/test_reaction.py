# SPDX-License-Identifier: Apache-2.0
"""A restart happens once for each image, and never when that could not be remembered. No test asks PID 1."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rofs import durable
from rofs.errors import HostError
from rofs.fuse import mountinfo, reaction
from rofs.fuse.reaction import REFUSED, STARTED, Outcome

ROOT_HASH = "ab" * 32


class Init:
    """PID 1, which counts how often it was asked, and may refuse."""

    def __init__(self, error: OSError | None = None) -> None:
        self.asked = 0
        self.seen: list[str] = []
        self._error = error

    def restart(self, place: Path, root_hash: str = ROOT_HASH) -> Outcome:
        def act() -> None:
            self.asked += 1
            self.seen = os.listdir(place)
            if self._error is not None:
                raise self._error

        return reaction.restart_once(root_hash, directory=str(place), restart=act)


def test_second_restart_for_the_same_image_is_refused(tmp_path: Path) -> None:
    init = Init()
    assert init.restart(tmp_path / "state").status == STARTED
    again = init.restart(tmp_path / "state")
    assert (again.status, init.asked) == (REFUSED, 1)
    assert f"{tmp_path}/state/restarted-{ROOT_HASH}" in again.detail


def test_another_image_may_restart_it_again(tmp_path: Path) -> None:
    init = Init()
    init.restart(tmp_path)
    assert init.restart(tmp_path, "cd" * 32).status == STARTED
    assert init.asked == 2


def test_marker_is_there_before_the_restart(tmp_path: Path) -> None:
    init = Init()
    init.restart(tmp_path)
    assert init.seen == [f"restarted-{ROOT_HASH}"]


class Refusing(durable.Calls):
    def fsync(self, fd: int) -> None:
        raise OSError(5, "no")


def test_no_restart_when_the_marker_is_not_durable(tmp_path: Path) -> None:
    init = Init()
    with durable.using(Refusing()):
        outcome = init.restart(tmp_path)
    assert (outcome.status, init.asked) == (REFUSED, 0)
    assert "Input/output error" in outcome.detail


def test_no_restart_when_the_marker_has_no_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    init = Init()
    assert init.restart(tmp_path / "file" / "state").status == REFUSED
    assert init.asked == 0


def test_init_that_refuses_leaves_no_marker(tmp_path: Path) -> None:
    outcome = Init(PermissionError(1, "Operation not permitted")).restart(tmp_path)
    assert outcome == Outcome(REFUSED, "PID 1 cannot be asked to restart: Operation not permitted")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("has_systemd", "number"), [(True, signal.SIGRTMIN + 5), (False, signal.SIGINT)])
def test_init_is_asked_in_its_own_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_systemd: bool, number: int
) -> None:
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(reaction, "_SYSTEMD", str(tmp_path if has_systemd else tmp_path / "missing"))
    reaction.ask_init()
    assert sent == [(1, number)]


# Before it is needed


def test_directory_for_the_marker_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reaction, "_FORGETFUL", frozenset())  # /tmp may be one
    reaction.check(str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir()


def test_marker_in_memory_would_be_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountinfo, "fstype_of", lambda _: b"tmpfs")
    with pytest.raises(HostError, match=r"in memory.*for ever"):
        reaction.check(str(tmp_path))


def test_marker_that_cannot_be_made_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HostError, match="cannot make"):
        reaction.check(str(tmp_path / "file" / "state"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(HostError, match="cannot write to"):
        reaction.check(str(tmp_path))
