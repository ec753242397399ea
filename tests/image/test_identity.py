# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.errors import FormatError, InputError
from rofs.image.identity import UNKNOWN, XATTR, Identity, identity_of_tree, parse_identity, root_xattrs, said_text
from rofs.tree import Inode
from tests.trees import ACL, MemorySource, directory, file

GIVEN = {"name": None, "version": None, "rollback_index": 0, "created": None}


def identity(root: Inode, **changes: object) -> Identity:
    return identity_of_tree(MemorySource(root).tree, **(GIVEN | changes))  # type: ignore[arg-type]


def test_the_value_is_canonical_json() -> None:
    packed = Identity("dé", "1", 3, -5, acl=False, xattrs=True).pack()
    assert packed == '{"acl":false,"created":-5,"name":"dé","rollback_index":3,"version":"1","xattrs":true}'.encode()


TEXTS = st.none() | st.text(min_size=1, max_size=255).filter(str.isprintable)
NUMBERS = st.integers(0, (1 << 53) - 1)


@given(st.builds(Identity, TEXTS, TEXTS, NUMBERS, NUMBERS | NUMBERS.map(lambda n: -n), st.booleans(), st.booleans()))
def test_what_is_packed_is_parsed(value: Identity) -> None:
    assert parse_identity(value.pack()) == value


def test_an_image_that_says_nothing() -> None:
    assert parse_identity(None) == UNKNOWN
    assert UNKNOWN.acl
    assert UNKNOWN.xattrs


FIELDS = json.loads(Identity("demo", "1", 0, 0, acl=False, xattrs=False).pack())


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b"[" * 100_000,
        b"{}",
        b'{"created":1' + b"0" * 5000 + b"}",
        *(
            json.dumps(FIELDS | change).encode()
            for change in (
                {"name": 1},
                {"name": ""},
                {"name": "x" * 256},
                {"name": "\x1b[31m"},
                {"version": "\ud800"},
                {"rollback_index": True},
                {"rollback_index": -1},
                {"rollback_index": 1 << 53},
                {"rollback_index": 1.0},
                {"created": None},
                {"created": 1 << 60},
                {"acl": 1},
                {"xattrs": None},
            )
        ),
    ],
)
def test_a_value_that_we_would_not_write(value: bytes) -> None:
    with pytest.raises(FormatError, match=r"user\.rofs\.image"):
        parse_identity(value)


@given(st.binary(max_size=100))
def test_any_bytes(value: bytes) -> None:
    with pytest.raises(FormatError):
        parse_identity(value)


def test_later_versions_may_say_more() -> None:
    assert parse_identity(json.dumps(FIELDS | {"more": 1}).encode()).name == "demo"


def test_the_time_is_the_newest_or_the_given_one() -> None:
    newest = file()
    newest.mtime_ns = 5_999_999_999
    root = directory({b"a": file(), b"b": directory({b"c": newest})})
    assert identity(root).created == 5
    assert identity(root, created=3).created == 3
    root.mtime_ns = newest.mtime_ns = root.children[b"a"].mtime_ns = root.children[b"b"].mtime_ns = -1
    assert identity(root).created == -1


def test_acls_and_other_xattrs_are_told() -> None:
    for xattrs, expected in (
        ((), (False, False)),
        (((XATTR, b"old"),), (False, False)),
        (((b"user.a", b""),), (False, True)),
        (((b"system.posix_acl_default", ACL),), (True, True)),
    ):
        found = identity(directory({b"sub": directory({b"x": file(xattrs=xattrs)})}))
        assert (found.acl, found.xattrs) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"name": "x" * 256},
        {"version": "\udcff"},
        {"rollback_index": -1},
        {"rollback_index": 1 << 53},
        {"created": 1 << 53},
        {"created": -(1 << 60)},
    ],
)
def test_what_cannot_be_said(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected"):
        identity(directory(), **change)


def test_a_time_beyond_all_json() -> None:
    root = directory()
    root.mtime_ns = (1 << 62) * 10**9
    with pytest.raises(InputError, match="time of creation"):
        identity(root)


def test_the_root_keeps_its_other_xattrs() -> None:
    root = directory(xattrs=((b"security.a", b"1"), (XATTR, b"of an older image"), (b"user.z", b"2")))
    found = root_xattrs(root, UNKNOWN)
    assert found == ((b"security.a", b"1"), (XATTR, UNKNOWN.pack()), (b"user.z", b"2"))


@pytest.mark.parametrize(
    ("said", "taken"),
    [("edge", "edge"), ("1.2~rc", "1.2~rc"), ("", None), ("a\x1b[2J", None), ("x" * 256, None), (None, None)],
)
def test_what_another_file_says_is_taken_only_when_fit(said: str | None, taken: str | None) -> None:
    assert said_text(said) == taken
