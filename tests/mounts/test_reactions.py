# SPDX-License-Identifier: Apache-2.0
"""What follows corruption and events on real mounts: hooks, `--on-corruption`; and `umount --lazy`.

Nothing here asks PID 1 for anything: the program is started with another way to restart the machine.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from rofs.fuse import kernel
from tests.mounts.harness import (
    ROFS,
    children_of,
    drop_pages,
    is_alive,
    is_mount,
    kill,
    mounted,
    read_events,
    rofs,
    stopped,
    wait_until,
)


@pytest.fixture
def corrupt(small_image: Path, tmp_path: Path) -> Path:
    """An image where a block of `large` is bad."""
    image = Path(shutil.copy(small_image, tmp_path / "corrupt.raw"))
    data = image.read_bytes()
    with image.open("r+b") as file:
        file.seek(data.index(b"large 00000000\n") + 5)
        file.write(b"X")
    return image


def read_error(path: Path) -> int | None:
    try:
        path.read_bytes()
    except OSError as error:
        return error.errno
    return None


def program(tmp_path: Path) -> list[str | Path]:
    """rofs, but what would restart the machine leaves a file that says how often."""
    script = tmp_path / "program.py"
    script.write_text(f"""
import sys
from rofs.cli.main import main
from rofs.fuse import reaction
reaction.STATE_DIRECTORY = {str(tmp_path / "state")!r}
reaction._FORGETFUL = frozenset()
reaction.ask_init = lambda: open({str(tmp_path / "restarts")!r}, "a").write("restart\\n")
sys.exit(main())
""")
    return [sys.executable, script]


# --on-corruption


def test_corruption_is_eio_and_nothing_else_by_default(corrupt: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(corrupt, trust, tmp_path) as mount:
        assert read_error(mount.directory / "large") == errno.EIO
        mount.wait_for("corruption")
        assert mount.status()["on_corruption"] == "eio"
        assert (mount.directory / "plain").read_bytes()


def test_stop_ends_the_mount_in_the_foreground_with_the_reason(corrupt: Path, trust: Path, tmp_path: Path) -> None:
    directory, log = tmp_path / "mnt", tmp_path / "log"
    directory.mkdir()
    words: list[str | Path] = [ROFS, "mount", "-f", corrupt, directory, "--trust", trust, "--audit-log", log]
    with subprocess.Popen([*words, "--on-corruption", "stop"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "mounted on" in process.stderr.readline()
        assert read_error(directory / "large") == errno.EIO
        assert process.wait(20) == 4
        said = process.stderr.read()
        assert said.startswith("rofs: error: ")
        assert "a block is corrupt, and --on-corruption stop has ended the mount" in said
    assert not is_mount(directory)
    events = read_events(log)
    assert events[-1]["event"] == "umount"
    assert events[-1]["detail"] == "a block is corrupt, and --on-corruption stop has ended the mount"
    assert "/large" in [event.get("path") for event in events if event["event"] == "corruption"]
    assert rofs("audit", "verify", log).returncode == 0


def test_stop_does_not_wait_for_open_files(corrupt: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(corrupt, trust, tmp_path, "--on-corruption", "stop") as mount:
        keeper = mount.status()["keeper"]
        with (mount.directory / "plain").open("rb"):
            assert read_error(mount.directory / "large") == errno.EIO
            wait_until(lambda: not is_alive(keeper))
            assert not is_mount(mount.directory)
        assert mount.events()[-1]["event"] == "umount"


def test_stop_belongs_to_the_mount_after_a_takeover(corrupt: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(corrupt, trust, tmp_path, "--on-corruption", "stop") as mount:
        keeper = mount.status()["keeper"]
        rofs("mount", corrupt, mount.directory, "--trust", trust, "--takeover")
        assert mount.status()["on_corruption"] == "stop"
        assert read_error(mount.directory / "large") == errno.EIO
        wait_until(lambda: not is_alive(keeper))
        assert not is_mount(mount.directory)


def test_stop_is_not_forgotten_when_the_supervisor_dies(corrupt: Path, trust: Path, tmp_path: Path) -> None:
    """The report comes while there is none; the next one takes it."""
    with mounted(corrupt, trust, tmp_path, "--on-corruption", "stop") as mount:
        status = mount.status()
        with stopped(status["supervisor"]):
            assert read_error(mount.directory / "large") == errno.EIO
            kill(status["supervisor"])
        with suppress(OSError):  # the one report may have been lost with it
            (mount.directory / "large").read_bytes()
        wait_until(lambda: not is_alive(status["keeper"]))


def test_restart_is_asked_for_once_for_an_image(corrupt: Path, trust: Path, tmp_path: Path) -> None:
    for place in ("first", "second"):
        with mounted(
            corrupt, trust, tmp_path / place, "--on-corruption", "restart", program=program(tmp_path)
        ) as mount:
            root_hash = mount.status()["root_hash"]
            assert read_error(mount.directory / "large") == errno.EIO
            *_, event = mount.wait_for("mount", 2)
            assert (mount.directory / "plain").read_bytes()  # it goes on until the machine does not
            assert event["status"] == {"first": "restart", "second": "no-restart"}[place]
            assert f"restarted-{root_hash}" in event["detail"]
    assert (tmp_path / "restarts").read_text() == "restart\n"
    assert os.listdir(tmp_path / "state") == [f"restarted-{root_hash}"]


# Hooks


def test_hooks_are_told_of_what_the_log_says(corrupt: Path, trust: Path, tmp_path: Path) -> None:
    hooks = ("--event-hook", f"cat >> {tmp_path}/events", "--corruption-hook", f"cat >> {tmp_path}/corruption")
    with mounted(corrupt, trust, tmp_path, *hooks) as mount:
        assert read_error(mount.directory / "large") == errno.EIO
        wait_until(lambda: "corruption" in _told(tmp_path / "corruption"))
        wait_until(lambda: len(_told(tmp_path / "events")) >= 3)
    assert set(_told(tmp_path / "corruption")) == {"corruption"}
    assert _told(tmp_path / "events")[:3] == ["trust", "mount", "corruption"]


def _told(path: Path) -> list[str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["event"] for line in lines]


def test_hook_belongs_to_the_mount_after_a_takeover(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path, "--event-hook", f"cat >> {tmp_path}/events") as mount:
        rofs("mount", small_image, mount.directory, "--trust", trust, "--takeover")
        with pytest.raises(OSError, match="Read-only"):
            (mount.directory / "new").mkdir()
        wait_until(lambda: "write_blocked" in _told(tmp_path / "events"))


def test_last_event_is_told_too(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path, "--event-hook", f"cat >> {tmp_path}/events") as mount:
        wait_until(lambda: _told(tmp_path / "events") == ["trust", "mount"])
        assert mount.answers()
    assert _told(tmp_path / "events") == ["trust", "mount", "umount"]


def test_hook_that_fails_is_recorded_and_harms_nothing(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path, "--event-hook", "exit 3") as mount:
        assert mount.wait_for("worker_exit")[0]["detail"] == "event-hook: exit status 3"
        assert (mount.directory / "plain").read_bytes()


def test_hook_has_no_descriptor_of_the_mount(small_image: Path, trust: Path, tmp_path: Path) -> None:
    """Neither the workers' lines nor the memory that all share."""
    with mounted(small_image, trust, tmp_path, "--event-hook", f"ls -l /proc/self/fd >> {tmp_path}/fds") as mount:
        with pytest.raises(OSError, match="Read-only"):
            (mount.directory / "new").mkdir()  # by now the supervisor has all it was sent
        wait_until(lambda: (tmp_path / "fds").exists() and (tmp_path / "fds").read_text().count("total") >= 3)
    fds = (tmp_path / "fds").read_text()
    assert "socket:" not in fds
    assert "rofs-shared" not in fds


# umount --lazy


def test_lazy_unmount_does_not_wait_for_open_files(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        keeper = mount.status()["keeper"]
        with (mount.directory / "large").open("rb") as file:
            assert rofs("umount", mount.directory, check=False).returncode == 5
            said = rofs("umount", "--lazy", mount.directory).stderr
            assert f"(keeper {keeper}) end when the last user" in said
            assert not is_mount(mount.directory)
            assert is_alive(keeper)
            assert len(file.read()) == (1500 * len("large 00000000\n"))
        wait_until(lambda: not is_alive(keeper))
        assert mount.events()[-1]["event"] == "umount"


def test_lazy_unmount_of_an_unused_mount_leaves_nothing(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        keeper = mount.status()["keeper"]
        assert rofs("umount", "--lazy", mount.directory).stderr == ""
        assert not is_alive(keeper)


def test_lazy_unmount_of_a_dead_mount(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        keeper = mount.status()["keeper"]
        kill(*children_of(keeper), keeper)
        assert rofs("umount", mount.directory, check=False).returncode == 1
        assert is_mount(mount.directory)
        rofs("umount", "--lazy", mount.directory)
        assert not is_mount(mount.directory)
        assert rofs("umount", "--lazy", mount.directory, check=False).returncode == 1


def test_lazy_unmount_while_no_supervisor_answers(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        status = mount.status()
        with stopped(status["supervisor"]):
            rofs("umount", "--lazy", mount.directory)
            assert not is_mount(mount.directory)
        wait_until(lambda: not is_alive(status["keeper"]))
        assert mount.events()[-1]["event"] == "umount"


def test_lazy_unmount_leaves_what_is_not_ours(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path], check=True)
    try:
        assert rofs("umount", "--lazy", tmp_path, check=False).returncode == 1
        assert is_mount(tmp_path)
    finally:
        kernel.unmount(os.fsencode(tmp_path))


# status


def test_status_says_how_many_workers_there_are_to_be(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path, "--workers", "3") as mount:
        worker = mount.worker_pids()[0]
        assert mount.status()["workers_wanted"] == 3
        os.kill(worker, signal.SIGKILL)
        assert mount.wait_for_status(lambda status: worker not in [each["pid"] for each in status["workers"]])
        rofs("mount", small_image, mount.directory, "--trust", trust, "--takeover", "--workers", "2")
        mount.wait_for_status(lambda status: status["workers_wanted"] == 2)


def test_status_counts_what_was_found_in_the_cache(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path, "--workers", "1") as mount:
        before = mount.status()["cache_hits"]
        drop_pages(mount.directory / "large")
        assert (mount.directory / "large").read_bytes()
        assert mount.status()["cache_hits"] > before
        assert "rofs_cache_hits_total{" in rofs("status", "--metrics", mount.directory).stdout
