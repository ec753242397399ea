# SPDX-License-Identifier: Apache-2.0
"""The dm-verity format: layout against the specification's formula, and hostile superblocks."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.errors import FormatError
from rofs.verity.format import (
    DIGEST_BYTES,
    MIN_BLOCK_BYTES,
    SUPERBLOCK_BYTES,
    VeritySuperblock,
    tree_layout,
)

GOOD = VeritySuperblock(bytes(range(16)), "sha256", 4096, 4096, 300, b"salt")
DATA_BYTES = 300 * 4096
HASH_BYTES = (1 + 1 + 3) * 4096

block_sizes = st.sampled_from([512 << n for n in range(8)])
algorithms = st.sampled_from(sorted(DIGEST_BYTES))


def parse(raw: bytes, data_bytes: int = DATA_BYTES, hash_bytes: int = HASH_BYTES) -> VeritySuperblock:
    return VeritySuperblock.parse(raw, data_device_bytes=data_bytes, hash_device_bytes=hash_bytes)


def patched(offset: int, layout: str, *values: object) -> bytes:
    raw = bytearray(GOOD.pack())
    struct.pack_into(layout, raw, offset, *values)
    return bytes(raw)


def test_pack_and_parse_are_inverse() -> None:
    raw = GOOD.pack()
    assert len(raw) == SUPERBLOCK_BYTES
    assert parse(raw) == GOOD
    assert parse(raw + bytes(4096)) == GOOD


@given(
    uuid=st.binary(min_size=16, max_size=16),
    algorithm=algorithms,
    data_block_size=block_sizes,
    hash_block_size=block_sizes,
    data_blocks=st.integers(1, 2**50),
    salt=st.binary(max_size=256),
)
def test_any_superblock_survives_packing(
    uuid: bytes,
    algorithm: str,
    data_block_size: int,
    hash_block_size: int,
    data_blocks: int,
    salt: bytes,
) -> None:
    superblock = VeritySuperblock(uuid, algorithm, data_block_size, hash_block_size, data_blocks, salt)
    assert parse(superblock.pack(), 2**80, 2**80) == superblock


@given(data_blocks=st.integers(1, 2**63), hash_block_size=block_sizes, algorithm=algorithms)
def test_layout_is_that_of_the_specification(data_blocks: int, hash_block_size: int, algorithm: str) -> None:
    layout = tree_layout(data_blocks=data_blocks, hash_block_size=hash_block_size, algorithm=algorithm)
    bits = (hash_block_size // DIGEST_BYTES[algorithm]).bit_length() - 1
    assert layout.hashes_per_block == 1 << bits
    level_count = next(n for n in range(64) if not (data_blocks - 1) >> (bits * n))
    assert len(layout.levels) == level_count
    address = 1
    for i in reversed(range(level_count)):
        level = layout.levels[i]
        covered = 1 << (bits * (i + 1))
        assert level.block_count == (data_blocks + covered - 1) // covered
        assert level.first_block == address
        address += level.block_count
    assert layout.hash_device_bytes == address * hash_block_size


def test_smallest_hash_block_holds_enough_digests_for_a_tree_to_narrow() -> None:
    assert MIN_BLOCK_BYTES // max(DIGEST_BYTES.values()) >= 2


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "truncated"),
        (GOOD.pack()[:511], "truncated"),
        (patched(0, "8s", b"verity\0x"), "signature"),
        (patched(8, "<I", 2), "unsupported version"),
        (patched(12, "<I", 0), "unsupported hash type"),
        (patched(32, "32s", b"md5"), "unsupported hash algorithm.*'md5'"),
        (patched(32, "32s", b"sha384"), "unsupported hash algorithm"),
        (patched(32, "32s", b"\xff" * 32), "unsupported hash algorithm"),
        (patched(32, "32s", b""), "unsupported hash algorithm"),
        *((patched(64, "<I", n), "data block size") for n in (0, 1, 256, 4097, 1 << 17, 1 << 31)),
        *((patched(68, "<I", n), "hash block size") for n in (0, 1, 256, 4097, 1 << 17, 1 << 31)),
        (patched(72, "<Q", 0), "number of data blocks"),
        (patched(72, "<Q", 301), "301 data blocks"),
        (patched(72, "<Q", 1 << 63), "data blocks"),
        (patched(72, "<Q", (1 << 64) - 1), "data blocks"),
        (patched(80, "<H", 257), "salt length.*257"),
        (patched(80, "<H", 65535), "salt length.*65535"),
    ],
)
def test_hostile_superblock_is_refused(raw: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse(raw)


def test_tree_has_to_fit_the_hash_device() -> None:
    with pytest.raises(FormatError, match=f"{HASH_BYTES} bytes, found {HASH_BYTES - 1}"):
        parse(GOOD.pack(), hash_bytes=HASH_BYTES - 1)


def test_without_a_level_the_superblock_is_enough() -> None:
    one = replace(GOOD, data_blocks=1)
    assert parse(one.pack(), hash_bytes=SUPERBLOCK_BYTES) == one


@given(raw=st.binary(min_size=512, max_size=512))
def test_no_bytes_raise_anything_else(raw: bytes) -> None:
    for candidate in (raw, GOOD.pack()[:32] + raw[32:]):
        with contextlib.suppress(FormatError):
            parse(candidate)


@pytest.mark.parametrize(
    "change",
    [
        {"uuid": b"short"},
        {"algorithm": "md5"},
        {"data_block_size": 1000},
        {"hash_block_size": 0},
        {"data_blocks": 0},
        {"salt": bytes(257)},
    ],
)
def test_misuse_is_a_builtin_error(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        replace(GOOD, **change)  # type: ignore[arg-type]


def test_layout_over_nothing_is_misuse() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        tree_layout(data_blocks=0, hash_block_size=4096, algorithm="sha256")
