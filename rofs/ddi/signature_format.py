# SPDX-License-Identifier: Apache-2.0
"""The JSON document in a verity signature partition: parse and pack.

Source: UAPI.2 Discoverable Partitions, "Verity Signature Partitions". The document is untrusted; what
it claims counts only after its signature was verified, which this module does not do. It does not
read partitions either.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from dataclasses import dataclass

from rofs.errors import FormatError, InputError

# systemd-repart writes 16 KiB; signatures have a few KiB. The bound keeps the JSON parser's work small.
MAX_DOCUMENT_BYTES = 1 << 20
PARTITION_BYTES = 16384  # what systemd-repart writes
_PADDING_BYTES = 4096  # the specification's multiple
_FINGERPRINT_BYTES = 32  # SHA-256

_LOWER_HEX = re.compile(r"(?:[0-9a-f]{2})+")
# SHA-256 to SHA-512: a shorter hash could not fill the two partition UUIDs with 128 bits each.
_ROOT_HASH_BYTES = range(32, 65)


@dataclass(frozen=True, slots=True)
class SignatureDocument:
    """What a signature partition claims.

    Attributes:
        root_hash: Digest, 32 to 64 bytes.
        signature_der: A PKCS#7 SignedData in DER, not parsed yet.
        certificate_fingerprint: SHA-256 of the signer's certificate in DER; a hint, or None.
    """

    root_hash: bytes
    signature_der: bytes
    certificate_fingerprint: bytes | None = None


def parse(data: bytes) -> SignatureDocument:
    """Parse the content of a signature partition.

    Args:
        data: The whole partition, NUL padding included, at most 1 MiB. Check the partition's length
            before reading it: `MAX_DOCUMENT_BYTES`.

    Returns:
        The document; unknown keys are ignored.

    Raises:
        FormatError: Too large, not one JSON object, a key missing or repeated, or a value that is not
            lower-case hex or base64.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise FormatError(f"signature partition has {len(data)} bytes; expected at most {MAX_DOCUMENT_BYTES}")
    text = data.rstrip(b"\0")
    if not text:
        raise FormatError("signature partition is empty: the image is not signed yet")
    document = _parse_object(text)
    root_hash = _hex(document, "rootHash")
    if len(root_hash) not in _ROOT_HASH_BYTES:
        raise FormatError(f"signature document: rootHash of {len(root_hash)} bytes; expected 32 to 64")
    fingerprint = None
    if document.get("certificateFingerprint") is not None:
        fingerprint = _hex(document, "certificateFingerprint")
        if len(fingerprint) != _FINGERPRINT_BYTES:
            raise FormatError(f"signature document: certificateFingerprint of {len(fingerprint)} bytes; expected 32")
    return SignatureDocument(root_hash, _base64(document, "signature"), fingerprint)


def pack(document: SignatureDocument, *, length_bytes: int | None = None) -> bytes:
    """The content of a signature partition: canonical JSON (RFC 8785), NUL-padded.

    Args:
        document: What it says.
        length_bytes: Of a partition that exists.

    Returns:
        That many bytes, or else 16384, or the next multiple of 4096 when that is too short.

    Raises:
        InputError: The partition that exists is too short.
        ValueError: The document could not be read back: too large, or a digest of the wrong length.
    """
    import rfc8785  # noqa: PLC0415 - only builders write; keeps it off the mount's start-up path

    values = {
        "rootHash": document.root_hash.hex(),
        "signature": base64.b64encode(document.signature_der).decode("ascii"),
    }
    if document.certificate_fingerprint is not None:
        values["certificateFingerprint"] = document.certificate_fingerprint.hex()
    text = rfc8785.dumps(dict(values))
    if length_bytes is None:
        length_bytes = max(PARTITION_BYTES, -(-len(text) // _PADDING_BYTES) * _PADDING_BYTES)
    if len(text) > length_bytes:
        raise InputError(
            f"the signature document has {len(text)} bytes, the signature partition has room for {length_bytes}"
        )
    data = text.ljust(length_bytes, b"\0")
    try:
        parse(data)
    except FormatError as error:
        raise ValueError(str(error)) from error
    return data


def _parse_object(text: bytes) -> dict[str, object]:
    try:
        document = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise FormatError(f"signature partition does not hold JSON: {error}") from error
    if not isinstance(document, dict):
        raise FormatError("signature partition does not hold a JSON object")
    return document


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Refuse what two parsers could read in two ways."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise FormatError("signature document repeats a key")
    return document


def _text(document: dict[str, object], key: str) -> str:
    value = document.get(key)
    if not isinstance(value, str):
        found = "nothing" if value is None else type(value).__name__
        raise FormatError(f"signature document: {key} expected as a string, found {found}")
    return value


def _hex(document: dict[str, object], key: str) -> bytes:
    text = _text(document, key)
    if not _LOWER_HEX.fullmatch(text):
        raise FormatError(f"signature document: {key} is not lower-case hex")
    return bytes.fromhex(text)


def _base64(document: dict[str, object], key: str) -> bytes:
    text = _text(document, key)
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"signature document: {key} is not base64: {error}") from error
    # Python accepts stray bits in the last character; a text has one meaning and one spelling.
    if not value or base64.b64encode(value).decode("ascii") != text:
        raise FormatError(f"signature document: {key} is empty or not canonical base64")
    return value
