# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from rofs import durable
from rofs.errors import HostError, InputError
from rofs.trust import keys

from .builders import NOW, needs_openssl, openssl, pair


@pytest.mark.parametrize("key_type", ["p256", "rsa3072"])
def test_generated_pair(key_type: keys.KeyType) -> None:
    made = pair(key_type)
    keys.check_pair(made.key, made.certificate)
    if key_type == "p256":
        assert isinstance(made.key, ec.EllipticCurvePrivateKey)
        assert isinstance(made.key.curve, ec.SECP256R1)
    else:
        assert isinstance(made.key, rsa.RSAPrivateKey)
        assert made.key.key_size == 3072
    assert keys.subject(made.certificate) == "CN=Alice"
    assert made.certificate.version == x509.Version.v3
    assert made.certificate.not_valid_before_utc == NOW
    usage = made.certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    made.certificate.verify_directly_issued_by(made.certificate)


def test_modes_and_pem(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    keys.generate(str(directory), common_name="x", now=NOW)
    assert sorted(os.listdir(directory)) == ["rofs.crt", "rofs.key"]
    assert (directory / "rofs.key").stat().st_mode & 0o777 == 0o600
    assert (directory / "rofs.key").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")


@needs_openssl
def test_openssl_reads_the_certificate() -> None:
    text = openssl("x509", "-in", pair().certificate_path, "-noout", "-text").decode()
    assert "Digital Signature" in text
    assert "CA:FALSE" in text


@pytest.mark.parametrize("existing", ["rofs.key", "rofs.crt"])
def test_never_overwrites(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("precious")
    with pytest.raises(InputError, match="exists already"):
        keys.generate(str(tmp_path), common_name="x", now=NOW)
    assert os.listdir(tmp_path) == [existing]
    assert (tmp_path / existing).read_text() == "precious"


class FullAfterTheKey(durable.Calls):
    """A disk that has room for the first file only."""

    def __init__(self) -> None:
        self.files = 0

    def open(self, path: bytes, flags: int, mode: int) -> int:
        self.files += 1
        return super().open(path, flags, mode)

    def pwrite(self, fd: int, data: bytes | memoryview, offset_bytes: int) -> int:
        if self.files > 1:
            raise OSError(28, "full")
        return super().pwrite(fd, data, offset_bytes)


def test_no_key_stays_without_its_certificate(tmp_path: Path) -> None:
    with durable.using(FullAfterTheKey()), pytest.raises(HostError, match="No space left"):
        keys.generate(str(tmp_path), common_name="x", now=NOW)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["", "x" * 65, "\ud800"])
def test_bad_common_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="common name"):
        keys.generate(str(tmp_path / "new"), common_name=name, now=NOW)
    assert not (tmp_path / "new").exists()


def test_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Not a directory"):
        keys.generate(str(tmp_path / "file"), common_name="x", now=NOW)


def test_relative_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    keys.generate("new", common_name="x", now=NOW)
    assert (tmp_path / "new" / "rofs.crt").exists()


def test_wrong_key_files(tmp_path: Path) -> None:
    encrypted = pair().key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    begin, end = b"-----BEGIN PRIVATE KEY-----\n", b"-----END PRIVATE KEY-----\n"
    cases = {
        "is empty": b"",
        "is not PEM": b"\x30\x82",
        "is encrypted": encrypted,
        "is a certificate": Path(pair().certificate_path).read_bytes(),
        "no usable private key": begin + b"AAAA\n" + end,
        "key of another type": ed25519.Ed25519PrivateKey.generate().private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "RSA of 2048 bits": small.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "is larger than": begin + b"A" * (1 << 20),
    }
    path = tmp_path / "key"
    for message, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            keys.load_private_key(str(path))
    with pytest.raises(InputError, match="No such file"):
        keys.load_private_key(str(tmp_path / "missing"))


def test_wrong_certificate_files(tmp_path: Path) -> None:
    good = Path(pair().certificate_path).read_bytes()
    begin, end = b"-----BEGIN CERTIFICATE-----\n", b"-----END CERTIFICATE-----\n"
    cases = {
        "is empty": b"",
        "is not PEM": b"hello",
        "holds a private key": Path(pair().key_path).read_bytes(),
        "no usable certificate": begin + b"AAAA\n" + end,
        "holds no usable": good + begin + b"!!\n" + end,
        "holds no certificate": b"-----BEGIN PUBLIC KEY-----\n",
    }
    path = tmp_path / "cert"
    for message, data in cases.items():
        path.write_bytes(data)
        with pytest.raises(InputError, match=message):
            keys.load_certificates(str(path))
    with pytest.raises(InputError, match="Is a directory"):
        keys.load_certificates(str(tmp_path))


def test_any_flipped_byte_of_a_hint_is_left_out_or_quiet() -> None:
    der = pair().certificate.public_bytes(Encoding.DER)
    for at in range(len(der)):
        for change in (0x01, 0x07, 0x0F, 0x10, 0x80, 0xFF):
            flipped = bytearray(der)
            flipped[at] ^= change
            for certificate in keys.readable_certificates([bytes(flipped)]):
                keys.subject(certificate)
                keys.issuer_and_serial(certificate)
                keys.subject_key_id(certificate)


def test_several_certificates_in_one_file(tmp_path: Path) -> None:
    both = [pair().certificate, pair("rsa3072").certificate]
    path = tmp_path / "both.pem"
    path.write_bytes(b"comment\n" + b"".join(c.public_bytes(Encoding.PEM) for c in both))
    assert keys.load_certificates(str(path)) == both


def test_mismatched_pair_names_both_public_keys() -> None:
    with pytest.raises(InputError, match=r"public key [0-9a-f]{64} of the key, [0-9a-f]{64} of"):
        keys.check_pair(pair().key, pair(common_name="Bob").certificate)


class TestPassphrase:
    @pytest.mark.parametrize("key_type", ["p256", "rsa3072"])
    def test_key_is_encrypted_and_opens_with_it(self, tmp_path: Path, key_type: keys.KeyType) -> None:
        key, certificate = keys.generate(
            str(tmp_path), key_type=key_type, common_name="x", now=NOW, passphrase=b"se\xffcret"
        )
        assert Path(os.fsdecode(key)).read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
        loaded = keys.load_private_key(key, lambda: b"se\xffcret")
        keys.check_pair(loaded, keys.load_certificates(certificate)[0])

    @needs_openssl
    @pytest.mark.parametrize("form", [["pkcs8", "-topk8"], ["ec", "-aes256"]], ids=["PKCS#8", "traditional"])
    def test_keys_that_openssl_encrypted(self, tmp_path: Path, form: list[str]) -> None:
        path = tmp_path / "key"
        openssl(*form, "-in", pair().key_path, "-passout", "pass:secret", "-out", path)
        keys.check_pair(keys.load_private_key(str(path), lambda: b"secret"), pair().certificate)

    @pytest.mark.parametrize("wrong", [b"wrong", b"", b"x" * 5000])
    def test_wrong_passphrase_is_no_riddle(self, tmp_path: Path, wrong: bytes) -> None:
        key, _ = keys.generate(str(tmp_path), common_name="x", now=NOW, passphrase=b"secret")
        with pytest.raises(InputError) as caught:
            keys.load_private_key(key, lambda: wrong)
        assert str(caught.value) == f"{os.fsdecode(key)} cannot be decrypted: the passphrase is wrong"

    def test_it_is_asked_for_only_when_needed(self) -> None:
        def never() -> bytes:
            raise AssertionError

        keys.load_private_key(pair().key_path, never)

    @pytest.mark.parametrize("passphrase", [b"", b"x" * 1024])
    def test_passphrase_that_nobody_could_use(self, tmp_path: Path, passphrase: bytes) -> None:
        with pytest.raises(InputError, match="expected 1 to 1023"):
            keys.generate(str(tmp_path / "new"), common_name="x", now=NOW, passphrase=passphrase)
        assert not (tmp_path / "new").exists()
