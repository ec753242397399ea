# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.errors import FormatError, TrustError
from rofs.trust import keys, pkcs7
from rofs.trust.pkcs7_format import MAX_SIGNATURE_BYTES

from .builders import OTHER_ROOT_HASH, ROOT_HASH, Pair, needs_openssl, openssl, openssl_sign, pair

CONTENT = pkcs7.signed_bytes(ROOT_HASH)


def check(der: bytes, signer: Pair, root_hash: bytes = ROOT_HASH) -> None:
    """All signers of a signature against one certificate."""
    for info in pkcs7.parse_signed_data(der).signers:
        pkcs7.verify_signer(info, pkcs7.signed_bytes(root_hash), signer.certificate.public_key())


def test_signed_bytes_are_the_hex_text() -> None:
    assert ROOT_HASH.hex().encode() == CONTENT


@pytest.mark.parametrize("key_type", ["p256", "rsa3072"])
def test_round_trip(key_type: keys.KeyType) -> None:
    signer = pair(key_type)
    der = pkcs7.sign(ROOT_HASH, signer.key, signer.certificate)
    check(der, signer)
    (info,) = pkcs7.parse_signed_data(der).signers
    assert info.attributes is None
    assert info.serial_number == signer.certificate.serial_number
    assert info.issuer_der == signer.certificate.issuer.public_bytes()


@needs_openssl
@pytest.mark.parametrize("key_type", ["p256", "rsa3072"])
def test_openssl_accepts_our_signature(key_type: keys.KeyType, tmp_path: Path) -> None:
    signer = pair(key_type)
    (tmp_path / "sig.p7").write_bytes(pkcs7.sign(ROOT_HASH, signer.key, signer.certificate))
    (tmp_path / "hex.txt").write_bytes(CONTENT)
    files = "-in", tmp_path / "sig.p7", "-content", tmp_path / "hex.txt"
    flags = "-certfile", signer.certificate_path, "-nointern", "-noverify", "-binary"
    assert openssl("smime", "-verify", "-inform", "der", *files, *flags) == CONTENT


@needs_openssl
@pytest.mark.parametrize("key_type", ["p256", "rsa3072"])
@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("smime", ["-noattr"]),
        ("smime", []),
        ("smime", ["-nocerts"]),
        ("cms", ["-noattr"]),
        ("cms", []),
        ("cms", ["-keyid"]),
    ],
)
def test_we_accept_signatures_of_openssl(key_type: keys.KeyType, digest: str, command: str, options: list[str]) -> None:
    signer = pair(key_type)
    der = openssl_sign(signer, "-md", digest, *options, command=command)
    check(der, signer)
    with pytest.raises(TrustError):
        check(der, signer, OTHER_ROOT_HASH)
    with pytest.raises(TrustError):
        check(der, pair(key_type, "Bob"))


@needs_openssl
@pytest.mark.parametrize("options", [["-noattr"], []])
def test_sha1_is_refused(options: list[str]) -> None:
    signer = pair("rsa3072")
    der = openssl_sign(signer, "-md", "sha1", *options)
    with pytest.raises(TrustError, match=r"digest algorithm 1\.3\.14\.3\.2\.26 is refused"):
        check(der, signer)


@needs_openssl
@pytest.mark.parametrize("command", ["smime", "cms"])
def test_attached_content_is_refused(command: str) -> None:
    with pytest.raises(FormatError, match="expected a detached signature"):
        pkcs7.parse_signed_data(openssl_sign(pair(), "-nodetach", command=command))


@needs_openssl
def test_rsa_pss_is_refused() -> None:
    der = openssl_sign(pair("rsa3072"), "-keyopt", "rsa_padding_mode:pss", command="cms")
    with pytest.raises(FormatError, match="malformed"):
        check(der, pair("rsa3072"))


@needs_openssl
def test_too_many_signers() -> None:
    extra = [
        word
        for n in range(8)
        for made in [pair(common_name=f"signer {n}")]
        for word in ("-signer", made.certificate_path, "-inkey", made.key_path)
    ]
    assert len(pkcs7.parse_signed_data(openssl_sign(pair(), *extra[:-4])).signers) == 8
    with pytest.raises(FormatError, match="9 signers; expected 1 to 8"):
        pkcs7.parse_signed_data(openssl_sign(pair(), *extra))


def test_merged_signatures_each_verify() -> None:
    signers = pair(), pair(common_name="Bob"), pair("rsa3072", "Carol")
    der = pkcs7.sign(ROOT_HASH, signers[0].key, signers[0].certificate)
    for signer in signers[1:]:
        der = pkcs7.merge_signed_data(der, pkcs7.sign(ROOT_HASH, signer.key, signer.certificate))
    signed = pkcs7.parse_signed_data(der)
    assert len(signed.signers) == len(signed.certificates) == 3
    for signer in signers:
        (info,) = [info for info in signed.signers if info.serial_number == signer.certificate.serial_number]
        pkcs7.verify_signer(info, CONTENT, signer.certificate.public_key())


def test_a_renewed_signature_takes_the_place_of_the_old_one() -> None:
    old, new = (pkcs7.sign(ROOT_HASH, pair().key, pair().certificate) for _ in range(2))
    assert old != new
    (info,) = pkcs7.parse_signed_data(pkcs7.merge_signed_data(old, new)).signers
    assert info == pkcs7.parse_signed_data(new).signers[0]


@needs_openssl
@pytest.mark.parametrize("first", [["-noattr"], []])
def test_openssl_accepts_merged_signatures(first: list[str], tmp_path: Path) -> None:
    bob, carol = pair(common_name="Bob"), pair("rsa3072", "Carol")
    merged = pkcs7.merge_signed_data(openssl_sign(carol, *first), pkcs7.sign(ROOT_HASH, bob.key, bob.certificate))
    (tmp_path / "sig.p7").write_bytes(merged)
    (tmp_path / "hex.txt").write_bytes(CONTENT)
    (tmp_path / "both.pem").write_text("".join(Path(p.certificate_path).read_text() for p in (bob, carol)))
    files = "-in", tmp_path / "sig.p7", "-content", tmp_path / "hex.txt", "-certfile", tmp_path / "both.pem"
    assert openssl("smime", "-verify", "-inform", "der", *files, "-nointern", "-noverify", "-binary") == CONTENT


def test_a_ninth_signer_is_one_too_many() -> None:
    der = pkcs7.sign(ROOT_HASH, pair().key, pair().certificate)
    for n in range(7):
        made = pair(common_name=f"signer {n}")
        der = pkcs7.merge_signed_data(der, pkcs7.sign(ROOT_HASH, made.key, made.certificate))
    bob = pair(common_name="Bob")
    with pytest.raises(FormatError, match="9 signers"):
        pkcs7.merge_signed_data(der, pkcs7.sign(ROOT_HASH, bob.key, bob.certificate))


@pytest.mark.parametrize("broken", [b"", b"junk"])
def test_what_is_no_signature_is_not_merged(broken: bytes) -> None:
    good = pkcs7.sign(ROOT_HASH, pair().key, pair().certificate)
    for first, second in ((broken, good), (good, broken)):
        with pytest.raises(FormatError):
            pkcs7.merge_signed_data(first, second)


@needs_openssl
def test_signature_over_other_content_with_attributes() -> None:
    der = openssl_sign(pair(), content=OTHER_ROOT_HASH.hex().encode())
    with pytest.raises(TrustError, match="for other content: digest"):
        check(der, pair())


def test_newline_after_the_hex_is_other_content() -> None:
    (info,) = pkcs7.parse_signed_data(pkcs7.sign(ROOT_HASH, pair().key, pair().certificate)).signers
    with pytest.raises(TrustError, match="does not match"):
        pkcs7.verify_signer(info, CONTENT + b"\n", pair().certificate.public_key())


def test_key_of_another_family() -> None:
    der = pkcs7.sign(ROOT_HASH, pair().key, pair().certificate)
    with pytest.raises(TrustError, match="expected RSA with sha256"):
        check(der, pair("rsa3072"))
    (info,) = pkcs7.parse_signed_data(der).signers
    with pytest.raises(TrustError, match="key type is not supported"):
        pkcs7.verify_signer(info, CONTENT, object())


def test_trailing_byte_and_truncation() -> None:
    der = pkcs7.sign(ROOT_HASH, pair().key, pair().certificate)
    for length in range(len(der)):
        with pytest.raises(FormatError):
            pkcs7.parse_signed_data(der[:length])
    with pytest.raises(FormatError, match="malformed"):
        pkcs7.parse_signed_data(der + b"\0")


def test_oversized_signature() -> None:
    with pytest.raises(FormatError, match="at most 65536"):
        pkcs7.parse_signed_data(bytes(MAX_SIGNATURE_BYTES + 1))


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(FormatError):
        pkcs7.parse_signed_data(data)
