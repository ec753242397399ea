# SPDX-License-Identifier: Apache-2.0
"""An EROFS filesystem in memory that lies on demand, and what the kernel and fsck.erofs say about one."""

from __future__ import annotations

import contextlib
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rofs.erofs import directory_format
from rofs.erofs import format as fmt
from rofs.erofs.reader import ErofsReader
from rofs.erofs.writer import write_filesystem
from rofs.tree import Inode, Source
from tests.trees import MemorySource, directory
from tests.verity.doubles import MemoryDevice

needs_fsck = pytest.mark.skipif(shutil.which("fsck.erofs") is None, reason="fsck.erofs (erofs-utils) is not installed")

# Where a field stands, and its struct code.
_SUPER = {
    "magic": (0, "I"),
    "checksum": (4, "I"),
    "feature_compat": (8, "I"),
    "blkszbits": (12, "B"),
    "sb_extslots": (13, "B"),
    "root_nid": (14, "H"),
    "inos": (16, "Q"),
    "build_time_nsec": (32, "I"),
    "blocks": (36, "I"),
    "meta_blkaddr": (40, "I"),
    "xattr_blkaddr": (44, "I"),
    "feature_incompat": (80, "I"),
    "dirblkbits": (90, "B"),
    "xattr_prefix_count": (91, "B"),
    "xattr_prefix_start": (92, "I"),
    "packed_nid": (96, "Q"),
}
_INODE = {
    "i_format": (0, "H"),
    "i_xattr_icount": (2, "H"),
    "i_mode": (4, "H"),
    "i_size": (8, "Q"),
    "i_u": (16, "I"),
    "i_mtime_nsec": (40, "I"),
    "i_nlink": (44, "I"),
}
_DIRENT = {"nid": (0, "Q"), "nameoff": (8, "H"), "file_type": (10, "B")}


def write_image(source: Source) -> bytes:
    """The filesystem of a source, as long as the writer says."""
    device = MemoryDevice()
    written = write_filesystem(source, lambda at, data: device.write_at(at, bytes(data)), build_time=0)
    length = written.blocks * 4096
    return bytes(device.content[:length].ljust(length, b"\0"))


class LyingFilesystem:
    """The filesystem of a small tree; every method puts in one lie and keeps the superblock's checksum right."""

    def __init__(self, root: Inode | None = None) -> None:
        self.source = MemorySource(root if root is not None else directory())
        self.data = bytearray(write_image(self.source))

    def reader(self) -> ErofsReader:
        return ErofsReader(MemoryDevice(bytes(self.data)))

    def nid(self, path: bytes) -> int:
        """By the untouched image, so that several lies can be told."""
        reader = ErofsReader(MemoryDevice(write_image(self.source)))
        nid: int | None = reader.root_nid
        for name in path.split(b"/"):
            if name:
                assert nid is not None
                nid = reader.lookup(nid, name)
        assert nid is not None, path
        return nid

    def set_super(self, **fields: int) -> LyingFilesystem:
        for name, value in fields.items():
            offset, code = _SUPER[name]
            struct.pack_into("<" + code, self.data, fmt.SUPER_OFFSET + offset, value)
        return self if "checksum" in fields else self.seal()

    def set_inode(self, path: bytes, **fields: int) -> LyingFilesystem:
        place = self.nid(path) * fmt.SLOT_BYTES
        for name, value in fields.items():
            offset, code = _INODE[name]
            struct.pack_into("<" + code, self.data, place + offset, value)
        return self.seal()

    def set_entry(self, path: bytes, name: bytes, **fields: int) -> LyingFilesystem:
        """Change a directory entry; it is found by its name in a directory of one block."""
        for field, value in fields.items():
            offset, code = _DIRENT[field]
            struct.pack_into("<" + code, self.data, self._entry(path, name) + offset, value)
        return self.seal()

    def rename_entry(self, path: bytes, old: bytes, new: bytes) -> LyingFilesystem:
        assert len(old) == len(new)
        start, length = self.content_place(path)
        at = self.data.index(old, start, start + length)
        self.data[at : at + len(old)] = new
        return self.seal()

    def set_bytes(self, path: bytes, behind_inode: int, data: bytes) -> LyingFilesystem:
        """Overwrite what stands some bytes behind the 64 bytes of an inode: xattrs or inline tail."""
        at = self.nid(path) * fmt.SLOT_BYTES + fmt.EXTENDED_INODE_BYTES + behind_inode
        self.data[at : at + len(data)] = data
        return self.seal()

    def truncate(self, length: int) -> LyingFilesystem:
        del self.data[length:]
        return self

    def seal(self) -> LyingFilesystem:
        checksum = fmt.superblock_checksum(bytes(self.data[:4096]))
        struct.pack_into("<I", self.data, fmt.SUPER_OFFSET + 4, checksum)
        return self

    def content_place(self, path: bytes) -> tuple[int, int]:
        """Offset and length of a content that lies in one piece."""
        reader = ErofsReader(MemoryDevice(write_image(self.source)))
        (extent,) = (e for e in reader.extents(self.nid(path)) if e.file_offset_bytes is not None)
        return extent.offset_bytes, extent.length_bytes

    def _entry(self, path: bytes, name: bytes) -> int:
        start, length = self.content_place(path)
        block = directory_format.parse_directory_block(bytes(self.data[start : start + length]), 0)
        return start + block.names.index(name) * directory_format.DIRENT.size


def compare_with_tree(reader: ErofsReader, source: MemorySource) -> None:
    """Everything of a tree in memory, written out independently of `image.compare`."""
    nids = {id(source.tree.root): reader.root_nid}
    for inode in source.tree.walk():
        nid = nids[id(inode)]
        found = reader.stat(nid)
        assert (found.mode, found.uid, found.gid, found.mtime_ns, found.nlink, found.rdev) == (
            inode.mode,
            inode.uid,
            inode.gid,
            inode.mtime_ns,
            inode.nlink,
            inode.rdev,
        )
        assert {name: reader.getxattr(nid, name) for name in reader.listxattr(nid)} == dict(inode.xattrs)
        if inode.is_regular:
            assert found.size == inode.size
            assert reader.read(nid, 0, inode.size + 1) == inode.source_key
        elif inode.target:
            assert reader.readlink(nid) == inode.target
        elif inode.is_directory:
            entries = list(reader.readdir(nid))
            assert [e.name for e in entries] == sorted([b".", b"..", *inode.children])
            by_name = {e.name: e.nid for e in entries}
            for name, child in inode.children.items():
                assert nids.setdefault(id(child), by_name[name]) == by_name[name] == reader.lookup(nid, name)


def fsck(image: Path) -> None:
    """Have fsck.erofs accept an image.

    Paths of 4096 bytes and more it cannot check: 1.5 recurses and overflows its stack, 1.8 says so.
    """
    done = subprocess.run(["fsck.erofs", image], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def kernel_mount(image: Path, place: Path) -> Iterator[Path]:
    """The image, mounted by the kernel's own EROFS."""
    place.mkdir()
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
