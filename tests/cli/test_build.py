# SPDX-License-Identifier: Apache-2.0
"""`rofs build`: what goes wrong, and that nothing is left of it."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SigningKeys
from tests.source import archives

from .conftest import Done, Run

Build = Callable[..., Done]


@pytest.fixture
def build(run: Run, tree: Path, tmp_path: Path, signing_keys: SigningKeys) -> Build:
    """`rofs build` with good words, but for those given."""

    def build(*more: str | bytes | Path, source: Any = tree, output: Any = tmp_path / "new.raw", **files: Any) -> Done:
        key, cert = files.get("key", signing_keys.key_path), files.get("cert", signing_keys.certificate_path)
        sources = source if isinstance(source, tuple) else (source,)
        return run("build", *sources, "-o", output, "--key", key, "--cert", cert, *more)

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
    message = build(source=tree / "dir" / "file").failed(1)
    assert (
        message
        == f"source {tree}/dir/file is neither a directory nor a tar archive; it begins with b'content\\ncontent\\n'"
    )


# Sources


@pytest.fixture
def archive(tree: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tree.tar"
    subprocess.run(["tar", "--format=pax", "-C", tree, "-cf", path, "."], check=True)
    return path


@contextlib.contextmanager
def standard_input(fd: int) -> Iterator[None]:
    before = os.dup(0)
    os.dup2(fd, 0)
    try:
        yield
    finally:
        os.dup2(before, 0)
        os.close(before)


def test_an_archive_and_its_directory_have_one_root_hash(build: Build, archive: Path, tmp_path: Path) -> None:
    root_hash = build().succeeded()
    assert build("--force", source=archive).succeeded() == root_hash
    (tmp_path / "packed").write_bytes(gzip.compress(archive.read_bytes()))
    assert build("--force", source=tmp_path / "packed").succeeded() == root_hash


def test_an_archive_on_standard_input(build: Build, archive: Path) -> None:
    root_hash = build().succeeded()
    with subprocess.Popen(["cat", archive], stdout=subprocess.PIPE) as cat:
        assert cat.stdout is not None
        with standard_input(cat.stdout.fileno()):
            assert build("--force", source="-").succeeded() == root_hash
    with open(archive, "rb") as opened, standard_input(opened.fileno()):
        assert build("--force", source="-").succeeded() == root_hash


def test_standard_input_that_ends_too_early(build: Build, archive: Path, tmp_path: Path) -> None:
    for length, reason in ((0, "source on standard input is empty"), (5000, "on standard input: .*not whole")):
        with subprocess.Popen(["head", "-c", str(length), archive], stdout=subprocess.PIPE) as head:
            assert head.stdout is not None
            with standard_input(head.stdout.fileno()):
                assert re.search(reason, build(source="-").failed(1))
    assert not (tmp_path / "new.raw").exists()


def test_standard_input_twice(build: Build) -> None:
    assert "more than once" in build(source=("-", "-")).failed(2)
    assert "cannot hold both" in build("--key-passphrase-file", "-", source="-").failed(2)


def test_an_archive_that_lies_is_named(build: Build, tmp_path: Path) -> None:
    path = tmp_path / "evil.tar"
    path.write_bytes(archives.file(b"../../etc/passwd", b"x") + archives.END)
    message = build(source=path).failed(1)
    assert message.startswith(f"tar archive {path}: member ../../etc/passwd: ")


def test_several_sources(build: Build, run: Run, archive: Path, tmp_path: Path) -> None:
    over = tmp_path / "over"
    (over / "dir").mkdir(parents=True)
    (over / "dir" / "more").write_text("more")
    (over / "link").write_text("no link")
    count = build("--json", source=(archive, over)).json["inodes"]
    assert count == 6  # root, dir, dir/file, dir/more, link, odd
    merged = tmp_path / "merged"
    subprocess.run(["cp", "-a", tmp_path / "tree", merged], check=True)
    subprocess.run(["cp", "-a", "--remove-destination", f"{over}/.", merged], check=True)
    expected = build(source=merged, output=tmp_path / "merged.raw").succeeded()
    assert build("--force", source=(archive, over)).succeeded() == expected


def test_exclude_and_include(build: Build, tree: Path, tmp_path: Path) -> None:
    words = ["--exclude", "/dir/*", "--include", "file", "--exclude", b"odd\xff", "--exclude", "gone"]
    (tree / "dir" / "gone").mkdir()
    told = build("--json", *words).json
    assert told["inodes"] == 4  # root, dir, dir/file, link
    assert "matches nothing" in build("--exclude", "a//b").failed(2)


def test_owner(build: Build, tree: Path, tmp_path: Path) -> None:
    first = build("--owner", "7:8").succeeded()
    if os.geteuid() == 0:
        for path in (tree, *tree.rglob("*")):
            os.chown(path, 7, 8, follow_symlinks=False)
        assert build("--force").succeeded() == first
        assert build("--force", "--owner", "1-7:=11:").succeeded() != first
    assert "not understood: expected UID:GID" in build("--owner", "root:root").failed(2)


def test_source_date_epoch_clamps(build: Build, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first = build().succeeded()
    os.utime(tree / "dir" / "file", (2_000_000_000, 2_000_000_000))
    assert build("--force").succeeded() == first
    os.utime(tree / "dir" / "file", (1_000_000_000, 1_000_000_000))
    assert build("--force").succeeded() != first


def test_output_that_is_the_source(build: Build, archive: Path) -> None:
    assert "is the source" in build("--force", source=archive, output=archive).failed(1)
    assert "lies inside the source" in build(source=(archive, archive.parent), output=archive.parent / "x.raw").failed(
        1
    )


def test_warnings_of_what_a_system_lacks(build: Build, tree: Path) -> None:
    (tree / "usr").mkdir()
    tree.chmod(0o755)
    done = build("--json", "--owner", "0:0")
    assert done.code == 0
    lines = done.err.splitlines()
    assert [line.removeprefix("rofs: warning: ") for line in lines] == done.json["warnings"]
    assert [line.split()[2:6] for line in lines] == [
        ["there", "is", "no", "/etc/machine-id,"],
        ["mount", "points", "are", "missing,"],
    ]


def test_no_warnings_of_other_trees(build: Build) -> None:
    assert build("--json").json["warnings"] == []


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
