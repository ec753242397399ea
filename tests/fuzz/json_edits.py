# SPDX-License-Identifier: Apache-2.0
"""Changes JSON documents so that they stay JSON, except where the program of edits asks for more.

Knows no document: every value may become any other.
"""

from __future__ import annotations

import copy
import json
from typing import Any

from .edits import TEXT_FLAGS, TEXT_KIND, Edit, Program, edit_text, interesting

_MAX_VALUES = 2000

_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1 << 53,
    -(1 << 53),
    (1 << 63) - 1,
    1 << 64,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "\0",
    "\ud800",
    "\udcff\ud800",
    "\u202e\x1b[2J\n",
    "\U0010ffff",
    "\\x",
    "\\xff\\\\",
    "../..",
    "0" * 64,
    "f" * 63 + "g",
    "a" * 5000,
    [],
    {},
    [[]],
    [None, 1, "x", {}],
    {"": {"": []}},
    ["x"] * 300,
)


def edited_json(document: Any, program: Program) -> bytes:
    """A document after all edits of a program, as text."""
    document = copy.deepcopy(document)
    text_edits = []
    for edit in program.edits:
        if program.flags & TEXT_FLAGS == TEXT_FLAGS and edit.kind & TEXT_KIND:
            text_edits.append(edit)
        else:
            document = edit_value(document, edit)
    text = json.dumps(document, ensure_ascii=not program.flags & 0x04).encode("utf-8", "surrogatepass")
    for edit in text_edits:
        text = edit_text(text, edit)
    return text


def edit_value(document: Any, edit: Edit) -> Any:
    """One edit of a document; returns it, since the document itself may be replaced."""
    places = _places(document)
    if not places:
        return _VALUES[edit.value % len(_VALUES)] if document in (None, "", 0) else document
    container, key = places[edit.where % len(places)]
    kind = edit.kind % 16
    if kind < 7:
        container[key] = copy.deepcopy(_VALUES[edit.value % len(_VALUES)])
    elif kind < 11:
        container[key] = _nearby(container[key], edit.value)
    elif kind == 11:
        del container[key]
    elif kind == 12 and isinstance(container, dict):
        container[f"x{edit.value}"] = container[key]
    elif kind == 13:
        other, other_key = places[edit.value % len(places)]
        container[key] = copy.deepcopy(other[other_key])
    elif kind == 14:
        container[key] = [container[key]] * (1 + edit.value % 3)
    else:
        container[key] = {str(key): container[key]}
    return document


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every value but the outermost, as the container and its key."""
    found: list[tuple[Any, Any]] = []
    pending = [document]
    while pending and len(found) < _MAX_VALUES:
        value = pending.pop()
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            found.append((value, key))
            pending.append(value[key])
    return found


def _nearby(value: Any, change: int) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        number = interesting(change, 64)
        return -number if change >> 31 else number
    if isinstance(value, str) and value:
        at = change % len(value)
        letter = ("", "0", "F", " ", "\\", "\ud8ff", "\0", "=", "\x85", value[at] * 2)[(change >> 16) % 10]
        return value[:at] + letter + value[at + 1 :]
    if isinstance(value, list) and value:
        return [*value, copy.deepcopy(value[change % len(value)])]
    return value
