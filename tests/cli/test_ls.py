# SPDX-License-Identifier: Apache-2.0
"""`rofs ls`: lines for people, JSON for programs, and images that cannot be read."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import jsonschema
import pytest

from tests.conftest import SigningKeys
from tests.erofs.builder import LyingFilesystem
from tests.image.hostile import hostile_tree, sign
from tests.trees import directory, file, node, symlink

from .conftest import Run
from .test_entries import schema
from .test_main import program

TREE = directory(
    {
        b".hidden": file(b"", mode=0o4750),
        b"dir": directory({b"\xff\n": file(b"odd"), b"-rf": file(b"12345", xattrs=((b"user.a\xff", b"\0\xff"),))}),
        b"link": symlink(b"di\x1b[31mr"),
        b"null": node(stat.S_IFCHR, os.makedev(1, 3)),
    }
)


@pytest.fixture
def made(tmp_path: Path, signing_keys: SigningKeys) -> Path:
    TREE.children[b"dir"].mtime_ns = 1_700_000_000_123_456_789
    return sign(tmp_path / "made.raw", LyingFilesystem(TREE), signing_keys)


def test_lines(run: Run, made: Path, trust: tuple[str, str]) -> None:
    assert run("ls", made, *trust).succeeded() == (
        "-rwsr-x---   1     0     0          0 1970-01-01T00:00:00.000000000Z .hidden\n"
        "drwxr-xr-x   2     0     0         56 2023-11-14T22:13:20.123456789Z dir\n"
        "lrwxrwxrwx   1     0     0          8 1970-01-01T00:00:00.000000000Z link -> di\\x1b[31mr\n"
        "crw-------   1     0     0        1:3 1970-01-01T00:00:00.000000000Z null\n"
    )


def last_words(text: str) -> list[str]:
    return [line.rpartition("Z ")[2] for line in text.splitlines()]


def test_names_and_paths(run: Run, made: Path, trust: tuple[str, str]) -> None:
    assert last_words(run("ls", made, "dir", *trust).succeeded()) == ["-rf", "\\xff\\x0a"]
    assert last_words(run("ls", made, "dir/-rf", *trust).succeeded()) == ["-rf"]
    assert last_words(run("ls", made, b"/dir/\xff\n", *trust).succeeded()) == ["\\xff\\x0a"]
    assert last_words(run("ls", made, "-R", *trust).succeeded()) == [
        "/.hidden", "/dir", "/dir/-rf", "/dir/\\xff\\x0a", "/link -> di\\x1b[31mr", "/null",
    ]  # fmt: skip
    assert last_words(run("ls", made, "dir", "-R", *trust).succeeded()) == ["/dir/-rf", "/dir/\\xff\\x0a"]
    assert run("ls", made, "none", *trust).failed(1) == "none: no such file in the image"
    assert run("ls", made, b"dir/\xfe", *trust).failed(1) == "dir/\\xfe: no such file in the image"


def test_json(run: Run, made: Path, trust: tuple[str, str]) -> None:
    done = run("ls", made, "-R", "--json", *trust)
    done.succeeded()
    jsonschema.validate(done.json, schema("ls"))
    entries = {entry["path"]: entry for entry in done.json}
    assert list(entries) == ["/.hidden", "/dir", "/dir/-rf", "/dir/\\xff\n", "/link", "/null"]
    assert entries["/dir/-rf"] == {
        "path": "/dir/-rf",
        "type": "file",
        "mode": "0644",
        "nlink": 1,
        "uid": 0,
        "gid": 0,
        "size": 5,
        "mtime": "1970-01-01T00:00:00.000000000Z",
        "nid": entries["/dir/-rf"]["nid"],
        "xattrs": {"user.a\\xff": "00ff"},
    }
    assert (entries["/null"]["major"], entries["/null"]["minor"]) == (1, 3)
    assert (entries["/link"]["target"], entries["/.hidden"]["mode"]) == ("di\x1b[31mr", "4750")
    assert run("ls", made, "dir/-rf/", "--json", *trust).failed(1).endswith("is not a directory")


def test_empty_directory(run: Run, tmp_path: Path, signing_keys: SigningKeys, trust: tuple[str, str]) -> None:
    empty = sign(tmp_path / "empty.raw", LyingFilesystem(directory()), signing_keys)
    assert run("ls", empty, *trust).succeeded() == ""
    assert run("ls", empty, "--json", *trust).json == []


def test_what_cannot_be_read_shows_as_question_marks(
    run: Run, tmp_path: Path, signing_keys: SigningKeys, trust: tuple[str, str]
) -> None:
    lying = LyingFilesystem(hostile_tree()).set_inode(b"/escape", i_mode=0).set_inode(b"/dir/other", i_size=1 << 62)
    bad = sign(tmp_path / "bad.raw", lying, signing_keys)
    done = run("ls", bad, "-R", *trust)
    assert done.code == 4
    lines = done.out.splitlines()
    assert [re.sub(" .* ", " ", line) for line in lines if line.startswith("?")] == [
        "?????????? /dir/other",
        "?????????? /escape",
    ]
    assert "/zz -> /etc" in lines[-1]
    assert done.err.splitlines()[-1].startswith(
        f"rofs: error: {bad}: 2 entries cannot be read; the first: /dir/other: EROFS: "
    )
    done = run("ls", bad, "-R", "--json", *trust)
    assert done.code == 4
    jsonschema.validate(done.json, schema("ls"))
    assert [entry["path"] for entry in done.json if "error" in entry] == ["/dir/other", "/escape"]


def test_nothing_trusted(run: Run, made: Path) -> None:
    run("ls", made, "--root-hash", "0" * 64).failed(3)


@pytest.mark.parametrize("locale", ["C", "POSIX", "C.UTF-8"])
def test_names_do_not_depend_on_the_locale(made: Path, trust: tuple[str, str], locale: str) -> None:
    done = program("ls", made, b"dir/\xff\n", *trust, env={**os.environ, "LC_ALL": locale})
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b" \\xff\\x0a\n")
