# SPDX-License-Identifier: Apache-2.0
"""Building a signed image: the way back from a source tree to a Discoverable Disk Image.

The output gets its name only when it is complete, read back and signed. Does not know where trees come
from, and does not read the clock: the same tree gives the same data and tree partitions.
"""

from __future__ import annotations

import hashlib
import platform
import uuid
from dataclasses import dataclass

from cryptography.x509 import Certificate

from rofs.blockdev import FileDevice, WindowDevice
from rofs.ddi import signature_format
from rofs.ddi.gpt import PartitionSpec, first_partition_offset_bytes, plan_gpt
from rofs.ddi.gpt_format import LABEL_UNITS
from rofs.ddi.roles import Architecture, PartitionRole, type_guid_of
from rofs.ddi.signature_format import SignatureDocument
from rofs.durable import NewFile
from rofs.erofs.writer import BLOCK_BYTES, WrittenFilesystem, write_filesystem
from rofs.errors import HostError
from rofs.image.compare import compare_with_source
from rofs.image.identity import Identity, identity_of_tree, root_xattrs
from rofs.image.open import open_image, open_layers
from rofs.image.progress import Progress, Silent
from rofs.tree import Source
from rofs.trust import pkcs7
from rofs.trust.keys import PrivateKey, check_pair, fingerprint
from rofs.trust.verify import TrustedCertificate, TrustPolicy
from rofs.verity.builder import BuiltTree, build_tree

_ARCHITECTURES: dict[str, Architecture] = {"x86_64": "x86-64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What signs: a private key and the certificate that holds its public half.

    Raises:
        InputError: They do not belong together.
    """

    key: PrivateKey
    certificate: Certificate

    def __post_init__(self) -> None:
        check_pair(self.key, self.certificate)

    @property
    def trusted(self) -> TrustedCertificate:
        """The certificate as one who trusts it has it."""
        return TrustedCertificate("the signer's certificate", self.certificate, fingerprint(self.certificate))

    def document(self, root_hash: bytes) -> SignatureDocument:
        """A signature over a root hash, as the signature partition holds it."""
        der = pkcs7.sign(root_hash, self.key, self.certificate)
        return SignatureDocument(root_hash, der, bytes.fromhex(fingerprint(self.certificate)))


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """What was built.

    Attributes:
        root_hash: 32 bytes.
        identity: What the image says about itself.
        size_bytes: Of the file.
        inodes: How many it holds.
    """

    root_hash: bytes
    identity: Identity
    size_bytes: int
    inodes: int


def build_image(
    source: Source,
    output: str | bytes,
    signer: SigningKey | None,
    *,
    name: str | None = None,
    version: str | None = None,
    rollback_index: int = 0,
    created: int | None = None,
    architecture: Architecture | None = None,
    replace: bool = False,
    progress: Progress | None = None,
) -> BuiltImage:
    """Build an image of a tree and sign it.

    1. Write the filesystem into the data partition; contents over 64 KiB are first looked through for holes.
    2. Build the hash tree over it.
    3. Read everything back through the finished tree with rofs's own reader; compare with the source.
    4. Sign the root hash, if there is a signer; only now is there anything to sign.
    5. Write signature and partition table, open the result as a user would, and give it its name.

    Args:
        source: The tree and its contents.
        output: The new file, mode 0644.
        signer: Key and certificate; None leaves the signature partition empty, for `sign.sign_image`.
        name: Name of the system in the image, for `Identity`.
        version: Its version.
        rollback_index: Its place in the order that rollback protection enforces.
        created: SOURCE_DATE_EPOCH, or None for the newest mtime.
        architecture: What machines the system is for: it chooses the partition types and enters
            nothing that the root hash covers. None for the architecture of this machine.
        replace: Whether an existing file may be replaced.
        progress: Told about the long stages.

    Raises:
        InputError: The source cannot be read or kept; the output exists or its directory does not.
        HostError: No space, no permission, or no architecture given on a machine whose partition
            types are not known.
        ImageError: What was written does not read back as the source.
    """
    progress = progress or Silent()
    identity = identity_of_tree(source.tree, name=name, version=version, rollback_index=rollback_index, created=created)
    architecture = architecture or _architecture_of_this_machine()
    with NewFile(output, replace=replace) as new:
        build = _Build(source, new, identity, progress)
        written = build.write_filesystem()  # 1.
        tree = build.write_tree()  # 2.
        build.read_back(tree)  # 3.
        signature = _signature_partition(tree.root_hash, signer)  # 4.
        size = build.finish(tree, signature, architecture)  # 5.
        certificates = () if signer is None else (signer.trusted,)
        open_image(new.fd, TrustPolicy(certificates, pinned_root_hash=tree.root_hash))
        new.commit()
    return BuiltImage(tree.root_hash, identity, size, written.inodes)


class _Build:
    """The file under construction: data partition first, then the tree, then all around them."""

    def __init__(self, source: Source, new: NewFile, identity: Identity, progress: Progress) -> None:
        self._source = source
        self._new = new
        self._identity = identity
        self._root_xattrs = root_xattrs(source.tree.root, identity)
        self._progress = progress
        self._content_bytes = sum(inode.size for inode in source.tree.walk() if inode.is_regular)
        self._data_offset = first_partition_offset_bytes()
        self._data_bytes = 0

    def write_filesystem(self) -> WrittenFilesystem:
        """Step 1; afterwards the file ends with the filesystem."""
        written = write_filesystem(
            self._source,
            lambda offset, data: self._new.write_at(self._data_offset + offset, data),
            build_time=self._identity.created,
            root_xattrs=self._root_xattrs,
            progress=self._progress.stage("writing", self._content_bytes),
        )
        self._data_bytes = written.blocks * BLOCK_BYTES
        self._new.truncate(self._data_offset + self._data_bytes)
        return written

    @property
    def _hash_offset(self) -> int:
        return self._data_offset + self._data_bytes

    def write_tree(self) -> BuiltTree:
        """Step 2."""
        tree = build_tree(
            self._data(),
            lambda offset, data: self._new.write_at(self._hash_offset + offset, data),
            progress=self._progress.stage("hashing", self._data_bytes),
            processes=None,
        )
        self._new.write_at(self._hash_offset, tree.superblock(_derived_uuid(b"verity", tree.root_hash).bytes).pack())
        self._new.truncate(self._hash_offset + tree.hash_device_bytes)
        return tree

    def read_back(self, tree: BuiltTree) -> None:
        """Step 3."""
        hashes = WindowDevice(FileDevice(self._new.fd), self._hash_offset, tree.hash_device_bytes)
        _, filesystem = open_layers(self._data(), hashes, tree.root_hash)
        compare_with_source(
            self._source,
            filesystem,
            root_xattrs=self._root_xattrs,
            progress=self._progress.stage("reading back", self._content_bytes),
        )

    def finish(self, tree: BuiltTree, signature: bytes, architecture: Architecture) -> int:
        """Step 5: signature partition and both partition tables. Returns the size of the file."""
        label = self._label()
        root_hash = tree.root_hash
        parts = (
            (PartitionRole.ROOT, uuid.UUID(bytes=root_hash[:16]), label, self._data_bytes),
            (PartitionRole.ROOT_VERITY, uuid.UUID(bytes=root_hash[-16:]), f"{label}_verity", tree.hash_device_bytes),
            (PartitionRole.ROOT_VERITY_SIG, _derived_uuid(b"signature", root_hash), f"{label}_sig", len(signature)),
        )
        specs = [
            PartitionSpec(
                type_guid=type_guid_of(role, architecture),
                uuid=part_uuid,
                label=text,
                length_bytes=length,
            )
            for role, part_uuid, text, length in parts
        ]
        plan = plan_gpt(specs, _derived_uuid(b"disk", root_hash))
        assert plan.offsets_bytes[:2] == (self._data_offset, self._hash_offset)
        self._new.write_at(plan.offsets_bytes[2], signature)
        self._new.write_at(0, plan.primary)
        self._new.write_at(plan.backup_offset_bytes, plan.backup)
        self._new.truncate(plan.size_bytes)
        return plan.size_bytes

    def _data(self) -> WindowDevice:
        return WindowDevice(FileDevice(self._new.fd), self._data_offset, self._data_bytes)

    def _label(self) -> str:
        """`name_VERSION` as systemd-sysupdate has it, for people; cut to leave room for a suffix."""
        parts = [part for part in (self._identity.name or "root", self._identity.version) if part]
        text = "_".join(parts)
        if text.startswith(("_", "PRT#", "PND#")):  # which systemd-sysupdate keeps for itself
            text = f"image{text}"
        return text.encode("utf-16-le")[: 2 * (LABEL_UNITS - len("_verity"))].decode("utf-16-le", "ignore")


def _signature_partition(root_hash: bytes, signer: SigningKey | None) -> bytes:
    """Step 4; without a signer, room for one."""
    if signer is None:
        return bytes(signature_format.PARTITION_BYTES)
    return signature_format.pack(signer.document(root_hash))


def _derived_uuid(purpose: bytes, root_hash: bytes) -> uuid.UUID:
    """A UUID that depends on the content alone, marked as RFC 9562 says for opaque ones."""
    digest = hashlib.sha256(b"rofs " + purpose + root_hash).digest()
    return uuid.UUID(bytes=digest[:16], version=4)


def _architecture_of_this_machine() -> Architecture:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise HostError(
            f"no partition types are known for this machine: {machine}; expected {', '.join(_ARCHITECTURES)}, "
            "or name the architecture of the image"
        )
    return _ARCHITECTURES[machine]
