# SPDX-License-Identifier: Apache-2.0
"""What is known of an image once it is trusted, as plain values that travel between processes as JSON.

Whoever sends them may have been taken over by the image, so every field is checked again where they
arrive. This module reads no image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, get_args

from rofs.errors import FormatError, printable
from rofs.image.identity import Identity, parse_identity
from rofs.trust.verify import AcceptedBy
from rofs.verity.format import DIGEST_BYTES, SUPERBLOCK_BYTES, VeritySuperblock

MAX_FACTS_BYTES = 1 << 20
MAX_WARNINGS = 100  # a hostile table has a thousand foreign signatures
_MAX_TEXT_CHARS = 4096  # of a warning or of a certificate's subject: they go to terminals and logs
_HEX = re.compile(r"(?:[0-9a-f]{2})+")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """All that is known of an image once it is trusted: enough to open it again without parsing it.

    Attributes:
        root_hash: Hex.
        accepted_by: What made it trusted: `signature`, `root-hash`, both, or `unsigned`.
        signer: Subject of the signing certificate, printable; None without one.
        signer_fingerprint: SHA-256 of that certificate, hex.
        identity: Name, version and the like, from under the root hash.
        data_offset_bytes: Where the filesystem begins in its file: the data partition, or 0.
        hash_offset_bytes: Where the verity superblock and the hash tree begin in theirs.
        superblock: The verity superblock as it was checked, 512 bytes in hex.
        warnings: What was noticed and is not an error, printable, at most `MAX_WARNINGS`.
    """

    root_hash: str
    accepted_by: AcceptedBy
    signer: str | None
    signer_fingerprint: str | None
    identity: Identity
    data_offset_bytes: int
    data_length_bytes: int
    hash_offset_bytes: int
    hash_length_bytes: int
    superblock: str
    warnings: tuple[str, ...]

    def to_json(self) -> bytes:
        """For `from_json` in another process."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> ImageFacts:
        """Read what an unprivileged process has found out.

        Raises:
            FormatError: It is not what `to_json` writes; the sender is not to be believed blindly.
        """
        try:
            fields: dict[str, Any] = json.loads(data[:MAX_FACTS_BYTES])
            identity = parse_identity(json.dumps(fields.pop("identity")).encode())
            facts = cls(identity=identity, **fields | {"warnings": tuple(fields["warnings"])})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, FormatError) as error:
            raise FormatError(f"the verifier's answer cannot be read: {error}") from error
        _check_types(facts)
        _check_values(facts)
        return facts


def _check_types(facts: ImageFacts) -> None:
    numbers = (facts.data_offset_bytes, facts.data_length_bytes, facts.hash_offset_bytes, facts.hash_length_bytes)
    texts = (facts.root_hash, facts.accepted_by, facts.superblock, *facts.warnings)
    optional = (facts.signer, facts.signer_fingerprint)
    if (
        not all(type(n) is int and n >= 0 for n in numbers)
        or not all(isinstance(t, str) for t in texts)
        or not all(t is None or isinstance(t, str) for t in optional)
        or not all(_HEX.fullmatch(t) for t in (facts.root_hash, facts.superblock))
    ):
        raise FormatError("the verifier's answer has fields of the wrong type")


def _check_values(facts: ImageFacts) -> None:
    if facts.accepted_by not in get_args(AcceptedBy):
        raise FormatError(f"the verifier's answer: accepted by {str(facts.accepted_by)[:80]!r}")
    texts = (*facts.warnings, facts.signer or "")
    if len(facts.warnings) > MAX_WARNINGS or not all(t.isprintable() and len(t) <= _MAX_TEXT_CHARS for t in texts):
        raise FormatError("the verifier's answer has texts that are too long, too many or not printable")
    by_signature = facts.accepted_by in {"signature", "signature+root-hash"}
    fingerprint_fits = facts.signer_fingerprint is not None and _FINGERPRINT.fullmatch(facts.signer_fingerprint)
    if by_signature != (facts.signer is not None) or by_signature != bool(fingerprint_fits):
        raise FormatError(f"the verifier's answer: accepted by {facts.accepted_by}, signer does not fit")
    try:
        superblock = VeritySuperblock.parse(
            bytes.fromhex(facts.superblock),
            data_device_bytes=facts.data_length_bytes,
            hash_device_bytes=facts.hash_length_bytes,
        )
    except FormatError as error:
        raise FormatError(f"the verifier's answer: {error}") from error
    digest_bytes = len(facts.root_hash) // 2
    if digest_bytes != DIGEST_BYTES[superblock.algorithm] or len(facts.superblock) != 2 * SUPERBLOCK_BYTES:
        raise FormatError(
            f"the verifier's answer: a {superblock.algorithm} superblock of {len(facts.superblock) // 2} bytes does "
            f"not go with a root hash of {digest_bytes} bytes"
        )


def shown_texts(texts: Iterable[str]) -> tuple[str, ...]:
    """Texts as `ImageFacts` takes them: what an image made them of may be long and control a terminal."""
    shown = [
        text if len(text) <= _MAX_TEXT_CHARS else f"{text[: _MAX_TEXT_CHARS - 3]}..." for text in map(printable, texts)
    ]
    more = len(shown) - MAX_WARNINGS
    return tuple(shown) if more <= 0 else (*shown[: MAX_WARNINGS - 1], f"and {more + 1} more warnings")
