# SPDX-License-Identifier: Apache-2.0
"""`rofs audit`: a log that was touched is found out, and the line is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.audit.doubles import written_log

from .conftest import Run


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    written_log(path, 5)
    return path


def head_of(path: Path) -> str:
    head = json.loads(path.read_bytes().splitlines()[-1])["hash"]
    assert isinstance(head, str)
    return head


def test_show(run: Run, log: Path) -> None:
    lines = run("audit", "show", log).succeeded().splitlines()
    assert len(lines) == 5
    assert lines[3].endswith("write_blocked unlink /file3 errno=EROFS")


def test_show_json_is_what_was_recorded(run: Run, log: Path) -> None:
    out = run("audit", "show", log, "--json").succeeded()
    assert [json.loads(line) for line in out.splitlines()] == [
        json.loads(line) for line in log.read_bytes().splitlines()
    ]


def test_verify(run: Run, log: Path) -> None:
    assert run("audit", "verify", log).succeeded() == f"intact: 5 events, head {head_of(log)}\n"
    assert run("audit", "verify", log, "--json").json == {"events": 5, "head": head_of(log), "intact": True}
    run("audit", "verify", log, "--head", head_of(log)).succeeded()


def test_edited_byte(run: Run, log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b"/file2", b"/file9"))
    message = run("audit", "verify", log).failed(4)
    assert message.startswith(f"{log}: line 3: ")
    assert message.endswith("it was edited")


def test_removed_line(run: Run, log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:1] + lines[2:]))
    assert f"{log}: line 2: prev expected" in run("audit", "verify", log).failed(4)


def test_cut_tail_shows_against_a_head_that_was_kept(run: Run, log: Path) -> None:
    head = head_of(log)
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:3]))
    run("audit", "verify", log).succeeded()
    message = run("audit", "verify", log, "--head", head).failed(4)
    assert head in message
    assert "the log ends after line 3" in message


@pytest.mark.parametrize("what", ["show", "verify"])
def test_torn_line(run: Run, log: Path, what: str) -> None:
    log.write_bytes(log.read_bytes()[:-10])
    done = run("audit", what, log)
    assert done.code == 4
    assert f"{log}: line 5: expected a newline" in done.err
    assert len(done.err.splitlines()) == 1
    assert len(done.out.splitlines()) == (4 if what == "show" else 0)


@pytest.mark.parametrize("what", ["show", "verify"])
def test_what_is_no_log(run: Run, tmp_path: Path, what: str) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"some text\n\xff\n")
    assert f"{text}: line 1: " in run("audit", what, text).failed(4)
    assert run("audit", what, tmp_path / "none").failed(1) == (
        f"cannot read audit log {tmp_path}/none: No such file or directory"
    )
    assert "not a regular file" in run("audit", what, tmp_path).failed(1)
    assert "none\\xff: No such" in run("audit", what, os.fsencode(tmp_path) + b"/none\xff").failed(1)


@pytest.mark.parametrize("head", ["", "xyz", "0" * 63, "g" * 64])
def test_head_that_is_none(run: Run, log: Path, head: str) -> None:
    assert "a head is 64 hex digits" in run("audit", "verify", log, "--head", head).failed(2)


def test_hostile_log_is_safe_on_a_terminal(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "log"
    event = {"event": "mount", "path": "/\x1b[31m\n\u202e\ud800", "comm": "\x9b"}
    log.write_text(json.dumps(event) + "\n")
    out = run("audit", "show", log).succeeded()
    assert len(out.splitlines()) == 1
    assert out.strip().isprintable()
    assert run("audit", "show", log, "--json").json == event


def test_debug_may_stand_at_the_end(run: Run, tmp_path: Path) -> None:
    done = run("audit", "show", tmp_path / "none", "--debug")
    assert done.code == 1
    assert "Traceback" in done.err
