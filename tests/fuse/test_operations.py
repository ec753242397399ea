# SPDX-License-Identifier: Apache-2.0
"""Every handler, called directly: what it answers, what it reports, and that it never waits."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Coroutine, Iterable
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyfuse3 import FUSEError

from rofs.errors import BlockFault, ReadError
from rofs.fuse.messages import Attempt, FaultReport, InternalReport
from rofs.fuse.operations import FOREVER_SECONDS, Operations
from rofs.fuse.shared import Number

from .doubles import (
    BIN,
    DEVICE,
    EMPTY,
    FAULT,
    FILE,
    LINK,
    ODD,
    ODD_NAME,
    ROOT,
    SHELL,
    Caller,
    MemoryFilesystem,
    Reports,
)

ME = Caller()
FIELDS = (
    "st_ino",
    "generation",
    "entry_timeout",
    "attr_timeout",
    "st_mode",
    "st_nlink",
    "st_uid",
    "st_gid",
    "st_rdev",
    "st_size",
    "st_blksize",
    "st_blocks",
    "st_atime_ns",
    "st_ctime_ns",
    "st_mtime_ns",
)


class Served:
    """Operations on a filesystem of doubles."""

    def __init__(self, **options: Any) -> None:
        self.filesystem = MemoryFilesystem()
        self.reports = Reports()
        self.numbers = [0] * len(Number)
        self.operations = Operations(self.filesystem, self.reports, self.numbers, **options)


@pytest.fixture
def served() -> Served:
    return Served()


def inode(nid: int) -> int:
    return 1 if nid == ROOT else nid + 2


def fields(entry: pyfuse3.EntryAttributes) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in FIELDS}


async def errno_from(request: Coroutine[Any, Any, Any]) -> int:
    with pytest.raises(FUSEError) as caught:
        await request
    return caught.value.errno


def changed(*names: str) -> Any:
    """As pyfuse3.SetattrFields, which Python cannot fill."""
    all_names = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")
    return SimpleNamespace(**{f"update_{name}": name in names for name in all_names})


Request = Callable[[Operations], Coroutine[Any, Any, Any]]

NOTHING: Any = None
# Name of the handler, the request, and the attempt it must report.
REFUSED: list[tuple[str, Request, dict[str, Any]]] = [
    ("open", lambda o: o.open(inode(FILE), os.O_WRONLY, ME), {"nid": FILE, "flags": ("O_WRONLY",)}),
    (
        "open",
        lambda o: o.open(inode(SHELL), os.O_RDWR | os.O_APPEND, ME),
        {"nid": SHELL, "flags": ("O_RDWR", "O_APPEND")},
    ),
    (
        "open",
        lambda o: o.open(inode(FILE), os.O_RDONLY | os.O_TRUNC, ME),
        {"nid": FILE, "flags": ("O_RDONLY", "O_TRUNC")},
    ),
    (
        "create",
        lambda o: o.create(inode(BIN), b"new", 0o644, os.O_CREAT | os.O_EXCL | os.O_RDWR, ME),
        {"nid": BIN, "name": "new", "flags": ("O_RDWR", "O_CREAT", "O_EXCL")},
    ),
    ("mkdir", lambda o: o.mkdir(1, b"n\xff\\2", 0o755, ME), {"nid": ROOT, "name": "n\\xff\\\\2"}),
    ("mknod", lambda o: o.mknod(1, b"fifo", 0o010644, 0, ME), {"nid": ROOT, "name": "fifo"}),
    ("symlink", lambda o: o.symlink(inode(BIN), b"bash", b"sh", ME), {"nid": BIN, "name": "bash"}),
    (
        "link",
        lambda o: o.link(inode(FILE), inode(BIN), b"new", ME),
        {"nid": FILE, "nid2": BIN, "name2": "new"},
    ),
    ("unlink", lambda o: o.unlink(1, ODD_NAME, ME), {"nid": ROOT, "name": "n\\xff\\\\"}),
    ("rmdir", lambda o: o.rmdir(1, b"bin", ME), {"nid": ROOT, "name": "bin"}),
    (
        "rename",
        lambda o: o.rename(1, b"file", inode(BIN), b"moved", 0, ME),
        {"nid": ROOT, "name": "file", "nid2": BIN, "name2": "moved"},
    ),
    (
        "rename",
        lambda o: o.rename(1, b"file", 1, b"hard", pyfuse3.RENAME_EXCHANGE, ME),
        {"nid": ROOT, "name": "file", "nid2": ROOT, "name2": "hard", "flags": ("RENAME_EXCHANGE",)},
    ),
    (
        "rename",
        lambda o: o.rename(1, b"file", 1, b"new", pyfuse3.RENAME_NOREPLACE, ME),
        {"nid": ROOT, "name": "file", "nid2": ROOT, "name2": "new", "flags": ("RENAME_NOREPLACE",)},
    ),
    (
        "setattr",
        lambda o: o.setattr(1, NOTHING, changed("mode", "uid", "gid"), None, ME),
        {"nid": ROOT, "changes": ("mode", "uid", "gid")},
    ),
    (
        "setattr",
        lambda o: o.setattr(inode(FILE), NOTHING, changed("size", "atime", "mtime"), inode(FILE), ME),
        {"nid": FILE, "changes": ("size", "atime", "mtime")},
    ),
    ("setxattr", lambda o: o.setxattr(inode(FILE), b"user.\xff", b"v", ME), {"nid": FILE, "xattr": "user.\\xff"}),
    (
        "removexattr",
        lambda o: o.removexattr(inode(FILE), b"security.capability", ME),
        {"nid": FILE, "xattr": "security.capability"},
    ),
]

ALLOWED: list[tuple[str, Request]] = [
    ("lookup", lambda o: o.lookup(1, b"file", ME)),
    ("lookup", lambda o: o.lookup(1, b"nothing", ME)),
    ("getattr", lambda o: o.getattr(1, ME)),
    ("forget", lambda o: o.forget([(1, 1)])),
    ("readlink", lambda o: o.readlink(inode(LINK), ME)),
    ("open", lambda o: o.open(inode(FILE), os.O_RDONLY, ME)),
    ("read", lambda o: o.read(inode(FILE), 0, 10)),
    ("release", lambda o: o.release(inode(FILE))),
    ("fsync", lambda o: o.fsync(inode(FILE), True)),
    ("opendir", lambda o: o.opendir(1, ME)),
    ("releasedir", lambda o: o.releasedir(1)),
    ("fsyncdir", lambda o: o.fsyncdir(1, False)),
    ("statfs", lambda o: o.statfs(ME)),
    ("getxattr", lambda o: o.getxattr(inode(FILE), b"user.a", ME)),
    ("listxattr", lambda o: o.listxattr(inode(FILE), ME)),
    ("access", lambda o: o.access(inode(FILE), os.R_OK, ME)),
]
ANSWERED_BY_ERROR: list[tuple[str, Request, int]] = [
    ("flush", lambda o: o.flush(inode(FILE)), errno.ENOSYS),
    ("poll", lambda o: o.poll(inode(FILE), inode(FILE), None, ME), errno.ENOSYS),
    ("write", lambda o: o.write(inode(FILE), 0, b"x"), errno.EROFS),
    ("getxattr", lambda o: o.getxattr(inode(FILE), b"user.none", ME), errno.ENODATA),
    ("getxattr", lambda o: o.getxattr(inode(FILE), b"nonsense.none", ME), errno.EOPNOTSUPP),
    ("lookup", lambda o: o.lookup(inode(ROOT), b"n" * 256, ME), errno.ENAMETOOLONG),
    ("readlink", lambda o: o.readlink(inode(FILE), ME), errno.EINVAL),
    ("lookup", lambda o: o.lookup(inode(FILE), b"x", ME), errno.ENOTDIR),
    ("mkdir", lambda o: o.mkdir(inode(FILE), b"x", 0o755, ME), errno.ENOTDIR),
]
NAMES_OF_HANDLERS = [
    name
    for name, value in vars(pyfuse3.Operations).items()
    if callable(value) and not name.startswith("_") and name not in {"init", "stacktrace"}
]
assert len(NAMES_OF_HANDLERS) >= 30


# The list of handlers


@pytest.mark.parametrize("name", NAMES_OF_HANDLERS)
def test_no_handler_is_inherited(name: str) -> None:
    assert name in vars(Operations), f"{name} is inherited: it would answer ENOSYS, and the kernel never ask again"


def test_every_handler_is_tried_below() -> None:
    tried = {row[0] for row in (*REFUSED, *ALLOWED, *ANSWERED_BY_ERROR)}
    assert set(NAMES_OF_HANDLERS) - tried == {"readdir"}


@pytest.mark.parametrize("request_", [row[1] for row in (*REFUSED, *ALLOWED, *ANSWERED_BY_ERROR)])
def test_no_handler_ever_awaits(served: Served, request_: Request) -> None:
    coroutine = request_(served.operations)
    with pytest.raises((StopIteration, FUSEError)):
        coroutine.send(None)


# Refusals


@pytest.mark.parametrize(("name", "request_", "expected"), REFUSED)
async def test_change_is_refused_and_reported_once(
    served: Served, name: str, request_: Request, expected: dict[str, Any]
) -> None:
    assert await errno_from(request_(served.operations)) == errno.EROFS
    attempt = Attempt(op=name, tid=ME.pid, uid=ME.uid, gid=ME.gid, errno="EROFS", **expected)
    assert served.reports == [attempt]


@pytest.mark.parametrize(
    "request_",
    [
        lambda o: o.create(1, b"file", 0o644, os.O_CREAT | os.O_WRONLY, ME),
        lambda o: o.mkdir(1, b"bin", 0o755, ME),
        lambda o: o.mknod(1, ODD_NAME, 0o644, 0, ME),
        lambda o: o.symlink(1, b"link", b"target", ME),
        lambda o: o.link(inode(FILE), 1, b"file", ME),
    ],
)
async def test_name_that_exists_comes_before_erofs(served: Served, request_: Request) -> None:
    assert await errno_from(request_(served.operations)) == errno.EEXIST
    assert served.reports == []


@pytest.mark.parametrize(
    "request_",
    [
        lambda o: o.unlink(1, b"nothing", ME),
        lambda o: o.rmdir(inode(BIN), b"nothing", ME),
        lambda o: o.rename(1, b"nothing", 1, b"new", 0, ME),
    ],
)
async def test_name_that_does_not_exist_comes_before_erofs(served: Served, request_: Request) -> None:
    assert await errno_from(request_(served.operations)) == errno.ENOENT
    assert served.reports == []


async def test_write_that_no_open_allowed_is_an_internal_failure(served: Served) -> None:
    assert await errno_from(served.operations.write(inode(FILE), 0, b"x")) == errno.EROFS
    (report,) = served.reports
    assert isinstance(report, InternalReport)
    assert (report.nid, "WRITE" in report.detail) == (FILE, True)


async def test_caller_that_is_not_visible_is_reported_with_tid_0(served: Served) -> None:
    await errno_from(served.operations.unlink(1, b"file", Caller(pid=0, uid=7, gid=8)))
    (report,) = served.reports
    assert isinstance(report, Attempt)
    assert (report.tid, report.uid, report.gid) == (0, 7, 8)


# Reading


@pytest.mark.parametrize("request_", [row[1] for row in ALLOWED])
async def test_reading_reports_nothing(served: Served, request_: Request) -> None:
    await request_(served.operations)
    assert served.reports == []


@pytest.mark.parametrize(("name", "request_", "number"), ANSWERED_BY_ERROR)
async def test_answers_that_are_errors(served: Served, name: str, request_: Request, number: int) -> None:
    assert await errno_from(request_(served.operations)) == number
    assert len(served.reports) == (name == "write")


async def test_attributes(served: Served) -> None:
    entry = await served.operations.getattr(inode(FILE), ME)
    assert fields(entry) == {
        "st_ino": FILE + 2,
        "generation": 0,
        "entry_timeout": FOREVER_SECONDS,
        "attr_timeout": FOREVER_SECONDS,
        "st_mode": 0o100640,
        "st_nlink": 2,
        "st_uid": FILE + 1000,
        "st_gid": FILE + 2000,
        "st_rdev": 0,
        "st_size": 10000,
        "st_blksize": 4096,
        "st_blocks": 24,
        "st_atime_ns": 1_600_000_000_000_000_000 + FILE,
        "st_ctime_ns": 1_600_000_000_000_000_000 + FILE,
        "st_mtime_ns": 1_600_000_000_000_000_000 + FILE,
    }
    assert (await served.operations.getattr(inode(DEVICE), ME)).st_rdev == os.makedev(1, 3)
    assert (await served.operations.getattr(inode(ODD), ME)).st_mtime_ns == -1


async def test_root_is_inode_1(served: Served) -> None:
    assert (await served.operations.getattr(1, ME)).st_ino == 1
    assert (await served.operations.lookup(inode(BIN), b"..", ME)).st_ino == 1
    assert served.operations.supports_dot_lookup


async def test_lookup_and_getattr_agree(served: Served) -> None:
    for name in served.filesystem.nodes[ROOT].children:
        found = await served.operations.lookup(1, name, ME)
        assert fields(found) == fields(await served.operations.getattr(found.st_ino, ME))


async def test_name_that_does_not_exist_is_kept_forever(served: Served) -> None:
    entry = await served.operations.lookup(1, b"nothing", ME)
    assert (entry.st_ino, entry.entry_timeout) == (0, FOREVER_SECONDS)
    assert FOREVER_SECONDS > 365 * 86400


async def test_open_for_reading_keeps_the_page_cache(served: Served) -> None:
    info = await served.operations.open(inode(FILE), os.O_RDONLY | os.O_NONBLOCK, ME)
    assert (info.fh, info.keep_cache, info.direct_io) == (inode(FILE), True, False)
    assert await served.operations.opendir(inode(BIN), ME) == inode(BIN)


async def test_content(served: Served) -> None:
    content = served.filesystem.nodes[FILE].content
    assert await served.operations.read(inode(FILE), 3, 5) == content[3:8]
    assert await served.operations.read(inode(FILE), 9_990, 4096) == content[9_990:]
    assert await served.operations.read(inode(EMPTY), 0, 4096) == b""
    assert await served.operations.readlink(inode(LINK), ME) == b"bin/sh"


async def test_xattrs(served: Served) -> None:
    assert await served.operations.listxattr(inode(FILE), ME) == [b"user.a", b"user.b"]
    assert await served.operations.getxattr(inode(FILE), b"user.b", ME) == b""


async def test_without_xattrs_the_kernel_is_told_so_but_not_by_getxattr() -> None:
    # pyfuse3 answers setxattr(2) with XATTR_CREATE as getxattr is answered; after ENOSYS none would be seen again.
    served = Served(xattrs=False)
    with pytest.raises(FUSEError) as answer:
        await served.operations.listxattr(inode(FILE), ME)
    assert answer.value.errno == errno.ENOSYS
    with pytest.raises(FUSEError) as answer:
        await served.operations.getxattr(inode(FILE), b"user.none", ME)
    assert answer.value.errno == errno.ENODATA


async def test_names_of_trusted_xattrs_are_for_root_alone(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served.filesystem, "listxattr", lambda nid: [b"trusted.a", b"user.a"])
    assert await served.operations.listxattr(inode(FILE), ME) == [b"user.a"]
    assert await served.operations.listxattr(inode(FILE), Caller(uid=0)) == [b"trusted.a", b"user.a"]


async def test_names_that_only_root_may_know_are_listed_for_root_only(served: Served) -> None:
    """As the kernel's own filesystems do it; the values it guards itself."""
    served.filesystem.nodes[FILE].xattrs = {b"trusted.t": b"1", b"user.u": b"2", b"trustedness": b"3"}
    assert await served.operations.listxattr(inode(FILE), ME) == [b"user.u", b"trustedness"]
    root = Caller(uid=0)
    assert await served.operations.listxattr(inode(FILE), root) == [b"trusted.t", b"user.u", b"trustedness"]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (b"user.none", errno.ENODATA),
        (b"security.selinux", errno.ENODATA),
        (b"trusted.none", errno.ENODATA),
        (b"system.posix_acl_access", errno.ENODATA),
        (b"nonsense", errno.EOPNOTSUPP),
        (b"userless.x", errno.EOPNOTSUPP),
    ],
)
async def test_attribute_that_is_not_there(served: Served, name: bytes, number: int) -> None:
    assert await errno_from(served.operations.getxattr(inode(FILE), name, ME)) == number
    assert served.reports == []


async def test_kernel_asks_for_no_lists_where_there_are_none() -> None:
    served = Served(xattrs=False)
    assert await errno_from(served.operations.listxattr(inode(FILE), ME)) == errno.ENOSYS
    assert served.reports == []
    # The kernel would take it for the answer to SETXATTR.
    assert await errno_from(served.operations.getxattr(inode(FILE), b"user.none", ME)) == errno.ENODATA


async def test_nothing_is_free(served: Served) -> None:
    data = await served.operations.statfs(ME)
    assert (data.f_bsize, data.f_frsize, data.f_blocks, data.f_files, data.f_namemax) == (4096, 4096, 1234, 8, 255)
    assert (data.f_bfree, data.f_bavail, data.f_ffree, data.f_favail) == (0, 0, 0, 0)


async def test_requests_that_read_are_counted(served: Served) -> None:
    await served.operations.lookup(1, b"file", ME)
    await served.operations.read(inode(FILE), 0, 1)
    assert served.numbers[Number.REQUESTS] == 2


# What the keeper sees of a worker


def watched(served: Served, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the worker was busy with when it looked at the filesystem."""
    seen: list[int] = []
    node = served.filesystem._node

    def look(nid: int) -> Any:
        seen.append(served.numbers[Number.BUSY])
        return node(nid)

    monkeypatch.setattr(served.filesystem, "_node", look)
    return seen


async def test_worker_is_busy_while_it_is_at_a_request_and_not_after_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(served, monkeypatch)
    await served.operations.read(inode(FILE), 0, 1)
    assert served.numbers[Number.BUSY] == 0
    served.filesystem.fail(FILE, KeyError("x"))
    await errno_from(served.operations.read(inode(FILE), 0, 1))
    await errno_from(served.operations.readlink(inode(BIN), ME))
    assert served.numbers[Number.BUSY] == 0
    assert len(seen) == 3
    assert 0 not in seen


async def test_the_same_request_is_known_again_in_another_worker_and_no_other_is_taken_for_it(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Served()
    ours, theirs = watched(served, monkeypatch), watched(other, monkeypatch)
    for one in (served, other):
        await one.operations.read(inode(FILE), 0, 1)
        await one.operations.getattr(inode(FILE), ME)
        await one.operations.read(inode(SHELL), 0, 1)
        await one.operations.getattr(1, ME)
    assert ours == theirs
    assert len(set(ours)) >= 3  # two that are about one inode may look alike


@pytest.mark.parametrize("number", [0, 2**63, 2**64 - 1])
async def test_signature_of_a_hostile_node_id_fits(number: int) -> None:
    """The memory holds 64 bits; what does not fit would end the worker."""
    served = Served()
    served.operations.numbers = memoryview(bytearray(8 * len(Number))).cast("Q")
    await errno_from(served.operations.getattr(number, ME))
    await errno_from(served.operations.read(number, 0, 1))
    await errno_from(served.operations.readdir(number, 0, NOTHING))
    assert served.operations.numbers[Number.REQUESTS] == 3


async def test_each_request_is_counted_however_it_ends() -> None:
    counted: list[int] = []
    served = Served(count=lambda: counted.append(1))
    await served.operations.getattr(1, ME)
    await errno_from(served.operations.unlink(1, b"file", ME))
    await served.operations.release(inode(FILE))
    await served.operations.releasedir(1)
    assert served.numbers[Number.REQUESTS] == 4
    assert len(counted) >= 2  # not after what can have read nothing


async def test_lack_of_memory_is_told_before_anything_else_is_done() -> None:
    class EndedError(BaseException):
        pass

    def end() -> None:
        raise EndedError

    served = Served(out_of_memory=end)
    served.filesystem.fail(FILE, MemoryError())
    with pytest.raises(EndedError):
        await served.operations.read(inode(FILE), 0, 1)
    assert served.reports == []


# What the kernel is given before it asks


class Told:
    """In the place of a pusher."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def opened(self, number: int, nid: int) -> None:
        self.calls.append(("opened", number, nid))

    def was_read(self, number: int) -> None:
        self.calls.append(("read", number))

    def forgotten(self, numbers: Iterable[int]) -> None:
        self.calls.append(("forgotten", *numbers))


async def test_pusher_is_told_of_what_is_opened_read_and_forgotten() -> None:
    told = Told()
    served = Served(pusher=told)
    await served.operations.open(inode(FILE), os.O_RDONLY, ME)
    await served.operations.read(inode(FILE), 0, 1)
    await served.operations.forget([(inode(FILE), 3), (1, 1)])
    assert told.calls == [("opened", inode(FILE), FILE), ("read", inode(FILE)), ("forgotten", inode(FILE), 1)]


async def test_nothing_is_pushed_for_an_open_that_is_refused() -> None:
    told = Told()
    served = Served(pusher=told)
    assert await errno_from(served.operations.open(inode(FILE), os.O_RDWR, ME)) == errno.EROFS
    assert told.calls == []


# Directories


class Page:
    """What one READDIR takes: `room` entries."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int = 1000) -> None:
        self.room = room
        self.entries: list[tuple[bytes, dict[str, Any], int]] = []
        monkeypatch.setattr(pyfuse3, "readdir_reply", self._reply)

    def _reply(self, token: object, name: bytes, attributes: pyfuse3.EntryAttributes, next_id: int) -> bool:
        assert token is self
        if len(self.entries) == self.room:
            return False
        self.entries.append((name, fields(attributes), next_id))
        return True

    async def read(self, served: Served, directory: int, start: int) -> list[bytes]:
        await served.operations.readdir(directory, start, cast("pyfuse3.ReaddirToken", self))
        return [name for name, _, _ in self.entries]


async def test_attributes_of_readdir_are_those_of_getattr(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(monkeypatch)
    assert await page.read(served, 1, 0) == list(served.filesystem.nodes[ROOT].children)
    for name, attributes, _ in page.entries:
        expected = fields(await served.operations.getattr(attributes["st_ino"], ME))
        if name in {b".", b".."}:  # of which the kernel takes no more than getdents(2) shows
            assert stat.S_IFMT(attributes["st_mode"]) == stat.S_IFMT(expected["st_mode"])
        else:
            assert attributes == expected


@pytest.mark.parametrize("room", range(1, 10))
async def test_directory_in_pages_gives_each_entry_once(
    served: Served, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    names: list[bytes] = []
    offset = 0
    while True:
        page = Page(monkeypatch, room)
        found = await page.read(served, 1, offset)
        if not found:
            break
        names += found
        offset = page.entries[-1][2]
    assert names == list(served.filesystem.nodes[ROOT].children)


async def test_directory_can_be_continued_behind_each_entry(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Page(monkeypatch)
    names = await whole.read(served, 1, 0)
    for index, (_, _, next_id) in enumerate(whole.entries):
        assert await Page(monkeypatch).read(served, 1, next_id) == names[index + 1 :]


def test_readdir_never_awaits(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    coroutine = Page(monkeypatch).read(served, 1, 0)
    with pytest.raises(StopIteration):
        coroutine.send(None)


async def test_bad_inode_is_listed_without_attributes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await Page(monkeypatch).read(served, 1, 0)
    served.filesystem.corrupt(EMPTY)
    page = Page(monkeypatch)
    assert await page.read(served, 1, 0) == whole
    assert [attributes["st_ino"] for _, attributes, _ in page.entries].count(0) == 1
    assert served.reports == [FaultReport.of(EMPTY, FAULT)]


# Node ids


@given(nids=st.sets(st.integers(0, 2**63)), root=st.integers(0, 2**63))
def test_node_ids_are_a_bijection(nids: set[int], root: int) -> None:
    served = Served()
    operations = served.operations
    operations._root_nid = root
    inodes = {operations._inode(nid) for nid in nids | {root}}
    assert len(inodes) == len(nids | {root})
    assert {operations._nid(number) for number in inodes} == nids | {root}
    assert operations._inode(root) == 1
    assert 0 not in inodes


# Failures

TOUCHING: list[Request] = [
    lambda o: o.getattr(inode(FILE), ME),
    lambda o: o.read(inode(FILE), 0, 1),
    lambda o: o.getxattr(inode(FILE), b"user.a", ME),
    lambda o: o.listxattr(inode(FILE), ME),
    lambda o: o.readlink(inode(FILE), ME),
    lambda o: o.lookup(inode(FILE), b"x", ME),
]
CHANGING_IN: list[Request] = [
    lambda o: o.unlink(inode(FILE), b"x", ME),
    lambda o: o.rmdir(inode(FILE), b"x", ME),
    lambda o: o.mkdir(inode(FILE), b"x", 0o755, ME),
    lambda o: o.rename(inode(FILE), b"x", inode(FILE), b"y", 0, ME),
    lambda o: o.link(inode(FILE), inode(FILE), b"x", ME),
]


@pytest.mark.parametrize("request_", CHANGING_IN)
async def test_an_attempt_in_a_corrupt_directory_is_refused_and_recorded(served: Served, request_: Request) -> None:
    served.filesystem.corrupt(FILE)
    assert await errno_from(request_(served.operations)) == errno.EROFS
    (report,) = served.reports
    assert isinstance(report, Attempt)


@pytest.mark.parametrize("request_", TOUCHING)
async def test_corrupt_block_is_eio_and_reported_with_both_digests(served: Served, request_: Request) -> None:
    served.filesystem.corrupt(FILE)
    assert await errno_from(request_(served.operations)) == errno.EIO
    assert served.reports == [
        FaultReport(nid=FILE, kind="mismatch", level=-1, block=7, expected="01" * 32, found="02" * 32)
    ]


@pytest.mark.parametrize("request_", TOUCHING)
async def test_malformed_inode_is_euclean(served: Served, request_: Request) -> None:
    served.filesystem.malform(FILE)
    assert await errno_from(request_(served.operations)) == errno.EUCLEAN
    (report,) = served.reports
    assert isinstance(report, InternalReport)
    assert (report.nid, "layout 9" in report.detail) == (FILE, True)


@pytest.mark.parametrize("request_", TOUCHING)
@pytest.mark.parametrize(
    "error", [KeyError("x"), RecursionError(), MemoryError(), ZeroDivisionError("a\nb"), OSError(errno.EBADF, "bad")]
)
async def test_what_nobody_foresaw_is_eio_and_reported(served: Served, request_: Request, error: Exception) -> None:
    served.filesystem.fail(FILE, error)
    assert await errno_from(request_(served.operations)) == errno.EIO
    (report,) = served.reports
    assert isinstance(report, InternalReport)
    assert report.nid == FILE
    assert type(error).__name__ in report.detail


async def test_detail_of_a_failure_is_bounded(served: Served) -> None:
    served.filesystem.fail(FILE, ValueError("x" * 100_000))
    await errno_from(served.operations.read(inode(FILE), 0, 1))
    (report,) = served.reports
    assert isinstance(report, InternalReport)
    assert len(report.detail) <= 1000


async def test_medium_that_fails_is_an_io_fault(served: Served) -> None:
    fault = BlockFault("io", 0, 3)
    served.filesystem.fail(FILE, ReadError("medium", fault))
    assert await errno_from(served.operations.read(inode(FILE), 0, 1)) == errno.EIO
    served.filesystem.fail(FILE, ReadError("medium"))
    assert await errno_from(served.operations.read(inode(FILE), 0, 1)) == errno.EIO
    assert served.reports[0] == FaultReport(nid=FILE, kind="io", level=0, block=3, expected=None, found=None)
    assert isinstance(served.reports[1], InternalReport)


@pytest.mark.parametrize("number", [0, 3, 2**40, 2**64 - 1])
async def test_node_id_from_a_hostile_handle_is_refused(served: Served, number: int) -> None:
    assert await errno_from(served.operations.getattr(number, ME)) in {errno.EUCLEAN, errno.EIO}
    (report,) = served.reports
    assert isinstance(report, InternalReport)
    assert report.nid is None or report.nid >= 0
