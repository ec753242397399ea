# SPDX-License-Identifier: Apache-2.0
"""Fields of events, put together from an attempt, /proc and the resolver."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rofs.fuse import events
from rofs.fuse.messages import Attempt, FaultReport, InternalReport, PathsAnswer


def present(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if value is not None}


def attempt(**fields: Any) -> Attempt:
    return Attempt(**{"op": "unlink", "nid": 5, "tid": 12, "uid": 1, "gid": 2, "errno": "EROFS", **fields})


def paths_of(asked: Attempt, paths: Sequence[str], new_paths: Sequence[str] = ()) -> dict[str, Any]:
    fields = events.of_attempt(asked, {}, paths, new_paths)
    return {key: fields.get(key) for key in ("path", "paths", "path2") if fields.get(key) is not None}


def test_attempt_with_everything() -> None:
    asked = attempt(op="open", flags=("O_RDWR", "O_TRUNC"), nid=9)
    who: dict[str, int | str] = {"pid": 10, "tid": 12, "comm": "sh", "auid": 1000}
    assert present(events.of_attempt(asked, who, ["/bin/sh"], [])) == {
        "op": "open",
        "path": "/bin/sh",
        "flags": ["O_RDWR", "O_TRUNC"],
        "errno": "EROFS",
        "nid": 9,
        "pid": 10,
        "tid": 12,
        "comm": "sh",
        "auid": 1000,
        "uid": 1,
        "gid": 2,
    }


def test_uid_of_the_request_counts_not_that_of_proc() -> None:
    fields = events.of_attempt(attempt(), {"uid": 77, "gid": 88}, [], [])
    assert (fields["uid"], fields["gid"]) == (1, 2)


def test_caller_that_is_gone_or_not_visible() -> None:
    assert events.of_attempt(attempt(), {}, [], [])["tid"] == 12
    assert "tid" not in events.of_attempt(attempt(tid=0), {}, [], [])


@pytest.mark.parametrize(
    ("asked", "paths", "new_paths", "expected"),
    [
        (attempt(name="x"), ["/"], [], {"path": "/x"}),
        (attempt(name="x"), ["/a/b"], [], {"path": "/a/b/x"}),
        (attempt(name=None), ["/"], [], {"path": "/"}),
        (attempt(name=None), ["/a", "/b"], [], {"paths": ["/a", "/b"]}),
        (attempt(name=None), [], [], {}),
        (attempt(name="x"), [], [], {}),
        (attempt(name="x", nid2=6, name2="y"), ["/a"], ["/"], {"path": "/a/x", "path2": "/y"}),
        (attempt(name="x", nid2=6, name2="y"), ["/a"], [], {"path": "/a/x"}),
        (attempt(op="link", nid2=6, name2="y"), ["/a", "/b"], ["/d"], {"paths": ["/a", "/b"], "path2": "/d/y"}),
    ],
)
def test_paths(asked: Attempt, paths: list[str], new_paths: list[str], expected: dict[str, Any]) -> None:
    assert paths_of(asked, paths, new_paths) == expected


def test_directory_of_a_name_is_not_shown_as_its_inode() -> None:
    assert events.of_attempt(attempt(name="x"), {}, ["/"], [])["nid"] is None


def test_corruption() -> None:
    report = FaultReport(nid=5, kind="mismatch", level=-1, block=7, expected="aa", found="bb")
    event, fields = events.of_fault(report, PathsAnswer(("/a", "/b"), 4096))
    assert event == "corruption"
    assert fields == {
        "nid": 5,
        "paths": ["/a", "/b"],
        "offset": 4096,
        "block": 7,
        "level": -1,
        "expected": "aa",
        "found": "bb",
    }


def test_bytes_that_do_not_come_are_no_corruption() -> None:
    report = FaultReport(nid=5, kind="io", level=0, block=7, expected=None, found=None)
    event, fields = events.of_fault(report, PathsAnswer(()))
    assert event == "io_error"
    assert present(fields) == {"nid": 5, "block": 7, "level": 0}


def test_internal_failure() -> None:
    fields = events.of_internal(InternalReport(nid=None, detail="what"), [])
    assert present(fields) == {"detail": "what"}
