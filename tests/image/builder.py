# SPDX-License-Identifier: Apache-2.0
"""A small signed image in a file that lies on demand; every method is named after the defect it puts in."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from rofs.ddi import signature_format
from rofs.ddi.gpt import Partition, read_gpt
from rofs.ddi.roles import PartitionRole
from rofs.ddi.signature_format import SignatureDocument
from rofs.image.build import BuiltImage, SigningKey, build_image
from rofs.image.open import VerifiedImage, open_image
from rofs.tree import Inode, Source
from rofs.trust import pkcs7
from rofs.trust.verify import TrustPolicy
from rofs.vfs import ReadOnlyFilesystem
from tests.conftest import SigningKeys
from tests.trees import MemorySource, content, directory, file, node, symlink
from tests.verity.doubles import MemoryDevice

BLOCK = 4096
SECTOR = 512
ENTRY_BYTES = 128
ROOT, VERITY, SIGNATURE = PartitionRole.ROOT, PartitionRole.ROOT_VERITY, PartitionRole.ROOT_VERITY_SIG


def small_tree() -> Inode:
    """Under 64 names, so that no list of paths is cut; over 128 blocks, so that the hash tree has two levels."""
    rng = random.Random(7)
    tails = {b"t%02d" % n: file(content(rng.randrange(1, 4000), n)) for n in range(24)}
    large = {b"l%02d" % n: file(content(60_000 + n, n)) for n in range(10)}
    linked = file(content(5000))
    long_names = {b"%02d" % n + b"n" * 250: file(b"%d" % n) for n in range(17)}  # a directory of two blocks
    return directory(
        {
            b"tails": directory({**tails, b"linked": linked}),
            b"large": directory({**large, b"again": linked, b"copy": file(content(60_000, 0))}),
            b"names": directory(long_names),
            b"link": symlink(b"tails/t00"),
            b"null": node(stat.S_IFCHR, os.makedev(1, 3)),
        }
    )


def tiny_tree() -> Inode:
    return directory({b"file": file(content(5000)), b"sub": directory({b"a": file(b"a")}), b"link": symlink(b"file")})


@dataclass(frozen=True)
class Pristine:
    """A built image, to be copied by each test."""

    data: bytes
    built: BuiltImage
    source: MemorySource


def build_pristine(path: Path, keys: SigningKeys, root: Inode) -> Pristine:
    source = MemorySource(root)
    built = build(source, path, keys)
    return Pristine(path.read_bytes(), built, source)


def build(source: Source, path: Path, keys: SigningKeys, *, replace: bool = False) -> BuiltImage:
    return build_image(
        source, str(path), SigningKey(keys.key, keys.certificate), name="demo", version="1", replace=replace
    )


class SmallImage:
    """A copy of a pristine image; the methods change the file."""

    def __init__(self, path: Path, pristine: Pristine, keys: SigningKeys) -> None:
        self.path = path
        self.source = pristine.source
        self.root_hash = pristine.built.root_hash
        self.keys = keys
        self.data = bytearray(pristine.data)
        self.partitions: dict[PartitionRole, Partition] = {
            p.role: p for p in read_gpt(MemoryDevice(pristine.data)).partitions if p.role is not None
        }

    @property
    def pinned(self) -> TrustPolicy:
        return TrustPolicy(certificates=(), pinned_root_hash=self.root_hash)

    @contextlib.contextmanager
    def open(self, policy: TrustPolicy | None = None) -> Iterator[VerifiedImage]:
        """Write the file out and open it, as trusted by the signer's certificate unless told otherwise."""
        self.path.write_bytes(self.data)
        fd = os.open(self.path, os.O_RDONLY)
        try:
            yield open_image(fd, policy if policy is not None else self.keys.policy)
        finally:
            os.close(fd)

    def flip_bit(self, offset_bytes: int, bit: int = 0) -> SmallImage:
        self.data[offset_bytes] ^= 1 << bit
        return self

    def corrupt_block(self, block: int, byte: int = 0) -> SmallImage:
        return self.flip_bit(self.partitions[ROOT].offset_bytes + block * BLOCK + byte)

    def corrupt_hash_block(self, block: int, byte: int = 0) -> SmallImage:
        """Block 0 is the top of the tree, behind the superblock's."""
        return self.flip_bit(self.partitions[VERITY].offset_bytes + (block + 1) * BLOCK + byte)

    def set_verity_superblock(self, offset_bytes: int, code: str, value: int) -> SmallImage:
        struct.pack_into("<" + code, self.data, self.partitions[VERITY].offset_bytes + offset_bytes, value)
        return self

    def swap_signature(self, other: SigningKeys) -> SmallImage:
        """A good signature over the right root hash, by somebody else."""
        return self._put_signature(self.root_hash, other)

    def signature_of_another_image(self) -> SmallImage:
        return self._put_signature(bytes(32), self.keys)

    def signature_moved_to_this_image(self) -> SmallImage:
        """The right root hash in the document, a signature over another one."""
        der = pkcs7.sign(bytes(32), self.keys.key, self.keys.certificate)
        return self.fill_partition(SIGNATURE, signature_format.pack(SignatureDocument(self.root_hash, der)))

    def without_signature(self) -> SmallImage:
        return self.without_partition(SIGNATURE)

    def without_partition(self, role: PartitionRole) -> SmallImage:
        unwanted = self.partitions[role].uuid.bytes_le
        return self.edit_entries(lambda entries: [e for e in entries if e[16:32] != unwanted])

    def retype_partition(self, role: PartitionRole) -> SmallImage:
        wanted = self.partitions[role].uuid.bytes_le
        foreign = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4").bytes_le  # Linux data
        return self.edit_entries(lambda entries: [foreign + e[16:] if e[16:32] == wanted else e for e in entries])

    def zero_partition(self, role: PartitionRole) -> SmallImage:
        return self.fill_partition(role, b"")

    def fill_partition(self, role: PartitionRole, content: bytes) -> SmallImage:
        part = self.partitions[role]
        assert len(content) <= part.length_bytes
        self.data[part.offset_bytes : part.offset_bytes + part.length_bytes] = content.ljust(part.length_bytes, b"\0")
        return self

    def reverse_partitions(self) -> SmallImage:
        return self.edit_entries(lambda entries: entries[::-1])

    def overlap_partitions(self) -> SmallImage:
        def overlap(entries: list[bytes]) -> list[bytes]:
            return [entries[0], entries[1][:32] + entries[0][32:48] + entries[1][48:], *entries[2:]]

        return self.edit_entries(overlap)

    def repeat_partition(self, role: PartitionRole) -> SmallImage:
        """Two partitions of one UUID, the second where the signature was."""
        wanted, signature = self.partitions[role].uuid.bytes_le, self.partitions[SIGNATURE].uuid.bytes_le
        return self.edit_entries(
            lambda entries: [
                next(o for o in entries if o[16:32] == wanted)[:32] + e[32:] if e[16:32] == signature else e
                for e in entries
            ]
        )

    def damage_primary_table(self) -> SmallImage:
        return self.flip_bit(SECTOR + 40)

    def damage_backup_table(self) -> SmallImage:
        return self.flip_bit(len(self.data) - SECTOR + 40)

    def copy_to_larger_disk(self) -> SmallImage:
        self.data += bytes(1 << 16)
        return self

    def truncate(self, length_bytes: int) -> SmallImage:
        del self.data[length_bytes:]
        return self

    def edit_entries(self, change: Callable[[list[bytes]], list[bytes]]) -> SmallImage:
        """Change the used entries of both tables and make all checksums right."""
        for header in (SECTOR, len(self.data) - SECTOR):
            (lba,) = struct.unpack_from("<Q", self.data, header + 72)
            count, size = struct.unpack_from("<II", self.data, header + 80)
            assert size == ENTRY_BYTES
            start, end = lba * SECTOR, lba * SECTOR + count * size
            entries = [bytes(self.data[at : at + size]) for at in range(start, end, size)]
            used = change([e for e in entries if any(e[:16])])
            self.data[start:end] = b"".join(used).ljust(end - start, b"\0")
            struct.pack_into("<I", self.data, header + 88, zlib.crc32(self.data[start:end]))
            struct.pack_into("<I", self.data, header + 16, 0)
            (length,) = struct.unpack_from("<I", self.data, header + 12)
            struct.pack_into("<I", self.data, header + 16, zlib.crc32(self.data[header : header + length]))
        return self

    def _put_signature(self, root_hash: bytes, keys: SigningKeys) -> SmallImage:
        der = pkcs7.sign(root_hash, keys.key, keys.certificate)
        return self.fill_partition(SIGNATURE, signature_format.pack(SignatureDocument(root_hash, der)))


def nids_of(filesystem: ReadOnlyFilesystem, source: MemorySource) -> dict[int, int]:
    """The nid of each inode of the source, by its id()."""
    nids = {id(source.tree.root): filesystem.root_nid}
    for inode in source.tree.walk():
        for name, child in inode.children.items():
            nid = filesystem.lookup(nids[id(inode)], name)
            assert nid is not None
            nids[id(child)] = nid
    return nids


def read_inode(filesystem: ReadOnlyFilesystem, inode: Inode, nid: int) -> None:
    """Read all of an inode; what it returns must be the source's."""
    status = filesystem.stat(nid)
    assert (status.mode, status.nlink, status.rdev) == (inode.mode, inode.nlink, inode.rdev)
    filesystem.listxattr(nid)
    if inode.is_regular:
        assert filesystem.read(nid, 0, inode.size + 1) == inode.source_key
    elif inode.is_directory:
        assert {e.name for e in filesystem.readdir(nid)} == {b".", b"..", *inode.children}
    elif inode.target:
        assert filesystem.readlink(nid) == inode.target
