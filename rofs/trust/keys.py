# SPDX-License-Identifier: Apache-2.0
"""Signing keys and certificates as PEM files: made, loaded, and checked to belong together.

Every file has a size limit and every failure a sentence that says what the file is instead. This
module signs nothing and decides nothing about trust; dates in certificates have no meaning to rofs.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from rofs import durable
from rofs.errors import InputError, RofsError, from_os_error, printable

KEY_NAME = "rofs.key"
CERTIFICATE_NAME = "rofs.crt"
KeyType = Literal["p256", "rsa3072"]
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

# Pinned leaves do not expire for rofs or the kernel; a long life keeps other tools quiet.
VALIDITY = timedelta(days=36500)
_MAX_COMMON_NAME_CHARACTERS = 64  # RFC 5280 appendix A.1, ub-common-name
MAX_PASSPHRASE_BYTES = 1023  # what OpenSSL takes
_MAX_FILE_BYTES = 1 << 20  # a certificate has 1 to 2 KiB: hundreds fit into one file
_MIN_RSA_BITS = 2048
_PEM_BEGIN = b"-----BEGIN "
_PEM_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"

# What cryptography raises for input that it cannot parse or use.
_PARSE_ERRORS = (
    ValueError,
    TypeError,  # a name attribute whose string type does not fit it
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

_Pem = TypeVar("_Pem")


def generate(
    directory: str | bytes,
    *,
    key_type: KeyType = "p256",
    common_name: str,
    now: datetime,
    passphrase: bytes | None = None,
) -> tuple[bytes, bytes]:
    """Make a key and a self-signed certificate for it.

    Args:
        directory: Made when missing, mode 0700; gets `rofs.key` (PKCS#8 PEM, 0600) and `rofs.crt`.
        key_type: NIST P-256, or RSA of 3072 bits, whose signatures are reproducible.
        common_name: The certificate's subject and issuer, 1 to 64 characters.
        now: Start of the certificate's validity, with a time zone.
        passphrase: Encrypts the key; None leaves it open to whoever can read the file.

    Returns:
        Paths of the key and of the certificate.

    Raises:
        InputError: Either file exists (neither is touched), the name is no valid common name, or the
            passphrase is empty or too long.
        HostError: No permission, no space, an I/O error; nothing is left behind.
    """
    name = _name(common_name)
    base = os.path.abspath(os.fsencode(directory))
    paths = os.path.join(base, KEY_NAME.encode()), os.path.join(base, CERTIFICATE_NAME.encode())
    for path in paths:
        if os.path.lexists(path):
            raise InputError(f"{printable(path)} exists already; keys are never overwritten")
    encryption = _encryption(passphrase)
    key = _new_key(key_type)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    certificate = _self_signed(key, name, now)
    try:
        durable.make_directories(base)
    except OSError as error:
        raise from_os_error(error, "cannot create", base) from error
    durable.write_atomic(paths[0], pem, mode=0o600, replace=False)
    try:
        certificate_pem = certificate.public_bytes(serialization.Encoding.PEM)
        durable.write_atomic(paths[1], certificate_pem, mode=0o644, replace=False)
    except BaseException:
        with contextlib.suppress(RofsError):  # a key without its certificate helps nobody
            durable.remove(paths[0])
        raise
    return paths


def _encryption(passphrase: bytes | None) -> serialization.KeySerializationEncryption:
    if passphrase is None:
        return serialization.NoEncryption()
    if not 0 < len(passphrase) <= MAX_PASSPHRASE_BYTES:
        raise InputError(f"passphrase has {len(passphrase)} bytes; expected 1 to {MAX_PASSPHRASE_BYTES}")
    return serialization.BestAvailableEncryption(passphrase)


def _name(common_name: str) -> x509.Name:
    try:
        common_name.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"common name {common_name!r} is not Unicode text") from error
    if not 1 <= len(common_name) <= _MAX_COMMON_NAME_CHARACTERS:
        raise InputError(f"common name has {len(common_name)} characters; expected 1 to {_MAX_COMMON_NAME_CHARACTERS}")
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def _new_key(key_type: KeyType) -> PrivateKey:
    if key_type == "p256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65537, key_size=3072)


def _self_signed(key: PrivateKey, name: x509.Name, now: datetime) -> x509.Certificate:
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    start = now.replace(microsecond=0)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + VALIDITY)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(key_id, critical=False)
    )
    return builder.sign(key, hashes.SHA256())


def load_private_key(path: str | bytes, passphrase: Callable[[], bytes] | None = None) -> PrivateKey:
    """Load a signing key from a PEM file.

    Args:
        path: The file.
        passphrase: Asked once, and only when the key is encrypted.

    Raises:
        InputError: Missing, empty, not PEM, a certificate, no RSA or EC key that rofs uses, or encrypted
            with another passphrase or without one being given.
        HostError: Unreadable.
    """
    data = _read_pem(path)
    if _PEM_CERTIFICATE in data and b"PRIVATE KEY-----" not in data:
        raise InputError(f"{printable(path)} is a certificate; expected a private key")
    key = _parsed(path, "private key", data, lambda pem: _load_key(path, pem, passphrase))
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _MIN_RSA_BITS:
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key
    raise InputError(
        f"{printable(path)} holds a key of another type; expected EC, or RSA of {_MIN_RSA_BITS} bits or more"
    )


def _load_key(path: str | bytes, data: bytes, passphrase: Callable[[], bytes] | None) -> object:
    try:
        return serialization.load_pem_private_key(data, password=None)
    except TypeError:  # how cryptography says that a password is needed
        if passphrase is None:
            raise InputError(f"{printable(path)} is encrypted, and no passphrase is given") from None
    try:
        return serialization.load_pem_private_key(data, password=passphrase())
    except (ValueError, TypeError) as error:
        # What a wrong key makes of the padding, or of what stands behind it, is noise.
        raise InputError(f"{printable(path)} cannot be decrypted: the passphrase is wrong") from error


def load_certificates(path: str | bytes) -> list[x509.Certificate]:
    """Load every certificate of a PEM file.

    Returns:
        At least one; each with a readable subject, issuer and public key.

    Raises:
        InputError: Missing, empty, not PEM, a private key, or a malformed certificate.
        HostError: Unreadable.
    """
    data = _read_pem(path)
    if _PEM_CERTIFICATE not in data:
        what = "a private key" if b"PRIVATE KEY-----" in data else "no certificate"
        raise InputError(f"{printable(path)} holds {what}; expected a PEM certificate")
    return _parsed(path, "certificate", data, _load_checked)


def _load_checked(data: bytes) -> list[x509.Certificate]:
    """Also what cryptography parses late, so that it fails here, with the name of the file."""
    with _quiet():
        certificates = x509.load_pem_x509_certificates(data)
    for certificate in certificates:
        _touch(certificate)
    return certificates


def _touch(certificate: x509.Certificate) -> None:
    subject(certificate)
    issuer_and_serial(certificate)
    subject_key_id(certificate)
    certificate.public_key()


def readable_certificates(ders: Iterable[bytes]) -> list[x509.Certificate]:
    """Parse certificates that only serve as hints; what cannot be parsed is left out."""
    readable = []
    for der in ders:
        with contextlib.suppress(*_PARSE_ERRORS), _quiet():
            certificate = x509.load_der_x509_certificate(der)
            _touch(certificate)
            readable.append(certificate)
    return readable


def subject(certificate: x509.Certificate) -> str:
    """The subject as text (RFC 4514)."""
    with _quiet():
        return certificate.subject.rfc4514_string()


def issuer_and_serial(certificate: x509.Certificate) -> tuple[bytes, int]:
    """The issuer's name in DER and the serial number, as a PKCS#7 signer names a certificate."""
    with _quiet():
        return certificate.issuer.public_bytes(), certificate.serial_number


def _quiet() -> contextlib.AbstractContextManager[object]:
    """No warning reaches stderr because of a certificate that bends RFC 5280: it is pinned, or a hint."""
    return warnings.catch_warnings(action="ignore")


def subject_key_id(certificate: x509.Certificate) -> bytes | None:
    """The subject key identifier (RFC 5280 section 4.2.1.2), or None when there is none."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return None
    return extension.value.digest


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate in DER, lower-case hex."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def check_pair(key: PrivateKey, certificate: x509.Certificate) -> None:
    """Refuse a key and a certificate that do not belong together.

    Raises:
        InputError: Names the fingerprint (SHA-256) of each public key.
    """
    of_key, of_certificate = _key_digest(key.public_key()), _key_digest(certificate.public_key())
    if of_key != of_certificate:
        raise InputError(
            f"key and certificate {subject(certificate)} do not belong together: public key "
            f"{of_key} of the key, {of_certificate} of the certificate"
        )


def _key_digest(public_key: CertificatePublicKeyTypes) -> str:
    der = public_key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    digest = hashes.Hash(hashes.SHA256())
    digest.update(der)
    return digest.finalize().hex()


def _read_pem(path: str | bytes) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise from_os_error(error, "cannot read", path) from error
    if not data:
        raise InputError(f"{printable(path)} is empty; expected PEM")
    if len(data) > _MAX_FILE_BYTES:
        raise InputError(f"{printable(path)} is larger than {_MAX_FILE_BYTES} bytes; expected a PEM file")
    if _PEM_BEGIN not in data:
        raise InputError(f"{printable(path)} is not PEM")
    return data


def _parsed(path: str | bytes, what: str, data: bytes, parse: Callable[[bytes], _Pem]) -> _Pem:
    try:
        return parse(data)
    except _PARSE_ERRORS as error:
        raise InputError(f"{printable(path)} holds no usable {what}: {error}") from error
