# SPDX-License-Identifier: Apache-2.0
"""Each case in which LTP or pjdfstest expects EROFS, in both modes and as two users; and what is recorded of it.

The cases are cited by name, the calls are our own (`calls.changing`). Of LTP those with `needs_rofs` and those
that mount something read-only by themselves; its `_16` variants are for programs of 32 bits. What neither of
them tries, a manual page stands for. What the kernel refuses by itself in audit mode is no EROFS there, and is
not recorded: these cells of the table are the difference.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

import pytest

from tests.mounts.calls.answers import MODES, USERS, Answers
from tests.mounts.calls.changing import CHANGING
from tests.mounts.calls.tree import ORDINARY_USER

# fmt: off
LTP = {
    "access04", "acct01", "chmod06", "chown04", "creat06", "fanotify21", "fchmod06", "fchown04", "fchownat03",
    "lchown02", "link08", "linkat02", "mkdir03", "mkdirat02", "mknod07", "mknodat02", "mount03", "rename11",
    "renameat01", "rmdir02", "unlink10", "utime06", "utimes01",
}
PJDFSTEST = {
    "chflags/12", "chmod/09", "chown/09", "ftruncate/10", "link/16", "mkdir/09", "mkfifo/08", "open/14", "open/15",
    "rename/16", "rmdir/14", "symlink/10", "truncate/10", "unlink/12",
}
# fmt: on


class Case(NamedTuple):
    """One call that a read-only filesystem must refuse.

    Attributes:
        call: Of `CHANGING`.
        cites: Who expects it.
        op: What it is recorded as in audit mode; empty when it is not.
        path: Where.
        audit: What root gets in audit mode.
        user: What an ordinary user gets in audit mode; empty when only root may try at all.
        sealed: What both get in sealed mode.
    """

    call: str
    cites: str
    op: str = ""
    path: str = "/file"
    audit: str = "EROFS"
    user: str = "EROFS"
    sealed: str = "EROFS"


CASES = (
    Case("open O_WRONLY", "pjdfstest open/14", "open"),
    Case("open O_RDWR", "pjdfstest open/14", "open"),
    Case("open O_RDONLY|O_TRUNC", "pjdfstest open/14", "open"),
    Case("open O_APPEND", "open(2)", "open"),
    Case("open O_CREAT", "pjdfstest open/15", "create", "/new"),
    Case("open O_CREAT|O_RDWR", "LTP mount03", "create", "/new"),
    Case("open O_CREAT through a dangling link", "open(2)", "create", "/absent"),
    Case("open O_WRONLY through a link", "open(2)", "open"),
    Case("open O_TMPFILE", "open(2)", audit="EOPNOTSUPP", user="EOPNOTSUPP"),
    Case("openat O_CREAT", "openat(2)", "create", "/directory/new"),
    Case("openat2 O_CREAT", "openat2(2)", "create", "/new"),
    Case("openat2 O_WRONLY", "openat2(2)", "open"),
    Case("creat", "LTP creat06", "create", "/new"),
    Case("creat of what exists", "creat(2)", "open"),
    Case("acct", "LTP acct01", "open", user=""),
    Case("descriptor of a fanotify event", "LTP fanotify21", "open", user=""),
    Case("access W_OK of the root", "LTP access04", audit="done", user="done"),
    Case("access W_OK of a file", "access(2)", audit="done", user="done"),
    Case("chmod", "pjdfstest chmod/09", "setattr", user="EPERM"),
    Case("chmod of the root", "LTP chmod06", "setattr", "/", user="EPERM"),
    Case("fchmod", "LTP fchmod06", "setattr", user="EPERM"),
    Case("fchmodat2 AT_SYMLINK_NOFOLLOW", "pjdfstest chmod/09 (lchmod)", "setattr", user="EPERM"),
    Case("chown", "pjdfstest chown/09", "setattr", user="EPERM"),
    Case("chown of the root", "LTP chown04", "setattr", "/", user="EPERM"),
    Case("chown to nobody else", "chown(2)", "setattr"),
    Case("fchown", "LTP fchown04", "setattr", user="EPERM"),
    Case("fchownat", "LTP fchownat03", "setattr", "/directory/inner", user="EPERM"),
    Case("lchown of a link", "lchown(2)", "setattr", "/symlink", user="EPERM"),
    Case("lchown of the root", "LTP lchown02", "setattr", "/", user="EPERM"),
    Case("truncate", "pjdfstest truncate/10, pjdfstest ftruncate/10 (which calls truncate)", "setattr"),
    Case("utime", "LTP utime06, LTP utimes01", "setattr", user="EPERM"),
    Case("utime of the root", "LTP utime06", "setattr", "/", user="EPERM"),
    Case("utimes to now", "utimes(2)", "setattr"),
    Case("utimensat to now", "utimensat(2)", "setattr"),
    Case("utimensat of a link", "utimensat(2)", "setattr", "/symlink", user="EPERM"),
    Case("futimens", "futimens(3)", "setattr", user="EPERM"),
    Case("chflags", "pjdfstest chflags/12", audit="ENOTTY", user="EPERM"),
    Case("mkdir", "LTP mkdir03, pjdfstest mkdir/09", "mkdir", "/new"),
    Case("mkdirat", "LTP mkdirat02", "mkdir", "/directory/new"),
    Case("rmdir", "LTP rmdir02, pjdfstest rmdir/14", "rmdir", "/empty"),
    Case("rmdir of a directory that is not empty", "rmdir(2)", "rmdir", "/directory"),
    Case("unlink", "LTP unlink10, pjdfstest unlink/12", "unlink"),
    Case("unlinkat", "unlinkat(2)", "unlink", "/directory/inner"),
    Case("unlinkat AT_REMOVEDIR", "unlinkat(2)", "rmdir", "/directory/deeper"),
    Case("rename", "LTP rename11, LTP renameat01, pjdfstest rename/16", "rename"),
    Case("rename over a file", "rename(2)", "rename"),
    # Not EROFS on Linux, which finds out first that these are two filesystems.
    Case("rename out of it", "pjdfstest rename/16", audit="EXDEV", user="EXDEV", sealed="EXDEV"),
    Case("rename into it", "pjdfstest rename/16", audit="EXDEV", user="EXDEV", sealed="EXDEV"),
    Case("renameat", "LTP renameat01", "rename", "/directory/inner"),
    Case("renameat2 RENAME_NOREPLACE", "renameat2(2)", "rename"),
    Case("renameat2 RENAME_EXCHANGE", "renameat2(2)", "rename"),
    Case("link", "LTP link08, pjdfstest link/16", "link"),
    Case("link of a directory", "LTP linkat02", audit="EPERM", user="EPERM"),
    Case("linkat", "linkat(2)", "link", "/directory/inner"),
    Case("symlink", "pjdfstest symlink/10", "symlink", "/new"),
    Case("symlinkat", "symlinkat(2)", "symlink", "/directory/new"),
    Case("mkfifo", "pjdfstest mkfifo/08", "mknod", "/new"),
    Case("mknod of a file", "LTP mknodat02", "mknod", "/new"),
    Case("mknod of a socket", "LTP mknod07, LTP mknodat02", "mknod", "/new"),
    Case("mknod of a device", "mknod(2)", "mknod", "/new", user="EPERM"),
    Case("mknodat of a FIFO", "LTP mknodat02", "mknod", "/directory/new"),
    Case("bind", "unix(7)", "mknod", "/new"),
    Case("setxattr", "setxattr(2)", "setxattr"),
    Case("setxattr XATTR_CREATE", "setxattr(2)", "setxattr"),
    Case("setxattr XATTR_REPLACE", "setxattr(2)", "setxattr"),
    Case("setxattr trusted of a link", "lsetxattr(2)", "setxattr", "/symlink", user="EPERM"),
    Case("setxattr of a capability", "capabilities(7)", "setxattr", "/program", user="EPERM"),
    Case("setxattr of an ACL", "acl(5)", "setxattr", user="EPERM"),
    Case("fsetxattr", "fsetxattr(2)", "setxattr"),
    Case("removexattr", "removexattr(2)", "removexattr"),
    Case("fremovexattr", "fremovexattr(2)", "removexattr"),
)


def _cited(suite: str) -> set[str]:
    return {name for case in CASES for name in re.findall(rf"{suite} ([\w/]+)", case.cites)}


def test_every_case_of_both_suites_is_there() -> None:
    assert _cited("LTP") == LTP
    assert _cited("pjdfstest") == PJDFSTEST


@pytest.mark.parametrize("uid", USERS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.call)
def test_errno(answers: Answers, case: Case, mode: str, uid: int) -> None:
    expected = case.sealed if mode == "sealed" else case.audit if uid == 0 else case.user
    if uid == ORDINARY_USER and not case.user:
        expected = "EPERM"
    got = answers.got(mode, uid, case.call)
    if got == "ENOSYS" or (got == "EINVAL" and "fanotify" in case.call):
        pytest.skip("this kernel does not have the call")
    assert got == expected


@pytest.mark.parametrize("uid", USERS)
@pytest.mark.parametrize("case", [case for case in CASES if case.op], ids=lambda case: case.call)
def test_event_in_audit_mode(answers: Answers, case: Case, uid: int) -> None:
    outcome = answers.by["audit", uid][case.call]
    events = [event for event in answers.events["audit"] if event.get("pid") == outcome.pid]
    if outcome.got != "EROFS":
        assert events == []
        return
    (event,) = events
    assert (event["event"], event["op"], event["path"]) == ("write_blocked", case.op, case.path)
    assert (event["errno"], event["uid"]) == ("EROFS", uid)


def test_what_got_erofs_in_audit_mode_is_recorded_once_and_nothing_else(answers: Answers) -> None:
    by_user = [answers.by["audit", uid].values() for uid in USERS]
    refused = {outcome.pid for outcomes in by_user for outcome in outcomes if outcome.got == "EROFS"}
    recorded = Counter(event["pid"] for event in answers.events["audit"] if event["event"] == "write_blocked")
    assert recorded == dict.fromkeys(refused, 1)


@pytest.mark.parametrize("mode", MODES)
def test_no_other_call_leaves_an_event(answers: Answers, mode: str) -> None:
    events = Counter(event["event"] for event in answers.events[mode])
    # Only a handle that root makes up is taken for damage.
    assert {**events, "write_blocked": 0} == {"trust": 1, "mount": 1, "io_error": 1, "umount": 1, "write_blocked": 0}
    assert (events["write_blocked"] > 0) == (mode == "audit")


def test_no_call_is_tried_in_vain() -> None:
    assert {case.call for case in CASES} <= CHANGING.keys()
    assert len({case.call for case in CASES}) == len(CASES)
