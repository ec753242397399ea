# SPDX-License-Identifier: Apache-2.0
"""`rofs cat`: the bytes of files, as far as they are good."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SigningKeys
from tests.erofs.builder import LyingFilesystem
from tests.image.hostile import sign
from tests.trees import content, directory, file, node, symlink

from .conftest import Run
from .test_main import program
from .test_verify import offsets, overwrite

TREE = directory(
    {
        b"large": file(content(2_500_000)),
        b"empty": file(),
        b"zeros": file(bytes(1_200_000) + b"end"),
        b"\xff\n": file(b"odd\xff\0"),
        b"link": symlink(b"loop/../dir/-rf"),
        b"loop": symlink(b"dir"),
        b"out": symlink(b"../../../../etc/passwd"),
        b"dir": directory({b"-rf": file(b"not an option\n")}),
        b"null": node(stat.S_IFCHR, os.makedev(1, 5)),
    }
)


@pytest.fixture
def made(tmp_path: Path, signing_keys: SigningKeys) -> Path:
    return sign(tmp_path / "made.raw", LyingFilesystem(TREE), signing_keys)


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["/large"], content(2_500_000)),
        (["empty"], b""),
        (["zeros"], bytes(1_200_000) + b"end"),
        ([b"\xff\n", "empty", "/dir/../dir/-rf", b"\xff\n"], b"odd\xff\0not an option\nodd\xff\0"),
        (["loop/-rf"], b"not an option\n"),
    ],
)
def test_bytes(made: Path, trust: tuple[str, str], paths: list[str | bytes], expected: bytes) -> None:
    done = program("cat", made, *paths, *trust)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == expected


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("dir", "dir: not a regular file"),
        ("null", "null: not a regular file"),
        ("none", "none: no such file in the image"),
        ("link", None),
        ("out", "out: no such file in the image (/etc)"),
        ("large/", "large/: /large in the image is not a directory"),
        ("", "an empty path names nothing in the image"),
    ],
)
def test_what_has_no_bytes(run: Run, made: Path, trust: tuple[str, str], path: str, message: str | None) -> None:
    done = run("cat", made, path, *trust)
    if message is None:
        assert done.succeeded() == "not an option\n"
    else:
        assert done.failed(1) == message


def test_corrupt_block_ends_it_behind_the_last_good_byte(
    image: Path, trust: tuple[str, str], signing_keys: SigningKeys
) -> None:
    start, _ = offsets(image, signing_keys.policy)
    overwrite(image, start + 2 * 4096 + 5, b"!")
    done = program("cat", image, "dir/file", *trust)
    assert done.returncode == 4
    assert done.stdout == (b"content\n" * 2000)[: 2 * 4096]
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"rofs: error: {image}: /dir/file: corrupt image: data block ")


def test_full_disk_and_closed_pipe(made: Path, trust: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "rofs.cli.main", "cat", str(made), "large", *trust]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 5
    assert done.stderr == b"rofs: error: cannot write the output: No space left on device\n"
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == content(2_500_000)[:10]
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 128 + 13
