# SPDX-License-Identifier: Apache-2.0
"""The INIT handshake byte by byte, and what mount(2) and umount2(2) answer where there is nothing to mount."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from rofs.errors import HostError
from rofs.fuse import kernel

from .doubles import open_descriptors

# include/uapi/linux/fuse.h
FUSE_ATOMIC_O_TRUNC, FUSE_WRITEBACK_CACHE, FUSE_POSIX_ACL, FUSE_CACHE_SYMLINKS = 1 << 3, 1 << 16, 1 << 20, 1 << 23
FUSE_NO_OPEN_SUPPORT, FUSE_INIT_EXT, FUSE_AUTO_INVAL_DATA = 1 << 17, 1 << 30, 1 << 12
FUSE_HAS_RESEND = 1 << 39 - 32  # of flags2
FUSE_NOTIFY_RESEND = 7
EVERYTHING = (1 << 32) - 1
OUT = struct.Struct("<IiQ IIIIHHIIHHII 6I")
OUT_NAMES = (
    "len error unique major minor max_readahead flags max_background congestion_threshold max_write time_gran "
    "max_pages map_alignment flags2 unused0 unused1 unused2 unused3 unused4 unused5 unused6"
)


def init_request(
    *,
    flags: int = EVERYTHING,
    flags2: int = 0,
    major: int = 7,
    minor: int = 45,
    readahead: int = 131072,
    opcode: int = 26,
) -> bytes:
    body = struct.pack("<IIIII", major, minor, readahead, flags, flags2) + bytes(44)
    return struct.pack("<IIQQIIII", 40 + len(body), opcode, 0x1234567890, 0, 0, 0, 0, 0) + body


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The kernel's end and ours."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, ours:
        theirs.settimeout(5)
        yield theirs, ours


def answer(
    ends: tuple[socket.socket, socket.socket], request: bytes, *, acl: bool = False, resend: bool = True
) -> dict[str, int]:
    theirs, ours = ends
    theirs.send(request)
    handshake = kernel.answer_init(ours.fileno(), acl=acl, resend=resend)
    assert handshake.request == request
    data = theirs.recv(4096)
    assert len(data) == OUT.size == 80
    fields = dict(zip(OUT_NAMES.split(), OUT.unpack(data), strict=True))
    assert handshake.resend == bool(fields["flags2"] & FUSE_HAS_RESEND)
    return fields


def test_every_field_of_the_answer(ends: tuple[socket.socket, socket.socket]) -> None:
    fields = answer(ends, init_request())
    flags = fields.pop("flags")
    assert fields == {
        "len": 80,
        "error": 0,
        "unique": 0x1234567890,
        "major": 7,
        "minor": 40,
        "max_readahead": 131072,
        "max_background": 64,
        "congestion_threshold": 48,
        "max_write": 1 << 20,
        "time_gran": 1,
        "max_pages": 256,
        "map_alignment": 0,
        "flags2": 0,
        **{f"unused{n}": 0 for n in range(7)},
    }
    assert flags & FUSE_ATOMIC_O_TRUNC
    assert flags & FUSE_CACHE_SYMLINKS
    assert not flags & (FUSE_WRITEBACK_CACHE | FUSE_NO_OPEN_SUPPORT | FUSE_AUTO_INVAL_DATA)


@pytest.mark.parametrize("acl", [True, False])
def test_acls_are_asked_for_only_when_there_are_any(ends: tuple[socket.socket, socket.socket], acl: bool) -> None:
    assert bool(answer(ends, init_request(), acl=acl)["flags"] & FUSE_POSIX_ACL) == acl


@pytest.mark.parametrize("offered", [0, FUSE_ATOMIC_O_TRUNC, EVERYTHING & ~FUSE_INIT_EXT, EVERYTHING & ~FUSE_POSIX_ACL])
def test_only_what_the_kernel_offers_is_wanted(ends: tuple[socket.socket, socket.socket], offered: int) -> None:
    assert answer(ends, init_request(flags=offered), acl=True)["flags"] & ~offered == 0


@pytest.mark.parametrize(
    ("flags", "flags2", "wanted", "expected"),
    [
        (EVERYTHING, EVERYTHING, True, FUSE_HAS_RESEND),
        (EVERYTHING, FUSE_HAS_RESEND, True, FUSE_HAS_RESEND),
        (EVERYTHING, EVERYTHING & ~FUSE_HAS_RESEND, True, 0),
        (EVERYTHING, EVERYTHING, False, 0),
        (EVERYTHING & ~FUSE_INIT_EXT, EVERYTHING, True, 0),  # what stands in that field is not said
    ],
)
def test_resend_is_used_only_where_the_kernel_has_it_and_we_want_it(
    ends: tuple[socket.socket, socket.socket], flags: int, flags2: int, wanted: bool, expected: int
) -> None:
    assert answer(ends, init_request(flags=flags, flags2=flags2), resend=wanted)["flags2"] == expected


def test_short_init_of_an_old_kernel_offers_no_more_than_it_says(ends: tuple[socket.socket, socket.socket]) -> None:
    """Up to protocol 7.35 the request ends behind the flags."""
    assert answer(ends, init_request(flags2=EVERYTHING)[:56])["flags2"] == 0


def test_resend_is_the_notification_that_the_kernel_expects(ends: tuple[socket.socket, socket.socket]) -> None:
    theirs, ours = ends
    kernel.resend(ours.fileno())
    assert theirs.recv(4096) == struct.pack("<IiQ", 16, FUSE_NOTIFY_RESEND, 0)


def test_whether_the_kernel_is_still_there(ends: tuple[socket.socket, socket.socket]) -> None:
    reading, writing = os.pipe()
    try:
        assert kernel.is_connected(writing)
        os.close(reading)
        assert not kernel.is_connected(writing)  # POLLERR, as /dev/fuse has it after an abort
    finally:
        os.close(writing)
    assert not kernel.is_connected(writing)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: /dev/fuse is opened")
def test_clone_of_what_is_no_mount_leaves_nothing_open() -> None:
    fds = open_descriptors()
    nothing = kernel.open_device()
    try:
        with pytest.raises(HostError, match="cannot attach to the mount by /dev/fuse"):
            kernel.clone(nothing)
    finally:
        os.close(nothing)
    assert open_descriptors() == fds


@pytest.mark.parametrize(("minor", "expected"), [(31, 31), (40, 40), (41, 40), (99, 40)])
def test_minor_version_is_the_lower_one(ends: tuple[socket.socket, socket.socket], minor: int, expected: int) -> None:
    assert answer(ends, init_request(minor=minor))["minor"] == expected


@pytest.mark.parametrize(("readahead", "expected"), [(131072, 131072), (1 << 30, 1 << 20), (0, 1 << 20)])
def test_readahead_is_bounded(ends: tuple[socket.socket, socket.socket], readahead: int, expected: int) -> None:
    assert answer(ends, init_request(readahead=readahead))["max_readahead"] == expected


@pytest.mark.parametrize("request_", [init_request(major=8), init_request(major=6), init_request(opcode=1)])
def test_other_protocol_is_refused(ends: tuple[socket.socket, socket.socket], request_: bytes) -> None:
    theirs, ours = ends
    theirs.send(request_)
    with pytest.raises(HostError, match="protocol is not known"):
        kernel.answer_init(ours.fileno(), acl=False)


def test_unmount_of_what_is_no_mount(tmp_path: Path) -> None:
    expected = {errno.EINVAL, errno.EPERM}  # EPERM comes first for who is not root
    assert kernel.unmount(os.fsencode(tmp_path)) in expected
    assert kernel.unmount(os.fsencode(tmp_path), lazy=True) in expected
    assert kernel.unmount(os.fsencode(tmp_path / "none")) in {errno.ENOENT, errno.EPERM}


def test_mount_that_the_kernel_refuses_says_why(tmp_path: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        with pytest.raises(HostError, match=f"cannot mount on {tmp_path}: "):
            kernel.mount(nothing, os.fsencode(tmp_path), b"image.raw", kernel.MS_NOSUID)
    finally:
        os.close(nothing)


@pytest.mark.parametrize(
    ("device", "message"), [("none", "is missing: load the fuse module"), ("file/none", "cannot open")]
)
def test_device_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, device: str, message: str) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kernel, "FUSE_DEVICE", str(tmp_path / device))
    with pytest.raises(Exception, match=message):
        kernel.open_device()
