# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rofs.errors import InputError
from rofs.trust.store import load_trust

from .builders import pair

ALICE, BOB = pair(), pair(common_name="Bob")


def subjects(*paths: str | Path) -> list[str]:
    loaded = load_trust([str(path) for path in paths])
    return [trusted.certificate.subject.rfc4514_string() for trusted in loaded.certificates]


def test_nothing() -> None:
    loaded = load_trust([])
    assert (loaded.certificates, loaded.skipped) == ((), ())


def test_file_of_any_suffix_with_several_certificates(tmp_path: Path) -> None:
    path = tmp_path / "bundle.pem"
    parts = [Path(made.certificate_path).read_text() for made in (BOB, ALICE)]
    path.write_text("".join(parts))
    assert subjects(path) == ["CN=Bob", "CN=Alice"]
    loaded = load_trust([str(path)])
    assert loaded.certificates[0].path == str(path)
    assert loaded.certificates[0].fingerprint == BOB.trusted.fingerprint


def test_same_certificate_twice_counts_once(tmp_path: Path) -> None:
    shutil.copy(ALICE.certificate_path, tmp_path / "a.crt")
    assert subjects(ALICE.certificate_path, tmp_path, BOB.certificate_path) == [
        "CN=Alice",
        "CN=Bob",
    ]


def test_directory_says_what_was_skipped_and_why(tmp_path: Path) -> None:
    shutil.copy(ALICE.certificate_path, tmp_path / "b.crt")
    shutil.copy(BOB.certificate_path, tmp_path / "a.crt")
    shutil.copy(BOB.certificate_path, tmp_path / "other.pem")
    (tmp_path / "empty.crt").touch()
    (tmp_path / "junk.crt").write_text("junk")
    (tmp_path / "masked.crt").symlink_to("/dev/null")
    (tmp_path / "dangling.crt").symlink_to("nowhere")
    (tmp_path / "directory.crt").mkdir()
    os.mkfifo(tmp_path / "fifo.crt")
    assert subjects(tmp_path) == ["CN=Bob", "CN=Alice"]
    skipped = [(os.path.basename(p), why) for p, why in load_trust([str(tmp_path)]).skipped]
    assert [name for name, _ in skipped] == sorted(name for name, _ in skipped)
    reasons = dict(skipped)
    assert "masked" in reasons["masked.crt"]
    assert ".crt" in reasons["other.pem"]
    assert "is empty" in reasons["empty.crt"]
    assert "not PEM" in reasons["junk.crt"]
    assert all("regular" in reasons[f"{n}.crt"] for n in ("dangling", "directory", "fifo"))


def test_mask_holds_for_later_directories_only(tmp_path: Path) -> None:
    etc, usr = tmp_path / "etc", tmp_path / "usr"
    etc.mkdir()
    usr.mkdir()
    (etc / "a.crt").symlink_to("/dev/null")
    shutil.copy(ALICE.certificate_path, usr / "a.crt")
    shutil.copy(BOB.certificate_path, usr / "b.crt")
    assert subjects(etc, usr) == ["CN=Bob"]
    assert dict(load_trust([str(etc), str(usr)]).skipped)[str(usr / "a.crt")] == (f"masked by {etc / 'a.crt'}")
    assert subjects(usr, etc) == ["CN=Alice", "CN=Bob"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_in_a_directory_is_skipped(tmp_path: Path) -> None:
    shutil.copy(ALICE.certificate_path, tmp_path / "a.crt")
    (tmp_path / "a.crt").chmod(0)
    ((_, why),) = load_trust([str(tmp_path)]).skipped
    assert "Permission denied" in why


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"junk", "not PEM"), (None, "No such file")],
)
def test_named_file_that_is_no_certificate(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "named.crt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_trust([str(path)])
    with pytest.raises(InputError, match="holds a private key"):
        load_trust([ALICE.key_path])
