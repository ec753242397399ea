# SPDX-License-Identifier: Apache-2.0
"""`rofs build`: what goes wrong, and that nothing is left of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SigningKeys

from .conftest import Done, Run

Build = Callable[..., Done]


@pytest.fixture
def build(run: Run, tree: Path, tmp_path: Path, signing_keys: SigningKeys) -> Build:
    """`rofs build` with good words, but for those given."""

    def build(*more: str | bytes | Path, source: Any = tree, output: Any = tmp_path / "new.raw", **files: Any) -> Done:
        key, cert = files.get("key", signing_keys.key_path), files.get("cert", signing_keys.certificate_path)
        return run("build", source, "-o", output, "--key", key, "--cert", cert, *more)

    return build


@pytest.fixture(autouse=True)
def _nothing_half_done(tmp_path: Path) -> Any:
    yield
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_prints_the_root_hash(build: Build, run: Run, trust: tuple[str, str], tmp_path: Path) -> None:
    root_hash = build().succeeded().strip()
    assert len(bytes.fromhex(root_hash)) == 32
    assert run("inspect", tmp_path / "new.raw", *trust, "--json").json["root_hash"] == root_hash


def test_json(build: Build, tmp_path: Path) -> None:
    done = build("--json", "--name", "edge", "--release", "1.2", "--rollback-index", "3")
    done.succeeded()
    told = done.json
    assert (told["name"], told["version"], told["rollback_index"], told["inodes"]) == ("edge", "1.2", 3, 5)
    assert told["image"] == str(tmp_path / "new.raw")
    assert told["size"] == (tmp_path / "new.raw").stat().st_size


def test_source_date_epoch(build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first = build("--json").json
    assert first["created"] == 1_700_000_000
    assert build("--json", output=tmp_path / "second.raw").json["root_hash"] == first["root_hash"]


@pytest.mark.parametrize("value", ["", "garbage", "-1", "1.5", " 1", "1" * 12])
def test_source_date_epoch_that_is_garbage(build: Build, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    assert "SOURCE_DATE_EPOCH" in build().failed(2)


def test_existing_output_is_replaced_only_by_force(build: Build, tmp_path: Path) -> None:
    output = tmp_path / "new.raw"
    output.write_text("mine")
    assert build().failed(1) == f"{output} exists already; --force replaces it"
    assert output.read_text() == "mine"
    build("--force").succeeded()
    assert output.stat().st_size > 4096
    assert output.stat().st_mode & 0o777 == 0o644


def test_output_directory_that_is_missing(build: Build, tmp_path: Path) -> None:
    message = build(output=tmp_path / "none" / "new.raw").failed(1)
    assert message == f"cannot create {tmp_path}/none/new.raw: No such file or directory"


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_output_that_is_a_directory(build: Build, tmp_path: Path, force: tuple[str, ...]) -> None:
    assert str(tmp_path / "tree") in build(*force, output=tmp_path / "tree").failed(1)


def test_source_that_is_missing(build: Build, tmp_path: Path) -> None:
    assert build(source=tmp_path / "none").failed(1) == f"cannot read source {tmp_path}/none: No such file or directory"


def test_source_that_is_a_file(build: Build, tree: Path) -> None:
    assert build(source=tree / "dir" / "file").failed(1) == f"source {tree}/dir/file is not a directory"


def test_key_of_somebody_else(build: Build, other_keys: SigningKeys, tmp_path: Path) -> None:
    assert "do not belong together" in build(key=other_keys.key_path).failed(1)
    assert not (tmp_path / "new.raw").exists()


def test_key_and_certificate_that_are_none(build: Build, tmp_path: Path, signing_keys: SigningKeys) -> None:
    text = tmp_path / "text"
    text.write_text("text")
    empty = tmp_path / "empty"
    empty.write_text("")
    assert build(key=text).failed(1) == f"{text} is not PEM"
    assert build(key=empty).failed(1) == f"{empty} is empty; expected PEM"
    assert "cannot read" in build(key=tmp_path / "none").failed(1)
    assert "cannot read" in build(key=tmp_path).failed(1)
    assert "is a certificate; expected a private key" in build(key=signing_keys.certificate_path).failed(1)
    assert "holds a private key; expected a PEM certificate" in build(cert=signing_keys.key_path).failed(1)
    assert "cannot read" in build(cert=tmp_path / "none").failed(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--name", ""), "image name ''"),
        (("--name", "x" * 256), "expected 1 to 255 printable characters"),
        (("--release", "a\nb"), "image release 'a\\nb'"),
        (("--rollback-index", "-1"), "rollback index -1"),
        (("--rollback-index", str(2**53)), "expected 0 to 9007199254740991"),
    ],
)
def test_identity_that_no_image_can_have(build: Build, words: tuple[str, ...], message: str) -> None:
    assert message in build(*words).failed(1)


def test_names_that_are_not_utf8(build: Build, tmp_path: Path) -> None:
    base = os.fsencode(tmp_path)
    os.mkdir(base + b"/in\xff")
    done = build("--json", source=base + b"/in\xff", output=base + b"/out\xff\n.raw")
    done.succeeded()
    assert os.fsencode(done.json["image"]) == base + b"/out\xff\n.raw"
    assert os.path.getsize(base + b"/out\xff\n.raw") == done.json["size"]
    assert "out\\xff\\n.raw exists already" in build(output=base + b"/out\xff\n.raw").failed(1)
    assert "none\\xff: No such" in build(source=base + b"/none\xff").failed(1)


def test_silence_in_a_pipe(tree: Path, tmp_path: Path, signing_keys: SigningKeys) -> None:
    words: list[str | Path] = ["build", tree, "-o", tmp_path / "new.raw", "--key", signing_keys.key_path]
    words += ["--cert", signing_keys.certificate_path]
    done = subprocess.run([sys.executable, "-m", "rofs.cli.main", *words], check=True, capture_output=True, timeout=60)
    assert (done.stderr, done.stdout.count(b"\n")) == (b"", 1)
