# SPDX-License-Identifier: Apache-2.0
"""Workers that die, hang, sleep or never come: on a real mount where calls must not fail, else with doubles.

Nothing here looks at the mount itself: a process that waits for an answer could not bury who owes it.
"""

from __future__ import annotations

import mmap
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from rofs.erofs.reader import ErofsReader
from rofs.errors import HostError
from rofs.fuse import crew, kernel, worker
from rofs.fuse.crew import Crew, Served, Worker
from rofs.fuse.kernel import Handshake
from rofs.fuse.messages import MAX_MESSAGE_BYTES, InternalReport, parse_report
from rofs.fuse.process import WORKER_MEMORY_BYTES, fork
from rofs.fuse.reporter import Reporter
from rofs.fuse.shared import MAX_SLOTS, MAX_WORKERS, Number, SharedState
from rofs.image.open import ImageFiles, open_image
from tests.conftest import SigningKeys
from tests.fuse.doubles import FACTS, open_descriptors

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts for real")


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


class Tended:
    """A crew, and the keeper who looks after it."""

    def __init__(self, served: Served, wanted: int = 2) -> None:
        self.served = served
        self.crew = Crew(served, wanted)
        self.failures: list[str | None] = []

    def start(self) -> None:
        for _ in range(self.crew.wanted):
            _, pipe = self.crew.hire()
            try:
                assert os.read(pipe, 1) == b"+"
            finally:
                os.close(pipe)

    def tend(self) -> list[str | None]:
        """Bury who has died, start who is due; returns how those died."""
        dead = [member for member in self.crew.workers if member.child.has_ended()]
        failures = [self.crew.bury(member) for member in dead]
        self.crew.hire_due()
        self.failures += failures
        return failures

    def tend_until(self, condition: Callable[[], object]) -> None:
        def done() -> object:
            self.tend()
            return condition()

        until(done)

    @property
    def pids(self) -> list[int]:
        return [member.child.pid for member in self.crew.workers]

    def numbers(self, index: int) -> memoryview:
        return self.served.shared.slot(self.crew.workers[index].slot)


# On a real mount


class Mounted(Tended):
    """An image that is mounted, with its workers and readers."""

    def __init__(self, served: Served, path: Path, ends: ExitStack) -> None:
        super().__init__(served)
        self.path = path
        self._ends = ends

    def read(self, name: str) -> subprocess.Popen[bytes]:
        """Start somebody who reads a file."""
        reader = subprocess.Popen(["cat", self.path / name], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self._ends.enter_context(reader)
        self._ends.callback(reader.kill)
        return reader

    def outcome(self, reader: subprocess.Popen[bytes]) -> tuple[bytes, str]:
        """What a reader got, and what it complained of; the crew is tended meanwhile."""
        assert reader.stdout is not None
        assert reader.stderr is not None
        self.tend_until(lambda: reader.poll() is not None)
        return reader.stdout.read(), reader.stderr.read().decode()

    def busy(self) -> list[int]:
        """Which of the workers are at a request."""
        return [index for index in range(len(self.crew.workers)) if self.numbers(index)[Number.BUSY]]


class Trap:
    """Does something to the workers that read a certain file, as often as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nid = -1
        self._act: Callable[[], object] = lambda: None
        self._left = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")  # which forked processes share
        read = ErofsReader.read

        def trapped(reader: ErofsReader, nid: int, offset: int, length: int) -> bytes:
            if nid == self.nid and self._left[0]:
                self._left[0] -= 1
                self._act()
            return read(reader, nid, offset, length)

        monkeypatch.setattr(ErofsReader, "read", trapped)

    def set(self, act: Callable[[], object], times: int = 1) -> None:
        """Before any worker is started."""
        self._act = act
        self._left[0] = times

    @property
    def left(self) -> int:
        return self._left[0]


def stop_myself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def kill_myself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def be_out_of_memory() -> None:
    raise MemoryError


@pytest.fixture
def trap(monkeypatch: pytest.MonkeyPatch) -> Trap:
    return Trap(monkeypatch)


@contextmanager
def mounted_image(image_fd: int, keys: SigningKeys, path: Path, shared: SharedState, resend: bool) -> Iterator[Mounted]:
    path.mkdir()
    with ExitStack() as ends:
        fuse_fd = kernel.open_device()
        ends.callback(os.close, fuse_fd)
        kernel.mount(fuse_fd, os.fsencode(path), b"rofs-test", kernel.MS_NOSUID | kernel.MS_NODEV)
        ends.callback(kernel.unmount, os.fsencode(path), lazy=True)
        facts = open_image(image_fd, keys.policy).facts
        handshake = kernel.answer_init(fuse_fd, acl=False, resend=resend)
        if resend and not handshake.resend:
            pytest.skip("needs RESEND: the kernel is older than 6.9")
        files = ImageFiles.of_disk_image(image_fd)
        made = Mounted(Served(files, facts, fuse_fd, handshake, shared), path, ends)
        ends.callback(made.crew.dismiss)
        yield made


@pytest.fixture
def mounted(
    image_fd: int,
    signing_keys: SigningKeys,
    tmp_path: Path,
    shared: SharedState,
    trap: Trap,
    request: pytest.FixtureRequest,
) -> Iterator[Mounted]:
    """Without RESEND when the test is parametrized so; the trap is for the file `hard`."""
    filesystem = open_image(image_fd, signing_keys.policy).filesystem
    trap.nid = filesystem.lookup(filesystem.root_nid, b"hard") or -1
    resend = getattr(request, "param", True)
    with mounted_image(image_fd, signing_keys, tmp_path / "mnt", shared, resend) as made:
        yield made


@pytest.fixture
def content(image_path: Path) -> bytes:
    """Of `hard`, and of `dir/below/same`."""
    return (image_path.parent / "tree" / "hard").read_bytes()


without_resend = pytest.mark.parametrize("mounted", [False], indirect=True)


def caught_by(trap: Trap, mounted: Mounted, state: str) -> Worker:
    """The worker that is in the trap."""
    until(lambda: trap.left == 0 and mounted.busy())
    (index,) = mounted.busy()
    member = mounted.crew.workers[index]
    until(lambda: member.state == state)
    return member


@needs_root
def test_worker_that_is_killed_costs_no_call(mounted: Mounted, trap: Trap, content: bytes) -> None:
    trap.set(stop_myself)
    mounted.start()
    reader = mounted.read("hard")
    os.kill(caught_by(trap, mounted, "T").child.pid, signal.SIGKILL)
    assert mounted.outcome(reader) == (content, "")
    assert mounted.failures == ["killed by signal 9"]
    mounted.tend_until(lambda: mounted.crew.is_complete)
    assert mounted.outcome(mounted.read("dir/below/same")) == (content, "")


@needs_root
@without_resend
def test_without_resend_only_the_call_in_flight_fails(mounted: Mounted, trap: Trap, content: bytes) -> None:
    trap.set(stop_myself)
    mounted.start()
    reader, other = mounted.read("hard"), mounted.read("dir/below/same")
    member = caught_by(trap, mounted, "T")
    assert mounted.outcome(other) == (content, "")
    os.kill(member.child.pid, signal.SIGKILL)
    got, complaint = mounted.outcome(reader)
    assert (got, "hard: Software caused connection abort" in complaint) == (b"", True)
    assert mounted.failures == ["killed by signal 9; the calls it was answering failed"]
    mounted.tend_until(lambda: mounted.crew.is_complete)
    assert mounted.outcome(mounted.read("hard")) == (content, "")


@needs_root
@without_resend
def test_without_resend_a_worker_that_dies_idle_costs_nothing(mounted: Mounted, content: bytes) -> None:
    mounted.start()
    for pid in mounted.pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(member.child.has_ended() for member in mounted.crew.workers))  # else one may take a request yet
    reader = mounted.read("hard")
    assert mounted.outcome(reader) == (content, "")
    assert mounted.failures == ["killed by signal 9"] * 2


@needs_root
def test_all_workers_killed_at_once_cost_no_call(mounted: Mounted, trap: Trap, content: bytes) -> None:
    trap.set(stop_myself)
    mounted.start()
    reader = mounted.read("hard")
    caught_by(trap, mounted, "T")
    for pid in mounted.pids:
        os.kill(pid, signal.SIGKILL)
    assert mounted.outcome(reader) == (content, "")


@needs_root
def test_request_that_crashes_worker_after_worker_fails_and_the_others_go_on(
    mounted: Mounted, trap: Trap, content: bytes
) -> None:
    trap.set(lambda: os._exit(3), times=1000)
    mounted.start()
    poison, other = mounted.read("hard"), mounted.read("dir/below/same")
    got, complaint = mounted.outcome(poison)
    assert (got, "Software caused connection abort" in complaint) == (b"", True)
    assert mounted.outcome(other) == (content, "")
    assert mounted.failures == [*["exit status 3"] * 2, "exit status 3; the calls it was answering failed"]
    mounted.tend_until(lambda: mounted.crew.is_complete)
    trap.set(lambda: None, times=0)  # it has cost what it may, and can be asked again
    assert mounted.outcome(mounted.read("hard")) == (content, "")


@needs_root
def test_request_over_which_workers_are_killed_from_outside_is_not_given_up_so_soon(
    mounted: Mounted, trap: Trap, content: bytes
) -> None:
    """It need not be the request's fault: the machine may be out of memory."""
    trap.set(kill_myself, times=6)
    mounted.start()
    assert mounted.outcome(mounted.read("hard")) == (content, "")
    assert mounted.failures == ["killed by signal 9"] * 6


@needs_root
def test_worker_without_memory_leaves_its_request_to_another(mounted: Mounted, trap: Trap, content: bytes) -> None:
    trap.set(be_out_of_memory)
    mounted.start()
    assert mounted.outcome(mounted.read("hard")) == (content, "")
    assert mounted.failures == [f"exit status {worker.OUT_OF_MEMORY_STATUS}"]


@needs_root
@without_resend
def test_without_resend_a_worker_without_memory_lives_on(mounted: Mounted, trap: Trap, content: bytes) -> None:
    trap.set(be_out_of_memory)
    mounted.start()
    _, complaint = mounted.outcome(mounted.read("hard"))
    assert "Input/output error" in complaint
    assert mounted.outcome(mounted.read("hard")) == (content, "")
    assert mounted.failures == []


@needs_root
def test_worker_that_hangs_is_killed_and_its_request_answered(
    mounted: Mounted, trap: Trap, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_LOOKS_UNTIL_HUNG", 3)
    trap.set(lambda: time.sleep(1000))
    mounted.start()
    reader = mounted.read("hard")
    pid = caught_by(trap, mounted, "S").child.pid
    assert [mounted.crew.look() for _ in range(3)] == [[]] * 3
    assert mounted.crew.look() == [f"worker {pid} was busy with one request for 3 s and is killed"]
    assert mounted.outcome(reader) == (content, "")
    assert mounted.failures == ["killed by signal 9"]


@needs_root
def test_request_that_hangs_worker_after_worker_fails(
    mounted: Mounted, trap: Trap, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes a minute: a request that hangs must not hold a worker for as long as one that others kill."""
    monkeypatch.setattr(crew, "_LOOKS_UNTIL_HUNG", 3)
    trap.set(lambda: time.sleep(1000), times=1000)
    mounted.start()
    reader = mounted.read("hard")

    def look() -> bool:
        mounted.crew.look()
        return reader.poll() is not None

    mounted.tend_until(look)
    assert "Software caused connection abort" in mounted.outcome(reader)[1]
    assert len(mounted.failures) == 3
    assert trap.left == 997
    assert mounted.outcome(mounted.read("dir/below/same")) == (content, "")


@needs_root
def test_worker_that_was_stopped_does_not_hang(
    mounted: Mounted, trap: Trap, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As systemd stops all processes at switch_root."""
    monkeypatch.setattr(crew, "_LOOKS_UNTIL_HUNG", 3)
    monkeypatch.setattr(kernel, "resend", lambda _fd: None)  # looks without time between would take the other for hung
    trap.set(stop_myself)
    mounted.start()
    reader = mounted.read("hard")
    member = caught_by(trap, mounted, "T")
    assert [mounted.crew.look() for _ in range(10)] == [[]] * 10
    assert member.looks == 9
    os.kill(member.child.pid, signal.SIGCONT)
    assert mounted.outcome(reader) == (content, "")
    assert mounted.failures == []


@needs_root
def test_retired_worker_finishes_its_request(
    mounted: Mounted, trap: Trap, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "resend", None)  # nothing is left to be handed on
    trap.set(lambda: time.sleep(0.3))
    mounted.start()
    reader = mounted.read("hard")
    mounted.crew.retire(caught_by(trap, mounted, "S"))
    assert mounted.outcome(reader) == (content, "")
    assert len(mounted.crew.workers) == 1
    assert mounted.failures == []


@needs_root
def test_retired_worker_that_does_not_finish_leaves_its_request_to_another(
    mounted: Mounted, trap: Trap, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crew, "_RETIRE_SECONDS", 0.05)
    trap.set(stop_myself)
    mounted.start()
    reader = mounted.read("hard")
    mounted.crew.retire(caught_by(trap, mounted, "T"))
    assert mounted.outcome(reader) == (content, "")


@needs_root
def test_unmount_ends_the_workers_and_nobody_follows_them(mounted: Mounted) -> None:
    mounted.start()
    assert kernel.unmount(os.fsencode(mounted.path)) == 0
    mounted.tend_until(lambda: not mounted.crew.workers)
    assert not mounted.crew.hire_due()
    assert mounted.crew.seconds_until_due(100) == 100


@needs_root
def test_numbers_that_a_worker_made_absurd_do_not_end_the_next_one_in_its_slot(
    mounted: Mounted, content: bytes
) -> None:
    for slot in range(2):
        for number in Number:
            mounted.served.shared.slot(slot)[number] = 2**64 - 1
    mounted.start()
    assert mounted.outcome(mounted.read("hard")) == (content, "")
    assert mounted.failures == []


@needs_root
def test_memory_of_a_worker_is_bounded(mounted: Mounted) -> None:
    mounted.start()
    for pid in mounted.pids:
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
        assert re.search(rf"Max data size +{WORKER_MEMORY_BYTES} +{WORKER_MEMORY_BYTES} +bytes", limits)


# With doubles


class Doubles:
    """Workers that serve nothing, and a kernel that notes what it is told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resent = 0
        self.connected = True
        self.offset = 0.0
        self._serve: Callable[[], object] = signal.pause
        monkeypatch.setattr(kernel, "clone", lambda _fd: os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        monkeypatch.setattr(kernel, "resend", self._resend)
        monkeypatch.setattr(kernel, "is_connected", lambda _fd: self.connected)
        monkeypatch.setattr(crew, "reopen_image", lambda *_: None)
        monkeypatch.setattr(crew, "time", SimpleNamespace(monotonic=self.now))
        monkeypatch.setattr(worker, "serve", self._be_worker)

    def now(self) -> float:
        return time.monotonic() + self.offset

    def serve_by(self, function: Callable[[], object]) -> None:
        self._serve = function

    def _resend(self, _fd: int) -> None:
        self.resent += 1

    def _be_worker(self, assignment: object, image: object, connection: object, ready: Callable[[], None]) -> None:
        signal.signal(worker.RETIRE_SIGNAL, lambda *_: os._exit(0))
        ready()
        self._serve()


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> Doubles:
    return Doubles(monkeypatch)


@pytest.fixture
def nothing() -> Iterator[int]:
    """A descriptor in the place of all that workers keep open."""
    fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    yield fd
    os.close(fd)


@pytest.fixture
def tended(doubles: Doubles, shared: SharedState, nothing: int) -> Iterator[Tended]:
    tended = Tended(Served(ImageFiles(nothing, nothing), FACTS, nothing, Handshake(b"", resend=True), shared))
    yield tended
    tended.crew.dismiss()


def kill(tended: Tended, index: int, signature: int) -> str | None:
    """Have a worker die over a request; returns how it did."""
    tended.numbers(index)[Number.BUSY] = signature
    member = tended.crew.workers[index]
    os.kill(member.child.pid, signal.SIGABRT)
    until(member.child.has_ended)
    (failure,) = tended.tend()
    return failure


def test_workers_that_keep_dying_are_not_started_in_a_storm(tended: Tended, doubles: Doubles) -> None:
    doubles.serve_by(lambda: os._exit(3))
    tended.start()
    began = doubles.now()
    while doubles.now() < began + 30:
        until(lambda: all(member.child.has_ended() for member in tended.crew.workers))
        tended.tend()
        for member in tended.crew.workers:
            member.started = doubles.now()
        doubles.offset += max(0.01, tended.crew.seconds_until_due(2))
    assert 10 < len(tended.failures) < 60
    assert set(tended.failures) == {"exit status 3"}  # at no request: nothing of anybody's has failed
    doubles.serve_by(signal.pause)
    doubles.offset += 10
    tended.tend_until(lambda: tended.crew.is_complete)
    assert len(tended.crew.workers) == 2


def test_request_is_suspect_only_if_workers_die_over_it_in_a_row(tended: Tended, doubles: Doubles) -> None:
    tended.start()
    for signature in (5, 5, 7, 5, 5):
        assert kill(tended, 0, signature) == "killed by signal 6"
        doubles.offset += 10
        tended.tend()
    assert doubles.resent == 5
    assert kill(tended, 0, 5) == "killed by signal 6; the calls it was answering failed"
    assert doubles.resent == 5
    doubles.offset += 10
    tended.tend()
    assert kill(tended, 0, 5) == "killed by signal 6"  # it begins anew
    assert doubles.resent == 6


def test_workers_that_die_idle_make_no_request_suspect(tended: Tended, doubles: Doubles) -> None:
    tended.start()
    for _ in range(5):
        assert kill(tended, 0, 0) == "killed by signal 6"
        doubles.offset += 10
        tended.tend()


def test_successor_finds_its_slot_idle(tended: Tended, doubles: Doubles) -> None:
    """Else it would be killed for a request that its predecessor died over."""
    tended.start()
    tended.numbers(0)[Number.REQUESTS] = 77
    slot = tended.crew.workers[0].slot
    kill(tended, 0, 5)
    tended.tend_until(lambda: tended.crew.is_complete)
    assert {member.slot for member in tended.crew.workers} == {0, 1}
    numbers = tended.served.shared.slot(slot)
    assert (numbers[Number.BUSY], numbers[Number.REQUESTS]) == (0, 77)


def test_worker_that_sleeps_in_the_kernel_gets_a_substitute(
    tended: Tended, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may wait for an answer that only another worker can give; kill -9 does not wake it."""
    asleep = {0}
    monkeypatch.setattr(Worker, "state", property(lambda self: "D" if self.slot in asleep else "S"))
    monkeypatch.setattr(crew, "_LOOKS_UNTIL_HUNG", 5)
    tended.start()
    tended.numbers(0)[Number.BUSY] = 5
    for _ in range(2):
        assert tended.crew.look() == []
        assert not tended.crew.hire_due()
    tended.crew.look()
    assert len(tended.crew.hire_due()) == 1
    for _ in range(20):
        assert tended.crew.look() == []
        assert not tended.crew.hire_due()
    assert [member.slot for member in tended.crew.workers] == [0, 1, 2]
    tended.numbers(0)[Number.BUSY] = 0  # it woke up
    tended.crew.look()
    assert [member.slot for member in tended.crew.workers] == [0, 1]
    assert doubles.resent == 0


def test_substitutes_are_bounded(tended: Tended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "state", "D")
    monkeypatch.setattr(crew, "_MAX_EXTRA", 3)
    tended.start()
    for _ in range(30):
        for index in range(len(tended.crew.workers)):
            tended.numbers(index)[Number.BUSY] = 5
        tended.crew.look()
        tended.crew.hire_due()
    assert len(tended.crew.workers) == 2 + 3


def test_substitute_that_is_busy_is_not_sent_away(
    tended: Tended, doubles: Doubles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "state", "S")
    tended.crew.wanted = 3
    tended.start()
    tended.numbers(2)[Number.BUSY] = 5
    for wanted in (3, 3, 2, 2):
        tended.crew.wanted = wanted
        tended.crew.look()
    assert len(tended.crew.workers) == 3
    tended.numbers(2)[Number.BUSY] = 0
    tended.crew.look()
    assert len(tended.crew.workers) == 2


def test_worker_that_goes_on_does_not_hang(tended: Tended, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it has the same request again and again."""
    monkeypatch.setattr(crew, "_LOOKS_UNTIL_HUNG", 2)
    tended.start()
    numbers = tended.numbers(0)
    numbers[Number.BUSY] = 5
    for _ in range(10):
        numbers[Number.REQUESTS] += 1
        assert tended.crew.look() == []
    assert tended.crew.workers[0].looks == 0


@pytest.mark.parametrize("error", [OSError(11, "Resource temporarily unavailable"), HostError("/dev/fuse is missing")])
def test_worker_that_cannot_be_started_is_tried_again(
    tended: Tended, doubles: Doubles, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    tended.start()
    with monkeypatch.context() as patched:
        patched.setattr(crew, "fork", fail)
        kill(tended, 0, 0)
        fds = open_descriptors()
        for _ in range(20):
            doubles.offset += max(0.01, tended.crew.seconds_until_due(2))
            assert not tended.crew.hire_due()
        assert not tended.crew.is_complete
        assert open_descriptors() == fds
        assert tended.crew.seconds_until_due(100) > 1  # not in a storm
    doubles.offset += 10
    assert len(tended.crew.hire_due()) == 1
    assert tended.crew.is_complete


def test_no_more_workers_than_slots(tended: Tended, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "MAX_SLOTS", 2)
    tended.start()
    with pytest.raises(HostError, match="no more than 2 workers"):
        tended.crew.hire()


def test_all_workers_of_a_hand_over_have_a_slot() -> None:
    assert MAX_SLOTS >= 2 * MAX_WORKERS


def test_nothing_stays_open_of_workers_that_are_gone(tended: Tended, doubles: Doubles) -> None:
    fds = open_descriptors()
    tended.start()
    for _ in range(3):
        kill(tended, 0, 0)
        doubles.offset += 10
        tended.tend()
    tended.crew.retire(tended.crew.workers[0])
    tended.crew.dismiss()
    assert tended.crew.workers == []
    assert open_descriptors() == fds


def test_dismissed_crew_is_not_replaced(tended: Tended) -> None:
    tended.start()
    kill(tended, 0, 0)
    tended.crew.dismiss()
    assert not tended.crew.hire_due()


def test_state_of_a_process_that_is_gone_is_none_that_counts() -> None:
    child = fork(lambda: None, name="x", keep=(), unprivileged=False)
    member = Worker(child, 0, -1, None)  # type: ignore[arg-type]
    until(child.has_ended)
    assert member.state == "Z"
    child.end()
    assert member.state == "?"


@needs_root
def test_reports_wait_while_there_is_no_supervisor(shared: SharedState) -> None:
    """Some thousand blocked writes, until the keeper has started another one."""
    ours, theirs = crew._report_line()
    with ours, theirs:
        reporter = Reporter(theirs, shared.slot(0))
        for number in range(2000):
            reporter.report(InternalReport(nid=None, detail=f"{number}"))
        for number in range(2000):
            assert parse_report(ours.recv(MAX_MESSAGE_BYTES)).number == number + 1
