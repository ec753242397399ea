# SPDX-License-Identifier: Apache-2.0
"""Files that stand beside an image or in a trust store, for fuzzing: root hashes, signatures, certificates.

The filesystem beside them is whole and right; what is in its place is the business of `images` and `disks`.
"""

from __future__ import annotations

import base64
import functools
import textwrap
from typing import NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding

from rofs.verity.builder import build_tree
from tests.trust.builders import pair
from tests.verity.doubles import MemoryDevice

from . import der_edits, documents, filesystems
from .edits import TEXT_FLAGS, TEXT_KIND, Program, edit_text

_LENGTH_BYTES = 4
_TEXT_EDIT_KIND = 0xC0  # of these, one in four edits is about the root hash


class BareFilesystem(NamedTuple):
    """A filesystem without a partition table, and its hash tree with superblock."""

    data: bytes
    hashes: bytes
    root_hash: bytes


@functools.cache
def bare_filesystem() -> BareFilesystem:
    """A tiny one, whose file `good` says so."""
    data = filesystems.seeds()[0].data
    hashes = MemoryDevice()
    tree = build_tree(MemoryDevice(data), lambda at, block: hashes.write_at(at, bytes(block)))
    hashes.write_at(0, tree.superblock(bytes(range(16))).pack())
    return BareFilesystem(data, bytes(hashes.content).ljust(tree.hash_device_bytes, b"\0"), tree.root_hash)


def hostile_side_files(program: Program) -> bytes:
    """A root hash file and a signature file; `parted` takes them apart."""
    root_hash = bare_filesystem().root_hash
    texts = (root_hash.hex(), root_hash.hex() + "\n", root_hash.hex().upper(), f"\n {root_hash.hex() * 2}\t\n")
    text = texts[program.seed % len(texts)].encode()
    of_text = [edit for edit in program.edits if edit.kind & _TEXT_EDIT_KIND == _TEXT_EDIT_KIND]
    others = tuple(edit for edit in program.edits if edit not in of_text)
    if program.flags & 0x30 == 0x30:
        for edit in of_text:
            text = edit_text(text, edit)
    signature = documents.hostile_signature(program._replace(edits=others, seed=program.seed >> 2), root_hash)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + signature


def parted(both: bytes) -> tuple[bytes, bytes]:
    """The root hash file and the signature file."""
    end = _LENGTH_BYTES + int.from_bytes(both[:_LENGTH_BYTES], "little")
    return both[_LENGTH_BYTES:end], both[end:]


@functools.cache
def _certificates() -> tuple[tuple[bytes, ...], ...]:
    one, two = pair().certificate.public_bytes(Encoding.DER), pair("rsa3072").certificate.public_bytes(Encoding.DER)
    return (one,), (two,), (one, two)


def hostile_certificates(program: Program) -> bytes:
    """A PEM file of certificates after all edits of their DER; of its text only when the flags say so."""
    which = _certificates()
    roots = [der_edits.parse(der) for der in which[program.seed % len(which)]]
    text_edits = []
    for edit in program.edits:
        if program.flags & TEXT_FLAGS == TEXT_FLAGS and edit.kind & TEXT_KIND:
            text_edits.append(edit)
        else:
            der_edits.edit_der(roots[edit.value % len(roots)], edit)
    text = b"".join(_pem(root.encode()) for root in roots)
    if program.flags & 0x04:  # as openssl writes it
        text = b"Certificate:\n    Data:\n" + text
    for edit in text_edits:
        text = edit_text(text, edit)
    return text


def _pem(der: bytes) -> bytes:
    lines = textwrap.wrap(base64.b64encode(der).decode(), 64)
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""]).encode()
