# SPDX-License-Identifier: Apache-2.0
"""The decision whether a root hash is trusted, and the type that proves it was taken.

The steps are in `establish_trust`; `explain` takes the same decision and reports it. This module does
no I/O, does not look at blocks (`verity`) and does not know where a root hash was found. Certificates
are pinned leaves: no chain, no expiry, no revocation list; removing the certificate revokes.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, InitVar, dataclass, replace
from typing import Literal

from rofs.errors import TrustError, printable
from rofs.trust.evidence import CertificateReport, Evidence, Signer, SignerReport, TrustedCertificate, examine
from rofs.trust.image_policy import DEFAULT_IMAGE_POLICY, Clause, ImagePolicy

__all__ = [
    "AcceptedBy",
    "Decision",
    "Signer",
    "SignerReport",
    "TrustPolicy",
    "TrustedCertificate",
    "VerifiedRootHash",
    "establish_trust",
    "explain",
]

AcceptedBy = Literal["signature", "root-hash", "signature+root-hash", "unsigned"]

_MADE_HERE = object()
_LOOKS_LIKE_A_CERTIFICATE = (".crt", ".pem", ".cer", ".der")  # a directory may hold much else, which nobody meant
_MAX_SKIPPED = 5  # in a refusal; inspect lists all


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """What is trusted.

    Attributes:
        certificates: Any one of them may sign.
        pinned_root_hash: The only root hash accepted, or None for any.
        allow_unsigned: Accept without a good signature, whatever `image_policy` says of that; a pinned
            root hash must match all the same.
        image_policy: What protection the image must have.
        searched: Where certificates were looked for, for messages.
        skipped: Path and reason of each file there that was not used, for messages.
    """

    certificates: tuple[TrustedCertificate, ...] = ()
    pinned_root_hash: bytes | None = None
    allow_unsigned: bool = False
    image_policy: ImagePolicy = DEFAULT_IMAGE_POLICY
    searched: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()


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
class Decision:
    """What `establish_trust` would do, and why.

    Attributes:
        accepted: Whether it would accept.
        reason: By what, or why not, in one line.
        clause: What of the image policy decided.
        signers: Each signature of the image.
        certificates: Each trusted certificate.
        accepted_by: The rule, when accepted.
        signer: The verified signer, if any.
    """

    accepted: bool
    reason: str
    clause: str
    signers: tuple[SignerReport, ...] = ()
    certificates: tuple[CertificateReport, ...] = ()
    accepted_by: AcceptedBy | None = None
    signer: Signer | None = None


def establish_trust(
    root_hash_claim: bytes, signature_der: bytes | None, *, policy: TrustPolicy, designator: str = "root"
) -> VerifiedRootHash:
    """Decide whether a root hash is trusted.

    1. The clause of the image policy for the designator must allow that the partition is used.
    2. Something must be trusted: a certificate, a pinned root hash, or the leave to go unsigned, which
       the clause gives (`verity`, `unprotected`) or `allow_unsigned`.
    3. A pinned root hash must equal the claim, whatever else is allowed.
    4. With certificates there must be a signature, and it must parse.
    5. One of its signers must verify over the claim with the public key of a pinned certificate. The
       certificate that a signer names (issuer and serial number, or subject key identifier) is tried
       first, then each other one; a certificate inside the signature counts for nothing.
    6. If 4 or 5 fail, only the leave to go unsigned saves it; with a pinned root hash both must hold
       otherwise. A pinned root hash is as good as a signature: it satisfies `signed`.
    7. The result says what accepted it.

    Args:
        root_hash_claim: What the image claims.
        signature_der: PKCS#7 from the image, or None when it has none.
        policy: What is trusted.
        designator: Which clause decides: `root` or `usr`.

    Returns:
        The proof, for `verity`.

    Raises:
        TrustError: Not trusted; one line with what was expected and found.
    """
    decision = explain(root_hash_claim, signature_der, policy=policy, designator=designator)
    if decision.accepted_by is None:
        raise TrustError(decision.reason)
    return VerifiedRootHash(root_hash_claim, decision.accepted_by, decision.signer, token=_MADE_HERE)


def explain(
    root_hash_claim: bytes, signature_der: bytes | None, *, policy: TrustPolicy, designator: str = "root"
) -> Decision:
    """The decision of `establish_trust` as data; numbers as there. Never raises for bad input."""
    clause = policy.image_policy.clause_of(designator)
    leave = policy.allow_unsigned or clause.allows_unsigned
    evidence = examine(root_hash_claim, signature_der, policy.certificates)  # 4. and 5., as far as it goes
    refusal = _refusal(root_hash_claim, policy, clause, leave=leave)  # 1. to 3.
    if refusal is None and policy.certificates and evidence.signer is None and not leave:
        refusal = f"{evidence.failure}{_skipped(policy)}"  # 6.
    shown = clause.text
    if policy.allow_unsigned and clause.allows_use and not clause.allows_unsigned:
        shown += ", but --allow-unsigned"
    decision = Decision(
        accepted=refusal is None,
        reason=refusal or "",
        clause=shown,
        signers=evidence.signers,
        certificates=evidence.certificates,
    )
    if refusal is not None:
        return decision
    by, reason = _acceptance(policy, evidence, shown)  # 7.
    return replace(decision, reason=reason, accepted_by=by, signer=evidence.signer)


def _refusal(root_hash_claim: bytes, policy: TrustPolicy, clause: Clause, *, leave: bool) -> str | None:
    """Steps 1 to 3: what no signature can make good."""
    pinned = policy.pinned_root_hash
    if not clause.allows_use:
        return f"image policy {policy.image_policy.text} does not allow that it is used: {clause.text}"
    if not (policy.certificates or pinned is not None or leave):
        searched = f": no certificate in {', '.join(map(printable, policy.searched))}" if policy.searched else ""
        what_to_do = "name a certificate with --trust FILE or pin --root-hash HEX"
        return f"nothing is trusted{searched}{_skipped(policy)}; {what_to_do}"
    if pinned is not None and pinned != root_hash_claim:
        return f"root hash {pinned.hex()} is pinned, the image has {root_hash_claim.hex()}"
    return None


def _skipped(policy: TrustPolicy) -> str:
    """The files that somebody may have meant as certificates, for a refusal."""
    meant = [(path, why) for path, why in policy.skipped if path.endswith(_LOOKS_LIKE_A_CERTIFICATE)]
    if not meant:
        return ""
    more = f" and {len(meant) - _MAX_SKIPPED} more" if len(meant) > _MAX_SKIPPED else ""
    return f"; skipped: {', '.join(f'{printable(p)} ({why})' for p, why in meant[:_MAX_SKIPPED])}{more}"


def _acceptance(policy: TrustPolicy, evidence: Evidence, clause: str) -> tuple[AcceptedBy, str]:
    """Step 7: by what it is accepted, and the sentence for people."""
    signer, pinned = evidence.signer, policy.pinned_root_hash is not None
    if signer is not None:
        reason = f"signed by {signer.subject} ({signer.fingerprint})"
        return ("signature+root-hash", f"{reason}, root hash pinned") if pinned else ("signature", reason)
    ignored = f"; ignored: {evidence.failure}" if policy.certificates else ""
    if pinned:
        return "root-hash", f"root hash pinned{ignored}"
    return "unsigned", f"unsigned images are allowed ({clause}){ignored}"
