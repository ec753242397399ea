# SPDX-License-Identifier: Apache-2.0
"""Checks every block of a trusted image against its root hash, and names the files of the bad ones."""

from __future__ import annotations

from dataclasses import dataclass

from rofs.errors import BlockFault
from rofs.image.open import VerifiedImage
from rofs.image.paths import ReverseIndex
from rofs.image.progress import Progress

MAX_FAULTS = 1000  # reported one by one; a zeroed disk has millions


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The outcome.

    Attributes:
        blocks: Data blocks in the image, as the hash tree counts them.
        faults: The first bad blocks with the paths of what lies in them.
        more: How many further bad blocks there are.
        unjudged_blocks: Data blocks below a bad hash block, which nothing can be said about.
    """

    blocks: int
    faults: tuple[tuple[BlockFault, tuple[bytes, ...]], ...]
    more: int
    unjudged_blocks: int


def check_image(image: VerifiedImage, progress: Progress) -> CheckResult:
    """Read and verify every hash block and every data block, going on after bad ones.

    Raises:
        FormatError: The image was truncated meanwhile.
    """
    device = image.device
    index = ReverseIndex(image.filesystem)
    faults: list[tuple[BlockFault, tuple[bytes, ...]]] = []
    more = 0
    for fault in device.check_all(progress.stage("verifying", device.size_bytes), processes=None):
        if len(faults) < MAX_FAULTS:
            start, length = device.covered_range(fault)
            faults.append((fault, tuple(index.paths_of_range(start, length))))
        else:
            more += 1
    return CheckResult(device.data_blocks, tuple(faults), more, device.unjudged_blocks)
