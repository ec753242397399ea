# SPDX-License-Identifier: Apache-2.0
"""Opening an image: file → partition → verity → EROFS, each layer only after trust in the one below.

`open_image` takes a descriptor, never a path, and everything it returns reads through that descriptor:
what was checked is what is used. `ImageFacts` carries the outcome to another process as plain JSON, so
that untrusted bytes can be parsed by a process without privileges. Does not mount or write anything.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, get_args

from rofs.blockdev import BlockDevice, FileDevice, WindowDevice
from rofs.ddi import signature_format
from rofs.ddi.gpt import Partition, read_gpt
from rofs.ddi.parts import ImageParts, select_image_parts
from rofs.erofs.reader import ErofsReader
from rofs.errors import FormatError, InputError, TrustError, from_os_error, printable
from rofs.image.identity import XATTR, Identity, parse_identity
from rofs.trust.verify import AcceptedBy, TrustPolicy, VerifiedRootHash, establish_trust
from rofs.verity.device import VerityDevice
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
        data_offset_bytes: Of the data partition in the file.
        hash_offset_bytes: Of the verity partition in the file.
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


def _for_facts(texts: Iterable[str]) -> tuple[str, ...]:
    """Texts as `_check_values` takes them: what an image made them of may be long and control a terminal."""
    shown = [
        text if len(text) <= _MAX_TEXT_CHARS else f"{text[: _MAX_TEXT_CHARS - 3]}..." for text in map(printable, texts)
    ]
    more = len(shown) - MAX_WARNINGS
    return tuple(shown) if more <= 0 else (*shown[: MAX_WARNINGS - 1], f"and {more + 1} more warnings")


@dataclass(frozen=True, slots=True)
class VerifiedImage:
    """An image whose root hash is trusted; what its filesystem returns was verified on the way.

    Made by `open_image`, `open_chosen` and `reopen_image` only.

    Attributes:
        root: The trusted root hash and why it is trusted.
        filesystem: The reader on top of everything.
        device: The verified device under it.
        facts: The same as plain values.
    """

    root: VerifiedRootHash
    filesystem: ErofsReader
    device: VerityDevice
    facts: ImageFacts

    @property
    def identity(self) -> Identity:
        """Name, version and the like, from under the root hash."""
        return self.facts.identity


@dataclass(frozen=True, slots=True)
class UntrustedImage:
    """An image as its partition table describes it, before anyone has trusted it.

    Attributes:
        device: The whole file.
        parts: Data, verity and signature partition, matched by root hash.
        warnings: About the partition table.
    """

    device: BlockDevice
    parts: ImageParts
    warnings: tuple[str, ...]

    @property
    def signature_der(self) -> bytes | None:
        """The signature over the root hash, None when the image has none."""
        return self.parts.signature[1].signature_der if self.parts.signature else None


def open_file(path: str | bytes) -> int:
    """Open an image file for reading, once.

    Returns:
        A descriptor, close-on-exec; the caller closes it.

    Raises:
        InputError: It does not exist, or is neither a regular file nor a block device.
        HostError: No permission.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise from_os_error(error, "cannot open image", path) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        os.close(fd)
        kind = "a directory" if stat.S_ISDIR(mode) else "neither a regular file nor a block device"
        raise InputError(f"image {printable(path)} is {kind}; expected an image file")
    return fd


def read_table(fd: int, *, root_hash: bytes | None = None) -> UntrustedImage:
    """Read the partition table and choose the partitions; trusts and verifies nothing.

    Args:
        fd: The image.
        root_hash: Which set to choose when there are several.

    Raises:
        FormatError: No partition table, or no complete set of partitions.
        TrustError: No set with that root hash.
        ReadError: The medium failed.
    """
    device = FileDevice(fd)
    table = read_gpt(device)

    warnings = list(table.warnings)

    def signature_of(partition: Partition) -> signature_format.SignatureDocument | None:
        length = min(partition.length_bytes, signature_format.MAX_DOCUMENT_BYTES)
        try:
            return signature_format.parse(device.read_at(partition.offset_bytes, length))
        except FormatError as error:  # as good as none: whether that matters is up to the policy
            warnings.append(str(error))
            return None

    parts = select_image_parts(table, root_hash=root_hash, signature_of=signature_of)
    warnings += [f"a signature is for another root hash: {value.hex()}" for value in parts.unmatched_root_hashes]
    return UntrustedImage(device, parts, tuple(warnings))


def open_image(fd: int, policy: TrustPolicy) -> VerifiedImage:
    """Open an image, or refuse it.

    1. Read the partition table; choose data, verity and signature partition by root hash.
    2. Establish trust in the root hash: signature and pin, as the policy says.
    3. Read and bound the verity superblock, which nothing vouches for yet.
    4. Open the filesystem through the verified device: its superblock and root inode must match the
       root hash, and with them every byte that is read later.
    5. Read the identity from the root inode.

    Args:
        fd: The image; it stays the caller's to close, after the last use of the result.
        policy: Which certificates and root hash are trusted.

    Raises:
        TrustError: The policy refuses the image.
        FormatError: It is malformed or not supported.
        CorruptionError: The first blocks do not match the root hash.
        ReadError: The medium failed.
    """
    return open_chosen(read_table(fd, root_hash=policy.pinned_root_hash), policy)  # 1.


def open_chosen(untrusted: UntrustedImage, policy: TrustPolicy) -> VerifiedImage:
    """Steps 2 to 5 of `open_image`, for a caller who has read the partition table already.

    Args:
        untrusted: Of `read_table`; its descriptor stays open as long as the result is used.
        policy: Which certificates and root hash are trusted.

    Raises:
        As `open_image`.
    """
    parts = untrusted.parts
    root = _trust(untrusted, policy)  # 2.
    data = WindowDevice(untrusted.device, parts.data.offset_bytes, parts.data.length_bytes)
    hashes = WindowDevice(untrusted.device, parts.verity.offset_bytes, parts.verity.length_bytes)
    device, filesystem = open_layers(data, hashes, root.digest)  # 3. and 4.
    identity = parse_identity(filesystem.getxattr(filesystem.root_nid, XATTR))  # 5.
    facts = ImageFacts(
        root_hash=root.digest.hex(),
        accepted_by=root.accepted_by,
        signer=_for_facts([root.signer.subject])[0] if root.signer else None,
        signer_fingerprint=root.signer.fingerprint if root.signer else None,
        identity=identity,
        data_offset_bytes=parts.data.offset_bytes,
        data_length_bytes=parts.data.length_bytes,
        hash_offset_bytes=parts.verity.offset_bytes,
        hash_length_bytes=parts.verity.length_bytes,
        superblock=device.superblock.pack().hex(),
        warnings=_for_facts(untrusted.warnings),
    )
    return VerifiedImage(root, filesystem, device, facts)


def _trust(untrusted: UntrustedImage, policy: TrustPolicy) -> VerifiedRootHash:
    try:
        return establish_trust(untrusted.parts.root_hash, untrusted.signature_der, policy=policy)
    except TrustError as error:
        raise TrustError("; ".join((str(error), *untrusted.warnings))) from error


def reopen_image(fd: int, facts: ImageFacts) -> VerifiedImage:
    """Open an image again from what was found out before; only the filesystem is parsed.

    The root hash of `facts` is pinned: whatever happened to the file since, no other bytes come out.

    Raises:
        FormatError: The facts do not fit the file (truncated since), or the filesystem is malformed.
        CorruptionError: The first blocks no longer match.
        ReadError: The medium failed.
    """
    file = FileDevice(fd)
    digest = bytes.fromhex(facts.root_hash)
    root = establish_trust(digest, None, policy=TrustPolicy(certificates=(), pinned_root_hash=digest))
    data = WindowDevice(file, facts.data_offset_bytes, facts.data_length_bytes)
    hashes = WindowDevice(file, facts.hash_offset_bytes, facts.hash_length_bytes)
    device, filesystem = open_layers(data, hashes, root.digest, superblock=bytes.fromhex(facts.superblock))
    return VerifiedImage(root, filesystem, device, facts)


def open_layers(
    data: BlockDevice, hashes: BlockDevice, root_hash: bytes, *, superblock: bytes | None = None
) -> tuple[VerityDevice, ErofsReader]:
    """Stack verity on two windows of an image, and EROFS on that; trusts nothing but the root hash.

    Args:
        data: The data partition.
        hashes: The verity partition.
        root_hash: What everything read later is verified against.
        superblock: The verity superblock as it was checked before; None to read it from `hashes`.

    Raises:
        FormatError: The superblock or the filesystem is malformed or not supported.
        CorruptionError: The first blocks do not match the root hash.
        ReadError: The medium failed.
    """
    if superblock is None:
        superblock = hashes.read_at(0, min(SUPERBLOCK_BYTES, hashes.size_bytes))
    parsed = VeritySuperblock.parse(superblock, data_device_bytes=data.size_bytes, hash_device_bytes=hashes.size_bytes)
    device = VerityDevice(data, hashes, parsed, root_hash)
    return device, ErofsReader(device)
