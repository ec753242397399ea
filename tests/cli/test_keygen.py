# SPDX-License-Identifier: Apache-2.0
"""`rofs keygen`."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from rofs.trust import keys

from .conftest import Run


@pytest.mark.parametrize(
    ("words", "kind"),
    [((), ec.EllipticCurvePrivateKey), (("--type", "p256"), ec.EllipticCurvePrivateKey)],
)
def test_makes_a_pair(run: Run, tmp_path: Path, words: tuple[str, ...], kind: type) -> None:
    out = run("keygen", tmp_path / "new" / "keys", "--cn", "Büro", *words).succeeded()
    key_path, certificate_path = tmp_path / "new" / "keys" / "rofs.key", tmp_path / "new" / "keys" / "rofs.crt"
    key = keys.load_private_key(str(key_path))
    (certificate,) = keys.load_certificates(str(certificate_path))
    assert isinstance(key, kind)
    keys.check_pair(key, certificate)
    assert keys.subject(certificate) == "CN=Büro"
    assert stat.S_IMODE(key_path.stat().st_mode) == 0o600
    assert out == (
        f"private key: {key_path}\ncertificate: {certificate_path} (SHA-256 {keys.fingerprint(certificate)})\n"
    )


def test_rsa(run: Run, tmp_path: Path) -> None:
    run("keygen", tmp_path, "--type", "rsa3072").succeeded()
    key = keys.load_private_key(str(tmp_path / "rofs.key"))
    assert isinstance(key, rsa.RSAPrivateKey)
    assert key.key_size == 3072


@pytest.mark.parametrize("existing", ["rofs.key", "rofs.crt"])
def test_nothing_is_ever_overwritten(run: Run, tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")
    message = run("keygen", tmp_path).failed(1)
    assert message == f"{tmp_path}/{existing} exists already; keys are never overwritten"
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"


def test_directory_that_is_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in run("keygen", tmp_path / "file").failed(1)


@pytest.mark.parametrize("name", ["", "x" * 65, b"\xff"])
def test_common_name_that_no_certificate_can_have(run: Run, tmp_path: Path, name: str | bytes) -> None:
    assert "common name" in run("keygen", tmp_path, "--cn", name).failed(1)
    assert list(tmp_path.iterdir()) == []
