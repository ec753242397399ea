# SPDX-License-Identifier: Apache-2.0
"""The writer: the chain goes on whatever happens to the file, and nothing is lost silently."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import stat
import threading
import time
from typing import Any

import pytest

from rofs import durable
from rofs.audit.chain import read_lines, verify_chain
from rofs.audit.event import GENESIS, MAX_LINE_BYTES, escape_path, unescape_path
from rofs.errors import ChainError, HostError

from .doubles import IMAGE, FullDisk, open_log, written_log


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "log.jsonl"


def events(path: pathlib.Path) -> list[dict[str, Any]]:
    """All events; the chain is checked on the way."""
    with path.open("rb") as file:
        verify_chain(read_lines(file))
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_event_has_the_keys_of_every_event(path: pathlib.Path) -> None:
    with open_log(path) as log:
        assert (log.seq, log.head) == (0, GENESIS)
        assert log.write("mount", detail=None)
        assert log.seq == 1
        head = log.head
    (event,) = events(path)
    assert event == {
        "v": 1,
        "seq": 1,
        "time": "2023-11-14T22:13:21.000000000Z",
        "boot_id": "boot",
        "mount": "/mnt",
        "image": IMAGE,
        "event": "mount",
        "prev": GENESIS,
        "hash": head,
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_chain_goes_on_in_an_existing_log(path: pathlib.Path) -> None:
    written_log(path, 3)
    with open_log(path) as log:
        assert log.seq == 3
        log.write("mount")
        log.sync()
    assert [event["seq"] for event in events(path)] == [1, 2, 3, 4]


def test_name_that_is_not_utf8_comes_back(path: pathlib.Path) -> None:
    name = b"/\xff\\x41\n"
    with open_log(path) as log:
        log.write("write_blocked", op="create", path=escape_path(name))
    (event,) = events(path)
    assert unescape_path(event["path"]) == name


@pytest.mark.parametrize("keep", [1, 2, 40])
@pytest.mark.parametrize("complete", [0, 1, 3])
def test_torn_tail_is_cut_off_and_noted(path: pathlib.Path, complete: int, keep: int) -> None:
    lines = written_log(path, complete + 1)
    path.write_bytes(b"".join(lines[:complete]) + lines[complete][:keep])
    with open_log(path) as log:
        log.write("mount", detail="started")
        log.write("umount")
    *before, mount, umount = events(path)
    assert len(before) == complete
    assert mount["detail"] == f"started; torn_tail_bytes={keep}"
    assert "detail" not in umount


def test_longest_torn_tail_behind_the_longest_line(path: pathlib.Path) -> None:
    with open_log(path) as log:
        log.write("mount", detail="")
        size = len(path.read_bytes())
        assert log.write("mount", detail="x" * (MAX_LINE_BYTES - size - len('"detail":"",')))
    assert path.stat().st_size == size + MAX_LINE_BYTES
    with path.open("ab") as file:
        file.write(bytes(MAX_LINE_BYTES - 1))
    with open_log(path) as log:
        assert log.write("mount")
    assert len(events(path)) == 3


@pytest.mark.parametrize(
    "content",
    [
        b"root:x:0:0\n",
        b"no newline",
        b"\0",
        b"{}\n",
        b'{"seq":1,"v":1}\n',
        b"{" * (2 * MAX_LINE_BYTES),
        b"\n",
        b"\n" + b'{"' * MAX_LINE_BYTES,
        b"x" * (3 * MAX_LINE_BYTES) + b"\n",
    ],
)
def test_file_that_is_no_log_is_left_alone(path: pathlib.Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ChainError, match="move it away"):
        open_log(path)
    assert path.read_bytes() == content
    path.unlink()
    open_log(path).close()


def test_last_line_that_was_edited_is_not_continued(path: pathlib.Path) -> None:
    written_log(path, 2)
    path.write_bytes(path.read_bytes().replace(b"/file1", b"/file2"))
    with pytest.raises(ChainError, match=r"last line: hash .* expected .* edited"):
        open_log(path)


def test_second_writer_is_told_that_the_log_is_in_use(path: pathlib.Path) -> None:
    with open_log(path) as log:
        with pytest.raises(HostError, match="in use by another"):
            open_log(path, lock_seconds=0.05)
        assert log.write("mount")
    open_log(path).close()


@pytest.mark.parametrize("room", [0, 1, 100])
@pytest.mark.parametrize("truncate_fails", [False, True])
def test_full_disk_drops_events_and_says_so(path: pathlib.Path, room: int, truncate_fails: bool) -> None:
    with open_log(path) as log:
        log.write("mount")
        head = log.head
        with durable.using(FullDisk(room, truncate_fails=truncate_fails)):
            assert not log.write("write_blocked", op="open", path="/a")
            assert not log.write("write_blocked", op="open", path="/b")
            error = log.last_error
            assert (log.seq, log.head) == (1, head)
        assert log.write("write_blocked", op="open", path="/c")
        assert log.last_error is None
    _, dropped, last = events(path)
    assert (dropped["event"], dropped["count"]) == ("dropped", 2)
    assert error is not None
    assert error in dropped["detail"]
    assert "log.jsonl" in dropped["detail"]
    assert last["path"] == "/c"


def test_dropped_event_that_stands_for_many_counts_as_many(path: pathlib.Path) -> None:
    with open_log(path) as log:
        with durable.using(FullDisk()):
            assert not log.write("write_blocked", op="open", count=41)
        assert log.dropped == 41


def test_disk_that_fills_again_behind_the_dropped_record(path: pathlib.Path) -> None:
    with open_log(path) as log:
        log.write("mount")
        with durable.using(FullDisk()):
            log.write("write_blocked", op="open", path="/a")
        with durable.using(FullDisk(room=600)):
            assert not log.write("write_blocked", op="open", path="/b" * 300)
        assert log.write("umount")
    assert [(event["event"], event.get("count")) for event in events(path)] == [
        ("mount", None),
        ("dropped", 1),
        ("dropped", 1),
        ("umount", None),
    ]


def test_closing_records_what_was_dropped(path: pathlib.Path) -> None:
    with open_log(path) as log, durable.using(FullDisk()):
        log.write("mount")
    log.close()
    with open_log(path) as log:
        log.write("mount")
        with durable.using(FullDisk()):
            log.write("write_blocked", op="open", path="/a")
    assert [event["event"] for event in events(path)][-1] == "dropped"


def test_event_that_is_too_long_is_dropped(path: pathlib.Path) -> None:
    with open_log(path) as log:
        assert not log.write("corruption", paths=["/x" * 100] * 10_000)
        assert log.write("umount")
    dropped, _ = events(path)
    assert "corruption event has" in dropped["detail"]


def test_unknown_names_are_misuse(path: pathlib.Path) -> None:
    with open_log(path) as log:
        with pytest.raises(ValueError, match="unknown event"):
            log.write("party")
        with pytest.raises(ValueError, match="unknown operation"):
            log.write("write_blocked", op="dance")
    with pytest.raises(ValueError, match="closed"):
        log.write("mount")
    assert path.read_bytes() == b""


# Events that were lost on their way


def test_lost_events_are_recorded_at_once(path: pathlib.Path) -> None:
    with open_log(path) as log:
        assert log.drop(500, "nobody took them")
        assert log.drop(0, "nothing happened")
        assert (log.dropped, log.last_error) == (500, None)
    (dropped,) = events(path)
    assert (dropped["event"], dropped["count"], dropped["detail"]) == ("dropped", 500, "nobody took them")


def test_lost_events_are_not_lost_again_on_a_full_disk(path: pathlib.Path) -> None:
    with open_log(path) as log:
        with durable.using(FullDisk()):
            assert not log.drop(500, "nobody took them")
            assert not log.write("write_blocked", op="open", path="/a")
            assert not log.drop(7, "nobody took them")
            error = log.last_error
            assert log.dropped == 508
        assert log.write("umount")
        assert (log.dropped, log.last_error) == (508, None)
    dropped, _ = events(path)
    assert dropped["count"] == 508
    assert dropped["detail"] == f"507: nobody took them; 1: {error}"


def test_reasons_are_bounded_and_the_count_is_not(path: pathlib.Path) -> None:
    with open_log(path) as log:
        with durable.using(FullDisk()):
            for number in range(1000):
                log.drop(1, f"reason {number}")
        log.write("umount")
    dropped, _ = events(path)
    assert dropped["count"] == 1000
    assert dropped["detail"].endswith("992: other reasons")
    assert len(dropped["detail"]) < 500


def test_count_beyond_what_json_holds_is_still_a_count(path: pathlib.Path) -> None:
    with open_log(path) as log:
        log.drop(2**64, "so it says")
    assert events(path)[0]["count"] == 2**53 - 1


def test_only_drop_says_dropped(path: pathlib.Path) -> None:
    with open_log(path) as log:
        with pytest.raises(ValueError, match="unknown event 'dropped'"):
            log.write("dropped", count=500)
        with pytest.raises(ValueError, match="cannot drop -1"):
            log.drop(-1, "")
    with pytest.raises(ValueError, match="closed"):
        log.drop(1, "")


# A medium that fails


class BrokenMedium(durable.Calls):
    def fsync(self, fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_failed_sync_is_remembered_until_one_works(path: pathlib.Path) -> None:
    with open_log(path) as log:
        log.write("mount")
        with durable.using(BrokenMedium()):
            assert not log.sync()
        assert log.write("write_blocked", op="open", path="/a")
        assert "cannot sync" in str(log.last_error)
        with durable.using(FullDisk()):
            log.write("write_blocked", op="open", path="/b")
            assert "cannot write" in str(log.last_error)
        log.write("write_blocked", op="open", path="/c")
        assert "cannot sync" in str(log.last_error)
        assert log.sync()
        assert log.last_error is None


def test_failed_syncs_are_recorded_once_until_one_works(path: pathlib.Path) -> None:
    with open_log(path) as log:
        for _ in range(2):
            log.write("mount")
            log.write("mount")
            with durable.using(BrokenMedium()):
                assert not log.sync()
                assert not log.sync()
            assert log.sync()
    errors = [event for event in events(path) if event["event"] == "io_error"]
    assert [event["seq"] for event in errors] == [3, 6]
    assert "log.jsonl: Input/output error; events 1 to 2 may not survive" in errors[0]["detail"]
    assert "events 4 to 5 may not survive" in errors[1]["detail"]


def test_failed_sync_with_nothing_to_lose_names_no_events(path: pathlib.Path) -> None:
    with open_log(path) as log, durable.using(BrokenMedium()):
        assert not log.sync()
    (error,) = events(path)
    assert error["detail"].endswith("Input/output error")


def test_failed_sync_that_cannot_be_recorded_is_a_lost_event(path: pathlib.Path) -> None:
    class Broken(FullDisk, BrokenMedium):
        pass

    with open_log(path) as log:
        with durable.using(Broken()):
            assert not log.sync()
        assert log.dropped == 1
        log.write("mount")
    assert [event["event"] for event in events(path)] == ["dropped", "mount"]


def test_event_that_is_written_during_a_sync_waits_for_the_next(path: pathlib.Path) -> None:
    with open_log(path) as log:

        class Slow(durable.Calls):
            def fsync(self, fd: int) -> None:
                log.write("mount")

        with durable.using(Slow()):
            assert log.sync()
        with durable.using(BrokenMedium()):
            assert not log.sync()
    assert "events 1 to 1 may" in events(path)[1]["detail"]


def test_failures_of_another_thread_do_not_break_the_chain(path: pathlib.Path) -> None:
    def sync() -> None:
        while not done.is_set():
            with durable.using(BrokenMedium()):
                log.sync()
            log.sync()

    done = threading.Event()
    with open_log(path) as log:
        thread = threading.Thread(target=sync)
        thread.start()
        for number in range(300):
            assert log.write("write_blocked", op="open", path=f"/{number}")
            time.sleep(0.0001)
        done.set()
        thread.join()
    names = [event["event"] for event in events(path)]
    assert names.count("write_blocked") == 300
    assert "io_error" in names


def test_closed_log_is_not_synced(path: pathlib.Path) -> None:
    log = open_log(path)
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.sync()
