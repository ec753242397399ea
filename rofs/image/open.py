# SPDX-License-Identifier: Apache-2.0
"""Opening an image: file → partition → verity → EROFS, each layer only after trust in the one below.

`open_image` takes open files, never a path, and everything it returns reads through their descriptors:
what was checked is what is used. `ImageFacts` carries the outcome to another process, so that untrusted
bytes can be parsed by a process without privileges. Does not mount or write anything.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rofs.blockdev import BlockDevice, FileDevice, WindowDevice
from rofs.ddi import signature_format
from rofs.ddi.gpt import Partition, read_gpt
from rofs.ddi.parts import ImageParts, select_image_parts
from rofs.erofs.reader import ErofsReader
from rofs.errors import FormatError, InputError, TrustError, printable
from rofs.image.facts import MAX_FACTS_BYTES, ImageFacts, shown_texts
from rofs.image.files import ImageFiles, SideFiles, open_file
from rofs.image.identity import UNKNOWN, XATTR, Identity, parse_identity, said_text
from rofs.image.os_release import os_release_of
from rofs.trust.verify import TrustPolicy, VerifiedRootHash, establish_trust
from rofs.verity.device import VerityDevice
from rofs.verity.format import SUPERBLOCK_BYTES, VeritySuperblock

__all__ = [
    "MAX_FACTS_BYTES",
    "ImageFacts",
    "ImageFiles",
    "Region",
    "UntrustedImage",
    "VerifiedImage",
    "open_chosen",
    "open_file",
    "open_image",
    "open_layers",
    "read_signature_document",
    "read_table",
    "reopen_image",
]

_ROOT_HASH_TEXT = re.compile(rb"[0-9a-fA-F]{64}(?:[0-9a-fA-F]{64})?")  # sha256, sha512


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
class Region:
    """A part of one of the files of an image.

    Attributes:
        fd: The file.
        offset_bytes: Where it begins.
        length_bytes: How long it is.
    """

    fd: int
    offset_bytes: int
    length_bytes: int

    @property
    def device(self) -> WindowDevice:
        """The same as a block device."""
        return WindowDevice(FileDevice(self.fd), self.offset_bytes, self.length_bytes)


@dataclass(frozen=True, slots=True)
class UntrustedImage:
    """An image as its partition table or its side files describe it, before anyone has trusted it.

    Attributes:
        designator: What it is mounted on: `root` or `usr`.
        root_hash: What it claims.
        data: The filesystem.
        hashes: Its verity superblock and hash tree.
        signature_der: The signature over the root hash, None when the image has none.
        parts: The partitions, None for a bare filesystem.
        warnings: About the partition table and the signature.
    """

    designator: str
    root_hash: bytes
    data: Region
    hashes: Region
    signature_der: bytes | None
    parts: ImageParts | None
    warnings: tuple[str, ...]


def read_table(image: ImageFiles | int, *, root_hash: bytes | None = None) -> UntrustedImage:
    """Find the parts of an image; trusts and verifies nothing.

    Args:
        image: Its files, or the descriptor of a disk image.
        root_hash: Which set of partitions to choose when there are several; what a bare filesystem has
            when nothing beside it says so.

    Raises:
        FormatError: No partition table, no complete set of partitions, or a side file that is malformed.
        InputError: No root hash beside a bare filesystem, and none given.
        TrustError: No set with that root hash.
        ReadError: The medium failed.
    """
    files = ImageFiles.of_disk_image(image) if isinstance(image, int) else image
    if files.side is not None:
        return _read_side_files(files, files.side, root_hash)
    device = FileDevice(files.data_fd)
    table = read_gpt(device)
    warnings = list(table.warnings)

    def signature_of(partition: Partition) -> signature_format.SignatureDocument | None:
        try:
            return read_signature_document(device, partition)
        except FormatError as error:  # as good as none: whether that matters is up to the policy
            warnings.append(str(error))
            return None

    parts = select_image_parts(table, root_hash=root_hash, signature_of=signature_of)
    warnings += [f"a signature is for another root hash: {value.hex()}" for value in parts.unmatched_root_hashes]
    return UntrustedImage(
        designator=parts.designator,
        root_hash=parts.root_hash,
        data=Region(files.data_fd, parts.data.offset_bytes, parts.data.length_bytes),
        hashes=Region(files.data_fd, parts.verity.offset_bytes, parts.verity.length_bytes),
        signature_der=parts.signature[1].signature_der if parts.signature else None,
        parts=parts,
        warnings=tuple(warnings),
    )


def read_signature_document(device: BlockDevice, partition: Partition) -> signature_format.SignatureDocument:
    """What a signature partition holds.

    Raises:
        FormatError: It holds no signature document.
        ReadError: The medium failed.
    """
    length = min(partition.length_bytes, signature_format.MAX_DOCUMENT_BYTES)
    return signature_format.parse(device.read_at(partition.offset_bytes, length))


def _read_side_files(files: ImageFiles, side: SideFiles, pinned: bytes | None) -> UntrustedImage:
    if side.root_hash is not None:
        text = side.root_hash.strip()
        if not _ROOT_HASH_TEXT.fullmatch(text):
            raise FormatError(f"{printable(side.root_hash_path)}: 64 or 128 hex digits expected, found {text[:80]!r}")
        root_hash = bytes.fromhex(text.decode("ascii"))
    elif pinned is not None:
        root_hash = pinned
    else:
        raise InputError(
            f"a bare filesystem without a root hash: {printable(side.root_hash_path)} is missing, and no --root-hash "
            "is given"
        )
    return UntrustedImage(
        designator=side.designator,
        root_hash=root_hash,
        data=Region(files.data_fd, 0, FileDevice(files.data_fd).size_bytes),
        hashes=Region(files.hash_fd, 0, FileDevice(files.hash_fd).size_bytes),
        signature_der=side.signature,
        parts=None,
        warnings=(),
    )


def open_image(image: ImageFiles | int, policy: TrustPolicy) -> VerifiedImage:
    """Open an image, or refuse it.

    1. Read the partition table and choose data, verity and signature partition by root hash; or read
       the side files of a bare filesystem.
    2. Establish trust in the root hash: signature and pin, as the policy says.
    3. Read and bound the verity superblock, which nothing vouches for yet.
    4. Open the filesystem through the verified device: its superblock and root inode must match the
       root hash, and with them every byte that is read later.
    5. Read the identity: from the root inode, or else from the os-release file.

    Args:
        image: Of `open_file`, or the descriptor of a disk image; it stays the caller's to close, after
            the last use of the result.
        policy: Which certificates and root hash are trusted.

    Raises:
        TrustError: The policy refuses the image.
        FormatError: It is malformed or not supported.
        CorruptionError: The first blocks do not match the root hash.
        ReadError: The medium failed.
    """
    return open_chosen(read_table(image, root_hash=policy.pinned_root_hash), policy)  # 1.


def open_chosen(untrusted: UntrustedImage, policy: TrustPolicy) -> VerifiedImage:
    """Steps 2 to 5 of `open_image`, for a caller who has read the partition table already.

    Args:
        untrusted: Of `read_table`; its descriptors stay open as long as the result is used.
        policy: Which certificates and root hash are trusted.

    Raises:
        As `open_image`.
    """
    root = _trust(untrusted, policy)  # 2.
    device, filesystem = open_layers(untrusted.data.device, untrusted.hashes.device, root.digest)  # 3. and 4.
    facts = ImageFacts(
        root_hash=root.digest.hex(),
        accepted_by=root.accepted_by,
        signer=shown_texts([root.signer.subject])[0] if root.signer else None,
        signer_fingerprint=root.signer.fingerprint if root.signer else None,
        identity=_identity(filesystem, untrusted.designator),  # 5.
        data_offset_bytes=untrusted.data.offset_bytes,
        data_length_bytes=untrusted.data.length_bytes,
        hash_offset_bytes=untrusted.hashes.offset_bytes,
        hash_length_bytes=untrusted.hashes.length_bytes,
        superblock=device.superblock.pack().hex(),
        warnings=shown_texts(untrusted.warnings),
    )
    return VerifiedImage(root, filesystem, device, facts)


def _trust(untrusted: UntrustedImage, policy: TrustPolicy) -> VerifiedRootHash:
    try:
        return establish_trust(
            untrusted.root_hash, untrusted.signature_der, policy=policy, designator=untrusted.designator
        )
    except TrustError as error:
        raise TrustError("; ".join((str(error), *untrusted.warnings))) from error


def _identity(filesystem: ErofsReader, designator: str) -> Identity:
    """Step 5; partition labels and file names count for nothing, the root hash does not cover them."""
    value = filesystem.getxattr(filesystem.root_nid, XATTR)
    if value is not None:
        return parse_identity(value)
    name, version = os_release_of(filesystem, designator)
    return replace(UNKNOWN, name=said_text(name), version=said_text(version))


def reopen_image(image: ImageFiles | int, facts: ImageFacts) -> VerifiedImage:
    """Open an image again from what was found out before; only the filesystem is parsed.

    The root hash of `facts` is pinned: whatever happened to the files since, no other bytes come out.

    Raises:
        FormatError: The facts do not fit the files (truncated since), or the filesystem is malformed.
        CorruptionError: The first blocks no longer match.
        ReadError: The medium failed.
    """
    files = ImageFiles.of_disk_image(image) if isinstance(image, int) else image
    digest = bytes.fromhex(facts.root_hash)
    root = establish_trust(digest, None, policy=TrustPolicy(certificates=(), pinned_root_hash=digest))
    data = Region(files.data_fd, facts.data_offset_bytes, facts.data_length_bytes)
    hashes = Region(files.hash_fd, facts.hash_offset_bytes, facts.hash_length_bytes)
    device, filesystem = open_layers(
        data.device, hashes.device, root.digest, superblock=bytes.fromhex(facts.superblock)
    )
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
