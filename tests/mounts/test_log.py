# SPDX-License-Identifier: Apache-2.0
"""The audit log of a real mount, and what becomes of its file: reads and refusals go on, and losses are told."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounts.harness import ROFS, Mounted, chain_is_intact, count_of, kill, mounted, rofs, stopped, wait_until


def _attempt(mount: Mounted, name: str) -> None:
    with pytest.raises(OSError, match="Read-only"):
        (mount.directory / name).mkdir()


@contextmanager
def _ext4(place: Path) -> Iterator[Path]:
    """A filesystem that can be made to fail as after an I/O error: its mount becomes read-only under its users."""
    if shutil.which("mkfs.ext4") is None:
        pytest.skip("mkfs.ext4 is missing")
    (place / "disk").mkdir()
    with (place / "ext4").open("wb") as file:
        file.truncate(16 << 20)
    subprocess.run(["mkfs.ext4", "-q", place / "ext4"], check=True)
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", place / "ext4", place / "disk"], check=True)
    try:
        yield place / "disk"
    finally:
        subprocess.run(["umount", place / "disk"], check=True)


def test_log_on_a_filesystem_that_becomes_read_only(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with _ext4(tmp_path) as disk, mounted(small_image, trust, tmp_path / "p", "--audit-log", disk / "log") as mount:
        _attempt(mount, "before")
        before = mount.wait_for_status(lambda status: status["blocked_writes"] == 1)
        subprocess.run(["mount", "-o", "remount,abort", disk], check=False, capture_output=True)
        for number in range(5):
            _attempt(mount, f"new-{number}")
        assert (mount.directory / "plain").read_bytes()
        after = mount.wait_for_status(lambda status: status["dropped"] == 5)
        assert after["audit_error"]
        assert after["audit_head"] == before["audit_head"]
        assert rofs("status", mount.directory, "--check", check=False).returncode == 1


def test_log_whose_directory_is_removed_begins_anew(small_image: Path, trust: Path, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "log"
    with mounted(small_image, trust, tmp_path / "p", "--audit-log", log) as mount:
        shutil.rmtree(tmp_path / "logs")
        _attempt(mount, "new")
        wait_until(lambda: log.exists() and count_of(log, "write_blocked") == 1)
        assert mount.status()["dropped"] == 0
        assert mount.status()["audit_error"] is None
        assert chain_is_intact(log, "--head", mount.status()["audit_head"])
    assert b"was removed; it had events up to 2" in log.read_bytes()


def test_log_that_is_renamed_goes_on(small_image: Path, trust: Path, tmp_path: Path) -> None:
    """As logrotate does it, with and without a new file."""
    with mounted(small_image, trust, tmp_path) as mount:
        mount.log.rename(f"{mount.log}.1")
        _attempt(mount, "a")
        wait_until(lambda: mount.log.exists() and count_of(mount.log, "write_blocked") == 1)
        Path(f"{mount.log}.1").rename(f"{mount.log}.2")
        mount.log.rename(f"{mount.log}.1")
        mount.log.touch(mode=0o600)
        _attempt(mount, "b")
        wait_until(lambda: count_of(mount.log, "write_blocked") == 1)
        assert chain_is_intact(mount.log, "--head", mount.status()["audit_head"])
    assert count_of(Path(f"{mount.log}.1"), "rotated") == 2


def test_log_that_was_rotated_between_two_mounts_goes_on(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        pass
    mount.log.rename(f"{mount.log}.1")
    with mounted(small_image, trust, tmp_path) as mount:
        assert chain_is_intact(mount.log, "--head", mount.status()["audit_head"])
    (begins,) = mount.events("rotated")
    assert (begins["status"], begins["detail"]) == ("begins", f"goes on from {mount.log}.1")


def test_log_that_was_renamed_while_there_was_no_supervisor(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        status = mount.status()
        with stopped(status["keeper"]):
            kill(status["supervisor"])
            mount.log.rename(f"{mount.log}.1")
        after = mount.wait_for_status(lambda after: after["supervisor"] != status["supervisor"])
        _attempt(mount, "new")
        wait_until(lambda: mount.log.exists() and count_of(mount.log, "write_blocked") == 1)
        assert after["keeper"] == status["keeper"]
        assert chain_is_intact(mount.log, "--head", mount.status()["audit_head"])


def test_follow_shows_attempts_as_they_happen(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        words: list[str | Path] = [ROFS, "audit", "follow", mount.log]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
            assert following.stdout is not None
            assert " trust " in following.stdout.readline()
            assert " mount " in following.stdout.readline()
            _attempt(mount, "new")
            assert "write_blocked mkdir /new by " in following.stdout.readline()
            following.send_signal(signal.SIGINT)
            assert following.communicate() == ("", "")
        assert following.returncode == 0


def test_monitoring_of_a_mount(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        assert rofs("status", mount.directory, "--check").stdout.startswith(f"ROFS OK - {mount.directory}: ")
        _attempt(mount, "new")
        mount.wait_for_status(lambda status: status["blocked_writes"] == 1)
        assert (
            f'rofs_blocked_writes_total{{mountpoint="{mount.directory}"}} 1\n'
            in rofs("status", mount.directory, "--metrics").stdout
        )
    done = rofs("status", mount.directory, "--check", check=False)
    assert (done.returncode, done.stdout) == (
        1,
        f"ROFS CRITICAL - {mount.directory} is not a rofs mount of this user\n",
    )
