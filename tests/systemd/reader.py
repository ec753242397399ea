# SPDX-License-Identifier: Apache-2.0
"""Reads all files of a directory over and over, past the page cache, and notes each call that fails.

Runs in the machine that `harness` boots, with any Python. Ends when its standard input does.
"""

from __future__ import annotations

import json
import os
import select
import sys


def read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return b"".join(iter(lambda: os.read(fd, 1 << 16), b""))
    finally:
        os.close(fd)


def main(directory: str) -> None:
    first = {name: read(os.path.join(directory, name)) for name in os.listdir(directory)}
    sys.stdout.write("reading\n")
    sys.stdout.flush()
    rounds, failed = 0, []
    while not select.select([0], [], [], 0)[0]:
        for name, content in first.items():
            try:
                if read(os.path.join(directory, name)) != content:
                    failed.append(f"{name}: other content")
            except OSError as error:
                failed.append(f"{name}: {error}")
        rounds += 1
    sys.stdout.write(json.dumps({"rounds": rounds, "failed": failed[:20]}))


main(sys.argv[1])
