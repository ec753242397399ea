# SPDX-License-Identifier: Apache-2.0
"""Selects the data, verity and signature partitions that belong together.

Source: UAPI.2 Discoverable Partitions: the data partition's UUID is the first half of the root hash,
the verity partition's UUID the second, and the signature document repeats the whole. Nothing here is
proven by that: the claimed root hash still needs trust, and every block still needs verification.
This module does not read partitions; the caller hands it a function that does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rofs.ddi.gpt import Partition, PartitionTable
from rofs.ddi.roles import FLAG_NO_AUTO, architecture_of
from rofs.ddi.signature_format import SignatureDocument
from rofs.errors import FormatError, TrustError

# systemd-sysupdate's names for partitions that are empty, partial or pending.
_RESERVED_LABEL = "_empty"
_RESERVED_LABEL_PREFIXES = ("PRT#", "PND#")
_UUID_BYTES = 16
_MAX_LISTED = 8  # candidates in a message; a hostile table can have thousands of pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParts:
    """Partitions that claim to belong together.

    Attributes:
        designator: `root` or `usr`.
        data: The filesystem.
        verity: Its hash tree.
        signature: The signature partition for this root hash with its document, or None.
        root_hash: What the UUIDs (and the document) claim; not trusted yet.
        unmatched_root_hashes: Of signature documents that belong to no pair: when `signature` is
            None, this tells an image with a foreign signature from one without any.
        vacant: Signature partitions of this designator and architecture that hold no signature for any
            pair: room for one.
    """

    designator: str
    data: Partition
    verity: Partition
    signature: tuple[Partition, SignatureDocument] | None
    root_hash: bytes
    unmatched_root_hashes: tuple[bytes, ...] = ()
    vacant: tuple[Partition, ...] = ()


@dataclass(frozen=True, slots=True)
class _Pair:
    data: Partition
    verity: Partition
    root_hash: bytes


_Signatures = Sequence[tuple[Partition, SignatureDocument]]


def select_image_parts(
    table: PartitionTable,
    *,
    root_hash: bytes | None = None,
    signature_of: Callable[[Partition], SignatureDocument | None],
) -> ImageParts:
    """Find the one set of partitions to use: by root hash, never by order in the table.

    Data and verity partitions pair when a signature document, or the given root hash, names both, and
    when only one of each is left over. Skipped are partitions that systemd-sysupdate reserves, and those
    flagged no-auto, which UAPI.2 keeps from being found by their type (as systemd-dissect does); naming
    their root hash does not bring them back.

    Args:
        table: As read.
        root_hash: The set to choose; needed only when there are several.
        signature_of: Reads a signature partition; None to ignore it. What it raises passes through.

    Returns:
        The set.

    Raises:
        FormatError: A part is missing, several sets are complete, or two partitions share a UUID.
        TrustError: There are complete sets, but none with the given root hash.
    """
    known = [p for p in table.partitions if p.role is not None and not _is_reserved(p.label)]
    usable = [p for p in known if not p.flags & FLAG_NO_AUTO]
    signatures = [
        (partition, document)
        for partition in _of_kind(usable, "signature")
        if (document := signature_of(partition)) is not None
    ]
    pairs = _pairs(usable, signatures, root_hash)
    if not pairs:
        skipped = len(known) - len(usable)
        note = f"; partitions that are flagged no-auto and were skipped: {skipped}" if skipped else ""
        raise FormatError(_what_is_missing(usable) + note)
    chosen = _choose(pairs, usable, root_hash)
    return _parts(chosen, pairs, signatures, _of_kind(usable, "signature"))


def _is_reserved(label: str) -> bool:
    return label == _RESERVED_LABEL or label.startswith(_RESERVED_LABEL_PREFIXES)


def _of_kind(partitions: Iterable[Partition], kind: str) -> list[Partition]:
    return [p for p in partitions if p.role is not None and p.role.kind == kind]


def _family(partition: Partition) -> tuple[str, str | None]:
    """What both halves of a pair have in common: designator and architecture."""
    assert partition.role is not None
    return partition.role.designator, architecture_of(partition.type_guid)


def _pairs(usable: Sequence[Partition], signatures: _Signatures, root_hash: bytes | None) -> list[_Pair]:
    """Every complete set: those that a root hash names, then what remains."""
    known = {document.root_hash for _, document in signatures}
    if root_hash is not None:
        known.add(root_hash)
    datas, verities = _by_uuid(usable, "data"), _by_uuid(usable, "verity")
    named = [
        _Pair(data, verity, value)
        for value in sorted(known)
        if (data := datas.get(value[:_UUID_BYTES])) is not None
        and (verity := verities.get(value[-_UUID_BYTES:])) is not None
        and _family(data) == _family(verity)
    ]
    taken = {pair.data.uuid for pair in named} | {pair.verity.uuid for pair in named}
    rest = [
        _Pair(data, verity, data.uuid.bytes + verity.uuid.bytes)
        for data in datas.values()
        for verity in verities.values()
        if not taken & {data.uuid, verity.uuid} and _family(data) == _family(verity)
    ]
    return named + rest


def _by_uuid(usable: Sequence[Partition], kind: str) -> dict[bytes, Partition]:
    partitions = _of_kind(usable, kind)
    found = {partition.uuid.bytes: partition for partition in partitions}
    if len(found) < len(partitions):
        raise FormatError(f"image has several {kind} partitions of the same UUID")
    return found


def _choose(pairs: Sequence[_Pair], usable: Sequence[Partition], root_hash: bytes | None) -> _Pair:
    wanted = [pair for pair in pairs if root_hash in {None, pair.root_hash}]
    if len(wanted) == 1:
        return wanted[0]
    if not wanted and root_hash is not None:
        raise TrustError(f"root hash {root_hash.hex()} expected, the image has {_listed(pairs)}")
    datas, verities = len(_of_kind(usable, "data")), len(_of_kind(usable, "verity"))
    raise FormatError(
        f"image has {datas} data and {verities} verity partitions and does not tell which to use; choose "
        f"with --root-hash from {_listed(wanted)}"
    )


def _listed(pairs: Sequence[_Pair]) -> str:
    texts = sorted({f"{pair.root_hash.hex()} ({'/'.join(map(str, _family(pair.data)))})" for pair in pairs})
    more = len(texts) - _MAX_LISTED
    return ", ".join(texts[:_MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def _what_is_missing(usable: Sequence[Partition]) -> str:
    datas, verities = _of_kind(usable, "data"), _of_kind(usable, "verity")
    if datas and verities:
        return "image has data and verity partitions, but of different designators or architectures"
    if datas:
        return "image has a data partition, but its verity partition (the hash tree) is missing"
    if verities:
        return "image has a verity partition, but its data partition (root or usr) is missing"
    return "image has no root or usr data partition and no verity partition"


def _parts(chosen: _Pair, pairs: Sequence[_Pair], signatures: _Signatures, rooms: Sequence[Partition]) -> ImageParts:
    matching = [s for s in signatures if s[1].root_hash == chosen.root_hash]
    if len(matching) > 1:
        raise FormatError(
            f"image has {len(matching)} signature partitions for root hash {chosen.root_hash.hex()}; expected one"
        )
    paired = {pair.root_hash for pair in pairs}
    foreign = sorted({d.root_hash for _, d in signatures if d.root_hash not in paired})
    used = [partition for partition, document in signatures if document.root_hash in paired]
    family = _family(chosen.data)
    return ImageParts(
        designator=family[0],
        data=chosen.data,
        verity=chosen.verity,
        signature=matching[0] if matching else None,
        root_hash=chosen.root_hash,
        unmatched_root_hashes=tuple(foreign),
        vacant=tuple(room for room in rooms if room not in used and _family(room) == family),
    )
