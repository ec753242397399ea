# SPDX-License-Identifier: Apache-2.0
"""Who a thread is, read from /proc while it waits in a system call.

Everything is read beneath an open directory descriptor of /proc, since the old root's /proc is gone by
path after switch_root. `cmdline`, `environ` and `maps` are never read: they take the thread's mmap lock
and can deadlock against a page fault on the very mount that asks. User and group ids of an attempt
come with the FUSE request and are not reported here.

Source: proc(5), kernel Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from rofs.audit.event import escape_path

# `status` lists up to 65536 supplementary groups of up to 11 bytes; all else is far smaller.
_MAX_FILE_BYTES = 1 << 20

_AUDIT_ID_UNSET = 4294967295  # (uid_t)-1

# Counted behind the command name, where field 3 of stat (state) is the first.
_START_TIME_INDEX = 22 - 3
_PPID_INDEX = 4 - 3

_STAT_BYTES = 4096  # it has at most 52 numbers and a command name


@dataclass(frozen=True, slots=True)
class ThreadStatus:
    """What `/proc/TID/status` says; None where it does not.

    Attributes:
        tgid: Thread group id: the process, in the pid namespace of the /proc that was read.
        ppid: The process's parent there.
        nspid: The process's id in the innermost pid namespace it is in: what its container calls it.
    """

    tgid: int | None
    ppid: int | None
    nspid: int | None


@dataclass(frozen=True, slots=True)
class Glance:
    """What tells one thread from another at little cost: its program may be known, its id used again.

    Attributes:
        start_time: Clock ticks since boot; with the thread id, which thread it is.
        ppid: Its process's parent.
        comm: Its own name, as it is.
        exe: The program that it runs, None when that is not to be known.
    """

    start_time: int
    ppid: int
    comm: bytes
    exe: bytes | None


def glance(tid: int, *, proc_fd: int) -> Glance | None:
    """Look at a thread that is held in a system call; a sixth of the cost of `identify`.

    Args:
        tid: As for `identify`.
        proc_fd: As for `identify`.

    Returns:
        None when it is gone.
    """
    try:
        fd = os.open(f"{tid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    except OSError:
        return None
    try:
        stat = os.read(fd, _STAT_BYTES)
    except OSError:
        return None
    finally:
        os.close(fd)
    before, parenthesis, rest = stat.rpartition(b")")
    fields = rest.split()
    start_time, ppid = _number(fields, _START_TIME_INDEX), _number(fields, _PPID_INDEX)
    if not parenthesis or start_time is None or ppid is None:
        return None
    return Glance(start_time, ppid, before.partition(b"(")[2], _link(proc_fd, f"{tid}/exe"))


def identify(tid: int, *, proc_fd: int) -> dict[str, int | str]:
    """Read who a thread is.

    1. Open its directory: from here on all is about this thread, or fails.
    2. Read its start time.
    3. Read the rest; what cannot be read is absent (`exe` needs CAP_SYS_PTRACE for others' threads).
    4. Read its start time again: if it differs or is gone, the thread died meanwhile and its id may
       belong to another, so nothing of it is reported.

    Args:
        tid: A thread id in the pid namespace of that /proc; 0 when FUSE could not see it.
        proc_fd: An open directory descriptor of /proc.

    Returns:
        Some of `pid, tid, ppid, nspid, auid, comm, exe, cgroup`, as an event has them; empty when
        the thread is gone.
    """
    try:
        fd = os.open(str(tid), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc_fd)  # 1.
    except OSError:
        return {}
    try:
        start_time = parse_stat_start_time(_read(fd, "stat"))  # 2.
        if start_time is None:
            return {}
        who = _describe(tid, fd, proc_fd)  # 3.
        if parse_stat_start_time(_read(fd, "stat")) != start_time:  # 4.
            return {}
        return who
    finally:
        os.close(fd)


def parse_status(status: bytes) -> ThreadStatus:
    """Pick what matters from `/proc/TID/status`.

    Args:
        status: Its content; lines that are missing or malformed count as not there.

    Returns:
        The numbers found.
    """
    fields: dict[bytes, list[bytes]] = {}
    for line in status.split(b"\n"):
        key, _, value = line.partition(b":")
        fields.setdefault(key, value.split())
    return ThreadStatus(
        tgid=_number(fields.get(b"Tgid"), 0),
        ppid=_number(fields.get(b"PPid"), 0),
        nspid=_number(fields.get(b"NStgid"), -1),
    )


def parse_stat_start_time(stat: bytes) -> int | None:
    """Pick the start time (field 22) from `/proc/TID/stat`.

    Args:
        stat: Its content. The command name in parentheses may itself hold spaces and parentheses, so
            fields are counted from the last one.

    Returns:
        Clock ticks since boot, None when the content is not that of a stat file.
    """
    _, parenthesis, rest = stat.rpartition(b")")
    return _number(rest.split(), _START_TIME_INDEX) if parenthesis else None


def parse_cgroup(cgroup: bytes) -> bytes | None:
    """Pick the control group's path from `/proc/TID/cgroup`.

    Args:
        cgroup: Lines of `hierarchy:controllers:path`.

    Returns:
        The path in the unified hierarchy (version 2), else that of the first line, else None.
    """
    lines = [line.split(b":", 2) for line in cgroup.split(b"\n")]
    entries = [(line[0], line[2]) for line in lines if len(line) == 3]
    for hierarchy, path in entries:
        if hierarchy == b"0":
            return path
    return entries[0][1] if entries else None


def _describe(tid: int, fd: int, proc_fd: int) -> dict[str, int | str]:
    status = parse_status(_read(fd, "status"))
    auid = _number(_read(fd, "loginuid").split(), 0)
    comm = _read(proc_fd, f"{status.tgid}/comm") if status.tgid else b""
    who: dict[str, int | str | None] = {
        "pid": status.tgid,
        "tid": tid,
        "ppid": status.ppid,
        "nspid": status.nspid,
        "auid": None if auid == _AUDIT_ID_UNSET else auid,
        "comm": _text(comm.removesuffix(b"\n")),
        "exe": _text(_link(fd, "exe")),
        "cgroup": _text(parse_cgroup(_read(fd, "cgroup"))),
    }
    return {key: value for key, value in who.items() if value is not None}


def _read(directory_fd: int, name: str) -> bytes:
    """The content of a file of /proc, empty when it cannot be read."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError:
        return b""
    try:
        content = b""
        while len(content) < _MAX_FILE_BYTES and (more := os.read(fd, 65536)):
            content += more
    except OSError:
        return b""
    else:
        return content
    finally:
        os.close(fd)


def _link(directory_fd: int, name: str) -> bytes | None:
    try:
        return os.readlink(name.encode(), dir_fd=directory_fd)
    except OSError:
        return None


def _text(raw: bytes | None) -> str | None:
    return escape_path(raw) if raw else None


def _number(fields: list[bytes] | None, index: int) -> int | None:
    try:
        return int(fields[index]) if fields else None
    except (IndexError, ValueError):
        return None
