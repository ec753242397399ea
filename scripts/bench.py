# SPDX-License-Identifier: Apache-2.0
"""Runs rofs and its peers in turn, round by round, and prints the median of each and the ratio to the peer.

Absolute times of a shared machine say little; ratios of one run do. Every command is a whole process, start-up
included, with warm page cache. Nothing is asserted: figures and what they mean are in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROFS = Path(sys.executable).parent / "rofs"
SCRIPTS = Path(__file__).parent
Words = list[str | Path]


class Bench:
    """A working directory with keys, and the results so far."""

    def __init__(self, work: Path, rounds: int) -> None:
        self.work = work
        self.rounds = rounds
        self.results: dict[str, dict[str, float]] = {}
        run([ROFS, "keygen", work / "keys"])

    def build(self, source: Path, image: Path) -> Words:
        """The command that builds an image."""
        keys = self.work / "keys"
        return [ROFS, "build", source, "-o", image, "--key", keys / "rofs.key", "--cert", keys / "rofs.crt", "--force"]

    def compare(self, name: str, ours: Callable[[], object], peer_name: str, peer: Callable[[], object]) -> None:
        """Run both in turn; print and keep the medians."""
        times: dict[str, list[float]] = {"rofs": [], peer_name: []}
        ours()
        peer()
        for _ in range(self.rounds):
            for key, action in (("rofs", ours), (peer_name, peer)):
                start = time.perf_counter()
                action()
                times[key].append(time.perf_counter() - start)
        medians = {key: statistics.median(values) for key, values in times.items()}
        ratio = medians["rofs"] / medians[peer_name]
        self.results[name] = {**medians, "ratio": ratio}
        print(f"{name}: rofs {medians['rofs']:.2f} s, {peer_name} {medians[peer_name]:.2f} s, ratio {ratio:.2f}")


def run(words: Words) -> None:
    """Run a command that must succeed."""
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def measure(words: Words) -> tuple[float, float]:
    """Run a command that must succeed; returns its seconds and its peak memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, [str(word) for word in words])
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def bench_build(bench: Bench) -> None:
    """Build and sign an image of a Debian root, read back; against mkfs.erofs and veritysetup format."""
    root = Path(subprocess.run([SCRIPTS / "debian-root"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
    data, tree = bench.work / "peer.erofs", bench.work / "peer.verity"

    def peer() -> None:
        data.unlink(missing_ok=True)
        run(["mkfs.erofs", data, root])
        run(["veritysetup", "format", data, tree])
        for path in (data, tree):
            with path.open("rb") as file:
                os.fsync(file.fileno())  # as rofs does before it gives the image its name

    image = bench.work / "image.raw"
    bench.compare("build of a Debian root", lambda: run(bench.build(root, image)), "mkfs.erofs+veritysetup", peer)
    image.unlink()


def bench_verify(bench: Bench) -> None:
    """Verify 512 MiB that are in the page cache; against veritysetup verify."""
    tree = bench.work / "large"
    tree.mkdir()
    with (tree / "data").open("wb") as file:
        for _ in range(512):
            file.write(os.urandom(1 << 20))
    image, data, hashes = bench.work / "large.raw", bench.work / "large.erofs", bench.work / "large.verity"
    run(bench.build(tree, image))
    run(["mkfs.erofs", data, tree])
    made = subprocess.run(["veritysetup", "format", data, hashes], stdout=subprocess.PIPE, text=True, check=True).stdout
    (root_hash,) = [line.split()[2] for line in made.splitlines() if line.startswith("Root hash:")]
    bench.compare(
        "verify of 512 MiB",
        lambda: run([ROFS, "verify", image, "--trust", bench.work / "keys" / "rofs.crt"]),
        "veritysetup verify",
        lambda: run(["veritysetup", "verify", data, hashes, root_hash]),
    )
    shutil.rmtree(tree)
    for path in (image, data, hashes):
        path.unlink()


def bench_scale(bench: Bench) -> None:
    """Build trees of 50,000 and 200,000 small files: time and memory should grow by about four."""
    figures = {}
    for count in (50_000, 200_000):
        tree = bench.work / f"files-{count}"
        for index in range(count):
            if index % 500 == 0:
                (tree / f"d{index // 500}").mkdir(parents=True)
            (tree / f"d{index // 500}" / f"f{index}").write_bytes(b"%d\n" % index * (index % 200))
        figures[count] = measure(bench.build(tree, bench.work / "files.raw"))
        print(f"build of {count} files: {figures[count][0]:.1f} s, {figures[count][1]:.0f} MiB")
        shutil.rmtree(tree)
    (small, large) = figures.values()
    bench.results["scale, 4 times the files"] = {"time ratio": large[0] / small[0], "memory ratio": large[1] / small[1]}
    print(f"four times the files: {large[0] / small[0]:.1f} times the time, {large[1] / small[1]:.1f} times the memory")


BENCHES = {"build": bench_build, "verify": bench_verify, "scale": bench_scale}


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=f"{', '.join(BENCHES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each command is timed (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    if unknown := set(arguments.benches) - BENCHES.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(BENCHES)}")
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="rofs-bench.") as work:
        bench = Bench(Path(work), arguments.rounds)
        for name in arguments.benches or BENCHES:
            BENCHES[name](bench)
    if arguments.json:
        arguments.json.write_text(json.dumps(bench.results, indent=2))


if __name__ == "__main__":
    main()
