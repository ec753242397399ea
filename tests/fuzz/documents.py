# SPDX-License-Identifier: Apache-2.0
"""Valid JSON documents, PKCS#7 signatures and audit logs for fuzzing, and logs whose chain is right again."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from rofs.audit.event import GENESIS
from rofs.ddi import signature_format
from rofs.ddi.signature_format import SignatureDocument
from rofs.errors import FormatError, TrustError
from rofs.fuse.messages import Attempt, FaultReport, InternalReport, PathsAnswer, pack_report
from rofs.fuse.verifier import pack_error
from rofs.image.identity import Identity
from rofs.image.open import ImageFacts
from rofs.trust.keys import KeyType, subject_key_id
from rofs.trust.pkcs7 import sign, signed_bytes
from rofs.verity.format import VeritySuperblock
from tests.audit.doubles import open_log
from tests.trust.builders import ROOT_HASH, pair

from . import der_edits
from .edits import TEXT_FLAGS, TEXT_KIND, Program, edit_text
from .json_edits import edit_value, edited_json

_SIGN_FLAG = 0x80
_ATTRIBUTES_TAG, _SET_TAG, _OCTET_STRING_TAG = 0xA0, 0x31, 0x04
_OS_RELEASE = rb"""# comment
ID=debian
IMAGE_ID="a \"quoted\" \$name"
IMAGE_VERSION='1.2'
PRETTY_NAME=un\ quoted
"""

IDENTITY = Identity("fuzz", "1.2", 3, 1_700_000_000, acl=True, xattrs=False)
FACTS = ImageFacts(
    root_hash="ab" * 32,
    accepted_by="signature",
    signer="CN=fuzz",
    signer_fingerprint="cd" * 32,
    identity=IDENTITY,
    data_offset_bytes=1 << 20,
    data_length_bytes=1 << 20,
    hash_offset_bytes=2 << 20,
    hash_length_bytes=1 << 16,
    superblock=VeritySuperblock(bytes(16), "sha256", 4096, 4096, 256, b"").pack().hex(),
    warnings=("one",),
)


def identities() -> tuple[Any, ...]:
    """What the xattr of an image's root may say."""
    return json.loads(IDENTITY.pack()), json.loads(Identity(None, None, 0, 0, acl=False, xattrs=False).pack())


@functools.cache
def signature_documents() -> tuple[Any, ...]:
    """With and without a fingerprint."""
    der = sign(ROOT_HASH, pair().key, pair().certificate)
    documents = (SignatureDocument(ROOT_HASH, der, bytes(32)), SignatureDocument(ROOT_HASH * 2, b"\x30\x00"))
    return tuple(json.loads(signature_format.pack(document).rstrip(b"\0")) for document in documents)


@functools.cache
def signatures(root_hash: bytes = ROOT_HASH) -> tuple[bytes, ...]:
    """With and without signed attributes and certificates, by ECDSA, RSA and both, signers named in both ways."""
    options = [pkcs7.PKCS7Options.DetachedSignature, pkcs7.PKCS7Options.Binary]
    found = [sign(root_hash, pair().key, pair().certificate)]
    variants: list[tuple[tuple[KeyType, ...], list[pkcs7.PKCS7Options]]] = [
        (("p256",), []),
        (("rsa3072",), [pkcs7.PKCS7Options.NoAttributes]),
        (("p256", "rsa3072"), [pkcs7.PKCS7Options.NoCerts]),
    ]
    for types, more in variants:
        builder = pkcs7.PKCS7SignatureBuilder().set_data(signed_bytes(root_hash))
        for key_type in types:
            signer = pair() if key_type == "p256" else pair(key_type)
            builder = builder.add_signer(signer.certificate, signer.key, hashes.SHA256())
        found.append(builder.sign(Encoding.DER, [*options, *more]))
    found.append(_by_key_identifier(found[0]))
    return tuple(found)


def _by_key_identifier(der: bytes) -> bytes:
    """The same signature, its signer named in the other way (RFC 5652 section 5.3)."""
    root = der_edits.parse(der)
    signed_data = root.children[1].children[0]
    signer = signed_data.children[-1].children[0]
    signed_data.children[0].content = signer.children[0].content = b"\x03"
    signer.children[1] = der_edits.Node(0x80, subject_key_id(pair().certificate) or b"")
    return root.encode()


def hostile_signature(program: Program, root_hash: bytes = ROOT_HASH) -> bytes:
    """A signature after all edits of its DER, whose lengths stay right unless the flags say otherwise."""
    which = signatures(root_hash)
    root = der_edits.parse(which[program.seed % len(which)])
    text_edits = []
    for edit in program.edits:
        if program.flags & TEXT_FLAGS == TEXT_FLAGS and edit.kind & TEXT_KIND:
            text_edits.append(edit)
        else:
            der_edits.edit_der(root, edit)
    if program.flags & _SIGN_FLAG:
        _sign_attributes(root)
    der = root.encode()
    for edit in text_edits:
        der = edit_text(der, edit)
    return der


def _sign_attributes(root: der_edits.Node) -> None:
    """Make the signature over signed attributes right again, whatever they are now (RFC 5652 section 5.4)."""
    for node in root.walk():
        attributes = [child for child in node.children if child.tag == _ATTRIBUTES_TAG]
        if attributes and node.children[-1].tag == _OCTET_STRING_TAG:
            signed = der_edits.Node(_SET_TAG, attributes[0].content, attributes[0].children).encode()
            key = pair().key
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            node.children[-1].content = key.sign(signed, ec.ECDSA(hashes.SHA256()))


def reports() -> tuple[Any, ...]:
    """Datagrams of a worker."""
    attempt = Attempt(
        op="rename", nid=40, tid=7, uid=1000, gid=1000, errno="EROFS", name="a", nid2=36, name2="b", flags=("O_EXCL",)
    )
    fault = FaultReport(nid=40, kind="mismatch", level=-1, block=3, expected="ab" * 32, found="cd" * 32)
    some = (attempt, fault, InternalReport(nid=None, detail="what happened"))
    return tuple(json.loads(pack_report(report, number=1, held_until_ns=5)) for report in some)


def answers() -> tuple[Any, ...]:
    """Answers of the resolver, of the verifier, and errors of other processes, in this order."""
    return (
        json.loads(PathsAnswer(("/a", "/b\\xff"), 4096).pack()),
        json.loads(FACTS.to_json()),
        json.loads(pack_error(TrustError("not signed"))),
        json.loads(pack_error(FormatError("malformed"))),
    )


def requests() -> tuple[Any, ...]:
    """What a client says to the control socket."""
    return {"v": 1, "command": "status"}, {"v": 1, "command": "umount"}


def statuses() -> tuple[Any, ...]:
    """What the control socket answers."""
    status = {
        "mountpoint": "/mnt",
        "image": "/a.raw",
        "name": "fuzz",
        "version": None,
        "root_hash": "ab" * 32,
        "keeper": 999_999_999,  # no process has this number
        "supervisor": 2,
        "workers": [{"pid": 3}],
        "verified_blocks": 5,
        "audit_head": GENESIS,
    }
    return {"v": 1, "ok": True, "status": status}, {"v": 1, "ok": False, "error": "busy", "status": status}


@functools.cache
def log_events() -> tuple[tuple[dict[str, Any], ...], ...]:
    """Events of valid logs, each as read."""
    with tempfile.TemporaryDirectory(prefix="rofs-fuzz-") as directory:
        path = Path(directory) / "log"
        with open_log(path) as log:
            log.write("mount", pid=1, detail="/a.raw")
            log.write(
                "write_blocked", op="rename", path="/a\\xff", path2="/b", pid=5, tid=6, uid=0, comm="sh", errno="EROFS"
            )
            log.write("corruption", paths=["/a", "/b"], nid=5, offset=4096, block=1, level=-1, expected="a", found="b")
            log.drop(3, "full")
        lines = path.read_bytes().splitlines()
    events = tuple(json.loads(line) for line in lines)
    return events, events[:1], ()


def hostile_log(program: Program) -> bytes:
    """A log after all edits, chained anew with right hashes unless the flags say otherwise.

    Each edit changes one event, or duplicates, removes or moves a line, or (rarely) changes the text.
    """
    which = log_events()
    events: list[Any] = [copy.deepcopy(event) for event in which[program.seed % len(which)]]
    text_edits = []
    for edit in program.edits:
        if program.flags & TEXT_FLAGS == TEXT_FLAGS and edit.kind & TEXT_KIND:
            text_edits.append(edit)
            continue
        if not events:
            continue
        at = edit.value % len(events)
        if edit.kind % 16 == 11 and edit.where % 4 == 0:
            del events[at]
        elif edit.kind % 16 == 12 and edit.where % 4 == 0:
            events.insert(edit.where % len(events), copy.deepcopy(events[at]))
        else:
            events[at] = edit_value(events[at], edit._replace(value=edit.value >> 4))
    repair = program.flags & 0x18 != 0x18
    text = b"".join(_lines(events, repair=repair))
    for edit in text_edits:
        text = edit_text(text, edit)
    return text


def _lines(events: list[Any], *, repair: bool) -> list[bytes]:
    prev, lines = GENESIS, []
    for number, event in enumerate(events, 1):
        if repair and isinstance(event, dict):
            event.update({"seq": number, "prev": prev, "v": 1})
            event.pop("hash", None)
            prev = hashlib.sha256(_canonical(event)).hexdigest()
            event["hash"] = prev
        lines.append(_canonical(event) + b"\n")
    return lines


def _canonical(event: Any) -> bytes:
    try:
        return rfc8785.dumps(event)
    except (ValueError, RecursionError):  # a number or a text that has no canonical form
        return json.dumps(event, separators=(",", ":")).encode("utf-8", "surrogatepass")


def hostile_os_release(program: Program) -> bytes:
    """An os-release file after all edits; anything is allowed in one."""
    text = _OS_RELEASE
    for edit in program.edits:
        text = edit_text(text, edit)
    return text


def hostile_json(documents: tuple[Any, ...], program: Program) -> bytes:
    """One of several documents after all edits."""
    return edited_json(documents[program.seed % len(documents)], program)
