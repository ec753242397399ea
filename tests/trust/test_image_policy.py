# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.errors import InputError
from rofs.trust.image_policy import DEFAULT_IMAGE_POLICY, parse_image_policy

OPEN = {"verity", "signed", "encrypted", "unprotected", "unused", "absent"}


@pytest.mark.parametrize(
    ("text", "root", "usr"),
    [
        ("root=signed", {"signed"}, {"unused", "absent"}),
        ("root=verity+signed:usr=encrypted", {"verity", "signed"}, {"encrypted"}),
        ("root=signed:=absent", {"signed"}, {"absent"}),
        ("=absent:root=signed", {"signed"}, {"absent"}),
        ("=signed", {"signed"}, {"signed"}),
        ("root=open:=ignore", OPEN, {"unused", "absent"}),
        ("usr=unprotected", {"unused", "absent"}, {"unprotected"}),
        ("root=signed+read-only-on+growfs-off", {"signed"}, {"unused", "absent"}),
        ("home=encrypted:swap=absent:root-verity-sig=unprotected", {"unused", "absent"}, {"unused", "absent"}),
        ("*", OPEN, OPEN),
        ("-", {"unused", "absent"}, {"unused", "absent"}),
        ("~", {"absent"}, {"absent"}),
    ],
)
def test_what_a_policy_allows(text: str, root: set[str], usr: set[str]) -> None:
    policy = parse_image_policy(text)
    assert set(policy.clause_of("root").allows) == root
    assert set(policy.clause_of("usr").allows) == usr
    assert policy.text == text


def test_the_default_wants_signatures() -> None:
    for designator in ("root", "usr"):
        assert DEFAULT_IMAGE_POLICY.clause_of(designator).text == f"{designator}=signed"
        assert not DEFAULT_IMAGE_POLICY.clause_of(designator).allows_unsigned


def test_the_clause_that_decided_is_told_as_written() -> None:
    assert parse_image_policy("root=verity+signed:=open").clause_of("root").text == "root=verity+signed"
    assert parse_image_policy("root=signed:=open").clause_of("usr").text == "=open"
    assert parse_image_policy("*").clause_of("usr").text == "*"
    assert parse_image_policy("usr=signed").clause_of("root").text == "root is not listed, so it is ignored"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "clause '' has no '='"),
        ("root", "clause 'root' has no '='"),
        ("root=signed:", "clause '' has no '='"),
        (":root=signed", "clause '' has no '='"),
        ("root=signed:*", r"clause '\*' has no '='"),
        ("foo=signed", "clause 'foo=signed': unknown partition 'foo'"),
        (" root=signed", "unknown partition ' root'"),
        ("ROOT=signed", "unknown partition 'ROOT'"),
        ("root=signed:usr=sgined", "clause 'usr=sgined': unknown word 'sgined'"),
        ("root=SIGNED", "unknown word 'SIGNED'"),
        ("root=signed+", "unknown word ''"),
        ("root==signed", "unknown word '=signed'"),
        ("root=*", r"unknown word '\*'"),
        ("root=-", "unknown word '-'"),
        ("root=", "unknown word ''"),  # systemd takes it as open
        ("=", "unknown word ''"),
        ("root=read-only-on", "allows nothing"),
        ("root=signed+read-only-off", "asks for writing"),
        ("root=signed+growfs-on", "asks for writing"),
        ("root=signed:root=verity", "the second one for root"),
        ("=open:=absent", "the second one for the default"),
        ("root=signed:" * 1000, "12000 characters"),
    ],
)
def test_a_fault_names_its_clause(text: str, fault: str) -> None:
    with pytest.raises(InputError, match=fault) as caught:
        parse_image_policy(text)
    assert len(str(caught.value)) < 500


@given(st.text(alphabet="rotus=signedvy:+-*~ \0\n", max_size=40))
def test_any_text_is_a_policy_or_one_error(text: str) -> None:
    try:
        policy = parse_image_policy(text)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - only InputError may leave
    else:
        assert policy.clause_of("root").allows
