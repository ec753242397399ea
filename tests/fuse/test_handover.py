# SPDX-License-Identifier: Apache-2.0
"""What a keeper leaves to its successor, with real descriptors and children, up to the exec itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from rofs.errors import StateError
from rofs.fuse import handover, resume
from rofs.fuse.crew import Served, Worker
from rofs.fuse.handover import Kept
from rofs.fuse.kernel import Handshake
from rofs.fuse.process import Child, fork
from rofs.fuse.request import Place, Reactions
from rofs.fuse.shared import Number, SharedState, Total
from rofs.image.open import ImageFacts, ImageFiles, open_image
from tests.conftest import SigningKeys
from tests.fuse.doubles import open_descriptors

PLACE = Place(
    image_path=b"/images/\xff\n.raw",
    mountpoint=b"/mnt/\xfe",
    log_path=b"/log/\x80.jsonl",
    runtime_directory="/run/rofs/mnt",
    mode="sealed",
)
REACTIONS = Reactions("stop", "logger \udcff", None)
REQUEST = bytes(range(256))[:104]


class Keeper:
    """All that a keeper has of a mount with two workers."""

    def __init__(self, facts: ImageFacts, ends: ExitStack) -> None:
        self._ends = ends
        self.shared = SharedState()
        ends.callback(os.close, self.shared.fd)
        self.shared.add(Total.RESTARTS, 3)
        self.shared.slot(5)[Number.REPORTED] = 9
        self.link, self.supervisor = (ends.enter_context(end) for end in socket.socketpair())
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
        self.lines = [ends.enter_context(theirs) for _, theirs in pairs]
        self.kept = Kept(
            place=PLACE,
            served=Served(
                files=ImageFiles(self._file(), self._file()),
                facts=facts,
                fuse_fd=self._file(),
                handshake=Handshake(REQUEST, resend=True),
                shared=self.shared,
            ),
            mount_id=77,
            wanted=3,
            workers=[
                Worker(self._child("worker"), slot, self._file(), ends.enter_context(ours))
                for slot, (ours, _) in zip((5, 2), pairs, strict=True)
            ],
            supervisor=self._child("supervisor"),
            resolver=self._child("resolver"),
            link=self.link,
            reactions=REACTIONS,
        )

    def _file(self) -> int:
        fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._ends.callback(os.close, fd)
        return fd

    def _child(self, name: str) -> Child:
        child = fork(signal.pause, name=name, keep=(), unprivileged=True)
        self._ends.callback(child.end)
        return child


@pytest.fixture
def facts(image_fd: int, signing_keys: SigningKeys) -> ImageFacts:
    return open_image(image_fd, signing_keys.policy).facts


@pytest.fixture
def keeper(facts: ImageFacts) -> Iterator[Keeper]:
    with ExitStack() as ends:
        yield Keeper(facts, ends)


@pytest.fixture
def kept(keeper: Keeper) -> Kept:
    return keeper.kept


def state_fd(data: bytes) -> int:
    fd = os.memfd_create("state", os.MFD_CLOEXEC)
    os.write(fd, data)
    return fd


def loaded(data: bytes) -> Kept:
    """As the new program reads it, with descriptors of its own."""
    return handover.load(state_fd(data))


def with_own_descriptors(kept: Kept) -> bytes:
    """The state, with duplicates: here both programs live in one process."""
    state = json.loads(handover._pack(kept))
    for key in ("data_fd", "hash_fd", "fuse_fd", "shared_fd", "link_fd"):
        state[key] = os.dup(state[key])
    for member in state["workers"]:
        member["clone_fd"], member["reports_fd"] = os.dup(member["clone_fd"]), os.dup(member["reports_fd"])
        member["child"][1] = os.dup(member["child"][1])
    for name in ("supervisor", "resolver"):
        if state[name]:
            state[name][1] = os.dup(state[name][1])
    return json.dumps(state).encode()


def let_go(kept: Kept) -> None:
    """Close what the second program of the process has."""
    for member in kept.workers:
        member.reports.close()
        os.close(member.clone_fd)
    for child in (kept.supervisor, kept.resolver, *(member.child for member in kept.workers)):
        if child is not None:
            os.close(child.pidfd)
            os.close(child.failure_fd)
    kept.link.close()
    for fd in (*kept.served.files.fds, kept.served.fuse_fd, kept.served.shared.fd):
        os.close(fd)


# The state


def test_everything_comes_back(keeper: Keeper, kept: Kept) -> None:
    with ExitStack() as ends:
        found = loaded(with_own_descriptors(kept))
        ends.callback(let_go, found)
        assert (found.place, found.mount_id, found.wanted, found.reactions) == (PLACE, 77, 3, REACTIONS)
        assert (found.served.facts, found.served.handshake) == (kept.served.facts, Handshake(REQUEST, resend=True))
        assert found.served.shared.get(Total.RESTARTS) == 3
        assert found.served.shared.slot(5)[Number.REPORTED] == 9
        for before, after in zip(kept.workers, found.workers, strict=True):
            assert (after.child.pid, after.slot, after.child.name) == (before.child.pid, before.slot, "worker")
            assert os.path.sameopenfile(before.clone_fd, after.clone_fd)
            assert not after.child.has_ended()
        for line, member in zip(keeper.lines, found.workers, strict=True):
            line.send(b"report")
            assert member.reports.recv(10) == b"report"  # it is a line of datagrams, still
            assert member.reports.type == socket.SOCK_SEQPACKET
        for child, name in ((found.supervisor, "supervisor"), (found.resolver, "resolver")):
            assert child is not None
            assert child.name == name
        keeper.supervisor.send(b"x")
        assert found.link.recv(1) == b"x"


def test_processes_that_have_just_died_come_back_as_none(kept: Kept) -> None:
    kept = replace(kept, supervisor=None, resolver=None, mount_id=None, workers=[])
    with ExitStack() as ends:
        found = loaded(with_own_descriptors(kept))
        ends.callback(let_go, found)
        assert (found.supervisor, found.resolver, found.mount_id, found.workers) == (None, None, None, [])


def test_descriptors_are_not_left_inheritable(kept: Kept) -> None:
    """Nothing that the new program starts may get them by chance."""
    data = with_own_descriptors(kept)
    for fd in _descriptors_in(json.loads(data)):
        os.set_inheritable(fd, True)  # as they come through an exec
    with ExitStack() as ends:
        found = loaded(data)
        ends.callback(let_go, found)
        assert set(handover._fds(found)) == _descriptors_in(json.loads(data))
        assert not any(map(os.get_inheritable, handover._fds(found)))


def _descriptors_in(state: dict[str, Any]) -> set[int]:
    named = {state[key] for key in ("data_fd", "hash_fd", "fuse_fd", "shared_fd", "link_fd")}
    children = [state["supervisor"], state["resolver"], *(member["child"] for member in state["workers"])]
    lines = {member[key] for member in state["workers"] for key in ("clone_fd", "reports_fd")}
    return named | lines | {fd for _pid, fd in children}


def altered(kept: Kept, **changes: Any) -> bytes:
    return json.dumps({**json.loads(handover._pack(kept)), **changes}).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": handover.STATE_VERSION + 1},
        {"version": None},
        {"place": None},
        {"place": {}},
        {"facts": "{}"},
        {"init_request": "x"},
    ],
)
def test_state_of_another_version_is_refused(kept: Kept, changes: dict[str, Any]) -> None:
    with pytest.raises(StateError, match="state cannot be read"):
        loaded(altered(kept, **changes))


@pytest.mark.parametrize("data", [b"", b"{", b"{}", b"[]", b"null", b"\xff"])
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(StateError, match="state cannot be read"):
        loaded(data)


def test_version_is_said_and_which_was_expected(kept: Kept) -> None:
    with pytest.raises(StateError, match=f"version 99, expected {handover.STATE_VERSION}"):
        loaded(altered(kept, version=99))


# Whether a program starts


def program(text: str) -> list[str]:
    """A program in the place of ours, which answers the check if it comes that far."""
    return [sys.executable, "-c", f"{text}\nprint({handover.KNOWN!r})"]


def test_program_that_is_another_one_is_refused() -> None:
    said = handover.check(["/bin/true"], {})
    assert said == "/bin/true is not rofs: it does not answer what a keeper's successor would"


def test_this_program_could_take_over() -> None:
    assert handover.check(handover.command_of_this_program(), {}) is None


def test_program_is_told_which_state_it_would_have_to_know() -> None:
    assert (
        handover.check(program(f"import sys; assert sys.argv[1:] == ['--check', '{handover.STATE_VERSION}']"), {})
        is None
    )


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["/nonexistent/python9"], "/nonexistent/python9 cannot be started: No such file or directory"),
        ([os.devnull], "/dev/null cannot be started: Permission denied"),
        (["/"], "/ cannot be started: Permission denied"),
        (["x\0y"], "'x\\x00y' cannot be started: embedded null byte"),
        (["\ud800"], None),
    ],
)
def test_program_that_does_not_start_says_why_in_one_line(argv: list[str], why: str | None) -> None:
    said = handover.check(argv, {})
    assert said is not None
    assert said.splitlines() == [why or said]


@pytest.mark.parametrize("environment", [{"A=B": "x"}, {"A": "x\0"}])
def test_environment_that_is_none_is_said(environment: dict[str, str]) -> None:
    said = handover.check(program("pass"), environment)
    assert said is not None
    assert "cannot be started" in said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise ValueError('too\\nnew')", "(exit status 1): new"),
        ("import nonexistent", "(exit status 1): ModuleNotFoundError: No module named 'nonexistent'"),
        ("import sys; sys.exit(3)", "(exit status 3): it does not say why"),
        ("import os; os.kill(os.getpid(), 9)", "(exit status -9): it does not say why"),
        ("import sys; sys.stderr.buffer.write(b'\\xff\\n'); sys.exit(1)", "(exit status 1): \ufffd"),
    ],
)
def test_program_that_fails_says_why_in_one_line(text: str, why: str) -> None:
    assert handover.check(program(text), {}) == f"{sys.executable} does not start {why}"


def test_program_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handover, "_CHECK_SECONDS", 0.1)
    assert handover.check(program("import time; time.sleep(60)"), {}) == f"{sys.executable} did not start within 0.1 s"


def test_modules_of_the_program_before_are_not_those_of_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/old")
    monkeypatch.setenv("ROFS_TEST", "kept")
    text = (
        "import os; e = os.environ; assert (e.get('PYTHONPATH'), e['ROFS_TEST'], e['PYTHONX']) == ({}, 'kept', '1'), e"
    )
    assert handover.check(program(text.format("None")), {"PYTHONX": "1"}) is None
    assert handover.check(program(text.format("'/new'")), {"PYTHONX": "1", "PYTHONPATH": "/new"}) is None


# The program itself


def test_resume_knows_its_own_state_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert resume.main(["--check", str(handover.STATE_VERSION)]) == 0
    assert resume.main(["--check", "99"]) == 1
    said = capsys.readouterr().err
    assert said.splitlines() == [
        f"the mount's state has version 99, this program knows {handover.STATE_VERSION}; unmount and mount again"
    ]


def test_resume_of_what_is_no_state_is_an_error_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert resume.main([str(state_fd(b"{}"))]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "rofs: error: the keeper's state cannot be read: KeyError: 'version'"
    ]


# The exec


def flags(kept: Kept) -> list[bool]:
    return [os.get_inheritable(fd) for fd in handover._fds(kept)]


@pytest.mark.parametrize("path", ["/nonexistent/python9", os.devnull])
def test_exec_that_fails_changes_nothing(kept: Kept, path: str) -> None:
    fds, mask, before = open_descriptors(), signal.pthread_sigmask(signal.SIG_BLOCK, ()), flags(kept)
    error = handover.execute([path], {}, kept)
    assert isinstance(error, OSError)
    assert open_descriptors() == fds
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == mask
    assert flags(kept) == before
    assert not any(before)
    assert not kept.workers[0].child.has_ended()


_SUCCESSOR = """
import json, os, signal, sys
from rofs.fuse import handover
from rofs.fuse.shared import Total

kept = handover.load(int(sys.argv[-1]))
said = [child.end() for child in (kept.supervisor, kept.resolver, *(member.child for member in kept.workers))]
kept.workers[0].reports.send(b"line")
kept.link.sendall(json.dumps({
    "pid": os.getpid(),
    "ended": said,  # it is their parent
    "words": sys.argv[1:-1],
    "restarts": kept.served.shared.get(Total.RESTARTS),
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())) > 0,
    "new": os.environ["NEW"],
}).encode())
"""


def test_another_program_goes_on_with_everything(facts: ImageFacts) -> None:
    """In a process of its own, which becomes that program."""
    ours, theirs = socket.socketpair()
    lines, their_lines = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def be_keeper() -> None:
        keeper = Keeper(facts, ExitStack())  # which nobody leaves
        first = replace_line(keeper.kept.workers[0], their_lines)
        kept = replace(keeper.kept, link=theirs, workers=[first, *keeper.kept.workers[1:]])
        raise handover.execute([sys.executable, "-c", _SUCCESSOR, "word"], {"NEW": "1"}, kept)

    def replace_line(member: Worker, line: socket.socket) -> Worker:
        return Worker(member.child, member.slot, member.clone_fd, line)

    with ours, theirs, lines, their_lines:
        child = fork(be_keeper, name="keeper", keep=(theirs.fileno(), their_lines.fileno()), unprivileged=False)
        theirs.close()
        their_lines.close()
        ours.settimeout(20)
        told = json.loads(ours.makefile("rb").read())
        assert lines.recv(10) == b"line"
        assert child.end(10) is None
    assert told == {
        "pid": child.pid,
        "ended": ["killed by signal 9"] * 4,
        "words": ["word"],
        "restarts": 3,
        "blocked": True,  # until it is ready for signals
        "new": "1",
    }
