# SPDX-License-Identifier: Apache-2.0
"""The real tools as a second opinion on an image of a real Debian: each must accept what rofs has made."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import SigningKeys
from tests.mounts.harness import partitions, rofs


@pytest.fixture(scope="module")
def parts(debian_root: Path, signing_keys: SigningKeys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the three partitions of an image as files, and its root hash."""
    directory = tmp_path_factory.mktemp("parts")
    image = directory / "image.raw"
    keys = ("--key", signing_keys.key_path, "--cert", signing_keys.certificate_path)
    (directory / "root-hash").write_text(rofs("build", debian_root, "-o", image, *keys).stdout.strip())
    with image.open("rb") as file:
        for role, part in partitions(image).items():
            file.seek(part["offset"])
            (directory / role).write_bytes(file.read(part["size"]))
    return directory


def _run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    assert shutil.which(str(words[0])), f"{words[0]} is missing; scripts/setup installs it"
    return subprocess.run(words, check=False, capture_output=True, text=True)


def test_fsck_erofs_accepts_the_data_partition(parts: Path) -> None:
    done = _run("fsck.erofs", "--extract", parts / "root")
    assert done.returncode == 0, done.stderr


def test_veritysetup_verifies_the_tree(parts: Path) -> None:
    done = _run("veritysetup", "verify", parts / "root", parts / "root-verity", (parts / "root-hash").read_text())
    assert done.returncode == 0, done.stderr


def test_veritysetup_makes_the_same_tree(parts: Path, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "tree", (parts / "root-verity").read_bytes()
    uuid = _run("veritysetup", "dump", parts / "root-verity").stdout.split("UUID:")[1].split()[0]
    done = _run("veritysetup", "format", "--salt=-", f"--uuid={uuid}", parts / "root", theirs)
    assert (parts / "root-hash").read_text() in done.stdout
    assert theirs.read_bytes() == ours


def test_openssl_verifies_the_signature(parts: Path, signing_keys: SigningKeys, tmp_path: Path) -> None:
    document = json.loads((parts / "root-verity-sig").read_bytes().rstrip(b"\0"))
    base64, der = tmp_path / "base64", tmp_path / "der"
    base64.write_text(document["signature"])
    assert _run("openssl", "base64", "-d", "-A", "-in", base64, "-out", der).returncode == 0
    words = ("openssl", "smime", "-verify", "-binary", "-inform", "der", "-in", der, "-content", parts / "root-hash")
    done = _run(*words, "-certfile", signing_keys.certificate_path, "-nointern", "-noverify")
    assert done.returncode == 0, done.stderr
    assert document["rootHash"] == (parts / "root-hash").read_text() == done.stdout


def test_sfdisk_reads_the_partition_table(parts: Path) -> None:
    done = _run("sfdisk", "--json", parts / "image.raw")
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)["partitiontable"]
    assert table["label"] == "gpt"
    root_hash = (parts / "root-hash").read_text()
    uuids = [partition["uuid"].replace("-", "").lower() for partition in table["partitions"]]
    assert uuids[:2] == [root_hash[:32], root_hash[32:]]
    assert "backup" not in done.stderr
