# SPDX-License-Identifier: Apache-2.0
"""The files of an image, each opened once: a disk image, or a bare filesystem with its side files.

Source of the side files: systemd-dissect(1), systemd.exec(5) `RootVerity=`. For `X.raw` (or `X`, when it
does not end in `.raw`) they are `X.verity` with superblock and hash tree, `X.roothash` with the root hash
in hex, and `X.roothash.p7s` with a signature over it; `X.usrhash` and `X.usrhash.p7s` when the filesystem
is for /usr. Opening parses nothing: what the files say is judged by `open`.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from types import TracebackType

from rofs.erofs.format import SUPER_MAGIC, SUPER_OFFSET
from rofs.errors import HostError, InputError, from_os_error, printable

_SUFFIX = b".raw"
_GPT_SIGNATURE = b"EFI PART"
_SECTOR_SIZES = (512, 4096)
_MAX_SIDE_FILE_BYTES = 1 << 20  # of a root hash or a signature, which have 64 bytes and a few KiB


@dataclass(frozen=True, slots=True)
class SideFiles:
    """What stands beside a bare filesystem.

    Attributes:
        designator: `root` or `usr`.
        hash_path: Of the file with the hash tree, for messages.
        root_hash: Content of the root hash file; None when there is none.
        root_hash_path: Its path.
        signature: Content of the signature file; None when there is none.
        signature_path: Its path, where a signature belongs.
    """

    designator: str
    hash_path: bytes
    root_hash: bytes | None
    root_hash_path: bytes
    signature: bytes | None
    signature_path: bytes


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """An image by its open descriptors; closed by `close`, or at the end of a `with`.

    Attributes:
        data_fd: The disk image, or the bare filesystem.
        hash_fd: The file with the hash tree; the same as `data_fd` for a disk image.
        side: What else stands beside a bare filesystem; None for a disk image.
    """

    data_fd: int
    hash_fd: int
    side: SideFiles | None = None

    @classmethod
    def of_disk_image(cls, fd: int) -> ImageFiles:
        """A disk image that is open already."""
        return cls(fd, fd)

    @property
    def fds(self) -> tuple[int, ...]:
        """Each descriptor once."""
        return tuple({self.data_fd: None, self.hash_fd: None})

    def close(self) -> None:
        """Close them; nothing made of this image can be read any more."""
        for fd in self.fds:
            os.close(fd)

    def __enter__(self) -> ImageFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def open_file(path: str | bytes, *, writable: bool = False) -> ImageFiles:
    """Open an image, each of its files once; they are never opened again by path.

    Args:
        path: A disk image, or a bare filesystem with side files.
        writable: Whether its signature is to be changed.

    Returns:
        Descriptors, close-on-exec; the caller closes them.

    Raises:
        InputError: It does not exist, is neither a regular file nor a block device, or is a bare
            filesystem without a hash tree.
        HostError: No permission.
    """
    path = os.fsencode(path)
    fd = _open(path, "image", writable=writable)
    try:
        if not _is_bare_filesystem(fd):
            return ImageFiles.of_disk_image(fd)
        return _with_side_files(fd, path)
    except BaseException:
        os.close(fd)
        raise


def _open(path: bytes, what: str, *, writable: bool = False) -> int:
    mode = os.O_RDWR if writable else os.O_RDONLY
    try:
        fd = os.open(path, mode | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise from_os_error(error, f"cannot open {what}", path) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        os.close(fd)
        kind = "a directory" if stat.S_ISDIR(mode) else "neither a regular file nor a block device"
        raise InputError(f"{what} {printable(path)} is {kind}; expected an image file")
    return fd


def _is_bare_filesystem(fd: int) -> bool:
    """Whether the file begins with a filesystem and has no partition table."""
    try:
        if any(os.pread(fd, len(_GPT_SIGNATURE), sector) == _GPT_SIGNATURE for sector in _SECTOR_SIZES):
            return False
        return os.pread(fd, 4, SUPER_OFFSET) == SUPER_MAGIC.to_bytes(4, "little")
    except OSError:  # the reader of the partition table will say where
        return False


def _with_side_files(fd: int, path: bytes) -> ImageFiles:
    base = path.removesuffix(_SUFFIX)
    hash_path = base + b".verity"
    try:
        hash_fd = _open(hash_path, "hash tree of the image")
    except InputError as error:
        raise InputError(
            f"{printable(path)} is a bare filesystem, without a partition table; its hash tree is expected beside "
            f"it: {error}"
        ) from error
    try:
        return ImageFiles(fd, hash_fd, _side_files(base, hash_path))
    except BaseException:
        os.close(hash_fd)
        raise


def _side_files(base: bytes, hash_path: bytes) -> SideFiles:
    """The first of both designators that has a root hash; the root's names when neither has."""
    found = []
    for designator, suffix in (("root", b".roothash"), ("usr", b".usrhash")):
        path = base + suffix
        signature_path = path + b".p7s"
        side = SideFiles(designator, hash_path, _read(path), path, _read(signature_path), signature_path)
        if side.root_hash is not None:
            return side
        found.append(side)
    return found[0]


def _read(path: bytes) -> bytes | None:
    """A small file, None when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise from_os_error(error, "cannot open", path) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InputError(f"{printable(path)} is not a regular file")
        data = os.pread(fd, _MAX_SIDE_FILE_BYTES + 1, 0)
    except OSError as error:
        raise HostError(f"cannot read {printable(path)}: {error.strerror}") from error
    finally:
        os.close(fd)
    if len(data) > _MAX_SIDE_FILE_BYTES:
        raise InputError(f"{printable(path)} has more than {_MAX_SIDE_FILE_BYTES} bytes")
    return data
