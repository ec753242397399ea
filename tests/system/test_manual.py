# SPDX-License-Identifier: Apache-2.0
"""Manual pages: complete, without a warning of the formatter, and found by apropos(1)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rofs.cli import main
from rofs.system import manual
from rofs.system.content import SystemFile

VERBS = [verb.name for verb in main._VERBS]
needs_man = pytest.mark.skipif(shutil.which("man") is None, reason="there is no man(1)")


@pytest.fixture(scope="module")
def directory(files: dict[str, SystemFile], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("man")
    for path, file in files.items():
        if "/man/" in path:
            (directory / os.path.basename(path)).write_bytes(file.data)
    return directory


def shown(page: Path) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "100", "MAN_KEEP_FORMATTING": ""}
    words: list[str | Path] = ["man", "--warnings=w", "--local-file", page]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=True, timeout=60)
    assert done.stderr == ""
    return re.sub(".\b", "", done.stdout)


def test_there_is_a_page_of_each_verb(directory: Path) -> None:
    pages = {"rofs.1", "mount.fuse.rofs.8", *(f"rofs-{verb}.8" for verb in VERBS)}
    assert set(os.listdir(directory)) == pages


@needs_man
@pytest.mark.parametrize("verb", VERBS)
def test_a_page_says_what_the_help_says(directory: Path, verb: str) -> None:
    text = shown(directory / f"rofs-{verb}.8")
    assert [line for line in text.splitlines() if re.match("[A-Z]", line)][1:] == [
        *("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO")
    ]
    help_text = main.build_parser([verb])._subparsers._group_actions[0].choices[verb].format_help()  # type: ignore[union-attr, index]
    for option in set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", help_text)):
        assert option in text, option
    examples = [line for line in help_text.partition("example:\n")[2].splitlines() if line]
    assert examples
    for line in examples:  # as they are, to be copied
        assert f"\n       {line}\n" in text


@needs_man
def test_pages_that_are_not_of_a_verb(directory: Path) -> None:
    text = shown(directory / "rofs.1")
    assert all(f"rofs-{verb}(8)" in text for verb in VERBS)
    assert "audit-log=FILE" in shown(directory / "mount.fuse.rofs.8")


@pytest.mark.skipif(shutil.which("lexgrog") is None, reason="there is no lexgrog(1)")
def test_apropos_finds_them(directory: Path) -> None:
    for page in directory.iterdir():
        found = subprocess.run(["lexgrog", page], stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout
        assert f'"{page.stem} - ' in found


@needs_man
def test_text_cannot_be_taken_for_roff(tmp_path: Path) -> None:
    lines = [".so /etc/passwd", "'de x", "\\fBbold\\n(.$", '"quoted" `code` ~ ^ -x --long 10%']
    page = tmp_path / "x.8"
    page.write_text(".TH X 8\n.SH NAME\n.EX\n" + "\n".join(map(manual._text, lines)) + "\n.EE\n")
    text = shown(page)
    for line in lines:
        assert line in text
