# SPDX-License-Identifier: Apache-2.0
"""GUID Partition Table: layout, constants, checks, pack and parse of header and entries.

Source: UEFI specification 2.10 section 5. Every number comes from a hostile image: each is bounded
before it is used. This module does no I/O, does not choose between primary and backup, does not know
the size of the device, nor what a partition type means (`roles`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from rofs.errors import FormatError, InputError

SIGNATURE = b"EFI PART"
REVISION = 0x00010000  # 1.0, the only one there is
SECTOR_SIZES = (512, 4096)  # bytes; what disks and loop devices have
PRIMARY_LBA = 1

HEADER_SIZE_BYTES = 92
ENTRY_SIZE_BYTES = 128
ENTRY_COUNT = 128  # what everybody writes: 16 KiB, the minimum of section 5.3.1
# A larger entry size has no use yet, and 1024 entries of 4 KiB bound the allocation to 4 MiB.
MAX_ENTRY_SIZE_BYTES = 4096
MAX_ENTRY_COUNT = 1024
LABEL_UNITS = 36  # UTF-16 code units, the terminating NUL only when there is room

# Signature, revision, header size, CRC-32, reserved, my LBA, alternate LBA, first and last usable
# LBA, disk GUID, LBA of the entries, number of entries, entry size, CRC-32 of the entries (5.3.2).
_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
# Type GUID, unique GUID, first LBA, last LBA (inclusive), attributes, label (5.3.3).
_ENTRY = struct.Struct("<16s16sQQQ72s")
_CRC_OFFSET_BYTES = 16
_UNUSED = bytes(16)
assert _HEADER.size == HEADER_SIZE_BYTES
assert _ENTRY.size == ENTRY_SIZE_BYTES

# One record of a legacy MBR: boot flag, first CHS, type, last CHS, first LBA, sectors (5.2.3).
_MBR_RECORD = struct.Struct("<B3sB3sII")
_MBR_RECORD_OFFSET_BYTES = 446
_MBR_TYPE_PROTECTIVE = 0xEE


@dataclass(frozen=True, slots=True, kw_only=True)
class GptHeader:
    """A header, primary or backup (UEFI 2.10 section 5.3.2); addresses are LBAs, in sectors."""

    my_lba: int
    alternate_lba: int
    first_usable_lba: int
    last_usable_lba: int
    disk_guid: UUID
    entries_lba: int
    entry_count: int = ENTRY_COUNT
    entry_size_bytes: int = ENTRY_SIZE_BYTES
    entries_crc32: int = 0

    @property
    def entries_size_bytes(self) -> int:
        """Length of the whole entry array, at most 4 MiB."""
        return self.entry_count * self.entry_size_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GptEntry:
    """A used entry (UEFI 2.10 section 5.3.3); addresses are LBAs, the last one inclusive."""

    type_guid: UUID
    unique_guid: UUID
    first_lba: int
    last_lba: int
    flags: int
    label: str


def parse_header(sector: bytes, *, lba: int) -> GptHeader | None:
    """Parse the header in a sector.

    Args:
        sector: The whole sector, 512 or 4096 bytes.
        lba: The sector's address, which the header must repeat.

    Returns:
        The header, or None when the signature is not there.

    Raises:
        FormatError: CRC-32, version, sizes or addresses are wrong.
    """
    if sector[: len(SIGNATURE)] != SIGNATURE:
        return None
    if len(sector) < HEADER_SIZE_BYTES:
        raise FormatError(f"GPT header at sector {lba} is cut off after {len(sector)} bytes")
    fields = _HEADER.unpack_from(sector)
    _, revision, header_size, header_crc, _, my_lba, alternate, first, last, guid = fields[:10]
    _require(revision == REVISION, f"GPT revision {revision:#x}; expected {REVISION:#x}")
    _require(
        HEADER_SIZE_BYTES <= header_size <= len(sector),
        f"GPT header size {header_size}; expected {HEADER_SIZE_BYTES} to {len(sector)} bytes",
    )
    found_crc = _header_crc32(sector[:header_size])
    _require(
        found_crc == header_crc,
        f"GPT header at sector {lba} is damaged: CRC-32 {header_crc:08x} expected, {found_crc:08x} found",
    )
    _require(my_lba == lba, f"GPT header at sector {lba} says that it stands at sector {my_lba}")
    header = GptHeader(
        my_lba=my_lba,
        alternate_lba=alternate,
        first_usable_lba=first,
        last_usable_lba=last,
        disk_guid=UUID(bytes_le=guid),
        entries_lba=fields[10],
        entry_count=fields[11],
        entry_size_bytes=fields[12],
        entries_crc32=fields[13],
    )
    _check_header(header, len(sector))
    return header


def _check_header(header: GptHeader, sector_size: int) -> None:
    size = header.entry_size_bytes
    _require(
        ENTRY_SIZE_BYTES <= size <= MAX_ENTRY_SIZE_BYTES and size & (size - 1) == 0,
        f"GPT entry size {size}; expected a power of two from {ENTRY_SIZE_BYTES} to {MAX_ENTRY_SIZE_BYTES}",
    )
    _require(
        1 <= header.entry_count <= MAX_ENTRY_COUNT,
        f"GPT has {header.entry_count} entries; expected 1 to {MAX_ENTRY_COUNT}",
    )
    _require(
        header.first_usable_lba <= header.last_usable_lba,
        f"GPT usable sectors {header.first_usable_lba} to {header.last_usable_lba}: the last is before the first",
    )
    entries_end_lba = header.entries_lba - -header.entries_size_bytes // sector_size
    if header.my_lba < header.first_usable_lba:
        placed = header.my_lba < header.entries_lba and entries_end_lba <= header.first_usable_lba
    else:
        placed = header.last_usable_lba < header.entries_lba and entries_end_lba <= header.my_lba
    _require(
        placed,
        f"GPT entry array at sectors {header.entries_lba} to {entries_end_lba - 1} overlaps the header "
        "or the usable sectors",
    )


def parse_entries(array: bytes, header: GptHeader) -> tuple[GptEntry, ...]:
    """Parse the entry array; unused entries are left out.

    Args:
        array: Exactly `header.entries_size_bytes` bytes.
        header: The header that describes the array.

    Returns:
        The used entries, in the order of the table.

    Raises:
        FormatError: The length or the CRC-32 is wrong.
    """
    if len(array) != header.entries_size_bytes:
        raise FormatError(f"GPT entry array: {header.entries_size_bytes} bytes expected, {len(array)} found")
    found_crc = zlib.crc32(array)
    _require(
        found_crc == header.entries_crc32,
        f"GPT entry array is damaged: CRC-32 {header.entries_crc32:08x} expected, {found_crc:08x} found",
    )
    offsets = range(0, len(array), header.entry_size_bytes)
    return tuple(_parse_entry(array, at) for at in offsets if array[at : at + 16] != _UNUSED)


def _parse_entry(array: bytes, offset_bytes: int) -> GptEntry:
    type_guid, unique_guid, first, last, flags, label = _ENTRY.unpack_from(array, offset_bytes)
    return GptEntry(
        type_guid=UUID(bytes_le=type_guid),
        unique_guid=UUID(bytes_le=unique_guid),
        first_lba=first,
        last_lba=last,
        flags=flags,
        # A label is a hint for people: an unpaired surrogate in it is no reason to refuse.
        label=label.decode("utf-16-le", "replace").partition("\0")[0],
    )


def check_entries(header: GptHeader, entries: Sequence[GptEntry]) -> None:
    """Refuse partitions that leave the usable sectors or overlap.

    Raises:
        FormatError: Names the partition and the sectors.
    """
    end, before = -1, ""
    for entry in sorted(entries, key=lambda e: (e.first_lba, e.last_lba)):
        name = f"partition {entry.unique_guid} (sectors {entry.first_lba} to {entry.last_lba})"
        _require(entry.first_lba <= entry.last_lba, f"{name}: the last sector is before the first")
        _require(
            header.first_usable_lba <= entry.first_lba and entry.last_lba <= header.last_usable_lba,
            f"{name} is outside of the usable sectors {header.first_usable_lba} to {header.last_usable_lba}",
        )
        _require(entry.first_lba > end, f"{name} overlaps {before}")
        end, before = entry.last_lba, name


def pack_header(header: GptHeader) -> bytes:
    """The 92 bytes of a header, with its CRC-32."""
    raw = _HEADER.pack(
        SIGNATURE,
        REVISION,
        HEADER_SIZE_BYTES,
        0,
        0,
        header.my_lba,
        header.alternate_lba,
        header.first_usable_lba,
        header.last_usable_lba,
        header.disk_guid.bytes_le,
        header.entries_lba,
        header.entry_count,
        header.entry_size_bytes,
        header.entries_crc32,
    )
    crc = struct.pack("<I", _header_crc32(raw))
    return raw[:_CRC_OFFSET_BYTES] + crc + raw[_CRC_OFFSET_BYTES + 4 :]


def pack_entries(entries: Sequence[GptEntry]) -> bytes:
    """The entry array of 128 entries, 16384 bytes, unused ones zero.

    Raises:
        InputError: A label is too long or no Unicode text.
    """
    if len(entries) > ENTRY_COUNT:
        raise ValueError(f"{len(entries)} partitions; a table has {ENTRY_COUNT} entries")
    packed = b"".join(
        _ENTRY.pack(
            entry.type_guid.bytes_le,
            entry.unique_guid.bytes_le,
            entry.first_lba,
            entry.last_lba,
            entry.flags,
            pack_label(entry.label),
        )
        for entry in entries
    )
    return packed.ljust(ENTRY_COUNT * ENTRY_SIZE_BYTES, b"\0")


def pack_label(label: str) -> bytes:
    """A label as UTF-16LE, 72 bytes, NUL-padded.

    Raises:
        InputError: It has more than 36 UTF-16 code units, a NUL, or an unpaired surrogate.
    """
    try:
        raw = label.encode("utf-16-le")
    except UnicodeEncodeError as error:
        raise InputError(f"partition label {label!r} is not Unicode text") from error
    if len(raw) > 2 * LABEL_UNITS or "\0" in label:
        raise InputError(
            f"partition label {label!r}: expected at most {LABEL_UNITS} UTF-16 code units and no NUL, "
            f"found {len(raw) // 2}"
        )
    return raw.ljust(2 * LABEL_UNITS, b"\0")


def pack_protective_mbr(total_sectors: int) -> bytes:
    """The 512 bytes that tell software without GPT support that the disk is in use (5.2.3)."""
    record = _MBR_RECORD.pack(
        0,
        b"\x00\x02\x00",  # CHS of LBA 1
        _MBR_TYPE_PROTECTIVE,
        b"\xff\xff\xff",
        PRIMARY_LBA,
        min(total_sectors - 1, 0xFFFFFFFF),
    )
    return (bytes(_MBR_RECORD_OFFSET_BYTES) + record).ljust(510, b"\0") + b"\x55\xaa"


def _header_crc32(raw: bytes) -> int:
    return zlib.crc32(raw[:_CRC_OFFSET_BYTES] + bytes(4) + raw[_CRC_OFFSET_BYTES + 4 :])


def _require(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion
    if not condition:
        raise FormatError(message)
