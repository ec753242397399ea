# SPDX-License-Identifier: Apache-2.0
"""Every way to change a mount is refused with the errno of a read-only filesystem, and recorded with who tried.

Errno order as xfstests generic/294 has it: EEXIST and ENOENT come before EROFS. What the kernel refuses
by itself, by permission or since the operation does not exist, never reaches rofs: EPERM, EOPNOTSUPP.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.compare import differences
from tests.mounts.harness import Mounted, mounted

MS_RDONLY, MS_REMOUNT = 1, 32
SYSTEM_PYTHON = "/usr/bin/python3"
ORDINARY_USER = 1000
ATTEMPTS = Path(__file__).with_name("attempts.py")

# Everything else is EROFS.
ANSWERS = {
    "O_CREAT of what exists, for reading": "done",
    "O_EXCL of what exists": "EEXIST",
    "O_TMPFILE": "EOPNOTSUPP",
    "mkdir of what exists": "EEXIST",
    "rmdir of what is missing": "ENOENT",
    "unlink of what is missing": "ENOENT",
    "rename of what is missing": "ENOENT",
    "link over": "EEXIST",
    "symlink over": "EEXIST",
    "FS_IOC_SETFLAGS": "ENOTTY",
    "write to a descriptor for reading": "EBADF",
    "truncate of a descriptor for reading": "EINVAL",
    "fallocate of a descriptor for reading": "EBADF",
    "shared writable mapping": "EACCES",
    "open of a FIFO for writing": "done",
    "fsync": "done",
    "flock": "done",
}
# What an ordinary user who owns nothing of it may not even try.
NOT_PERMITTED = {
    "chmod",
    "chmod by descriptor",
    "chmod of a directory",
    "chown",
    "chown of a symlink",
    "utime",
    "mknod of a device",
    "setxattr trusted",
    "setxattr of a capability",
    "setxattr of an ACL",
    "FS_IOC_SETFLAGS",
}
# The operation that an attempt is recorded as.
RECORDED = Counter(
    {
        "open": 5,
        "create": 3,
        "setattr": 8,
        "mkdir": 1,
        "rmdir": 1,
        "unlink": 2,
        "rename": 6,
        "link": 1,
        "symlink": 1,
        "mknod": 3,
        "setxattr": 6,
        "removexattr": 1,
    }
)


@pytest.fixture
def mount(small_image: Path, trust: Path, tmp_path: Path) -> Iterator[Mounted]:
    for parent in (tmp_path, *tmp_path.parents):
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)  # so that the ordinary user reaches the mount
    with mounted(small_image, trust, tmp_path / "place") as living:
        yield living


def _attempt_all(mount: Mounted, uid: int) -> dict[str, Any]:
    # From stdin: an ordinary user may not be able to read the checkout.
    done = subprocess.run(
        [SYSTEM_PYTHON, "-", mount.directory],
        input=ATTEMPTS.read_bytes(),
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_root_is_refused_everything(mount: Mounted, small_tree: Path) -> None:
    answer = _attempt_all(mount, 0)
    assert answer["got"] == {name: ANSWERS.get(name, "EROFS") for name in answer["got"]}
    events = [e for e in mount.wait_for("write_blocked", RECORDED.total()) if e["pid"] == answer["pid"]]
    assert Counter(event["op"] for event in events) == RECORDED
    assert {event["uid"] for event in events} == {0}
    assert differences(small_tree, mount.directory) == []


def test_an_ordinary_user_is_refused_everything(mount: Mounted, small_tree: Path) -> None:
    answer = _attempt_all(mount, ORDINARY_USER)
    expected = {name: "EPERM" if name in NOT_PERMITTED else ANSWERS.get(name, "EROFS") for name in answer["got"]}
    assert answer["got"] == expected
    refused = sum(got == "EROFS" for got in answer["got"].values())
    events = mount.wait_for("write_blocked", refused)
    assert len(events) == refused
    assert {(e["pid"], e["uid"], e["gid"]) for e in events} == {(answer["pid"], ORDINARY_USER, ORDINARY_USER)}
    assert differences(small_tree, mount.directory) == []


def test_an_event_says_who_and_what(mount: Mounted) -> None:
    target = mount.directory / "directory" / "inner"
    done = subprocess.run(["rm", target], check=False, user=ORDINARY_USER, group=ORDINARY_USER, capture_output=True)
    assert b"Read-only file system" in done.stderr
    (event,) = mount.wait_for("write_blocked")
    assert event["op"] == "unlink"
    assert event["path"] == "/directory/inner"
    assert event["errno"] == "EROFS"
    assert event["comm"] == "rm"
    assert event["exe"] == os.path.realpath("/usr/bin/rm")
    assert (event["uid"], event["gid"]) == (ORDINARY_USER, ORDINARY_USER)
    assert event["ppid"] == os.getpid()
    assert event["mount"] == str(mount.directory)
    assert event["image"]["root_hash"] == mount.status()["root_hash"]


def test_a_name_that_is_not_utf8_is_recorded_without_loss(mount: Mounted) -> None:
    name = os.fsencode(mount.directory) + b"/caf\xe9\\new\nline"
    with pytest.raises(OSError, match="Read-only"):
        os.mkdir(name)
    (event,) = mount.wait_for("write_blocked")
    assert event["path"] == "/caf\\xe9\\\\new\nline"


def test_rename_records_both_names(mount: Mounted) -> None:
    with pytest.raises(OSError, match="Read-only"):
        (mount.directory / "plain").rename(mount.directory / "directory" / "moved")
    (event,) = mount.wait_for("write_blocked")
    assert (event["path"], event["path2"]) == ("/plain", "/directory/moved")


def test_link_records_every_name_of_the_file(mount: Mounted) -> None:
    with pytest.raises(OSError, match="Read-only"):
        os.link(mount.directory / "plain", mount.directory / "third")
    (event,) = mount.wait_for("write_blocked")
    assert sorted(event["paths"]) == ["/directory/hard-link", "/plain"]
    assert event["path2"] == "/third"


def test_flags_and_changes_are_named(mount: Mounted) -> None:
    for attempt in (
        lambda: os.open(mount.directory / "plain", os.O_WRONLY | os.O_TRUNC),
        lambda: os.chown(mount.directory / "plain", 3, -1),
        lambda: os.removexattr(mount.directory / "open-to-all", "user.note"),
    ):
        with pytest.raises(OSError, match="Read-only"):
            attempt()
    opened, changed, removed = mount.wait_for("write_blocked", 3)
    assert opened["flags"] == ["O_WRONLY", "O_TRUNC"]
    assert changed["changes"] == ["uid"]
    assert removed["xattr"] == "user.note"


@pytest.mark.parametrize("flags", [MS_REMOUNT | MS_RDONLY, MS_REMOUNT])
def test_remounted_it_refuses_all_the_same(mount: Mounted, flags: int) -> None:
    # By mount(2): the newer fsconfig(2), which mount(8) of Debian 13 uses, cannot reconfigure a FUSE mount.
    libc = ctypes.CDLL(None, use_errno=True)
    directory = os.fsencode(mount.directory)
    assert libc.mount(b"none", directory, None, ctypes.c_ulong(flags), None) == 0, os.strerror(ctypes.get_errno())
    with pytest.raises(OSError, match="Read-only"):
        (mount.directory / "plain").write_text("x")
    assert (mount.directory / "plain").read_bytes()
