# SPDX-License-Identifier: Apache-2.0
"""The program in an odd environment: closed descriptors, blocked signals, limits, files of the wrong kind."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import SigningKeys
from tests.mounts.harness import ROFS, is_mount, mounted, rofs


def _keys(keys: SigningKeys) -> tuple[str | Path, ...]:
    return ("--key", keys.key_path, "--cert", keys.certificate_path)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors(small_image: Path, trust: Path, tmp_path: Path, closed: str) -> None:
    (tmp_path / "mnt").mkdir()
    mount = f"{ROFS} mount {small_image} {tmp_path}/mnt --trust {trust} --audit-log {tmp_path}/log {closed}"
    for command, code in (
        (f"{ROFS} verify {small_image} --trust {trust} {closed}", 0),
        (mount, 0),
        (f"cmp {tmp_path}/mnt/plain {tmp_path}/mnt/directory/hard-link", 0),
        (f"{ROFS} umount {tmp_path}/mnt {closed}", 0),
        (f"{ROFS} verify {tmp_path} --trust {trust} {closed}", 1),
    ):
        assert subprocess.run(["bash", "-c", command], check=False).returncode == code, command


def test_blocked_signals_and_ignored_children(small_image: Path, small_tree: Path, trust: Path, tmp_path: Path) -> None:
    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    (tmp_path / "mnt").mkdir()
    words = (ROFS, "mount", small_image, tmp_path / "mnt", "--trust", trust, "--audit-log", tmp_path / "log")
    subprocess.run(words, check=True, preexec_fn=block)
    rofs("umount", tmp_path / "mnt")
    bad = (ROFS, "mount", small_tree / "plain", tmp_path / "mnt", "--trust", trust)
    assert subprocess.run(bad, check=False, preexec_fn=block, capture_output=True).returncode == 4


def test_limits_of_the_shell_do_not_bind_the_mount(small_image: Path, trust: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (10_000, before[1]))  # which is inherited
    mount_then_unmount = mounted(small_image, trust, tmp_path)
    try:
        mount = mount_then_unmount.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, before)
    with contextlib.ExitStack() as stack:
        stack.push(mount_then_unmount)
        for pid in (mount.status()["keeper"], mount.status()["workers"][0]["pid"]):
            (line,) = [x for x in Path(f"/proc/{pid}/limits").read_text().splitlines() if x.startswith("Max cpu time")]
            soft, hard = line.split()[3:5]
            assert soft == hard


def test_a_working_directory_that_was_deleted(small_image: Path, trust: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = f"cd {tmp_path}/gone && rmdir {tmp_path}/gone && {ROFS} mount {small_image} mnt --trust {trust}"
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert done.returncode in {1, 5}
    assert "internal error" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_build_that_is_stopped_leaves_nothing(
    debian_root: Path, signing_keys: SigningKeys, tmp_path: Path, number: signal.Signals
) -> None:
    words = (ROFS, "build", debian_root, "-o", tmp_path / "image.raw", *_keys(signing_keys))
    with subprocess.Popen(words, stderr=subprocess.PIPE) as process:
        while not os.listdir(tmp_path):
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
    assert os.listdir(tmp_path) == []


def test_force_replaces_regular_files_only(small_tree: Path, signing_keys: SigningKeys, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    done = rofs("build", small_tree, "-o", tmp_path / "fifo", "--force", *_keys(signing_keys), check=False)
    assert done.returncode == 1
    assert "not a regular file" in done.stderr
    assert (tmp_path / "fifo").is_fifo()


def test_output_inside_the_source(small_tree: Path, signing_keys: SigningKeys) -> None:
    done = rofs("build", small_tree, "-o", small_tree / "empty" / "i.raw", *_keys(signing_keys), check=False)
    assert done.returncode == 1
    assert "lies inside the source" in done.stderr


@pytest.mark.parametrize("verb", ["show", "verify"])
def test_a_log_that_is_a_fifo_does_not_block(tmp_path: Path, verb: str) -> None:
    os.mkfifo(tmp_path / "log")
    done = rofs("audit", verb, tmp_path / "log", check=False)
    assert done.returncode == 1
    assert "not a regular file" in done.stderr


@pytest.mark.parametrize("log", ["fifo", "/dev/null", ""])
def test_an_audit_log_that_is_no_file(small_image: Path, trust: Path, tmp_path: Path, log: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "mnt").mkdir()
    place = tmp_path / log if log == "fifo" else log
    done = rofs("mount", small_image, tmp_path / "mnt", "--trust", trust, "--audit-log", place, check=False)
    assert done.returncode in {1, 5}
    assert "process died" not in done.stderr
    assert not is_mount(tmp_path / "mnt")


def test_two_mounts_at_once_at_one_place(small_image: Path, trust: Path, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    words = (ROFS, "mount", small_image, tmp_path / "mnt", "--trust", trust, "--audit-log")
    try:
        both = [subprocess.Popen([*words, tmp_path / name], stderr=subprocess.PIPE) for name in ("a", "b")]
        for process in both:
            process.communicate(timeout=60)
        assert sorted(process.returncode for process in both) == [0, 5]
    finally:
        rofs("umount", tmp_path / "mnt")
