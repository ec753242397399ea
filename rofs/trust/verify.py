# SPDX-License-Identifier: Apache-2.0
"""The decision whether a root hash is trusted, and the type that proves it was taken.

The steps are in `establish_trust`; `explain` takes the same decision and reports it. This module does
no I/O, does not look at blocks (`verity`) and does not know where a root hash was found. Certificates
are pinned leaves: no chain, no expiry, no revocation list; removing the certificate revokes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, InitVar, dataclass
from typing import TYPE_CHECKING, Literal

from rofs.errors import RofsError, TrustError, printable

if TYPE_CHECKING:  # a pinned root hash needs no cryptography, which takes long to import
    from cryptography.x509 import Certificate

    from rofs.trust.pkcs7_format import SignedData, SignerInfo

AcceptedBy = Literal["signature", "root-hash", "signature+root-hash", "unsigned"]

_MADE_HERE = object()


@dataclass(frozen=True, slots=True)
class TrustedCertificate:
    """A pinned leaf.

    Attributes:
        path: The file it came from.
        certificate: As loaded by `keys.load_certificates`.
        fingerprint: SHA-256 of its DER, lower-case hex.
    """

    path: str
    certificate: Certificate
    fingerprint: str


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """What is trusted.

    Attributes:
        certificates: Any one of them may sign.
        pinned_root_hash: The only root hash accepted, or None for any.
        allow_unsigned: Accept without a good signature; a pinned root hash must match all the same.
    """

    certificates: tuple[TrustedCertificate, ...] = ()
    pinned_root_hash: bytes | None = None
    allow_unsigned: bool = False


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed: the certificate's subject (RFC 4514) and its SHA-256 fingerprint in hex."""

    subject: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class VerifiedRootHash:
    """A root hash that `establish_trust` accepted; nothing else can make one.

    Attributes:
        digest: The root hash.
        accepted_by: Which rule accepted it.
        signer: Whose signature was verified, or None when none was needed.
    """

    digest: bytes
    accepted_by: AcceptedBy
    signer: Signer | None
    _: KW_ONLY
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _MADE_HERE:
            raise TypeError("a VerifiedRootHash is made by establish_trust() only")


@dataclass(frozen=True, slots=True)
class SignerReport:
    """One signature of the image, for people.

    Attributes:
        subject: Of the certificate it names: trusted, or only embedded (a claim); None if unknown.
        fingerprint: Of the same certificate.
        trusted: Whether it verified with a pinned certificate.
        detail: What was found, one phrase.
    """

    subject: str | None
    fingerprint: str | None
    trusted: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What `establish_trust` would do, and why.

    Attributes:
        accepted: Whether it would accept.
        reason: By what, or why not, in one line.
        signers: Each signature of the image.
        accepted_by: The rule, when accepted.
        signer: The verified signer, if any.
    """

    accepted: bool
    reason: str
    signers: tuple[SignerReport, ...] = ()
    accepted_by: AcceptedBy | None = None
    signer: Signer | None = None


def establish_trust(root_hash_claim: bytes, signature_der: bytes | None, *, policy: TrustPolicy) -> VerifiedRootHash:
    """Decide whether a root hash is trusted.

    1. Something must be trusted: a certificate, a pinned root hash, or the leave to go unsigned.
    2. A pinned root hash must equal the claim, whatever else is allowed.
    3. With certificates there must be a signature, and it must parse.
    4. One of its signers must verify over the claim with the public key of a pinned certificate. The
       certificate that a signer names (issuer and serial number, or subject key identifier) is tried
       first, then each other one; a certificate inside the signature counts for nothing.
    5. If 3 or 4 fail, only `allow_unsigned` saves it; with a pinned root hash both must hold otherwise.
    6. The result says what accepted it.

    Args:
        root_hash_claim: What the image claims.
        signature_der: PKCS#7 from the image, or None when it has none.
        policy: What is trusted.

    Returns:
        The proof, for `verity`.

    Raises:
        TrustError: Not trusted; one line with what was expected and found.
    """
    decision = explain(root_hash_claim, signature_der, policy=policy)
    if decision.accepted_by is None:
        raise TrustError(decision.reason)
    return VerifiedRootHash(root_hash_claim, decision.accepted_by, decision.signer, token=_MADE_HERE)


def explain(root_hash_claim: bytes, signature_der: bytes | None, *, policy: TrustPolicy) -> Decision:
    """The decision of `establish_trust` as data; numbers as there. Never raises for bad input."""
    pinned = policy.pinned_root_hash
    # 1. and 2.
    refusal = _refusal(root_hash_claim, policy)
    if refusal is not None:
        return _refused(refusal, _report_untrusted(signature_der))
    if not policy.certificates:
        return _without_signature(pinned, _report_untrusted(signature_der), None)
    # 3. and 4.
    signer, reports, failure = _check_signature(root_hash_claim, signature_der, policy.certificates)
    if signer is None:
        # 5.
        if policy.allow_unsigned:
            return _without_signature(pinned, reports, failure)
        return _refused(failure, reports)
    # 6.
    reason = f"signed by {signer.subject} ({signer.fingerprint})"
    if pinned is not None:
        return _accepted("signature+root-hash", f"{reason}, root hash pinned", reports, signer)
    return _accepted("signature", reason, reports, signer)


def _refusal(root_hash_claim: bytes, policy: TrustPolicy) -> str | None:
    """Steps 1 and 2: what no signature can make good."""
    pinned = policy.pinned_root_hash
    if not (policy.certificates or pinned is not None or policy.allow_unsigned):
        return "nothing is trusted; name a certificate with --trust FILE or pin --root-hash HEX"
    if pinned is not None and pinned != root_hash_claim:
        return f"root hash {pinned.hex()} is pinned, the image has {root_hash_claim.hex()}"
    return None


def _refused(reason: str, reports: tuple[SignerReport, ...]) -> Decision:
    return Decision(accepted=False, reason=reason, signers=reports)


def _accepted(by: AcceptedBy, reason: str, reports: tuple[SignerReport, ...], signer: Signer | None = None) -> Decision:
    return Decision(accepted=True, reason=reason, signers=reports, accepted_by=by, signer=signer)


def _without_signature(pinned: bytes | None, reports: tuple[SignerReport, ...], failure: str | None) -> Decision:
    """Accept by the pinned root hash (which matched), or because unsigned is allowed."""
    ignored = f"; unsigned is allowed, ignored: {failure}" if failure else ""
    if pinned is not None:
        return _accepted("root-hash", f"root hash pinned{ignored}", reports)
    return _accepted("unsigned", f"unsigned images are allowed{ignored}", reports)


def _check_signature(
    root_hash_claim: bytes, der: bytes | None, trusted: Sequence[TrustedCertificate]
) -> tuple[Signer | None, tuple[SignerReport, ...], str]:
    """Steps 3 and 4: the first verified signer, all reports, and else why there is none."""
    tried = ", ".join(f"{printable(t.path)} ({t.fingerprint})" for t in trusted)
    if der is None:
        return None, (), f"root hash {root_hash_claim.hex()} is not signed; trusted: {tried}"
    from rofs.trust.pkcs7_format import parse_signed_data  # noqa: PLC0415 - see TYPE_CHECKING above

    try:
        signed = parse_signed_data(der)
    except RofsError as error:
        return None, (), f"{error}; trusted: {tried}"
    verified: Signer | None = None
    reports = []
    for info in signed.signers:
        signer, report = _check_signer(root_hash_claim, info, signed, trusted)
        verified = verified or signer
        reports.append(report)
    found = "; ".join(_described(report) for report in reports)
    return verified, tuple(reports), f"not signed by a trusted certificate: {found}; trusted: {tried}"


def _check_signer(
    root_hash_claim: bytes,
    info: SignerInfo,
    signed: SignedData,
    trusted: Sequence[TrustedCertificate],
) -> tuple[Signer | None, SignerReport]:
    """Step 4 for one signer."""
    from rofs.trust import keys, pkcs7  # noqa: PLC0415 - see TYPE_CHECKING above

    named = [t for t in trusted if _names(info, t.certificate)]
    failure = ""
    for candidate in [*named, *(t for t in trusted if t not in named)]:
        try:
            content = pkcs7.signed_bytes(root_hash_claim)
            pkcs7.verify_signer(info, content, candidate.certificate.public_key())
        except TrustError as error:
            failure = failure or str(error)
        else:
            signer = Signer(keys.subject(candidate.certificate), candidate.fingerprint)
            detail = f"verified with {printable(candidate.path)}"
            return signer, SignerReport(signer.subject, signer.fingerprint, trusted=True, detail=detail)
    certificate = named[0].certificate if named else None
    return None, _report(info, signed, certificate, failure if named else f"untrusted: {failure}")


def _report_untrusted(der: bytes | None) -> tuple[SignerReport, ...]:
    """Reports on signatures that nothing can verify, as far as they can be read."""
    if der is None:
        return ()
    from rofs.trust.pkcs7_format import parse_signed_data  # noqa: PLC0415 - see TYPE_CHECKING above

    try:
        signed = parse_signed_data(der)
    except RofsError as error:
        return (SignerReport(None, None, trusted=False, detail=str(error)),)
    detail = "not checked: no trusted certificate"
    return tuple(_report(info, signed, None, detail) for info in signed.signers)


def _report(info: SignerInfo, signed: SignedData, certificate: Certificate | None, detail: str) -> SignerReport:
    from rofs.trust import keys  # noqa: PLC0415 - see TYPE_CHECKING above

    if certificate is None:
        embedded = keys.readable_certificates(signed.certificates)
        certificate = next((c for c in embedded if _names(info, c)), None)
    if certificate is None:
        return SignerReport(None, None, trusted=False, detail=detail)
    subject, fingerprint = keys.subject(certificate), keys.fingerprint(certificate)
    return SignerReport(subject, fingerprint, trusted=False, detail=detail)


def _names(info: SignerInfo, certificate: Certificate) -> bool:
    """Whether a signer names this certificate (RFC 5652 section 5.3, SignerIdentifier)."""
    from rofs.trust import keys  # noqa: PLC0415 - see TYPE_CHECKING above

    if info.subject_key_id is not None:
        return keys.subject_key_id(certificate) == info.subject_key_id
    return keys.issuer_and_serial(certificate) == (info.issuer_der, info.serial_number)


def _described(report: SignerReport) -> str:
    who = f"{report.subject} ({report.fingerprint})" if report.subject is not None else "unknown"
    return f"signer {who}: {report.detail}"
