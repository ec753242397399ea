# SPDX-License-Identifier: Apache-2.0
"""Whole images around any filesystem: hash tree, root hash, signature and partition table are right.

What a careless signer would sign. The layout is that of `rofs build`; the filesystem need not be one.
"""

from __future__ import annotations

from uuid import UUID

from cryptography.x509 import Certificate

from rofs.ddi import signature_format
from rofs.ddi.gpt import PartitionSpec, plan_gpt
from rofs.ddi.roles import PartitionRole, type_guid_of
from rofs.ddi.signature_format import SignatureDocument
from rofs.trust import pkcs7
from rofs.trust.keys import PrivateKey
from rofs.verity.builder import build_tree
from tests.verity.doubles import MemoryDevice

_UUID = UUID("6f8c7a52-2f6b-4a3a-9d1e-0a1b2c3d4e5f")
ROLES = (PartitionRole.ROOT, PartitionRole.ROOT_VERITY, PartitionRole.ROOT_VERITY_SIG)


def signed_image(filesystem: bytes, key: PrivateKey, certificate: Certificate) -> tuple[bytes, bytes]:
    """An image of any filesystem whose length is a multiple of 4096.

    Returns:
        The image and its root hash.
    """
    hashes = MemoryDevice()
    tree = build_tree(MemoryDevice(filesystem), lambda at, data: hashes.write_at(at, bytes(data)))
    hashes.write_at(0, tree.superblock(_UUID.bytes).pack())
    root_hash = tree.root_hash
    document = SignatureDocument(root_hash, pkcs7.sign(root_hash, key, certificate))
    contents = (filesystem, bytes(hashes.content).ljust(tree.hash_device_bytes, b"\0"), signature_format.pack(document))
    uuids = (UUID(bytes=root_hash[:16]), UUID(bytes=root_hash[-16:]), _UUID)
    plan = plan_gpt(
        [
            PartitionSpec(type_guid=type_guid_of(role, "x86-64"), uuid=uuid, label="hostile", length_bytes=len(content))
            for role, uuid, content in zip(ROLES, uuids, contents, strict=True)
        ],
        _UUID,
    )
    image = bytearray(plan.size_bytes)
    for offset, content in zip(plan.offsets_bytes, contents, strict=True):
        image[offset : offset + len(content)] = content
    image[: len(plan.primary)] = plan.primary
    image[plan.backup_offset_bytes :] = plan.backup
    return bytes(image), root_hash
