# SPDX-License-Identifier: Apache-2.0
"""Disk images in memory that lie on demand."""

from __future__ import annotations

import struct
import zlib
from uuid import UUID

from rofs.ddi.gpt import GptPlan, PartitionSpec, plan_gpt
from rofs.ddi.roles import PartitionRole, type_guid_of
from rofs.errors import FormatError

DISK_GUID = UUID("00112233-4455-6677-8899-aabbccddeeff")


class MemoryDevice:
    """A block device whose bytes a test can change."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytearray(data)

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def read_at(self, offset_bytes: int, length_bytes: int) -> bytes:
        if offset_bytes < 0 or length_bytes < 0 or offset_bytes + length_bytes > len(self.data):
            raise FormatError(f"{length_bytes} bytes at {offset_bytes} of {len(self.data)}")
        return bytes(self.data[offset_bytes : offset_bytes + length_bytes])


def specs_for(root_hash: bytes, *, designator: str = "root", name: str = "demo_1") -> list[PartitionSpec]:
    """Data, verity and signature partition of a root hash."""
    roles = {r.kind: r for r in PartitionRole if r.designator == designator}
    uuids = {
        "data": UUID(bytes=root_hash[:16]),
        "verity": UUID(bytes=root_hash[-16:]),
        "signature": UUID(bytes=zlib.crc32(root_hash).to_bytes(4, "big") * 4),
    }
    lengths = {"data": 32768, "verity": 8192, "signature": 16384}
    return [
        PartitionSpec(
            type_guid=type_guid_of(roles[kind], "x86-64"),
            uuid=uuids[kind],
            label=name,
            length_bytes=lengths[kind],
        )
        for kind in ("data", "verity", "signature")
    ]


class DiskImage:
    """A planned image; its methods are named after the defect they put in."""

    def __init__(self, specs: list[PartitionSpec], *, sector_size: int = 512) -> None:
        self.sector_size = sector_size
        self.plan: GptPlan = plan_gpt(specs, DISK_GUID, sector_size=sector_size)
        data = bytearray(self.plan.size_bytes)
        data[: len(self.plan.primary)] = self.plan.primary
        data[self.plan.backup_offset_bytes :] = self.plan.backup
        self.device = MemoryDevice(data)

    def damage_primary_header(self) -> None:
        self.device.data[self.sector_size + 40] ^= 1

    def damage_primary_entries(self) -> None:
        self.device.data[2 * self.sector_size + 60] ^= 1

    def damage_backup_header(self) -> None:
        self.device.data[-self.sector_size + 40] ^= 1

    def erase_backup(self) -> None:
        self.device.data[self.plan.backup_offset_bytes :] = bytes(len(self.plan.backup))

    def copy_to_larger_disk(self, more_bytes: int = 65536) -> None:
        self.device.data += bytes(more_bytes)

    def truncate(self, length_bytes: int) -> None:
        del self.device.data[length_bytes:]

    def set_header_field(self, offset_bytes: int, code: str, value: int) -> None:
        """A primary header with one other field and a right checksum."""
        at = self.sector_size
        struct.pack_into("<" + code, self.device.data, at + offset_bytes, value)
        self._seal_header()

    def set_entry_field(self, index: int, offset_bytes: int, code: str, value: int) -> None:
        """A primary entry with one other field and right checksums."""
        at = 2 * self.sector_size
        struct.pack_into("<" + code, self.device.data, at + 128 * index + offset_bytes, value)
        crc = zlib.crc32(self.device.data[at : at + 16384])
        self.set_header_field(88, "I", crc)

    def _seal_header(self) -> None:
        at = self.sector_size
        size = min(struct.unpack_from("<I", self.device.data, at + 12)[0], self.sector_size)
        struct.pack_into("<I", self.device.data, at + 16, 0)
        crc = zlib.crc32(self.device.data[at : at + size])
        struct.pack_into("<I", self.device.data, at + 16, crc)
