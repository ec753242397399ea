# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import datetime as dt
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from rofs.errors import TrustError
from rofs.trust import keys, pkcs7
from rofs.trust.image_policy import parse_image_policy
from rofs.trust.verify import (
    Signer,
    TrustedCertificate,
    TrustPolicy,
    VerifiedRootHash,
    establish_trust,
    explain,
)

from .builders import OTHER_ROOT_HASH, ROOT_HASH, needs_openssl, openssl, openssl_sign, pair

ALICE, BOB, CAROL = pair(), pair(common_name="Bob"), pair("rsa3072", "Carol")
BY_ALICE = pkcs7.sign(ROOT_HASH, ALICE.key, ALICE.certificate)
TRUST_ALICE = TrustPolicy(certificates=(ALICE.trusted,))
TRUST_BOB = TrustPolicy(certificates=(BOB.trusted,))


def refused(der: bytes | None, policy: TrustPolicy, root_hash: bytes = ROOT_HASH) -> str:
    """The message, which is one line and the same as `explain` gives."""
    with pytest.raises(TrustError) as caught:
        establish_trust(root_hash, der, policy=policy)
    message = str(caught.value)
    decision = explain(root_hash, der, policy=policy)
    assert not decision.accepted
    assert decision.reason == message
    assert "\n" not in message
    return message


def test_signature_by_a_trusted_certificate() -> None:
    verified = establish_trust(ROOT_HASH, BY_ALICE, policy=TRUST_ALICE)
    assert verified.digest == ROOT_HASH
    assert verified.accepted_by == "signature"
    assert verified.signer == Signer("CN=Alice", keys.fingerprint(ALICE.certificate))


@pytest.mark.parametrize("first", [True, False])
def test_one_of_several_certificates_is_enough(first: bool) -> None:
    trusted = (ALICE.trusted, BOB.trusted, CAROL.trusted)
    policy = TrustPolicy(certificates=trusted if first else trusted[::-1])
    verified = establish_trust(ROOT_HASH, BY_ALICE, policy=policy)
    assert verified.signer is not None
    assert verified.signer.subject == "CN=Alice"


def test_nothing_trusted_says_what_to_do() -> None:
    assert "--trust FILE" in refused(BY_ALICE, TrustPolicy())
    assert "--root-hash HEX" in refused(None, TrustPolicy())


def test_wrong_key_names_file_and_both_fingerprints() -> None:
    message = refused(BY_ALICE, TRUST_BOB)
    assert BOB.certificate_path in message
    assert keys.fingerprint(BOB.certificate) in message
    assert keys.fingerprint(ALICE.certificate) in message


def test_missing_signature() -> None:
    assert f"root hash {ROOT_HASH.hex()} is not signed" in refused(None, TRUST_ALICE)


def test_signature_of_another_image() -> None:
    assert "does not match the root hash" in refused(BY_ALICE, TRUST_ALICE, OTHER_ROOT_HASH)


def test_certificate_inside_the_signature_counts_for_nothing() -> None:
    refused(pkcs7.sign(ROOT_HASH, BOB.key, BOB.certificate), TRUST_ALICE)
    refused(pkcs7.sign(ROOT_HASH, BOB.key, ALICE.certificate), TRUST_ALICE)


def test_malformed_signature() -> None:
    assert "malformed" in refused(BY_ALICE + b"\0", TRUST_ALICE)
    assert "malformed" in refused(b"", TRUST_ALICE)


class TestPinnedRootHash:
    def test_alone(self) -> None:
        policy = TrustPolicy(pinned_root_hash=ROOT_HASH)
        verified = establish_trust(ROOT_HASH, None, policy=policy)
        assert (verified.accepted_by, verified.signer) == ("root-hash", None)
        assert "is pinned, the image has" in refused(BY_ALICE, policy, OTHER_ROOT_HASH)

    def test_with_a_certificate_both_must_hold(self) -> None:
        policy = dataclasses.replace(TRUST_ALICE, pinned_root_hash=ROOT_HASH)
        verified = establish_trust(ROOT_HASH, BY_ALICE, policy=policy)
        assert verified.accepted_by == "signature+root-hash"
        refused(None, policy)
        by_bob = dataclasses.replace(TRUST_BOB, pinned_root_hash=ROOT_HASH)
        refused(BY_ALICE, by_bob)
        other = dataclasses.replace(TRUST_ALICE, pinned_root_hash=OTHER_ROOT_HASH)
        refused(BY_ALICE, other)

    @pytest.mark.parametrize("pinned", [b"", ROOT_HASH[:16], ROOT_HASH + b"\0"])
    def test_of_another_length(self, pinned: bytes) -> None:
        refused(BY_ALICE, TrustPolicy(pinned_root_hash=pinned))

    def test_needs_no_cryptography(self) -> None:
        code = (
            "import sys; from rofs.trust import store, verify\n"
            "store.load_trust([])\n"
            "verify.establish_trust(b'x', None, policy=verify.TrustPolicy((), b'x'))\n"
            "sys.exit('cryptography' in sys.modules)"
        )
        root = Path(__file__).parents[2]
        subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


def under(text: str, policy: TrustPolicy = TRUST_ALICE) -> TrustPolicy:
    return dataclasses.replace(policy, image_policy=parse_image_policy(text))


class TestImagePolicy:
    @pytest.mark.parametrize("text", ["root=signed", "root=verity+signed", "=signed", "root=open", "*", "root=verity"])
    def test_a_good_signature_is_enough(self, text: str) -> None:
        assert establish_trust(ROOT_HASH, BY_ALICE, policy=under(text)).accepted_by == "signature"

    @pytest.mark.parametrize("text", ["root=verity", "root=unprotected", "root=verity+signed", "=open", "*"])
    @pytest.mark.parametrize("der", [None, b"junk"])
    def test_what_allows_verity_takes_the_root_hash_from_the_image(self, text: str, der: bytes | None) -> None:
        for policy in (under(text, TrustPolicy()), under(text)):
            assert establish_trust(ROOT_HASH, der, policy=policy).accepted_by == "unsigned"
        assert explain(ROOT_HASH, der, policy=under(text)).clause in {"root=verity", text}

    @pytest.mark.parametrize("text", ["root=signed", "=signed", "root=signed+encrypted", "root=signed:usr=open"])
    def test_signed_refuses_what_is_only_verity(self, text: str) -> None:
        assert "is not signed" in refused(None, under(text))
        assert "nothing is trusted" in refused(None, under(text, TrustPolicy()))

    @pytest.mark.parametrize("text", ["root=absent", "root=unused", "root=encrypted", "~", "-", "usr=signed"])
    def test_what_forbids_the_partition_refuses_even_what_is_signed_and_pinned(self, text: str) -> None:
        policy = dataclasses.replace(under(text), pinned_root_hash=ROOT_HASH, allow_unsigned=True)
        message = refused(BY_ALICE, policy)
        assert f"image policy {text} does not allow that it is used: " in message
        assert explain(ROOT_HASH, BY_ALICE, policy=policy).clause in message

    def test_a_pinned_root_hash_satisfies_signed(self) -> None:
        policy = under("root=signed", TrustPolicy(pinned_root_hash=ROOT_HASH))
        assert establish_trust(ROOT_HASH, None, policy=policy).accepted_by == "root-hash"

    def test_a_pinned_root_hash_must_match_whatever_is_open(self) -> None:
        assert "is pinned" in refused(BY_ALICE, under("*", TrustPolicy(pinned_root_hash=OTHER_ROOT_HASH)))

    def test_the_clause_of_the_designator_decides(self) -> None:
        policy = under("root=open:usr=signed", TrustPolicy())
        assert establish_trust(ROOT_HASH, None, policy=policy, designator="root").accepted_by == "unsigned"
        with pytest.raises(TrustError, match="nothing is trusted"):
            establish_trust(ROOT_HASH, None, policy=policy, designator="usr")
        assert explain(ROOT_HASH, None, policy=policy, designator="usr").clause == "usr=signed"

    def test_allow_unsigned_is_told_beside_the_clause(self) -> None:
        decision = explain(ROOT_HASH, None, policy=TrustPolicy(allow_unsigned=True))
        assert decision.clause == "root=signed, but --allow-unsigned"
        assert decision.reason == "unsigned images are allowed (root=signed, but --allow-unsigned)"


class TestWhatIsNamedInARefusal:
    SKIPPED = (("/etc/verity.d/signer.pem", "its name does not end in .crt"), ("/etc/verity.d/README", "no"))

    def test_files_that_somebody_may_have_meant(self) -> None:
        for policy in (TRUST_BOB, TrustPolicy()):
            message = refused(BY_ALICE, dataclasses.replace(policy, skipped=self.SKIPPED))
            assert "skipped: /etc/verity.d/signer.pem (its name does not end in .crt)" in message
            assert "README" not in message

    def test_hundreds_of_skipped_files_are_counted(self) -> None:
        skipped = tuple((f"/x/{n}.pem", "why") for n in range(300))
        message = refused(BY_ALICE, dataclasses.replace(TRUST_BOB, skipped=skipped))
        assert "and 295 more" in message
        assert len(message) < 1500

    def test_directories_that_were_searched_in_vain(self) -> None:
        message = refused(BY_ALICE, TrustPolicy(searched=("/etc/verity.d", "/run/verity.d")))
        assert "no certificate in /etc/verity.d, /run/verity.d" in message


class TestAllowUnsigned:
    def test_without_signature(self) -> None:
        policy = TrustPolicy(allow_unsigned=True)
        assert establish_trust(ROOT_HASH, None, policy=policy).accepted_by == "unsigned"

    def test_does_not_hide_who_signed(self) -> None:
        policy = dataclasses.replace(TRUST_ALICE, allow_unsigned=True)
        assert establish_trust(ROOT_HASH, BY_ALICE, policy=policy).accepted_by == "signature"

    @pytest.mark.parametrize("der", [None, b"junk", BY_ALICE])
    def test_accepts_a_bad_signature_and_says_so(self, der: bytes | None) -> None:
        policy = dataclasses.replace(TRUST_BOB, allow_unsigned=True)
        verified = establish_trust(ROOT_HASH, der, policy=policy)
        assert (verified.accepted_by, verified.signer) == ("unsigned", None)
        assert "ignored: " in explain(ROOT_HASH, der, policy=policy).reason

    def test_never_hides_a_pinned_mismatch(self) -> None:
        policy = TrustPolicy((ALICE.trusted,), OTHER_ROOT_HASH, allow_unsigned=True)
        assert "is pinned" in refused(BY_ALICE, policy)

    def test_pinned_root_hash_still_counts(self) -> None:
        policy = TrustPolicy((BOB.trusted,), ROOT_HASH, allow_unsigned=True)
        assert establish_trust(ROOT_HASH, BY_ALICE, policy=policy).accepted_by == "root-hash"


def test_verified_root_hash_is_made_here_only() -> None:
    with pytest.raises(TypeError, match="establish_trust"):
        VerifiedRootHash(ROOT_HASH, "signature", None, token=object())
    verified = establish_trust(ROOT_HASH, BY_ALICE, policy=TRUST_ALICE)
    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(verified, digest=OTHER_ROOT_HASH)  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        verified.digest = OTHER_ROOT_HASH  # type: ignore[misc]


class TestReports:
    def test_untrusted_signer_is_named_by_the_embedded_certificate(self) -> None:
        (report,) = explain(ROOT_HASH, BY_ALICE, policy=TRUST_BOB).signers
        assert (report.subject, report.trusted) == ("CN=Alice", False)
        assert report.fingerprint == keys.fingerprint(ALICE.certificate)

    def test_trusted_signer(self) -> None:
        decision = explain(ROOT_HASH, BY_ALICE, policy=TRUST_ALICE)
        (report,) = decision.signers
        assert decision.accepted
        assert report.trusted
        assert report.detail == f"verified with {ALICE.certificate_path}"
        assert decision.reason.startswith("signed by CN=Alice (")

    def test_each_certificate_says_what_it_came_to(self) -> None:
        policy = TrustPolicy(certificates=(BOB.trusted, ALICE.trusted, CAROL.trusted))
        bob, alice, carol = explain(ROOT_HASH, BY_ALICE, policy=policy).certificates
        assert (alice.path, alice.verified) == (ALICE.certificate_path, True)
        assert not bob.verified
        assert not carol.verified
        assert "another certificate verified" in bob.detail
        (bob,) = explain(ROOT_HASH, BY_ALICE, policy=TRUST_BOB).certificates
        assert bob.detail == "verified none of 1 signatures: signature does not match the root hash under this key"
        (bob,) = explain(ROOT_HASH, None, policy=TRUST_BOB).certificates
        assert bob.detail == "the image is not signed"
        (bob,) = explain(ROOT_HASH, b"junk", policy=TRUST_BOB).certificates
        assert "malformed" in bob.detail

    @pytest.mark.parametrize("policy", [TrustPolicy(), TrustPolicy(pinned_root_hash=ROOT_HASH)], ids=["none", "pin"])
    def test_signers_are_listed_when_nothing_verifies_them(self, policy: TrustPolicy) -> None:
        (report,) = explain(ROOT_HASH, BY_ALICE, policy=policy).signers
        assert (report.subject, report.trusted) == ("CN=Alice", False)
        (report,) = explain(ROOT_HASH, b"junk", policy=policy).signers
        assert report.subject is None
        assert "malformed" in report.detail


@needs_openssl
class TestForeignSignatures:
    def test_any_of_two_signers(self) -> None:
        der = openssl_sign(BOB, "-signer", CAROL.certificate_path, "-inkey", CAROL.key_path)
        for signer in (BOB, CAROL):
            policy = TrustPolicy(certificates=(signer.trusted,))
            verified = establish_trust(ROOT_HASH, der, policy=policy)
            assert verified.signer is not None
            assert verified.signer.fingerprint == keys.fingerprint(signer.certificate)
            assert len(explain(ROOT_HASH, der, policy=policy).signers) == 2
        refused(der, TRUST_ALICE)

    def test_weak_digest_beside_a_good_signer(self) -> None:
        sha1 = openssl_sign(CAROL, "-md", "sha1", "-noattr")
        assert "is refused" in refused(sha1, TrustPolicy(certificates=(CAROL.trusted,)))

    def test_signer_named_by_key_identifier(self) -> None:
        der = openssl_sign(ALICE, "-keyid", command="cms")
        establish_trust(ROOT_HASH, der, policy=TRUST_ALICE)
        (report,) = explain(ROOT_HASH, der, policy=TRUST_BOB).signers
        assert report.subject == "CN=Alice"

    def test_renewed_certificate_of_the_same_key(self, tmp_path: Path) -> None:
        path = tmp_path / "renewed.crt"
        openssl("req", "-x509", "-key", ALICE.key_path, "-subj", "/CN=New", "-out", path)
        renewed = dataclasses.replace(ALICE, certificate=keys.load_certificates(str(path))[0])
        policy = TrustPolicy(certificates=(renewed.trusted,))
        assert establish_trust(ROOT_HASH, BY_ALICE, policy=policy).accepted_by == "signature"

    def test_expired_certificate_is_accepted(self, tmp_path: Path) -> None:
        long_ago = dt.datetime(1970, 1, 2, tzinfo=dt.UTC)
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Old")])
        builder = x509.CertificateBuilder(name, name, ALICE.key.public_key(), 1, long_ago, long_ago)
        path = tmp_path / "expired.crt"
        path.write_bytes(builder.sign(ALICE.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        expired = dataclasses.replace(
            ALICE, certificate_path=str(path), certificate=keys.load_certificates(str(path))[0]
        )
        der = openssl_sign(expired)
        policy = TrustPolicy(certificates=(expired.trusted,))
        assert establish_trust(ROOT_HASH, der, policy=policy).accepted_by == "signature"


class TestClock:
    """Certificates are pinned leaves: what a clock says has no part in the decision."""

    @pytest.mark.parametrize("years", [(1971, 1972), (2100, 2101)], ids=["expired long ago", "valid in the future"])
    def test_dates_of_a_certificate_mean_nothing(self, years: tuple[int, int]) -> None:
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Dated")])
        begin, end = (dt.datetime(year, 1, 1, tzinfo=dt.UTC) for year in years)
        builder = x509.CertificateBuilder(name, name, ALICE.key.public_key(), 1, begin, end)
        certificate = builder.sign(ALICE.key, hashes.SHA256())
        trusted = TrustedCertificate("dated.crt", certificate, keys.fingerprint(certificate))
        der = pkcs7.sign(ROOT_HASH, ALICE.key, certificate)
        assert establish_trust(ROOT_HASH, der, policy=TrustPolicy((trusted,))).accepted_by == "signature"


def test_right_ca_but_wrong_certificate_is_refused() -> None:
    """The CA is trusted, and signed Bob's certificate: only a leaf that is pinned itself counts."""
    now = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    leaf = x509.CertificateBuilder(
        ALICE.certificate.subject,
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Leaf")]),
        BOB.key.public_key(),
        7,
        now,
        now + dt.timedelta(days=1),
    ).sign(ALICE.key, hashes.SHA256())
    message = refused(pkcs7.sign(ROOT_HASH, BOB.key, leaf), TRUST_ALICE)
    assert keys.fingerprint(leaf) in message
    assert keys.fingerprint(ALICE.certificate) in message


def _harmless(der: bytes) -> set[int]:
    """Offsets that no signature covers and no decision reads: the embedded certificate, the signer's name."""
    embedded = pkcs7.parse_signed_data(der)
    # With the tag of the field: as [1] it would be a list of CRLs, which nobody reads either.
    ranges = [(der.index(c) - 4, len(c) + 4) for c in embedded.certificates]
    for info in embedded.signers:
        if info.issuer_der is None:
            assert info.subject_key_id is not None
            ranges.append((der.rindex(info.subject_key_id), len(info.subject_key_id)))
        else:
            serial = ALICE.certificate.serial_number.to_bytes(20, "big")
            end = der.rindex(serial) + len(serial)
            start = der.rindex(info.issuer_der, 0, end)
            ranges.append((start, end - start))
    return {at for start, length in ranges for at in range(start, start + length)}


@needs_openssl
@pytest.mark.parametrize("kind", ["ours", "attributes", "key identifier"])
def test_every_flipped_byte(kind: str) -> None:
    der = {
        "ours": lambda: BY_ALICE,
        "attributes": lambda: openssl_sign(ALICE),
        "key identifier": lambda: openssl_sign(ALICE, "-keyid", command="cms"),
    }[kind]()
    harmless = _harmless(der)
    for at in range(len(der)):
        for change in (0x01, 0x80, 0xFF):
            flipped = bytearray(der)
            flipped[at] ^= change
            explain(ROOT_HASH, bytes(flipped), policy=TRUST_BOB)
            try:
                establish_trust(ROOT_HASH, bytes(flipped), policy=TRUST_ALICE)
            except TrustError:
                continue
            assert at in harmless, f"byte {at} changed by {change:#x}"
