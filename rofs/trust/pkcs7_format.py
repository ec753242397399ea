# SPDX-License-Identifier: Apache-2.0
"""PKCS#7 SignedData: the DER structure of a detached signature, parsed strictly.

Sources: RFC 2315 section 9 and RFC 5652 section 5 (the same bytes for what is used here). The parser
is the declarative DER decoder of `cryptography`: bounded, non-recursive, refuses BER and trailing
bytes. This module checks no signature and knows no key (`pkcs7`).
"""

# No `from __future__ import annotations`: the decoder reads the annotations as they are.

from dataclasses import dataclass
from typing import Annotated

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.asn1 import TLV, Explicit, Implicit, Null, SetOf

from rofs.errors import FormatError

MAX_SIGNATURE_BYTES = 64 << 10  # a signature with its certificate has 1 to 4 KiB
MAX_SIGNERS = 8  # each costs a signature check per trusted certificate
_SHOWN_CHARACTERS = 80  # of a foreign value in a message

OID_DATA = "1.2.840.113549.1.7.1"
OID_SIGNED_DATA = "1.2.840.113549.1.7.2"
OID_CONTENT_TYPE = "1.2.840.113549.1.9.3"
OID_MESSAGE_DIGEST = "1.2.840.113549.1.9.4"

_SEQUENCE_TAG = b"\x30"
_SIGNED_DATA_VERSIONS = (1, 3)  # PKCS#7 and CMS; CMS with a subject key identifier


@asn1.sequence
class _AlgorithmIdentifier:
    algorithm: x509.ObjectIdentifier
    parameters: Null | None  # NULL or absent for every algorithm in use; RSA-PSS is none of them


@asn1.sequence
class _Attribute:
    type: x509.ObjectIdentifier
    values: SetOf[TLV]


@asn1.sequence
class _IssuerAndSerialNumber:
    issuer: TLV
    serial_number: int


@asn1.sequence
class _SignerInfo:
    version: int
    sid: _IssuerAndSerialNumber | Annotated[bytes, Implicit(0)]
    digest_algorithm: _AlgorithmIdentifier
    signed_attributes: Annotated[SetOf[_Attribute] | None, Implicit(0)]
    signature_algorithm: _AlgorithmIdentifier
    signature: bytes
    unsigned_attributes: Annotated[SetOf[_Attribute] | None, Implicit(1)]


@asn1.sequence
class _EncapsulatedContentInfo:
    content_type: x509.ObjectIdentifier
    content: Annotated[bytes | None, Explicit(0)]


@asn1.sequence
class _SignedData:
    version: int
    digest_algorithms: SetOf[_AlgorithmIdentifier]
    content_info: _EncapsulatedContentInfo
    # SET OF by the standard, but OpenSSL keeps the order of PKCS#7 certificates: a list accepts both.
    certificates: Annotated[list[TLV] | None, Implicit(0)]
    crls: Annotated[list[TLV] | None, Implicit(1)]
    signer_infos: SetOf[_SignerInfo]


@asn1.sequence
class _ContentInfo:
    content_type: x509.ObjectIdentifier
    content: Annotated[_SignedData, Explicit(0)]


# The same with opaque elements, which come out again byte for byte: for merging.
@asn1.sequence
class _OpaqueSignedData:
    version: int
    digest_algorithms: SetOf[TLV]
    content_info: _EncapsulatedContentInfo
    certificates: Annotated[list[TLV] | None, Implicit(0)]
    crls: Annotated[list[TLV] | None, Implicit(1)]
    signer_infos: SetOf[TLV]


@asn1.sequence
class _OpaqueContentInfo:
    content_type: x509.ObjectIdentifier
    content: Annotated[_OpaqueSignedData, Explicit(0)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedAttributes:
    """The attributes that a signer signed in place of the content.

    Attributes:
        signed_der: What the signature covers: the DER encoding with the tag SET OF (RFC 5652, 5.4).
        content_type: Dotted OID.
        message_digest: Digest of the content.
    """

    signed_der: bytes
    content_type: str
    message_digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SignerInfo:
    """One signature, not checked yet.

    Attributes:
        issuer_der: Name of the certificate's issuer in DER, or None; with `serial_number`.
        serial_number: Of the certificate, or None.
        subject_key_id: The other way to name the certificate, or None.
        digest_oid: Dotted OID of the digest algorithm.
        signature_oid: Dotted OID of the signature algorithm.
        signature: Its bytes.
        attributes: Signed attributes, or None when the signature covers the content itself.
    """

    issuer_der: bytes | None
    serial_number: int | None
    subject_key_id: bytes | None
    digest_oid: str
    signature_oid: str
    signature: bytes
    attributes: SignedAttributes | None


@dataclass(frozen=True, slots=True)
class SignedData:
    """A detached PKCS#7 signature.

    Attributes:
        signers: 1 to 8.
        certificates: DER of the embedded certificates: hints, not trusted and not parsed.
    """

    signers: tuple[SignerInfo, ...]
    certificates: tuple[bytes, ...]


def parse_signed_data(der: bytes) -> SignedData:
    """Parse a detached signature.

    Args:
        der: Exactly one ContentInfo in DER, at most 64 KiB.

    Returns:
        The signers and the embedded certificates.

    Raises:
        FormatError: Too large, not DER, trailing bytes, attached content, no or too many signers, or
            not the structure of a SignedData.
    """
    if len(der) > MAX_SIGNATURE_BYTES:
        raise FormatError(f"PKCS#7 signature has {len(der)} bytes; expected at most {MAX_SIGNATURE_BYTES}")
    try:
        info = asn1.decode_der(_ContentInfo, der)
    except ValueError as error:
        raise FormatError(f"PKCS#7 signature is malformed: {error}") from error
    _expect("content type", info.content_type.dotted_string, OID_SIGNED_DATA)
    data = info.content
    _check_envelope(data)
    declared = {algorithm.algorithm for algorithm in data.digest_algorithms.as_list()}
    return SignedData(
        signers=tuple(_signer(signer, declared) for signer in data.signer_infos.as_list()),
        certificates=tuple(
            asn1.encode_der(tlv)
            for tlv in data.certificates or ()
            if tlv.tag_bytes == _SEQUENCE_TAG  # other CertificateChoices are obsolete
        ),
    )


def merge_signed_data(first: bytes, second: bytes) -> bytes:
    """Put the signers of two detached signatures into one.

    A signer of `first` who is also one of `second` is dropped: its newer signature counts. Nothing is
    checked but the structure.

    Args:
        first: DER, as `parse_signed_data` takes it.
        second: The same.

    Returns:
        DER of a SignedData with the signers and certificates of both.

    Raises:
        FormatError: One of them is malformed, or together they have too many signers or bytes.
    """
    newer = {_identifier(signer) for signer in parse_signed_data(second).signers}
    older = [_identifier(signer) for signer in parse_signed_data(first).signers]
    a, b = (asn1.decode_der(_OpaqueContentInfo, der).content for der in (first, second))
    kept = [tlv for tlv, who in zip(a.signer_infos.as_list(), older, strict=True) if who not in newer]
    merged = _OpaqueSignedData(
        version=max(a.version, b.version),
        digest_algorithms=SetOf(_unique(a.digest_algorithms.as_list(), b.digest_algorithms.as_list())),
        content_info=b.content_info,
        certificates=_unique(a.certificates or [], b.certificates or []) or None,
        crls=None,
        signer_infos=SetOf(_unique(kept, b.signer_infos.as_list())),
    )
    der = asn1.encode_der(_OpaqueContentInfo(content_type=x509.ObjectIdentifier(OID_SIGNED_DATA), content=merged))
    parse_signed_data(der)
    return der


def _identifier(signer: SignerInfo) -> tuple[object, ...]:
    return signer.issuer_der, signer.serial_number, signer.subject_key_id


def _unique(*lists: list[TLV]) -> list[TLV]:
    """Each encoding once, in order."""
    return list({asn1.encode_der(tlv): tlv for tlvs in lists for tlv in tlvs}.values())


def _check_envelope(data: _SignedData) -> None:
    if data.version not in _SIGNED_DATA_VERSIONS:
        raise FormatError(f"PKCS#7 signature: version 1 or 3 expected, found {_shown(data.version)}")
    _expect("type of the signed content", data.content_info.content_type.dotted_string, OID_DATA)
    if data.content_info.content is not None:
        raise FormatError("PKCS#7 signature carries its own content; expected a detached signature over the root hash")
    signers = len(data.signer_infos.as_list())
    if not 1 <= signers <= MAX_SIGNERS:
        raise FormatError(f"PKCS#7 signature has {signers} signers; expected 1 to {MAX_SIGNERS}")


def _signer(raw: _SignerInfo, declared: set[x509.ObjectIdentifier]) -> SignerInfo:
    by_key_id = isinstance(raw.sid, bytes)
    _expect("version of a signer", raw.version, 3 if by_key_id else 1)
    if raw.digest_algorithm.algorithm not in declared:
        raise FormatError("PKCS#7 signature: a signer's digest algorithm is not declared")
    attributes = raw.signed_attributes
    return SignerInfo(
        issuer_der=None if isinstance(raw.sid, bytes) else asn1.encode_der(raw.sid.issuer),
        serial_number=None if isinstance(raw.sid, bytes) else raw.sid.serial_number,
        subject_key_id=raw.sid if isinstance(raw.sid, bytes) else None,
        digest_oid=raw.digest_algorithm.algorithm.dotted_string,
        signature_oid=raw.signature_algorithm.algorithm.dotted_string,
        signature=raw.signature,
        attributes=None if attributes is None else _signed_attributes(attributes),
    )


def _signed_attributes(attributes: SetOf[_Attribute]) -> SignedAttributes:
    """The two attributes that section 5.3 demands, each exactly once with exactly one value."""
    values: dict[str, TLV] = {}
    for attribute in attributes.as_list():
        oid = attribute.type.dotted_string
        if oid in (OID_CONTENT_TYPE, OID_MESSAGE_DIGEST):
            found = attribute.values.as_list()
            if oid in values or len(found) != 1:
                raise FormatError(f"PKCS#7 signature: signed attribute {oid} is not unique")
            values[oid] = found[0]
    if len(values) != 2:
        raise FormatError("PKCS#7 signature: signed attributes lack the content type or message digest")
    try:
        content_type: x509.ObjectIdentifier = values[OID_CONTENT_TYPE].parse(x509.ObjectIdentifier)
        message_digest: bytes = values[OID_MESSAGE_DIGEST].parse(bytes)
        signed_der = asn1.encode_der(attributes)
    except ValueError as error:
        raise FormatError(f"PKCS#7 signature: malformed signed attribute: {error}") from error
    return SignedAttributes(
        signed_der=signed_der,
        content_type=content_type.dotted_string,
        message_digest=message_digest,
    )


def _expect(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise FormatError(f"PKCS#7 signature: {what} {expected} expected, found {_shown(found)}")


def _shown(found: object) -> str:
    """A value for a message. Python refuses to write out an integer of thousands of digits in decimal."""
    text = hex(found) if isinstance(found, int) and found.bit_length() > 64 else str(found)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
