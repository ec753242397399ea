# SPDX-License-Identifier: Apache-2.0
"""Names made of mount points: as systemd-escape(1) makes them, and always valid file names."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.fuse import places
from rofs.fuse.places import escape_path_name

SYSTEMD_ESCAPE = shutil.which("systemd-escape")

# systemd-escape(1) and systemd.unit(5), "String Escaping for Inclusion in Unit Names".
VECTORS = {
    b"/": "-",
    b"/mnt": "mnt",
    b"/foo//bar/baz/": "foo-bar-baz",
    b"/tmp//waldi/foobar/": "tmp-waldi-foobar",
    b"/.hidden": "\\x2ehidden",
    b"/a/.hidden": "a-.hidden",
    b"/var/lib/my-data": "var-lib-my\\x2ddata",
    b"/a:b_c.d": "a:b_c.d",
    b"/back\\slash": "back\\x5cslash",
    b"/with space\n": "with\\x20space\\x0a",
    b"/H\xc3\xa4user": "H\\xc3\\xa4user",
    b"/\xff\xfe": "\\xff\\xfe",
    b"/-x": "\\x2dx",
}


@pytest.mark.parametrize("path", VECTORS)
def test_documented_vectors(path: bytes) -> None:
    assert escape_path_name(path) == VECTORS[path]


@pytest.mark.skipif(SYSTEMD_ESCAPE is None, reason="systemd-escape is not installed")
def test_same_as_systemd() -> None:
    assert SYSTEMD_ESCAPE is not None
    every_byte = [b"/" + bytes([n]) + b"x" for n in range(1, 256)] + [b"/x" + bytes([n]) for n in range(1, 256)]
    paths = [*VECTORS, *(path for path in every_byte if path != b"/x.")]
    done = subprocess.run([SYSTEMD_ESCAPE, "--path", "--", *paths], capture_output=True, check=True)
    assert done.stdout.decode().rstrip("\n").split(" ") == [escape_path_name(path) for path in paths]


@given(path=st.lists(st.binary(min_size=1, max_size=300).filter(lambda b: b"/" not in b), max_size=5))
def test_result_is_always_a_file_name(path: list[bytes]) -> None:
    name = escape_path_name(b"/" + b"/".join(path))
    assert 0 < len(name) <= 255 - len(".jsonl")
    assert "/" not in name
    assert name.isascii()
    assert name.isprintable()
    assert name not in {".", ".."}


def test_long_names_stay_different() -> None:
    long = b"/" + b"x" * 250
    names = {escape_path_name(long + end) for end in (b"", b"a", b"b", b"/b")}
    assert len(names) == 4


def test_places_of_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert places.mount_directory(b"/mnt/a-b") == "/run/rofs/mnt-a\\x2db"
    assert os.path.join("/run/rofs/mnt", places.CONTROL_SOCKET) == "/run/rofs/mnt/control"
    assert places.default_log(b"/mnt") == "/var/log/rofs/mnt.jsonl"


def test_places_of_a_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1001)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1001")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert places.mount_directory(b"/mnt") == "/run/user/1001/rofs/mnt"
    assert places.default_log(b"/mnt") == "/state/rofs/mnt.jsonl"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert places.mount_directory(b"/mnt") == "/tmp/rofs-1001/mnt"
    assert places.default_log(b"/mnt") == f"{tmp_path}/.local/state/rofs/mnt.jsonl"
