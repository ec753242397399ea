# SPDX-License-Identifier: Apache-2.0
"""The kernel's side of FUSE: mount(2), umount2(2) and the INIT handshake, done by ourselves.

Our own mount means our own flags and a descriptor that outlives any one process; our own handshake
means flags that pyfuse3 does not know. Source: Linux include/uapi/linux/fuse.h, protocol 7.
Does not serve requests.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
from dataclasses import dataclass

from rofs.errors import HostError, from_os_error, printable

FUSE_DEVICE = "/dev/fuse"
FILESYSTEM_TYPE = "fuse.rofs"

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
_MNT_DETACH = 0x2
_UMOUNT_NOFOLLOW = 0x8

# FUSE_INIT flags by their bits; those from 32 on travel in a field of their own.
_ASYNC_READ, _ATOMIC_O_TRUNC, _EXPORT_SUPPORT, _BIG_WRITES, _DO_READDIRPLUS = (1 << b for b in (0, 3, 4, 5, 13))
_PARALLEL_DIROPS, _POSIX_ACL, _ABORT_ERROR, _MAX_PAGES, _CACHE_SYMLINKS = (1 << b for b in (18, 20, 21, 22, 23))
_INIT_EXT, _HAS_RESEND = 1 << 30, 1 << 39
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
    | _INIT_EXT
)
_MAX_MINOR = 40  # of the protocol as described here
_READAHEAD_BYTES = 1 << 20
_MAX_WRITE_BYTES = 1 << 20
_MAX_PAGES_VALUE = _MAX_WRITE_BYTES // 4096
_MAX_BACKGROUND = 64
_CONGESTION = 48

_IN_HEADER = struct.Struct("<IIQQIIII")  # len, opcode, unique, nodeid, uid, gid, pid, extlen
_OPCODE_INIT = 26
_WITHOUT_ANSWER = frozenset({2, 36, 42})  # FORGET, INTERRUPT, BATCH_FORGET
_INIT_IN = struct.Struct("<IIIII")  # major, minor, max_readahead, flags, flags2
OUT_HEADER = struct.Struct("<IiQ")  # len, error, unique; in a notification: len, code, 0
_NOTIFY_RESEND = 7
_IOC_CLONE = 0x8004E500  # FUSE_DEV_IOC_CLONE
_MAX_REQUEST_BYTES = _MAX_WRITE_BYTES + 4096
# major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
# max_pages, map_alignment, flags2, and what older protocols leave zero
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")

assert _IN_HEADER.size == 40
assert OUT_HEADER.size == 16
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


def mount(
    fuse_fd: int,
    mountpoint: bytes,
    source: bytes,
    flags: int,
    *,
    allow_other: bool = True,
    directory_fd: int | None = None,
) -> None:
    """Mount a filesystem that the holder of `fuse_fd` serves, permissions checked by the kernel.

    Args:
        fuse_fd: From `open_device`.
        mountpoint: An existing directory, absolute.
        source: What /proc/mounts shows as the device; never a `/dev/` name.
        flags: MS_NOSUID and the like.
        allow_other: Whether users other than this one may use it.
        directory_fd: The mount point, when it is open already.

    Raises:
        HostError: The kernel refused; says why.
    """
    data = b"fd=%d,rootmode=40000,user_id=%d,group_id=%d,default_permissions" % (fuse_fd, os.geteuid(), os.getegid())
    data += b",allow_other" * allow_other
    target = mountpoint if directory_fd is None else b"/proc/self/fd/%d" % directory_fd
    if _libc.mount(source, target, FILESYSTEM_TYPE.encode(), ctypes.c_ulong(flags), data):
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


@dataclass(frozen=True, slots=True)
class Handshake:
    """How kernel and server have agreed to talk.

    Attributes:
        request: The kernel's INIT as it came: whoever attaches to the mount later needs it.
        resend: Whether the kernel hands unanswered requests out again when asked to (Linux 6.9).
    """

    request: bytes
    resend: bool


def answer_init(fuse_fd: int, *, acl: bool, resend: bool = True) -> Handshake:
    """Receive the kernel's INIT, which is the first request on a new mount, and answer it.

    Args:
        fuse_fd: The mounted descriptor.
        acl: Whether the kernel is to ask for POSIX ACLs and enforce them. It costs a request per
            file, so images without any leave it out.
        resend: Whether to use RESEND where the kernel has it.

    Raises:
        HostError: The kernel speaks another protocol.
    """
    try:
        request = os.read(fuse_fd, _MAX_REQUEST_BYTES)
    except OSError as error:
        raise HostError(f"the kernel did not begin the FUSE protocol: {error.strerror}") from error
    padded = request.ljust(_IN_HEADER.size + _INIT_IN.size, b"\0")
    _length, opcode, unique = struct.unpack_from("<IIQ", padded)
    major, minor, readahead, low, high = _INIT_IN.unpack_from(padded, _IN_HEADER.size)
    if opcode != _OPCODE_INIT or major != 7:
        raise HostError(f"the kernel's FUSE protocol is not known: opcode {opcode}, version {major}.{minor}")
    offered = low | (high << 32 if low & _INIT_EXT else 0)
    wanted = (_WANTED | (_POSIX_ACL if acl else 0) | (_HAS_RESEND if resend else 0)) & offered
    body = _INIT_OUT.pack(
        7,
        min(minor, _MAX_MINOR),
        min(readahead, _READAHEAD_BYTES) or _READAHEAD_BYTES,
        wanted & 0xFFFFFFFF,
        _MAX_BACKGROUND,
        _CONGESTION,
        _MAX_WRITE_BYTES,
        1,
        _MAX_PAGES_VALUE,
        0,
        wanted >> 32,
    )
    os.write(fuse_fd, OUT_HEADER.pack(OUT_HEADER.size + len(body), 0, unique) + body)
    return Handshake(request, resend=bool(wanted & _HAS_RESEND))


def clone(fuse_fd: int) -> int:
    """Another descriptor of the same mount, with requests in work of its own.

    Requests that were read from it and not answered are aborted when its last copy is closed.

    Raises:
        HostError: /dev/fuse cannot be opened any more, or the mount is gone.
    """
    fd = open_device()
    try:
        fcntl.ioctl(fd, _IOC_CLONE, struct.pack("I", fuse_fd))
    except OSError as error:
        os.close(fd)
        raise from_os_error(error, "cannot attach to the mount by", FUSE_DEVICE) from error
    return fd


def resend(fuse_fd: int) -> None:
    """Have the kernel hand out all unanswered requests again, those of living workers too.

    An answer that comes twice is refused by the kernel, harmlessly. Only after a handshake with `resend`.

    Raises:
        OSError: The mount is gone.
    """
    os.write(fuse_fd, OUT_HEADER.pack(OUT_HEADER.size, _NOTIFY_RESEND, 0))


def refuse_request(fuse_fd: int) -> bool:
    """Answer one waiting request with ECONNABORTED, for a mount that nobody serves any more.

    Returns:
        Whether there was one.
    """
    poll = select.poll()
    poll.register(fuse_fd, select.POLLIN)
    if not any(events & select.POLLIN for _, events in poll.poll(0)):
        return False
    try:
        request = os.read(fuse_fd, _MAX_REQUEST_BYTES)
        if len(request) < _IN_HEADER.size:
            return False
        _length, opcode, unique = struct.unpack_from("<IIQ", request)
        if opcode not in _WITHOUT_ANSWER:
            os.write(fuse_fd, OUT_HEADER.pack(OUT_HEADER.size, -errno.ECONNABORTED, unique))
    except OSError:  # unmounted, or its caller was killed
        return False
    return True


def is_connected(fuse_fd: int) -> bool:
    """Whether requests can still come: not after the last unmount, nor after an abort."""
    poll = select.poll()
    poll.register(fuse_fd, 0)
    return not any(events & (select.POLLERR | select.POLLNVAL) for _, events in poll.poll(0))


def raise_readahead(device: str) -> bool:
    """Let the kernel read ahead as far as one request reaches, instead of 128 KiB.

    Args:
        device: `MAJOR:MINOR` of the filesystem, as mountinfo has it.

    Returns:
        Whether it was allowed: not in a user namespace, nor where /sys is read-only.
    """
    try:
        with open(f"/sys/class/bdi/{device}/read_ahead_kb", "w", encoding="ascii") as file:
            file.write(str(_READAHEAD_BYTES >> 10))
    except OSError:
        return False
    return True
