# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable

import pytest

from rofs.ddi.gpt import Partition, PartitionTable, read_gpt
from rofs.ddi.parts import ImageParts, select_image_parts
from rofs.ddi.roles import FLAG_NO_AUTO, PartitionRole, type_guid_of
from rofs.ddi.signature_format import SignatureDocument
from rofs.errors import FormatError, TrustError

from .builders import DiskImage, specs_for

ONE, TWO, THREE = (hashlib.sha256(bytes([n])).digest() for n in range(3))


class Sets:
    """Partition tables with several sets, and the documents in their signature partitions."""

    def __init__(self, *root_hashes: bytes, designators: tuple[str, ...] = ()) -> None:
        designators = designators or ("root",) * len(root_hashes)
        specs = [
            spec
            for value, designator in zip(root_hashes, designators, strict=True)
            for spec in specs_for(value, designator=designator)
        ]
        self.partitions = list(read_gpt(DiskImage(specs).device).partitions)
        signatures = [p for p in self.partitions if p.role and p.role.kind == "signature"]
        self.documents = {
            p.uuid: SignatureDocument(value, b"der") for p, value in zip(signatures, root_hashes, strict=True)
        }

    def signature_of(self, partition: Partition) -> SignatureDocument | None:
        return self.documents.get(partition.uuid)

    def remove(self, *kinds: str) -> Sets:
        self.partitions = [p for p in self.partitions if p.role and p.role.kind not in kinds]
        return self

    def relabel(self, root_hash: bytes, label: str) -> Sets:
        mine = {spec.uuid for spec in specs_for(root_hash)}
        self.partitions = [dataclasses.replace(p, label=label) if p.uuid in mine else p for p in self.partitions]
        return self

    def swap_signature(self, root_hash: bytes) -> Sets:
        self.documents = {uuid: SignatureDocument(root_hash, b"der") for uuid in self.documents}
        return self

    def select(self, root_hash: bytes | None = None) -> ImageParts:
        table = PartitionTable(512, tuple(self.partitions), ())
        return select_image_parts(table, root_hash=root_hash, signature_of=self.signature_of)


def test_one_set() -> None:
    parts = Sets(ONE).select()
    assert parts.designator == "root"
    assert parts.root_hash == ONE
    assert parts.data.uuid.hex + parts.verity.uuid.hex == ONE.hex()
    assert parts.signature is not None
    assert parts.signature[1].root_hash == ONE
    assert parts.unmatched_root_hashes == ()


@pytest.mark.parametrize("seed", range(20))
def test_two_sets_in_any_order(seed: int) -> None:
    sets = Sets(ONE, TWO)
    random.Random(seed).shuffle(sets.partitions)
    for value in (ONE, TWO):
        parts = sets.select(value)
        assert (parts.data.uuid.bytes, parts.verity.uuid.bytes) == (value[:16], value[16:])
        assert parts.signature is not None
        assert parts.signature[1].root_hash == value
    with pytest.raises(FormatError, match="--root-hash") as caught:
        sets.select()
    assert ONE.hex() in str(caught.value)
    assert TWO.hex() in str(caught.value)


def test_two_unsigned_sets_are_told_apart_by_the_given_root_hash() -> None:
    sets = Sets(ONE, TWO).remove("signature")
    assert sets.select(TWO).root_hash == TWO
    assert sets.select(TWO).signature is None
    with pytest.raises(FormatError, match="2 data and 2 verity partitions"):
        sets.select()


def test_unsigned_set_needs_no_signature_partition() -> None:
    parts = Sets(ONE).remove("signature").select()
    assert parts.signature is None
    assert parts.root_hash == ONE


def test_swapped_signature_is_no_signature_of_this_set() -> None:
    parts = Sets(ONE).swap_signature(TWO).select()
    assert parts.root_hash == ONE
    assert parts.signature is None
    assert parts.unmatched_root_hashes == (TWO,)


@pytest.mark.parametrize("label", ["_empty", "PRT#demo_2", "PND#demo_2"])
def test_reserved_labels_are_skipped(label: str) -> None:
    assert Sets(ONE, TWO).relabel(TWO, label).select().root_hash == ONE
    assert Sets(ONE, TWO).relabel(ONE, label).select().root_hash == TWO


def test_a_partition_flagged_no_auto_is_skipped() -> None:
    sets = Sets(ONE, TWO)
    of_one = {spec.uuid for spec in specs_for(ONE)}
    sets.partitions = [
        dataclasses.replace(p, flags=p.flags | FLAG_NO_AUTO) if p.uuid in of_one else p for p in sets.partitions
    ]
    assert sets.select().root_hash == TWO
    with pytest.raises(TrustError, match=ONE.hex()):
        sets.select(ONE)


@pytest.mark.parametrize("kind", ["data", "verity", "signature"])
def test_no_auto_on_one_partition_of_a_set(kind: str) -> None:
    sets = Sets(ONE)
    sets.partitions = [
        dataclasses.replace(p, flags=p.flags | FLAG_NO_AUTO) if p.role and p.role.kind == kind else p
        for p in sets.partitions
    ]
    if kind == "signature":
        assert sets.select().signature is None
        return
    with pytest.raises(FormatError, match="is missing; partitions that are flagged no-auto and were skipped: 1"):
        sets.select()


def test_half_a_set_beside_a_whole_one_is_ignored() -> None:
    sets = Sets(ONE, TWO)
    sets.partitions = [p for p in sets.partitions if p.uuid.bytes != TWO[16:]]
    assert sets.select().root_hash == ONE


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (("verity",), r"verity partition \(the hash tree\) is missing"),
        (("data",), r"data partition \(root or usr\) is missing"),
        (("data", "verity"), "no root or usr data partition and no verity partition"),
    ],
)
def test_missing_part_is_named(kinds: tuple[str, ...], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Sets(ONE).remove(*kinds).select()


def test_other_root_hash_than_the_pinned_one() -> None:
    with pytest.raises(TrustError, match=f"{THREE.hex()} expected, the image has {ONE.hex()}"):
        Sets(ONE).select(THREE)


def test_root_and_usr_do_not_pair() -> None:
    sets = Sets(ONE, TWO, designators=("root", "usr"))
    assert sets.select(TWO).designator == "usr"
    sets.remove("signature")
    sets.partitions = [sets.partitions[0], sets.partitions[3]]
    with pytest.raises(FormatError, match="different designators"):
        sets.select()


def test_architectures_do_not_pair() -> None:
    sets = Sets(ONE).remove("signature")
    arm = type_guid_of(PartitionRole.ROOT_VERITY, "arm64")
    sets.partitions[1] = dataclasses.replace(sets.partitions[1], type_guid=arm)
    with pytest.raises(FormatError, match="architectures"):
        sets.select()


def _twice(kind: str) -> Callable[[Sets], None]:
    def double(sets: Sets) -> None:
        (part,) = (p for p in sets.partitions if p.role and p.role.kind == kind)
        sets.partitions.append(dataclasses.replace(part, offset_bytes=0))

    return double


@pytest.mark.parametrize(
    ("double", "message"),
    [
        (_twice("data"), "several data partitions of the same UUID"),
        (_twice("verity"), "several verity partitions of the same UUID"),
        (_twice("signature"), "2 signature partitions"),
    ],
)
def test_ambiguous_twins(double: Callable[[Sets], None], message: str) -> None:
    sets = Sets(ONE)
    double(sets)
    with pytest.raises(FormatError, match=message):
        sets.select()


def test_error_of_the_signature_reader_passes_through() -> None:
    def damaged(partition: Partition) -> SignatureDocument | None:
        raise FormatError(f"damaged {partition.label}")

    table = PartitionTable(512, tuple(Sets(ONE).partitions), ())
    with pytest.raises(FormatError, match="damaged demo_1"):
        select_image_parts(table, signature_of=damaged)


def test_room_for_a_signature_is_what_holds_none_for_any_pair() -> None:
    sets = Sets(ONE)
    (room,) = [p for p in sets.partitions if p.role and p.role.kind == "signature"]
    assert sets.select().vacant == ()
    sets.documents = {}
    assert sets.select().vacant == (room,)
    assert Sets(ONE).swap_signature(TWO).select().vacant == (room,)
    assert Sets(ONE).remove("signature").select().vacant == ()


def test_the_signature_of_another_set_is_no_room() -> None:
    sets = Sets(ONE, TWO)
    (of_one,) = [uuid for uuid, document in sets.documents.items() if document.root_hash == ONE]
    del sets.documents[of_one]
    assert [room.uuid for room in sets.select(ONE).vacant] == [of_one]


@pytest.mark.parametrize("designator", ["root", "usr"])
def test_room_for_a_signature_is_of_the_same_designator(designator: str) -> None:
    sets = Sets(ONE, TWO, designators=("root", "usr"))
    sets.documents = {}
    (room,) = sets.select(ONE if designator == "root" else TWO).vacant
    assert room.role is not None
    assert room.role.designator == designator
