# SPDX-License-Identifier: Apache-2.0
"""Clamped times, and that Python in the image does not try to write because of them."""

from __future__ import annotations

import compileall
import os
import py_compile
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from rofs.source.clamp import clamp_times
from rofs.source.directory import DirectorySource
from rofs.tree import Inode, Source
from tests.trees import MemorySource, directory, file, find

EPOCH = 1_700_000_000
LATER_NS = (EPOCH + 1000) * 10**9 + 5


def pyc(mtime: int, size: int, flags: int = 0) -> bytes:
    return struct.pack("<4sIII", b"\xa7\r\r\n", flags, mtime & 0xFFFFFFFF, size) + b"code"


def module(cached: dict[bytes, bytes], text: bytes = b"x = 1\n") -> tuple[Inode, Source]:
    source = file(text)
    source.mtime_ns = LATER_NS
    below = directory({name: file(data) for name, data in cached.items()})
    root = directory({b"mod.py": source, b"__pycache__": below})
    return source, MemorySource(root)


def test_later_times_are_clamped_and_others_kept() -> None:
    times = {b"before": -1, b"same": EPOCH * 10**9, b"just after": EPOCH * 10**9 + 1, b"after": LATER_NS}
    root = directory({name: file() for name in times})
    for name, time in times.items():
        root.children[name].mtime_ns = time
    root.mtime_ns = LATER_NS
    assert clamp_times(MemorySource(root), EPOCH) == 0
    assert [root.children[name].mtime_ns for name in times] == [-1, EPOCH * 10**9, EPOCH * 10**9, EPOCH * 10**9]
    assert root.mtime_ns == EPOCH * 10**9


@pytest.mark.parametrize("name", [b"mod.cpython-311.pyc", b"mod.cpython-311.opt-1.pyc", b"mod.pypy310.opt-2.pyc"])
def test_a_source_that_a_pyc_counts_on_keeps_its_time(name: bytes) -> None:
    source, tree = module({name: pyc(EPOCH + 1000, 6)})
    assert clamp_times(tree, EPOCH) == 1
    assert source.mtime_ns == LATER_NS
    assert find(tree.tree.root, b"__pycache__").mtime_ns <= EPOCH * 10**9


@pytest.mark.parametrize(
    "cached",
    [
        pytest.param({}, id="none"),
        pytest.param({b"mod.cpython-311.pyc": pyc(EPOCH + 999, 6)}, id="stale before"),
        pytest.param({b"mod.cpython-311.pyc": pyc(EPOCH + 1000, 7)}, id="another size"),
        pytest.param({b"mod.cpython-311.pyc": pyc(EPOCH + 1000, 6, flags=1)}, id="by hash"),
        pytest.param({b"mod.cpython-311.pyc": b"short"}, id="short"),
        pytest.param({b"mod.cpython-311.pyc": b""}, id="empty"),
        pytest.param({b"other.cpython-311.pyc": pyc(EPOCH + 1000, 6)}, id="another module's"),
        pytest.param({b"mod.pyc": pyc(EPOCH + 1000, 6)}, id="without a tag"),
        pytest.param({b"mod.py": pyc(EPOCH + 1000, 6)}, id="no pyc"),
    ],
)
def test_a_source_that_none_counts_on_is_clamped(cached: dict[bytes, bytes]) -> None:
    source, tree = module(cached)
    assert clamp_times(tree, EPOCH) == 0
    assert source.mtime_ns == EPOCH * 10**9


@pytest.mark.parametrize(
    "mode", [py_compile.PycInvalidationMode.TIMESTAMP, py_compile.PycInvalidationMode.UNCHECKED_HASH]
)
def test_python_writes_nothing_at_start(tmp_path: Path, mode: py_compile.PycInvalidationMode) -> None:
    """With a real Python: after the times are those of the image, its .pyc files are used as they are."""
    package = tmp_path / "tree" / "package"
    package.mkdir(parents=True)
    for name in ("__init__", "one", "two"):
        (package / f"{name}.py").write_text("value = 1\n")
        os.utime(package / f"{name}.py", (EPOCH + 1000, EPOCH + 1000))
    os.utime(package / "two.py", (EPOCH - 1000, EPOCH - 1000))
    compileall.compile_dir(package, quiet=2, invalidation_mode=mode)
    source = DirectorySource(str(tmp_path / "tree"))
    clamp_times(source, EPOCH)
    image = tmp_path / "image"
    shutil.copytree(tmp_path / "tree", image)
    for inode in source.tree.walk():
        os.utime(os.fsencode(image) + inode.path(), ns=(inode.mtime_ns, inode.mtime_ns))
    before = {path.name: path.stat().st_ino for path in (image / "package" / "__pycache__").iterdir()}
    program = "import package.one, package.two"
    subprocess.run(
        [sys.executable, "-c", program], cwd=image, check=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    )
    assert {path.name: path.stat().st_ino for path in (image / "package" / "__pycache__").iterdir()} == before
