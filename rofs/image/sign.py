# SPDX-License-Identifier: Apache-2.0
"""Signing an image that exists: with a key, or with a signature that was made elsewhere.

The signature goes into the signature partition, or beside a bare filesystem; nothing else of the image
changes, and nothing is copied. Signatures that are there stay. Does not load keys and trusts no
certificate but those it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rofs import durable
from rofs.blockdev import FileDevice
from rofs.ddi import signature_format
from rofs.ddi.gpt import Partition
from rofs.ddi.signature_format import SignatureDocument
from rofs.errors import FormatError, ImageError, InputError, RofsError, TrustError, printable
from rofs.image.build import SigningKey
from rofs.image.check import check_image
from rofs.image.files import ImageFiles
from rofs.image.open import UntrustedImage, VerifiedImage, open_chosen, read_table
from rofs.image.progress import Progress, Silent
from rofs.trust import keys, pkcs7
from rofs.trust.image_policy import parse_image_policy
from rofs.trust.verify import SignerReport, TrustedCertificate, TrustPolicy, explain

# The first sector of the partition: without it the document is no JSON.
_HEAD_BYTES = 512


@dataclass(frozen=True, slots=True)
class SignedImage:
    """What came of it.

    Attributes:
        root_hash: What was signed.
        signers: Every signature that the image has now; `trusted` says which were verified here.
        replaced: What stood in place of a signature and was none, one phrase; None when there was nothing.
    """

    root_hash: bytes
    signers: tuple[SignerReport, ...]
    replaced: str | None


def sign_image(
    files: ImageFiles,
    path: str | bytes,
    signer: SigningKey,
    *,
    root_hash: bytes | None = None,
    progress: Progress | None = None,
) -> SignedImage:
    """Sign an image, after every block of it has been checked against its root hash.

    Args:
        files: Opened for writing.
        path: Of the image, for messages.
        signer: Key and certificate.
        root_hash: Which set of partitions, when there are several.
        progress: Told about the check.

    Raises:
        InputError: The image has no place for a signature.
        ImageError: It is malformed, or a block does not match its root hash.
        HostError: It is in use, or cannot be written.
    """
    durable.lock(files.data_fd, path)
    untrusted = read_table(files, root_hash=root_hash)
    _check_content(_opened(untrusted), progress or Silent())
    der = pkcs7.sign(untrusted.root_hash, signer.key, signer.certificate)
    return _add(files, path, untrusted, der, (signer.trusted,))


def add_signature(
    files: ImageFiles,
    path: str | bytes,
    signature_der: bytes,
    certificates: Sequence[TrustedCertificate],
    *,
    root_hash: bytes | None = None,
) -> SignedImage:
    """Add a signature that was made elsewhere, where the key is.

    Args:
        files: Opened for writing.
        path: Of the image, for messages.
        signature_der: A detached PKCS#7 signature over the root hash in hex, in DER.
        certificates: Of the signers; each signature must verify with one of them.
        root_hash: Which set of partitions, when there are several.

    Raises:
        TrustError: A signature does not verify; the image is as it was.
        InputError: The signature names its signer by key identifier, or the image has no place for it.
        ImageError: The image or the signature is malformed.
        HostError: It is in use, or cannot be written.
    """
    durable.lock(files.data_fd, path)
    untrusted = read_table(files, root_hash=root_hash)
    _opened(untrusted)
    if any(info.subject_key_id is not None for info in pkcs7.parse_signed_data(signature_der).signers):
        raise InputError(
            "the signature names its signer by key identifier, which is no PKCS#7 and which systemd cannot read; "
            "make it with openssl smime -sign -binary -noattr"
        )
    return _add(files, path, untrusted, signature_der, certificates)


def _opened(untrusted: UntrustedImage) -> VerifiedImage:
    """The image under the root hash that it claims, which is the one that is signed."""
    claimed = TrustPolicy(pinned_root_hash=untrusted.root_hash, image_policy=parse_image_policy("=open"))
    return open_chosen(untrusted, claimed)


def _check_content(image: VerifiedImage, progress: Progress) -> None:
    result = check_image(image, progress)
    if result.faults:
        fault, paths = result.faults[0]
        where = f" in {', '.join(map(printable, paths[:5]))}" if paths else ""
        raise ImageError(f"not signed, because it is corrupt: {fault}{where}")


def _add(
    files: ImageFiles,
    path: str | bytes,
    untrusted: UntrustedImage,
    der: bytes,
    certificates: Sequence[TrustedCertificate],
) -> SignedImage:
    """Verify what is to be added, merge it with what is there, write it, and read it back."""
    _verify(untrusted, der, certificates, every=True)
    place = _side_file(files) if untrusted.parts is None else _partition(files, path, untrusted)
    merged = der if place.present is None else pkcs7.merge_signed_data(place.present, der)
    place.write(merged)
    signers = _verify(untrusted, place.read(), certificates, every=False)
    return SignedImage(untrusted.root_hash, signers, place.replaced)


def _verify(
    untrusted: UntrustedImage, der: bytes | None, certificates: Sequence[TrustedCertificate], *, every: bool
) -> tuple[SignerReport, ...]:
    """Refuse a signature that a certificate, or (with `every`) any signer of it, does not verify."""
    policy = TrustPolicy(certificates=tuple(certificates), image_policy=parse_image_policy("=signed"))
    decision = explain(untrusted.root_hash, der, policy=policy, designator=untrusted.designator)
    if not decision.accepted:
        raise TrustError(decision.reason)
    unverified = [signer for signer in decision.signers if not signer.trusted]
    if every and unverified:
        who = f"{unverified[0].subject} ({unverified[0].fingerprint})"
        raise TrustError(f"the signature has a signer that no given certificate verifies: {who}")
    return decision.signers


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the signature of an image stands.

    Attributes:
        present: The signature there, DER; None when there is none.
        replaced: What is there instead.
        write: Puts a signature there, durably.
        read: The signature that is there now.
    """

    present: bytes | None
    replaced: str | None
    write: Callable[[bytes], None]
    read: Callable[[], bytes | None]


def _present(der: bytes | None) -> tuple[bytes | None, str | None]:
    """A signature as it can be merged; what cannot be read is none."""
    if der is None:
        return None, None
    try:
        pkcs7.parse_signed_data(der)
    except FormatError as error:
        return None, str(error)
    return der, None


def _side_file(files: ImageFiles) -> _Place:
    assert files.side is not None
    path = files.side.signature_path
    present, replaced = _present(files.side.signature)

    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read()

    return _Place(present, replaced, lambda der: durable.write_atomic(path, der), read)


def _partition(files: ImageFiles, path: str | bytes, untrusted: UntrustedImage) -> _Place:
    partition, present, replaced = _chosen_partition(FileDevice(files.data_fd), untrusted)
    length_bytes = min(partition.length_bytes, signature_format.MAX_DOCUMENT_BYTES)

    def write(der: bytes) -> None:
        data = signature_format.pack(_document(untrusted.root_hash, der), length_bytes=length_bytes)
        durable.replace_in_place(files.data_fd, path, partition.offset_bytes, data, head_bytes=_HEAD_BYTES)

    def read() -> bytes | None:
        return read_table(files, root_hash=untrusted.root_hash).signature_der

    return _Place(present, replaced, write, read)


def _document(root_hash: bytes, der: bytes) -> SignatureDocument:
    """The fingerprint is a hint to one certificate: it is left out when there are several signers."""
    signed = pkcs7.parse_signed_data(der)
    embedded = keys.readable_certificates(signed.certificates)
    hint = bytes.fromhex(keys.fingerprint(embedded[0])) if len(signed.signers) == len(embedded) == 1 else None
    return SignatureDocument(root_hash, der, hint)


def _chosen_partition(device: FileDevice, untrusted: UntrustedImage) -> tuple[Partition, bytes | None, str | None]:
    """The signature partition of a set, the signature there, and what is there instead of one."""
    parts = untrusted.parts
    assert parts is not None
    if parts.signature is not None:
        partition, document = parts.signature
        return partition, *_present(document.signature_der)
    if not parts.vacant:
        raise InputError(
            f"the image has no {parts.designator}-verity-sig partition to hold a signature; rofs build --unsigned "
            "leaves one"
        )
    if len(parts.vacant) > 1:
        raise InputError(
            f"the image has {len(parts.vacant)} signature partitions without a signature for any root hash; it "
            "does not tell which one is for this"
        )
    (partition,) = parts.vacant
    length_bytes = min(partition.length_bytes, signature_format.MAX_DOCUMENT_BYTES)
    data = device.read_at(partition.offset_bytes, length_bytes)
    if not any(data):
        return partition, None, None
    try:
        return partition, None, f"a signature for root hash {signature_format.parse(data).root_hash.hex()}"
    except RofsError as error:
        return partition, None, str(error)
