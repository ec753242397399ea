# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import pty
import socket
from pathlib import Path

import pytest

from rofs.errors import InputError
from rofs.source.directory import DirectorySource
from rofs.source.owners import owner_rule
from rofs.source.prepare import PreparedSource, open_source
from rofs.source.selection import rule
from rofs.source.tar import TarSource
from tests.erofs.builder import write_image
from tests.trees import MemorySource, directory, file, write_plain_tree

from . import archives
from .test_clamp import EPOCH, LATER_NS, module, pyc


def test_the_steps_in_their_order() -> None:
    lower = directory({b"usr": directory({b"a": file(b"a"), b"b": file(b"old")})})
    upper = directory({b"usr": directory({b"b": file(b"new"), b"c.pyc": file()})})
    upper.children[b"usr"].mtime_ns = LATER_NS
    found = PreparedSource(
        [MemorySource(lower), MemorySource(upper)],
        selection=[rule(b"*.pyc", keep=False)],
        owners=[owner_rule("7:8")],
        latest_seconds=EPOCH,
    )
    usr = found.tree.root.children[b"usr"]
    assert (sorted(usr.children), usr.uid, usr.gid, usr.mtime_ns) == ([b"a", b"b"], 7, 8, EPOCH * 10**9)
    assert archives.data(found, usr.children[b"b"]) == b"new"
    assert any("belongs to 7:8" in warning for warning in found.warnings)


def test_kept_times_are_told() -> None:
    _, tree = module({b"mod.cpython-311.pyc": b""})
    assert PreparedSource([tree], latest_seconds=EPOCH).warnings == []
    _, tree = module({b"mod.cpython-311.pyc": pyc(EPOCH + 1000, 6)})
    (warning,) = PreparedSource([tree], latest_seconds=EPOCH).warnings
    assert warning.startswith("1 Python sources keep their time")


def test_nothing_asked_for_changes_nothing(tmp_path: Path) -> None:
    write_plain_tree(tmp_path / "tree")
    source = DirectorySource(str(tmp_path / "tree"))
    assert write_image(PreparedSource([DirectorySource(str(tmp_path / "tree"))])) == write_image(source)


def test_what_a_source_may_be(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(archives.file(b"x") + archives.END)
    assert isinstance(open_source(str(tmp_path)), DirectorySource)
    assert isinstance(open_source(os.fsencode(tmp_path / "a.tar")), TarSource)


def test_what_a_source_cannot_be(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    for path in ("/dev/null", str(tmp_path / "socket")):
        with pytest.raises(InputError, match="neither a directory nor a tar archive"):
            open_source(path)
    with pytest.raises(InputError, match="none: No such file"):
        open_source(str(tmp_path / "none"))


def test_a_terminal_on_standard_input() -> None:
    main, terminal = pty.openpty()
    before = os.dup(0)
    try:
        os.dup2(terminal, 0)
        with pytest.raises(InputError, match="is a terminal"):
            open_source("-")
    finally:
        os.dup2(before, 0)
        for fd in (main, terminal, before):
            os.close(fd)
