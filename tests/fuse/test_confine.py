# SPDX-License-Identifier: Apache-2.0
"""From inside each kind of confined process: planted code tries to get out; what the process needs still works."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import subprocess
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rofs.errors import FormatError
from rofs.fuse import confine, seccomp, verifier, worker
from rofs.fuse.confine import RESOLVER, VERIFIER, WORKER, Profile, Support
from rofs.fuse.kernel import Handshake
from rofs.fuse.messages import InternalReport
from rofs.fuse.prctl import SET_DUMPABLE, prctl
from rofs.fuse.process import fork
from rofs.fuse.reporter import Reporter, acknowledgement
from rofs.fuse.shared import Number, SharedState, Tokens
from rofs.fuse.signals import caught
from tests.conftest import SigningKeys

SUPPORT = confine.support()
MACHINE = os.uname().machine
PROFILES = [VERIFIER, RESOLVER, WORKER]
needs_seccomp = pytest.mark.skipif(not SUPPORT.seccomp, reason="needs seccomp filters on x86-64 or aarch64")
needs_landlock = pytest.mark.skipif(not SUPPORT.landlock_abi, reason="needs Landlock")
all_profiles = pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)

# Beside those in `seccomp`: x86-64, aarch64.
MORE_NUMBERS = {
    "open": (2, None), "creat": (85, None), "openat": (257, 56), "openat2": (437, 437), "readlinkat": (267, 78),
    "newfstatat": (262, 79), "mkdirat": (258, 34), "unlinkat": (263, 35), "renameat2": (316, 276),
    "linkat": (265, 37), "symlinkat": (266, 36), "mknodat": (259, 33), "fchmod": (91, 52), "fchown": (93, 55),
    "ftruncate": (77, 46), "chdir": (80, 49), "fork": (57, None), "vfork": (58, None), "clone": (56, 220),
    "clone3": (435, 435), "prctl": (157, 167), "seccomp": (317, 277), "memfd_create": (319, 279),
    "memfd_secret": (447, None), "ioctl": (16, 29), "prlimit64": (302, 261), "setpriority": (141, 140),
    "socketpair": (53, 199), "sendmsg": (46, 211), "recvmsg": (47, 212), "listen": (50, 201), "shmget": (29, 194),
    "msgget": (68, 186), "mq_open": (240, 180), "personality": (135, 92), "splice": (275, 76), "kcmp": (312, 272),
    "vmsplice": (278, 75), "pkey_mprotect": (329, 288), "inotify_init1": (294, 26), "timer_create": (222, 107),
    "io_uring_enter": (426, 426), "name_to_handle_at": (303, 264), "landlock_create_ruleset": (444, 444),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "setsid": (112, 157), "fsetxattr": (190, 7),
    "sched_setaffinity": (203, 122), "arch_prctl": (158, None), "modify_ldt": (154, None), "preadv": (295, 69),
}  # fmt: skip

AT_FDCWD, O_PATH = -100, 0o10000000
IMAGE_FD = 0  # stands for a descriptor that the process has
RWX, ANONYMOUS = 7, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS

REFUSED: list[tuple[Any, ...]] = [
    ("openat", AT_FDCWD, b"/etc/passwd", os.O_RDONLY),
    ("openat", AT_FDCWD, b"/tmp/rofs-confined", os.O_WRONLY | os.O_CREAT, 0o600),
    ("openat", AT_FDCWD, b"/etc/passwd", O_PATH),
    ("openat", AT_FDCWD, b"/proc/self/mem", os.O_RDWR),
    ("openat", AT_FDCWD, b"/dev/fd/0", os.O_RDONLY),
    ("openat", AT_FDCWD, b"/proc/self/fd/0", os.O_RDWR),
    ("openat", AT_FDCWD, b"/dev/fuse", os.O_RDWR),
    ("openat", AT_FDCWD, b"/tmp", os.O_TMPFILE | os.O_RDWR, 0o600),
    ("openat2", AT_FDCWD, b"/etc/passwd", bytes(24), 24),
    ("open", b"/etc/passwd", os.O_RDONLY),
    ("creat", b"/tmp/rofs-confined", 0o600),
    ("newfstatat", AT_FDCWD, b"/etc/passwd", bytes(256), 0),
    ("readlinkat", AT_FDCWD, b"/proc/self/exe", bytes(256), 256),
    ("name_to_handle_at", AT_FDCWD, b"/etc", bytes(256), bytes(8), 0),
    ("mkdirat", AT_FDCWD, b"/tmp/rofs-confined", 0o700),
    ("unlinkat", AT_FDCWD, b"/tmp/rofs-confined", 0),
    ("renameat2", AT_FDCWD, b"/tmp/rofs-a", AT_FDCWD, b"/tmp/rofs-b", 0),
    ("linkat", AT_FDCWD, b"/proc/self/fd/0", AT_FDCWD, b"/tmp/rofs-confined", 0x400),
    ("symlinkat", b"/", AT_FDCWD, b"/tmp/rofs-confined"),
    ("mknodat", AT_FDCWD, b"/tmp/rofs-confined", 0o20600, 0x103),
    ("chdir", b"/"),
    ("fchmod", IMAGE_FD, 0o777),
    ("fchown", IMAGE_FD, 0, 0),
    ("ftruncate", IMAGE_FD, 0),
    ("fsetxattr", IMAGE_FD, b"user.x", b"1", 1, 0),
    ("ioctl", IMAGE_FD, 0x5412, b"x"),  # TIOCSTI
    ("socketpair", socket.AF_UNIX, socket.SOCK_STREAM, 0, bytes(8)),
    ("sendmsg", IMAGE_FD, bytes(56), 0),
    ("recvmsg", IMAGE_FD, bytes(56), 0),
    ("listen", IMAGE_FD, 1),
    ("fork",),
    ("vfork",),
    ("clone", signal.SIGCHLD, 0, 0, 0, 0),
    ("clone3", bytes(88), 88),
    ("memfd_create", b"x", 0),
    ("memfd_secret", 0),
    ("shmget", 0, 4096, 0o1600),
    ("msgget", 0, 0o1600),
    ("mq_open", b"rofs", os.O_CREAT | os.O_RDWR, 0o600, 0),
    ("mmap", 0, 4096, RWX, ANONYMOUS, -1, 0),
    ("mmap", 0, 4096, mmap.PROT_READ, mmap.MAP_SHARED, IMAGE_FD, 0),
    ("mprotect", 0, 4096, mmap.PROT_READ | mmap.PROT_EXEC),
    ("pkey_mprotect", 0, 4096, RWX, -1),
    ("personality", 0x0400000),  # READ_IMPLIES_EXEC
    ("prctl", 4, 1, 0, 0, 0),  # PR_SET_DUMPABLE
    ("prctl", 8, 1, 0, 0, 0),  # PR_SET_KEEPCAPS
    ("prctl", 0x59616D61, -1, 0, 0, 0),  # PR_SET_PTRACER
    ("seccomp", 1, 0, 0),
    ("landlock_create_ruleset", 0, 0, 1),
    ("prlimit64", 0, 7, bytes(16), 0),
    ("setpriority", 0, 0, 0),
    ("setsid",),
    ("sched_setaffinity", 0, 8, bytes(8)),
    ("splice", IMAGE_FD, 0, 1, 0, 1, 0),
    ("vmsplice", 1, bytes(16), 1, 0),
    ("kcmp", 1, 1, 0, 0, 0),
    ("inotify_init1", 0),
    ("timer_create", 0, 0, bytes(8)),
    ("io_uring_enter", IMAGE_FD, 1, 0, 0, 0, 0),
    ("process_madvise", 0, 0, 0, 0, 0),
    ("process_mrelease", 0, 0),
    ("arch_prctl", 0x1002, 0),
    ("modify_ldt", 0, 0, 0),
]

PARENT = -1  # replaced by its pid
KILLED: list[tuple[Any, ...]] = [
    ("execve", b"/bin/true", 0, 0),
    ("execveat", IMAGE_FD, b"", 0, 0, 0x1000),
    ("ptrace", 16, PARENT, 0, 0),  # PTRACE_ATTACH
    ("ptrace", 0, 0, 0, 0),  # PTRACE_TRACEME
    ("process_vm_readv", PARENT, 0, 0, 0, 0, 0),
    ("process_vm_writev", PARENT, 0, 0, 0, 0, 0),
    ("kill", PARENT, 0),
    ("kill", 1, 0),
    ("tkill", PARENT, 0),
    ("tgkill", PARENT, PARENT, 0),
    ("rt_sigqueueinfo", PARENT, 0, bytes(128)),
    ("pidfd_open", PARENT, 0),
    ("pidfd_getfd", IMAGE_FD, 0, 0),
    ("pidfd_send_signal", IMAGE_FD, 0, 0, 0),
    *(("socket", family, kind, 0) for family, kind in ((1, 1), (2, 1), (2, 2), (10, 2), (16, 3), (17, 3), (40, 1))),
    ("connect", IMAGE_FD, bytes(16), 16),
    ("bind", IMAGE_FD, bytes(16), 16),
    ("mount", b"none", b"/tmp", b"tmpfs", 0, 0),
    ("umount2", b"/", 2),
    ("fsopen", b"tmpfs", 0),
    ("open_tree", AT_FDCWD, b"/", 1),
    ("move_mount", IMAGE_FD, b"", AT_FDCWD, b"/tmp", 4),
    ("mount_setattr", AT_FDCWD, b"/", 0, bytes(32), 32),
    ("pivot_root", b"/", b"/"),
    ("chroot", b"/"),
    ("unshare", 0x10000000),
    ("setns", IMAGE_FD, 0),
    *((name, 0) for name in ("setuid", "setgid", "setfsuid", "setfsgid", "setgroups")),
    ("setresuid", 0, 0, 0),
    ("setresgid", 0, 0, 0),
    ("capset", bytes(8), bytes(24)),
    ("bpf", 0, bytes(128), 128),
    ("perf_event_open", bytes(128), 0, -1, -1, 0),
    ("userfaultfd", 1),
    ("io_uring_setup", 1, bytes(120)),
    ("keyctl", 0, 0, 0, 0, 0),
    ("add_key", b"user", b"x", b"y", 1, -4),
    ("finit_module", IMAGE_FD, b"", 0),
    ("kexec_load", 0, 0, 0, 0),
    ("open_by_handle_at", AT_FDCWD, bytes(64), 0),
    ("reboot", 0, 0, 0, 0),
]

_libc = ctypes.CDLL(None, use_errno=True)


def number_of(name: str) -> int | None:
    if name in MORE_NUMBERS:
        return MORE_NUMBERS[name][MACHINE == "aarch64"]
    return seccomp.numbers(MACHINE).get(name)


def attempt(name: str, *arguments: Any) -> str:
    """Make a system call; says by which errno it failed, or that it did not."""
    number = number_of(name)
    assert number is not None
    words = [ctypes.c_long(value) if isinstance(value, int) else ctypes.c_char_p(value) for value in arguments]
    if _libc.syscall(ctypes.c_long(number), *words) >= 0:
        return "done"
    return errno.errorcode[ctypes.get_errno()]


def confined(profile: Profile, what: Callable[[], Any], *, keep: tuple[int, ...] = ()) -> Any:
    """What a confined child tells, as JSON; the words about its end when it tells nothing."""
    reading, writing = os.pipe()

    def main() -> None:
        confine.confine(profile)
        os.write(writing, json.dumps(what()).encode())

    child = fork(main, name="confined", keep=(writing, *keep), unprivileged=True)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    failure = child.end(10)
    return json.loads(told) if told else failure


def row_id(row: tuple[Any, ...]) -> str:
    return "-".join(str(value)[:24] for value in row[:4] if not (isinstance(value, bytes) and b"\0" in value))


def errno_of(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


# Out of reach


@needs_seccomp
@all_profiles
def test_refused_system_calls(profile: Profile) -> None:
    rows = [row for row in REFUSED if number_of(row[0]) is not None]
    outcomes = confined(profile, lambda: [attempt(*row) for row in rows])
    assert {row_id(row): outcome for row, outcome in zip(rows, outcomes, strict=True)} == {
        row_id(row): "EPERM" for row in rows
    }


@needs_seccomp
@pytest.mark.parametrize("row", KILLED, ids=row_id)
def test_system_calls_that_are_evidence_end_the_process(row: tuple[Any, ...]) -> None:
    if number_of(row[0]) is None:
        pytest.skip(f"{MACHINE} has no {row[0]}")
    parent = os.getpid()
    for profile in PROFILES:
        outcome = confined(
            profile, lambda: attempt(row[0], *(parent if value == PARENT else value for value in row[1:]))
        )
        assert isinstance(outcome, str)
        assert outcome.startswith("killed by signal 31, SIGSYS")


@needs_seccomp
@all_profiles
def test_python_has_no_way_out_either(profile: Profile, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"x")
    tmp_path.chmod(0o777)

    def attempts() -> list[str]:
        actions: list[Callable[[], object]] = [
            target.read_bytes,
            lambda: target.write_bytes(b"y"),
            target.unlink,
            target.stat,
            lambda: os.listdir("/"),
            lambda: Path("/proc/self/maps").read_bytes(),
            lambda: os.open("/dev/fd/0", os.O_RDONLY),
            lambda: os.dup(0),
            os.fork,
            lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
            socket.socketpair,
            lambda: os.nice(0),
        ]
        return [errno_of(action) for action in actions]

    outcomes = confined(profile, attempts)
    assert set(outcomes) == {"EPERM"}, outcomes
    assert target.read_bytes() == b"x"


@needs_seccomp
def test_no_thread_starts_and_no_module_is_found() -> None:
    def attempts() -> list[str]:
        told = []
        for action in (threading.Thread(target=print).start, lambda: __import__("this_is_never_imported")):
            try:
                action()
            except (RuntimeError, ImportError) as error:
                told.append(type(error).__name__)
        return told

    assert confined(WORKER, attempts) == ["RuntimeError", "ModuleNotFoundError"]


@needs_seccomp
def test_a_running_process_says_that_it_is_confined(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    done, end = os.pipe()

    def main() -> None:
        confine.confine(WORKER)
        os.write(writing, b"+")
        os.read(done, 1)

    child = fork(main, name="x", keep=(writing, done), unprivileged=True)
    try:
        assert os.read(reading, 1) == b"+"
        lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        fields = dict(line.split(":\t", 1) for line in lines)
        assert (fields["Seccomp"], fields["NoNewPrivs"], int(fields["CapEff"], 16)) == ("2", "1", 0)
        # Not dumpable: what others could use belongs to root, what status needs can be read by all.
        assert Path(f"/proc/{child.pid}/mem").stat().st_uid == 0
        for name in ("stat", "statm", "status"):
            assert Path(f"/proc/{child.pid}/{name}").stat().st_mode & 0o004
    finally:
        os.write(end, b"+")
        assert child.end(10) is None
        for fd in (reading, writing, done, end):
            os.close(fd)


def test_nobody_of_the_same_user_traces_it() -> None:
    """Who is not root is not dropped to a user of its own: then it is this that keeps others away."""
    reading, writing = os.pipe()

    def sleep() -> None:
        confine.forbid_dumps()
        os.write(writing, b"+")
        time.sleep(60)

    def main() -> None:
        if os.geteuid() == 0:
            os.setresgid(12345, 12345, 12345)
            os.setresuid(12345, 12345, 12345)
        prctl(SET_DUMPABLE, 1)
        target = fork(sleep, name="target", keep=(writing,), unprivileged=False)
        assert os.read(reading, 1) == b"+"
        outcome = attempt("ptrace", 16, target.pid, 0, 0), errno_of(lambda: os.open(f"/proc/{target.pid}/mem", 0))
        seen = Path(f"/proc/{target.pid}/statm").read_text()
        target.end()
        assert outcome == ("EPERM", "EACCES"), outcome
        assert seen

    child = fork(main, name="parent", keep=(reading, writing), unprivileged=False)
    os.close(reading)
    os.close(writing)
    assert child.end(10) is None


# What is needed


def test_what_a_worker_needs_works(shared: SharedState, image_fd: int) -> None:
    supervisor, line = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def work() -> list[Any]:
        caught_signals: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, _: caught_signals.append(number))
        os.kill(os.getpid(), signal.SIGUSR1)
        tokens = Tokens(shared.fd, 1)
        token = tokens.take()
        assert token is not None
        tokens.give_back(token)
        for _ in range(3):
            bytearray(50 << 20)
        reporter = Reporter(line, shared.slot(0))
        reporter.report(InternalReport(nid=None, detail="x"))
        time.sleep(0.001)
        return [
            caught_signals,
            len(os.pread(image_fd, 512, 512)),
            os.lseek(image_fd, 0, os.SEEK_END) > 0,
            len(os.urandom(8)),
            shared.slot(0)[Number.REPORTED],
            "odd".encode("utf-16-le").decode("utf-16-le"),
            "\n".encode("unicode_escape").decode("ascii"),
        ]

    with supervisor, line:
        supervisor.send(acknowledgement(1))
        told = confined(WORKER, work, keep=(shared.fd, image_fd, line.fileno()))
        assert told == [[signal.SIGUSR1], 512, True, 8, 1, "odd", "\\n"]
        assert b'"x"' in supervisor.recv(4096)


@all_profiles
def test_errors_are_told_although_no_source_can_be_read(profile: Profile) -> None:
    def fail() -> None:
        try:
            int("first")
        except ValueError as error:
            traceback.format_exception(error)
            raise RuntimeError("what went wrong") from error

    said = confined(profile, fail)
    assert said.startswith("RuntimeError: what went wrong (test_confine.py:")


def test_running_out_of_memory_is_an_error_like_before() -> None:
    reading, writing = os.pipe()

    def main() -> None:
        confine.confine(WORKER)
        try:
            bytearray(1 << 30)
        except MemoryError:
            os.write(writing, b"+")

    child = fork(main, name="x", keep=(writing,), unprivileged=True, memory_bytes=256 << 20)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"+"
    assert child.end(10) is None


@pytest.mark.parametrize("action", [os.abort, lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(3)])
def test_it_can_end_in_every_way(action: Callable[[], None]) -> None:
    assert confined(WORKER, action) in {"killed by signal 6", "killed by signal 9", "exit status 3"}


# Each process calls it


@needs_seccomp
def test_the_verifier_is_confined(monkeypatch: pytest.MonkeyPatch, image_fd: int, signing_keys: SigningKeys) -> None:
    def planted(*_: object) -> None:
        raise FormatError(errno_of(lambda: os.open("/", os.O_RDONLY)))

    monkeypatch.setattr(verifier, "open_image", planted)
    with caught() as signals, pytest.raises(FormatError, match="EPERM"):
        verifier.verify(image_fd, signing_keys.policy, signals)


@needs_seccomp
def test_a_worker_is_confined_before_it_opens_the_image(shared: SharedState) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    clone = os.open(os.devnull, os.O_RDWR)
    assignment = worker.Assignment(clone, Handshake(b"", resend=False), 0, shared, 2)

    def planted() -> Any:
        raise ValueError(errno_of(lambda: os.open("/", os.O_RDONLY)))

    with ours, theirs:
        child = fork(
            lambda: worker.serve(assignment, planted, theirs, lambda: None),
            name="worker",
            keep=(clone, theirs.fileno(), shared.fd),
            unprivileged=True,
        )
        said = child.end(10)
    os.close(clone)
    assert said is not None
    assert said.startswith("ValueError: EPERM")


# Kernels that lack something


class Lacking:
    """A C library on a kernel that lacks system calls, or refuses them."""

    def __init__(self, *numbers: int, code: int = errno.ENOSYS) -> None:
        self._numbers = numbers
        self._code = code
        self.prctl = _libc.prctl

    def syscall(self, number: ctypes.c_long, *arguments: Any) -> int:
        if number.value in self._numbers:
            ctypes.set_errno(self._code)
            return -1
        result: int = _libc.syscall(number, *arguments)
        return result


SECCOMP = {"x86_64": 317, "aarch64": 277}.get(MACHINE, 0)
LANDLOCK = (444, 446)


def test_support_is_what_the_kernel_has() -> None:
    assert Support(seccomp=True, landlock_abi=7).lacks == []
    lacks = Support(seccomp=False, landlock_abi=1).lacks + Support(seccomp=True, landlock_abi=0).lacks
    assert [line.split()[0] for line in lacks] == ["seccomp", "Landlock"]
    assert Support(seccomp=False, landlock_abi=0).lacks[0].startswith("seccomp and Landlock are missing")


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM])
@pytest.mark.parametrize("missing", [(SECCOMP,), LANDLOCK, (SECCOMP, *LANDLOCK)])
def test_what_the_kernel_lacks_is_said_and_the_rest_done(
    monkeypatch: pytest.MonkeyPatch, missing: tuple[int, ...], code: int
) -> None:
    monkeypatch.setattr(confine, "_libc", Lacking(*missing, code=code))
    has = confine.support()
    assert has == Support(SUPPORT.seccomp and SECCOMP not in missing, 0 if 444 in missing else SUPPORT.landlock_abi)
    reading, writing = os.pipe()

    def main() -> None:
        lacks = confine.confine(WORKER)
        os.write(writing, json.dumps([lacks, errno_of(lambda: os.open("/etc/passwd", os.O_RDONLY))]).encode())

    child = fork(main, name="x", keep=(writing,), unprivileged=True)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lacks, outcome = json.loads(pipe.read())
    assert child.end(10) is None
    assert lacks == has.lacks
    assert len(lacks) == 1
    expected = "EPERM" if has.seccomp else "EACCES" if has.landlock_abi else "done"
    assert outcome == expected


@needs_landlock
def test_landlock_alone_leaves_no_file_port_or_signal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(confine, "_libc", Lacking(SECCOMP))
    tmp_path.chmod(0o777)
    parent = os.getpid()
    listener = socket.create_server(("127.0.0.1", 0))
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0rofs-{parent}")
    abstract.listen()

    def attempts() -> dict[str, str]:
        connecting = {
            "tcp": (socket.AF_INET, listener_address),
            "abstract": (socket.AF_UNIX, f"\0rofs-{parent}"),
        }
        outcomes = {
            "read": errno_of(lambda: os.open("/etc/passwd", os.O_RDONLY)),
            "list": errno_of(lambda: os.listdir("/")),
            "make": errno_of(lambda: os.mkdir(tmp_path / "new")),
            "run": errno_of(lambda: subprocess.run(["/bin/true"], check=False)),
            "signal": errno_of(lambda: os.kill(parent, 0)),
            "trace": attempt("ptrace", 16, parent, 0, 0),
        }
        for name, (family, address) in connecting.items():
            with socket.socket(family) as connection:
                outcomes[name] = errno_of(lambda c=connection, a=address: c.connect(a))  # type: ignore[misc]
        return outcomes

    listener_address = listener.getsockname()
    with listener, abstract:
        outcomes = confined(RESOLVER, attempts)
    abi = SUPPORT.landlock_abi
    assert {outcomes.pop(name) for name in ("read", "list", "make", "run")} == {"EACCES"}
    assert outcomes.pop("trace") == "EPERM"
    assert outcomes.pop("signal") == "EPERM"
    assert outcomes["tcp"] == ("EACCES" if abi >= 4 else "done")
    assert outcomes["abstract"] == ("EPERM" if abi >= 6 else "done")


@needs_landlock
@pytest.mark.parametrize("abi", range(1, 12))
def test_each_abi_is_asked_for_what_it_knows(monkeypatch: pytest.MonkeyPatch, abi: int) -> None:
    asked: list[bytes] = []

    def syscall(name: str, number: int, *arguments: Any) -> int:
        if name == "landlock_create_ruleset":
            asked.append(arguments[0])
        return os.open(os.devnull, os.O_RDONLY) if name == "landlock_create_ruleset" else 0

    monkeypatch.setattr(confine, "_syscall", syscall)
    confine._restrict(min(abi, confine._LAST_ABI))
    files, network, scopes = (int.from_bytes(asked[0][start : start + 8], "little") for start in (0, 8, 16))
    assert files.bit_length() == {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16 if abi < 9 else 17)
    assert files == (1 << files.bit_length()) - 1
    assert network == (3 if abi >= 4 else 0)
    assert scopes == (3 if abi >= 6 else 0)


@needs_seccomp
@pytest.mark.parametrize("missing", [SECCOMP, 446])
def test_a_kernel_that_has_it_and_refuses_ends_the_process(monkeypatch: pytest.MonkeyPatch, missing: int) -> None:
    monkeypatch.setattr(confine, "support", lambda: SUPPORT)
    monkeypatch.setattr(confine, "_libc", Lacking(missing, code=errno.ENOMEM))
    said = confined(WORKER, lambda: "not confined")
    assert "Cannot allocate memory" in said
    assert said.startswith("OSError")


@needs_seccomp
def test_a_kernel_that_does_not_know_the_flag_filters_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    real = confine._syscall

    def syscall(name: str, number: int, *arguments: Any) -> int:
        if name == "seccomp" and arguments[1] == 4:
            raise OSError(errno.EINVAL, "flags")
        return real(name, number, *arguments)

    monkeypatch.setattr(confine, "_syscall", syscall)
    assert confined(WORKER, lambda: errno_of(lambda: os.open("/", os.O_RDONLY))) == "EPERM"


def test_a_32_bit_program_is_not_filtered_by_the_numbers_of_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "sizeof", lambda _: 4)
    assert not confine.support().seccomp
