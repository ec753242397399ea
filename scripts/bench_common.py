# SPDX-License-Identifier: Apache-2.0
"""What all parts of scripts/bench share: a working directory with keys, commands that must succeed, results.

Knows nothing of what is compared.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ROFS = Path(sys.executable).parent / "rofs"
SCRIPTS = Path(__file__).parent
Words = list[str | Path]


class Bench:
    """A working directory with keys, and the results so far.

    Attributes:
        work: The directory; empty but for the keys.
        rounds: How often each command is timed.
        trust: The certificate of the images that `build` makes.
        results: What goes into the JSON file.
    """

    def __init__(self, work: Path, rounds: int) -> None:
        self.work = work
        self.rounds = rounds
        self.results: dict[str, object] = {}
        self._keys = work / "keys"
        self.trust = self._keys / "rofs.crt"
        run([ROFS, "keygen", self._keys])

    def build(self, source: Path, image: Path) -> Words:
        """The command that builds an image."""
        return [ROFS, "build", source, "-o", image, "--key", self._keys / "rofs.key", "--cert", self.trust, "--force"]

    def compare(self, name: str, ours: Callable[[], object], peer_name: str, peer: Callable[[], object]) -> None:
        """Run both in turn; print and keep the medians."""
        times: dict[str, list[float]] = {"rofs": [], peer_name: []}
        ours()
        peer()
        for _ in range(self.rounds):
            for key, action in (("rofs", ours), (peer_name, peer)):
                times[key].append(seconds(action))
        medians = {key: statistics.median(values) for key, values in times.items()}
        ratio = medians["rofs"] / medians[peer_name]
        self.results[name] = {**medians, "ratio": ratio}
        print(f"{name}: rofs {medians['rofs']:.2f} s, {peer_name} {medians[peer_name]:.2f} s, ratio {ratio:.2f}")


def run(words: Iterable[str | Path]) -> str:
    """Run a command that must succeed, silent unless it fails.

    Returns:
        What it wrote to stdout.

    Raises:
        SystemExit: It failed; with what it wrote to stderr.
    """
    command = [str(word) for word in words]
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: error: {' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def root_of(script: str) -> Path:
    """The directory that scripts/debian-root or scripts/oracle-root made, whose progress is shown."""
    made = subprocess.run([SCRIPTS / script], check=True, stdout=subprocess.PIPE, text=True)
    return Path(made.stdout.strip())


def write_random(path: Path, mib: int) -> None:
    """A file that no tool can make smaller."""
    with path.open("wb") as file, Path("/dev/urandom").open("rb") as source:
        for _ in range(mib):
            file.write(source.read(1 << 20))
