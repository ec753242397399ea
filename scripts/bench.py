# SPDX-License-Identifier: Apache-2.0
"""Runs rofs and its peers in turn, round by round, and prints the median of each and the ratio to the peer.

Absolute times of a shared machine say little; ratios of one run do. Nothing is asserted: figures and what they
mean are in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from bench_build import bench_build, bench_scale, bench_verify
from bench_common import Bench
from bench_mount import bench_mount

BENCHES = {"build": bench_build, "verify": bench_verify, "scale": bench_scale, "mount": bench_mount}


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=f"{', '.join(BENCHES)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each command is timed (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    if unknown := set(arguments.benches) - BENCHES.keys():
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(BENCHES)}")
    if arguments.rounds < 1:
        parser.error("--rounds: at least 1")
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(143))  # so that what is mounted is unmounted
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="rofs-bench.") as work:
        bench = Bench(Path(work), arguments.rounds)
        for name in arguments.benches or BENCHES:
            BENCHES[name](bench)
    if arguments.json:
        arguments.json.write_text(json.dumps(bench.results, indent=2))


if __name__ == "__main__":
    main()
