# SPDX-License-Identifier: Apache-2.0
"""`rofs inspect`: what an image is, whether it would be accepted, and why or why not."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from rofs.cli.options import add_image_arguments, naming
from rofs.cli.render import image_pairs, out, out_json, out_pairs
from rofs.cli.trust_options import add_trust_options, trust_policy
from rofs.errors import RofsError, printable

if TYPE_CHECKING:
    from rofs.image.identity import Identity
    from rofs.image.open import UntrustedImage
    from rofs.trust.verify import Decision, TrustPolicy

HELP = """
Say what an image is, who signed it, and whether and by what it would be accepted: each signature, each
trusted certificate and why it did or did not verify one, the clause of the image policy that decided,
and each file that was passed over as a certificate. Content is not checked: that is what verify does.
An image that would be refused is shown all the same; what it says about itself is then only a claim.

example:
  rofs inspect tree.raw --trust keys/rofs.crt
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_image_arguments(parser)
    add_trust_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.image.open import open_file, read_table

    policy = trust_policy(arguments)
    with open_file(arguments.image) as files:
        with naming(arguments.image):
            untrusted = read_table(files, root_hash=policy.pinned_root_hash)
        fields = _describe(untrusted, policy)
    if arguments.json:
        out_json(fields)
        return
    out_pairs(_pairs(fields))
    for warning in fields["warnings"]:
        out(f"warning: {warning}")
    out("content was not checked (rofs verify does)")


def _describe(untrusted: UntrustedImage, policy: TrustPolicy) -> dict[str, Any]:
    from rofs.trust.verify import explain

    decision = explain(untrusted.root_hash, untrusted.signature_der, policy=policy, designator=untrusted.designator)
    identity, failure = _claimed_identity(untrusted)
    accepted = decision.accepted and failure is None
    return {
        "root_hash": untrusted.root_hash.hex(),
        "name": identity.name if identity else None,
        "version": identity.version if identity else None,
        "rollback_index": identity.rollback_index if identity else None,
        "created": identity.created if identity else None,
        **_decision(decision),
        "policy": policy.image_policy.text,
        "skipped": [{"path": printable(path), "reason": reason} for path, reason in policy.skipped],
        "accepted": accepted,
        "accepted_by": decision.accepted_by if accepted else None,
        "reason": decision.reason if failure is None else f"{decision.reason}; but it cannot be opened: {failure}",
        "content_checked": False,
        "warnings": list(untrusted.warnings),
        "partitions": _partitions(untrusted),
    }


def _decision(decision: Decision) -> dict[str, Any]:
    return {
        "signers": [
            {"subject": s.subject, "fingerprint": s.fingerprint, "trusted": s.trusted, "detail": s.detail}
            for s in decision.signers
        ],
        "certificates": [
            {
                "path": printable(c.path),
                "subject": c.subject,
                "fingerprint": c.fingerprint,
                "verified": c.verified,
                "detail": c.detail,
            }
            for c in decision.certificates
        ],
        "signer": decision.signer.subject if decision.signer else None,
        "clause": decision.clause,
    }


def _claimed_identity(untrusted: UntrustedImage) -> tuple[Identity | None, str | None]:
    """What is read against the root hash that the image claims belongs to it, trusted or not."""
    from rofs.image.open import open_chosen
    from rofs.trust.image_policy import parse_image_policy
    from rofs.trust.verify import TrustPolicy

    claimed = TrustPolicy(pinned_root_hash=untrusted.root_hash, image_policy=parse_image_policy("=open"))
    try:
        return open_chosen(untrusted, claimed).identity, None
    except RofsError as error:
        return None, str(error)


def _partitions(untrusted: UntrustedImage) -> list[dict[str, object]]:
    parts = untrusted.parts
    if parts is None:
        return []
    found = [(parts.designator, parts.data), (f"{parts.designator}-verity", parts.verity)]
    rooms = (parts.signature[0],) if parts.signature else parts.vacant
    found += [(f"{parts.designator}-verity-sig", room) for room in rooms]
    return [
        {
            "role": kind,
            "label": part.label,
            "uuid": str(part.uuid),
            "offset": part.offset_bytes,
            "size": part.length_bytes,
        }
        for kind, part in found
    ]


def _pairs(fields: dict[str, Any]) -> list[tuple[str, object]]:
    signers = [f"{s['subject']} ({s['fingerprint']}): {s['detail']}" for s in fields["signers"]]
    certificates = [f"{c['path']} ({c['fingerprint']}): {c['detail']}" for c in fields["certificates"]]
    return [
        *[pair for pair in image_pairs(fields) if pair[0] != "signer"],
        ("rollback index", fields["rollback_index"]),
        *[("signature", signer) for signer in signers or ["-"]],
        *[("certificate", certificate) for certificate in certificates or ["-"]],
        *[("skipped", f"{s['path']}: {s['reason']}") for s in fields["skipped"]],
        *[
            (p["role"], f"{p['size']} bytes at {p['offset']}, label {printable(p['label'])}")
            for p in fields["partitions"]
        ],
        ("policy", f"{fields['policy']} (decided by: {fields['clause']})"),
        ("accepted", "yes" if fields["accepted"] else "no"),
        ("reason", fields["reason"]),
    ]
