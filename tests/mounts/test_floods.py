# SPDX-License-Identifier: Apache-2.0
"""Floods of attempts on a real mount: each is accounted for, the log stays small, and reads go on."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SigningKeys
from tests.mounts.harness import Mounted, chain_is_intact, count_of, mounted, rofs

_MAX_LOG_BYTES = 1_000_000
_BLOCKS = 4096
_PYTHON = (sys.executable, "-I", "-S", "-c")  # without what would be read of the site, it is small and fast

# Each says how many attempts it has made when its time is up, or when its standard input ends.
_SAME = """
import os, sys, time
end, count = time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < end:
    for _ in range(100):
        try:
            os.open(sys.argv[1], os.O_WRONLY)
        except OSError:
            count += 1
print(count)
"""
_DIFFERENT = """
import os, sys, time
end, count = time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < end:
    for _ in range(100):
        try:
            os.unlink(f"{sys.argv[1]}-{count}") if count % 2 else os.mkdir(f"{sys.argv[1]}-{count}")
        except FileNotFoundError:
            count += 1
        except OSError:
            count += 1
print(count)
"""
_TOUCH = 'n=0; end=$((SECONDS + $2)); while ((SECONDS < end)); do touch "$1"; n=$((n + 1)); done 2> /dev/null; echo $n'

_READ = """
import os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY)
begin, done = time.monotonic(), 0
while (spent := time.monotonic() - begin) < float(sys.argv[2]):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    offset = 0
    while data := os.pread(fd, 1 << 20, offset):
        offset += len(data)
    done += offset
print(done / spent)
"""


def _block(number: int) -> bytes:
    """One of the large file's; like no other."""
    return hashlib.sha256(b"%d" % number).digest() * 128


def _seconds(request: pytest.FixtureRequest) -> int:
    return 10 if request.config.getoption("--long") else 3


def _run(*words: str | Path) -> float:
    return float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


@contextmanager
def _started(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="session")
def large_image(signing_keys: SigningKeys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("floods")
    (base / "tree").mkdir()
    (base / "tree" / "large").write_bytes(b"".join(map(_block, range(_BLOCKS))))
    (base / "tree" / "open-to-all").write_text("content")
    words = ("--key", signing_keys.key_path, "--cert", signing_keys.certificate_path)
    rofs("build", base / "tree", "-o", base / "image.raw", *words)
    shutil.rmtree(base / "tree")
    return base / "image.raw"


def _check(mount: Mounted, attempts: int) -> list[dict[str, Any]]:
    """The events of attempts, after the end of the mount."""
    assert mount.status()["blocked_writes"] == attempts  # counted at once
    rofs("umount", mount.directory)
    found = mount.events("write_blocked")
    assert count_of(mount.log, "write_blocked") == attempts
    assert mount.events("dropped") == []
    assert mount.log.stat().st_size < _MAX_LOG_BYTES
    assert chain_is_intact(mount.log)
    return found


def test_tight_loop_of_one_process(
    small_image: Path, trust: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        attempts = _run(*_PYTHON, _SAME, mount.directory / "open-to-all", str(_seconds(request)))
        first, *counted = _check(mount, int(attempts))
    assert len(counted) < 6
    assert {event["path"] for event in (first, *counted)} == {"/open-to-all"}
    assert {event["pid"] for event in counted} == {first["pid"]}
    assert "count" not in first
    for event in counted:
        assert first["time"] <= event["first"] <= event["last"] <= event["time"]


def test_shell_loop_that_starts_a_process_each_time(
    small_image: Path, trust: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """`while :; do touch /x; done`: thousands of processes, but one program."""
    with mounted(small_image, trust, tmp_path) as mount:
        attempts = _run("bash", "-c", _TOUCH, "bash", mount.directory / "x", str(_seconds(request)))
        found = _check(mount, int(attempts))
    assert len(found) < 20
    assert {(event["path"], event["comm"]) for event in found} == {("/x", "touch")}
    assert any("pid" not in event for event in found)
    assert len({event["ppid"] for event in found}) == 1


def test_loop_over_different_names(
    small_image: Path, trust: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """There is nothing to collapse: what the bytes per second do not allow is counted by operation and user."""
    with mounted(small_image, trust, tmp_path) as mount:
        made = _run(*_PYTHON, _DIFFERENT, mount.directory / "directory" / "x", str(_seconds(request)))
        attempts = mount.status()["blocked_writes"]
        assert attempts >= made // 2  # to unlink what does not exist is no attempt
        found = _check(mount, attempts)
    assert any("path" in event for event in found)
    excess = [event for event in found if "path" not in event]
    assert {(event["op"], event["uid"], event["errno"]) for event in excess} == {("mkdir", 0, "EROFS")}


def test_two_processes_at_the_same_are_told_apart(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        words = (*_PYTHON, _SAME, mount.directory / "open-to-all", "1")
        with _started(*words) as one, _started(*words) as other:
            outputs = [process.communicate()[0] for process in (one, other)]
        found = _check(mount, sum(map(int, outputs)))
    by_pid = {process.pid: int(output) for process, output in zip((one, other), outputs, strict=True)}
    counted = dict.fromkeys(by_pid, 0)
    for event in found:
        counted[event["pid"]] += event.get("count", 1)
    assert counted == by_pid


def test_corrupt_block_that_is_read_again_and_again(large_image: Path, trust: Path, tmp_path: Path) -> None:
    image = Path(shutil.copyfile(large_image, tmp_path / "image.raw"))
    with image.open("r+b") as file:
        file.seek(image.read_bytes().index(_block(_BLOCKS // 2)))
        file.write(bytes(16))
    with mounted(image, trust, tmp_path / "place") as mount:
        for _ in range(200):
            with (mount.directory / "large").open("rb") as file:
                file.seek(_BLOCKS // 2 * 4096)
                with pytest.raises(OSError, match="Input/output"):
                    file.read(100)
        total = mount.status()["corruption"]
        rofs("umount", mount.directory)
        found = mount.events("corruption")
        assert count_of(mount.log, "corruption") == total >= 200
    assert len({(event["path"], event["block"]) for event in found}) == 1
    assert len(found) < 6


@pytest.mark.long
def test_reader_beside_a_flood_is_at_least_half_as_fast(large_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(large_image, trust, tmp_path) as mount:
        words = (*_PYTHON, _READ, mount.directory / "large", "5")
        alone = _run(*words)
        with _started(*_PYTHON, _SAME, mount.directory / "open-to-all", "60"):
            beside_one = _run(*words)
        with _started("bash", "-c", _TOUCH, "bash", mount.directory / "x", "60") as shell:
            beside_touch = _run(*words)
            shell.kill()
    print(json.dumps({"alone": alone, "beside a loop": beside_one, "beside touch": beside_touch}))  # noqa: T201
    assert beside_one > alone / 2
    assert beside_touch > alone / 2
