# SPDX-License-Identifier: Apache-2.0
"""How names, times and lists are written, and what a list of problems comes to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from rofs.audit.event import unescape_path
from rofs.cli.entries import MAX_NOTES, complaint, iso_time, out_json_list, shown
from rofs.cli.render import flush
from rofs.errors import FormatError, ImageError, InputError, ReadError, RofsError
from rofs.image.problems import MAX_KEPT, Problems
from tests.conftest import REPOSITORY
from tests.trees import NAMES


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((REPOSITORY / "docs" / "schemas" / f"{name}.schema.json").read_text())
    return found


@pytest.mark.parametrize("name", ["ls", "diff", "extract"])
def test_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))


@pytest.mark.parametrize("name", [*NAMES, b"\x9b", "\x9b\u202e\u2028".encode(), b"\\x9b", b"\\", b"a\\\xff\r"])
def test_names_are_shown_without_loss_and_without_control(name: bytes) -> None:
    text = shown(name)
    assert text.isprintable()
    assert unescape_path(text) == name


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (1_700_000_000_123_456_789, "2023-11-14T22:13:20.123456789Z"),
        (-62_135_596_800 * 10**9, "0001-01-01T00:00:00.000000000Z"),
        (253_402_300_800 * 10**9 + 5, "@253402300800.000000005"),
        (-(1 << 63) * 10**9, "@-9223372036854775808.000000000"),
        (((1 << 63) - 1) * 10**9, "@9223372036854775807.000000000"),
    ],
)
def test_times(time_ns: int, text: str) -> None:
    assert iso_time(time_ns) == text


def failing() -> Iterator[dict[str, int]]:
    yield {"a": 1}
    raise KeyError


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_list_is_json_with_one_element_a_line(capsys: pytest.CaptureFixture[str], count: int) -> None:
    out_json_list({"n": n} for n in range(count))
    flush()
    text = capsys.readouterr().out
    assert json.loads(text) == [{"n": n} for n in range(count)]
    assert len(text.splitlines()) == (count + 2 if count else 1)


def test_list_that_breaks_off_is_json_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError):
        out_json_list(failing())
    assert json.loads(capsys.readouterr().out) == [{"a": 1}]


def problems_of(*errors: RofsError) -> Problems:
    problems = Problems()
    for error in errors:
        problems.add(error)
    return problems


def test_corrupt_outweighs_unreadable_outweighs_refused(capsys: pytest.CaptureFixture[str]) -> None:
    refused, unreadable, corrupt = InputError("refused"), ReadError("unreadable"), FormatError("corrupt")
    error = complaint(problems_of(refused), "x")
    assert (type(error), str(error)) == (InputError, "refused")
    assert capsys.readouterr().err == ""
    assert type(complaint(problems_of(refused, unreadable, refused), "x")) is ReadError
    error = complaint(problems_of(refused, unreadable, corrupt, FormatError("later")), "are bad:")
    assert (type(error), str(error)) == (ImageError, "4 are bad: corrupt")
    assert len(capsys.readouterr().err.splitlines()) == 7


def test_endless_problems_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    problems = problems_of(*(FormatError(f"no. {n}\n") for n in range(3 * MAX_KEPT)))
    assert len(problems.first) == MAX_KEPT
    assert str(complaint(problems, "bad:")) == "3000 bad: no. 0\n"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == MAX_NOTES + 1
    assert said[-1] == f"rofs: and {3000 - MAX_NOTES} more"
