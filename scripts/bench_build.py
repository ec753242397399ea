# SPDX-License-Identifier: Apache-2.0
"""Building and verifying images, against the tools that do the same without a signature.

Every command is a whole process, start-up included, with warm page cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time

from bench_common import ROFS, Bench, Words, root_of, run, write_random


def bench_build(bench: Bench) -> None:
    """Build and sign an image of a Debian root, read back; against mkfs.erofs and veritysetup format."""
    root = root_of("debian-root")
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
    for path in (image, data, tree):
        path.unlink()


def bench_verify(bench: Bench) -> None:
    """Verify 512 MiB that are in the page cache; against veritysetup verify."""
    tree = bench.work / "large"
    tree.mkdir()
    write_random(tree / "data", 512)
    image, data, hashes = bench.work / "large.raw", bench.work / "large.erofs", bench.work / "large.verity"
    run(bench.build(tree, image))
    run(["mkfs.erofs", data, tree])
    made = run(["veritysetup", "format", data, hashes])
    (root_hash,) = [line.split()[2] for line in made.splitlines() if line.startswith("Root hash:")]
    bench.compare(
        "verify of 512 MiB",
        lambda: run([ROFS, "verify", image, "--trust", bench.trust]),
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
        figures[count] = _measure(bench.build(tree, bench.work / "files.raw"))
        print(f"build of {count} files: {figures[count][0]:.1f} s, {figures[count][1]:.0f} MiB")
        shutil.rmtree(tree)
    (small, large) = figures.values()
    bench.results["scale, 4 times the files"] = {"time ratio": large[0] / small[0], "memory ratio": large[1] / small[1]}
    print(f"four times the files: {large[0] / small[0]:.1f} times the time, {large[1] / small[1]:.1f} times the memory")


def _measure(words: Words) -> tuple[float, float]:
    """Run a command that must succeed; returns its seconds and its peak memory in MiB."""
    start = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _pid, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, [str(word) for word in words])
    return time.perf_counter() - start, usage.ru_maxrss / 1024
