# SPDX-License-Identifier: Apache-2.0
"""Reports: what stands for many counts as many, nothing counts twice, and any log can be reported on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.audit import report as report_module
from rofs.audit.report import report_on, top

NOON = "2025-01-31T12:00:00.000000000Z"
LATER = "2025-01-31T13:30:00.000000000Z"


def attempt(**fields: Any) -> dict[str, Any]:
    base = {
        "event": "write_blocked",
        "time": NOON,
        "mount": "/mnt",
        "op": "open",
        "path": "/f",
        "uid": 0,
        "errno": "EROFS",
    }
    return {**base, "comm": "sh", "exe": "/bin/sh", **fields}


def test_attempts_by_program_user_path_operation_and_hour() -> None:
    report = report_on(
        [
            attempt(),
            attempt(count=41, time=LATER),
            attempt(op="unlink", uid=1000, exe="/bin/rm", path="/g"),
            {"event": "write_blocked", "time": NOON, "op": "mkdir", "uid": 5, "count": 8},
        ]
    )
    assert report.attempts == 51
    assert top(report.programs) == [("/bin/sh", 42), ("-", 8), ("/bin/rm", 1)]
    assert top(report.users, 1) == [("0", 42)]
    assert top(report.paths) == [("/mnt/f", 42), ("(others)", 8), ("/mnt/g", 1)]
    assert dict(report.operations) == {"open": 42, "mkdir": 8, "unlink": 1}
    assert dict(report.hours) == {"2025-01-31T12": 10, "2025-01-31T13": 41}
    assert (report.events, report.first, report.last) == (4, NOON, LATER)
    assert report.by_event["write_blocked"] == 51


def test_corruption_tamper_and_what_is_not_recorded() -> None:
    report = report_on(
        [
            {"event": "corruption", "time": NOON, "mount": "/", "paths": ["/a", "/b"], "count": 3},
            {"event": "corruption", "time": NOON, "mount": "/", "path": "/a"},
            {"event": "tamper", "time": NOON, "mount": "/mnt", "path": "/x", "status": "remounted", "detail": "rw"},
            {"event": "dropped", "time": NOON, "count": 7},
            {"event": "dropped", "time": NOON, "count": 2},
        ]
    )
    assert dict(report.corruption) == {"/a": 4, "/b": 3}
    assert report.by_event["corruption"] == 4
    assert report.tamper == [{"path": "/mnt/x", "time": NOON, "status": "remounted", "detail": "rw"}]
    assert report.dropped == 9


def test_since_leaves_out_what_was_before() -> None:
    assert report_on([attempt(), attempt(time=LATER)], since=LATER).attempts == 1


def test_what_the_kernel_alone_has_seen_is_added() -> None:
    report = report_on([attempt(path="/f"), attempt(path="/g", time=LATER)])
    report.add_kernel(attempt(mount=None, path="/mnt/f", op="openat"))  # rofs has recorded this
    report.add_kernel(attempt(mount=None, path="/mnt/f", op="openat", errno="EACCES", time=LATER))
    report.add_kernel(attempt(mount=None, path="/mnt/f", exe="/bin/rm"))
    assert (report.attempts, report.kernel, report.seen_twice) == (4, 2, 1)
    assert report.paths["/mnt/f"] == 3


def test_names_without_end_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_module, "MAX_NAMES", 10)
    report = report_on(attempt(path=f"/{number}") for number in range(100))
    assert len(report.paths) == 11
    assert report.paths["(others)"] == 90


def test_empty_log() -> None:
    found = report_on([]).as_json()
    assert (found["events"], found["first"], found["by_event"]) == (0, None, {})
    assert [found[key] for key in ("programs", "users", "paths", "operations", "corruption", "hours", "tamper")] == [
        []
    ] * 7


_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.sampled_from(["write_blocked", "corruption"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=5,
)
_KEYS = st.sampled_from(["event", "time", "path", "paths", "mount", "count", "op", "uid", "exe", "comm", "errno"])


@given(st.lists(st.dictionaries(_KEYS, _VALUES)))
def test_events_of_any_form(events: list[dict[str, Any]]) -> None:
    report = report_on(events)
    for event in events:
        report.add_kernel(event)
    assert report.events + report.seen_twice == 2 * len(events)
    report.as_json()
