# SPDX-License-Identifier: Apache-2.0
"""Another program takes the place of the one that keeps a mount, and who uses the mount notices nothing.

What happens when it is done at random while processes die is test_torture's business.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from rofs.errors import HostError
from rofs.fuse import control, places
from tests.conftest import REPOSITORY, SigningKeys
from tests.mounts.harness import (
    Mounted,
    chain_is_intact,
    children_of,
    count_of,
    drop_pages,
    kill,
    mounted,
    rofs,
    wait_until,
)
from tests.mounts.test_acl import USER, _acl_that_denies, _can_read

_VERSION = "0.1.0+tests"


@pytest.fixture(scope="session")
def other_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, as if another version were installed elsewhere."""
    return _copy_of_the_package(tmp_path_factory.mktemp("version"))


def _copy_of_the_package(place: Path) -> Path:
    shutil.copytree(REPOSITORY / "rofs", place / "rofs", ignore=shutil.ignore_patterns("__pycache__"))
    file = place / "rofs" / "__init__.py"
    lines = file.read_text().splitlines(keepends=True)
    changed = [f'__version__ = "{_VERSION}"\n' if line.startswith("__version__ =") else line for line in lines]
    assert changed != lines
    file.write_text("".join(changed))
    return place


def _take_over(
    mount: Mounted, image: Path, trust: Path, *, version: Path | None = None, workers: int | None = None
) -> subprocess.CompletedProcess[str]:
    options = ("--takeover",) if workers is None else ("--takeover", "--workers", str(workers))
    return rofs("mount", image, mount.directory, "--trust", trust, *options, check=False, version=version)


def _when_the_old_ones_have_ended(mount: Mounted, workers: int) -> dict[str, Any]:
    """The status a moment after a hand-over: it answers before the last worker of the version before has gone."""
    return mount.wait_for_status(
        lambda status: len(status["workers"]) == workers and len(children_of(status["keeper"])) == workers + 2
    )


def _refused(done: subprocess.CompletedProcess[str], code: int) -> str:
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("rofs: error: ")
    return line


@contextmanager
def _checked_reads(directory: Path, tree: Path) -> Iterator[list[str]]:
    """Read the files of a tree again and again meanwhile; gives the list of what went wrong."""
    wrong: list[str] = []
    stop, rounds = threading.Event(), 0
    names = [path.name for path in tree.iterdir() if path.is_file()]
    contents = {name: (tree / name).read_bytes() for name in names}

    def read() -> None:
        nonlocal rounds
        while not stop.is_set():
            for name in names:
                try:
                    drop_pages(directory / name)
                    if (directory / name).read_bytes() != contents[name]:
                        wrong.append(f"{name} has other content")
                    (directory / name).stat()
                except OSError as error:
                    wrong.append(f"{name}: {error}")
            rounds += 1

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            wait_until(lambda: rounds > 2)
            yield wrong
            until = rounds + 2
            wait_until(lambda: rounds > until)
        finally:
            stop.set()
        for reader in readers:
            reader.result(60)


def test_reads_go_on_and_all_processes_are_new(
    small_tree: Path, small_image: Path, trust: Path, tmp_path: Path
) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        before = mount.status()
        with _checked_reads(mount.directory, small_tree) as wrong:
            assert _take_over(mount, small_image, trust).returncode == 0
        assert wrong == []
        after = _when_the_old_ones_have_ended(mount, len(before["workers"]))
        assert after["keeper"] == before["keeper"]
        assert after["supervisor"] != before["supervisor"]
        assert not {worker["pid"] for worker in before["workers"]} & {worker["pid"] for worker in after["workers"]}
        assert len(after["workers"]) == len(before["workers"])
        assert after["restarts"] == 0
        rofs("umount", mount.directory)
        assert [event["event"] for event in mount.events()] == ["trust", "mount", "mount", "umount"]
        assert mount.events()[2]["status"] == "takeover"


def test_what_is_open_survives(small_tree: Path, small_image: Path, trust: Path, tmp_path: Path) -> None:
    names = set(os.listdir(small_tree)) | {".", ".."}
    content = (small_tree / "large").read_bytes()
    with mounted(small_image, trust, tmp_path) as mount:
        fd = os.open(mount.directory / "large", os.O_RDONLY)
        with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapping, os.scandir(mount.directory) as entries:
            seen = {".", "..", next(entries).name}
            assert _take_over(mount, small_image, trust).returncode == 0
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, len(content), 0) == content
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert mapping[:] == content
            assert seen | {entry.name for entry in entries} == names
        os.close(fd)


def test_a_directory_stream_can_be_rewound_after_it(debian_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(debian_image, trust, tmp_path) as mount:
        fd = os.open(mount.directory / "usr/bin", os.O_RDONLY | os.O_DIRECTORY)
        before = os.listdir(fd)
        assert _take_over(mount, debian_image, trust).returncode == 0
        assert os.listdir(fd) == before  # rewinds
        os.close(fd)


def test_another_version_takes_over(small_image: Path, trust: Path, tmp_path: Path, other_version: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        assert mount.status()["program_version"] != _VERSION
        assert _take_over(mount, small_image, trust, version=other_version).returncode == 0
        status = mount.status()
        assert status["program_version"] == _VERSION
        kill(status["supervisor"], *(worker["pid"] for worker in status["workers"]))  # and has successors
        assert mount.wait_for_status(lambda status: status["restarts"] == 3)["program_version"] == _VERSION
        assert (mount.directory / "plain").read_bytes()
        assert _take_over(mount, small_image, trust).returncode == 0  # and back again
        assert mount.status()["program_version"] != _VERSION


def test_a_program_that_does_not_start_is_refused(small_image: Path, trust: Path, tmp_path: Path) -> None:
    broken = _copy_of_the_package(tmp_path / "version")
    with (broken / "rofs/fuse/resume.py").open("a") as file:  # which a successor needs, and the command not
        file.write("this is no Python")
    with mounted(small_image, trust, tmp_path) as mount:
        before = _processes(mount)
        assert "SyntaxError" in _refused(_take_over(mount, small_image, trust, version=broken), 5)
        assert _processes(mount) == before
        assert (mount.directory / "plain").read_bytes()


def test_a_program_that_is_not_there_is_refused(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        before = _processes(mount)
        with pytest.raises(HostError, match="cannot be started: No such file"):
            control.take_over(str(mount.directory), [str(tmp_path / "absent")], {}, None)
        assert _processes(mount) == before


def _processes(mount: Mounted) -> tuple[object, ...]:
    status = mount.status()
    workers = [worker["pid"] for worker in status["workers"]]
    return status["keeper"], status["supervisor"], workers, status["restarts"], status["program_version"]


def test_a_program_that_knows_another_state_is_refused(small_image: Path, trust: Path, tmp_path: Path) -> None:
    other = _copy_of_the_package(tmp_path / "version")
    handover = other / "rofs/fuse/handover.py"
    handover.write_text(handover.read_text().replace("STATE_VERSION: Final = 1\n", "STATE_VERSION: Final = 2\n"))
    with mounted(small_image, trust, tmp_path / "place") as mount:
        before = mount.worker_pids()
        assert "version 1, this program knows 2" in _refused(_take_over(mount, small_image, trust, version=other), 5)
        assert mount.worker_pids() == before


def test_a_program_whose_workers_do_not_start_leaves_the_old_ones(
    small_image: Path, trust: Path, tmp_path: Path
) -> None:
    """It passes the check before, and fails at its first worker."""
    other = _copy_of_the_package(tmp_path / "version")
    worker = other / "rofs/fuse/worker.py"
    worker.write_text(
        worker.read_text().replace("    _attach(", "    raise OSError(5, 'made to fail')\n    _attach(", 1)
    )
    with mounted(small_image, trust, tmp_path / "place") as mount:
        before = mount.worker_pids()
        _refused(_take_over(mount, small_image, trust, version=other), 5)
        drop_pages(mount.directory / "large")
        assert (mount.directory / "large").read_bytes()
        assert before == mount.worker_pids()
        assert _take_over(mount, small_image, trust).returncode == 0
        assert not set(before) & set(mount.worker_pids())


def test_a_version_that_keeps_dying_can_be_replaced(small_image: Path, trust: Path, tmp_path: Path) -> None:
    other = _copy_of_the_package(tmp_path / "version")
    resolver = other / "rofs/fuse/resolver.py"
    resolver.write_text(
        resolver.read_text().replace("    resolver = Resolver(image)\n", "    raise OSError(5, 'made to')\n")
    )
    with mounted(small_image, trust, tmp_path / "place") as mount:
        assert _take_over(mount, small_image, trust, version=other).returncode == 0
        mount.wait_for("worker_exit", 3)
        assert (mount.directory / "plain").read_bytes()
        assert _take_over(mount, small_image, trust).returncode == 0
        with pytest.raises(OSError, match="Read-only"):
            (mount.directory / "directory/new").mkdir()
        assert mount.wait_for("write_blocked")[0]["path"] == "/directory/new"


def test_another_image_is_refused(
    small_image: Path, small_tree: Path, signing_keys: SigningKeys, trust: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.raw"
    options = ("--key", signing_keys.key_path, "--cert", signing_keys.certificate_path, "--name", "other")
    rofs("build", small_tree, "-o", other, *options)
    with mounted(small_image, trust, tmp_path) as mount:
        before = mount.worker_pids()
        assert "another image needs another mount" in _refused(_take_over(mount, other, trust), 1)
        assert mount.worker_pids() == before


def test_an_untrusted_image_is_refused(small_image: Path, other_keys: SigningKeys, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        before = mount.worker_pids()
        done = _take_over(mount, small_image, other_keys.certificate_path)
        assert "not signed by a trusted certificate" in _refused(done, 3)
        assert mount.worker_pids() == before


def test_where_no_mount_is_nothing_is_taken_over(small_image: Path, trust: Path, tmp_path: Path) -> None:
    assert "is not a rofs mount" in _refused(
        rofs("mount", small_image, tmp_path, "--trust", trust, "--takeover", check=False), 1
    )


@pytest.mark.parametrize("mode", ["audit", "sealed"])
def test_a_user_denied_by_acl_stays_denied(signing_keys: SigningKeys, tmp_path: Path, mode: str) -> None:
    tree, image, trust = tmp_path / "tree", tmp_path / "acl.raw", signing_keys.certificate_path
    tree.mkdir()
    (tree / "secret").write_text("for some")
    os.setxattr(tree / "secret", "system.posix_acl_access", _acl_that_denies(USER))
    rofs("build", tree, "-o", image, "--key", signing_keys.key_path, "--cert", trust)
    for parent in (*reversed(tmp_path.parents), tmp_path):
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)
    with mounted(image, trust, tmp_path / "place", "--mode", mode) as mount:
        for taken_over in (False, True):
            if taken_over:
                assert _take_over(mount, image, trust).returncode == 0
                Path("/proc/sys/vm/drop_caches").write_text("2")  # what was said before is forgotten
            assert mount.status()["mode"] == mode
            assert not _can_read(mount.directory / "secret", USER)
            assert _can_read(mount.directory / "secret", USER + 1)
            with pytest.raises(OSError, match="Read-only"):
                (mount.directory / "new").mkdir()


def test_it_works_when_the_supervisor_has_just_died(
    small_tree: Path, small_image: Path, trust: Path, tmp_path: Path
) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        with _checked_reads(mount.directory, small_tree) as wrong:
            kill(mount.status()["supervisor"])
            done = _take_over(mount, small_image, trust)
            if done.returncode:  # nobody answers at this moment
                assert done.returncode in {1, 5}
                assert len(done.stderr.splitlines()) == 1
                mount.wait_for_status(lambda status: len(status["workers"]) == 2)
                wait_until(lambda: _take_over(mount, small_image, trust).returncode == 0, 60)
        assert wrong == []
        assert mount.status()["restarts"] == 1
        rofs("umount", mount.directory)
        assert len(mount.events("worker_exit")) == 1
        assert chain_is_intact(mount.log)


def test_counts_and_the_chain_go_on(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        for name in ("a", "b", "c"):
            with pytest.raises(OSError, match="Read-only"):
                (mount.directory / name).mkdir()
        kill(mount.worker_pids()[0])
        mount.wait_for("worker_exit")
        mount.wait_for("write_blocked", 3)
        (mount.directory / "large").read_bytes()
        before = mount.wait_for_status(lambda status: len(status["workers"]) == 2)
        assert _take_over(mount, small_image, trust).returncode == 0
        after = mount.status()
        for key in ("blocked_writes", "restarts", "corruption", "dropped"):
            assert after[key] == before[key], key
        assert after["blocked_writes"] == 3
        assert after["requests"] >= before["requests"]
        assert after["verified_blocks"] >= before["verified_blocks"] > 0
        with pytest.raises(OSError, match="Read-only"):
            (mount.directory / "directory" / "d").mkdir()
        assert mount.wait_for("write_blocked", 4)[-1]["path"] == "/directory/d"
        assert mount.events()[-1]["pid"] == os.getpid()
        assert chain_is_intact(mount.log, "--head", mount.status()["audit_head"])


def test_attempts_during_it_are_all_recorded(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        stop, made = threading.Event(), 0

        def attempt() -> set[int | None]:
            nonlocal made
            got: set[int | None] = set()
            while not stop.is_set():
                try:
                    (mount.directory / f"name-{made}").mkdir()
                    got.add(None)
                except OSError as error:
                    got.add(error.errno)
                made += 1
            return got

        with ThreadPoolExecutor(1) as pool:
            attempts = pool.submit(attempt)
            try:
                for _ in range(2):
                    assert _take_over(mount, small_image, trust).returncode == 0
            finally:
                stop.set()
            assert attempts.result(60) == {errno.EROFS}
        rofs("umount", mount.directory)
        assert count_of(mount.log, "write_blocked") + count_of(mount.log, "dropped") >= made
        assert chain_is_intact(mount.log)


def test_the_number_of_workers_can_be_changed(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        for workers in (4, 1, 2):
            assert _take_over(mount, small_image, trust, workers=workers).returncode == 0
            _when_the_old_ones_have_ended(mount, workers)
            assert (mount.directory / "plain").read_bytes()


def test_nothing_leaks(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        keeper = mount.status()["keeper"]
        assert _take_over(mount, small_image, trust).returncode == 0
        # The mount answers before the last of the old workers has ended, so all of this takes a moment.
        wait_until(lambda: _open_files(keeper).count("/dev/fuse") == 1 + len(mount.worker_pids()))
        before = len(children_of(keeper)), _open_files(keeper)
        assert before[0] == 4
        for _ in range(5):
            assert _take_over(mount, small_image, trust).returncode == 0
            wait_until(lambda: (len(children_of(keeper)), _open_files(keeper)) == before)


def _open_files(pid: int) -> list[str]:
    """What a process has open, without numbers of pipes, sockets and other nameless things."""
    directory = Path(f"/proc/{pid}/fd")
    names = []
    for name in os.listdir(directory):
        with suppress(FileNotFoundError):  # closed meanwhile
            names.append(os.readlink(directory / name).split("[")[0])
    return sorted(names)


@pytest.mark.parametrize("argv", [["/bin/false", "\u00e9" * 24000], ["/bin/true"]], ids=["huge", "another-program"])
def test_a_request_that_names_no_rofs_changes_nothing(
    small_image: Path, trust: Path, tmp_path: Path, argv: list[str]
) -> None:
    """Raw UTF-8 grows when it is passed on; a program that exits with 0 would have been executed."""
    with mounted(small_image, trust, tmp_path) as mount:
        keeper = mount.status()["keeper"]
        request = {"v": 1, "command": "takeover", "argv": argv, "environment": {}, "workers": None}
        with control.connect(places.mount_directory(bytes(mount.directory))) as connection:
            connection.sendall(json.dumps(request, ensure_ascii=False).encode() + b"\n")
            answer = json.loads(connection.makefile().readline())
        assert answer["ok"] is False
        assert mount.status()["keeper"] == keeper
        assert (mount.directory / "plain").read_bytes()
