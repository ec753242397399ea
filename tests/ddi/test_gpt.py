# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.ddi.gpt import PartitionSpec, first_partition_offset_bytes, plan_gpt, read_gpt
from rofs.ddi.roles import FLAG_NO_AUTO, FLAG_READ_ONLY, PartitionRole
from rofs.errors import FormatError, InputError

from .builders import DISK_GUID, DiskImage, MemoryDevice, specs_for

ROOT_HASH = hashlib.sha256(b"image").digest()
SFDISK = shutil.which("sfdisk") or shutil.which("sfdisk", path="/usr/sbin:/sbin")


@pytest.fixture(params=[512, 4096])
def image(request: pytest.FixtureRequest) -> DiskImage:
    return DiskImage(specs_for(ROOT_HASH), sector_size=request.param)


def test_first_partition_starts_where_the_data_is_written_early() -> None:
    assert first_partition_offset_bytes() == 20480
    assert first_partition_offset_bytes(sector_size=4096) == 24576
    assert plan_gpt(specs_for(ROOT_HASH), DISK_GUID).offsets_bytes[0] == 20480


def test_round_trip(image: DiskImage) -> None:
    table = read_gpt(image.device)
    assert table.sector_size == image.sector_size
    assert table.warnings == ()
    assert [p.role for p in table.partitions] == [
        PartitionRole.ROOT,
        PartitionRole.ROOT_VERITY,
        PartitionRole.ROOT_VERITY_SIG,
    ]
    for spec, offset, found in zip(specs_for(ROOT_HASH), image.plan.offsets_bytes, table.partitions, strict=True):
        assert found.offset_bytes == offset
        assert found.length_bytes == spec.length_bytes
        assert (found.uuid, found.label, found.flags) == (spec.uuid, "demo_1", FLAG_READ_ONLY)


def test_uuid_is_mixed_endian_on_disk(image: DiskImage) -> None:
    at = 2 * image.sector_size + 16
    raw = bytes(image.device.data[at : at + 16])
    assert raw == UUID(hex=ROOT_HASH.hex()[:32]).bytes_le


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20),
    sector_size=st.sampled_from([512, 4096]),
    label=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=18),
    flags=st.integers(0, 2**64 - 1),
)
def test_round_trip_of_any_plan(lengths: list[int], sector_size: int, label: str, flags: int) -> None:
    specs = [
        PartitionSpec(
            type_guid=UUID(int=7),
            uuid=UUID(int=i),
            label=label,
            length_bytes=n * sector_size,
            flags=flags,
        )
        for i, n in enumerate(lengths)
    ]
    image = DiskImage(specs, sector_size=sector_size)
    table = read_gpt(image.device)
    assert table.warnings == ()
    assert image.plan.size_bytes % 4096 == 0
    assert [(p.label, p.flags, p.length_bytes) for p in table.partitions] == [
        (label, flags, n * sector_size) for n in lengths
    ]
    assert all(offset % 4096 == 0 for offset in image.plan.offsets_bytes)


@pytest.mark.skipif(SFDISK is None, reason="sfdisk (package fdisk) is not installed")
def test_sfdisk_reads_the_same(tmp_path: Path) -> None:
    image = DiskImage(specs_for(ROOT_HASH))
    path = tmp_path / "image.raw"
    path.write_bytes(image.device.data)
    assert SFDISK is not None
    done = subprocess.run([SFDISK, "--json", path], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found = json.loads(done.stdout)["partitiontable"]
    assert found["label"] == "gpt"
    assert found["id"] == str(DISK_GUID).upper()
    for spec, offset, part in zip(specs_for(ROOT_HASH), image.plan.offsets_bytes, found["partitions"], strict=True):
        assert part["start"] * 512 == offset
        assert part["size"] * 512 == spec.length_bytes
        assert part["uuid"] == str(spec.uuid).upper()
        assert part["type"] == str(spec.type_guid).upper()
        assert part["attrs"] == "GUID:60"
    verify = subprocess.run([SFDISK, "--verify", path], capture_output=True, text=True, check=True)
    assert "No errors detected" in verify.stdout


@pytest.mark.skipif(SFDISK is None, reason="sfdisk (package fdisk) is not installed")
def test_reads_a_table_that_sfdisk_wrote(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(4 << 20))
    script = "label: gpt\n" + "".join(
        f"size=1MiB, type={spec.type_guid}, uuid={spec.uuid}, name=demo_1, attrs=GUID:63\n"
        for spec in specs_for(ROOT_HASH)[:2]
    )
    assert SFDISK is not None
    subprocess.run([SFDISK, "--quiet", path], input=script, text=True, check=True)
    table = read_gpt(MemoryDevice(path.read_bytes()))
    assert table.warnings == ()
    assert [(p.uuid, p.flags) for p in table.partitions] == [
        (spec.uuid, FLAG_NO_AUTO) for spec in specs_for(ROOT_HASH)[:2]
    ]


@pytest.mark.parametrize("defect", ["damage_primary_header", "damage_primary_entries"])
def test_damaged_primary_is_replaced_by_the_backup(image: DiskImage, defect: str) -> None:
    expected = read_gpt(image.device).partitions
    getattr(image, defect)()
    table = read_gpt(image.device)
    assert table.partitions == expected
    (warning,) = table.warnings
    assert "backup GPT was used" in warning
    assert "CRC-32" in warning


def test_both_copies_damaged(image: DiskImage) -> None:
    image.damage_primary_header()
    image.damage_backup_header()
    with pytest.raises(FormatError, match="no usable GPT: GPT header at sector 1 is damaged"):
        read_gpt(image.device)


@pytest.mark.parametrize(
    ("defect", "warning"),
    [
        ("erase_backup", "unusable: nothing at sector"),
        ("damage_backup_header", "unusable: GPT header at sector"),
        ("copy_to_larger_disk", "not in the last sector"),
    ],
)
def test_backup_defects_are_warnings(image: DiskImage, defect: str, warning: str) -> None:
    getattr(image, defect)()
    table = read_gpt(image.device)
    assert len(table.partitions) == 3
    assert len(table.warnings) == 1
    assert warning in table.warnings[0]


def test_backup_that_differs_is_a_warning(image: DiskImage) -> None:
    image.set_entry_field(0, 48, "Q", FLAG_NO_AUTO)
    table = read_gpt(image.device)
    assert table.partitions[0].flags == FLAG_NO_AUTO
    assert table.warnings == ("backup GPT differs from the primary, which was used",)


def test_cut_off_behind_the_partitions_misses_only_the_backup(image: DiskImage) -> None:
    image.truncate(image.plan.backup_offset_bytes)
    (warning,) = read_gpt(image.device).warnings
    assert "backup GPT is missing" in warning


def test_truncated_anywhere(image: DiskImage) -> None:
    end = image.plan.offsets_bytes[-1] + 16384
    whole = bytes(image.device.data)
    for length in [*range(0, end, 1000), end - 1]:
        device = MemoryDevice(whole[:length])
        with pytest.raises(FormatError):
            read_gpt(device)
        if length > 40000:
            with pytest.raises(FormatError, match=f"need {end} bytes, it has {length}"):
                read_gpt(device)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1024, 100_000])
def test_no_gpt(size: int) -> None:
    with pytest.raises(FormatError, match=r"not a disk image \(no GPT found\)"):
        read_gpt(MemoryDevice(bytes(size)))


def test_overlapping_partitions(image: DiskImage) -> None:
    data, verity = read_gpt(image.device).partitions[:2]
    last = verity.offset_bytes // image.sector_size
    image.set_entry_field(0, 40, "Q", last)
    with pytest.raises(FormatError, match=f"partition {verity.uuid} .* overlaps .*{data.uuid}"):
        read_gpt(image.device)


@pytest.mark.parametrize(("offset_bytes", "value"), [(32, 1), (40, 2**63), (40, 0), (32, 2**64 - 1)])
def test_partition_out_of_range(image: DiskImage, offset_bytes: int, value: int) -> None:
    image.set_entry_field(0, offset_bytes, "Q", value)
    with pytest.raises(FormatError, match="partition"):
        read_gpt(image.device)


@pytest.mark.parametrize(
    ("offset_bytes", "code", "value"),
    [
        (8, "I", 0x20000),  # revision
        (12, "I", 91),  # header size
        (12, "I", 2**32 - 1),
        (24, "Q", 2),  # my LBA
        (40, "Q", 2**64 - 1),  # first usable
        (48, "Q", 0),  # last usable
        (72, "Q", 0),  # entries
        (72, "Q", 2**64 - 1),
        (80, "I", 0),  # count
        (80, "I", 2**32 - 1),
        (84, "I", 64),  # entry size
        (84, "I", 129),
        (84, "I", 8192),
        (84, "I", 0),
    ],
)
def test_lying_header_with_right_checksum(image: DiskImage, offset_bytes: int, code: str, value: int) -> None:
    image.erase_backup()
    image.set_header_field(offset_bytes, code, value)
    with pytest.raises(FormatError, match="no usable GPT"):
        read_gpt(image.device)


@given(st.integers(0, 2 * 512 + 3 * 128 - 1), st.integers(1, 255))
def test_any_changed_byte_of_the_primary_is_noticed(offset_bytes: int, change: int) -> None:
    image = DiskImage(specs_for(ROOT_HASH))
    expected = read_gpt(image.device).partitions
    image.device.data[offset_bytes] ^= change
    table = read_gpt(image.device)
    assert table.partitions == expected
    outside = offset_bytes < 512 or 512 + 92 <= offset_bytes < 1024
    assert bool(table.warnings) != outside


@pytest.mark.parametrize("label", ["x" * 37, "😀" * 19, "\ud800", "a\0b"])
def test_label_that_does_not_fit(label: str) -> None:
    spec = PartitionSpec(type_guid=UUID(int=1), uuid=UUID(int=2), label=label, length_bytes=512)
    with pytest.raises(InputError, match="partition label"):
        plan_gpt([spec], DISK_GUID)


def test_label_with_an_unpaired_surrogate_is_read(image: DiskImage) -> None:
    image.set_entry_field(0, 56, "H", 0xD800)
    assert read_gpt(image.device).partitions[0].label == "\ufffdemo_1"


@pytest.mark.parametrize("length", [0, -512, 100])
def test_plan_refuses_lengths_without_meaning(length: int) -> None:
    spec = PartitionSpec(type_guid=UUID(int=1), uuid=UUID(int=2), label="x", length_bytes=length)
    with pytest.raises(ValueError, match="partition length"):
        plan_gpt([spec], DISK_GUID)
