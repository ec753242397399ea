# SPDX-License-Identifier: Apache-2.0
"""`rofs inspect` explains its decision: which certificate, which clause of the policy, which file was passed over."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rofs.trust import keys, store
from tests.conftest import SigningKeys

from .conftest import Run, pairs


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two of this host's directories, the first one counts."""
    directories = tmp_path / "etc", tmp_path / "usr"
    for directory in directories:
        directory.mkdir()
    monkeypatch.setattr(store, "DEFAULT_DIRECTORIES", tuple(map(str, directories)))
    return directories


def test_host_certificates_are_trusted_without_an_option(
    run: Run, image: Path, host: tuple[Path, Path], signing_keys: SigningKeys
) -> None:
    shutil.copy(signing_keys.certificate_path, host[1] / "a.crt")
    told = run("inspect", image, "--json").json
    assert (told["accepted"], told["accepted_by"], told["clause"]) == (True, "signature", "root=signed")
    run("verify", image).succeeded()


def test_why_each_host_file_was_skipped(
    run: Run, image: Path, host: tuple[Path, Path], signing_keys: SigningKeys, other_keys: SigningKeys
) -> None:
    etc, usr = host
    shutil.copy(signing_keys.certificate_path, usr / "masked.crt")
    (etc / "masked.crt").symlink_to("/dev/null")
    shutil.copy(signing_keys.certificate_path, usr / "vendor.crt")
    shutil.copy(other_keys.certificate_path, etc / "vendor.crt")
    shutil.copy(signing_keys.certificate_path, etc / "signer.pem")
    (etc / "junk.crt").write_text("junk")
    told = run("inspect", image, "--json").json
    assert told["accepted"] is False
    assert {skipped["path"]: skipped["reason"] for skipped in told["skipped"]} == {
        f"{etc}/masked.crt": "it masks masked.crt",
        f"{usr}/masked.crt": f"masked by {etc}/masked.crt",
        f"{usr}/vendor.crt": f"overridden by {etc}/vendor.crt",
        f"{etc}/signer.pem": "its name does not end in .crt",
        f"{etc}/junk.crt": f"{etc}/junk.crt is not PEM",
    }
    text = run("inspect", image).succeeded()
    assert f"{usr}/vendor.crt: overridden by {etc}/vendor.crt" in text


def test_pem_instead_of_crt_is_named_in_the_refusal(
    run: Run, image: Path, host: tuple[Path, Path], signing_keys: SigningKeys
) -> None:
    shutil.copy(signing_keys.certificate_path, host[0] / "signer.pem")
    message = run("verify", image).failed(3)
    assert f"skipped: {host[0]}/signer.pem (its name does not end in .crt)" in message
    assert f"no certificate in {host[0]}, {host[1]}" in message


def test_explicit_trust_leaves_the_host_out(
    run: Run, image: Path, host: tuple[Path, Path], signing_keys: SigningKeys, other_keys: SigningKeys
) -> None:
    shutil.copy(signing_keys.certificate_path, host[0] / "a.crt")
    assert "not signed by a trusted" in run("verify", image, "--trust", other_keys.certificate_path).failed(3)


def test_a_pinned_root_hash_alone_leaves_the_host_out(
    run: Run, image: Path, host: tuple[Path, Path], other_keys: SigningKeys
) -> None:
    shutil.copy(other_keys.certificate_path, host[0] / "a.crt")
    root_hash = run("inspect", image, "--json").json["root_hash"]
    assert run("verify", image, "--root-hash", root_hash, "--json").json["accepted_by"] == "root-hash"


def test_each_certificate_is_explained(
    run: Run, image: Path, signing_keys: SigningKeys, other_keys: SigningKeys
) -> None:
    words = [word for k in (other_keys, signing_keys) for word in ("--trust", str(k.certificate_path))]
    told = run("inspect", image, *words, "--json").json
    assert [(c["path"], c["verified"]) for c in told["certificates"]] == [
        (str(other_keys.certificate_path), False),
        (str(signing_keys.certificate_path), True),
    ]
    assert told["certificates"][1]["fingerprint"] == keys.fingerprint(signing_keys.certificate)
    told = run("inspect", image, *words[:2], "--json").json
    assert "signature does not match the root hash under this key" in told["certificates"][0]["detail"]
    assert pairs(run("inspect", image, *words[:2]).succeeded())["certificate"].startswith(words[1])


@pytest.mark.parametrize(
    ("policy", "accepted", "clause"),
    [
        ("root=signed", True, "root=signed"),
        ("=signed", True, "=signed"),
        ("root=verity:=absent", True, "root=verity"),
        ("root=encrypted", False, "root=encrypted"),
        ("usr=signed", False, "root is not listed, so it is ignored"),
        ("~", False, "~"),
    ],
)
def test_the_clause_that_decides_is_told(
    run: Run, image: Path, trust: tuple[str, str], policy: str, accepted: bool, clause: str
) -> None:
    done = run("inspect", image, *trust, "--image-policy", policy, "--json")
    assert (done.code, done.json["accepted"], done.json["clause"]) == (0, accepted, clause)
    assert done.json["policy"] == policy
    if not accepted:
        assert clause in run("verify", image, *trust, "--image-policy", policy).failed(3)


def test_a_policy_that_allows_verity_says_what_that_means(run: Run, image: Path) -> None:
    done = run("verify", image, "--image-policy", "root=verity", "--json")
    assert (done.code, done.json["accepted_by"]) == (0, "unsigned")
    assert "replace the image can replace both" in done.err


@pytest.mark.parametrize("verb", ["verify", "inspect", "mount"])
@pytest.mark.parametrize("policy", ["root=sgined", "foo=signed", "root", "", "root=signed:root=open"])
def test_a_policy_that_is_none_names_its_clause(run: Run, verb: str, image: Path, tmp_path: Path, policy: str) -> None:
    words = (image, tmp_path) if verb == "mount" else (image,)
    message = run(verb, *words, "--image-policy", policy).failed(2)
    assert "clause" in message


def test_allow_unsigned_and_a_policy_contradict(run: Run, image: Path) -> None:
    message = run("verify", image, "--allow-unsigned", "--image-policy", "root=signed").failed(2)
    assert "--image-policy" in message


def test_an_unsigned_image_shows_the_room_for_a_signature(run: Run, tree: Path, tmp_path: Path) -> None:
    run("build", tree, "-o", tmp_path / "u.raw", "--unsigned").succeeded()
    told = run("inspect", tmp_path / "u.raw", "--json").json
    assert [(p["role"], p["size"]) for p in told["partitions"]][-1] == ("root-verity-sig", 16384)
    assert told["warnings"] == ["signature partition is empty: the image is not signed yet"]
    assert told["signers"] == []


def test_a_bare_filesystem_is_described_too(
    run: Run, image: Path, tmp_path: Path, signing_keys: SigningKeys, trust: tuple[str, str]
) -> None:
    told = run("inspect", image, "--json").json
    data = image.read_bytes()
    for part, name in zip(told["partitions"][:2], ("bare.raw", "bare.verity"), strict=True):
        (tmp_path / name).write_bytes(data[part["offset"] : part["offset"] + part["size"]])
    (tmp_path / "bare.roothash").write_text(told["root_hash"])
    pair = "--key", signing_keys.key_path, "--cert", signing_keys.certificate_path
    run("sign", tmp_path / "bare.raw", *pair).succeeded()
    described = run("inspect", tmp_path / "bare.raw", *trust, "--json").json
    assert (described["accepted"], described["partitions"], described["name"]) == (True, [], "edge")
    run("verify", tmp_path / "bare.raw", *trust).succeeded()
    run("inspect", tmp_path / "bare.raw", *trust).succeeded()
