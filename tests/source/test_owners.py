# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from rofs.source.owners import change_owners, owner_rule
from rofs.source.posix_acl import pack_acl
from rofs.tree import Tree
from tests.trees import directory, file

ACL_TEXT = b"u::rw,u:%d:r,g::r,g:%d:r,m::rw,o::r"


def changed(*texts: str, owners: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    root = directory()
    for number, (uid, gid) in enumerate(owners):
        inode = file()
        inode.uid, inode.gid = uid, gid
        root.add(b"%d" % number, inode)
    change_owners(Tree(root), [owner_rule(text) for text in texts])
    return [(inode.uid, inode.gid) for _, inode in sorted(root.children.items())]


@pytest.mark.parametrize(
    ("texts", "owners"),
    [
        ((), [(0, 0), (1000, 50), (100005, 100000), (4294967294, 7)]),
        (("0:0",), [(0, 0)] * 4),
        (("5:",), [(5, 0), (5, 50), (5, 100000), (5, 7)]),
        (("1000:50=1:2",), [(0, 0), (1, 2), (100005, 100000), (4294967294, 7)]),
        ((":50=:8",), [(0, 0), (1000, 8), (100005, 100000), (4294967294, 7)]),
        (("100000-165535:100000-165535=0:0",), [(0, 0), (1000, 50), (5, 0), (4294967294, 7)]),
        (("1000:=3:", "9:9"), [(9, 9), (3, 9), (9, 9), (9, 9)]),
        (("9:9", "1000:=3:"), [(9, 9)] * 4),
        (("0-4294967294:=0:",), [(0, 0), (1000, 50), (100005, 100000), (4294967294, 7)]),
    ],
)
def test_rules(texts: tuple[str, ...], owners: list[tuple[int, int]]) -> None:
    assert changed(*texts, owners=((0, 0), (1000, 50), (100005, 100000), (4294967294, 7))) == owners


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        ":",
        "root:root",
        "-1:0",
        "0:0:0",
        "4294967295:0",
        "1:1=2",
        "1:=:2",
        "1:1=:",
        "2-1:=0:",
        "1-:=0:",
        "0-9:=4294967290:",
        "=0:0",
        "1:1=0:0=0:0",
    ],
)
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"owner|user or group"):
        owner_rule(text)


def test_mappings_reach_acls_and_one_owner_for_all_does_not() -> None:
    for text, expected in (("1000:1000=1:2", (1, 2)), ("0:0", (1000, 1000))):
        acl = (b"system.posix_acl_access", pack_acl(ACL_TEXT % (1000, 1000)))
        inode = file(xattrs=(acl, (b"user.x", b"y")))
        change_owners(Tree(directory({b"a": inode})), [owner_rule(text)])
        assert inode.xattrs == ((acl[0], pack_acl(ACL_TEXT % expected)), (b"user.x", b"y"))
