# SPDX-License-Identifier: Apache-2.0
"""Processes of a mount that die, hang or run out of memory, while it is used: nobody's call fails.

Random deaths all at once are test_torture's business, hand-overs test_takeover's.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SigningKeys
from tests.mounts.harness import (
    Mounted,
    chain_is_intact,
    children_of,
    count_of,
    drop_pages,
    kill,
    mounted,
    rofs,
    stopped,
    wait_until,
)

_BLOCK = 4096
_PATIENCE_SECONDS = 60
_WITH_LITTLE_MEMORY = """
import sys
from rofs.cli.main import main
from rofs.fuse import crew
crew.WORKER_MEMORY_BYTES = int(sys.argv.pop(1))
sys.exit(main())
"""


@pytest.fixture(scope="module")
def wide_image(signing_keys: SigningKeys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files too large to be pushed when they are opened, so that each page is a READ."""
    place = tmp_path_factory.mktemp("wide")
    (place / "tree").mkdir()
    for number in range(8):
        (place / "tree" / f"file-{number}").write_bytes(_content(number))
    (place / "tree" / "small").write_bytes(b"small\n" * 2000)
    image = place / "wide.raw"
    rofs("build", place / "tree", "-o", image, "--key", signing_keys.key_path, "--cert", signing_keys.certificate_path)
    return image


def _content(number: int) -> bytes:
    return b"".join(b"%02d %012d\n" % (number, line) for line in range(1 << 16))


def _can_resend() -> bool:
    release = os.uname().release.split(".")
    return (int(release[0]), int("".join(filter(str.isdigit, release[1])))) >= (6, 9)


needs_resend = pytest.mark.skipif(not _can_resend(), reason="the kernel has no RESEND (Linux 6.9)")


class _Readers:
    """Threads that read files again and again past the page cache, until the block ends; what they saw is kept."""

    def __init__(self, directory: Path, count: int = 4) -> None:
        self.rounds = 0
        self.wrong = 0
        self.failed: list[int | None] = []
        self._directory = directory
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(count)
        self._done: list[Future[None]] = [self._pool.submit(self._read, number) for number in range(count)]

    def _read(self, number: int) -> None:
        path, content = self._directory / f"file-{number}", _content(number)
        while not self._stop.is_set():
            try:
                drop_pages(path)
                self.wrong += path.read_bytes() != content
            except OSError as error:
                self.failed.append(error.errno)
            self.rounds += 1

    def __enter__(self) -> _Readers:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for future in self._done:
            future.result(_PATIENCE_SECONDS)
        self._pool.shutdown()

    def go_on(self, rounds: int = 4) -> None:
        """Return when they have made some more rounds."""
        until = self.rounds + rounds
        wait_until(lambda: self.rounds >= until, _PATIENCE_SECONDS)


def _replaced(mount: Mounted, *restarts: int, workers: int = 2) -> dict[str, Any]:
    """The status when so many processes were replaced and all are there again."""

    def is_complete(status: dict[str, Any]) -> bool:
        there = {worker["pid"] for worker in status["workers"]} | {status["supervisor"]}
        children = set(children_of(status["keeper"]))
        return status["restarts"] in restarts and there < children and len(children) == workers + 2

    return mount.wait_for_status(is_complete)


def _attempt(directory: Path, name: str = "new") -> int | None:
    try:
        (directory / name).mkdir()
    except OSError as error:
        return error.errno
    return None


def _resolver_of(mount: Mounted) -> int:
    status = mount.status()
    others = {status["supervisor"], *(worker["pid"] for worker in status["workers"])}
    (resolver,) = set(children_of(status["keeper"])) - others
    return resolver


# Workers


@needs_resend
def test_killed_workers_cost_no_failed_call(wide_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(wide_image, trust, tmp_path) as mount:
        killed = []
        with _Readers(mount.directory) as readers:
            for _ in range(8):
                readers.go_on()
                killed.append(mount.worker_pids()[0])
                kill(killed[-1])
                _replaced(mount, len(killed))
        assert readers.rounds
        assert (readers.wrong, readers.failed) == (0, [])
        events = mount.wait_for("worker_exit", len(killed))
        assert [event["pid"] for event in events] == killed
        assert {event["detail"] for event in events} == {"worker: killed by signal 9"}
        assert mount.status()["restarts"] == len(killed)
        assert chain_is_intact(mount.log)


@needs_resend
def test_when_all_workers_die_at_once_readers_only_wait(wide_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(wide_image, trust, tmp_path) as mount:
        with _Readers(mount.directory) as readers:
            for number in range(1, 5):
                readers.go_on()
                kill(*mount.worker_pids())
                _replaced(mount, 2 * number)
            readers.go_on()
        assert (readers.wrong, readers.failed) == (0, [])


@needs_resend
def test_a_call_in_work_on_the_killed_worker_is_answered_by_another(
    wide_image: Path, trust: Path, tmp_path: Path
) -> None:
    with mounted(wide_image, trust, tmp_path, "--workers", "1") as mount:
        assert {_attempt_whose_worker_is_killed(mount, number) for number in range(1, 6)} == {errno.EROFS}


def _attempt_whose_worker_is_killed(mount: Mounted, number: int) -> int | None:
    """What an attempt gets whose only worker is killed over it.

    The supervisor is stopped, so that the worker sits in the refused write for the tenth of a second it waits.
    """
    status = mount.status()
    worker = status["workers"][0]["pid"]
    with ThreadPoolExecutor(1) as pool:
        with stopped(status["supervisor"]):
            attempt = pool.submit(_attempt, mount.directory, f"name-{number}")
            wait_until(lambda: _is_waiting_for_an_answer(worker) or attempt.done())
            kill(worker)
        got = attempt.result(_PATIENCE_SECONDS)
    _replaced(mount, number, workers=1)
    return got


def _is_waiting_for_an_answer(pid: int) -> bool:
    """Whether a process sleeps while it receives from a socket, which a worker does only for the supervisor."""
    try:
        return "wait_for_more_packets" in Path(f"/proc/{pid}/wchan").read_text()
    except OSError:
        return False


def test_a_stopped_worker_does_not_stop_the_mount(wide_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(wide_image, trust, tmp_path) as mount:
        worker = mount.worker_pids()[0]
        with stopped(worker):
            for number in range(8):
                assert (mount.directory / f"file-{number}").read_bytes() == _content(number)
            assert _attempt(mount.directory) == errno.EROFS
            assert worker in mount.worker_pids()
        assert mount.status()["restarts"] == 0


@needs_resend
def test_one_worker_is_enough(wide_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(wide_image, trust, tmp_path, "--workers", "1") as mount:
        assert len(mount.worker_pids()) == 1
        for number in range(4):
            with _Readers(mount.directory, 2) as readers:
                kill(*mount.worker_pids())
                _replaced(mount, number + 1, workers=1)
                readers.go_on()
            assert (readers.wrong, readers.failed) == (0, [])
        assert (mount.directory / "small").read_bytes() == b"small\n" * 2000
        assert len(mount.worker_pids()) == 1


# Without RESEND


def test_without_resend_only_the_calls_on_the_killed_worker_fail(wide_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(wide_image, trust, tmp_path, "-o", "noresend") as mount:
        with _Readers(mount.directory) as readers:
            for number in range(1, 9):
                readers.go_on()
                kill(mount.worker_pids()[0])
                _replaced(mount, number)
            readers.go_on()
        assert readers.wrong == 0
        # A READ that failed is asked for again by the kernel: EIO comes from a page, ECONNABORTED from a call.
        assert set(readers.failed) <= {errno.ECONNABORTED, errno.EIO}
        assert len(readers.failed) <= 8 * 4
        for number in range(8):
            drop_pages(mount.directory / f"file-{number}")
            assert (mount.directory / f"file-{number}").read_bytes() == _content(number)
        assert chain_is_intact(mount.log)


def test_without_resend_nobody_hangs_when_all_workers_die(wide_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(wide_image, trust, tmp_path, "-o", "noresend") as mount:
        with _Readers(mount.directory) as readers:
            readers.go_on()
            kill(*mount.worker_pids())
            _replaced(mount, 2)
            readers.go_on()
        assert readers.wrong == 0
        assert (mount.directory / "file-7").read_bytes() == _content(7)


def test_without_resend_a_call_in_work_fails_and_the_log_says_so(wide_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(wide_image, trust, tmp_path, "-o", "noresend", "--workers", "1") as mount:
        got = [_attempt_whose_worker_is_killed(mount, number) for number in range(1, 6)]
        # One may have been answered just before.
        assert set(got) <= {errno.ECONNABORTED, errno.EROFS}
        assert errno.ECONNABORTED in got
        lost = [
            event for event in mount.wait_for("worker_exit", 5) if "calls it was answering failed" in event["detail"]
        ]
        assert len(lost) >= got.count(errno.ECONNABORTED)
        assert _attempt(mount.directory) == errno.EROFS


# The deadlock of a push


@pytest.mark.parametrize("workers", [2, 3])
def test_openers_of_a_file_that_is_being_read_do_not_stand_still(
    wide_image: Path, trust: Path, tmp_path: Path, workers: int
) -> None:
    """A READ holds the lock of a page while it waits; who pushes that page sleeps in the kernel until it is answered.

    With as many pushers as workers nobody would be left to answer it.
    """
    with mounted(wide_image, trust, tmp_path, "--workers", str(workers)) as mount:
        path, content = mount.directory / "small", b"small\n" * 2000
        deadline = time.monotonic() + 6

        def read_mapped() -> bool:
            """Holds the file open, and faults pages in while others open it."""
            right = True
            fd = os.open(path, os.O_RDONLY)
            try:
                while time.monotonic() < deadline:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                    right &= os.pread(fd, len(content), 0) == content
                    with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
                        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                        right &= mapping[:] == content
            finally:
                os.close(fd)
            return right

        def open_again() -> bool:
            right = True
            while time.monotonic() < deadline:
                right &= path.read_bytes() == content
            return right

        with ThreadPoolExecutor(12) as pool:
            readers = [pool.submit(read_mapped) for _ in range(6)] + [pool.submit(open_again) for _ in range(6)]
            assert all(reader.result() for reader in readers)


# The supervisor and the resolver


def test_without_a_supervisor_reads_go_on_and_attempts_are_recorded_later(
    wide_image: Path, trust: Path, tmp_path: Path
) -> None:
    with mounted(wide_image, trust, tmp_path) as mount:
        assert _attempt(mount.directory, "before") == errno.EROFS
        mount.wait_for("write_blocked")
        before = mount.status()
        with stopped(before["keeper"]):  # so that there is none for a while
            kill(before["supervisor"])
            for number in range(8):
                assert (mount.directory / f"file-{number}").read_bytes() == _content(number)
            for number in range(20):
                assert _attempt(mount.directory, f"meanwhile-{number}") == errno.EROFS
            assert not mount.answers()
        after = mount.wait_for_status(lambda status: status["blocked_writes"] >= 21)
        assert after["supervisor"] != before["supervisor"]
        assert (after["keeper"], after["restarts"]) == (before["keeper"], 1)
        assert after["verified_blocks"] >= before["verified_blocks"]
        assert after["requests"] > before["requests"]
        assert [event["pid"] for event in mount.events("worker_exit")] == [before["supervisor"]]
        paths = {event["path"] for event in mount.events("write_blocked")}
        assert paths == {"/before", *(f"/meanwhile-{number}" for number in range(20))}
        assert mount.events("dropped") == []
        assert _attempt(mount.directory, "after") == errno.EROFS
        assert mount.wait_for("write_blocked", 22)[-1]["pid"] == os.getpid()
        assert chain_is_intact(mount.log, "--head", mount.status()["audit_head"])


def test_attempts_beyond_what_fits_are_counted(wide_image: Path, trust: Path, tmp_path: Path) -> None:
    count = 12_000
    with mounted(wide_image, trust, tmp_path) as mount:
        status = mount.status()
        with stopped(status["keeper"]):
            kill(status["supervisor"])
            for number in range(count):
                assert _attempt(mount.directory, f"name-{number}") == errno.EROFS
        mount.wait_for_status(lambda status: status["blocked_writes"] + status["dropped"] >= count, 60)
        rofs("umount", mount.directory)
        assert count_of(mount.log, "write_blocked") + count_of(mount.log, "dropped") == count
        assert count_of(mount.log, "dropped")
        assert chain_is_intact(mount.log)


def test_a_supervisor_that_dies_again_and_again_loses_nothing(wide_image: Path, trust: Path, tmp_path: Path) -> None:
    made = 0
    with mounted(wide_image, trust, tmp_path) as mount:
        for number in range(1, 6):
            for _ in range(20):
                assert _attempt(mount.directory, f"name-{made}") == errno.EROFS
                made += 1
            kill(mount.status()["supervisor"])
            _replaced(mount, number)
        rofs("umount", mount.directory)
        paths = {event["path"] for event in mount.events("write_blocked")}
        dropped = sum(event["count"] for event in mount.events("dropped"))
        assert len(paths) + dropped >= made
        assert chain_is_intact(mount.log)


def test_after_the_resolvers_death_events_have_paths_again(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        kill(_resolver_of(mount))
        _replaced(mount, 1)
        assert _attempt(mount.directory, "directory/new") == errno.EROFS
        assert mount.wait_for("write_blocked")[0]["path"] == "/directory/new"


def test_all_but_the_keeper_die_at_once(wide_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(wide_image, trust, tmp_path) as mount:
        keeper = mount.status()["keeper"]
        kill(*children_of(keeper))
        for number in range(8):
            drop_pages(mount.directory / f"file-{number}")
            assert (mount.directory / f"file-{number}").read_bytes() == _content(number)
        assert _attempt(mount.directory) == errno.EROFS
        assert _replaced(mount, 3, 4)["keeper"] == keeper  # the resolver may have ended by itself before
        rofs("umount", mount.directory)
        assert len(mount.events("worker_exit")) in {3, 4}
        assert chain_is_intact(mount.log)


# Memory


def test_workers_stay_below_their_limit(debian_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(debian_image, trust, tmp_path) as mount:
        subprocess.run(["tar", "cf", "-", "-C", mount.directory, "usr"], check=True, stdout=subprocess.DEVNULL)
        for worker in mount.status()["workers"]:
            assert 0 < worker["rss_bytes"] < worker["memory_limit_bytes"]
            limits = Path(f"/proc/{worker['pid']}/limits").read_text()
            (line,) = [line for line in limits.splitlines() if line.startswith("Max data size")]
            assert line.split()[3] == str(worker["memory_limit_bytes"])


@needs_resend
def test_a_worker_without_memory_is_replaced(wide_image: Path, trust: Path, tmp_path: Path) -> None:
    """Workers may have so little that what the kernel reads ahead at once does not fit, but a small request does."""
    with mounted(wide_image, trust, tmp_path) as mount:
        enough = max(map(_data_bytes, mount.worker_pids())) + (700 << 10)
    program = (sys.executable, "-c", _WITH_LITTLE_MEMORY, str(enough))
    with mounted(wide_image, trust, tmp_path, program=program) as mount:
        keeper, workers = mount.status()["keeper"], mount.worker_pids()
        with contextlib.suppress(OSError):  # when it has cost several workers their lives
            (mount.directory / "file-1").read_bytes()
        assert mount.wait_for("worker_exit")[0]["detail"].startswith("worker: exit status 71")
        status = mount.wait_for_status(lambda status: len(status["workers"]) == 2)
        assert status["keeper"] == keeper
        assert status["restarts"]
        assert {worker["pid"] for worker in status["workers"]} != set(workers)
        assert (mount.directory / "small").read_bytes() == b"small\n" * 2000


def _data_bytes(pid: int) -> int:
    """What of a process its RLIMIT_DATA limits."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmData:"))
