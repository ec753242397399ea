# SPDX-License-Identifier: Apache-2.0
"""`rofs inspect`: what an image is, and whether it would be accepted."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from rofs.cli.options import add_image_arguments, naming
from rofs.cli.render import image_pairs, out, out_json, out_pairs
from rofs.cli.trust_options import add_trust_options, trust_policy
from rofs.errors import RofsError, printable

if TYPE_CHECKING:
    from rofs.ddi.gpt import Partition
    from rofs.ddi.parts import ImageParts
    from rofs.image.open import UntrustedImage
    from rofs.trust.verify import TrustPolicy

HELP = """
Say what an image is, who signed it, and whether and by what it would be accepted. Content is not
checked: that is what verify does. An image that would be refused is shown all the same; what it says
about itself is then only a claim.

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
    fd = open_file(arguments.image)
    try:
        with naming(arguments.image):
            untrusted = read_table(fd, root_hash=policy.pinned_root_hash)
        fields = _describe(untrusted, policy)
    finally:
        os.close(fd)
    if arguments.json:
        out_json(fields)
        return
    out_pairs(_pairs(fields))
    for warning in fields["warnings"]:
        out(f"warning: {warning}")
    out("content was not checked (rofs verify does)")


def _describe(untrusted: UntrustedImage, policy: TrustPolicy) -> dict[str, Any]:
    from rofs.image.open import open_chosen
    from rofs.trust.verify import TrustPolicy, explain

    parts = untrusted.parts
    decision = explain(parts.root_hash, untrusted.signature_der, policy=policy)
    reason, identity = decision.reason, None
    try:
        # Against the root hash that the image claims: what is read belongs to it, trusted or not.
        identity = open_chosen(untrusted, TrustPolicy(pinned_root_hash=parts.root_hash)).identity
    except RofsError as error:
        reason = f"{reason}; but it cannot be opened: {error}"
    accepted = decision.accepted and identity is not None
    return {
        "root_hash": parts.root_hash.hex(),
        "name": identity.name if identity else None,
        "version": identity.version if identity else None,
        "rollback_index": identity.rollback_index if identity else None,
        "created": identity.created if identity else None,
        "signers": [
            {"subject": s.subject, "fingerprint": s.fingerprint, "trusted": s.trusted, "detail": s.detail}
            for s in decision.signers
        ],
        "signer": decision.signer.subject if decision.signer else None,
        "accepted": accepted,
        "reason": reason,
        "content_checked": False,
        "warnings": list(untrusted.warnings),
        "partitions": [
            {
                "role": kind,
                "label": part.label,
                "uuid": str(part.uuid),
                "offset": part.offset_bytes,
                "size": part.length_bytes,
            }
            for kind, part in _partitions(parts)
        ],
    }


def _partitions(parts: ImageParts) -> list[tuple[str, Partition]]:
    found = [(parts.designator, parts.data), (f"{parts.designator}-verity", parts.verity)]
    if parts.signature:
        found.append((f"{parts.designator}-verity-sig", parts.signature[0]))
    return found


def _pairs(fields: dict[str, Any]) -> list[tuple[str, object]]:
    signers = [f"{s['subject']} ({s['fingerprint']}): {s['detail']}" for s in fields["signers"]]
    return [
        *[pair for pair in image_pairs(fields) if pair[0] != "signer"],
        ("rollback index", fields["rollback_index"]),
        *[("signature", signer) for signer in signers or ["-"]],
        *[
            (p["role"], f"{p['size']} bytes at {p['offset']}, label {printable(p['label'])}")
            for p in fields["partitions"]
        ],
        ("accepted", "yes" if fields["accepted"] else "no"),
        ("reason", fields["reason"]),
    ]
