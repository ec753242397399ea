# SPDX-License-Identifier: Apache-2.0
"""`rofs audit`: a log that was touched is found out, and the line is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.audit.doubles import open_log, written_log
from tests.audit.test_kernel import RECORDS

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
    assert f"the log ends after {log}: line 3" in message


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


# Logs of several files


@pytest.fixture
def rotated(tmp_path: Path) -> Path:
    """A log in three files."""
    path = tmp_path / "rotated.jsonl"
    with open_log(path) as log:
        for n in range(6):
            if n in {2, 4}:
                log._rotate_at_bytes = 0
            assert log.write("write_blocked", op="unlink", path=f"/file{n}", errno="EROFS", uid=n, comm="rm", pid=n)
    return path


def test_all_files_of_a_log_are_shown_and_verified(run: Run, rotated: Path) -> None:
    shown = run("audit", "show", rotated).succeeded()
    assert [line.split()[3] for line in shown.splitlines() if "/file" in line] == [f"/file{n}" for n in range(6)]
    assert run("audit", "verify", rotated).succeeded() == f"intact: 10 events, head {head_of(rotated)}, in 3 files\n"
    assert run("audit", "verify", rotated, "--json").json == {
        "events": 10,
        "head": head_of(rotated),
        "intact": True,
        "files": 3,
    }


def test_edited_line_of_an_older_file_is_named(run: Run, rotated: Path) -> None:
    older = Path(f"{rotated}.1")
    older.write_bytes(older.read_bytes().replace(b"/file3", b"/file9"))
    assert run("audit", "verify", rotated).failed(4).startswith(f"{older}: line 3: ")


def test_log_whose_oldest_file_is_gone_says_so(run: Run, rotated: Path) -> None:
    before = head_of(Path(f"{rotated}.2"))
    Path(f"{rotated}.2").unlink()
    assert run("audit", "verify", rotated).succeeded().endswith(f", after {before} in a file before\n")
    assert run("audit", "verify", rotated, "--json").json["after"] == before


def test_one_file_alone(run: Run, rotated: Path) -> None:
    before = head_of(Path(f"{rotated}.1"))
    assert "intact: 3 events" in run("audit", "verify", rotated, "--after", before).succeeded()
    assert f"{rotated}: line 1: prev expected {'0' * 64}" in run(
        "audit", "verify", rotated, "--after", "0" * 64
    ).failed(4)
    assert "--after: a head is 64 hex digits" in run("audit", "verify", rotated, "--after", "x").failed(2)


# follow


def _follow(log: Path, *options: str) -> subprocess.Popen[str]:
    words: list[str | Path] = [sys.executable, "-m", "rofs.cli.main", "audit", "follow", log, *options]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_follow_prints_what_comes_and_ends_by_ctrl_c_with_success(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with open_log(log) as writer:
        for n in range(12):
            writer.write("write_blocked", op="unlink", path=f"/{n}", errno="EROFS")
        with _follow(log, "--json") as following:
            assert following.stdout is not None
            paths = [json.loads(following.stdout.readline())["path"] for _ in range(10)]
            assert paths == [f"/{n}" for n in range(2, 12)]
            writer._rotate_at_bytes = 0
            writer.write("mount")
            kinds = [json.loads(following.stdout.readline())["event"] for _ in range(3)]
            assert kinds == ["rotated", "rotated", "mount"]
            following.send_signal(signal.SIGINT)
            assert following.communicate() == ("", "")
            assert following.returncode == 0


def test_follow_ends_at_a_line_that_was_edited(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = written_log(log, 2)
    log.write_bytes(lines[0])
    with _follow(log) as following:
        assert following.stdout is not None
        following.stdout.readline()
        with log.open("ab") as file:
            file.write(lines[1].replace(b"/file1", b"/file2"))
        _, errors = following.communicate(timeout=20)
    assert following.returncode == 4
    assert f"{log}: line 2: hash of its content expected" in errors


def test_follow_of_what_is_not_there(run: Run, tmp_path: Path) -> None:
    assert "No such file" in run("audit", "follow", tmp_path / "none").failed(1)


# report


def test_report(run: Run, rotated: Path) -> None:
    lines = run("audit", "report", rotated, "--top", "2").succeeded().splitlines()
    assert "refused writes: 6" in lines
    assert "not recorded:   0" in lines
    assert lines[lines.index("programs:") + 1] == "  6  rm"
    paths = lines.index("paths:")
    assert lines[paths + 1 : paths + 4] == ["  1  /mnt/file0", "  1  /mnt/file1", "  4  (4 more)"]
    assert lines[lines.index("by hour, UTC:") + 1] == "  2023-11-14T22  6  " + "#" * 40
    assert run("audit", "report", rotated, rotated, "--json").json["attempts"] == 12


def test_report_since(run: Run, rotated: Path) -> None:
    def attempts(since: str) -> int:
        return int(run("audit", "report", rotated, "--since", since, "--json").json["attempts"])

    assert attempts("2023-11-14T22:13:27Z") == 2  # one event a second, with those of the rotations
    assert attempts("2023-11-14") == 6
    assert attempts("1w") == 0
    assert attempts("9999w") == 6
    for wrong in ("yesterday", "1x", "", "99999-01-01"):
        assert "expected how long ago" in run("audit", "report", rotated, "--since", wrong).failed(2)


def test_report_with_records_of_the_kernel(run: Run, rotated: Path, tmp_path: Path) -> None:
    (tmp_path / "kernel").write_text(RECORDS)
    found = run("audit", "report", rotated, "--kernel", tmp_path / "kernel", "--json").json
    assert (found["attempts"], found["kernel"]) == (10, 4)
    assert (
        "10, of which 4 by the kernel" in run("audit", "report", rotated, "--kernel", tmp_path / "kernel").succeeded()
    )
    assert "No such file" in run("audit", "report", rotated, "--kernel", tmp_path / "none").failed(1)


def test_report_on_an_empty_log(run: Run, tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    assert run("audit", "report", tmp_path / "log").succeeded() == "no events\n"
    assert run("audit", "report", tmp_path / "log", "--json").json["events"] == 0


def test_report_on_a_hostile_log_is_safe_on_a_terminal(run: Run, tmp_path: Path) -> None:
    event = {"event": "write_blocked", "path": "/\x1b[31m\n\u202e", "comm": "\x9b", "time": "\x1b", "op": "\r"}
    tamper = {"event": "tamper", "path": "/\x1b", "detail": "\n", "status": "\x1b"}
    (tmp_path / "log").write_text(json.dumps(event) + "\n" + json.dumps(tamper) + "\n")
    out = run("audit", "report", tmp_path / "log").succeeded()
    assert all(line.isprintable() for line in out.split("\n"))


def test_report_on_a_torn_log_names_the_file(run: Run, log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-10])
    assert f"{log}: line 5: expected a newline" in run("audit", "report", log).failed(4)


# rules


def test_rules(run: Run, tmp_path: Path) -> None:
    out = run("audit", "rules", tmp_path).succeeded()
    assert f"-F dir={tmp_path} -F perm=w -F exit=-EROFS -F key=rofs\n" in out
    assert "cannot stand in an audit rule" in run("audit", "rules", tmp_path / "a b").failed(1)
