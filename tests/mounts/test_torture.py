# SPDX-License-Identifier: Apache-2.0
"""A mount in use while its processes are killed, replaced and stopped at random: no wrong byte, no failed call.

What is done is drawn from a seed, which is printed; when, is not repeatable. Single deaths in known
places are test_workers' business.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from rofs.fuse.process import WORKER_MEMORY_BYTES
from tests.conftest import SigningKeys
from tests.mounts import torture
from tests.mounts.harness import (
    ROFS,
    Mounted,
    chain_is_intact,
    children_of,
    count_of,
    is_alive,
    is_mount,
    mounted,
    rofs,
)

_SECONDS, _LONG_SECONDS = 40, 900
_STATED_LOSS = {"ECONNABORTED", "EIO"}  # of calls in work on a killed worker, when they cannot be handed on
_END_SECONDS = 60


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like a system: directories in directories, mostly small files, a few large ones, links, a program."""
    root = tmp_path_factory.mktemp("torture") / "tree"
    chance = random.Random(1)
    for index in range(40):
        directory = root / f"dir-{index % 8}" / f"sub-{index % 3}" / f"{index}"
        directory.mkdir(parents=True)
        for number in range(8):
            (directory / f"file-{number}").write_bytes(chance.randbytes(int(chance.lognormvariate(9, 1.5))))
        (directory / "link").symlink_to("file-0")
        os.link(directory / "file-1", directory / "hard-link")
    (root / torture.MANY).mkdir()
    for index in range(700):
        (root / torture.MANY / f"a-name-of-some-length-{index:04}").touch()
    (root / torture.LARGE).write_bytes(chance.randbytes(12 << 20))
    (root / torture.CORRUPT).write_bytes(chance.randbytes(10 * torture.BLOCK))
    (root / "bin").mkdir()
    shutil.copy("/bin/cat", root / torture.PROGRAM)
    return root


@pytest.fixture(scope="module")
def image(tree: Path, signing_keys: SigningKeys) -> Path:
    path = tree.parent / "torture.raw"
    rofs("build", tree, "-o", path, "--key", signing_keys.key_path, "--cert", signing_keys.certificate_path)
    bad = (tree / torture.CORRUPT).read_bytes()[torture.BAD_BLOCK * torture.BLOCK :][: torture.BLOCK]
    data = path.read_bytes()
    assert data.count(bad) == 1
    with path.open("r+b") as file:
        file.seek(data.index(bad) + 1000)
        file.write(bytes([bad[1000] ^ 0x10]))
    return path


class _Users:
    """Processes that use the mount."""

    def __init__(self, mount: Mounted, tree: Path, seed: int, roles: list[str]) -> None:
        self._stop = mount.log.with_name("stop")
        words = [str(mount.directory), str(tree), str(seed), str(self._stop)]
        self._processes = {
            role: subprocess.Popen([sys.executable, torture.__file__, role, *words], stdout=subprocess.PIPE)
            for role in roles
        }

    def stop(self) -> dict[str, dict[str, Any]]:
        """Have them end, and get what they tell."""
        self._stop.touch()
        told = {}
        for role, process in self._processes.items():
            output, _ = process.communicate(timeout=_END_SECONDS)
            told[role] = json.loads(output) if process.returncode == 0 else {"ended": process.returncode}
        return told

    def kill(self) -> None:
        for process in self._processes.values():
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            if process.stdout:
                process.stdout.close()


class _Tormentor:
    """Does to a mount what should not matter to its users."""

    def __init__(self, mount: Mounted, image: Path, trust: Path, chance: random.Random) -> None:
        self.takeovers = 0
        self.kills = 0
        self.largest_rss_bytes = 0
        self._chance = chance
        self._keeper = mount.status()["keeper"]
        self._take_over: list[str | Path] = [ROFS, "mount", image, mount.directory, "--trust", trust, "--takeover"]
        self._taking_over: subprocess.Popen[str] | None = None

    def run(self, seconds: float) -> None:
        acts: list[tuple[int, Callable[[], None]]] = [
            (8, self._kill_one),
            (1, self._kill_all),
            (4, self._drop_caches),
            (3, self._begin_takeover),
            (2, self._stop_one_for_a_moment),
        ]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._chance.choices([act for _, act in acts], [weight for weight, _ in acts])[0]()
            self._look()
            time.sleep(self._chance.choice((0.0, 0.05, 0.3, 0.8)))
        self.end()

    def end(self) -> None:
        """Wait for a hand-over that has begun."""
        if self._taking_over is not None:
            _, said = self._taking_over.communicate(timeout=150)
            assert len(said.splitlines()) <= 1, said
            self.takeovers += self._taking_over.returncode == 0
            self._taking_over = None

    def _look(self) -> None:
        assert is_alive(self._keeper), "the keeper has ended"
        for pid in children_of(self._keeper):
            with suppress(OSError):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self.largest_rss_bytes = max(self.largest_rss_bytes, pages * os.sysconf("SC_PAGESIZE"))

    def _kill(self, pids: list[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.kills += 1

    def _kill_one(self) -> None:
        """A worker, the supervisor, the resolver, or one that is just starting."""
        if children := children_of(self._keeper):
            self._kill([self._chance.choice(children)])

    def _kill_all(self) -> None:
        self._kill(children_of(self._keeper))

    def _stop_one_for_a_moment(self) -> None:
        if children := children_of(self._keeper):
            pid = self._chance.choice(children)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                time.sleep(0.2)
                os.kill(pid, signal.SIGCONT)

    def _drop_caches(self) -> None:
        Path("/proc/sys/vm/drop_caches").write_text("3")

    def _begin_takeover(self) -> None:
        """And go on meanwhile; it may be refused while a process is missing."""
        if self._taking_over is not None and self._taking_over.poll() is not None:
            self.end()
        if self._taking_over is None:
            self._taking_over = subprocess.Popen(self._take_over, stderr=subprocess.PIPE, text=True)


@contextmanager
def _tortured(
    mount: Mounted, image: Path, trust: Path, tree: Path, seed: int, roles: list[str]
) -> Iterator[tuple[_Users, _Tormentor]]:
    with ExitStack() as ends:
        tormentor = _Tormentor(mount, image, trust, random.Random(seed))
        ends.callback(tormentor.end)
        users = _Users(mount, tree, seed, roles)
        ends.callback(users.kill)
        yield users, tormentor


@pytest.mark.parametrize("options", [[], ["-o", "noresend"], ["--mode", "sealed"]], ids=["audit", "noresend", "sealed"])
def test_torture(
    image: Path, tree: Path, trust: Path, tmp_path: Path, pytestconfig: pytest.Config, options: list[str]
) -> None:
    seed = int(os.environ.get("ROFS_TORTURE_SEED", random.SystemRandom().randrange(1 << 32)))
    sys.stdout.write(f"repeat with ROFS_TORTURE_SEED={seed}\n")  # shown when it fails
    seconds = _LONG_SECONDS if pytestconfig.getoption("--long") else _SECONDS
    seconds = seconds // 4 if options else seconds
    # Without RESEND a page that cannot be read ends its reader with SIGBUS.
    roles = [role for role in torture.ROLES if role != "map" or "noresend" not in options]
    flags = ["-o", "suid,dev,exec"]
    with mounted(image, trust, tmp_path, *flags, *options, longest_seconds=seconds + 200) as mount:
        keeper = mount.status()["keeper"]
        with _tortured(mount, image, trust, tree, seed, roles) as (users, tormentor):
            tormentor.run(seconds)
            told = users.stop()
        sys.stdout.write(f"{told}, {tormentor.kills} kills, {tormentor.takeovers} hand-overs\n")
        _check_what_users_saw(told, set() if "noresend" not in options else _STATED_LOSS)
        assert tormentor.kills
        assert tormentor.largest_rss_bytes < WORKER_MEMORY_BYTES
        _check_that_all_is_well(mount, keeper, image, trust)
        rofs("umount", mount.directory)
        assert not is_mount(mount.directory)
        assert not is_alive(keeper)
        assert chain_is_intact(mount.log)
        if "sealed" not in options:
            assert count_of(mount.log, "write_blocked") + count_of(mount.log, "dropped") >= told["write"]["done"]
        assert count_of(mount.log, "corruption")
        for event in _events(mount.log, "worker_exit"):
            assert ": killed by signal 9" in event["detail"], "it died of something else than us"


def _check_what_users_saw(told: dict[str, dict[str, Any]], allowed: set[str]) -> None:
    for role, saw in told.items():
        assert "ended" not in saw, f"{role} ended with {saw}"
        assert saw["done"], f"{role} did nothing"
        if allowed and role in {"execute", "write", "read-corrupt"}:
            continue  # what they got is no errno of a read
        assert not saw["wrong"], f"{role} saw {saw['wrong']}"
        assert set(saw["failed"]) <= allowed, f"{role} failed: {saw['failed']}"


def _check_that_all_is_well(mount: Mounted, keeper: int, image: Path, trust: Path) -> None:
    """Processes are complete, another program can take over, and nothing is left of those before."""
    status = mount.wait_for_status(
        lambda status: len(children_of(status["keeper"])) == len(status["workers"]) + 2 >= 4, _END_SECONDS
    )
    assert status["keeper"] == keeper
    assert status["restarts"]
    rofs("mount", image, mount.directory, "--trust", trust, "--takeover")
    count = len(status["workers"])
    after = mount.wait_for_status(
        lambda status: len(children_of(keeper)) == count + 2 and len(status["workers"]) == count, _END_SECONDS
    )
    assert after["restarts"] >= status["restarts"]


def _events(log: Path, kind: str) -> list[dict[str, Any]]:
    with log.open() as file:
        return [event for event in map(json.loads, file) if event["event"] == kind]
