# SPDX-License-Identifier: Apache-2.0
"""Block devices as rofs stacks them: a file, a window of one, and (in `verity`) a verified one.

A device does not know what its bytes mean, nor whether the one below is verified.
"""

from __future__ import annotations

import os
from typing import Protocol

from rofs.errors import FormatError, ReadError


class BlockDevice(Protocol):
    """Random-access bytes of a known, fixed size."""

    @property
    def size_bytes(self) -> int:
        """Length of the device in bytes."""
        ...

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read exactly `length_bytes` at `offset_bytes`.

        Raises:
            FormatError: The range is not inside the device, or the file ended early.
            ReadError: The medium failed.
            CorruptionError: A verified device found a block that does not match.
        """
        ...


class FileDevice:
    """A file or block device by its open descriptor, which the caller keeps and closes.

    Nothing is ever opened again by path: a file replaced by rename stays the one that was checked.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        # lseek rather than fstat: st_size of a block device is 0.
        self._size_bytes = os.lseek(fd, 0, os.SEEK_END)

    @property
    def size_bytes(self) -> int:
        """Length at the time of opening, in bytes."""
        return self._size_bytes

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read exactly that range; see `BlockDevice.read_at`."""
        check_range(self._size_bytes, offset_bytes, length_bytes)
        try:
            data = os.pread(self._fd, length_bytes, offset_bytes)
            while len(data) < length_bytes:  # a signal or the 2 GiB limit of one call
                more = os.pread(self._fd, length_bytes - len(data), offset_bytes + len(data))
                if not more:
                    raise FormatError(
                        f"image file was truncated: {length_bytes} bytes expected at offset "
                        f"{offset_bytes}, {len(data)} found"
                    )
                data += more
        except OSError as error:
            raise ReadError(
                f"cannot read {length_bytes} bytes at offset {offset_bytes} of the image: {error.strerror}"
            ) from error
        return data


class WindowDevice:
    """A part of another device, such as a partition."""

    def __init__(self, device: BlockDevice, offset_bytes: int, length_bytes: int) -> None:
        check_range(device.size_bytes, offset_bytes, length_bytes)
        self._device = device
        self._offset_bytes = offset_bytes
        self._length_bytes = length_bytes

    @property
    def size_bytes(self) -> int:
        """Length of the window in bytes."""
        return self._length_bytes

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        """Read exactly that range of the window; see `BlockDevice.read_at`."""
        check_range(self._length_bytes, offset_bytes, length_bytes)
        return self._device.read_at(self._offset_bytes + offset_bytes, length_bytes)


def check_range(size_bytes: int, offset_bytes: int, length_bytes: int) -> None:
    """Refuse a range that is not inside a device of `size_bytes`.

    Raises:
        FormatError: It is not.
    """
    if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > size_bytes:
        raise FormatError(
            f"{length_bytes} bytes at offset {offset_bytes} lie outside of a device of {size_bytes} bytes"
        )
