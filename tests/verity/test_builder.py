# SPDX-License-Identifier: Apache-2.0
"""Building trees: byte for byte what veritysetup makes, and accepted by it."""

from __future__ import annotations

import pathlib
import re
import shutil
import subprocess
import uuid

import pytest

from rofs.verity import builder as builder_module
from rofs.verity.builder import build_tree

from .doubles import UUID, MemoryDevice, content, protect

VERITYSETUP = shutil.which("veritysetup", path="/usr/sbin:/sbin:/usr/bin:/bin")
needs_veritysetup = pytest.mark.skipif(
    VERITYSETUP is None, reason="veritysetup (package cryptsetup-bin) is not installed"
)


def veritysetup(*arguments: str) -> str:
    assert VERITYSETUP is not None
    result = subprocess.run([VERITYSETUP, *arguments], check=True, capture_output=True, text=True, timeout=120)
    return result.stdout


@needs_veritysetup
@pytest.mark.parametrize(
    ("blocks", "block_size", "algorithm", "salt"),
    [
        *((n, 4096, "sha256", b"") for n in (1, 2, 127, 128, 129, 300, 16385)),
        *((n, 512, "sha256", b"") for n in (1, 16, 17, 256, 257, 5000)),
        *((n, 1024, "sha256", b"") for n in (1, 32, 33, 1025)),
        *((n, 4096, "sha512", b"") for n in (1, 64, 65, 300)),
        (4097, 512, "sha512", bytes(range(32))),
        (300, 4096, "sha256", bytes(range(32))),
        (300, 4096, "sha256", b"\xff" * 256),
        (1, 4096, "sha256", b"s"),
    ],
)
def test_same_bytes_as_veritysetup(
    tmp_path: pathlib.Path, blocks: int, block_size: int, algorithm: str, salt: bytes
) -> None:
    data = tmp_path / "data"
    data.write_bytes(content(blocks, block_size))
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    output = veritysetup(
        "format",
        f"--salt={salt.hex() or '-'}",
        f"--uuid={uuid.UUID(bytes=UUID)}",
        f"--hash={algorithm}",
        f"--data-block-size={block_size}",
        f"--hash-block-size={block_size}",
        str(data),
        str(theirs),
    )
    made = protect(data.read_bytes(), block_size=block_size, salt=salt, algorithm=algorithm)
    root_hash = re.search(r"Root hash:\s+([0-9a-f]+)", output)
    assert root_hash is not None
    assert made.tree.root_hash.hex() == root_hash[1]
    assert bytes(made.hashes.content) == theirs.read_bytes()
    assert made.tree.hash_device_bytes == len(made.hashes.content)
    ours.write_bytes(made.hashes.content)
    veritysetup("verify", str(data), str(ours), made.tree.root_hash.hex())


def test_progress_adds_up_and_reads_are_large() -> None:
    data = MemoryDevice(content(600))
    done: list[int] = []
    hashes = MemoryDevice()
    build_tree(data, hashes.write_at, progress=done.append)
    assert sum(done) == data.size_bytes
    assert [length for _, length in data.reads] == [1 << 20, 1 << 20, 600 * 4096 - (2 << 20)]


def test_each_hash_block_is_written_once_and_nothing_read_back() -> None:
    writes: list[int] = []
    build_tree(MemoryDevice(content(300)), lambda offset, _block: writes.append(offset))
    assert sorted(writes) == [4096, 8192, 12288, 16384]


@pytest.mark.parametrize("size", [0, 1, 4095, 4097])
def test_partial_block_is_misuse(size: int) -> None:
    with pytest.raises(ValueError, match="positive multiple of 4096"):
        build_tree(MemoryDevice(bytes(size)), MemoryDevice().write_at)


def test_unknown_algorithm_is_misuse() -> None:
    with pytest.raises(ValueError, match="unsupported hash algorithm"):
        build_tree(MemoryDevice(bytes(4096)), MemoryDevice().write_at, algorithm="md5")


def test_shared_work_builds_the_same_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder_module, "_WORTH_SHARING_BYTES", 0)
    monkeypatch.setattr(builder_module, "_PIECE_BYTES", 1 << 20)
    data = MemoryDevice(content(1500))
    built = []
    for processes in (1, 2):
        tree = bytearray(1 << 17)

        def write_at(offset: int, block: bytes, tree: bytearray = tree) -> None:
            tree[offset : offset + len(block)] = block

        built.append((build_tree(data, write_at, processes=processes), bytes(tree)))
    assert built[0] == built[1]
