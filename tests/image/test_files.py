# SPDX-License-Identifier: Apache-2.0
"""Bare filesystems with side files: each file is opened once, and what it says is only a claim."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from rofs.errors import CorruptionError, FormatError, InputError, TrustError
from rofs.image.files import open_file
from rofs.image.open import ImageFacts, VerifiedImage, open_image, read_table, reopen_image
from rofs.trust import pkcs7
from rofs.trust.verify import TrustPolicy
from tests.conftest import SigningKeys

from .builder import BLOCK, ROOT, VERITY, Pristine, SmallImage, nids_of, read_inode


class SideBySide:
    """A bare filesystem and its side files; every method is named after the defect it puts in."""

    def __init__(self, directory: Path, image: SmallImage, *, stem: str = "tree", suffix: str = ".raw") -> None:
        self.source, self.root_hash, self.keys = image.source, image.root_hash, image.keys
        self.path, self.stem = directory / f"{stem}{suffix}", directory / stem
        for role, path in ((ROOT, self.path), (VERITY, self.side("verity"))):
            part = image.partitions[role]
            path.write_bytes(image.data[part.offset_bytes : part.offset_bytes + part.length_bytes])
        self.side("roothash").write_text(f"{self.root_hash.hex()}\n")
        self.side("roothash.p7s").write_bytes(pkcs7.sign(self.root_hash, self.keys.key, self.keys.certificate))

    def side(self, suffix: str) -> Path:
        return self.stem.with_name(f"{self.stem.name}.{suffix}")

    def without(self, suffix: str) -> SideBySide:
        self.side(suffix).unlink()
        return self

    def for_usr(self) -> SideBySide:
        for suffix in ("", ".p7s"):
            self.side(f"roothash{suffix}").rename(self.side(f"usrhash{suffix}"))
        return self

    def read_all(self, policy: TrustPolicy | None = None) -> ImageFacts:
        with open_file(str(self.path)) as files:
            opened = open_image(files, policy if policy is not None else self.keys.policy)
            self._read(opened)
            return opened.facts

    def _read(self, opened: VerifiedImage) -> None:
        nids = nids_of(opened.filesystem, self.source)
        for inode in self.source.tree.walk():
            read_inode(opened.filesystem, inode, nids[id(inode)])


@pytest.fixture
def bare(tmp_path: Path, pristine: Pristine, signing_keys: SigningKeys) -> SideBySide:
    return SideBySide(tmp_path, SmallImage(tmp_path / "unused", pristine, signing_keys))


def test_a_signed_filesystem_with_side_files(bare: SideBySide) -> None:
    facts = bare.read_all()
    assert (facts.accepted_by, facts.data_offset_bytes, facts.hash_offset_bytes) == ("signature", 0, 0)


@pytest.mark.parametrize(("stem", "suffix"), [("tree", ""), ("tree.erofs", ""), ("a.raw", ".raw"), ("x\udcff", ".raw")])
def test_side_files_are_named_after_the_image_without_raw(
    tmp_path: Path, pristine: Pristine, signing_keys: SigningKeys, stem: str, suffix: str
) -> None:
    image = SmallImage(tmp_path / "unused", pristine, signing_keys)
    SideBySide(tmp_path, image, stem=stem, suffix=suffix).read_all()


def test_a_filesystem_for_usr(bare: SideBySide) -> None:
    bare.for_usr().read_all()
    with open_file(str(bare.path)) as files:
        assert read_table(files).designator == "usr"


def test_without_a_signature_it_is_refused(bare: SideBySide) -> None:
    bare.without("roothash.p7s")
    with pytest.raises(TrustError, match="is not signed"):
        bare.read_all()
    bare.read_all(TrustPolicy(pinned_root_hash=bare.root_hash))
    assert bare.read_all(TrustPolicy(allow_unsigned=True)).accepted_by == "unsigned"


def test_a_signature_of_somebody_else(bare: SideBySide, other_keys: SigningKeys) -> None:
    with pytest.raises(TrustError, match="not signed by a trusted certificate"):
        bare.read_all(other_keys.policy)


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN PKCS7-----\n"])
def test_a_signature_that_is_none(bare: SideBySide, content: bytes) -> None:
    bare.side("roothash.p7s").write_bytes(content)
    with pytest.raises(TrustError, match="PKCS#7 signature is malformed"):
        bare.read_all()


def test_another_root_hash_than_the_pinned_one(bare: SideBySide) -> None:
    with pytest.raises(TrustError, match="is pinned"):
        bare.read_all(dataclasses.replace(bare.keys.policy, pinned_root_hash=bytes(32)))


def test_a_root_hash_that_is_not_that_of_the_tree(bare: SideBySide) -> None:
    bare.side("roothash").write_text("00" * 32)
    with pytest.raises(TrustError, match="does not match the root hash"):
        bare.read_all()
    with pytest.raises(CorruptionError):
        bare.read_all(TrustPolicy(allow_unsigned=True))


@pytest.mark.parametrize("content", [b"", b"\n", b"00" * 31, b"zz" * 32, b"00" * 32 + b" x", b"\xff" * 64, b"0x" * 32])
def test_a_root_hash_file_without_one(bare: SideBySide, content: bytes) -> None:
    bare.side("roothash").write_bytes(content)
    with pytest.raises(FormatError, match=r"tree\.roothash: 64 or 128 hex digits expected"):
        bare.read_all()


def test_a_missing_root_hash_file_can_be_made_good_by_pinning(bare: SideBySide) -> None:
    bare.without("roothash")
    with pytest.raises(InputError, match=r"tree\.roothash is missing"):
        bare.read_all()
    both = dataclasses.replace(bare.keys.policy, pinned_root_hash=bare.root_hash)
    assert bare.read_all(both).accepted_by == "signature+root-hash"


def test_a_missing_hash_tree_is_named(bare: SideBySide) -> None:
    bare.without("verity")
    with pytest.raises(InputError, match=r"bare filesystem.*tree\.verity: No such file"):
        open_file(str(bare.path))


@pytest.mark.parametrize("suffix", ["verity", "roothash", "roothash.p7s"])
@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_side_files_that_are_no_files(bare: SideBySide, suffix: str, kind: str) -> None:
    path = bare.without(suffix).side(suffix)
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(InputError, match=rf"tree\.{suffix}"):
        bare.read_all()
    assert os.listdir("/proc/self/fd") == before


def test_a_huge_side_file_is_not_read(bare: SideBySide) -> None:
    os.truncate(bare.side("roothash.p7s"), 1 << 40)
    with pytest.raises(InputError, match="more than 1048576 bytes"):
        bare.read_all()


def test_a_flipped_byte_in_the_filesystem_or_the_tree(bare: SideBySide) -> None:
    for path, offset in ((bare.path, 5 * BLOCK), (bare.side("verity"), BLOCK + 7)):
        whole = path.read_bytes()
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(CorruptionError):
            bare.read_all()
        path.write_bytes(whole)
    bare.read_all()


def test_side_files_beside_a_disk_image_mean_nothing(image: SmallImage) -> None:
    image.path.with_suffix(".roothash").write_text("00" * 32)
    image.path.with_suffix(".verity").mkdir()
    with image.open():
        pass
    with open_file(str(image.path)) as files:
        assert files.side is None
        assert open_image(files, image.keys.policy).root.digest == image.root_hash


def test_replaced_after_opening_they_stay_what_was_checked(bare: SideBySide) -> None:
    with open_file(str(bare.path)) as files:
        facts = ImageFacts.from_json(open_image(files, bare.keys.policy).facts.to_json())
        for path in (bare.path, bare.side("verity"), bare.side("roothash"), bare.side("roothash.p7s")):
            path.unlink()
        bare._read(reopen_image(files, facts))


def test_each_file_is_opened_once_and_closed(bare: SideBySide) -> None:
    before = os.listdir("/proc/self/fd")
    with open_file(str(bare.path)) as files:
        assert len(files.fds) == 2
        assert all(not os.get_inheritable(fd) for fd in files.fds)
        open_image(files, bare.keys.policy)
        assert len(os.listdir("/proc/self/fd")) == len(before) + 2
    assert os.listdir("/proc/self/fd") == before
