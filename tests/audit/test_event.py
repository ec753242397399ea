# SPDX-License-Identifier: Apache-2.0
"""Events as canonical lines; paths without loss."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.audit.event import (
    GENESIS,
    canonical,
    chained_line,
    escape_path,
    format_time,
    unescape_path,
)
from rofs.errors import ChainError


@given(st.binary())
def test_escaped_path_comes_back(path: bytes) -> None:
    text = escape_path(path)
    assert unescape_path(text) == path
    assert json.loads(canonical({"path": text}))["path"] == text


@given(st.lists(st.sampled_from([b"\\", b"x41", b"\xff", b"a", "é".encode(), b"\n"])))
def test_paths_that_look_escaped_come_back(parts: list[bytes]) -> None:
    path = b"".join(parts)
    assert unescape_path(escape_path(path)) == path


def test_escapes_are_those_documented() -> None:
    assert escape_path(b"/caf\xc3\xa9/\xff\\n\n") == "/café/\\xff\\\\n\n"
    assert unescape_path("\\xFF") == b"\xff"


@pytest.mark.parametrize("text", ["\\", "a\\b", "\\x1", "\\xg0", "\\\\\\", "\ud800"])
def test_text_that_is_no_escaped_path_is_refused(text: str) -> None:
    with pytest.raises(ChainError):
        unescape_path(text)


@given(st.text(st.characters(codec=None)))
def test_unescape_raises_nothing_else(text: str) -> None:
    try:
        path = unescape_path(text)
    except ChainError:
        return
    assert unescape_path(escape_path(path)) == path


def test_canonical_sorts_and_leaves_out_what_has_no_encoding() -> None:
    fields = {
        "seq": 2**53 - 1,
        "nid": 2**53,
        "pid": -(2**70),
        "path": None,
        "image": {"name": None, "version": "1", "big": 1 << 60},
        "flags": ["O_RDWR", None, ("x", 2**64)],
        "ok": True,
    }
    expected = b'{"flags":["O_RDWR",["x"]],"image":{"version":"1"},"ok":true,"seq":9007199254740991}'
    assert canonical(fields) == expected


def test_lone_surrogate_does_not_fail_an_event() -> None:
    assert canonical({"comm\udcff": "a\ud800"}) == b'{"comm\\\\udcff":"a\\\\ud800"}'


@pytest.mark.parametrize("value", [b"bytes", 1.5, object()])
def test_other_types_are_misuse(value: object) -> None:
    with pytest.raises(TypeError, match=type(value).__name__):
        canonical({"detail": value})


def test_chained_line_holds_its_own_hash() -> None:
    line, line_hash = chained_line({"seq": 1, "event": "mount"}, GENESIS)
    assert line.endswith(b"}\n")
    event = json.loads(line)
    assert event.pop("hash") == line_hash
    assert event["prev"] == GENESIS
    text = json.dumps(event, sort_keys=True, separators=(",", ":")).encode()
    assert hashlib.sha256(text).hexdigest() == line_hash


def test_time_has_nanoseconds() -> None:
    assert format_time(0) == "1970-01-01T00:00:00.000000000Z"
    assert format_time(1_738_324_800_000_000_001) == "2025-01-31T12:00:00.000000001Z"
    assert format_time(-1) == "1969-12-31T23:59:59.999999999Z"
