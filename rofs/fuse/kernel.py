# SPDX-License-Identifier: Apache-2.0
"""The kernel's side of FUSE: mount(2), umount2(2) and the INIT handshake, done by ourselves.

Our own mount means our own flags and a descriptor that outlives any one process; our own handshake
means flags that pyfuse3 does not know. Source: Linux include/uapi/linux/fuse.h, protocol 7.
Does not serve requests.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from rofs.errors import HostError, from_os_error, printable

FUSE_DEVICE = "/dev/fuse"
FILESYSTEM_TYPE = "fuse.rofs"

MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
_MNT_DETACH = 0x2
_UMOUNT_NOFOLLOW = 0x8

# FUSE_INIT flags by their bits; none of those beyond 31 bits is used.
_ASYNC_READ, _ATOMIC_O_TRUNC, _EXPORT_SUPPORT, _BIG_WRITES, _DO_READDIRPLUS = (1 << b for b in (0, 3, 4, 5, 13))
_PARALLEL_DIROPS, _POSIX_ACL, _ABORT_ERROR, _MAX_PAGES, _CACHE_SYMLINKS = (1 << b for b in (18, 20, 21, 22, 23))
_WANTED = (
    _ASYNC_READ
    | _ATOMIC_O_TRUNC  # O_TRUNC arrives in OPEN's flags, so one event tells all
    | _EXPORT_SUPPORT
    | _BIG_WRITES
    | _DO_READDIRPLUS
    | _PARALLEL_DIROPS
    | _ABORT_ERROR
    | _MAX_PAGES
    | _CACHE_SYMLINKS
)
_MAX_MINOR = 40  # of the protocol as described here
_READAHEAD_BYTES = 1 << 20
_MAX_WRITE_BYTES = 1 << 20
_MAX_PAGES_VALUE = _MAX_WRITE_BYTES // 4096
_MAX_BACKGROUND = 64
_CONGESTION = 48

_IN_HEADER = struct.Struct("<IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, extlen
_OPCODE_INIT = 26
_INIT_IN = struct.Struct("<IIIII")  # major, minor, max_readahead, flags, flags2
_OUT_HEADER = struct.Struct("<IiQ")  # len, error, unique
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
# max_pages, map_alignment, flags2, and what older protocols leave zero
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")

assert _IN_HEADER.size == 40
assert _OUT_HEADER.size == 16
assert _INIT_OUT.size == 64

_libc = ctypes.CDLL(None, use_errno=True)


def open_device() -> int:
    """Open /dev/fuse.

    Raises:
        HostError: It is missing or may not be opened; says what to do.
    """
    try:
        return os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENXIO, errno.ENODEV}:
            raise HostError(
                f"{FUSE_DEVICE} is missing: load the fuse module (modprobe fuse), or give the container the device"
            ) from error
        raise from_os_error(error, "cannot open", FUSE_DEVICE) from error


def mount(fuse_fd: int, mountpoint: bytes, source: bytes, flags: int) -> None:
    """Mount a filesystem that the holder of `fuse_fd` serves, for all users, permissions checked by the kernel.

    Args:
        fuse_fd: From `open_device`.
        mountpoint: An existing directory, absolute.
        source: What /proc/mounts shows as the device; never a `/dev/` name.
        flags: MS_NOSUID and the like.

    Raises:
        HostError: The kernel refused; says why.
    """
    data = b"fd=%d,rootmode=40000,user_id=%d,group_id=%d,allow_other,default_permissions" % (
        fuse_fd,
        os.geteuid(),
        os.getegid(),
    )
    if _libc.mount(source, mountpoint, FILESYSTEM_TYPE.encode(), ctypes.c_ulong(flags), data):
        number = ctypes.get_errno()
        advice = "; mounting needs root (CAP_SYS_ADMIN)" if number == errno.EPERM else ""
        raise HostError(f"cannot mount on {printable(mountpoint)}: {os.strerror(number)}{advice}")


def unmount(mountpoint: bytes, *, lazy: bool = False) -> int:
    """Unmount what is on top of `mountpoint`.

    Args:
        mountpoint: Absolute.
        lazy: Take it out of sight now and let users of open files finish.

    Returns:
        0, or the errno; EBUSY when something on it is in use.
    """
    flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0)
    return ctypes.get_errno() if _libc.umount2(mountpoint, flags) else 0


def answer_init(fuse_fd: int, *, acl: bool) -> bytes:
    """Receive the kernel's INIT, which is the first request on a new mount, and answer it.

    Args:
        fuse_fd: The mounted descriptor.
        acl: Whether the kernel is to ask for POSIX ACLs and enforce them. It costs a request per
            file, so images without any leave it out.

    Returns:
        The request as it came: whoever attaches to the mount later needs it.

    Raises:
        HostError: The kernel speaks another protocol.
    """
    try:
        request = os.read(fuse_fd, (1 << 20) + 4096)
    except OSError as error:
        raise HostError(f"the kernel did not begin the FUSE protocol: {error.strerror}") from error
    request = request.ljust(_IN_HEADER.size + _INIT_IN.size, b"\0")
    _length, opcode, unique = struct.unpack_from("<IIQ", request)
    major, minor, readahead, flags, _flags2 = _INIT_IN.unpack_from(request, _IN_HEADER.size)
    if opcode != _OPCODE_INIT or major != 7:
        raise HostError(f"the kernel's FUSE protocol is not known: opcode {opcode}, version {major}.{minor}")
    wanted = (_WANTED | (_POSIX_ACL if acl else 0)) & flags
    body = _INIT_OUT.pack(
        7,
        min(minor, _MAX_MINOR),
        min(readahead, _READAHEAD_BYTES) or _READAHEAD_BYTES,
        wanted,
        _MAX_BACKGROUND,
        _CONGESTION,
        _MAX_WRITE_BYTES,
        1,
        _MAX_PAGES_VALUE,
        0,
        0,
    )
    os.write(fuse_fd, _OUT_HEADER.pack(_OUT_HEADER.size + len(body), 0, unique) + body)
    return request
