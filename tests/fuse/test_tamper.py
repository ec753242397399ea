# SPDX-License-Identifier: Apache-2.0
"""What counts as tampering, as a function of two lists of mounts; then a real kernel that tells of changes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from rofs.fuse import mountinfo, tamper
from rofs.fuse.mountinfo import Mount
from rofs.fuse.tamper import Tampering, changes
from tests.conftest import REPOSITORY

_LINE = b"40 22 0:35 / /mnt rw - tmpfs none rw\n"

# Pure

ID = 40
ROOT = Mount(22, b"/", b"ext4", b"/dev/vda", parent_id=1, options=frozenset({b"rw"}))
ABOVE = Mount(30, b"/srv", b"tmpfs", b"none", parent_id=22)
OURS = Mount(
    ID,
    b"/srv/mnt",
    b"fuse.rofs",
    b"/x.raw",
    parent_id=30,
    options=frozenset({b"rw", b"nosuid", b"nodev", b"relatime"}),
    super_options=frozenset({b"rw", b"user_id=0"}),
)
BEFORE = (ROOT, ABOVE, OURS)


def on(parent: Mount, mountpoint: bytes, mount_id: int = 50) -> Mount:
    return Mount(mount_id, mountpoint, b"tmpfs", b"none", parent_id=parent.mount_id)


def after(*more: Mount, options: str = "rw,nosuid,nodev,relatime", super_options: str = "rw,user_id=0") -> list[Mount]:
    ours = replace(OURS, options=_options(options), super_options=_options(super_options))
    return [ROOT, ABOVE, ours, *more]


def _options(text: str) -> frozenset[bytes]:
    return frozenset(text.encode().split(b","))


def test_what_did_not_change_is_not_reported() -> None:
    covered = after(on(OURS, b"/srv/mnt/old"))
    assert changes(BEFORE, BEFORE, ID) == changes(covered, covered, ID) == changes(covered, BEFORE, ID) == []


@pytest.mark.parametrize(
    ("options", "super_options", "detail"),
    [
        ("rw,nodev,relatime", "rw,user_id=0", "nosuid was removed"),
        ("rw,nosuid,nodev,noexec,relatime", "rw,user_id=0", "noexec was added"),
        ("rw,nosuid,nodev,noatime", "rw,user_id=0", "relatime became noatime"),
        ("rw,nosuid,nodev", "rw,user_id=0", "relatime was removed"),
        ("rw,nosuid,nodev,relatime", "user_id=0,ro", "superblock rw became ro"),
        ("ro,nosuid,nodev,relatime", "user_id=0,ro", "rw became ro, superblock rw became ro"),
        ("rw,nosuid,nodev,relatime", "rw,user_id=1001", "superblock user_id=0 became user_id=1001"),
        ("rw,relatime", "rw,user_id=0", "nodev was removed, nosuid was removed"),
        ("relatime,nodev,rw,nosuid", "user_id=0,rw", None),
    ],
)
def test_options_that_changed(options: str, super_options: str, detail: str | None) -> None:
    found = changes(BEFORE, after(options=options, super_options=super_options), ID)
    assert found == ([] if detail is None else [Tampering(b"/", "remounted", detail)])


@pytest.mark.parametrize(
    ("over", "path"),
    [
        (on(OURS, b"/srv/mnt"), b"/"),
        (on(OURS, b"/srv/mnt/etc/odd\xff"), b"/etc/odd\xff"),
        (on(replace(OURS, mountpoint=b"/elsewhere"), b"/srv/mnt/a"), b"/a"),
    ],
)
def test_mount_over_it_or_a_path_below(over: Mount, path: bytes) -> None:
    assert changes(BEFORE, after(over), ID) == [
        Tampering(path, "mounted over", "tmpfs from none mounted, mount id 50"),
    ]


def test_mount_on_a_mount_that_covers_it() -> None:
    first, second = on(OURS, b"/srv/mnt", 50), on(Mount(50, b"", b"", b""), b"/srv/mnt/deep", 51)
    assert [found.path for found in changes(BEFORE, after(first, second), ID)] == [b"/", b"/deep"]
    assert [found.path for found in changes(after(first), after(first, second), ID)] == [b"/deep"]


def test_bind_mount_says_of_what() -> None:
    bind = replace(on(OURS, b"/srv/mnt/etc/shadow"), source=b"odd\\\xff", root=b"/tmp/fake")
    (found,) = changes(BEFORE, after(bind), ID)
    assert found.detail == "tmpfs from odd\\\\\\xff (/tmp/fake in it) mounted, mount id 50"


@pytest.mark.parametrize("over", [on(ABOVE, b"/srv"), on(ROOT, b"/srv"), on(ROOT, b"/")])
def test_mount_that_hides_it_with_its_mount_point(over: Mount) -> None:
    (found,) = changes(BEFORE, after(over), ID)
    where = over.mountpoint.decode()
    assert found == Tampering(b"/", "mounted over", f"tmpfs from none mounted on {where}, mount id 50")


@pytest.mark.parametrize(
    "other",
    [
        on(ROOT, b"/tmp"),
        on(ABOVE, b"/srv/mnt2"),
        on(ABOVE, b"/srv/m"),
        replace(OURS, mount_id=50, mountpoint=b"/clone"),
        replace(OURS, mount_id=50, mountpoint=b"/srv/clone"),
        on(Mount(60, b"", b"", b""), b"/srv/mnt"),  # on a mount that nobody sees
    ],
    ids=lambda mount: mount.mountpoint.decode(),
)
def test_mounts_that_cover_nothing_of_it(other: Mount) -> None:
    assert changes(BEFORE, after(other), ID) == []


def test_mount_on_a_clone_elsewhere() -> None:
    clone = replace(OURS, mount_id=50, mountpoint=b"/clone", parent_id=22)
    assert changes(BEFORE, after(clone, on(clone, b"/clone/etc", 51)), ID) == []


def test_mount_that_was_moved_onto_it() -> None:
    elsewhere = on(ROOT, b"/tmp")
    assert changes(after(elsewhere), after(replace(elsewhere, mountpoint=b"/srv/mnt/a", parent_id=ID)), ID) != []


def test_another_mount_with_an_id_that_was_used_before() -> None:
    first = on(OURS, b"/srv/mnt/a")
    for other in (replace(first, source=b"fake"), replace(first, mountpoint=b"/srv/mnt/b")):
        assert len(changes(after(first), after(other), ID)) == 1


def test_mount_that_was_moved_with_what_is_on_it() -> None:
    moved = replace(OURS, mountpoint=b"/new", parent_id=22)
    covered = after(on(OURS, b"/srv/mnt/a"))
    assert changes(covered, [ROOT, moved, on(moved, b"/new/a")], ID) == []
    (found,) = changes(BEFORE, [ROOT, moved, on(moved, b"/new/a")], ID)
    assert found.path == b"/a"


def test_mount_on_the_root_directory() -> None:
    root = replace(OURS, mountpoint=b"/", parent_id=ID)  # its own parent
    assert [t.path for t in changes([root], [root, on(root, b"/"), on(root, b"/a", 51)], ID)] == [b"/", b"/a"]


def test_mounts_in_a_circle() -> None:
    first, second = Mount(50, b"/a", b"", b"", parent_id=51), Mount(51, b"/b", b"", b"", parent_id=50)
    assert changes(BEFORE, after(first, second), ID) == []


def test_mount_that_is_gone() -> None:
    assert changes(BEFORE, [ROOT, ABOVE], ID) == []
    another = replace(ABOVE, mount_id=ID, mountpoint=b"/new", parent_id=22)
    assert changes(BEFORE, [ROOT, ABOVE, another, on(another, b"/new/a")], ID) == []


def test_mount_that_is_gone_stays_gone_when_its_id_is_used_again() -> None:
    gone, another = [ROOT, ABOVE], [ROOT, ABOVE, replace(ABOVE, mount_id=ID, mountpoint=b"/new")]
    before = tamper._newer(list(BEFORE), gone, ID)
    before = tamper._newer(before, another, ID)
    assert before == list(BEFORE)
    assert tamper._newer(before, None, ID) == before
    assert tamper._newer(before, after(), ID) == after()


def test_mount_that_shows_later() -> None:
    assert tamper._newer(None, None, ID) is None
    assert tamper._newer([ROOT], [ROOT, ABOVE], ID) == [ROOT, ABOVE]


# Real mounts

Watched = Callable[[str], list[list[str]]]


# In a chroot the root is no mount point, and cannot be made private.
needs_namespace = pytest.mark.skipif(
    os.geteuid() != 0 or mountinfo.mount_on(b"/") is None,
    reason="needs root and a root that is a mount point, for a private mount namespace",
)


@pytest.fixture(params=[""])
def watched(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    """Runs commands beside a watched mount `m`, and returns what was seen; all ends with the namespace."""
    words = ["unshare", "-m", sys.executable, "-m", "tests.fuse.tampering", str(tmp_path.resolve()), request.param]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as program:

        def run(command: str) -> list[list[str]]:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(command + "\n")
            program.stdin.flush()
            line = program.stdout.readline()
            assert line, "the program has ended"
            seen: list[list[str]] = json.loads(line)
            return seen

        try:
            yield run
            assert program.stdin is not None
            program.stdin.close()
            assert program.wait(60) == 0
        finally:
            program.kill()


@needs_namespace
@pytest.mark.parametrize("watched", ["", "unreadable"], indirect=True)
def test_a_real_remount_shows(watched: Watched) -> None:
    assert watched("mount -o remount,ro m") == [["/", "remounted", "rw became ro, superblock rw became ro"]]
    assert watched("mount -o remount,bind,rw,suid m") == [["/", "remounted", "nosuid was removed, ro became rw"]]
    assert watched("true") == []


@needs_namespace
def test_a_real_remount_through_a_clone_shows(watched: Watched) -> None:
    assert watched("mount --bind m elsewhere") == []
    assert watched("mount -o remount,ro elsewhere") == [["/", "remounted", "superblock rw became ro"]]


@needs_namespace
@pytest.mark.parametrize("watched", ["untold"], indirect=True)
def test_a_real_remount_in_another_namespace_shows(watched: Watched) -> None:
    # The kernel changes the superblock, but tells only the other namespace.
    assert watched("unshare -m mount -o remount,ro m") == [["/", "remounted", "superblock rw became ro"]]


@needs_namespace
def test_a_real_mount_over_it_shows(watched: Watched) -> None:
    ((path, status, detail),) = watched("mount -t tmpfs over m")
    assert (path, status) == ("/", "mounted over")
    assert detail.startswith("tmpfs from over mounted, mount id ")


@needs_namespace
@pytest.mark.parametrize("watched", ["", "unreadable"], indirect=True)
def test_real_mounts_below_it_show(watched: Watched) -> None:
    ((path, _, detail),) = watched("mount --bind other-file m/file")
    assert path == "/file"
    assert detail.startswith("tmpfs from base (/other-file in it) mounted, mount id ")
    seen = watched("mount -t tmpfs none 'm/a b/c'; mkdir 'm/a b/c/d'; mount -t ramfs none 'm/a b/c/d'")
    assert [path for path, _, _ in seen] == ["/a b/c", "/a b/c/d"]
    assert watched("umount m/file 'm/a b/c/d'") == []


@needs_namespace
def test_a_real_mount_over_the_directory_above_it_shows(watched: Watched) -> None:
    ((path, status, detail),) = watched('mount -t tmpfs above "$PWD"')
    assert (path, status) == ("/", "mounted over")
    assert detail.startswith("tmpfs from above mounted on /")


@needs_namespace
def test_real_mounts_elsewhere_do_not_show(watched: Watched) -> None:
    assert watched("mount -t tmpfs a elsewhere; mkdir elsewhere/b; mount --bind m elsewhere/b") == []
    assert watched("mount --bind other-file elsewhere/b/file; umount elsewhere/b/file") == []
    assert watched("umount m/baseline") == []


@needs_namespace
def test_a_real_remount_that_is_undone_is_no_error(watched: Watched) -> None:
    seen = watched("for i in 1 2 3 4 5; do mount -o remount,bind,suid m; mount -o remount,bind,nosuid m; done")
    assert {detail for _, _, detail in seen} <= {"nosuid was removed", "nosuid was added"}
    assert watched("mount -o remount,bind,noatime m")[-1][0] == "/"


async def test_mountinfo_that_cannot_be_opened_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mountinfo"
    monkeypatch.setattr(mountinfo, "PATH", str(path))
    monkeypatch.setattr(tamper, "_RETRY_SECONDS", 0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_write_later, path)
        with await tamper._open() as file:
            assert tamper._read(file) == [mountinfo.parse(_LINE)[0]]


async def _write_later(path: Path) -> None:
    await trio.testing.wait_all_tasks_blocked()
    path.write_bytes(_LINE)


def test_mountinfo_that_cannot_be_read(tmp_path: Path) -> None:
    with io.FileIO(str(tmp_path / "file"), "w") as file:
        assert tamper._read(file) is None
