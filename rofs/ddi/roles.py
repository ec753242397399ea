# SPDX-License-Identifier: Apache-2.0
"""Partition roles: what the type GUIDs and flags of Discoverable Partitions (UAPI.2) mean.

Pure tables. This module does not parse partition tables (`gpt_format`) and does not select (`parts`).
"""

from __future__ import annotations

import enum
from typing import Literal
from uuid import UUID

# Attribute bits of a GPT entry (UAPI.2, "Partition Flags").
FLAG_READ_ONLY = 1 << 60
FLAG_NO_AUTO = 1 << 63  # not to be found by its type: `parts` skips such a partition

Architecture = Literal["x86-64", "arm64"]


class PartitionRole(enum.Enum):
    """What a partition is for: which tree, and which of the three partitions of a set.

    Attributes:
        designator: `root` or `usr`.
        kind: `data`, `verity` (hash tree) or `signature`.
    """

    ROOT = ("root", "data")
    ROOT_VERITY = ("root", "verity")
    ROOT_VERITY_SIG = ("root", "signature")
    USR = ("usr", "data")
    USR_VERITY = ("usr", "verity")
    USR_VERITY_SIG = ("usr", "signature")

    def __init__(self, designator: str, kind: str) -> None:
        self.designator = designator
        self.kind = kind


_ARCHITECTURES: tuple[Architecture, ...] = ("x86-64", "arm64")
_TYPE_GUIDS = {
    (role, architecture): UUID(text)
    for role, x86_64, arm64 in (
        (
            PartitionRole.ROOT,
            "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
            "b921b045-1df0-41c3-af44-4c6f280d3fae",
        ),
        (
            PartitionRole.ROOT_VERITY,
            "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
            "df3300ce-d69f-4c92-978c-9bfb0f38d820",
        ),
        (
            PartitionRole.ROOT_VERITY_SIG,
            "41092b05-9fc8-4523-994f-2def0408b176",
            "6db69de6-29f4-4758-a7a5-962190f00ce3",
        ),
        (
            PartitionRole.USR,
            "8484680c-9521-48c6-9c11-b0720656f69e",
            "b0e01050-ee5f-4390-949a-9101b17104e9",
        ),
        (
            PartitionRole.USR_VERITY,
            "77ff5f63-e7b6-4633-acf4-1565b864c0e6",
            "6e11a4e7-fbca-4ded-b9e9-e1a512bb664e",
        ),
        (
            PartitionRole.USR_VERITY_SIG,
            "e7bb33fb-06cf-4e81-8273-e543b413e2e2",
            "c23ce4ff-44bd-4b00-b2d4-b41b3419e02a",
        ),
    )
    for architecture, text in zip(_ARCHITECTURES, (x86_64, arm64), strict=True)
}
_ROLES = {guid: key for key, guid in _TYPE_GUIDS.items()}


def type_guid_of(role: PartitionRole, architecture: Architecture) -> UUID:
    """The partition type GUID of a role on an architecture (UAPI.2)."""
    return _TYPE_GUIDS[role, architecture]


def role_of(type_guid: UUID) -> PartitionRole | None:
    """The role behind a type GUID; None for a type that rofs has no use for."""
    known = _ROLES.get(type_guid)
    return known[0] if known else None


def architecture_of(type_guid: UUID) -> Architecture | None:
    """The architecture behind a type GUID; None for a type that rofs has no use for."""
    known = _ROLES.get(type_guid)
    return known[1] if known else None
