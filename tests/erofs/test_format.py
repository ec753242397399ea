# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import stat
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.erofs import directory_format, xattr_format
from rofs.erofs import format as fmt
from rofs.errors import FormatError

from .builder import LyingFilesystem, needs_fsck

SUPER = fmt.Superblock(
    block_bits=12, root_nid=36, inos=1, build_time=7, build_time_nsec=8, blocks=1, meta_blkaddr=0, uuid=bytes(16)
)
XATTR_NAMES = st.one_of(
    st.builds(
        lambda prefix, suffix: prefix + suffix,
        st.sampled_from([b"user.", b"trusted.", b"security."]),
        st.binary(min_size=1, max_size=255).filter(lambda b: b"\0" not in b),
    ),
    st.sampled_from([b"system.posix_acl_access", b"system.posix_acl_default"]),
)


@given(st.integers(0, 4095), st.integers(0, (1 << 20) - 1))
def test_device_numbers_survive(major: int, minor: int) -> None:
    assert fmt.unpack_device(fmt.pack_device(major, minor)) == (major, minor)


@pytest.mark.parametrize(("major", "minor"), [(4096, 0), (0, 1 << 20)])
def test_a_device_number_without_room_is_refused(major: int, minor: int) -> None:
    with pytest.raises(ValueError, match="too large"):
        fmt.pack_device(major, minor)


@given(st.dictionaries(XATTR_NAMES, st.binary(max_size=300), max_size=6))
def test_xattrs_survive(xattrs: dict[bytes, bytes]) -> None:
    body = xattr_format.pack_xattrs(tuple(sorted(xattrs.items())))
    assert xattr_format.unpack_xattrs(body, 1) == xattrs
    assert len(body) % 4 == 0
    assert fmt.xattr_ibody_bytes(fmt.xattr_icount(len(body))) == len(body)


@pytest.mark.parametrize(
    ("xattrs", "reason"),
    [
        (((b"system.nfs4_acl", b""),), "no prefix"),
        (((b"user.", b""),), "no prefix"),
        (((b"system.posix_acl_access.more", b""),), "no prefix"),
        (((b"user." + b"n" * 256, b""),), "too long"),
        (((b"user.a", bytes(65536)),), "too long"),
        (tuple((b"user.%d" % n, bytes(65535)) for n in range(5)), "all xattrs together"),
    ],
)
def test_xattrs_that_erofs_cannot_hold(xattrs: tuple[tuple[bytes, bytes], ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        xattr_format.pack_xattrs(xattrs)


@given(st.binary(max_size=200))
def test_any_bytes_as_xattrs(body: bytes) -> None:
    body = body[: fmt.xattr_ibody_bytes(len(body) // 4)]
    with contextlib.suppress(FormatError):
        xattr_format.unpack_xattrs(body.ljust(12, b"\0") if body else b"", 1)


@given(st.binary(max_size=400))
def test_any_bytes_as_a_directory(block: bytes) -> None:
    try:
        parsed = directory_format.parse_directory_block(block, 1)
    except FormatError:
        return
    assert all(0 < len(name) <= 255 and b"/" not in name and b"\0" not in name for name in parsed.names)


@given(st.binary(max_size=80))
def test_any_bytes_as_an_inode(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        fmt.parse_inode(data, 1, SUPER)


@given(st.binary(max_size=128), st.integers(0, 1 << 40))
def test_any_bytes_as_a_superblock(tail: bytes, device_bytes: int) -> None:
    start = bytes(fmt.SUPER_OFFSET) + struct.pack("<I", fmt.SUPER_MAGIC) + tail
    with contextlib.suppress(FormatError):
        fmt.parse_superblock(start, device_bytes)


def test_a_compact_inode_has_the_time_of_the_superblock() -> None:
    data = struct.pack("<HHHHI4xIIHH4x", 0, 0, stat.S_IFREG | 0o644, 3, 0, 0, 9, 1000, 1001)
    inode = fmt.parse_inode(data, 5, SUPER)
    assert (inode.header_bytes, inode.nlink, inode.uid, inode.gid) == (32, 3, 1000, 1001)
    assert inode.mtime_ns == 7 * 10**9 + 8


@pytest.mark.parametrize("mtime_ns", [-1, -(10**9), 0, (1 << 32) * 10**9 + 1])
def test_times_before_and_after_the_32_bit_era(mtime_ns: int) -> None:
    inode = fmt.DiskInode(1, 64, 0, 0, stat.S_IFREG, 1, 0, 0, 4_294_967_294, 65536, mtime_ns)
    assert fmt.parse_inode(inode.pack_extended(1), 1, SUPER) == inode


@needs_fsck
def test_dump_erofs_agrees_on_the_superblock(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(LyingFilesystem().data)
    shown = subprocess.run(["dump.erofs", "-s", image], capture_output=True, text=True, check=True).stdout
    assert "sb_csum mtime" in shown
    assert "Filesystem root nid:                          36" in shown
