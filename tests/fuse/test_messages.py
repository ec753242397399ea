# SPDX-License-Identifier: Apache-2.0
"""Messages come back as they were sent; of hostile ones only FormatError comes out."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.audit.event import OPERATIONS
from rofs.errors import BlockFault, FormatError
from rofs.fuse.messages import (
    MAX_MESSAGE_BYTES,
    Attempt,
    Delivery,
    FaultReport,
    InternalReport,
    PathsAnswer,
    PathsQuestion,
    Report,
    pack_report,
    parse_report,
)

FOREVER_NS = 2**63  # a caller that is held in its system call as long as we look
NUMBERS = st.integers(0, 2**64 - 1)
TEXTS = st.text(max_size=30)
LISTS = st.lists(TEXTS, max_size=3).map(tuple)
ATTEMPTS = st.builds(
    Attempt,
    op=st.sampled_from(sorted(OPERATIONS)),
    nid=NUMBERS,
    tid=NUMBERS,
    uid=NUMBERS,
    gid=NUMBERS,
    errno=TEXTS,
    name=st.none() | TEXTS,
    nid2=st.none() | NUMBERS,
    name2=st.none() | TEXTS,
    flags=LISTS,
    changes=LISTS,
    xattr=st.none() | TEXTS,
)
FAULTS = st.builds(
    FaultReport,
    nid=NUMBERS,
    kind=st.sampled_from(["mismatch", "io"]),
    level=st.integers(-1, 63),
    block=NUMBERS,
    expected=st.none() | TEXTS,
    found=st.none() | TEXTS,
)
INTERNALS = st.builds(InternalReport, nid=st.none() | NUMBERS, detail=TEXTS)
REPORTS = ATTEMPTS | FAULTS | INTERNALS
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)

ATTEMPT = Attempt(op="unlink", nid=7, tid=1, uid=2, gid=3, errno="EROFS", name="x")


@given(report=REPORTS, number=NUMBERS)
def test_report_comes_back_as_it_was_sent(report: Report, number: int) -> None:
    assert parse_report(pack_report(report, number=number, held_until_ns=FOREVER_NS)) == Delivery(
        report, number, FOREVER_NS
    )


@given(paths=st.lists(TEXTS, max_size=5).map(tuple), offset=st.none() | NUMBERS)
def test_answer_comes_back_as_it_was_sent(paths: tuple[str, ...], offset: int | None) -> None:
    answer = PathsAnswer(paths, offset)
    assert PathsAnswer.parse(answer.pack()) == answer


@given(nid=NUMBERS, level=st.integers(-1, 63), block=st.none() | NUMBERS)
def test_question_comes_back_as_it_was_asked(nid: int, level: int, block: int | None) -> None:
    question = PathsQuestion(nid, level, block)
    assert PathsQuestion.parse(question.pack()) == question


def test_largest_messages_fit_into_a_datagram() -> None:
    name = "\\xff" * 255
    attempt = Attempt(
        op="rename", nid=2**63, tid=2**31, uid=2**32, gid=2**32, errno="EROFS", name=name, nid2=2**63, name2=name
    )
    assert len(pack_report(attempt, number=2**63, held_until_ns=FOREVER_NS)) < MAX_MESSAGE_BYTES / 4
    detail = InternalReport(nid=2**63, detail="\x00" * 1000)
    assert len(pack_report(detail, number=2**63, held_until_ns=FOREVER_NS)) < MAX_MESSAGE_BYTES / 4


def test_paths_that_do_not_fit_are_left_out() -> None:
    answer = PathsAnswer(tuple(f"/{n}" + "\\xff" * 1024 for n in range(64)), 5)
    packed = answer.pack()
    assert len(packed) <= MAX_MESSAGE_BYTES
    parsed = PathsAnswer.parse(packed)
    assert 20 < len(parsed.paths) < 64
    assert parsed.paths == answer.paths[: len(parsed.paths)]
    assert parsed.offset == 5


def test_report_of_a_fault_has_its_digests_in_hex() -> None:
    fault = BlockFault("mismatch", 2, 9, b"\x01" * 32, None)
    report = FaultReport.of(5, fault)
    assert report == FaultReport(nid=5, kind="mismatch", level=2, block=9, expected="01" * 32, found=None)


# Hostile input


@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_at_all_is_parsed_or_refused(data: bytes) -> None:
    with contextlib.suppress(FormatError):
        parse_report(data)
    with contextlib.suppress(FormatError):
        PathsAnswer.parse(data)


@given(report=REPORTS, field=st.data(), value=JSON)
def test_any_value_in_any_field_is_parsed_or_refused(report: Report, field: st.DataObject, value: Any) -> None:
    message = json.loads(pack_report(report, number=1, held_until_ns=FOREVER_NS))
    key = field.draw(st.sampled_from(sorted(message["fields"])))
    message["fields"][key] = value
    with contextlib.suppress(FormatError):
        parsed = parse_report(json.dumps(message).encode()).report
        assert type(parsed) is type(report)


def altered(**changes: Any) -> bytes:
    """A good report with other values, of the message's own keys or of its fields."""
    message = json.loads(pack_report(ATTEMPT, number=1, held_until_ns=FOREVER_NS))
    for key, value in changes.items():
        target = message if key in message else message["fields"]
        target[key] = value
    return json.dumps(message).encode()


def altered_fault(**changes: Any) -> bytes:
    """The same of a report of a bad block."""
    fields = {"nid": 1, "kind": "io", "level": 0, "block": 1, "expected": None, "found": None, **changes}
    return json.dumps({"report": "fault", "number": 1, "held_until_ns": 0, "fields": fields}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[" * 100_000,
        b"9" * 10_000,
        b"null",
        b"[]",
        b"{}",
        altered(report="party"),
        altered(report=["write_blocked"]),
        altered(report=None),
        altered(number=None),
        altered(number=-1),
        altered(number=True),
        altered(number=1.0),
        altered(number=2**64),
        altered(held_until_ns="1"),
        altered(held_until_ns=-1),
        altered(fields=[]),
        altered(fields={}),
        altered(fields={"nid": 1}),
        altered(op="dance"),
        altered(op=None),
        altered(op=["open"]),
        altered(nid=-1),
        altered(nid="7"),
        altered(nid=7.0),
        altered(nid=None),
        altered(nid=10**400),
        altered(tid=None),
        altered(uid=False),
        altered(nid2=-1),
        altered(name=7),
        altered(name2=["x"]),
        altered(errno=None),
        altered(flags="O_RDWR"),
        altered(flags=[1]),
        altered(flags={"O_RDWR": 1}),
        altered(changes=None),
        altered(xattr={}),
        altered(extra=1),
        altered(self=1),
        altered(**{"x" * 100_000: 1}),
        altered_fault(kind="party"),
        altered_fault(kind=None),
        altered_fault(level=-2),
        altered_fault(level=64),
        altered_fault(level=True),
        altered_fault(block=None),
        altered_fault(expected=1),
    ],
)
def test_hostile_report_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        parse_report(data)
    assert len(str(caught.value)) < 500


def test_report_that_the_hostile_ones_are_made_from_is_good() -> None:
    assert parse_report(altered()) == Delivery(ATTEMPT, 1, FOREVER_NS)
    assert isinstance(parse_report(altered_fault()).report, FaultReport)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"{}",
        b'{"paths": "/"}',
        b'{"paths": [1]}',
        b'{"paths": null}',
        b'{"paths": [], "offset": -1}',
        b'{"paths": [], "offset": true}',
        b'{"paths": [], "offset": 1e3}',
        b'{"paths": [], "offset": "1"}',
    ],
)
def test_hostile_answer_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        PathsAnswer.parse(data)
