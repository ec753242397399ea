# SPDX-License-Identifier: Apache-2.0
"""Call by call the same as the kernel's own EROFS mount of the same image; what differs is listed, with the reason.

The lists here are those of docs/operations.md, which is for users; a test holds both together. The results
of the kernel's EROFS are those of the kernel that runs, so another version may show other differences: then
they belong into the lists, too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conftest import REPOSITORY, SigningKeys
from tests.mounts.calls import tree
from tests.mounts.calls.answers import MODES, USERS, Answers, collect
from tests.mounts.calls.tree import ORDINARY_USER
from tests.mounts.harness import rofs

# Where the lists are known to be complete and without rows too many.
KNOWN_KERNEL = (6, 18)
ROOT_ONLY, OTHERS_ONLY = (0,), (ORDINARY_USER,)


class Difference(NamedTuple):
    """Calls that get something else from rofs than from the kernel's EROFS.

    Attributes:
        calls: Of `CHANGING` or `READING`.
        ours: What rofs gives: an errno, `done`, or in words.
        kernels: What the kernel's EROFS gives.
        why: The reason.
        users: Who sees it.
    """

    calls: tuple[str, ...]
    ours: str
    kernels: str
    why: str
    users: tuple[int, ...] = USERS


IN_BOTH_MODES = (
    Difference(
        ("stat: inode number",),
        "nid + 2; the root is 1",
        "the nid",
        "FUSE keeps 0 and 1 for itself; the number is that of the request, so that no worker has to remember any",
    ),
    Difference(
        ("statx: mask and attributes",),
        "atime is said to be valid; not `immutable`; nothing about direct I/O",
        "atime is not; `immutable`; alignment of direct I/O",
        "FUSE takes from us what stat(2) has, the kernel adds the rest",
    ),
    Difference(("statfs: type",), "0x65735546", "0xe0f5e1e2", "the types of FUSE and of EROFS"),
    Difference(
        ("statfs: files", "statfs: free"),
        "the number of inodes, none free",
        "as many as 64 bits can say, all but ours free",
        "nothing can be created: df(1) shows it full",
    ),
    Difference(
        ("getxattr: a name without a rest",),
        "ENODATA",
        "EINVAL",
        "FUSE has one handler for all namespaces; there is no such attribute",
    ),
    Difference(
        ("open O_DIRECT of a directory",),
        "EINVAL",
        "done",
        "direct I/O of FUSE is for files; a directory has no content",
    ),
    Difference(("pread O_DIRECT, not aligned",), "100", "EINVAL", "no device asks for alignment: we get any offset"),
    Difference(
        ("lseek SEEK_DATA in a hole", "lseek SEEK_HOLE in a hole"),
        "all is data",
        "the hole",
        "pyfuse3 has no handler for LSEEK; holes are read as zeros",
    ),
    Difference(
        ("FS_IOC_GETFSLABEL",),
        "ENOTTY",
        "the volume name",
        "pyfuse3 has no handler for IOCTL; `rofs status` tells the name",
    ),
    Difference(
        ("FS_IOC_FIEMAP",), "EOPNOTSUPP", "1", "FUSE has no such request; where a block lies is nobody's business"
    ),
    Difference(("FIBMAP",), "block 0", "the block", "as above: 0 says that there is none", ROOT_ONLY),
    Difference(
        ("fsync", "fdatasync", "fsync of a directory"),
        "done",
        "EINVAL",
        "there is nothing to write; programs take EINVAL for a failure",
    ),
    Difference(
        ("open_by_handle_at: handle of another generation",),
        "ESTALE",
        "done",
        "FUSE checks the generation of a handle, which is always 0",
        ROOT_ONLY,
    ),
)

IN_AUDIT_MODE = (
    Difference(
        ("statfs: read-only",),
        "False",
        "True",
        "the superblock is writable, or the kernel would refuse changes unseen; so does /proc/mounts say `rw`",
    ),
    Difference(
        ("access W_OK of the root", "access W_OK of a file"),
        "done",
        "EROFS",
        "as above: permission bits alone answer access(2)",
    ),
    Difference(("access W_OK of another's file",), "done", "EROFS", "as above: root may do everything", ROOT_ONLY),
    Difference(
        ("open O_TMPFILE",), "EOPNOTSUPP", "EROFS", "pyfuse3 has no handler for TMPFILE; the kernel refuses it, unseen"
    ),
    Difference(
        ("chflags",), "ENOTTY", "EROFS", "pyfuse3 has no handler for IOCTL; the kernel refuses it, unseen", ROOT_ONLY
    ),
    Difference(
        ("fchmodat2 AT_SYMLINK_NOFOLLOW of a link",),
        "EOPNOTSUPP",
        "EROFS",
        "links have no mode; the kernel knows before we do",
    ),
    Difference(
        (
            "unlink of what is missing",
            "rmdir of what is missing",
            "rename of what is missing",
            "renameat2 RENAME_EXCHANGE with nothing",
        ),
        "ENOENT",
        "EROFS",
        "as on a writable filesystem, names are looked up before anything is asked of us",
    ),
    Difference(("rmdir of a file", "rename of a directory over a file"), "ENOTDIR", "EROFS", "as above"),
    Difference(("unlink of a directory", "rename over a directory"), "EISDIR", "EROFS", "as above"),
    Difference(("renameat2 RENAME_NOREPLACE over a file",), "EEXIST", "EROFS", "as above"),
    Difference(("rename of a directory into itself",), "EINVAL", "EROFS", "as above"),
    Difference(("unlink of 256 bytes", "rename to 256 bytes"), "ENAMETOOLONG", "EROFS", "as above"),
    Difference(("link from outside",), "EXDEV", "EROFS", "as above"),
    Difference(("link of a directory",), "EPERM", "EROFS", "as above: no filesystem may"),
    Difference(
        ("rename onto itself", "rename onto a hard link of itself"),
        "done",
        "EROFS",
        "as above: rename(2) has nothing to do, and changes nothing",
    ),
    Difference(
        ("setxattr user of a link", "setxattr user of a FIFO"),
        "EPERM",
        "EROFS",
        "as above: only files and directories may",
    ),
    Difference(
        ("setxattr XATTR_CREATE of what exists",),
        "EEXIST",
        "EROFS",
        "pyfuse3 looks for the attribute before it asks us; unseen",
    ),
    Difference(("setxattr XATTR_REPLACE of what is missing",), "ENODATA", "EROFS", "as above"),
    Difference(
        (
            "chmod",
            "fchmod",
            "chmod of the root",
            "fchmodat2 AT_SYMLINK_NOFOLLOW",
            "chown",
            "fchown",
            "fchownat",
            "chown of the root",
            "lchown of a link",
            "lchown of the root",
            "utime",
            "utime of the root",
            "utimensat of a link",
            "futimens",
            "chflags",
            "mknod of a device",
            "unlink in a sticky directory",
            "setxattr trusted of a link",
            "setxattr of a capability",
            "setxattr of an ACL",
        ),
        "EPERM",
        "EROFS",
        "the kernel checks permission first, and refuses by itself what only owner or root may; unseen",
        OTHERS_ONLY,
    ),
    Difference(
        (
            "open O_WRONLY of another's file",
            "access W_OK of another's file",
            "unlink where one may not write",
        ),
        "EACCES",
        "EROFS",
        "as above: what permission bits do not allow",
        OTHERS_ONLY,
    ),
)

# Of calls with xattrs, on an image that has none.
WITHOUT_XATTRS = (
    Difference(
        ("listxattr: size", "listxattr: buffer too small", "listxattr of what has none", "xattrs"),
        "EOPNOTSUPP",
        "0",
        "the kernel is told once that there are none, and asks no more",
    ),
    Difference(
        ("setxattr XATTR_REPLACE",), "ENODATA", "EROFS", "pyfuse3 looks for the attribute before it asks us; unseen"
    ),
)

_HEAD = "| call | rofs | kernel EROFS | why |\n|---|---|---|---|\n"
_USERS = {USERS: "", ROOT_ONLY: "as root: ", OTHERS_ONLY: "not as root: "}


def _table(differences: tuple[Difference, ...]) -> str:
    lines = [
        f"| {_USERS[row.users]}{', '.join(row.calls)} | {row.ours} | {row.kernels} | {row.why} |\n"
        for row in differences
    ]
    return _HEAD + "".join(lines)


def _found(answers: Answers, mode: str) -> set[tuple[str, int]]:
    """Which calls differ, for which user."""
    return {
        (call, uid)
        for uid in USERS
        for call, outcome in answers.by[mode, uid].items()
        if outcome.got != answers.got("kernel", uid, call)
    }


def _listed(*lists: tuple[Difference, ...]) -> set[tuple[str, int]]:
    return {(call, uid) for rows in lists for row in rows for call in row.calls for uid in row.users}


def _lists_of(mode: str) -> tuple[tuple[Difference, ...], ...]:
    return (IN_BOTH_MODES, IN_AUDIT_MODE) if mode == "audit" else (IN_BOTH_MODES,)


def _kernel() -> tuple[int, ...]:
    return tuple(map(int, os.uname().release.split(".")[:2]))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_else_differs(answers: Answers, mode: str) -> None:
    unlisted = _found(answers, mode) - _listed(*_lists_of(mode))
    assert {key: _both(answers, mode, *key) for key in unlisted} == {}


@pytest.mark.skipif(_kernel() < KNOWN_KERNEL, reason=f"on kernels before {KNOWN_KERNEL} there may be fewer differences")
@pytest.mark.parametrize("mode", MODES)
def test_what_is_listed_does_differ(answers: Answers, mode: str) -> None:
    assert _listed(*_lists_of(mode)) - _found(answers, mode) == set()


def _both(answers: Answers, mode: str, call: str, uid: int) -> tuple[Any, Any]:
    return answers.got(mode, uid, call), answers.got("kernel", uid, call)


@pytest.mark.parametrize("row", [*IN_BOTH_MODES, *IN_AUDIT_MODE], ids=lambda row: row.calls[0])
def test_the_answer_is_the_one_that_is_listed(answers: Answers, row: Difference) -> None:
    for call in row.calls:
        for uid in row.users:
            ours, kernels = _both(answers, "audit", call, uid)
            assert " " in row.ours or str(ours) == row.ours
            assert " " in row.kernels or _kernel() < KNOWN_KERNEL or str(kernels) == row.kernels


def test_without_xattrs(signing_keys: SigningKeys, tmp_path: Path) -> None:
    tree.make(tmp_path / "tree", xattrs=False)
    key, certificate = signing_keys.key_path, signing_keys.certificate_path
    rofs("build", tmp_path / "tree", "-o", tmp_path / "image.raw", "--key", key, "--cert", certificate)
    answers = collect(tmp_path / "image.raw", certificate, tmp_path, "xattr")
    for mode in MODES:
        only_here = _found(answers, mode) - _listed(*_lists_of(mode))
        assert only_here == {key for key in _listed(WITHOUT_XATTRS) if mode == "audit" or "setxattr" not in key[0]}
    refused = [outcome for uid in USERS for outcome in answers.by["audit", uid].values() if outcome.got == "EROFS"]
    recorded = [event for event in answers.events["audit"] if event["event"] == "write_blocked"]
    assert len(recorded) == len(refused) > 10


@pytest.mark.parametrize("differences", [IN_BOTH_MODES, IN_AUDIT_MODE, WITHOUT_XATTRS], ids=["both", "audit", "xattrs"])
def test_the_document_lists_the_same(differences: tuple[Difference, ...]) -> None:
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    assert f"\n{_table(differences)}\n" in text
    assert text.count(_HEAD) == 3
