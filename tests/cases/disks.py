# SPDX-License-Identifier: Apache-2.0
"""Filesystems of other kinds to put a tree on, mounted for as long as they are used; they need root.

What goes on them is the tests' business; nothing is left of them, not even the time to delete it all.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest


@contextlib.contextmanager
def filesystem(place: Path, make: Sequence[str], size_bytes: int = 320 << 20) -> Iterator[Path]:
    """A new filesystem below `place`: a tmpfs, or what a command like `mkfs.ext4` makes in a file."""
    if make and not shutil.which(make[0]):
        pytest.skip(f"{make[0]} is not installed")
    place.mkdir()
    disk = place.with_suffix(".disk")
    words: list[str | Path] = ["mount", "-t", "tmpfs", "none", place]
    try:
        if make:
            with disk.open("wb") as new:
                new.truncate(size_bytes)
            subprocess.run([*make, disk], check=True)
            words = ["mount", "-o", "loop", disk, place]
        subprocess.run(words, check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)
    finally:
        disk.unlink(missing_ok=True)
