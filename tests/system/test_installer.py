# SPDX-License-Identifier: Apache-2.0
"""Installing and uninstalling: what was there before is there afterwards, whatever happens in between."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from rofs import durable
from rofs.errors import HostError, InputError, StateError
from rofs.system import installer
from rofs.system.content import SystemFile

CONFIG = SystemFile("/etc/rofs.toml", b"default\n", is_config=True)
PROGRAM = SystemFile("/usr/sbin/helper", b"#!/bin/sh\n", 0o755)
PAGE = SystemFile("/usr/local/share/man/man8/x.8", b"page\n")
FILES = [CONFIG, PROGRAM, PAGE]
PATHS = [file.path for file in FILES]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with something in it."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "usr" / "sbin").mkdir(parents=True)
    (root / "etc" / "other").write_text("other")
    return root


def snapshot(root: Path) -> dict[str, object]:
    """Everything below a directory: what files hold, where links lead, and modes."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(root))] = (content, oct(path.lstat().st_mode))
    return found


def below(root: Path, file: SystemFile) -> Path:
    return root / file.path.lstrip("/")


def test_uninstall_leaves_what_was_there_before(root: Path) -> None:
    before = snapshot(root)
    report = installer.install(str(root), FILES)
    assert sorted(report.written) == sorted(PATHS)
    for file in FILES:
        assert below(root, file).read_bytes() == file.data
        assert below(root, file).stat().st_mode & 0o7777 == file.mode
    assert sorted(installer.uninstall(str(root)).removed) == sorted(PATHS)
    assert snapshot(root) == before


def test_installing_again_changes_nothing(root: Path) -> None:
    installer.install(str(root), FILES)
    before = snapshot(root)
    inode = below(root, PROGRAM).stat().st_ino
    report = installer.install(str(root), FILES)
    assert (report.written, report.removed, report.kept) == ([], [], [])
    assert sorted(report.unchanged) == sorted(PATHS)
    assert snapshot(root) == before
    assert below(root, PROGRAM).stat().st_ino == inode


def test_update_replaces_and_removes(root: Path) -> None:
    empty = snapshot(root)
    installer.install(str(root), FILES)
    new = [SystemFile(PROGRAM.path, b"new", 0o755), SystemFile(CONFIG.path, b"new default\n", is_config=True)]
    report = installer.install(str(root), new)
    assert sorted(report.written) == sorted(file.path for file in new)
    assert report.removed == [PAGE.path]
    assert below(root, CONFIG).read_bytes() == b"new default\n"  # nobody had changed it
    installer.uninstall(str(root))
    assert snapshot(root) == empty


@pytest.mark.parametrize("when", ["before it was installed", "after it was installed"])
def test_changed_configuration_is_never_touched(root: Path, when: str) -> None:
    if when.startswith("after"):
        installer.install(str(root), FILES)
    below(root, CONFIG).write_text("mine\n")
    for data in (b"default\n", b"new default\n"):
        config = SystemFile(CONFIG.path, data, is_config=True)
        report = installer.install(str(root), [config, PROGRAM, PAGE])
        assert report.kept == [CONFIG.path]
        assert below(root, CONFIG).read_text() == "mine\n"
    report = installer.uninstall(str(root))
    assert (report.kept, sorted(report.removed)) == ([CONFIG.path], sorted([PROGRAM.path, PAGE.path]))
    assert below(root, CONFIG).read_text() == "mine\n"


def test_configuration_that_was_removed_stays_away(root: Path) -> None:
    installer.install(str(root), FILES)
    below(root, CONFIG).unlink()
    assert installer.install(str(root), FILES).kept == [CONFIG.path]
    assert not below(root, CONFIG).exists()
    installer.uninstall(str(root))


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_what_somebody_else_has_put_there_stops_it_before_anything_changes(root: Path, kind: str) -> None:
    place = below(root, PROGRAM)
    if kind == "link":
        place.symlink_to("x")
    else:
        (place.touch if kind == "file" else place.mkdir)()
    before = snapshot(root)
    with pytest.raises(InputError, match="was not installed by rofs"):
        installer.install(str(root), FILES)
    assert snapshot(root) == before


def test_a_changed_file_that_is_no_configuration_is_put_right(root: Path) -> None:
    installer.install(str(root), FILES)
    below(root, PROGRAM).write_text("changed")
    below(root, PAGE).chmod(0o600)
    assert sorted(installer.install(str(root), FILES).written) == sorted([PROGRAM.path, PAGE.path])
    assert below(root, PROGRAM).read_bytes() == PROGRAM.data
    assert below(root, PAGE).stat().st_mode & 0o777 == 0o644


def test_links_of_the_system_are_followed_within_it(root: Path, tmp_path: Path) -> None:
    """Not to our own /usr/sbin."""
    (root / "sbin").symlink_to("/usr/sbin")
    (root / "usr" / "local").symlink_to("../../../../opt")
    (root / "opt").mkdir()
    file, page = SystemFile("/sbin/helper", b"x"), SystemFile("/usr/local/man/x", b"y")
    before = snapshot(root)
    assert installer.sbin(str(root)) == "/usr/sbin"
    installer.install(str(root), [file, page])
    assert (root / "usr" / "sbin" / "helper").read_bytes() == b"x"
    assert (root / "opt" / "man" / "x").read_bytes() == b"y"
    installer.uninstall(str(root))
    assert snapshot(root) == before
    assert sorted(os.listdir(tmp_path)) == ["root"]


def test_links_that_lead_nowhere(root: Path) -> None:
    (root / "loop").symlink_to("loop")
    with pytest.raises(InputError, match="too many symbolic links"):
        installer.install(str(root), [SystemFile("/loop/x", b"")])


def test_a_separate_sbin(root: Path) -> None:
    (root / "sbin").mkdir()
    assert installer.sbin(str(root)) == "/sbin"


class _FullDisk(durable.Calls):
    """A disk that is full after some renames."""

    def __init__(self, left: int) -> None:
        self.left = left

    def rename(self, source: bytes, target: bytes) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(28, "No space left on device")
        super().rename(source, target)


@pytest.mark.parametrize("renames", range(5))
def test_what_was_interrupted_can_be_completed_or_undone(root: Path, renames: int) -> None:
    before = snapshot(root)
    with durable.using(_FullDisk(renames)), pytest.raises(HostError, match="No space left"):
        installer.install(str(root), FILES)
    if renames:
        installer.uninstall(str(root))
        assert snapshot(root) == before
    else:
        assert {path for path, _ in snapshot(root).items() if path not in before} == {"var", "var/lib", "var/lib/rofs"}
    installer.install(str(root), FILES)
    assert below(root, PAGE).read_bytes() == PAGE.data


def test_uninstall_of_nothing(root: Path) -> None:
    with pytest.raises(StateError, match="nothing is installed"):
        installer.uninstall(str(root))


@pytest.mark.parametrize(
    "manifest",
    [
        *(b"", b"[]", b"null", b"{}", b'{"version": 2, "files": {}, "directories": []}', b"\xff", b"[" * 100_000),
        json.dumps({"version": 1, "files": {"../x": ["y"]}, "directories": []}).encode(),
        json.dumps({"version": 1, "files": {"/etc/../../x": ["y"]}, "directories": []}).encode(),
        json.dumps({"version": 1, "files": {"/x": 1}, "directories": []}).encode(),
    ],
    ids=lambda manifest: manifest[:40].decode("latin-1"),
)
def test_a_manifest_that_is_none(root: Path, manifest: bytes) -> None:
    place = root / installer.MANIFEST_PATH.lstrip("/")
    place.parent.mkdir(parents=True)
    place.write_bytes(manifest)
    with pytest.raises(StateError, match="is not the manifest"):
        installer.uninstall(str(root))
    with pytest.raises(StateError, match="is not the manifest"):
        installer.install(str(root), FILES)
    assert not below(root, PROGRAM).exists()
