# SPDX-License-Identifier: Apache-2.0
"""Owners, permissions, times and xattrs: in the order that keeps all, and an account of what is missing."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from rofs.target.attributes import _MAX_KINDS, Attributes, AttributeSetter, times_of
from rofs.vfs import Stat
from tests.trees import CAPABILITY

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def attributes(
    mode: int = 0o644, uid: int | None = None, mtime_ns: int = 5, xattrs: tuple[tuple[bytes, bytes], ...] = ()
) -> Attributes:
    owner = os.geteuid() if uid is None else uid
    group = os.getegid() if uid is None else uid
    return Attributes(Stat(1, stat.S_IFREG | mode, 1, owner, group, 0, 0, mtime_ns, 0), xattrs)


@pytest.fixture
def file(tmp_path: Path) -> bytes:
    (tmp_path / "file").write_bytes(b"")
    return os.fsencode(tmp_path / "file")


@needs_root
def test_owner_mode_and_capability_do_not_undo_each_other(file: bytes) -> None:
    setter = AttributeSetter()
    setter.set_all(file, attributes(0o6555, uid=7, xattrs=((b"security.capability", CAPABILITY),)), lambda: b"/file")
    found = os.stat(file)
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns) == (0o6555, 7, 7, 5)
    assert os.getxattr(file, "security.capability") == CAPABILITY
    assert setter.shortfalls == {}


def test_xattr_of_a_file_that_nobody_may_write(file: bytes) -> None:
    setter = AttributeSetter()
    setter.set_all(file, attributes(0o000, xattrs=((b"user.a", b"1"),)), lambda: b"/file")
    assert setter.shortfalls == {}
    assert os.stat(file).st_mode & 0o777 == 0


def test_authority_is_not_given_without_the_owner(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "chown", refuse)
    setter = AttributeSetter()
    setter.privileged = True
    setter.set_all(file, attributes(0o6755), lambda: b"/file")
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o755
    assert {s.what: (s.reason, s.expected) for s in setter.shortfalls.values()} == {
        "owners": ("Invalid argument", False),
        "setuid and setgid bits": ("not given without the owner", False),
    }


@pytest.mark.parametrize("uid", [0xFFFFFFFF, 12345])
def test_what_an_ordinary_user_cannot_set_is_expected(file: bytes, uid: int) -> None:
    setter = AttributeSetter()
    setter.privileged = False
    setter.set_all(file, attributes(0o4755, uid=uid), lambda: b"/file")
    assert os.stat(file).st_uid == os.geteuid()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o755
    assert setter.shortfalls["owners"].expected is (uid == 12345)
    assert setter.shortfalls["setuid and setgid bits"].expected


def test_owner_number_that_means_no_change_is_nobodys(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """chown(2) would succeed, and a setuid file would stay the extracting user's."""
    setter = AttributeSetter()
    setter.privileged = True
    setter.set_all(file, attributes(0o4755, uid=0xFFFFFFFF), lambda: b"/file")
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o755
    assert "owners" in setter.shortfalls


def test_time_that_the_filesystem_cannot_keep(file: bytes) -> None:
    setter = AttributeSetter()
    setter.set_all(file, attributes(mtime_ns=((1 << 63) - 1) * 10**9), lambda: b"/file")
    if os.stat(file).st_mtime_ns != ((1 << 63) - 1) * 10**9:  # as ext4; tmpfs keeps it
        (missed,) = setter.shortfalls.values()
        assert missed.what == "modification times"


@pytest.mark.parametrize("privileged", [True, False])
def test_times_that_cannot_be_given_back(file: bytes, monkeypatch: pytest.MonkeyPatch, privileged: bool) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refuse)
    setter = AttributeSetter()
    setter.privileged = privileged
    setter.restore_times(file, times_of(file), lambda: b"/")
    assert setter.shortfalls == {}  # nothing changed, nothing to do
    setter.restore_times(file, (1, 2), lambda: b"/")
    (missed,) = setter.shortfalls.values()
    assert (missed.what, missed.expected) == ("times of directories that were there", not privileged)


def test_kinds_are_counted_once_and_bounded(file: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    setter = AttributeSetter()
    many = tuple((b"user.%d" % n, b"") for n in range(1000))
    for number in range(3):
        setter.set_all(file, attributes(xattrs=many), lambda number=number: b"/%d" % number)  # type: ignore[misc]
    assert len(setter.shortfalls) == _MAX_KINDS + 1
    assert sum(missed.count for missed in setter.shortfalls.values()) == 3000
    assert {missed.path for missed in setter.shortfalls.values()} == {b"/0"}
