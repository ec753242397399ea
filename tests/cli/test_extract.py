# SPDX-License-Identifier: Apache-2.0
"""`rofs extract`: what it says, and with which exit code; that it is exact and safe is tested with `image.extract`."""

from __future__ import annotations

import os
from pathlib import Path

import jsonschema
import pytest

from rofs.cli.extract import HELP
from tests.conftest import SigningKeys
from tests.erofs.builder import LyingFilesystem
from tests.image.hostile import as_ordinary_user, hostile_tree, needs_root, sign
from tests.trees import directory, file, node

from .conftest import Run
from .test_entries import schema
from .test_verify import offsets, overwrite


def test_all_and_parts(run: Run, image: Path, trust: tuple[str, str], tmp_path: Path) -> None:
    assert run("extract", image, tmp_path / "all", *trust).succeeded() == ""
    assert (tmp_path / "all" / "dir" / "file").read_bytes() == b"content\n" * 2000
    done = run("extract", image, tmp_path / "part", "dir/file", "/dir", *trust, "--json")
    done.succeeded()
    jsonschema.validate(done.json, schema("extract"))
    assert done.json == {"entries": 2, "content_bytes": 16000, "problems": [], "more_problems": 0, "not_restored": []}


def test_nothing_is_made_for_an_image_that_is_not_trusted(run: Run, image: Path, tmp_path: Path) -> None:
    run("extract", image, tmp_path / "out", "--root-hash", "0" * 64).failed(3)
    assert not (tmp_path / "out").exists()


def test_directory_that_is_not_empty(run: Run, image: Path, trust: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "out" / "dir").mkdir(parents=True)
    message = run("extract", image, tmp_path / "out", *trust).failed(1)
    assert message.startswith(f"{tmp_path}/out is not empty; --force ")
    run("extract", image, tmp_path / "out", *trust, "--force").succeeded()


def test_directory_in_the_way_of_a_link(
    run: Run, tmp_path: Path, signing_keys: SigningKeys, trust: tuple[str, str]
) -> None:
    made = sign(tmp_path / "made.raw", LyingFilesystem(hostile_tree()), signing_keys)
    (tmp_path / "out" / "escape" / "mine").mkdir(parents=True)
    done = run("extract", made, tmp_path / "out", *trust, "--force")
    assert done.failed(1) == (
        f"{tmp_path}/out/escape is a directory, in the way of a symbolic link; remove it; the rest was extracted"
    )
    assert (tmp_path / "out" / "zz").is_symlink()
    assert (tmp_path / "out" / "escape" / "mine").is_dir()


def test_help_says_what_becomes_of_directories_that_were_there() -> None:
    text = " ".join(HELP.split())
    assert "DIR itself gets the attributes of the image's root, also when it was there before" in text
    assert "those that were there keep theirs" in text


def test_missing_path_and_parent(run: Run, image: Path, trust: tuple[str, str], tmp_path: Path) -> None:
    assert run("extract", image, tmp_path / "out", b"no\xff", *trust).failed(1) == "no\\xff: no such file in the image"
    message = run("extract", image, tmp_path / "none" / "out", *trust).failed(1)
    assert message == f"cannot extract into {tmp_path}/none/out: No such file or directory"


def test_directory_of_an_odd_name(run: Run, image: Path, trust: tuple[str, str], tmp_path: Path) -> None:
    run("extract", image, os.fsencode(tmp_path) + b"/\xff\n", *trust).succeeded()
    assert os.path.isfile(os.fsencode(tmp_path) + b"/\xff\n/dir/file")


def test_one_corrupt_file(
    run: Run, image: Path, trust: tuple[str, str], tmp_path: Path, signing_keys: SigningKeys
) -> None:
    start, _ = offsets(image, signing_keys.policy)
    overwrite(image, start + 5000, b"!")
    message = run("extract", image, tmp_path / "out", *trust).failed(4)
    assert message.startswith(f"{image}: /dir/file: corrupt image: data block ")
    assert message.endswith("; the rest was extracted")
    assert (tmp_path / "out" / "dir").is_dir()
    assert not (tmp_path / "out" / "dir" / "file").exists()
    done = run("extract", image, tmp_path / "json", *trust, "--json")
    assert (done.code, done.json["entries"], len(done.json["problems"])) == (4, 1, 1)


@needs_root
def test_several_corrupt_files_are_all_named(
    run: Run, tmp_path: Path, signing_keys: SigningKeys, trust: tuple[str, str]
) -> None:
    lying = LyingFilesystem(hostile_tree()).set_inode(b"/escape", i_mode=0).set_inode(b"/plain", i_u=1 << 30)
    bad = sign(tmp_path / "bad.raw", lying, signing_keys)
    done = run("extract", bad, tmp_path / "out", *trust)
    lines = done.err.splitlines()
    assert (done.code, len(lines)) == (4, 3)
    assert lines[0].startswith("rofs: /escape: EROFS: ")
    assert lines[1].startswith("rofs: /plain: EROFS: ")
    assert lines[2].startswith(f"rofs: error: {bad}: 2 entries were not extracted; the first: /escape: EROFS: ")


@needs_root
def test_attributes_that_could_not_be_restored(
    run: Run, tmp_path: Path, signing_keys: SigningKeys, trust: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = directory({b"%d" % n: file(b"", xattrs=((b"user.a", b"1"), (b"user.b", b"1"))) for n in range(3)})
    made = sign(tmp_path / "made.raw", LyingFilesystem(tree), signing_keys)

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    done = run("extract", made, tmp_path / "out", *trust, "--json")
    assert done.code == 1
    first = "xattrs user.a could not be restored on 3 entries, first /0: Operation not supported"
    assert done.err.splitlines() == [
        "rofs: xattrs user.b could not be restored on 3 entries, first /0: Operation not supported",
        f"rofs: error: extracted into {tmp_path}/out, but {first}",
    ]
    jsonschema.validate(done.json, schema("extract"))
    assert [(s["what"], s["entries"], s["expected"]) for s in done.json["not_restored"]] == [
        ("xattrs user.a", 3, False),
        ("xattrs user.b", 3, False),
    ]


@needs_root
def test_an_ordinary_user_is_told_once_and_gets_no_devices(tmp_path: Path, signing_keys: SigningKeys) -> None:
    place = tmp_path / "all"
    place.mkdir()
    place.chmod(0o777)
    tree = directory(
        {
            b"a": file(b"a", mode=0o4755, xattrs=((b"trusted.a", b""),)),
            b"null": node(0o020000, os.makedev(1, 3)),
            b"z": file(b"z"),
        }
    )
    sign(place / "image.raw", LyingFilesystem(tree), signing_keys)
    (place / "rofs.crt").write_bytes(signing_keys.certificate_path.read_bytes())
    (place / "rofs.crt").chmod(0o644)
    code, said = as_ordinary_user(place, "extract", "image.raw", "out", "--trust", "rofs.crt")
    assert code == 1
    assert said.splitlines() == [
        "rofs: not restored, since only root can: owners (3), setuid and setgid bits (1), xattrs trusted.a (1)",
        "rofs: error: cannot extract out/null: Operation not permitted; the rest was extracted",
    ]
    assert (place / "out" / "z").read_bytes() == b"z"
