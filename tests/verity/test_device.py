# SPDX-License-Identifier: Apache-2.0
"""The verified device: right bytes or a fault that names the first bad block."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.errors import BlockFault, CorruptionError, FormatError, ReadError
from rofs.verity import device as device_module
from rofs.verity.device import VerityDevice

from .doubles import MemoryDevice, content, protect

LEAVES_AT = 2  # hash block address of the leaf level for 129..16384 blocks: superblock, top, leaves


def fault_of(device: VerityDevice, offset: int, length: int) -> BlockFault:
    with pytest.raises((CorruptionError, ReadError)) as caught:
        device.read_at(offset, length)
    assert isinstance(caught.value, CorruptionError | ReadError)
    assert caught.value.fault is not None
    return caught.value.fault


@given(
    offset=st.integers(0, 300 * 512),
    length=st.integers(0, 300 * 512),
    algorithm=st.sampled_from(["sha256", "sha512"]),
    salt=st.sampled_from([b"", b"pepper"]),
)
def test_reads_are_those_of_the_data(offset: int, length: int, algorithm: str, salt: bytes) -> None:
    data = content(300, 512)
    device = protect(data, block_size=512, algorithm=algorithm, salt=salt).open()
    length = min(length, len(data) - offset)
    assert device.read_at(offset, length) == data[offset : offset + length]
    assert device.size_bytes == len(data)


def test_every_byte_of_the_data_counts() -> None:
    image = protect(content(20, 512), block_size=512)
    device = image.open()
    for byte in range(20 * 512):
        image.data.corrupt_block(0, byte)
        fault = fault_of(device, 0, 20 * 512)
        assert (fault.kind, fault.level, fault.block) == ("mismatch", -1, byte // 512)
        image.data.corrupt_block(0, byte)
    assert device.read_at(0, 20 * 512) == content(20, 512)


def test_every_byte_of_the_tree_counts() -> None:
    image = protect(content(20, 512), block_size=512)
    addresses = {1: (1, 0), 2: (0, 0), 3: (0, 1)}  # address: (level, block)
    for address, place in addresses.items():
        for byte in range(512):
            image.hashes.corrupt_block(address, byte)
            fault = fault_of(image.open(), 0, 20 * 512)
            assert (fault.kind, fault.level, fault.block) == ("mismatch", *place)
            image.hashes.corrupt_block(address, byte)


def test_fault_names_the_first_bad_block_and_both_digests() -> None:
    image = protect(content(300))
    good = bytes(image.data.content[200 * 4096 : 201 * 4096])
    image.data.corrupt_block(200)
    image.data.corrupt_block(250)
    bad = bytes(image.data.content[200 * 4096 : 201 * 4096])
    fault = fault_of(image.open(), 0, 300 * 4096)
    expected, found = (hashlib.sha256(block).digest() for block in (good, bad))
    assert fault == BlockFault("mismatch", -1, 200, expected, found)


def test_block_is_checked_again_on_every_read() -> None:
    image = protect(content(300))
    device = image.open()
    device.read_at(0, 4096)
    image.data.corrupt_block(0)
    assert fault_of(device, 0, 1).block == 0
    assert device.verified_blocks == 1


def test_corrupt_neighbour_does_not_matter() -> None:
    image = protect(content(300))
    image.data.corrupt_block(1)
    assert image.open().read_at(0, 4096) == content(1)


def test_wrong_root_hash_is_a_fault_of_the_top_block() -> None:
    image = protect(content(300))
    device = VerityDevice(image.data, image.hashes, image.superblock, bytes(32))
    fault = fault_of(device, 0, 1)
    assert (fault.level, fault.block, fault.expected) == (1, 0, bytes(32))


def test_single_block_is_judged_by_the_root_hash() -> None:
    image = protect(content(1), salt=b"salt")
    assert image.open().read_at(0, 4096) == content(1)
    image.data.corrupt_block(0)
    fault = fault_of(image.open(), 5, 1)
    assert (fault.level, fault.block, fault.expected) == (-1, 0, image.tree.root_hash)
    assert len(list(image.open().check_all())) == 1


def test_one_read_and_one_climb_serve_a_range() -> None:
    image = protect(content(300))
    device = image.open()
    device.read_at(10, 8 * 4096)
    assert image.data.reads[-1] == (0, 9 * 4096)
    assert len(image.hashes.reads) == 2
    device.read_at(0, 4096)
    assert len(image.hashes.reads) == 2
    assert device.verified_blocks == 10
    assert device.cache_hits == 1


def test_cache_is_bounded() -> None:
    device = protect(content(128 * 5)).open(cache_bytes=3 * 4096)
    for leaf in range(5):
        device.read_at(leaf * 128 * 4096, 1)
        assert device._tree._cache.used_bytes <= 3 * 4096


def test_cache_drops_the_least_recently_used_block() -> None:
    image = protect(content(128 * 4))
    device = image.open(cache_bytes=3 * 4096)  # the top block and two leaf blocks
    for leaf in (0, 1, 0, 2, 0, 3):
        device.read_at(leaf * 128 * 4096, 1)
    reads = len(image.hashes.reads)
    assert reads == 5  # top, 0, 1, 2, 3
    device.read_at(0, 1)
    assert len(image.hashes.reads) == reads
    device.read_at(128 * 4096, 1)
    assert len(image.hashes.reads) == reads + 1


def test_without_room_for_a_block_reads_still_verify() -> None:
    image = protect(content(300))
    device = image.open(cache_bytes=0)
    assert device.read_at(0, 300 * 4096) == content(300)
    reads = len(image.hashes.reads)
    assert device.read_at(0, 1) == content(300)[:1]
    assert len(image.hashes.reads) == reads + 2  # nothing was kept


def test_failing_data_block_is_found() -> None:
    image = protect(content(300))
    image.data.fail_block(7)
    assert fault_of(image.open(), 0, 20 * 4096) == BlockFault("io", -1, 7)


def test_passing_fault_of_the_medium_is_survived() -> None:
    image = protect(content(300))
    image.data.fail_block(7, times=1)
    assert image.open().read_at(0, 20 * 4096) == content(20)


def test_failing_hash_block_is_named() -> None:
    image = protect(content(300))
    image.hashes.fail_block(LEAVES_AT + 1)
    fault = fault_of(image.open(), 128 * 4096, 1)
    assert (fault.kind, fault.level, fault.block) == ("io", 0, 1)


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (0, -1), (300 * 4096, 1), (1, 300 * 4096)])
def test_range_outside_is_refused(offset: int, length: int) -> None:
    with pytest.raises(FormatError, match="outside"):
        protect(content(300)).open().read_at(offset, length)


def test_superblock_counts_and_not_the_device() -> None:
    image = protect(content(300))
    image.data.content += bytes(4096 * 10)
    device = image.open()
    assert (device.size_bytes, device.data_blocks) == (300 * 4096, 300)
    with pytest.raises(FormatError):
        device.read_at(300 * 4096, 1)


def test_superblock_that_does_not_fit_is_refused() -> None:
    image = protect(content(300))
    with pytest.raises(FormatError, match="data blocks"):
        VerityDevice(MemoryDevice(bytes(4096)), image.hashes, image.superblock, bytes(32))
    superblock = replace(image.superblock, algorithm="sha512", data_blocks=1)
    with pytest.raises(FormatError, match="root hash"):
        VerityDevice(image.data, image.hashes, superblock, bytes(32))


def test_different_block_sizes_of_data_and_tree() -> None:
    image = protect(content(300, 512), block_size=512)
    leaf_and_top = protect(content(300, 512), block_size=512).hashes
    # 19 leaf blocks of 16 digests become three of 128 in hash blocks of 4096 bytes.
    layout = image.superblock.layout
    start = layout.levels[0].first_block * 512
    digests = bytes(leaf_and_top.content[start : start + 300 * 32])
    hashes = MemoryDevice(bytes(4096 * 5))
    leaves = [digests[i : i + 4096].ljust(4096, b"\0") for i in range(0, len(digests), 4096)]
    top = b"".join(hashlib.sha256(leaf).digest() for leaf in leaves).ljust(4096, b"\0")
    hashes.write_at(4096, top + b"".join(leaves))
    superblock = replace(image.superblock, hash_block_size=4096)
    root_hash = hashlib.sha256(top).digest()
    device = VerityDevice(image.data, hashes, superblock, root_hash)
    assert device.read_at(0, device.size_bytes) == content(300, 512)


class TestCheckAll:
    def test_good_image(self) -> None:
        image = protect(content(300))
        done: list[int] = []
        device = image.open()
        assert list(device.check_all(done.append)) == []
        assert (device.verified_blocks, device.unjudged_blocks) == (300, 0)
        assert sum(done) == device.size_bytes

    def test_goes_on_after_faults(self) -> None:
        image = protect(content(300))
        image.data.corrupt_block(3)
        image.data.fail_block(9)
        image.data.corrupt_block(11)
        image.data.corrupt_block(299)
        device = image.open()
        faults = [(fault.kind, fault.level, fault.block) for fault in device.check_all()]
        assert faults == [
            ("mismatch", -1, 3),
            ("io", -1, 9),
            ("mismatch", -1, 11),
            ("mismatch", -1, 299),
        ]
        assert device.verified_blocks == 296

    def test_bad_hash_block_is_one_fault_and_hides_what_it_covers(self) -> None:
        image = protect(content(300))
        image.hashes.corrupt_block(LEAVES_AT)
        image.hashes.fail_block(LEAVES_AT + 2)
        image.data.corrupt_block(5)
        image.data.corrupt_block(130)
        device = image.open()
        done: list[int] = []
        faults = [(fault.kind, fault.level, fault.block) for fault in device.check_all(done.append)]
        assert faults == [("mismatch", 0, 0), ("mismatch", -1, 130), ("io", 0, 2)]
        assert device.unjudged_blocks == 128 + 44
        assert sum(done) == device.size_bytes

    def test_bad_top_block_hides_all(self) -> None:
        image = protect(content(300))
        image.hashes.corrupt_block(1)
        device = image.open()
        assert [fault.level for fault in device.check_all()] == [1]
        assert device.unjudged_blocks == 300

    def test_cache_is_not_believed(self) -> None:
        image = protect(content(300))
        device = image.open()
        device.read_at(0, device.size_bytes)
        image.hashes.corrupt_block(LEAVES_AT)
        assert [fault.level for fault in device.check_all()] == [0]


# Shared work


def test_shared_check_finds_the_same_faults_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_WORTH_SHARING_BYTES", 0)
    image = protect(content(128 * 129 + 5))
    for block in (3, 128 * 128 + 1, 128 * 129 + 4):
        image.data.corrupt_block(block)
    image.hashes.corrupt_block(image.superblock.layout.levels[0].first_block + 7)
    results = []
    for processes in (1, 2):
        device, done = image.open(), list[int]()
        faults = list(device.check_all(done.append, processes=processes))
        results.append((faults, device.verified_blocks, device.unjudged_blocks))
        assert sum(done) == device.size_bytes
    assert results[0] == results[1]
    assert len(results[0][0]) == 4
