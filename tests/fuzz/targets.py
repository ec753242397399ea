# SPDX-License-Identifier: Apache-2.0
"""The fuzz targets: each makes a hostile input of any bytes, and uses it as the program does.

Using it tells whether it got past the first check (the checksum, the root hash, the syntax), so that a test can
count. Anything that rofs must not do leaves as an exception: any error but `RofsError`, or an `AssertionError`
for wrong data or unbounded work. Hypothesis (`test_targets`) and Atheris (`drive`) run them. Here are those of
images and of running mounts; `input_targets` has the others, and `TARGETS` all of them.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from cryptography.hazmat import asn1

from rofs.audit import show
from rofs.audit.chain import decode_line, read_lines, verify_chain
from rofs.ddi import signature_format
from rofs.ddi.gpt import Partition, read_gpt
from rofs.ddi.parts import select_image_parts
from rofs.ddi.signature_format import SignatureDocument
from rofs.erofs.reader import ErofsReader
from rofs.errors import ChainError, FormatError, RofsError
from rofs.fuse import control, control_server
from rofs.fuse.messages import PathsAnswer, pack_report, parse_report
from rofs.fuse.verifier import unpack_error
from rofs.image.identity import parse_identity
from rofs.image.open import ImageFacts, open_image
from rofs.image.os_release import parse_os_release
from rofs.trust import pkcs7_format
from rofs.trust.pkcs7_format import merge_signed_data, parse_signed_data
from rofs.trust.verify import TrustPolicy, explain
from rofs.verity.device import VerityDevice
from rofs.verity.format import SUPERBLOCK_BYTES, VeritySuperblock
from tests.audit.doubles import open_log
from tests.trust.builders import OTHER_ROOT_HASH, ROOT_HASH, pair

from . import disks, documents, filesystems, images, input_targets
from .devices import FuzzDevice
from .edits import Program
from .registry import TARGETS, Make, Target, memory_file, scratch, target
from .walk import walk

__all__ = ["TARGETS", "Target", "input_targets"]


def _json(valid: Callable[[], tuple[Any, ...]]) -> Make:
    return lambda program: documents.hostile_json(valid(), program)


@target(disks.hostile_disk)
def gpt(disk: bytes, program: Program) -> bool:
    """`read_gpt` and `select_image_parts` over a changed disk."""
    device = FuzzDevice(disk)
    try:
        table = read_gpt(device)
    except RofsError:
        return False
    end = 0
    for partition in sorted(table.partitions, key=lambda p: p.offset_bytes):
        assert end <= partition.offset_bytes < partition.offset_bytes + partition.length_bytes <= device.size_bytes
        end = partition.offset_bytes + partition.length_bytes

    def signature_of(partition: Partition) -> SignatureDocument | None:
        length = min(partition.length_bytes, signature_format.MAX_DOCUMENT_BYTES)
        with contextlib.suppress(FormatError):
            return signature_format.parse(device.read_at(partition.offset_bytes, length))
        return None

    for root_hash in (None, bytes(32), *disks.ROOT_HASHES):
        with contextlib.suppress(RofsError):
            parts = select_image_parts(table, root_hash=root_hash, signature_of=signature_of)
            assert root_hash in {None, parts.root_hash}
    return True


@target(disks.hostile_verity)
def verity(both: bytes, program: Program) -> bool:
    """The superblock, and reads through the tree: every byte that comes out is one that was signed.

    With the signed root hash whatever was changed must be refused or be of no effect; with the root hash made
    right again everything must be read.
    """
    seed = disks.protected_of(len(both))
    content, hashes = both[: seed.data_bytes], both[seed.data_bytes :]
    try:
        superblock = VeritySuperblock.parse(
            hashes[:SUPERBLOCK_BYTES], data_device_bytes=len(content), hash_device_bytes=len(hashes)
        )
    except RofsError:
        return False
    assert VeritySuperblock.parse(superblock.pack(), data_device_bytes=1 << 64, hash_device_bytes=1 << 64) == superblock
    with contextlib.suppress(RofsError):  # the signed root hash may be of another length
        device = VerityDevice(FuzzDevice(content), FuzzDevice(hashes), superblock, seed.root_hash, cache_bytes=4096)
        _use_signed(device, seed.data[: seed.data_bytes], program)
    whole, root_hash = disks.rebuilt(content, hashes, superblock)
    device = VerityDevice(FuzzDevice(content), FuzzDevice(whole), superblock, root_hash)
    assert device.read_at(0, device.size_bytes) == content[: device.size_bytes]
    assert list(device.check_all()) == []
    _read_verified(device, content, program)
    return True


def _use_signed(device: VerityDevice, signed: bytes, program: Program) -> None:
    _read_verified(device, signed, program)
    faults = list(device.check_all())
    assert faults or device.read_at(0, device.size_bytes) == signed[: device.size_bytes]
    for fault in faults:
        start, length = device.covered_range(fault)
        assert 0 <= start <= start + length <= device.size_bytes


def _read_verified(device: VerityDevice, expected: bytes, program: Program) -> None:
    for offset in (0, 1, device.size_bytes - 1, *_numbers(program)):
        for length in (0, 1, 4097):
            with contextlib.suppress(RofsError):
                assert device.read_at(offset, length) == expected[offset : offset + length]


@target(_json(documents.signature_documents))
def signature_json(text: bytes, program: Program) -> bool:
    """The document of a signature partition."""
    try:
        document = signature_format.parse(text.ljust(16384, b"\0"))
    except RofsError:
        return _is_json_object(text)
    assert signature_format.parse(signature_format.pack(document)) == document
    return True


@target(documents.hostile_signature)
def pkcs7(der: bytes, program: Program) -> bool:
    """A signature: parsed, explained, and never accepted for another root hash than the signed one."""
    for policy in _policies():
        assert not explain(OTHER_ROOT_HASH, der, policy=policy).accepted
        explain(ROOT_HASH, der, policy=policy)
    unsigned = explain(OTHER_ROOT_HASH, der, policy=TrustPolicy(allow_unsigned=True))
    assert unsigned.signer is None
    with contextlib.suppress(RofsError):
        assert parse_signed_data(der).signers
        assert parse_signed_data(merge_signed_data(documents.signatures()[0], der)).signers
    with contextlib.suppress(ValueError):  # not of that structure: nothing else has looked at it
        asn1.decode_der(pkcs7_format._ContentInfo, der)
        return True
    return False


@functools.cache
def _policies() -> tuple[TrustPolicy, ...]:
    one, two = pair().trusted, pair("rsa3072").trusted
    return TrustPolicy(certificates=(one, two)), TrustPolicy(certificates=(two,), pinned_root_hash=ROOT_HASH)


@target(filesystems.hostile_filesystem)
def erofs(data: bytes, program: Program) -> bool:
    """A filesystem: its whole tree, as the kernel, the resolver and an attacker use it."""
    try:
        filesystem = ErofsReader(FuzzDevice(data))
    except RofsError:
        return False
    walk(filesystem, _numbers(program))
    return True


@target(filesystems.hostile_filesystem)
def image(data: bytes, program: Program) -> bool:
    """A whole image by a careless signer: any filesystem, under a right root hash, signed by a trusted key."""
    whole, root_hash = images.signed_image(data, pair().key, pair().certificate)
    with memory_file(whole) as fd:
        try:
            opened = open_image(fd, TrustPolicy(certificates=(pair().trusted,)))
        except RofsError:
            return False
        assert opened.root.digest == root_hash
        assert ImageFacts.from_json(opened.facts.to_json()) == opened.facts
        walk(opened.filesystem, _numbers(program)[:2])
    return True


@target(documents.hostile_log)
def audit_log(text: bytes, program: Program) -> bool:
    """A log: read, checked, shown; then continued, which keeps an intact one intact and touches no other."""
    events = 0
    with contextlib.suppress(ChainError):
        for number, line in enumerate(read_lines(io.BytesIO(text)), 1):
            shown = show.render(decode_line(f"line {number}", line))
            assert shown.isprintable()
            events += 1
    intact = True
    try:
        report = verify_chain(read_lines(io.BytesIO(text)))
    except ChainError:
        intact = False
    else:
        assert report.events == events
    _continue_log(text, intact=intact)
    return events > 0 or intact


def _continue_log(text: bytes, *, intact: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="rofs-fuzz-", dir=scratch()) as directory:
        path = Path(directory) / "log"
        path.write_bytes(text)
        try:
            with open_log(path) as log:
                assert log.write("umount", pid=1)
                head = log.head
        except ChainError:
            assert not intact
            assert path.read_bytes() == text
            return
        lines = path.read_bytes()
    if intact:
        assert lines.startswith(text)
        assert verify_chain(io.BytesIO(lines), head).head == head


@target(_json(documents.requests))
def control_request(text: bytes, program: Program) -> bool:
    """What the control socket's server makes of a request line."""
    request = control_server._request(text[:4096] + b"\n")
    assert isinstance(request, dict)
    json.dumps({"error": f"unknown command {request.get('command')!r}"}).encode()  # as the supervisor answers
    return _is_json_object(text)


@target(_json(documents.statuses))
def control_answer(text: bytes, program: Program) -> bool:
    """What the client makes of the answer line of a mount that may be anything."""
    for use in (control.status, control.unmount):
        with _answering(text[:60_000] + b"\n"), contextlib.suppress(RofsError):
            use("/nowhere")
    return _is_json_object(text)


@contextlib.contextmanager
def _answering(text: bytes) -> Iterator[None]:
    """Every connection gets this answer, and nothing that a client waits for takes time."""
    kept: list[socket.socket] = []

    def connect(_directory: str) -> socket.socket:
        ours, theirs = socket.socketpair()
        kept.append(theirs)
        theirs.setblocking(False)
        theirs.send(text)
        theirs.shutdown(socket.SHUT_WR)
        return ours

    with mock.patch.object(control, "connect", connect), mock.patch.object(control, "_END_SECONDS", 0.0):
        try:
            yield
        finally:
            for end in kept:
                end.close()


@target(_json(documents.reports))
def worker_report(text: bytes, program: Program) -> bool:
    """A worker's datagram."""
    try:
        found = parse_report(text)
    except RofsError:
        return _is_json_object(text)
    packed = pack_report(found.report, number=found.number, held_until_ns=found.held_until_ns)
    assert parse_report(packed) == found
    return True


@target(_json(documents.answers))
def process_answer(text: bytes, program: Program) -> bool:
    """What the resolver, the verifier or a process that failed says to a privileged one."""
    with contextlib.suppress(RofsError):
        paths = PathsAnswer.parse(text)
        assert PathsAnswer.parse(paths.pack()) == paths
    with contextlib.suppress(RofsError):
        facts = ImageFacts.from_json(text)
        assert ImageFacts.from_json(facts.to_json()) == facts
    assert isinstance(unpack_error(text), RofsError)
    return _is_json_object(text) or text.startswith(b"[")


@target(_json(documents.identities))
def identity(text: bytes, program: Program) -> bool:
    """What an image says of itself in an xattr of its root."""
    try:
        found = parse_identity(text)
    except RofsError:
        return _is_json_object(text)
    assert parse_identity(found.pack()) == found
    return True


@target(documents.hostile_os_release)
def os_release(text: bytes, program: Program) -> bool:
    """What an image of others says of itself in a file: nothing is an error there."""
    return bool(parse_os_release(text))


def _numbers(program: Program) -> list[int]:
    """Offsets, lengths and nids that no directory names: from the edits themselves."""
    return [edit.value >> (edit.kind % 32) for edit in program.edits[:4]]


def _is_json_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
