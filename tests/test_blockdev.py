# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.blockdev import BlockDevice, FileDevice, WindowDevice
from rofs.errors import FormatError, ReadError
from tests.trees import content
from tests.verity.doubles import MemoryDevice

DATA = content(10_000)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(DATA)
    return tmp_path / "file"


@pytest.fixture
def fd(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_file_is_read_exactly(fd: int) -> None:
    device = FileDevice(fd)
    assert device.size_bytes == 10_000
    for offset, length in ((0, 0), (0, 10_000), (9_999, 1), (10_000, 0), (4_095, 2)):
        assert device.read_at(offset, length) == DATA[offset : offset + length]


@pytest.mark.parametrize("place", [(-1, 1), (0, -1), (0, 10_001), (10_000, 1), (1 << 70, 1), (0, 1 << 70)])
def test_nothing_outside_is_read(fd: int, place: tuple[int, int]) -> None:
    device = FileDevice(fd)
    devices: list[BlockDevice] = [device, WindowDevice(device, 0, 10_000), WindowDevice(device, 0, 500)]
    for each in devices:
        with pytest.raises(FormatError, match="outside"):
            each.read_at(*place)


def test_a_file_replaced_by_rename_stays_the_old_one(fd: int, path: Path) -> None:
    device = FileDevice(fd)
    (path.parent / "other").write_bytes(bytes(10_000))
    (path.parent / "other").rename(path)
    assert device.read_at(0, 10_000) == DATA


def test_a_file_cut_short_later(fd: int, path: Path) -> None:
    device = FileDevice(fd)
    os.truncate(path, 5_000)
    assert device.read_at(0, 5_000) == DATA[:5_000]
    with pytest.raises(FormatError, match="truncated: 5000 bytes expected at offset 4000, 1000 found"):
        device.read_at(4_000, 5_000)


def test_short_reads_are_continued(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: real(fd, min(length, 700), offset))
    assert FileDevice(fd).read_at(1, 9_000) == DATA[1:9_001]


def test_a_medium_that_fails(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(ReadError, match="9 bytes at offset 8 of the image: Input/output error"):
        FileDevice(fd).read_at(8, 9)


@given(st.data())
def test_windows_of_windows(data: st.DataObject) -> None:
    device: BlockDevice = MemoryDevice(DATA)
    expected = DATA
    for _ in range(3):
        start = data.draw(st.integers(0, len(expected)))
        length = data.draw(st.integers(0, len(expected) - start))
        device, expected = WindowDevice(device, start, length), expected[start : start + length]
        assert device.size_bytes == length
    assert device.read_at(0, len(expected)) == expected


@pytest.mark.parametrize("window", [(0, 10_001), (-1, 5), (10_001, 0), (5, -1)])
def test_a_window_that_does_not_fit(window: tuple[int, int]) -> None:
    with pytest.raises(FormatError, match="outside"):
        WindowDevice(MemoryDevice(DATA), *window)
