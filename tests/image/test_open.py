# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

import pytest

from rofs.ddi.gpt import PartitionSpec, plan_gpt, read_gpt
from rofs.ddi.roles import PartitionRole, type_guid_of
from rofs.erofs.writer import write_filesystem
from rofs.errors import CorruptionError, FormatError, InputError, RofsError, TrustError
from rofs.image import open as module
from rofs.image.facts import shown_texts
from rofs.image.identity import UNKNOWN
from rofs.image.open import ImageFacts, open_chosen, open_file, open_image, read_table, reopen_image
from rofs.image.paths import ReverseIndex
from rofs.trust.image_policy import parse_image_policy
from rofs.trust.verify import TrustPolicy
from tests.conftest import SigningKeys
from tests.trees import MemorySource, directory, file
from tests.verity.doubles import MemoryDevice

from .builder import (
    BLOCK,
    ROOT,
    SIGNATURE,
    VERITY,
    Pristine,
    SmallImage,
    build_pristine,
    nids_of,
    read_inode,
    tiny_tree,
)

Defect = Callable[[SmallImage], object]


def read_all(image: SmallImage, policy: TrustPolicy | None = None) -> None:
    with image.open(policy) as opened:
        nids = nids_of(opened.filesystem, image.source)
        for inode in image.source.tree.walk():
            read_inode(opened.filesystem, inode, nids[id(inode)])


def test_a_signed_image(image: SmallImage) -> None:
    read_all(image)
    with image.open() as opened:
        assert opened.facts.accepted_by == "signature"
        assert opened.facts.signer == "CN=rofs tests"
        assert opened.facts.warnings == ()
        assert (opened.identity.name, opened.identity.version) == ("demo", "1")
        assert opened.root.digest == image.root_hash


def test_a_pinned_image(image: SmallImage) -> None:
    read_all(image, image.pinned)
    with image.open(dataclasses.replace(image.keys.policy, pinned_root_hash=image.root_hash)) as opened:
        assert opened.facts.accepted_by == "signature+root-hash"


# Trust


UNSIGNED = [
    pytest.param(lambda i: i.without_signature(), "not signed", id="no signature partition"),
    pytest.param(lambda i: i.retype_partition(SIGNATURE), "not signed", id="another partition type"),
    pytest.param(lambda i: i.zero_partition(SIGNATURE), "not signed", id="zeroed"),
    pytest.param(lambda i: i.fill_partition(SIGNATURE, random.Random(1).randbytes(16384)), "not signed", id="garbage"),
    pytest.param(lambda i: i.fill_partition(SIGNATURE, b"{}"), "not signed", id="empty document"),
    pytest.param(lambda i: i.fill_partition(SIGNATURE, b"[" * 16384), "not signed", id="nested document"),
    pytest.param(lambda i: i.signature_of_another_image(), "another root hash: 0000", id="of another image"),
    pytest.param(lambda i: i.signature_moved_to_this_image(), "not signed by a trusted", id="moved from another image"),
]


@pytest.mark.parametrize(("defect", "reason"), UNSIGNED)
def test_without_a_good_signature_it_is_refused(image: SmallImage, defect: Defect, reason: str) -> None:
    defect(image)
    with pytest.raises(TrustError, match=reason) as caught, image.open():
        pass
    assert len(str(caught.value).splitlines()) == 1
    # Never a silent fall-back; only the operator's own word counts.
    read_all(image, image.pinned)
    read_all(image, dataclasses.replace(image.keys.policy, allow_unsigned=True))


def test_signature_partition_that_is_zeroed_is_not_signed(image: SmallImage) -> None:
    image.zero_partition(SIGNATURE)
    with pytest.raises(TrustError, match="is not signed"), image.open():
        pass


@pytest.mark.parametrize(
    ("defect", "warning"), [(UNSIGNED[n].values[0], w) for n, w in ((2, "sign"), (3, "sign"), (6, "another root hash"))]
)
def test_what_is_wrong_with_the_signature_of_a_pinned_image_is_a_warning(
    image: SmallImage, defect: Defect, warning: str
) -> None:
    defect(image)
    with image.open(image.pinned) as opened:
        (found,) = opened.facts.warnings
        assert warning in found


def test_an_untrusted_signer(image: SmallImage, other_keys: SigningKeys) -> None:
    with pytest.raises(TrustError, match="not signed by a trusted certificate"), image.open(other_keys.policy):
        pass
    image.swap_signature(other_keys)
    with pytest.raises(TrustError, match="not signed by a trusted certificate"), image.open():
        pass
    read_all(image, other_keys.policy)


def test_another_root_hash_is_pinned(image: SmallImage) -> None:
    for policy in (
        TrustPolicy(pinned_root_hash=bytes(32)),
        dataclasses.replace(image.keys.policy, pinned_root_hash=bytes(32)),
    ):
        with pytest.raises(TrustError, match="00000000"), image.open(policy):
            pass


def test_nothing_is_trusted(image: SmallImage) -> None:
    with pytest.raises(TrustError, match="nothing is trusted"), image.open(TrustPolicy()):
        pass


# Structure


@pytest.mark.parametrize(
    ("defect", "reason"),
    [
        pytest.param(lambda i: i.without_partition(ROOT), "data partition .* is missing", id="no data"),
        pytest.param(lambda i: i.without_partition(VERITY), "hash tree", id="no tree"),
        pytest.param(lambda i: i.overlap_partitions(), "overlap", id="overlap"),
        pytest.param(lambda i: i.repeat_partition(ROOT), "same UUID", id="one UUID twice"),
        pytest.param(lambda i: i.zero_partition(VERITY), "verity", id="tree zeroed"),
        pytest.param(lambda i: i.set_verity_superblock(64, "I", 0), "block", id="block size 0"),
        pytest.param(lambda i: i.set_verity_superblock(64, "I", 4097), "block", id="block size 4097"),
        pytest.param(lambda i: i.set_verity_superblock(72, "Q", 1 << 40), "block", id="too many blocks"),
        pytest.param(lambda i: i.set_verity_superblock(80, "H", 65535), "salt", id="salt too long"),
        pytest.param(
            lambda i: i.set_verity_superblock(32, "Q", 0x353264336D), "algorithm|hash", id="unknown algorithm"
        ),
    ],
)
def test_a_malformed_image(image: SmallImage, defect: Defect, reason: str) -> None:
    defect(image)
    for policy in (image.pinned, image.keys.policy):
        with pytest.raises(FormatError, match=reason), image.open(policy):
            pass


@pytest.mark.parametrize(
    ("defect", "warnings"),
    [
        pytest.param(lambda i: i.reverse_partitions(), 0, id="other order"),
        pytest.param(lambda i: i.damage_primary_table(), 1, id="primary damaged"),
        pytest.param(lambda i: i.damage_backup_table(), 1, id="backup damaged"),
        pytest.param(lambda i: i.copy_to_larger_disk(), 1, id="larger disk"),
    ],
)
def test_what_is_harmless(image: SmallImage, defect: Defect, warnings: int) -> None:
    defect(image)
    read_all(image)
    with image.open() as opened:
        assert len(opened.facts.warnings) == warnings


def test_a_salted_superblock_only_makes_the_hash_not_match(image: SmallImage) -> None:
    image.set_verity_superblock(80, "H", 32)
    with pytest.raises(CorruptionError), image.open():
        pass


def test_an_image_truncated_anywhere(image: SmallImage) -> None:
    whole = bytes(image.data)
    parts = image.partitions.values()
    edges = {p.offset_bytes + d for p in parts for d in (-1, 0, 1, 511, 4096, p.length_bytes - 1, p.length_bytes)}
    points = {0, 1, 511, 512, 1023, 1024, 4096, len(whole) - 1, *edges, *range(0, len(whole), 30_011)}
    for point in sorted(points):
        image.data = bytearray(whole[:point])
        for policy in (image.keys.policy, image.pinned):
            try:
                read_all(image, policy)
            except RofsError:
                pass
            else:
                assert point >= max(p.offset_bytes + p.length_bytes for p in parts)


@pytest.mark.parametrize("seed", [2026, *(pytest.param(n, marks=pytest.mark.long) for n in range(30))])
def test_every_block_flipped_is_right_or_refused(image: SmallImage, pristine: Pristine, seed: int) -> None:
    """And each fault names the files it was met in."""
    rng = random.Random(seed)
    with image.open() as opened:
        nids = nids_of(opened.filesystem, image.source)
        data_blocks = opened.device.size_bytes // BLOCK
    refused = named = 0
    for block in range(len(pristine.data) // BLOCK):
        image.data = bytearray(pristine.data)
        image.flip_bit(block * BLOCK + rng.randrange(BLOCK), rng.randrange(8))
        try:
            with image.open(image.pinned) as opened:
                for inode in image.source.tree.walk():
                    try:
                        read_inode(opened.filesystem, inode, nids[id(inode)])
                    except CorruptionError as error:
                        paths = ReverseIndex(opened.filesystem).paths_of_range(
                            *opened.device.covered_range(error.fault)
                        )
                        own = inode.path()
                        # A directory that cannot be read hides the names below it.
                        assert any(own == p or own.startswith(p.rstrip(b"/") + b"/") for p in paths), (
                            block,
                            own,
                            paths,
                        )
                        named += own in paths
        except RofsError:
            refused += 1
    assert named > data_blocks
    assert refused > 1


def test_a_signer_of_a_hostile_filesystem(tmp_path: Path, signing_keys: SigningKeys) -> None:
    """A directory that contains itself, under a good signature: the walk ends, and paths stay finite."""
    from tests.erofs.builder import LyingFilesystem

    lying = LyingFilesystem(directory({b"dir": directory({b"aa": file(), b"cc": directory()})}))
    nid = lying.nid(b"dir")
    reader = lying.set_entry(b"dir", b"cc", nid=nid).reader()
    index = ReverseIndex(reader)
    assert index.paths(nid) == [b"/dir"]
    assert index.paths(lying.nid(b"dir/aa")) == [b"/dir/aa"]
    assert set(index.paths_of_range(0, 1 << 20)) == {b"/", b"/dir", b"/dir/aa"}


# Files


def test_what_is_no_image_file(tmp_path: Path) -> None:
    (tmp_path / "fifo\n").touch()
    (tmp_path / "fifo\n").unlink()
    os.mkfifo(tmp_path / "fifo\n")
    for name, reason in (("none", "No such file"), ("", "a directory"), ("fifo\n", "neither a regular file")):
        with pytest.raises(InputError, match=reason):
            open_file(str(tmp_path / name))


@pytest.mark.parametrize("content", [b"", b"x", bytes(1 << 20), b"EFI PART" * 1000])
def test_what_is_no_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with open_file(str(tmp_path / "file")) as files, pytest.raises(FormatError):
        open_image(files, TrustPolicy(pinned_root_hash=bytes(32)))


def test_a_file_changed_in_place_after_opening(image: SmallImage) -> None:
    with image.open() as opened:
        nid = nids_of(opened.filesystem, image.source)[id(next(i for i in image.source.tree.walk() if i.size > 20_000))]
        offset = opened.facts.data_offset_bytes + list(opened.filesystem.extents(nid))[1].offset_bytes
        opened.filesystem.read(nid, 0, BLOCK)
        with image.path.open("r+b") as file:
            file.seek(offset)
            file.write(b"changed")
        with pytest.raises(CorruptionError):
            opened.filesystem.read(nid, 0, BLOCK)


# Facts


def test_facts_open_the_image_again(image: SmallImage) -> None:
    with image.open() as opened:
        facts = ImageFacts.from_json(opened.facts.to_json())
        assert facts == opened.facts
        fd = os.open(image.path, os.O_RDONLY)
        try:
            again = reopen_image(fd, facts)
            assert nids_of(again.filesystem, image.source) == nids_of(opened.filesystem, image.source)
            os.truncate(image.path, facts.data_offset_bytes + BLOCK)
            with pytest.raises(FormatError):
                reopen_image(fd, facts)
        finally:
            os.close(fd)


@pytest.mark.parametrize(
    "change",
    [
        {"root_hash": 7},
        {"root_hash": "zz"},
        {"root_hash": ""},
        {"superblock": "0"},
        {"superblock": None},
        {"data_offset_bytes": -1},
        {"data_offset_bytes": True},
        {"data_length_bytes": 1.5},
        {"hash_length_bytes": "1"},
        {"warnings": [1]},
        {"warnings": None},
        {"identity": None},
        {"identity": {"name": "x"}},
        {"signer": 5},
        {"unknown": 1},
        {"accepted_by": "magic"},
        {"accepted_by": ""},
        {"accepted_by": "unsigned"},  # but there is a signer
        {"signer": None},
        {"signer": "CN=\x1b[2J"},
        {"signer": "CN=a\nb"},
        {"signer": "x" * 5000},
        {"signer_fingerprint": None},
        {"signer_fingerprint": "ab"},
        {"signer_fingerprint": "AB" * 32},
        {"signer": None, "signer_fingerprint": None},  # but it was accepted by a signature
        {"warnings": ["two\nlines"]},
        {"warnings": ["x" * 5000]},
        {"warnings": ["x"] * 101},
        {"root_hash": "00" * 31},
        {"root_hash": "00" * 64},  # not as long as sha256 makes it
        {"superblock": "00" * 512},
    ],
)
def test_facts_that_lie_are_refused(image: SmallImage, change: dict[str, object]) -> None:
    with image.open() as opened:
        fields = json.loads(opened.facts.to_json())
    with pytest.raises(FormatError, match="verifier's answer"):
        ImageFacts.from_json(json.dumps(fields | change).encode())


def test_a_superblock_of_another_algorithm_or_length_is_refused(image: SmallImage) -> None:
    with image.open() as opened:
        fields = json.loads(opened.facts.to_json())
    superblock = bytes.fromhex(fields["superblock"])
    for lie in (superblock[:32] + b"sha512".ljust(32, b"\0") + superblock[64:], superblock + bytes(1)):
        with pytest.raises(FormatError, match="verifier's answer: "):
            ImageFacts.from_json(json.dumps(fields | {"superblock": lie.hex()}).encode())


def test_texts_of_a_hostile_image_are_made_fit_for_facts() -> None:
    texts = ["plain", "esc \x1b[2J\n", "x" * 5000, *(["more"] * 500)]
    shown = shown_texts(texts)
    assert shown[:2] == ("plain", r"esc \x1b[2J\n")
    assert (len(shown[2]), shown[2][-3:]) == (4096, "...")
    assert (len(shown), shown[-1]) == (100, "and 404 more warnings")
    assert shown_texts(texts[:3]) == shown[:3]


def test_a_table_that_was_read_is_opened_without_reading_it_again(
    image: SmallImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with image.open() as opened:
        fd = os.open(image.path, os.O_RDONLY)
        try:
            untrusted = read_table(fd)
            monkeypatch.setattr(module, "read_gpt", None)
            again = open_chosen(untrusted, image.keys.policy)
            assert again.facts == opened.facts
            with pytest.raises(TrustError):
                open_chosen(untrusted, TrustPolicy())
        finally:
            os.close(fd)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b"{", b"1"])
def test_facts_that_are_none(data: bytes) -> None:
    with pytest.raises(FormatError, match="verifier's answer"):
        ImageFacts.from_json(data)


@pytest.mark.parametrize("field", ["data_offset_bytes", "data_length_bytes", "hash_offset_bytes", "hash_length_bytes"])
@pytest.mark.parametrize("value", [0, 1, 4096, 1 << 40, 1 << 70])
def test_facts_that_point_elsewhere_open_nothing_else(image: SmallImage, field: str, value: int) -> None:
    with image.open() as opened:
        lie = json.dumps(json.loads(opened.facts.to_json()) | {field: value}).encode()
        fd = os.open(image.path, os.O_RDONLY)
        try:
            with pytest.raises(RofsError):
                reopen_image(fd, ImageFacts.from_json(lie))
        finally:
            os.close(fd)


def test_an_image_without_identity(
    tmp_path: Path, image: SmallImage, signing_keys: SigningKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As others make them: nothing is known, and anything may be in it."""
    from rofs.image import build as building

    from .builder import build

    def bare(*arguments: object, **options: object) -> object:
        return write_filesystem(*arguments, **{**options, "root_xattrs": ()})  # type: ignore[arg-type]

    monkeypatch.setattr(building, "write_filesystem", bare)
    monkeypatch.setattr(building, "root_xattrs", lambda *_: ())
    build(image.source, tmp_path / "bare.raw", signing_keys)
    with open_file(str(tmp_path / "bare.raw")) as files:
        assert open_image(files, signing_keys.policy).identity == UNKNOWN


# Identity of images made by others


def test_an_image_of_others_is_named_by_its_os_release(
    tmp_path: Path, signing_keys: SigningKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rofs.image import build as building

    from .builder import build

    monkeypatch.setattr(building, "root_xattrs", lambda *_: ())
    content = b'NAME="x"\nIMAGE_ID=edge\nIMAGE_VERSION="1.2"\n'
    tree = directory({b"usr": directory({b"lib": directory({b"os-release": file(content)})})})
    build(MemorySource(tree), tmp_path / "foreign.raw", signing_keys)
    with open_file(str(tmp_path / "foreign.raw")) as files:
        found = open_image(files, signing_keys.policy).identity
        assert (found.name, found.version, found.rollback_index) == ("edge", "1.2", 0)
        assert (found.acl, found.xattrs) == (True, True)  # nobody has said otherwise


def test_a_partition_label_never_names_an_image(image: SmallImage) -> None:
    label = "evil_9".encode("utf-16-le").ljust(72, b"\0")
    image.edit_entries(lambda entries: [e[:56] + label for e in entries])
    with image.open() as opened:
        assert (opened.identity.name, opened.identity.version) == ("demo", "1")


# Several sets in one table


@dataclasses.dataclass
class TwoSets:
    """A table with the partitions of two images, in any order."""

    path: Path
    root_hashes: tuple[bytes, bytes]

    @classmethod
    def make(cls, path: Path, images: Sequence[bytes], *, seed: int, leave_out: Sequence[int] = ()) -> TwoSets:
        parts = []
        for data in images:
            for partition in read_gpt(MemoryDevice(data)).partitions:
                spec = PartitionSpec(
                    type_guid=partition.type_guid,
                    uuid=partition.uuid,
                    label=partition.label,
                    length_bytes=partition.length_bytes,
                )
                parts.append((spec, data[partition.offset_bytes : partition.offset_bytes + partition.length_bytes]))
        hashes = [parts[n][0].uuid.bytes + parts[n + 1][0].uuid.bytes for n in (0, 3)]
        parts = [part for n, part in enumerate(parts) if n not in leave_out]
        random.Random(seed).shuffle(parts)
        plan = plan_gpt([spec for spec, _ in parts], UUID(int=1))
        whole = bytearray(plan.size_bytes)
        whole[: len(plan.primary)] = plan.primary
        whole[plan.backup_offset_bytes :] = plan.backup
        for offset, (_, content) in zip(plan.offsets_bytes, parts, strict=True):
            whole[offset : offset + len(content)] = content
        path.write_bytes(whole)
        return cls(path, (hashes[0], hashes[1]))


@pytest.fixture(scope="session")
def other_image(tmp_path_factory: pytest.TempPathFactory, signing_keys: SigningKeys) -> bytes:
    path = tmp_path_factory.mktemp("other") / "other.raw"
    return build_pristine(path, signing_keys, tiny_tree()).data


@pytest.mark.parametrize("seed", range(6))
def test_two_sets_in_one_shuffled_table_are_matched_by_root_hash(
    tmp_path: Path, pristine: Pristine, other_image: bytes, signing_keys: SigningKeys, seed: int
) -> None:
    sets = TwoSets.make(tmp_path / "two.raw", (pristine.data, other_image), seed=seed)
    with open_file(str(sets.path)) as files:
        for root_hash, name in zip(sets.root_hashes, (b"tails", b"file"), strict=True):
            both = dataclasses.replace(signing_keys.policy, pinned_root_hash=root_hash)
            for policy in (TrustPolicy(pinned_root_hash=root_hash), both):
                opened = open_image(files, policy)
                assert opened.root.digest == root_hash
                assert opened.filesystem.lookup(opened.filesystem.root_nid, name) is not None
            assert opened.root.accepted_by == "signature+root-hash"
        with pytest.raises(FormatError, match="does not tell which to use; choose with --root-hash"):
            open_image(files, signing_keys.policy)


@pytest.mark.parametrize(
    ("leave_out", "missing"),
    [((0, 3), "data partition"), ((1, 4), "hash tree"), ((0, 1, 3, 4), "no root or usr data partition")],
)
def test_no_complete_set_of_two_says_what_is_missing(
    tmp_path: Path,
    pristine: Pristine,
    other_image: bytes,
    signing_keys: SigningKeys,
    leave_out: tuple[int, ...],
    missing: str,
) -> None:
    sets = TwoSets.make(tmp_path / "two.raw", (pristine.data, other_image), seed=1, leave_out=leave_out)
    with open_file(str(sets.path)) as files, pytest.raises(FormatError, match=missing):
        open_image(files, signing_keys.policy)


def test_half_of_a_second_set_is_passed_over(
    tmp_path: Path, pristine: Pristine, other_image: bytes, signing_keys: SigningKeys
) -> None:
    sets = TwoSets.make(tmp_path / "two.raw", (pristine.data, other_image), seed=3, leave_out=(4,))
    with open_file(str(sets.path)) as files:
        assert open_image(files, signing_keys.policy).root.digest == sets.root_hashes[0]


# Images for /usr only


def as_usr(image: SmallImage) -> SmallImage:
    types = {
        type_guid_of(role, "x86-64").bytes_le: type_guid_of(PartitionRole[role.name.replace("ROOT", "USR")], "x86-64")
        for role in (ROOT, VERITY, SIGNATURE)
    }
    return image.edit_entries(lambda entries: [types[e[:16]].bytes_le + e[16:] for e in entries])


def test_an_image_for_usr_only(image: SmallImage) -> None:
    as_usr(image)
    read_all(image)
    read_all(image, image.pinned)
    fd = os.open(image.path, os.O_RDONLY)
    try:
        assert read_table(fd).designator == "usr"
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("policy", "of_root", "of_usr"),
    [
        ("root=signed", True, False),
        ("usr=signed", False, True),
        ("root=signed:usr=signed", True, True),
        ("=signed", True, True),
        ("root=absent:usr=signed", False, True),
        ("root=signed:=ignore", True, False),
        ("-", False, False),
    ],
)
def test_the_policy_of_what_the_image_is_for_decides(
    image: SmallImage, policy: str, of_root: bool, of_usr: bool
) -> None:
    trust = dataclasses.replace(image.keys.policy, image_policy=parse_image_policy(policy))
    for accepted, change in ((of_root, lambda i: i), (of_usr, as_usr)):
        change(image)
        if accepted:
            read_all(image, trust)
            continue
        with pytest.raises(TrustError, match=f"image policy {policy} does not allow"), image.open(trust):
            pass
