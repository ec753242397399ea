# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import os

import pytest

from rofs.erofs.reader import ErofsReader
from rofs.errors import FormatError
from rofs.image import check
from rofs.image.check import check_image
from rofs.image.progress import Silent
from tests.erofs.builder import LyingFilesystem
from tests.trees import content, directory, file
from tests.verity.doubles import protect

from .builder import BLOCK, SmallImage


def content_block(image: SmallImage, path: bytes) -> int:
    """The first whole block of a file's content."""
    with image.open() as opened:
        nid = opened.filesystem.root_nid
        for name in path.split(b"/"):
            found = opened.filesystem.lookup(nid, name)
            assert found is not None
            nid = found
        return list(opened.filesystem.extents(nid))[1].offset_bytes // BLOCK


def test_a_sound_image(image: SmallImage) -> None:
    with image.open() as opened:
        result = check_image(opened, Silent())
        assert (result.faults, result.more, result.unjudged_blocks) == ((), 0, 0)
        assert result.blocks == opened.device.size_bytes // BLOCK


def test_every_bad_block_is_told_with_its_files(image: SmallImage) -> None:
    one, other = content_block(image, b"large/l03"), content_block(image, b"large/again")
    for block in (one, one + 1, other):
        image.corrupt_block(block, 17)
    with image.open() as opened:
        result = check_image(opened, Silent())
    assert [(f.level, f.block, tuple(sorted(paths))) for f, paths in result.faults] == sorted(
        [
            (-1, one, (b"/large/l03",)),
            (-1, one + 1, (b"/large/l03",)),
            (-1, other, (b"/large/again", b"/tails/linked")),
        ]
    )
    assert all(f.kind == "mismatch" and f.expected and f.found for f, _ in result.faults)


def test_below_a_bad_hash_block_nothing_is_judged(image: SmallImage) -> None:
    image.corrupt_hash_block(2)  # the second leaf: blocks from 128 on
    image.corrupt_block(130)
    with image.open() as opened:
        result = check_image(opened, Silent())
        blocks = opened.device.size_bytes // BLOCK
    ((fault, paths),) = result.faults
    assert (fault.level, fault.block) == (0, 1)
    assert result.unjudged_blocks == blocks - 128
    assert paths


def test_blocks_are_counted_as_the_hash_tree_counts_them(image: SmallImage) -> None:
    """systemd-repart of Debian 12 writes verity blocks of 512 bytes under filesystem blocks of 4096."""
    lying = LyingFilesystem(directory({b"file": file(content(10_000))}))
    protected = protect(bytes(lying.data), block_size=512)
    protected.data.corrupt_block(len(lying.data) // 512 - 3)
    device = protected.open()
    with image.open() as opened:
        other = dataclasses.replace(opened, device=device, filesystem=ErofsReader(device))
        result = check_image(other, Silent())
    assert result.blocks == device.data_blocks == len(lying.data) // 512
    ((fault, paths),) = result.faults
    assert (fault.block, paths) == (result.blocks - 3, (b"/file",))


def test_only_so_many_faults_are_listed(image: SmallImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MAX_FAULTS", 2)
    first = content_block(image, b"large/l01")
    for block in range(first, first + 7):
        image.corrupt_block(block)
    with image.open() as opened:
        result = check_image(opened, Silent())
    assert (len(result.faults), result.more) == (2, 5)


def test_an_image_truncated_meanwhile(image: SmallImage) -> None:
    with image.open() as opened:
        os.truncate(image.path, opened.facts.data_offset_bytes + 10 * BLOCK)
        with pytest.raises(FormatError, match="truncated"):
            check_image(opened, Silent())


def test_progress_adds_up(image: SmallImage) -> None:
    done: list[int] = []

    class Counting:
        def stage(self, name: str, total_bytes: int) -> object:
            assert name == "verifying"
            done.append(-total_bytes)
            return done.append

    with image.open() as opened:
        check_image(opened, Counting())  # type: ignore[arg-type]
    assert sum(done) == 0
