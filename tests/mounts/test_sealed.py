# SPDX-License-Identifier: Apache-2.0
"""A mount that is read-only for the kernel, too; and what the kernel lets root do to a mount of either mode.

That every change is refused, and none of it recorded, is in test_errnos and test_beside_kernel.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from rofs.fuse.kernel import MS_NODEV, MS_NOSUID, MS_RDONLY, unmount
from tests.compare import differences
from tests.conftest import SigningKeys
from tests.mounts.calls.answers import let_everyone_in
from tests.mounts.calls.linux import access_list, libc
from tests.mounts.harness import Mounted, drop_pages, mounted, rofs

MS_REMOUNT, MS_BIND = 0x20, 0x1000
ORDINARY_USER = 1000
SAFE = MS_NOSUID | MS_NODEV


@pytest.fixture
def sealed(small_image: Path, trust: Path, tmp_path: Path) -> Iterator[Mounted]:
    with mounted(small_image, trust, tmp_path, "--mode", "sealed") as mount:
        yield mount


def _options(directory: Path) -> set[str]:
    lines = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return set(next(line[3] for line in reversed(lines) if line[1] == str(directory)).split(","))


def _mount(source: str | Path, directory: Path, kind: str | None, flags: int) -> None:
    # By mount(2): the newer fsconfig(2), which mount(8) of Debian 13 uses, cannot reconfigure a FUSE mount.
    words = (os.fsencode(source), os.fsencode(directory), kind and kind.encode())
    libc("mount", *words, ctypes.c_ulong(flags), None)


def test_it_is_read_only_for_the_kernel_and_status_says_which_mode(sealed: Mounted) -> None:
    assert {"ro", "nosuid", "nodev"} <= _options(sealed.directory)
    assert os.statvfs(sealed.directory).f_flag & os.ST_RDONLY
    assert sealed.status()["mode"] == "sealed"
    assert not os.access(sealed.directory / "open-to-all", os.W_OK)


def test_it_reads_what_was_built(sealed: Mounted, small_tree: Path) -> None:
    assert differences(small_tree, sealed.directory) == []


def test_debian_reads_the_same_in_both_modes(debian_image: Path, trust: Path, tmp_path: Path) -> None:
    with (
        mounted(debian_image, trust, tmp_path / "audit") as audit,
        mounted(debian_image, trust, tmp_path / "sealed", "--mode", "sealed") as sealed,
    ):
        for part in ("etc", "usr/bin"):
            assert differences(audit.directory / part, sealed.directory / part) == []


def test_damage_is_eio_and_recorded(small_image: Path, trust: Path, tmp_path: Path) -> None:
    image = tmp_path / "copy.raw"
    image.write_bytes(small_image.read_bytes())
    with mounted(image, trust, tmp_path, "--mode", "sealed") as mount:
        image.write_bytes(small_image.read_bytes().replace(b"large 00000700", b"LARGE 00000700"))
        drop_pages(mount.directory / "large")
        with pytest.raises(OSError, match="Input/output error"):
            (mount.directory / "large").read_bytes()
        assert {event["path"] for event in mount.wait_for("corruption")} == {"/large"}


def test_remounted_for_writing_it_refuses_by_itself_and_records(sealed: Mounted) -> None:
    _refused(sealed)
    assert sealed.events("write_blocked") == []
    _mount("none", sealed.directory, None, MS_REMOUNT | SAFE)
    assert "rw" in _options(sealed.directory)
    (tamper,) = sealed.wait_for("tamper")
    assert (tamper["path"], tamper["status"]) == ("/", "remounted")
    assert "ro became rw" in tamper["detail"]
    _refused(sealed)
    (event,) = sealed.wait_for("write_blocked")
    assert (event["op"], event["path"], event["pid"]) == ("open", "/open-to-all", os.getpid())
    assert sealed.status()["mode"] == "sealed"


def test_remounted_by_mount_of_util_linux(sealed: Mounted) -> None:
    words = ["mount", "-i", "-o", "remount,rw", str(sealed.directory)]
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this mount(8) cannot remount a FUSE mount: {done.stderr.strip()}")
    sealed.wait_for("tamper")
    _refused(sealed)
    sealed.wait_for("write_blocked")


def _refused(mount: Mounted) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        (mount.directory / "open-to-all").write_text("x")


class Tampering(NamedTuple):
    """Something that root does to a mount, and what is to be recorded of it."""

    do: Callable[[Mounted, Path], None]
    path: str
    status: str
    detail: str


def _remount(flags: int) -> Callable[[Mounted, Path], None]:
    return lambda mount, _place: _mount("none", mount.directory, None, MS_REMOUNT | flags)


def _tmpfs(mount: Mounted, _place: Path) -> None:
    _mount("hiding", mount.directory, "tmpfs", 0)


def _bind(name: str) -> Callable[[Mounted, Path], None]:
    return lambda mount, place: _mount(place / "elsewhere" / name, mount.directory / name, None, MS_BIND)


WRITABLE = Tampering(_remount(SAFE), "/", "remounted", "ro became rw, superblock ro became rw")
READ_ONLY = Tampering(_remount(SAFE | MS_RDONLY), "/", "remounted", "rw became ro, superblock rw became ro")
AFTERWARDS = (
    Tampering(_remount(MS_BIND | MS_NODEV), "/", "remounted", "nosuid was removed"),
    Tampering(_remount(MS_BIND | MS_NODEV | MS_NOSUID), "/", "remounted", "nosuid was added"),
    Tampering(_bind("directory"), "/directory", "mounted over", r".+ from .+ \(.*/elsewhere/directory in it\) mounted"),
    Tampering(_bind("plain"), "/plain", "mounted over", r".+ from .+ \(.*/elsewhere/plain in it\) mounted"),
    Tampering(_tmpfs, "/", "mounted over", "tmpfs from hiding mounted, mount id [0-9]+"),
)


@contextmanager
def _whatever_is_mounted_is_unmounted(*places: Path) -> Iterator[None]:
    """Uncover places, in this order; each may be mounted over or not."""
    before = {place: _mounts_on(place) for place in places}
    try:
        yield
    finally:
        for place in places:
            while _mounts_on(place) > before[place]:
                unmount(os.fsencode(place), lazy=True)


def _mounts_on(place: Path) -> int:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()].count(str(place))


@pytest.mark.parametrize("mode", ["audit", "sealed"])
def test_remounting_and_mounting_over_is_recorded(small_image: Path, trust: Path, tmp_path: Path, mode: str) -> None:
    (tmp_path / "elsewhere" / "directory").mkdir(parents=True)
    (tmp_path / "elsewhere" / "plain").touch()
    remounts = (READ_ONLY, WRITABLE) if mode == "audit" else (WRITABLE, READ_ONLY)
    with mounted(small_image, trust, tmp_path, "--mode", mode) as mount:
        covered = (mount.directory, mount.directory / "directory", mount.directory / "plain")
        with _whatever_is_mounted_is_unmounted(*covered):
            for number, tampering in enumerate((*remounts, *AFTERWARDS), start=1):
                tampering.do(mount, tmp_path)
                event = mount.wait_for("tamper", number)[-1]
                assert (event["path"], event["status"]) == (tampering.path, tampering.status)
                assert re.match(tampering.detail, event["detail"])
        assert len(mount.events("tamper")) == number  # neither one too many, nor one for the unmounts
        assert (mount.directory / "plain").read_bytes()


@pytest.mark.parametrize("mode", ["audit", "sealed"])
def test_what_is_not_done_to_it_is_not_recorded(small_image: Path, trust: Path, tmp_path: Path, mode: str) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "bound").mkdir()
    with mounted(small_image, trust, tmp_path, "--mode", mode) as mount:
        with _whatever_is_mounted_is_unmounted(tmp_path / "beside", tmp_path / "bound"):
            _mount("beside", tmp_path / "beside", "tmpfs", 0)
            _mount(mount.directory, tmp_path / "bound", None, MS_BIND)
            _mount("none", mount.directory, None, MS_REMOUNT | MS_BIND)
            (event,) = mount.wait_for("tamper")  # of that alone
        assert event["status"] == "remounted"


@pytest.mark.parametrize("mode", ["audit", "sealed"])
def test_a_denied_user_stays_denied_and_an_allowed_one_allowed(
    signing_keys: SigningKeys, tmp_path: Path, mode: str
) -> None:
    tree, image, certificate = tmp_path / "tree", tmp_path / "acl.raw", signing_keys.certificate_path
    tree.mkdir()
    for name, bits, mode_bits in (("denied", 0, 0o644), ("allowed", 4, 0o600)):
        (tree / name).write_text(name)
        (tree / name).chmod(mode_bits)
        os.setxattr(tree / name, "system.posix_acl_access", access_list((ORDINARY_USER, bits)))
    rofs("build", tree, "-o", image, "--key", signing_keys.key_path, "--cert", certificate)
    let_everyone_in(tmp_path)
    with mounted(image, certificate, tmp_path, "--mode", mode) as mount:
        assert not _can_read(mount.directory / "denied", ORDINARY_USER)
        assert _can_read(mount.directory / "denied", ORDINARY_USER + 1)
        assert _can_read(mount.directory / "allowed", ORDINARY_USER)


def _can_read(path: Path, uid: int) -> bool:
    done = subprocess.run(["cat", path], check=False, user=uid, group=uid, extra_groups=[], capture_output=True)
    return done.returncode == 0


@pytest.mark.parametrize("mode", ["audit", "sealed"])
@pytest.mark.parametrize("options", ["suid,dev", "nosuid,nodev"])
def test_suid_and_dev_have_an_effect_only_when_asked_for(
    signing_keys: SigningKeys, tmp_path: Path, mode: str, options: str
) -> None:
    tree, image, certificate = tmp_path / "tree", tmp_path / "suid.raw", signing_keys.certificate_path
    tree.mkdir()
    (tree / "id").write_bytes(Path("/usr/bin/id").read_bytes())
    (tree / "id").chmod(0o4755)
    os.mknod(tree / "null", 0o020666, os.makedev(1, 3))
    (tree / "null").chmod(0o666)
    rofs("build", tree, "-o", image, "--key", signing_keys.key_path, "--cert", certificate)
    let_everyone_in(tmp_path)
    with mounted(image, certificate, tmp_path, "--mode", mode, "-o", options) as mount:
        words = [str(mount.directory / "id"), "-u"]
        done = subprocess.run(words, check=True, user=ORDINARY_USER, group=ORDINARY_USER, capture_output=True)
        works = options == "suid,dev"
        assert int(done.stdout) == (0 if works else ORDINARY_USER)
        assert (mount.directory / "null").is_char_device()
        assert _can_read(mount.directory / "null", ORDINARY_USER) == works
