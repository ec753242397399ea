# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from rofs.source.posix_acl import check_acl, map_ids, mode_with_acl, pack_acl, says_no_more_than_the_mode
from tests.trees import ACL


@pytest.mark.parametrize(
    "text",
    [
        b"user::rw-\nuser:1234:r--\ngroup::r--\nmask::rw-\nother::r--\n",
        b"other::r--,mask::rw-,group::r--,user:1234:r--,user::rw-",
        b"user::rw-,user:ada:r--:1234,group::r--,mask::rw-,other::r--",
        b"u::rw,u:1234:r,g::r,m:rw,o:r",
        b"# file: x\nuser::rw-\nuser:1234:r--\t#effective:r--\ngroup::r--\nmask::rw-\nother::r--",
    ],
)
def test_texts_of_one_acl(text: bytes) -> None:
    assert pack_acl(text) == ACL


def test_entries_are_sorted_as_the_kernels_tools_do() -> None:
    text = b"user::rwx,group:50:r-x,user:9:---,group:7:r--,user:10:--x,group::r-x,mask::rwx,other::---"
    entries = [struct.unpack_from("<HHI", pack_acl(text), at) for at in range(4, 68, 8)]
    assert [(tag, number) for tag, _, number in entries] == [
        (1, 0xFFFFFFFF),
        (2, 9),
        (2, 10),
        (4, 0xFFFFFFFF),
        (8, 7),
        (8, 50),
        (0x10, 0xFFFFFFFF),
        (0x20, 0xFFFFFFFF),
    ]


@pytest.mark.skipif(not shutil.which("setfacl"), reason="needs setfacl")
def test_the_value_is_what_setfacl_sets(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch(mode=0o600)
    text = "user::rw-,user:4294967294:r-x,group::r--,group:7:-w-,mask::rwx,other::--x"
    subprocess.run(["setfacl", "--set", text, path], check=True)
    assert pack_acl(text.encode()) == os.getxattr(path, "system.posix_acl_access")
    assert mode_with_acl(0o104600, pack_acl(text.encode())) == 0o104000 | path.stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"user::rwx", "entries are missing or there twice"),
        (b"user::rwx,group::r-x,other::r-x,other::r-x", "there twice"),
        (b"user::rwx,user:1:r--,group::r-x,other::r-x", "missing"),
        (b"user:ada:rwx,user::rwx,group::r-x,mask::r--,other::r-x", "'ada' is no number"),
        (b"user:4294967295:rwx,user::rwx,group::r-x,mask::r--,other::r-x", "no number"),
        (b"mask:5:rwx", "no number"),
        (b"user::rwxt", "permissions b'rwxt'"),
        (b"everyone@:rwx", "which is none"),
        (b"user", "which is none"),
        (b"user:::::", "which is none"),
    ],
)
def test_texts_that_are_no_acl(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        pack_acl(text)


def test_an_acl_that_is_only_the_mode() -> None:
    assert pack_acl(b"\n# nothing\n") == b""
    assert says_no_more_than_the_mode(pack_acl(b"u::rw,g::r,o::-"))
    assert not says_no_more_than_the_mode(ACL)


def test_setting_an_acl_changes_the_permission_bits() -> None:
    assert mode_with_acl(0o104777, ACL) == 0o104664
    for value in (b"", b"x", ACL[:-1], ACL[:12]):
        assert mode_with_acl(0o100644, value) == 0o100644


def test_other_numbers() -> None:
    text = b"u::rw,u:%d:r,u:5:r,g::r,g:%d:r,m::rw,o::r"
    mapped = map_ids(pack_acl(text % (1000, 1000)), lambda uid: uid - 999 if uid == 1000 else uid, lambda gid: gid + 7)
    assert mapped == pack_acl(text % (1, 1007))
    assert map_ids(b"none", lambda _: 0, lambda _: 0) == b"none"


def _acl(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


_NONE = 0xFFFFFFFF
_BASE = ((1, 6, _NONE), (4, 4, _NONE), (32, 4, _NONE))


def test_what_the_kernel_takes_is_an_acl() -> None:
    check_acl(_acl(*_BASE))
    check_acl(_acl((1, 6, _NONE), (2, 4, 7), (2, 4, 8), (4, 4, _NONE), (16, 4, _NONE), (32, 0, _NONE)))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"junk",
        _acl(version=2),
        _acl(*_BASE, version=1),
        _acl(*_BASE) + b"x",
        _acl(*_BASE[1:]),
        _acl(*reversed(_BASE)),
        _acl((1, 6, _NONE), *_BASE),
        _acl((1, 9, _NONE), *_BASE[1:]),
        _acl((1, 6, _NONE), (2, 4, 7), (4, 4, _NONE), (32, 0, _NONE)),
        _acl(*_BASE, (64, 0, _NONE)),
    ],
)
def test_what_it_does_not_take_is_none(value: bytes) -> None:
    with pytest.raises(ValueError, match="its ACL"):
        check_acl(value)
