# SPDX-License-Identifier: Apache-2.0
"""Partition tables: read one from a device, plan one for an image that is to be written.

Source: UEFI specification 2.10 section 5.3. This module does not decide which partitions belong
together (`parts`), does not read what they contain and does not write: a plan is bytes and offsets.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from rofs.blockdev import BlockDevice
from rofs.ddi import gpt_format as fmt
from rofs.ddi.roles import FLAG_READ_ONLY, PartitionRole, role_of
from rofs.errors import FormatError

FILE_ALIGNMENT_BYTES = 4096  # loop devices with 4096-byte sectors lose a shorter tail


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A partition as found.

    Attributes:
        offset_bytes: Where it starts on the device.
        length_bytes: How long it is; always inside the device.
        uuid: Its unique GUID.
        type_guid: Its type.
        role: What the type means to rofs; None for a foreign partition.
        label: A hint for people, covered by no signature.
        flags: The 64 attribute bits (`roles.FLAG_*`).
    """

    offset_bytes: int
    length_bytes: int
    uuid: UUID
    type_guid: UUID
    role: PartitionRole | None
    label: str
    flags: int


@dataclass(frozen=True, slots=True)
class PartitionTable:
    """What a device's GPT says.

    Attributes:
        sector_size: 512 or 4096 bytes.
        partitions: In the order of the table, which means nothing.
        warnings: Sentences about damage that the other copy of the table made good.
    """

    sector_size: int
    partitions: tuple[Partition, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Copy:
    header: fmt.GptHeader
    entries: tuple[fmt.GptEntry, ...]


def read_gpt(device: BlockDevice) -> PartitionTable:
    """Read the partition table of a device, with 512- or 4096-byte sectors.

    A valid primary table is enough: images get copied onto larger disks, and a backup that is missing
    or out of place is worth a warning. A damaged primary is replaced by the backup in the last sector.

    Args:
        device: The whole disk image.

    Returns:
        The table; every partition lies inside the device and overlaps no other.

    Raises:
        FormatError: No GPT, both copies damaged, overlapping or out-of-range partitions, truncation.
        ReadError: The medium failed.
    """
    damages: list[str] = []
    for sector_size in fmt.SECTOR_SIZES:
        copy = _read_copy(device, sector_size, fmt.PRIMARY_LBA, damages)
        if copy is not None:
            partitions = _partitions(device, sector_size, copy)
            return PartitionTable(sector_size, partitions, _backup_warnings(device, sector_size, copy))
    for sector_size in fmt.SECTOR_SIZES:
        last_lba = device.size_bytes // sector_size - 1
        copy = _read_copy(device, sector_size, last_lba, damages)
        if copy is not None:
            why = damages[0] if damages else "there is none"
            warning = f"the backup GPT was used in place of the primary: {why}"
            return PartitionTable(sector_size, _partitions(device, sector_size, copy), (warning,))
    if damages:
        raise FormatError(f"no usable GPT: {'; '.join(damages)}")
    raise FormatError("not a disk image (no GPT found)")


def _read_copy(device: BlockDevice, sector_size: int, lba: int, damages: list[str]) -> _Copy | None:
    """One copy of the table; None when there is none, or (noted in `damages`) an unusable one."""
    if lba < fmt.PRIMARY_LBA or (lba + 1) * sector_size > device.size_bytes:
        return None
    try:
        header = fmt.parse_header(device.read_at(lba * sector_size, sector_size), lba=lba)
        if header is None:
            return None
        array = device.read_at(header.entries_lba * sector_size, header.entries_size_bytes)
        return _Copy(header, fmt.parse_entries(array, header))
    except FormatError as error:
        damages.append(str(error))
        return None


def _partitions(device: BlockDevice, sector_size: int, copy: _Copy) -> tuple[Partition, ...]:
    fmt.check_entries(copy.header, copy.entries)
    needed = max((entry.last_lba + 1 for entry in copy.entries), default=0) * sector_size
    if needed > device.size_bytes:
        raise FormatError(f"image is truncated: its partitions need {needed} bytes, it has {device.size_bytes}")
    return tuple(
        Partition(
            offset_bytes=entry.first_lba * sector_size,
            length_bytes=(entry.last_lba - entry.first_lba + 1) * sector_size,
            uuid=entry.unique_guid,
            type_guid=entry.type_guid,
            role=role_of(entry.type_guid),
            label=entry.label,
            flags=entry.flags,
        )
        for entry in copy.entries
    )


def _backup_warnings(device: BlockDevice, sector_size: int, primary: _Copy) -> tuple[str, ...]:
    lba = primary.header.alternate_lba
    last_lba = device.size_bytes // sector_size - 1
    if lba > last_lba:
        return (f"backup GPT is missing: it belongs at sector {lba}, the image ends at {last_lba}",)
    warnings = []
    if lba < last_lba:
        warnings.append(
            f"backup GPT is not in the last sector: {last_lba} expected, {lba} found "
            "(was the image copied onto a larger disk?)"
        )
    damages: list[str] = []
    backup = _read_copy(device, sector_size, lba, damages)
    if backup is None:
        warnings.append(f"backup GPT is unusable: {damages[0] if damages else f'nothing at sector {lba}'}")
    elif _content(backup) != _content(primary):
        warnings.append("backup GPT differs from the primary, which was used")
    return tuple(warnings)


def _content(copy: _Copy) -> tuple[fmt.GptHeader, tuple[fmt.GptEntry, ...]]:
    """What both copies must have in common: all but their own places."""
    return dataclasses.replace(copy.header, my_lba=0, alternate_lba=0, entries_lba=0), copy.entries


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSpec:
    """A partition to be written.

    Attributes:
        type_guid: `roles.type_guid_of(role, architecture)`.
        uuid: The unique GUID.
        label: At most 36 UTF-16 code units.
        length_bytes: A positive multiple of the sector size.
        flags: Attribute bits.
    """

    type_guid: UUID
    uuid: UUID
    label: str
    length_bytes: int
    flags: int = FLAG_READ_ONLY


@dataclass(frozen=True, slots=True)
class GptPlan:
    """Where everything of an image goes.

    Attributes:
        offsets_bytes: Of each partition, in the order given.
        size_bytes: Of the whole file, a multiple of 4096.
        primary: Protective MBR, header and entries: to be written at offset 0.
        backup: Entries and header of the backup.
        backup_offset_bytes: Where `backup` goes; it ends with the file.
    """

    offsets_bytes: tuple[int, ...]
    size_bytes: int
    primary: bytes
    backup: bytes
    backup_offset_bytes: int


def first_partition_offset_bytes(*, sector_size: int = 512, alignment: int = 4096) -> int:
    """Where the first partition starts, which depends on nothing else: 20480 by default.

    The data partition is written there before its length, and so the plan, is known.
    """
    return _round_up(_first_usable_lba(sector_size) * sector_size, alignment)


def plan_gpt(
    specs: Sequence[PartitionSpec],
    disk_guid: UUID,
    *,
    sector_size: int = 512,
    alignment: int = 4096,
) -> GptPlan:
    """Lay out partitions one behind the other and build both copies of the table.

    Args:
        specs: 1 to 128, placed in this order.
        disk_guid: Identity of the disk.
        sector_size: 512 or 4096 bytes.
        alignment: Of each partition, in bytes, a multiple of the sector size.

    Returns:
        The plan; the same arguments always give the same bytes.

    Raises:
        InputError: A label does not fit.
        ValueError: A length, the sector size or the alignment breaks the rules above.
    """
    if not specs:
        raise ValueError("no partitions")
    if sector_size not in fmt.SECTOR_SIZES or alignment <= 0 or alignment % sector_size:
        raise ValueError(f"sector size {sector_size} with alignment {alignment}")
    entries, end = _place(specs, sector_size, alignment)
    array = fmt.pack_entries(entries)
    tail_bytes = len(array) + sector_size
    size_bytes = _round_up(end + tail_bytes, FILE_ALIGNMENT_BYTES)
    last_lba = size_bytes // sector_size - 1
    backup_lba = (size_bytes - tail_bytes) // sector_size
    primary = fmt.GptHeader(
        my_lba=fmt.PRIMARY_LBA,
        alternate_lba=last_lba,
        first_usable_lba=_first_usable_lba(sector_size),
        last_usable_lba=backup_lba - 1,
        disk_guid=disk_guid,
        entries_lba=fmt.PRIMARY_LBA + 1,
        entries_crc32=zlib.crc32(array),
    )
    backup = dataclasses.replace(primary, my_lba=last_lba, alternate_lba=fmt.PRIMARY_LBA, entries_lba=backup_lba)
    head = fmt.pack_protective_mbr(last_lba + 1), fmt.pack_header(primary)
    return GptPlan(
        offsets_bytes=tuple(entry.first_lba * sector_size for entry in entries),
        size_bytes=size_bytes,
        primary=b"".join(part.ljust(sector_size, b"\0") for part in head) + array,
        backup=array + fmt.pack_header(backup).ljust(sector_size, b"\0"),
        backup_offset_bytes=backup_lba * sector_size,
    )


def _place(specs: Sequence[PartitionSpec], sector_size: int, alignment: int) -> tuple[list[fmt.GptEntry], int]:
    """The entries of all partitions, and the end of the last one in bytes."""
    entries = []
    end = first_partition_offset_bytes(sector_size=sector_size, alignment=alignment)
    for spec in specs:
        if spec.length_bytes <= 0 or spec.length_bytes % sector_size:
            raise ValueError(f"partition length {spec.length_bytes} with sectors of {sector_size}")
        start = _round_up(end, alignment)
        end = start + spec.length_bytes
        entry = fmt.GptEntry(
            type_guid=spec.type_guid,
            unique_guid=spec.uuid,
            first_lba=start // sector_size,
            last_lba=end // sector_size - 1,
            flags=spec.flags,
            label=spec.label,
        )
        entries.append(entry)
    return entries, end


def _first_usable_lba(sector_size: int) -> int:
    return fmt.PRIMARY_LBA + 1 + fmt.ENTRY_COUNT * fmt.ENTRY_SIZE_BYTES // sector_size


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
