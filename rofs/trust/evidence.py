# SPDX-License-Identifier: Apache-2.0
"""What the signatures of an image are worth under the pinned certificates, with a report on each.

Certificates are pinned leaves: no chain, no expiry, no revocation list; removing the certificate revokes.
This module decides nothing (`verify`) and does no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rofs.errors import RofsError, TrustError, printable

if TYPE_CHECKING:  # a pinned root hash needs no cryptography, which takes long to import
    from cryptography.x509 import Certificate

    from rofs.trust.pkcs7_format import SignedData, SignerInfo


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
class Signer:
    """Who signed: the certificate's subject (RFC 4514) and its SHA-256 fingerprint in hex."""

    subject: str
    fingerprint: str


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
class CertificateReport:
    """One trusted certificate, for people.

    Attributes:
        path: The file it came from.
        subject: Of the certificate (RFC 4514).
        fingerprint: SHA-256 of its DER, lower-case hex.
        verified: Whether it verified a signature of the image.
        detail: Which signature, or why none, one phrase.
    """

    path: str
    subject: str
    fingerprint: str
    verified: bool
    detail: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the signatures of an image came to.

    Attributes:
        signer: The first that a trusted certificate verified, if any.
        signers: Each signature of the image.
        certificates: Each trusted certificate.
        failure: Why there is no signer, one phrase; empty when nothing is trusted.
    """

    signer: Signer | None
    signers: tuple[SignerReport, ...]
    certificates: tuple[CertificateReport, ...]
    failure: str


def examine(root_hash_claim: bytes, der: bytes | None, trusted: Sequence[TrustedCertificate]) -> Evidence:
    """Check every signature with every certificate that may have made it. Never raises for bad input.

    Args:
        root_hash_claim: What must have been signed.
        der: PKCS#7 from the image, or None when it has none.
        trusted: The pinned certificates.
    """
    if not trusted:
        return Evidence(None, _report_untrusted(der), (), "")
    tried = ", ".join(f"{printable(t.path)} ({t.fingerprint})" for t in trusted)
    if der is None:
        failure = f"root hash {root_hash_claim.hex()} is not signed"
        return Evidence(None, (), _reports_on(trusted, "the image is not signed"), f"{failure}; trusted: {tried}")
    from rofs.trust.pkcs7_format import parse_signed_data  # noqa: PLC0415 - see TYPE_CHECKING above

    try:
        signed = parse_signed_data(der)
    except RofsError as error:
        return Evidence(None, (), _reports_on(trusted, str(error)), f"{error}; trusted: {tried}")
    checks = [_check_signer(root_hash_claim, info, signed, trusted) for info in signed.signers]
    reports = tuple(check.report for check in checks)
    found = "; ".join(_described(report) for report in reports)
    return Evidence(
        next((check.signer for check in checks if check.signer is not None), None),
        reports,
        tuple(_certificate_report(t, checks) for t in trusted),
        f"not signed by a trusted certificate: {found}; trusted: {tried}",
    )


@dataclass(frozen=True, slots=True)
class _Check:
    """One signer: what each certificate that was tried came to, None for verified."""

    signer: Signer | None
    report: SignerReport
    failures: dict[str, str | None]


def _check_signer(
    root_hash_claim: bytes,
    info: SignerInfo,
    signed: SignedData,
    trusted: Sequence[TrustedCertificate],
) -> _Check:
    from rofs.trust import keys, pkcs7  # noqa: PLC0415 - see TYPE_CHECKING above

    content = pkcs7.signed_bytes(root_hash_claim)
    named = [t for t in trusted if _names(info, t.certificate)]
    failures: dict[str, str | None] = {}
    for candidate in [*named, *(t for t in trusted if t not in named)]:
        try:
            pkcs7.verify_signer(info, content, candidate.certificate.public_key())
        except TrustError as error:
            failures[candidate.fingerprint] = str(error)
        else:
            failures[candidate.fingerprint] = None
            signer = Signer(keys.subject(candidate.certificate), candidate.fingerprint)
            detail = f"verified with {printable(candidate.path)}"
            return _Check(
                signer, SignerReport(signer.subject, signer.fingerprint, trusted=True, detail=detail), failures
            )
    failure = next(iter(failures.values())) or ""
    certificate = named[0].certificate if named else None
    report = _report(info, signed, certificate, failure if named else f"untrusted: {failure}")
    return _Check(None, report, failures)


def _certificate_report(trusted: TrustedCertificate, checks: Sequence[_Check]) -> CertificateReport:
    """What one certificate came to over all signers; one that verified matters more than why another did not."""
    from rofs.trust import keys  # noqa: PLC0415 - see TYPE_CHECKING above

    outcomes = [check.failures[trusted.fingerprint] for check in checks if trusted.fingerprint in check.failures]
    verified = None in outcomes
    if verified:
        detail = "verified a signature of the image"
    elif outcomes:
        detail = f"verified none of {len(checks)} signatures: {outcomes[0]}"
    else:
        detail = "not needed: another certificate verified each signature"
    return CertificateReport(trusted.path, keys.subject(trusted.certificate), trusted.fingerprint, verified, detail)


def _reports_on(trusted: Sequence[TrustedCertificate], detail: str) -> tuple[CertificateReport, ...]:
    """The same for every certificate."""
    from rofs.trust import keys  # noqa: PLC0415 - see TYPE_CHECKING above

    return tuple(
        CertificateReport(t.path, keys.subject(t.certificate), t.fingerprint, verified=False, detail=detail)
        for t in trusted
    )


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
