# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rofs.errors import InputError
from rofs.trust.store import DEFAULT_DIRECTORIES, LoadedTrust, load_default_trust, load_trust

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
    assert "masks" in reasons["masked.crt"]
    assert ".crt" in reasons["other.pem"]
    assert "masks" in reasons["empty.crt"]
    assert "not PEM" in reasons["junk.crt"]
    assert "No such file" in reasons["dangling.crt"]
    assert all("regular" in reasons[f"{n}.crt"] for n in ("directory", "fifo"))


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


# The directories of this host


class Host:
    """A root with the default directories, which are made when something is put into them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, place: int, name: str) -> Path:
        path = self.root / DEFAULT_DIRECTORIES[place].lstrip("/") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def put(self, place: int, name: str, certificate: str = ALICE.certificate_path) -> str:
        return str(shutil.copy(certificate, self.path(place, name)))

    def load(self) -> LoadedTrust:
        return load_default_trust(str(self.root))

    def subjects(self) -> list[str]:
        return [trusted.certificate.subject.rfc4514_string() for trusted in self.load().certificates]

    def reason(self, path: str | Path) -> str:
        return dict(self.load().skipped)[str(path)]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host")


def test_the_directories_are_those_of_systemd() -> None:
    assert DEFAULT_DIRECTORIES == ("/etc/verity.d", "/run/verity.d", "/usr/local/lib/verity.d", "/usr/lib/verity.d")


def test_missing_default_directories_are_no_error(host: Host) -> None:
    assert host.load() == LoadedTrust((), ())


@pytest.mark.parametrize("place", range(4))
def test_each_default_directory_counts(host: Host, place: int) -> None:
    host.put(place, "a.crt")
    assert host.subjects() == ["CN=Alice"]


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 3), (1, 2), (2, 3)])
def test_the_first_file_of_a_name_wins(host: Host, first: int, second: int) -> None:
    winner = host.put(first, "vendor.crt", BOB.certificate_path)
    loser = host.put(second, "vendor.crt")
    assert host.subjects() == ["CN=Bob"]
    assert host.reason(loser) == f"overridden by {winner}"


def test_a_broken_file_takes_its_name_all_the_same(host: Host) -> None:
    path = host.path(0, "a.crt")
    path.write_text("junk")
    loser = host.put(3, "a.crt")
    assert host.subjects() == []
    assert "is not PEM" in host.reason(path)
    assert host.reason(loser) == f"overridden by {path}"


@pytest.mark.parametrize("mask", ["link to /dev/null", "empty file"])
def test_a_masked_certificate_is_revoked(host: Host, mask: str) -> None:
    masked, other = host.put(3, "a.crt"), host.put(3, "b.crt", BOB.certificate_path)
    path = host.path(1, "a.crt")
    if mask == "empty file":
        path.touch()
    else:
        path.symlink_to("/dev/null")
    assert host.subjects() == ["CN=Bob"]
    assert host.reason(masked) == f"masked by {path}"
    assert host.reason(path) == "it masks a.crt"
    assert other not in dict(host.load().skipped)


def test_a_mask_below_the_certificate_changes_nothing(host: Host) -> None:
    path = host.put(0, "a.crt")
    host.path(3, "a.crt").symlink_to("/dev/null")
    assert host.subjects() == ["CN=Alice"]
    assert host.reason(host.path(3, "a.crt")) == f"overridden by {path}"


def test_pem_instead_of_crt_in_verity_d_is_skipped_and_named(host: Host) -> None:
    path = host.put(0, "signer.pem")
    assert host.subjects() == []
    assert host.reason(path) == "its name does not end in .crt"


@pytest.mark.parametrize("defect", ["dangling link", "directory", "fifo"])
def test_what_is_no_file_does_not_take_the_name(host: Host, defect: str) -> None:
    path = host.path(0, "a.crt")
    if defect == "dangling link":
        path.symlink_to("nowhere")
    elif defect == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)
    host.put(3, "a.crt")
    assert host.subjects() == ["CN=Alice"]
    assert host.reason(path)


def test_files_of_one_name_that_were_named_do_not_override_each_other(tmp_path: Path) -> None:
    for name, made in (("one", ALICE), ("two", BOB)):
        (tmp_path / name).mkdir()
        shutil.copy(made.certificate_path, tmp_path / name / "rofs.crt")
    assert subjects(tmp_path / "one", tmp_path / "two") == ["CN=Alice", "CN=Bob"]
