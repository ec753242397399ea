# SPDX-License-Identifier: Apache-2.0
"""Reading through mounts of one tree: rofs, which verifies every block, and the peers, which verify nothing.

All servers take turns within each round. Cold is a mount made anew, so that neither the kernel nor the server
knows anything, of an image that is in the page cache: what is compared are the servers and not the disk. Warm
is the same again in the same mount. Nothing is asserted: goals are marked as met or not.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_common import ROFS, Bench, root_of, run, write_random
from bench_servers import Images, Server, Tools, mountpoint, rofs_servers

_STREAM_MIB = 512

# What comes out is counted: every server must have shown the same, and GNU tar reads nothing for /dev/null.
_TREE_JOBS = {
    "find": "find . -mindepth 1 -printf '%m %p\\n' | wc -c",
    "tar": "tar cf - . | wc -c",
}
_STREAM_JOB = "dd if=data of=/dev/null bs=1M iflag=fullblock status=noxfer 2>&1"
_UNITS = {
    "find cold": "s",
    "find warm": "s",
    "tar cold": "s",
    "tar warm": "s",
    "stream cold": "GB/s",
    "first byte": "s",
    "PSS": "MB",
}

_OWN_LIMITS = {"first byte": 0.3, "PSS": 120}

Medians = dict[str, dict[str, float]]  # by server and column


@dataclass(frozen=True)
class Goal:
    """What a figure of rofs should be.

    Attributes:
        server: Which rofs.
        figure: Column, and the peer that it is a ratio to, or its unit.
        limit: The most, or the least when `at_least`.
        found: The figure.
        at_least: Whether more is better.
    """

    server: str
    figure: str
    limit: float
    found: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.found >= self.limit if self.at_least else self.found <= self.limit


class _Figures:
    def __init__(self) -> None:
        self._values: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self._seen: dict[str, tuple[str, str]] = {}

    def add(self, server: str, column: str, value: float) -> None:
        self._values[server][column].append(value)

    def same(self, server: str, job: str, said: str) -> None:
        """See that a job shows the same through every server."""
        other, expected = self._seen.setdefault(job, (server, said))
        if said != expected:
            raise SystemExit(f"bench: error: {job} through {server} gives {said}, through {other} {expected}")

    def medians(self) -> Medians:
        return {
            server: {column: statistics.median(values) for column, values in columns.items()}
            for server, columns in self._values.items()
        }


def bench_mount(bench: Bench) -> None:
    """Read a Debian root and one large file through mounts of rofs and of other servers."""
    tools = Tools(root_of("oracle-root"))
    ours = rofs_servers(bench)
    servers = [*tools.peers(), *ours]
    debian = tools.images(bench, "debian", root_of("debian-root"), ["-comp", "zstd"])
    large = tools.images(bench, "large", _large_tree(bench.work), ["-no-compression"])
    figures = _Figures()
    for _ in range(bench.rounds):
        for server in servers:
            server.warm(debian)
            for job, command in _TREE_JOBS.items():
                _read_twice(figures, bench.work, server, debian, job, command)
            server.warm(large)
            _stream(figures, bench.work, server, large)
        for server in ours:
            server.warm(debian)
            _start_and_memory(figures, bench.work, server, debian)
    medians = figures.medians()
    goals = [goal for server in ours for goal in _goals(server.name, medians)]
    _show(medians, goals, bench.rounds)
    bench.results["mount"] = {
        "medians": medians,
        "goals": [{**asdict(goal), "met": goal.met} for goal in goals],
    }
    debian.remove()
    large.remove()
    shutil.rmtree(large.tree)


def _large_tree(work: Path) -> Path:
    tree = work / "large"
    tree.mkdir()
    write_random(tree / "data", _STREAM_MIB)
    return tree


def _read_twice(figures: _Figures, work: Path, server: Server, images: Images, job: str, command: str) -> None:
    with _served(work, server, images) as directory:
        for state in ("cold", "warm"):
            figures.add(server.name, f"{job} {state}", _timed(figures, server, job, command, directory))


def _stream(figures: _Figures, work: Path, server: Server, images: Images) -> None:
    with _served(work, server, images) as directory:
        taken = _timed(figures, server, "stream", _STREAM_JOB, directory)
        figures.add(server.name, "stream cold", (_STREAM_MIB << 20) / taken / 1e9)


def _start_and_memory(figures: _Figures, work: Path, server: Server, images: Images) -> None:
    """How long until a mount gives the first byte of a file, and its memory after reading all of them."""
    start = time.perf_counter()
    with _served(work, server, images) as directory:
        with (directory / "etc" / "debian_version").open("rb") as file:
            file.read(1)
        figures.add(server.name, "first byte", time.perf_counter() - start)
        _timed(figures, server, "tar", _TREE_JOBS["tar"], directory)
        (mount,) = json.loads(run([ROFS, "status", directory, "--json"]))
        figures.add(server.name, "PSS", sum(map(_pss_bytes, _descendants(mount["keeper"]))) / 1e6)


@contextmanager
def _served(work: Path, server: Server, images: Images) -> Iterator[Path]:
    """A tree on a directory of its own, from a mount that nobody has read."""
    with mountpoint(work) as directory, server.serve(server.input_of(images), directory):
        yield directory


def _timed(figures: _Figures, server: Server, job: str, command: str, directory: Path) -> float:
    """Seconds that a shell command takes in a directory; what it says is the same for every server."""
    words = ["bash", "-o", "pipefail", "-c", command]
    start = time.perf_counter()
    done = subprocess.run(words, cwd=directory, check=False, capture_output=True, text=True)
    taken = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"bench: error: {job} through {server.name}: {done.stderr.strip()}")
    figures.same(server.name, job, done.stdout.strip())
    return taken


def _descendants(pid: int) -> set[int]:
    """A process and all below it."""
    below: defaultdict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended
            below[int(path.read_text().rpartition(")")[2].split()[1])].append(int(path.parent.name))
    found, pending = set(), [pid]
    while pending:
        found.add(pending[-1])
        pending.extend(below[pending.pop()])
    return found


def _pss_bytes(pid: int) -> int:
    """Proportional set size: memory shared by n processes counts as its nth part for each."""
    (line,) = [x for x in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if x.startswith("Pss:")]
    return int(line.split()[1]) * 1024


def _goals(server: str, medians: Medians) -> list[Goal]:
    ours = medians[server]

    def ratio(column: str, peer: str, limit: float, *, at_least: bool = False) -> Goal:
        return Goal(server, f"{column} / {peer}", limit, ours[column] / medians[peer][column], at_least)

    return [
        ratio("find cold", "erofsfuse", 1.0),
        ratio("tar cold", "erofsfuse", 0.9),
        ratio("tar warm", "erofsfuse", 1.2 if server == "rofs sealed" else 1.3),
        *(ratio(f"{job} cold", peer, 1.0) for job in _TREE_JOBS for peer in ("squashfuse_ll", "fuse-overlayfs")),
        ratio("stream cold", "squashfuse_ll", 1.2, at_least=True),
        ratio("stream cold", "erofsfuse", 0.5, at_least=True),
        *(Goal(server, f"{column}, {_UNITS[column]}", limit, ours[column]) for column, limit in _OWN_LIMITS.items()),
    ]


def _show(medians: Medians, goals: list[Goal], rounds: int) -> None:
    print(f"mounts of a Debian root and of one file of {_STREAM_MIB} MiB, medians of {rounds} rounds:")
    print(f"{'':16}" + "".join(f"{column:>13}" for column in _UNITS))
    print(f"{'':16}" + "".join(f"{unit:>13}" for unit in _UNITS.values()))
    for server, columns in medians.items():
        cells = (f"{columns[column]:.3f}" if column in columns else "" for column in _UNITS)
        print(f"{server:16}" + "".join(f"{cell:>13}" for cell in cells))
    for goal in goals:
        limit = f"{'>=' if goal.at_least else '<='} {goal.limit}"
        verdict = "met" if goal.met else "not met"
        print(f"{goal.server:16}{goal.figure:36}{limit:>8}{goal.found:10.2f}  {verdict}")
