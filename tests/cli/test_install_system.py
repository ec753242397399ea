# SPDX-License-Identifier: Apache-2.0
"""`rofs install-system` below a directory; what is installed is in tests/system."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from .conftest import Run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


def test_installs_and_uninstalls(run: Run, root: Path) -> None:
    said = run("install-system", "--root", root).succeeded().splitlines()
    installed = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    assert {f"installed /{path}" for path in installed} == {*said, "installed /var/lib/rofs/system.json"}
    assert {"etc/rofs.toml", "usr/sbin/mount.fuse.rofs", "usr/local/lib/systemd/system/rofs@.service"} < set(installed)
    assert sys.executable in (root / "usr/sbin/mount.fuse.rofs").read_text()
    assert run("install-system", "--root", root).succeeded() == "nothing to do\n"
    said = run("install-system", "--root", root, "--uninstall").succeeded().splitlines()
    assert len(said) == len(installed) - 1
    assert list(root.iterdir()) == []


def test_the_prefix_of_a_package(run: Run, root: Path) -> None:
    run("install-system", "--root", root, "--prefix", "/usr").succeeded()
    assert (root / "usr/lib/systemd/system/rofs@.service").exists()
    assert not (root / "usr/local").exists()
    run("install-system", "--root", root).succeeded()  # moves it
    assert not (root / "usr/lib/systemd").exists() or not list((root / "usr/lib/systemd").rglob("*.service"))
    run("install-system", "--root", root, "--uninstall").succeeded()
    assert list(root.iterdir()) == []


def test_others_can_read_it_whatever_the_umask(run: Run, root: Path) -> None:
    before = os.umask(0o077)
    try:
        run("install-system", "--root", root).succeeded()
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    for path in root.rglob("*"):
        assert path.stat().st_mode & 0o055 == (0o055 if path.is_dir() or path.parent.name == "sbin" else 0o044)


def test_what_stays_is_told(run: Run, root: Path) -> None:
    run("install-system", "--root", root).succeeded()
    (root / "etc/rofs.toml").write_text("[mount]\nworkers = 3\n")
    done = run("install-system", "--root", root, "--uninstall")
    assert (done.code, done.err) == (
        0,
        "rofs: /etc/rofs.toml was changed since it was installed; it was left as it is\n",
    )
    assert (root / "etc/rofs.toml").exists()


def test_errors(run: Run, root: Path) -> None:
    assert "nothing is installed" in run("install-system", "--root", root, "--uninstall").failed(1)
    assert "goes without --prefix" in run("install-system", "--uninstall", "--prefix", "/usr").failed(2)
    assert "must be an absolute path" in run("install-system", "--root", root, "--prefix", "usr").failed(1)
    (root / "usr").write_text("")
    assert "usr" in run("install-system", "--root", root).failed(1)
