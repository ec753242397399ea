# SPDX-License-Identifier: Apache-2.0
"""The directory that a tree is unpacked into: never left, also when somebody else is at work in it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from rofs.errors import HostError, InputError
from rofs.target.attributes import Attributes
from rofs.target.tree import TargetTree, _runs
from rofs.vfs import Stat


def attributes(mode: int, *, size: int = 0, rdev: int = 0) -> Attributes:
    uid, gid = os.geteuid(), os.getegid()
    return Attributes(Stat(1, mode, 1, uid, gid, size, rdev, 1_000_000_000, 0))


FILE, DIRECTORY, LINK = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755, stat.S_IFLNK | 0o777


@pytest.fixture
def target(tmp_path: Path) -> Iterator[TargetTree]:
    with TargetTree(str(tmp_path / "out")) as target:
        yield target


def test_entries_and_the_way_back(target: TargetTree, tmp_path: Path) -> None:
    target.enter(b"a")
    target.enter(b"b")
    target.add_file(b"f", [(0, b"data")], attributes(FILE, size=6))
    assert target.path_of(b"f") == b"/a/b/f"
    target.leave(attributes(DIRECTORY))
    target.add_link(b"g", (b"a", b"b", b"f"))
    target.add_symlink(b"l", b"/etc/passwd", attributes(LINK))
    target.add_node(b"p", attributes(stat.S_IFIFO | 0o600))
    target.leave(attributes(DIRECTORY))
    assert target.path_of() == b"/"
    target.finish(attributes(DIRECTORY))
    out = tmp_path / "out"
    assert (out / "a" / "g").read_bytes() == b"data\0\0"
    assert (out / "a" / "g").stat().st_nlink == 2
    assert os.readlink(out / "a" / "l") == "/etc/passwd"
    assert {os.lstat(out / name).st_mtime for name in ("", "a", "a/b", "a/b/f", "a/l", "a/p")} == {1.0}
    assert target.shortfalls == ()


def test_directory_that_was_moved_away_is_not_left_for_another(target: TargetTree, tmp_path: Path) -> None:
    target.enter(b"a")
    target.enter(b"b")
    (tmp_path / "elsewhere").mkdir()
    os.rename(tmp_path / "out" / "a" / "b", tmp_path / "elsewhere" / "b")
    with pytest.raises(HostError, match="out/a/b was moved while it was extracted"):
        target.leave(attributes(DIRECTORY))


def test_times_of_kept_directories_are_given_back_also_in_the_middle(tmp_path: Path) -> None:
    paths = [tmp_path / "out" / name for name in ("", "a", "a/b")]
    for path in paths:
        path.mkdir()
    for number, path in enumerate(paths):
        os.utime(path, ns=(number + 1, number + 11))
    with TargetTree(str(tmp_path / "out"), replace=True, keep=True) as target:
        for name in (b"a", b"b", b"new"):
            target.enter(name, keep=True)
            target.add_file(b"f", [], attributes(FILE))
        target.add_file(b"g", [], attributes(FILE))
    found = [(path.stat().st_atime_ns, path.stat().st_mtime_ns) for path in paths]
    assert found == [(1, 11), (2, 12), (3, 13)]
    assert (tmp_path / "out" / "a" / "b" / "new" / "g").is_file()


def test_moved_directory_does_not_keep_those_above_from_their_times(tmp_path: Path) -> None:
    paths = [tmp_path / "out" / name for name in ("", "a", "a/b")]
    for path in paths:
        path.mkdir()
    (tmp_path / "elsewhere").mkdir()
    for path in paths:
        os.utime(path, ns=(1, 11))
    with TargetTree(str(tmp_path / "out"), replace=True, keep=True) as target:
        for name in (b"a", b"b"):
            target.enter(name, keep=True)
        os.rename(tmp_path / "out" / "a" / "b", tmp_path / "elsewhere" / "b")
        (tmp_path / "out" / "a" / "b").mkdir()
        with pytest.raises(HostError, match="was moved"):
            target.leave(attributes(DIRECTORY))
    assert [path.stat().st_mtime_ns for path in paths[:2]] == [11, 11]
    assert (tmp_path / "out" / "a" / "b").stat().st_mtime_ns != 11


def test_link_through_a_directory_that_became_a_link(target: TargetTree, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    target.enter(b"a")
    target.add_file(b"secret", [], attributes(FILE))
    target.leave(attributes(DIRECTORY))
    os.rename(tmp_path / "out" / "a", tmp_path / "out" / "moved")
    os.symlink(tmp_path, tmp_path / "out" / "a")
    with pytest.raises(InputError, match=r"cannot extract .*out/link: Not a directory"):
        target.add_link(b"link", (b"a", b"secret"))
    assert (tmp_path / "secret").stat().st_nlink == 1


def test_node_that_somebody_exchanged_gets_no_attributes(
    target: TargetTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "precious").write_bytes(b"")
    (tmp_path / "precious").chmod(0o600)

    def exchanged(name: bytes, *_: object, dir_fd: int) -> None:
        os.link(tmp_path / "precious", name, dst_dir_fd=dir_fd)

    monkeypatch.setattr(os, "mknod", exchanged)
    for mode in (stat.S_IFIFO | 0o666, stat.S_IFREG | 0o666):
        with pytest.raises(InputError, match="was replaced by somebody else"):
            target.add_node(b"%o" % mode, attributes(mode))
    assert stat.S_IMODE((tmp_path / "precious").stat().st_mode) == 0o600


@pytest.mark.parametrize("name", [b"", b"..", b".", b"a/b", b"../x", b"/x", b"a\0b", b"n" * 256])
def test_names_that_are_none_leave_nothing(target: TargetTree, tmp_path: Path, name: bytes) -> None:
    (tmp_path / "out" / "a").mkdir()
    with pytest.raises(InputError):
        target.enter(name)
    with pytest.raises(InputError):
        target.add_file(name, [], attributes(FILE))
    with pytest.raises(InputError):
        target.add_symlink(name, b"x", attributes(LINK))
    with pytest.raises(InputError):
        target.add_node(name, attributes(stat.S_IFIFO))
    assert [sorted(files) for _, _, files in os.walk(tmp_path)] == [[], [], []]


@pytest.mark.parametrize(
    ("error", "kind"),
    [(errno.ENOSPC, HostError), (errno.EROFS, HostError), (errno.EIO, HostError), (errno.EACCES, InputError)],
)
def test_errors_that_end_it_and_errors_that_do_not(
    target: TargetTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, kind: type[Exception]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(kind, match=f"cannot extract {tmp_path}/out/f: {os.strerror(error)}"):
        target.add_file(b"f", [(0, b"x")], attributes(FILE, size=1))
    assert os.listdir(tmp_path / "out") == []


def test_short_writes_are_continued(target: TargetTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: whole(fd, data[:3], offset))
    target.add_file(b"f", [(0, b"0123456789"), (12, b"abc")], attributes(FILE, size=15))
    assert (tmp_path / "out" / "f").read_bytes() == b"0123456789\0\0abc"


def test_path_that_is_a_link_is_followed_since_somebody_named_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with TargetTree(str(tmp_path / "link")) as target:
        target.add_file(b"f", [], attributes(FILE))
    assert (tmp_path / "real" / "f").is_file()


@pytest.mark.parametrize(
    ("blocks", "runs"),
    [
        ("", []),
        ("0", []),
        ("1", [(0, 4096)]),
        ("0110", [(4096, 12288)]),
        ("101", [(0, 4096), (8192, 12288)]),
        ("1t", [(0, 4096 + 7)]),
        ("0t", [(4096, 4096 + 7)]),
        ("1z", [(0, 4096)]),
    ],
)
def test_runs_that_are_not_zero(blocks: str, runs: list[tuple[int, int]]) -> None:
    pieces = {"0": bytes(4096), "1": bytes(4095) + b"x", "t": bytes(6) + b"x", "z": bytes(7)}
    assert list(_runs(b"".join(pieces[block] for block in blocks))) == runs
