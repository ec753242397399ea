# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.ddi.signature_format import MAX_DOCUMENT_BYTES, SignatureDocument, pack, parse
from rofs.errors import FormatError, InputError

GOOD = {"rootHash": "ab" * 32, "signature": "AAEC"}


@given(
    st.binary(min_size=32, max_size=64),
    st.binary(min_size=1, max_size=30_000),
    st.none() | st.binary(min_size=32, max_size=32),
)
def test_round_trip(root_hash: bytes, der: bytes, fingerprint: bytes | None) -> None:
    document = SignatureDocument(root_hash, der, fingerprint)
    data = pack(document)
    assert parse(data) == document
    assert len(data) >= 16384
    assert len(data) % 4096 == 0


def test_short_document_fills_exactly_what_repart_writes() -> None:
    assert len(pack(SignatureDocument(bytes(32), b"x"))) == 16384
    assert len(pack(SignatureDocument(bytes(32), bytes(12_300)))) == 20480


def test_a_partition_that_exists_is_filled_or_too_short() -> None:
    document = SignatureDocument(bytes(32), bytes(3200))
    for length in (8192, 16384, 40960):
        data = pack(document, length_bytes=length)
        assert len(data) == length
        assert parse(data) == document
    with pytest.raises(InputError, match="has room for 4096"):
        pack(document, length_bytes=4096)


def test_empty_partition_says_that_it_is_not_signed_yet() -> None:
    with pytest.raises(FormatError, match="is empty: the image is not signed yet"):
        parse(bytes(16384))


def test_unknown_keys_are_ignored() -> None:
    found = parse(json.dumps(GOOD | {"future": [1, {"a": None}]}).encode())
    assert found == SignatureDocument(b"\xab" * 32, b"\x00\x01\x02")


@pytest.mark.parametrize(
    "change",
    [
        {"rootHash": "AB" * 32},
        {"rootHash": "ab" * 31},
        {"rootHash": "ab" * 65},
        {"rootHash": "ab" * 32 + "\n"},
        {"rootHash": 7},
        {"rootHash": None},
        {"signature": "AA EC"},
        {"signature": "AAEC\n"},
        {"signature": "AAE"},
        {"signature": "AAF="},
        {"signature": ""},
        {"signature": "\u0660AAA"},
        {"certificateFingerprint": "ab"},
        {"certificateFingerprint": 1},
    ],
)
def test_wrong_values(change: dict[str, object]) -> None:
    with pytest.raises(FormatError, match="signature document"):
        parse(json.dumps(GOOD | change).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 4096,
        b"[]",
        b"\xff",
        b"{}{}",
        b'{"rootHash": "a\0"}',
        b"[" * 100_000,
        b"1" * 5000,
        b'{"rootHash":"' + b"ab" * 32 + b'","rootHash":"' + b"cd" * 32 + b'","signature":"AAEC"}',
        b'{"x":{"a":1,"a":2}}',
    ],
)
def test_not_one_json_object(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse(data)


def test_oversized_partition_is_refused() -> None:
    with pytest.raises(FormatError, match=f"at most {MAX_DOCUMENT_BYTES}"):
        parse(json.dumps(GOOD).encode().ljust(MAX_DOCUMENT_BYTES + 1, b"\0"))


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse(data)


def test_pack_refuses_what_could_not_be_read_back() -> None:
    with pytest.raises(ValueError, match="rootHash"):
        pack(SignatureDocument(b"short", b"x"))
