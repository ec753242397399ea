# SPDX-License-Identifier: Apache-2.0
"""Signing what exists: in place, nothing lost, and nothing wrong accepted whatever moment the power goes."""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rofs import durable
from rofs.errors import HostError, ImageError, InputError, RofsError, TrustError
from rofs.image.build import SigningKey, build_image
from rofs.image.files import open_file
from rofs.image.open import open_image
from rofs.image.sign import SignedImage, add_signature, sign_image
from rofs.trust import pkcs7
from rofs.trust.verify import TrustPolicy
from tests.conftest import SigningKeys, make_keys
from tests.trust.builders import Pair, needs_openssl, openssl_sign

from .builder import ROOT, SIGNATURE, Pristine, SmallImage
from .test_files import SideBySide


def key_of(keys: SigningKeys) -> SigningKey:
    return SigningKey(keys.key, keys.certificate)


def sign(path: Path, keys: SigningKeys) -> SignedImage:
    with open_file(str(path), writable=True) as files:
        return sign_image(files, str(path), key_of(keys))


def add(path: Path, der: bytes, *keys: SigningKeys) -> SignedImage:
    with open_file(str(path), writable=True) as files:
        return add_signature(files, str(path), der, [key_of(k).trusted for k in keys])


def accepts(path: Path, policy: TrustPolicy) -> bool:
    with open_file(str(path)) as files:
        try:
            return open_image(files, policy).root.accepted_by == "signature"
        except TrustError:
            return False


@pytest.fixture
def unsigned(image: SmallImage) -> SmallImage:
    """As `build --unsigned` makes it."""
    image.zero_partition(SIGNATURE)
    image.path.write_bytes(image.data)
    return image


@pytest.fixture(scope="session")
def third_keys(tmp_path_factory: pytest.TempPathFactory) -> SigningKeys:
    return make_keys(tmp_path_factory.mktemp("keys") / "third", "rsa3072")


def test_built_unsigned_and_signed_later_it_is_the_same_image(
    tmp_path: Path, pristine: Pristine, signing_keys: SigningKeys
) -> None:
    path = tmp_path / "unsigned.raw"
    built = build_image(pristine.source, str(path), None, name="demo", version="1")
    assert built.root_hash == pristine.built.root_hash
    assert not accepts(path, signing_keys.policy)
    sign(path, signing_keys)
    assert accepts(path, signing_keys.policy)
    image = SmallImage(tmp_path / "x", pristine, signing_keys)
    part = image.partitions[SIGNATURE]
    outside = slice(0, part.offset_bytes), slice(part.offset_bytes + part.length_bytes, None)
    assert [path.read_bytes()[s] for s in outside] == [bytes(image.data)[s] for s in outside]


def test_each_signer_is_added_and_none_is_lost(
    unsigned: SmallImage, signing_keys: SigningKeys, other_keys: SigningKeys, third_keys: SigningKeys
) -> None:
    everybody = (signing_keys, other_keys, third_keys)
    for count, keys in enumerate(everybody, 1):
        signed = sign(unsigned.path, keys)
        assert len(signed.signers) == count
        assert [accepts(unsigned.path, k.policy) for k in everybody] == [n < count for n in range(3)]
    assert len(sign(unsigned.path, other_keys).signers) == 3  # renewed


def test_a_corrupt_image_is_not_signed(unsigned: SmallImage, signing_keys: SigningKeys) -> None:
    unsigned.corrupt_block(20)
    unsigned.path.write_bytes(unsigned.data)
    with pytest.raises(ImageError, match="not signed, because it is corrupt: data block 20"):
        sign(unsigned.path, signing_keys)
    assert unsigned.path.read_bytes() == unsigned.data


def test_an_image_without_room_for_a_signature(image: SmallImage, signing_keys: SigningKeys) -> None:
    image.without_signature()
    image.path.write_bytes(image.data)
    with pytest.raises(InputError, match="no root-verity-sig partition"):
        sign(image.path, signing_keys)
    assert image.path.read_bytes() == image.data


@pytest.mark.parametrize("content", [b"\0\0garbage", b"{}", b"{" * 600])
def test_what_a_power_cut_left_in_the_partition_is_replaced_and_told(
    image: SmallImage, signing_keys: SigningKeys, content: bytes
) -> None:
    image.fill_partition(SIGNATURE, content)
    image.path.write_bytes(image.data)
    assert sign(image.path, signing_keys).replaced
    assert accepts(image.path, signing_keys.policy)


def test_a_signature_of_another_image_is_replaced_and_told(image: SmallImage, signing_keys: SigningKeys) -> None:
    image.signature_of_another_image()
    image.path.write_bytes(image.data)
    assert sign(image.path, signing_keys).replaced == f"a signature for root hash {bytes(32).hex()}"
    assert accepts(image.path, signing_keys.policy)


def test_a_signature_partition_that_is_too_small(image: SmallImage, third_keys: SigningKeys) -> None:
    def shorten(entries: list[bytes]) -> list[bytes]:
        short = [e[:40] + e[32:40] + e[48:] for e in entries[2:]]  # one sector
        return entries[:2] + short

    image.zero_partition(SIGNATURE).edit_entries(shorten)
    image.path.write_bytes(image.data)
    with pytest.raises(InputError, match="has room for 512"):
        sign(image.path, third_keys)
    assert image.path.read_bytes() == image.data


class TestSignatureMadeElsewhere:
    def test_it_is_added(self, unsigned: SmallImage, signing_keys: SigningKeys, other_keys: SigningKeys) -> None:
        sign(unsigned.path, signing_keys)
        der = pkcs7.sign(unsigned.root_hash, other_keys.key, other_keys.certificate)
        assert len(add(unsigned.path, der, other_keys).signers) == 2
        assert accepts(unsigned.path, other_keys.policy)
        assert accepts(unsigned.path, signing_keys.policy)

    @needs_openssl
    @pytest.mark.parametrize("options", [["-noattr"], [], ["-nocerts"]])
    def test_made_by_openssl(self, unsigned: SmallImage, signing_keys: SigningKeys, options: list[str]) -> None:
        add(unsigned.path, by_openssl(signing_keys, unsigned.root_hash, *options), signing_keys)
        assert accepts(unsigned.path, signing_keys.policy)

    @needs_openssl
    def test_of_another_root_hash_it_is_refused(self, unsigned: SmallImage, signing_keys: SigningKeys) -> None:
        for der in (by_openssl(signing_keys, bytes(32)), by_openssl(signing_keys, bytes(32), "-noattr")):
            with pytest.raises(TrustError):
                add(unsigned.path, der, signing_keys)
        assert unsigned.path.read_bytes() == unsigned.data

    def test_of_another_key_it_is_refused(
        self, unsigned: SmallImage, signing_keys: SigningKeys, other_keys: SigningKeys
    ) -> None:
        der = pkcs7.sign(unsigned.root_hash, signing_keys.key, signing_keys.certificate)
        with pytest.raises(TrustError, match="not signed by a trusted certificate"):
            add(unsigned.path, der, other_keys)
        assert unsigned.path.read_bytes() == unsigned.data

    def test_every_signer_of_it_must_verify(
        self, unsigned: SmallImage, signing_keys: SigningKeys, other_keys: SigningKeys
    ) -> None:
        ders = [pkcs7.sign(unsigned.root_hash, k.key, k.certificate) for k in (signing_keys, other_keys)]
        both = pkcs7.merge_signed_data(*ders)
        with pytest.raises(TrustError, match="a signer that no given certificate verifies"):
            add(unsigned.path, both, signing_keys)
        assert len(add(unsigned.path, both, signing_keys, other_keys).signers) == 2

    @needs_openssl
    def test_what_systemd_could_not_read_is_refused(self, unsigned: SmallImage, signing_keys: SigningKeys) -> None:
        der = by_openssl(signing_keys, unsigned.root_hash, "-keyid", "-noattr", command="cms")
        with pytest.raises(InputError, match="key identifier"):
            add(unsigned.path, der, signing_keys)


def by_openssl(keys: SigningKeys, root_hash: bytes, *options: str, command: str = "smime") -> bytes:
    signer = Pair(str(keys.key_path), str(keys.certificate_path), keys.key, keys.certificate)
    return openssl_sign(signer, *options, command=command, content=root_hash.hex().encode())


def test_a_bare_filesystem_is_signed_beside_it(
    tmp_path: Path, pristine: Pristine, signing_keys: SigningKeys, other_keys: SigningKeys
) -> None:
    bare = SideBySide(tmp_path, SmallImage(tmp_path / "unused", pristine, signing_keys)).without("roothash.p7s")
    before = bare.path.read_bytes()
    sign(bare.path, signing_keys)
    der = pkcs7.sign(bare.root_hash, other_keys.key, other_keys.certificate)
    assert len(add(bare.path, der, other_keys).signers) == 2
    assert bare.read_all().accepted_by == bare.read_all(other_keys.policy).accepted_by == "signature"
    assert bare.path.read_bytes() == before


def test_two_at_once_do_not_mix(unsigned: SmallImage, signing_keys: SigningKeys) -> None:
    with unsigned.path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(HostError, match="being changed by another process"):
            sign(unsigned.path, signing_keys)
    assert unsigned.path.read_bytes() == unsigned.data


def test_several_sets_are_told_apart_by_the_root_hash(
    tmp_path: Path, pristine: Pristine, signing_keys: SigningKeys, other_keys: SigningKeys
) -> None:
    from .builder import build_pristine, tiny_tree
    from .test_open import TwoSets

    other = build_pristine(tmp_path / "other.raw", signing_keys, tiny_tree()).data
    sets = TwoSets.make(tmp_path / "two.raw", (pristine.data, other), seed=5)
    for root_hash in sets.root_hashes:
        with open_file(str(sets.path), writable=True) as files:
            sign_image(files, str(sets.path), key_of(other_keys), root_hash=root_hash)
            policy = dataclasses.replace(other_keys.policy, pinned_root_hash=root_hash)
            assert open_image(files, policy).root.accepted_by == "signature+root-hash"


# Power cuts


class Recorder(durable.Calls):
    """Every write with what was synced before it."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, bytes]]] = [[]]

    def pwrite(self, fd: int, data: bytes | memoryview, offset_bytes: int) -> int:
        length = min(len(data), 3000)  # short writes, too
        self.batches[-1].append((offset_bytes, bytes(data[:length])))
        return super().pwrite(fd, data[:length], offset_bytes)

    def fsync(self, fd: int) -> None:
        self.batches.append([])
        super().fsync(fd)


def states_after_a_power_cut(before: bytes, batches: list[list[tuple[int, bytes]]]) -> Iterator[bytes]:
    """Any sectors of the batch that was not synced may have reached the medium: each alone, all but each, prefixes."""
    disk = bytearray(before)
    for batch in batches:
        sectors = [(offset + at, data[at : at + 512]) for offset, data in batch for at in range(0, len(data), 512)]
        count = len(sectors)
        chosen = [set(range(n)) for n in range(count + 1)] + [{n} for n in range(count)]
        for subset in chosen + [set(range(count)) - one for one in chosen[count + 1 :]]:
            state = bytearray(disk)
            for n in subset:
                offset, data = sectors[n]
                state[offset : offset + len(data)] = data
            yield bytes(state)
        for offset, data in sectors:
            disk[offset : offset + len(data)] = data


@pytest.mark.parametrize("present", ["nothing", "one signer"])
def test_a_power_cut_leaves_the_old_signature_the_new_or_none(
    image: SmallImage, signing_keys: SigningKeys, third_keys: SigningKeys, present: str
) -> None:
    if present == "nothing":
        image.zero_partition(SIGNATURE)
    image.path.write_bytes(image.data)
    recorder = Recorder()
    with durable.using(recorder):
        sign(image.path, third_keys)
    after = image.path.read_bytes()
    part = image.partitions[SIGNATURE]
    seen = set()
    for state in states_after_a_power_cut(bytes(image.data), recorder.batches):
        assert state[: part.offset_bytes] == after[: part.offset_bytes]
        image.path.write_bytes(state)
        found = accepts(image.path, signing_keys.policy), accepts(image.path, third_keys.policy)
        old, new = (present == "one signer", False), (present == "one signer", True)
        assert found in {old, new, (False, False)}
        seen.add(found)
        assert accepts(image.path, dataclasses.replace(image.pinned)) is False  # by its root hash only
    assert len(seen) == (2 if present == "nothing" else 3)
    assert accepts(image.path, third_keys.policy)
    # And whatever was left, signing again mends it.
    for state in itertools.islice(states_after_a_power_cut(bytes(image.data), recorder.batches), 0, None, 7):
        image.path.write_bytes(state)
        sign(image.path, third_keys)
        assert accepts(image.path, third_keys.policy)


@pytest.mark.parametrize("failing", range(3))
def test_a_failing_disk_is_an_error_and_never_a_wrong_signature(
    unsigned: SmallImage, signing_keys: SigningKeys, failing: int
) -> None:
    class Failing(durable.Calls):
        syncs = 0

        def fsync(self, fd: int) -> None:
            if self.syncs == failing:
                raise OSError(5, "Input/output error")
            self.syncs += 1
            super().fsync(fd)

    with durable.using(Failing()), pytest.raises(HostError, match="Input/output error"):
        sign(unsigned.path, signing_keys)
    sign(unsigned.path, signing_keys)
    assert accepts(unsigned.path, signing_keys.policy)


def test_only_the_signature_partition_is_written(unsigned: SmallImage, signing_keys: SigningKeys) -> None:
    recorder = Recorder()
    with durable.using(recorder):
        sign(unsigned.path, signing_keys)
    part = unsigned.partitions[SIGNATURE]
    for offset, data in itertools.chain(*recorder.batches):
        assert part.offset_bytes <= offset
        assert offset + len(data) <= part.offset_bytes + part.length_bytes


def test_a_truncated_image_is_not_signed(unsigned: SmallImage) -> None:
    os.truncate(unsigned.path, unsigned.partitions[ROOT].offset_bytes)
    with pytest.raises(RofsError), open_file(str(unsigned.path), writable=True) as files:
        sign_image(files, str(unsigned.path), key_of(unsigned.keys))
