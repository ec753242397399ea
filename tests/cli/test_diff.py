# SPDX-License-Identifier: Apache-2.0
"""`rofs diff`: its lines, its JSON, its exit codes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import jsonschema
import pytest

from rofs.tree import Inode
from tests.conftest import SigningKeys
from tests.erofs.builder import LyingFilesystem
from tests.image.hostile import hostile_tree, sign
from tests.trees import directory, file, node, symlink

from .conftest import Run
from .test_entries import schema


def old_tree() -> Inode:
    linked = file(b"linked")
    return directory(
        {
            b"a": linked,
            b"b": linked,
            b"data": file(b"old", xattrs=((b"user.a", b"1"),)),
            b"gone": directory({b"\xff\n": file()}),
            b"kind": file(b"x"),
            b"link": symlink(b"old"),
            b"null": node(stat.S_IFCHR, os.makedev(1, 3)),
            b"same": file(b"same"),
        }
    )


def new_tree() -> Inode:
    data = file(b"newer", mode=0o755, xattrs=((b"user.a", b"2"), (b"user.b", b"")))
    data.uid, data.mtime_ns = 7, 1
    return directory(
        {
            b"a": file(b"linked"),
            b"b": file(b"linkeD"),
            b"data": data,
            b"kind": directory({}, mode=0o644),
            b"link": symlink(b"n\x1bew"),
            b"null": node(stat.S_IFCHR, os.makedev(1, 5)),
            b"same": file(b"same"),
            b"zz": file(),
        }
    )


@pytest.fixture
def two(tmp_path: Path, signing_keys: SigningKeys) -> tuple[Path, Path]:
    return (
        sign(tmp_path / "old.raw", LyingFilesystem(old_tree()), signing_keys),
        sign(tmp_path / "new.raw", LyingFilesystem(new_tree()), signing_keys),
    )


def test_lines(run: Run, two: tuple[Path, Path], trust: tuple[str, str]) -> None:
    done = run("diff", *two, *trust)
    assert (done.code, done.err) == (1, "")
    epoch = "1970-01-01T00:00:00.00000000"
    others = "xattr user.a changed, xattr user.b added, size 3 → 5, content"
    assert done.out.splitlines() == [
        "~ /b (content, links /a → -)",
        f"~ /data (mode 0644 → 0755, owner 0:0 → 7:0, mtime {epoch}0Z → {epoch}1Z, {others})",
        "- /gone",
        "- /gone/\\xff\\x0a",
        "~ /kind (type file → directory)",
        "~ /link (target old → n\\x1bew)",
        "~ /null (device 1:3 → 1:5)",
        "+ /zz",
    ]


def test_json(run: Run, two: tuple[Path, Path], trust: tuple[str, str]) -> None:
    done = run("diff", *two, *trust, "--json")
    assert (done.code, done.err) == (1, "")
    jsonschema.validate(done.json, schema("diff"))
    by_path = {difference["path"]: difference for difference in done.json}
    assert by_path["/gone/\\xff\n"] == {"path": "/gone/\\xff\n", "kind": "removed", "type": "file"}
    assert by_path["/b"]["changes"] == [{"what": "content"}, {"what": "links", "old": "/a", "new": None}]
    assert by_path["/data"]["changes"] == [
        {"what": "mode", "old": "0644", "new": "0755"},
        {"what": "owner", "old": "0:0", "new": "7:0"},
        {"what": "mtime", "old": "1970-01-01T00:00:00.000000000Z", "new": "1970-01-01T00:00:00.000000001Z"},
        {"what": "xattr", "name": "user.a", "old": "31", "new": "32"},
        {"what": "xattr", "name": "user.b", "old": None, "new": ""},
        {"what": "size", "old": 3, "new": 5},
        {"what": "content"},
    ]


def test_equal(run: Run, two: tuple[Path, Path], trust: tuple[str, str]) -> None:
    assert run("diff", two[0], two[0], *trust).succeeded() == ""
    done = run("diff", two[0], two[0], *trust, "--json")
    assert (done.code, done.json) == (0, [])


def test_directory_on_either_side(run: Run, built: Path, trust: tuple[str, str], tmp_path: Path) -> None:
    tree = built.parent / "tree"
    assert run("diff", built, tree, *trust).succeeded() == ""
    assert run("diff", tree, built, *trust).succeeded() == ""
    (tmp_path / "copy" / "dir").mkdir(parents=True)
    done = run("diff", tmp_path / "copy", built, *trust)
    assert done.code == 1
    assert "+ /dir/file" in done.out.splitlines()


def test_what_cannot_be_compared(run: Run, tmp_path: Path, built: Path, trust: tuple[str, str]) -> None:
    assert "two directories" in run("diff", tmp_path, tmp_path, *trust).failed(2)
    assert "none: No such file" in run("diff", built, tmp_path / "none", *trust).failed(1)
    (tmp_path / "text").write_text("text\n" * 1000)
    assert run("diff", built, tmp_path / "text", *trust).failed(4).startswith(f"{tmp_path}/text: ")


def test_both_must_be_trusted(
    run: Run, tmp_path: Path, built: Path, trust: tuple[str, str], other_keys: SigningKeys
) -> None:
    foreign = sign(tmp_path / "foreign.raw", LyingFilesystem(old_tree()), other_keys)
    for words in ((built, foreign), (foreign, built)):
        assert f"{foreign}: " in run("diff", *words, *trust).failed(3)


def test_what_cannot_be_read_is_corrupt_and_not_equal(
    run: Run, tmp_path: Path, signing_keys: SigningKeys, trust: tuple[str, str]
) -> None:
    good = sign(tmp_path / "good.raw", LyingFilesystem(hostile_tree()), signing_keys)
    bad = sign(tmp_path / "bad.raw", LyingFilesystem(hostile_tree()).set_inode(b"/plain", i_u=1 << 30), signing_keys)
    done = run("diff", good, bad, *trust)
    assert done.code == 4
    assert done.out.startswith(f"? /plain ({bad}: EROFS: ")
    assert done.err.startswith(f"rofs: error: {bad}: /plain: EROFS: ")
    done = run("diff", good, bad, *trust, "--json")
    jsonschema.validate(done.json, schema("diff"))
    assert (done.code, done.json[0]["kind"]) == (4, "unreadable")
