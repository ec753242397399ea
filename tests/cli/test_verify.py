# SPDX-License-Identifier: Apache-2.0
"""`rofs verify` and `rofs inspect`: good images, bad ones, and what is none; the options of trust."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rofs.errors import one_line
from rofs.image.open import open_file, open_image
from rofs.trust.verify import TrustPolicy
from tests.conftest import SigningKeys

from .conftest import Run, pairs

VERBS = ("verify", "inspect")
both = pytest.mark.parametrize("verb", VERBS)


def overwrite(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def offsets(image: Path, policy: TrustPolicy) -> tuple[int, int]:
    """Of the block that the content of /dir/file begins in, and of the hash tree."""
    with open_file(str(image)) as files:
        opened = open_image(files, policy)
        directory = opened.filesystem.lookup(opened.filesystem.root_nid, b"dir")
        assert directory is not None
        nid = opened.filesystem.lookup(directory, b"file")
        assert nid is not None
        (content,) = [e.offset_bytes for e in opened.filesystem.extents(nid) if e.file_offset_bytes == 0]
        return opened.facts.data_offset_bytes + content, opened.facts.hash_offset_bytes


# Good images


def test_verify(run: Run, image: Path, trust: tuple[str, str]) -> None:
    out = run("verify", image, *trust).succeeded()
    assert (pairs(out)["name"], pairs(out)["accepted by"]) == ("edge", "signature")
    assert out.splitlines()[-1].endswith("blocks match the root hash")


def test_verify_json(run: Run, image: Path, trust: tuple[str, str]) -> None:
    done = run("verify", image, *trust, "--json")
    done.succeeded()
    told = done.json
    assert (told["name"], told["version"], told["rollback_index"]) == ("edge", "1.2", 3)
    assert (told["accepted_by"], told["corrupt"], told["unjudged_blocks"]) == ("signature", [], 0)
    assert told["blocks"] > 0


def test_inspect(run: Run, image: Path, trust: tuple[str, str]) -> None:
    out = run("inspect", image, *trust).succeeded()
    assert pairs(out)["accepted"] == "yes"
    assert out.endswith("content was not checked (rofs verify does)\n")


def test_inspect_json(run: Run, image: Path, trust: tuple[str, str]) -> None:
    done = run("inspect", image, *trust, "--json")
    done.succeeded()
    told = done.json
    assert (told["name"], told["version"], told["accepted"], told["rollback_index"]) == ("edge", "1.2", True, 3)
    assert [signer["trusted"] for signer in told["signers"]] == [True]
    assert [part["role"] for part in told["partitions"]] == ["root", "root-verity", "root-verity-sig"]


def test_inspect_explains_what_would_be_refused(run: Run, image: Path, other_keys: SigningKeys) -> None:
    for words in ((), ("--trust", other_keys.certificate_path)):
        done = run("inspect", image, *words, "--json")
        done.succeeded()
        assert done.json["accepted"] is False
        assert done.json["name"] == "edge"  # a claim
        assert done.json["reason"]
    assert pairs(run("inspect", image).succeeded())["accepted"] == "no"


# Trust


def test_nothing_trusted(run: Run, image: Path) -> None:
    message = run("verify", image).failed(3)
    assert message.startswith(f"{image}: nothing is trusted: no certificate in ")
    assert message.endswith("; name a certificate with --trust FILE or pin --root-hash HEX")


def test_wrong_key(run: Run, image: Path, other_keys: SigningKeys) -> None:
    message = run("verify", image, "--trust", other_keys.certificate_path).failed(3)
    assert "not signed by a trusted certificate" in message
    assert str(other_keys.certificate_path) in message


def test_pinned_root_hash(run: Run, image: Path, trust: tuple[str, str], other_keys: SigningKeys) -> None:
    root_hash = run("inspect", image, "--json").json["root_hash"]
    pinned = run("verify", image, "--root-hash", root_hash.upper(), "--json")
    assert pinned.json["accepted_by"] == "root-hash"
    assert run("verify", image, "--root-hash", root_hash, *trust, "--json").json["accepted_by"] == "signature+root-hash"
    assert f"the image has {root_hash}" in run("verify", image, "--root-hash", "0" * 64, *trust).failed(3)
    run("verify", image, "--root-hash", root_hash, "--trust", other_keys.certificate_path).failed(3)


@both
@pytest.mark.parametrize("value", ["", "xyz", "0" * 63, "0" * 65, "g" * 64, "0 " * 32, "0x" + "0" * 62, "0" * 10_000])
def test_root_hash_that_is_none(run: Run, image: Path, verb: str, value: str) -> None:
    message = run(verb, image, "--root-hash", value).failed(2)
    assert message.startswith("--root-hash ")
    assert len(message) < 250


@both
def test_certificates_that_are_none(
    run: Run, image: Path, verb: str, tmp_path: Path, signing_keys: SigningKeys
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"{tmp_path}/none" in run(verb, image, "--trust", tmp_path / "none").failed(1)
    assert run(verb, image, "--trust", empty).failed(1) == f"no certificate found in {empty}"
    assert "expected a PEM certificate" in run(verb, image, "--trust", signing_keys.key_path).failed(1)
    assert "is not PEM" in run(verb, image, "--trust", image).failed(1) or image.stat().st_size > 1 << 20
    odd = os.fsencode(tmp_path) + b"/odd\xff\n"
    os.mkdir(odd)
    assert run(verb, image, "--trust", odd).failed(1).endswith("/odd\\xff\\n")


def test_files_of_a_directory_that_were_skipped_are_named(run: Run, image: Path, tmp_path: Path) -> None:
    directory = tmp_path / "trust"
    directory.mkdir()
    (directory / "bad.crt").write_text("text")
    (directory / "notes.txt").write_text("text")
    message = run("verify", image, "--trust", directory).failed(1)
    assert message.startswith(f"no certificate found in {directory}; skipped: {directory}/bad.crt (")
    assert f"{directory}/notes.txt (its name does not end in .crt)" in message


def test_allow_unsigned_says_what_it_means(run: Run, image: Path) -> None:
    done = run("verify", image, "--allow-unsigned", "--json")
    assert done.code == 0
    assert done.json["accepted_by"] == "unsigned"
    assert "whoever can" in done.err
    assert "replace the image can replace both" in done.err
    assert len(done.err.splitlines()) == 2


# What is no image


@both
def test_image_that_is_missing_or_a_directory(run: Run, verb: str, tmp_path: Path, trust: tuple[str, str]) -> None:
    assert run(verb, tmp_path / "none", *trust).failed(1) == (
        f"cannot open image {tmp_path}/none: No such file or directory"
    )
    assert run(verb, tmp_path, *trust).failed(1) == f"image {tmp_path} is a directory; expected an image file"
    os.mkfifo(tmp_path / "fifo")
    assert "neither a regular file nor a block device" in run(verb, tmp_path / "fifo", *trust).failed(1)
    assert "none\\xff: No such" in run(verb, os.fsencode(tmp_path) + b"/none\xff", *trust).failed(1)


@both
@pytest.mark.parametrize("content", [b"", b"x", b"text\n" * 10, b"text\n" * 100_000, bytes(1 << 20)])
def test_file_that_is_no_image(run: Run, verb: str, tmp_path: Path, trust: tuple[str, str], content: bytes) -> None:
    (tmp_path / "text").write_bytes(content)
    message = run(verb, tmp_path / "text", *trust).failed(4)
    assert message.startswith(f"{tmp_path}/text: ")
    assert len(message) < 400


@both
@pytest.mark.parametrize("keep", [0.1, 0.3, 0.5])
def test_truncated_image(run: Run, verb: str, image: Path, trust: tuple[str, str], keep: float) -> None:
    os.truncate(image, int(image.stat().st_size * keep))
    run(verb, image, *trust).failed(4)


def test_backup_table_that_was_cut_off_is_only_a_warning(run: Run, image: Path, trust: tuple[str, str]) -> None:
    os.truncate(image, image.stat().st_size - 512)
    verified, inspected = run("verify", image, *trust), run("inspect", image, *trust)
    assert (verified.code, inspected.code) == (0, 0)
    assert verified.err.startswith("rofs: warning: backup GPT")
    assert "\nwarning: backup GPT" in inspected.out


# Corrupt images


def test_corrupt_block_names_its_file(run: Run, image: Path, trust: tuple[str, str], signing_keys: SigningKeys) -> None:
    content, _ = offsets(image, signing_keys.policy)
    overwrite(image, content + 100, b"!")
    message = run("verify", image, *trust).failed(4)
    assert message.startswith(f"{image} is corrupt: data block ")
    assert message.endswith(" in /dir/file")
    done = run("verify", image, *trust, "--json")
    assert done.code == 4
    (bad,) = done.json["corrupt"]
    assert (bad["kind"], bad["level"], bad["paths"]) == ("mismatch", -1, ["/dir/file"])
    assert bad["expected"] != bad["found"]


def test_corrupt_hash_tree(run: Run, image: Path, trust: tuple[str, str], signing_keys: SigningKeys) -> None:
    _, tree = offsets(image, signing_keys.policy)
    overwrite(image, tree + 4096 + 5, b"!!!!")
    message = run("verify", image, *trust).failed(4)
    assert "hash block" in message
    assert run("inspect", image, *trust).code == 0


def test_signature_that_was_taken_away(run: Run, image: Path, trust: tuple[str, str]) -> None:
    (signature,) = [
        part for part in run("inspect", image, "--json").json["partitions"] if part["role"] == "root-verity-sig"
    ]
    overwrite(image, signature["offset"], bytes(signature["size"]))
    message = run("verify", image, *trust).failed(3)
    assert "is not signed" in message
    assert run("inspect", image, *trust, "--json").json["accepted"] is False


# What an image says of itself is shown, never obeyed


def test_terminal_is_safe_from_what_an_image_says() -> None:
    assert one_line("a\nb\x1b[2J\x9b\u202e\ud800é") == "a\\nb\\x1b[2J\\x9b\\u202e\\ud800é"


def test_partition_label_cannot_forge_a_line(
    run: Run, image: Path, monkeypatch: pytest.MonkeyPatch, trust: tuple[str, str]
) -> None:
    from rofs.image import open as module
    from rofs.image.identity import Identity

    hostile = Identity("x\naccepted: yes\x1b[2J", "\ud800", 0, 0, acl=False, xattrs=False)
    monkeypatch.setattr(module, "parse_identity", lambda value: hostile)
    for words in (("verify", image, *trust), ("inspect", image, *trust)):
        out = run(*words).succeeded()
        assert "\n accepted: yes" not in out
        assert "\x1b" not in out
        assert "x\\naccepted: yes\\x1b[2J" in out
        assert run(*words, "--json").json["name"] == hostile.name
