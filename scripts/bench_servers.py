# SPDX-License-Identifier: Apache-2.0
"""Servers of one tree that scripts/bench compares: how each is started on a directory, and ended for certain.

The peers' programs are those of a Debian 13 root (scripts/oracle-root) with its own loader and libraries: no
chroot, so that paths mean what they say. Measures nothing.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench_common import ROFS, Bench, Words, run

_START_SECONDS = 20.0
_END_SECONDS = 10.0


@dataclass(frozen=True)
class Images:
    """One tree in the form that each server takes."""

    tree: Path
    rofs: Path
    erofs: Path
    squashfs: Path

    def remove(self) -> None:
        """Remove all but the tree."""
        for path in (self.rofs, self.erofs, self.squashfs):
            path.unlink()


@dataclass(frozen=True)
class Server:
    """Something that shows a tree.

    Attributes:
        name: For the table.
        input_of: Which of the images it serves; it is in the page cache before a measurement.
        serve: Shows it on an empty directory while the context lasts.
    """

    name: str
    input_of: Callable[[Images], Path]
    serve: Callable[[Path, Path], AbstractContextManager[None]]

    def warm(self, images: Images) -> None:
        """Have what it serves in the page cache."""
        files = "find {} -type f -exec cat {{}} + | wc -c"  # wc: GNU tools skip what goes to /dev/null
        run(["bash", "-o", "pipefail", "-c", files.format(self.input_of(images))])


class Tools:
    """Programs of a Debian root, which run where they lie."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def words(self, program: str, *arguments: str | Path) -> Words:
        """The command line."""
        (loader, *_) = sorted(self._root.glob("lib*/ld-linux-*.so.*"))
        libraries = ":".join(str(path) for path in self._root.glob("usr/lib/*-linux-gnu"))
        return [loader, "--library-path", libraries, self._root / "usr" / "bin" / program, *arguments]

    def images(self, bench: Bench, name: str, tree: Path, squashfs_options: Words) -> Images:
        """Build a tree in all forms, none of them dirty in memory afterwards."""
        place = bench.work / name
        images = Images(tree, *(place.with_suffix(suffix) for suffix in (".raw", ".erofs", ".squashfs")))
        run(bench.build(tree, images.rofs))
        run(self.words("mkfs.erofs", images.erofs, tree))
        run(self.words("mksquashfs", tree, images.squashfs, "-no-progress", "-quiet", *squashfs_options))
        os.sync()
        return images

    def peers(self) -> list[Server]:
        """The servers that rofs is compared with."""

        def erofsfuse(image: Path, directory: Path) -> AbstractContextManager[None]:
            return _foreground(self.words("erofsfuse", "-f", image, directory), directory)

        def squashfuse(image: Path, directory: Path) -> AbstractContextManager[None]:
            return _foreground(self.words("squashfuse_ll", "-f", image, directory), directory)

        def overlay(tree: Path, directory: Path) -> AbstractContextManager[None]:
            return _foreground(self.words("fuse-overlayfs", "-f", "-o", f"lowerdir={tree}", directory), directory)

        return [
            Server("kernel EROFS", lambda images: images.erofs, _kernel_erofs),
            Server("erofsfuse", lambda images: images.erofs, erofsfuse),
            Server("squashfuse_ll", lambda images: images.squashfs, squashfuse),
            Server("fuse-overlayfs", lambda images: images.tree, overlay),
        ]


def rofs_servers(bench: Bench) -> list[Server]:
    """What rofs offers, in each of its modes."""
    log = bench.work / "audit.jsonl"

    def server(name: str, *options: str) -> Server:
        @contextmanager
        def serve(image: Path, directory: Path) -> Iterator[None]:
            run([ROFS, "mount", image, directory, "--trust", bench.trust, "--audit-log", log, *options])
            with _unmounting(directory, [ROFS, "umount", directory]):
                yield

        return Server(name, lambda images: images.rofs, serve)

    modes = [server("rofs audit")]
    if "--mode" in run([ROFS, "mount", "--help"]):
        modes.append(server("rofs sealed", "--mode", "sealed"))
    return modes


@contextmanager
def mountpoint(work: Path) -> Iterator[Path]:
    """A new empty directory, which is removed unless something is mounted on it still."""
    directory = Path(tempfile.mkdtemp(dir=work, prefix="mnt."))
    try:
        yield directory
    finally:
        directory.rmdir()


@contextmanager
def _kernel_erofs(image: Path, directory: Path) -> Iterator[None]:
    run(["mount", "-t", "erofs", "-o", "loop,ro", image, directory])
    with _unmounting(directory, ["umount", directory]):
        yield


@contextmanager
def _foreground(words: Words, directory: Path) -> Iterator[None]:
    """A FUSE server that is our child, from when it answers."""
    outside = directory.stat().st_dev
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
        try:
            deadline = time.monotonic() + _START_SECONDS
            while directory.stat().st_dev == outside:
                if process.poll() is not None or time.monotonic() > deadline:
                    said.seek(0)
                    text = said.read().decode(errors="replace").strip()
                    raise SystemExit(f"bench: error: {' '.join(map(str, words))}: did not start: {text}")
                time.sleep(0.005)
            with _unmounting(directory, ["umount", directory]):
                yield
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_END_SECONDS)  # its filesystem is unmounted
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def _unmounting(directory: Path, words: Words) -> Iterator[None]:
    """Unmount at the end; out of sight at once if that does not work, so that nothing is removed through it."""
    try:
        yield
        run(words)
    finally:
        if os.path.ismount(directory):
            with contextlib.suppress(SystemExit):
                run(["umount", "--lazy", directory])
