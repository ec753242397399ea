# SPDX-License-Identifier: Apache-2.0
"""What the documentation claims is still so: its tests exist, its diagram is the table's, its schemas fit."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rofs.audit.event import EVENTS, OPERATIONS
from rofs.fuse import life
from tests.conftest import REPOSITORY

DOCS = REPOSITORY / "docs"
_LINK = re.compile(r"\[[^\]]*\]\(([^)#]+)\)")


def _schema(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads((DOCS / "schemas" / f"{name}.schema.json").read_text())
    return schema


def _tests() -> set[str]:
    files = (REPOSITORY / "tests").rglob("test_*.py")
    return {name for file in files for name in re.findall(r"def (test_\w+)", file.read_text())}


def test_every_test_that_the_threat_model_cites_exists() -> None:
    cited = set(re.findall(r"`(test_\w+)`", (DOCS / "threat-model.md").read_text()))
    assert len(cited) > 10
    assert cited <= _tests()


def test_the_diagram_is_made_from_the_table() -> None:
    text = (DOCS / "architecture.md").read_text()
    assert f"```mermaid\n{life.diagram()}```" in text


def _documents() -> Iterator[Path]:
    yield from DOCS.rglob("*.md")
    yield from REPOSITORY.glob("*.md")


@pytest.mark.parametrize("document", list(_documents()), ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in _LINK.findall(document.read_text()):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_every_decision_is_listed() -> None:
    listed = set(_LINK.findall((DOCS / "adr" / "README.md").read_text()))
    assert listed == {path.name for path in (DOCS / "adr").glob("0*.md")}


def test_the_schema_knows_the_events_and_operations_of_the_code() -> None:
    properties = _schema("event")["properties"]
    assert set(properties["event"]["enum"]) == EVENTS
    assert set(properties["op"]["enum"]) == OPERATIONS


@pytest.mark.parametrize("name", ["event", "status"])
def test_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(_schema(name))
