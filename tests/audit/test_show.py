# SPDX-License-Identifier: Apache-2.0
"""Events for people: one safe line each."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.audit.show import read_events, render
from rofs.errors import ChainError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
keys = st.sampled_from(["time", "event", "op", "path", "path2", "paths", "pid", "uid", "comm"])


def test_blocked_write() -> None:
    event = {
        "time": "2025-01-31T12:00:00.000000001Z",
        "event": "write_blocked",
        "op": "rename",
        "path": "/etc/a",
        "path2": "/etc/b",
        "comm": "mv",
        "pid": 12,
        "uid": 0,
        "errno": "EROFS",
        "count": 3,
    }
    assert render(event) == (
        "2025-01-31T12:00:00.000000001Z write_blocked rename /etc/a -> /etc/b by mv[12] uid=0 errno=EROFS count=3"
    )


def test_corruption_names_all_paths() -> None:
    event = {"event": "corruption", "paths": ["/a", "/b"], "level": -1, "block": 7}
    assert render(event) == "- corruption /a, /b level=-1 block=7"


def test_terminal_sequences_are_escaped() -> None:
    event = {"event": "tamper", "path": "/\x1b]0;x\x07\n\u202e\ud800", "comm": "\r"}
    assert render(event) == "- tamper /\\x1b]0;x\\x07\\n\\u202e\\ud800 by \\r[?]"


@given(st.dictionaries(keys | st.text(), json_values))
def test_any_object_is_one_printable_line(event: dict[str, object]) -> None:
    assert render(event).isprintable()


def test_events_are_read_one_by_one() -> None:
    events = read_events(io.BytesIO(b'{"a":1}\nnonsense\n'))
    assert next(events) == {"a": 1}
    with pytest.raises(ChainError, match="line 2: expected JSON"):
        next(events)


def test_torn_line_is_named() -> None:
    with pytest.raises(ChainError, match="line 1: expected a newline"):
        list(read_events(io.BytesIO(b'{"a":1}')))
