# SPDX-License-Identifier: Apache-2.0
"""Real mounts for tests: the program as its users run it, and a way out that leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema

from rofs.fuse import kernel, mountinfo

# In a chroot the root is no mount point, and what is no mount point cannot be made private.
ROOT_IS_A_MOUNT = mountinfo.mount_on(b"/") is not None
ROFS = Path(sys.executable).parent / "rofs"
Events = list[dict[str, Any]]


def rofs(*words: str | bytes | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the program and capture what it says."""
    done = subprocess.run(
        [ROFS, *words], check=False, capture_output=True, text=True, errors="surrogateescape", timeout=120
    )
    assert not check or done.returncode == 0, done.stderr
    return done


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


@contextmanager
def mounted(image: Path, trust: Path, place: Path, *options: str | Path) -> Iterator[Mounted]:
    """Mount below `place`, which also holds the log; unmount at the end, whatever happened."""
    place.mkdir(exist_ok=True)
    directory, log = place / "mnt", place / "audit.jsonl"
    directory.mkdir(exist_ok=True)
    rofs("mount", image, directory, "--trust", trust, "--audit-log", log, *options)
    try:
        yield Mounted(directory, log)
    finally:
        gone = rofs("umount", directory, check=False)
        if gone.returncode:
            kernel.unmount(os.fsencode(directory), lazy=True)
    if is_mount(directory):
        raise AssertionError(f"{directory} is still mounted: {gone.stderr}")


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
