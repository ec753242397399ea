# SPDX-License-Identifier: Apache-2.0
"""Real mounts for tests: the program as its users run it, and a way out that leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from rofs.fuse import control, kernel, mountinfo

# In a chroot the root is no mount point, and what is no mount point cannot be made private.
ROOT_IS_A_MOUNT = mountinfo.mount_on(b"/") is not None
ROFS = Path(sys.executable).parent / "rofs"
Events = list[dict[str, Any]]
_WATCHDOG = "import os, sys, time; time.sleep(float(sys.argv[1])); os.kill(int(sys.argv[2]), 9)"


def rofs(
    *words: str | bytes | Path, check: bool = True, program: Sequence[str | Path] = (ROFS,), version: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program and capture what it says.

    Args:
        words: Its arguments.
        check: Whether it must succeed.
        program: How it is started.
        version: A directory with a `rofs` package to use in the place of ours.
    """
    environment = {**os.environ, "PYTHONPATH": str(version)} if version else None
    done = subprocess.run(
        [*program, *words],
        check=False,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=150,
        env=environment,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that happens soon."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether a process is there and has not ended."""
    return _state(pid) != "Z"


def children_of(pid: int) -> list[int]:
    """The living children of a process."""
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return [child for child in children if is_alive(child)]


def kill(*pids: int) -> None:
    """Kill processes, and return when they are gone."""
    for pid in pids:
        with suppress(ProcessLookupError):  # the first may take the others along
            os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, pids)))


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Have processes stopped, as by SIGSTOP, from the beginning of the block to its end."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        # What comes while one is on its way to stop may still be its own.
        wait_until(lambda: all(_state(pid) == "T" for pid in pids))
        yield
    finally:
        for pid in filter(is_alive, pids):
            os.kill(pid, signal.SIGCONT)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def drop_pages(*paths: Path) -> None:
    """Have the kernel forget the content of files."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def chain_is_intact(log: Path, *options: str) -> bool:
    """Whether `rofs audit verify` finds nothing wrong."""
    return rofs("audit", "verify", log, *options, check=False).returncode == 0


@dataclass(frozen=True)
class Mounted:
    """A living mount."""

    directory: Path
    log: Path

    def status(self) -> dict[str, Any]:
        mounts = json.loads(rofs("status", self.directory, "--json").stdout)
        _validator("status").validate(mounts)
        (found,) = mounts
        assert isinstance(found, dict)
        return found

    def worker_pids(self) -> list[int]:
        return [worker["pid"] for worker in self.status()["workers"]]

    def answers(self) -> bool:
        """Whether `status` does: while a supervisor is being replaced it does not."""
        return rofs("status", self.directory, check=False).returncode == 0

    def wait_for_status(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 30) -> dict[str, Any]:
        """The status, as soon as it answers and is as wanted."""
        last: dict[str, Any] = {}

        def is_as_wanted() -> bool:
            nonlocal last
            if not self.answers():
                return False
            last = self.status()
            return condition(last)

        try:
            wait_until(is_as_wanted, seconds)
        except AssertionError:
            raise AssertionError(f"the status did not become as wanted; it is {last}") from None
        return last

    def events(self, kind: str | None = None) -> Events:
        return read_events(self.log, kind)

    def wait_for(self, kind: str, count: int = 1, seconds: float = 10) -> Events:
        """The events of a kind, as soon as there are enough."""
        deadline = time.monotonic() + seconds
        while len(found := self.events(kind)) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(found) >= count, f"{count} {kind} events expected, found {found}"
        return found


def _validator(name: str) -> jsonschema.Draft202012Validator:
    path = Path(__file__).parents[2] / "docs" / "schemas" / f"{name}.schema.json"
    return jsonschema.Draft202012Validator(json.loads(path.read_text()))


def read_events(log: Path, kind: str | None = None) -> Events:
    """Events of a log; each one that any test reads fits the published schema."""
    events = [json.loads(line) for line in log.read_text().splitlines()]
    for event in events:
        _validator("event").validate(event)
    return [event for event in events if kind in {None, event["event"]}]


def count_of(log: Path, kind: str) -> int:
    """How often something happened, by the log: an event may count many. Checks no schema: there may be very many."""
    with log.open() as file:
        events = [event for event in map(json.loads, file) if event["event"] == kind]
    return sum(event.get("count", 1) for event in events)


@contextmanager
def mounted(
    image: Path,
    trust: Path,
    place: Path,
    *options: str | Path,
    program: Sequence[str | Path] = (ROFS,),
    longest_seconds: float = 300,
) -> Iterator[Mounted]:
    """Mount below `place`, which also holds the log; unmount at the end, whatever happened.

    A mount that stands still ends after `longest_seconds`.
    """
    directory, log = _prepare(place)
    rofs("mount", image, directory, "--trust", trust, "--audit-log", log, *options, program=program)
    with _until_unmounted(Mounted(directory, log), longest_seconds) as mount:
        yield mount


def _prepare(place: Path) -> tuple[Path, Path]:
    place.mkdir(exist_ok=True)
    (place / "mnt").mkdir(exist_ok=True)
    return place / "mnt", place / "audit.jsonl"


@contextmanager
def _until_unmounted(mount: Mounted, seconds: float) -> Iterator[Mounted]:
    keeper = control.status(str(mount.directory))["keeper"]
    # Who waits for a mount that stands still cannot be woken otherwise, nor look at a clock.
    words = [sys.executable, "-I", "-S", "-c", _WATCHDOG, str(seconds), str(keeper)]
    watchdog = subprocess.Popen(words)
    try:
        yield mount
    finally:
        watchdog.kill()
        barked = watchdog.wait() == 0
        gone = rofs("umount", mount.directory, check=False)
        if gone.returncode:
            kernel.unmount(os.fsencode(mount.directory), lazy=True)
    if barked:
        raise AssertionError(f"{mount.directory} stood still, and its keeper was killed")
    if is_mount(mount.directory):
        raise AssertionError(f"{mount.directory} is still mounted: {gone.stderr}")


def is_mount(directory: Path) -> bool:
    return f" {directory} " in Path("/proc/self/mountinfo").read_text()


@contextmanager
def kernel_erofs(image: Path, directory: Path, offset: int, length: int) -> Iterator[Path]:
    """The kernel's own EROFS on a partition of an image."""
    directory.mkdir(exist_ok=True)
    options = f"loop,ro,offset={offset},sizelimit={length}"
    subprocess.run(["mount", "-t", "erofs", "-o", options, image, directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def partitions(image: Path) -> dict[str, dict[str, Any]]:
    """The partitions of an image by their role, as `rofs inspect` tells them."""
    described = json.loads(rofs("inspect", image, "--json").stdout)
    return {part["role"]: part for part in described["partitions"]}
