# SPDX-License-Identifier: Apache-2.0
"""A device in memory that counts how often it is asked, and gives up when one input asks too often."""

from __future__ import annotations

from rofs.blockdev import check_range

MAX_READS = 20_000
MAX_BYTES_READ = 64 << 20


class FuzzDevice:
    """A `BlockDevice` over bytes, with the limits of one input.

    Raises:
        AssertionError: More was read than any honest or hostile input of this size may need.
    """

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.reads = 0
        self.bytes_read = 0

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        check_range(len(self.data), offset_bytes, length_bytes)
        self.reads += 1
        self.bytes_read += length_bytes
        if self.reads > MAX_READS or self.bytes_read > MAX_BYTES_READ:
            raise AssertionError(f"unbounded work: {self.reads} reads, {self.bytes_read} bytes")
        return bytes(self.data[offset_bytes : offset_bytes + length_bytes])
