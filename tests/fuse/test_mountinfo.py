# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from rofs.fuse import mountinfo
from rofs.fuse.mountinfo import Mount

TEXT = rb"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:35 / /mnt/a\040b rw,nosuid - fuse.rofs /images/x\134y.raw rw,user_id=0
41 22 0:36 / /mnt rw - tmpfs none rw
42 22 0:37 / /mnt rw - fuse.rofs /images/z.raw rw
"""


def test_escapes_are_undone() -> None:
    assert mountinfo.parse(TEXT)[1] == Mount(40, b"/mnt/a b", b"fuse.rofs", b"/images/x\\y.raw")


def test_lines_that_are_no_mounts_are_skipped() -> None:
    assert mountinfo.parse(b"\n1 2\n" + TEXT + b"3 4 5 - x\n") == mountinfo.parse(TEXT)


def test_root_is_a_mount_and_a_file_is_not() -> None:
    found = mountinfo.mount_on(b"/proc")
    assert found is not None
    assert found.fstype == b"proc"
    assert mountinfo.mount_with(found.mount_id) == found
    assert mountinfo.mount_on(b"/proc/self/status") is None
    assert mountinfo.mount_with(0) is None
