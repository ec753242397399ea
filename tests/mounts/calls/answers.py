# SPDX-License-Identifier: Apache-2.0
"""All calls on one image, by three servers and two users: rofs in both modes, and the kernel's own EROFS.

It collects and does not compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.mounts.calls.run import Outcome, make_calls
from tests.mounts.calls.tree import ORDINARY_USER
from tests.mounts.harness import Events, kernel_erofs, mounted, partitions

MODES = ("audit", "sealed")
USERS = (0, ORDINARY_USER)


@dataclass(frozen=True)
class Answers:
    """What the calls got.

    Attributes:
        by: By the mode of rofs or `kernel`, and the user id; then by call.
        events: What each mode of rofs recorded.
    """

    by: dict[tuple[str, int], dict[str, Outcome]] = field(default_factory=dict)
    events: dict[str, Events] = field(default_factory=dict)

    def got(self, server: str, uid: int, call: str) -> Any:
        return self.by[server, uid][call].got


def let_everyone_in(place: Path) -> None:
    """Let every user reach what is below a directory of pytest's."""
    for parent in (place, *place.parents):
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)


def collect(image: Path, trust: Path, place: Path, part: str = "") -> Answers:
    """Make the calls everywhere, on mounts below a directory, which every user can reach from then on."""
    let_everyone_in(place)
    answers = Answers()
    for server in (*MODES, "kernel"):
        (place / server).mkdir()
        (place / server / "outside").mkdir()
        (place / server / "outside").chmod(0o777)
    for mode in MODES:
        # As the kernel has it when nothing is said.
        with mounted(image, trust, place / mode, "--mode", mode, "-o", "suid,dev") as mount:
            answers.by.update({(mode, uid): make_calls(mount.directory, uid, part) for uid in USERS})
        answers.events[mode] = mount.events()
    with _by_the_kernel(image, place / "kernel" / "mnt") as directory:
        answers.by.update({("kernel", uid): make_calls(directory, uid, part) for uid in USERS})
    return answers


@contextmanager
def _by_the_kernel(image: Path, directory: Path) -> Iterator[Path]:
    part = partitions(image)["root"]
    with kernel_erofs(image, directory, part["offset"], part["size"]):
        yield directory
