# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets of what is no image itself: archives to build from, and what an administrator gives.

As in `targets`, using an input tells whether it got past the first check, and whatever leaves but `RofsError`
is a finding.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from rofs.erofs.reader import ErofsReader
from rofs.errors import RofsError
from rofs.image.files import open_file
from rofs.image.open import open_image
from rofs.source.tar import TarSource
from rofs.source.tar_reader import TarReader
from rofs.source.tar_tree import StoredContent
from rofs.source.xattrs import can_be_kept
from rofs.tree import Inode
from rofs.trust.image_policy import DESIGNATORS, parse_image_policy
from rofs.trust.store import DEFAULT_DIRECTORIES, load_default_trust, load_trust
from rofs.trust.verify import TrustPolicy, explain
from tests.erofs.builder import compare_with_tree, write_image
from tests.trees import MemorySource
from tests.trust.builders import OTHER_ROOT_HASH, ROOT_HASH, pair

from . import administration, archives, documents, policies
from .devices import FuzzDevice
from .edits import Program
from .registry import memory_file, scratch, target

_MAX_CONTENT_BYTES = 256 << 10
_WRITE_FLAG = 0x80


# Archives


@target(archives.hostile_archive)
def tar(archive: bytes, program: Program) -> bool:
    """An archive: its whole tree with all contents, and sometimes the filesystem that it becomes."""
    with memory_file(archive) as fd:
        try:
            source = TarSource(fd)
        except RofsError:
            return _has_a_member(fd)
        with contextlib.closing(source):
            is_plain = not archive.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x5d\0\0"))
            contents = {}
            for inode in source.tree.walk():
                _check_inode(inode)
                if inode.is_regular:
                    contents[inode] = _checked_content(source, inode, archive if is_plain else None)
            if program.flags & _WRITE_FLAG:
                _check_written(source, contents)
    return True


def _has_a_member(fd: int) -> bool:
    with contextlib.suppress(RofsError):
        return next(TarReader(fd, 0, "archive").members(), None) is not None
    return False


def _check_inode(inode: Inode) -> None:
    assert stat.S_IFMT(inode.mode) in {
        *(stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK),
        *(stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO),
    }
    assert 0 <= inode.uid < (1 << 32) - 1
    assert 0 <= inode.gid < (1 << 32) - 1
    assert -(1 << 63) <= inode.mtime_ns // 10**9 < 1 << 63
    assert 0 <= inode.size < 1 << 44
    names = [name for name, _ in inode.xattrs]
    assert names == sorted(set(names))
    assert all(map(can_be_kept, names))
    if stat.S_ISLNK(inode.mode):
        assert 0 < len(inode.target) < 4096
        assert b"\0" not in inode.target
    for name in inode.children:
        assert 0 < len(name) < 256
        assert name not in {b".", b".."}
        assert b"/" not in name
        assert b"\0" not in name


def _checked_content(source: TarSource, inode: Inode, archive: bytes | None) -> bytes:
    """The beginning of a content, as far as one wants it in memory: sparse files are as huge as they say."""
    found = bytearray(min(inode.size, _MAX_CONTENT_BYTES))
    end = 0
    for offset, data in source.contents(inode):
        assert data
        assert end <= offset
        end = offset + len(data)
        assert end <= inode.size
        if offset < len(found):
            found[offset:end] = data[: len(found) - offset]
    assert archive is None or found == _expected_content(inode, archive, len(found))
    return bytes(found)


def _expected_content(inode: Inode, archive: bytes, length: int) -> bytearray:
    """The same, put together from what stands in a plain archive."""
    stored = inode.source_key
    assert isinstance(stored, StoredContent)
    pieces = stored.extents if stored.extents is not None else (0, stored.stored_bytes)
    expected, at = bytearray(length), stored.offset
    for start, size in zip(pieces[::2], pieces[1::2], strict=True):
        if start < length:
            expected[start : start + size] = archive[at : at + size][: length - start]
        at += size
    return expected


def _check_written(source: TarSource, contents: dict[Inode, bytes]) -> None:
    """What a filesystem can hold of it comes back from one as it was."""
    if any(inode.size > len(content) for inode, content in contents.items()):
        return
    try:
        written = write_image(source)
    except RofsError:
        return
    for inode, content in contents.items():
        inode.source_key = content
    compare_with_tree(ErofsReader(FuzzDevice(written)), MemorySource(source.tree.root))


# What an administrator gives


@target(policies.hostile_policy)
def image_policy(text: bytes, program: Program) -> bool:
    """A policy: never more open than it is written, whatever the order of its clauses."""
    written = os.fsdecode(text)
    clauses = written.split(":")
    try:
        policy = parse_image_policy(written)
    except RofsError as error:
        assert str(error).isprintable()  # noqa: PT017 - it says what was written
        return all("=" in clause for clause in clauses)
    assert parse_image_policy(policy.text) == policy
    turned = parse_image_policy(":".join(reversed(clauses)))
    for designator in DESIGNATORS:
        assert turned.clause_of(designator).allows == policy.clause_of(designator).allows
    for designator in ("root", "usr"):
        clause = policy.clause_of(designator)
        assert clause.allows
        if clause.allows_unsigned:
            assert written == "*" or any(word in written for word in ("verity", "unprotected", "open"))
        explain(ROOT_HASH, b"", policy=TrustPolicy(image_policy=policy), designator=designator)
        assert not explain(ROOT_HASH, None, policy=TrustPolicy(image_policy=policy)).signers
    return True


@target(administration.hostile_side_files)
def side_files(both: bytes, program: Program) -> bool:
    """A root hash and a signature beside a filesystem: it opens as the one it is, or not at all."""
    bare = administration.bare_filesystem()
    text, signature = administration.parted(both)
    with tempfile.TemporaryDirectory(prefix="rofs-fuzz-", dir=scratch()) as directory:
        image = Path(directory) / "tree.raw"
        image.write_bytes(bare.data)
        image.with_suffix(".verity").write_bytes(bare.hashes)
        kind = ".usrhash" if program.flags & 0x04 else ".roothash"
        image.with_suffix(kind).write_bytes(text)
        if not program.flags & 0x08:
            image.with_suffix(kind + ".p7s").write_bytes(signature)
        assert not _opens(image, TrustPolicy(allow_unsigned=True, pinned_root_hash=OTHER_ROOT_HASH))
        for policy in (
            TrustPolicy(certificates=(pair().trusted,)),
            TrustPolicy(certificates=(pair("rsa3072").trusted,), pinned_root_hash=bare.root_hash),
            TrustPolicy(allow_unsigned=True),
        ):
            _opens(image, policy)
    with contextlib.suppress(ValueError):
        return len(bytes.fromhex(text.decode())) in {32, 64}
    return False


def _opens(image: Path, policy: TrustPolicy) -> bool:
    bare = administration.bare_filesystem()
    try:
        with open_file(os.fspath(image)) as files:
            opened = open_image(files, policy)
            assert opened.root.digest == bare.root_hash
            nid = opened.filesystem.lookup(opened.filesystem.root_nid, b"good")
            assert nid is not None
            assert opened.filesystem.read(nid, 0, 100) == b"good\n"
    except RofsError:
        return False
    return True


@target(administration.hostile_certificates)
def trust_directory(pem: bytes, program: Program) -> bool:
    """A certificate in a trust store: used or said to be skipped, and the good one beside it is used."""
    good = pair("p256", "Bob")
    with tempfile.TemporaryDirectory(prefix="rofs-fuzz-", dir=scratch()) as root:
        directory = Path(root) / DEFAULT_DIRECTORIES[0].lstrip("/")
        directory.mkdir(parents=True)
        hostile = directory / "a.crt"
        hostile.write_bytes(pem)
        (directory / "b.crt").write_bytes(Path(good.certificate_path).read_bytes())
        loaded = load_default_trust(root)
        assert good.trusted.fingerprint in {trusted.fingerprint for trusted in loaded.certificates}
        assert (len(loaded.certificates) > 1) != bool(loaded.skipped)
        with contextlib.suppress(RofsError):
            assert {trusted.path for trusted in load_trust([str(hostile)]).certificates} == {str(hostile)}
    policy = TrustPolicy(certificates=loaded.certificates)
    for signature in documents.signatures():
        assert not explain(OTHER_ROOT_HASH, signature, policy=policy).accepted
        explain(ROOT_HASH, signature, policy=policy)
    return b"-----BEGIN CERTIFICATE-----" in pem
