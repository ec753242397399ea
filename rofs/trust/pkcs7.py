# SPDX-License-Identifier: Apache-2.0
"""Detached PKCS#7 signatures over a root hash: made, and checked against one public key.

What is signed is the root hash as lower-case hex in ASCII, without a newline: the kernel
(`verity_verify_root_hash`) and systemd check the same bytes. This module does not decide whose key is
trusted (`verify`), follows no chain and looks at no date.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509 import Certificate

from rofs.errors import TrustError
from rofs.trust.pkcs7_format import OID_DATA, SignedData, SignerInfo, merge_signed_data, parse_signed_data

__all__ = [
    "SignedData",
    "SignerInfo",
    "merge_signed_data",
    "parse_signed_data",
    "sign",
    "signed_bytes",
    "verify_signer",
]

# SHA-1 is missing on purpose: collisions are practical.
_DIGESTS: dict[str, hashes.HashAlgorithm] = {
    "2.16.840.1.101.3.4.2.1": hashes.SHA256(),
    "2.16.840.1.101.3.4.2.2": hashes.SHA384(),
    "2.16.840.1.101.3.4.2.3": hashes.SHA512(),
}
_RSA_ENCRYPTION = "1.2.840.113549.1.1.1"  # the digest is the signer's digest algorithm
# RFC 4055 section 5 and RFC 5758 section 3.2: the digest that the signature algorithm implies.
_RSA_DIGESTS = {
    "1.2.840.113549.1.1.11": "sha256",
    "1.2.840.113549.1.1.12": "sha384",
    "1.2.840.113549.1.1.13": "sha512",
}
_ECDSA_DIGESTS = {
    "1.2.840.10045.4.3.2": "sha256",
    "1.2.840.10045.4.3.3": "sha384",
    "1.2.840.10045.4.3.4": "sha512",
}


def signed_bytes(root_hash: bytes) -> bytes:
    """What a signature over a root hash covers: its lower-case hex in ASCII."""
    return root_hash.hex().encode("ascii")


def sign(
    root_hash: bytes,
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
    certificate: Certificate,
) -> bytes:
    """Sign a root hash as the kernel expects: detached, binary, no signed attributes, SHA-256.

    Args:
        root_hash: The digest.
        key: Belongs to `certificate`; `keys.check_pair` checks that.
        certificate: Is embedded as a hint.

    Returns:
        PKCS#7 SignedData in DER. RSA gives the same bytes each time, ECDSA does not.
    """
    options = [
        pkcs7.PKCS7Options.DetachedSignature,
        pkcs7.PKCS7Options.Binary,
        pkcs7.PKCS7Options.NoAttributes,
    ]
    builder = pkcs7.PKCS7SignatureBuilder().set_data(signed_bytes(root_hash))
    return builder.add_signer(certificate, key, hashes.SHA256()).sign(Encoding.DER, options)


def verify_signer(signer: SignerInfo, content: bytes, public_key: object) -> None:
    """Check one signature with one public key (RFC 5652 section 5.6).

    Args:
        signer: As parsed.
        content: What must have been signed: `signed_bytes(root_hash)`.
        public_key: Of a trusted certificate; RSA (PKCS#1 v1.5) or ECDSA, anything else is refused.

    Raises:
        TrustError: The key did not make this signature over this content, or the algorithm is refused.
    """
    digest = _DIGESTS.get(signer.digest_oid)
    if digest is None:
        raise TrustError(f"digest algorithm {signer.digest_oid} is refused; expected SHA-256, SHA-384 or SHA-512")
    message = _message(signer, content, digest.name)
    try:
        if isinstance(public_key, rsa.RSAPublicKey):
            _check_algorithm(signer, "RSA", _RSA_DIGESTS | {_RSA_ENCRYPTION: digest.name}, digest.name)
            public_key.verify(signer.signature, message, padding.PKCS1v15(), digest)
        elif isinstance(public_key, ec.EllipticCurvePublicKey):
            _check_algorithm(signer, "ECDSA", _ECDSA_DIGESTS, digest.name)
            public_key.verify(signer.signature, message, ec.ECDSA(digest))
        else:
            raise TrustError("key type is not supported; expected RSA or ECDSA")
    except InvalidSignature as error:
        raise TrustError("signature does not match the root hash under this key") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TrustError(f"signature cannot be checked: {error}") from error


def _message(signer: SignerInfo, content: bytes, digest_name: str) -> bytes:
    """The bytes under the signature: the content, or the attributes that name its digest."""
    attributes = signer.attributes
    if attributes is None:
        return content
    if attributes.content_type != OID_DATA:
        raise TrustError(f"signed content type {OID_DATA} expected, found {attributes.content_type}")
    expected = hashlib.new(digest_name, content).digest()
    if expected != attributes.message_digest:
        raise TrustError(
            f"signature is for other content: digest {expected.hex()} expected, {attributes.message_digest.hex()} found"
        )
    return attributes.signed_der


def _check_algorithm(signer: SignerInfo, family: str, digests: dict[str, str], digest_name: str) -> None:
    if digests.get(signer.signature_oid) != digest_name:
        raise TrustError(
            f"signature algorithm {signer.signature_oid} does not fit; expected {family} with {digest_name}"
        )
