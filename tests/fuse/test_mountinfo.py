# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from rofs.fuse import mountinfo
from rofs.fuse.mountinfo import Mount

TEXT = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
40 22 0:35 / /mnt/a\040b rw,nosuid master:1 propagate_from:2 - fuse.rofs /images/x\134y.raw rw,user_id=0
41 22 0:36 / /mnt rw - tmpfs none rw
42 41 0:37 /etc\011dir /mnt ro,noatime - fuse.rofs /images/z.raw rw,odd=\054,ro
"""


def test_escapes_are_undone() -> None:
    assert mountinfo.parse(TEXT)[1] == Mount(
        40,
        b"/mnt/a b",
        b"fuse.rofs",
        b"/images/x\\y.raw",
        parent_id=22,
        options=frozenset({b"rw", b"nosuid"}),
        super_options=frozenset({b"rw", b"user_id=0"}),
        device="0:35",
    )


def test_options_of_the_mount_are_not_those_of_its_superblock() -> None:
    bind = mountinfo.parse(TEXT)[3]
    assert (bind.parent_id, bind.root) == (41, b"/etc\tdir")
    assert bind.options == {b"ro", b"noatime"}
    assert bind.super_options == {b"rw", b"ro", b"odd=,"}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"1 2",
        b"3 4 5 - x",
        b"41 22 0:36 / /mnt - tmpfs none rw",
        b"41 22 0:36 / /mnt rw - tmpfs none",
        b"x 22 0:36 / /mnt rw - tmpfs none rw",
        b"41 x 0:36 / /mnt rw - tmpfs none rw",
        b"41 22 0:36 / /mnt rw tmpfs none rw",
    ],
)
def test_lines_that_are_no_mounts_are_skipped(line: bytes) -> None:
    assert mountinfo.parse(line + b"\n" + TEXT + line) == mountinfo.parse(TEXT)


def test_empty_source_is_one() -> None:
    (mount,) = mountinfo.parse(b"41 22 0:36 / /mnt rw - tmpfs  rw")
    assert mount.source == b""
    assert mount.super_options == {b"rw"}


def test_type_of_the_filesystem_below_a_file() -> None:
    assert mountinfo.fstype_of("/proc/self/status") == b"proc"
    with pytest.raises(FileNotFoundError):
        mountinfo.fstype_of(b"/proc/nowhere")


def test_root_is_a_mount_and_a_file_is_not() -> None:
    found = mountinfo.mount_on(b"/proc")
    assert found is not None
    assert found.fstype == b"proc"
    assert found.options & {b"rw", b"ro"}
    assert found.super_options & {b"rw", b"ro"}
    assert mountinfo.mount_with(found.mount_id, found.device) == found
    assert mountinfo.mount_on(b"/proc/self/status") is None
    assert mountinfo.mount_with(0, found.device) is None
    assert mountinfo.mount_with(found.mount_id, "0:0") is None  # the id was given to another one
