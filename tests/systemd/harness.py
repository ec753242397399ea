# SPDX-License-Identifier: Apache-2.0
"""A real systemd as PID 1 of a container, on a throwaway copy of a cached Debian root, with this rofs installed.

No virtual machine and no systemd on the host are needed: `boot.sh` makes the namespaces. The kernel is the host's,
so whatever rofs needs of it is as it is here. Where the namespaces cannot be had, the tests are skipped.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.mounts.harness import ROOT_IS_A_MOUNT, children_of, is_alive, wait_until

PYTHON = "/opt/rofs/bin/python"
ROFS = "/opt/rofs/bin/rofs"
_BOOT = Path(__file__).parent / "boot.sh"
_READER = Path(__file__).parent / "reader.py"
_COMMAND_SECONDS = 120
_ENTER_CGROUP = 'echo $$ >"/proc/$1/root/sys/fs/cgroup/init.scope/cgroup.procs"; exec nsenter --target "$@"'
_REMOVE_CGROUP = (
    'mount -t cgroup2 cgroup2 . && cd "$PWD" && { [ ! -d "$1" ] || find "$1" -depth -type d -exec rmdir {} +; }'
)
_NUMBERS = itertools.count(1)
_ENTRY = f"#!{PYTHON}\nimport sys\nfrom rofs.cli.main import main\nsys.exit(main())\n"


@dataclass(frozen=True)
class Machine:
    """A system that has booted.

    Attributes:
        suite: Of Debian.
        init: PID 1, by its number outside.
    """

    suite: str
    init: int

    def path(self, path: str) -> Path:
        """A file in there, for reading and writing from outside; not to be used below a mount of rofs."""
        return Path(f"/proc/{self.init}/root{path}")

    def command(self, *words: str | Path) -> list[str | Path]:
        """What runs a command in there as PID 1's child would run, but for the environment."""
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wdns=/")
        enter = ("sh", "-c", _ENTER_CGROUP, "sh", str(self.init), *spaces)
        return [*enter, "--", "env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", *words]

    def run(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in there and capture what it says."""
        done = subprocess.run(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_COMMAND_SECONDS,
        )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def systemctl(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run systemctl; when it should have succeeded, say also what the unit has logged."""
        done = self.run("systemctl", "--no-pager", *words, check=False)
        if check and done.returncode:
            raise AssertionError(f"systemctl {words}: {done.stdout}{done.stderr}{self.journal(words[-1])}")
        return done

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.systemctl("show", unit, *(f"--property={name}" for name in names)).stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, unit: str) -> str:
        """What a unit has logged, without times and names."""
        return self.run("journalctl", "--no-pager", "--output=cat", "--unit", unit).stdout

    def copy(self, source: Path, target: str) -> None:
        """Copy a file from outside."""
        self.path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, self.path(target))

    def write(self, target: str, text: str) -> None:
        """Make a file."""
        self.path(target).parent.mkdir(parents=True, exist_ok=True)
        self.path(target).write_text(text)

    def install(self, package: Path = REPOSITORY / "rofs") -> None:
        """Put a `rofs` package in the place of what is installed, as pip would do."""
        (site,) = self.path("/opt/rofs/lib").glob("python3*/site-packages")
        shutil.rmtree(site / "rofs", ignore_errors=True)
        shutil.copytree(package, site / "rofs")
        self.write(ROFS, _ENTRY)
        self.path(ROFS).chmod(0o755)

    def mount_ids(self, mountpoint: str) -> list[str]:
        """Identities of the mounts at a place, the lowest first."""
        lines = map(str.split, Path(f"/proc/{self.init}/mountinfo").read_text().splitlines())
        return [line[0] for line in lines if line[4] == mountpoint]

    def status(self, mountpoint: str) -> dict[str, Any]:
        """What `rofs status` says of a mount."""
        (found,) = json.loads(self.run(ROFS, "status", mountpoint, "--json").stdout)
        assert isinstance(found, dict)
        return found

    def answers(self, mountpoint: str) -> bool:
        """Whether `rofs status` does."""
        return self.run(ROFS, "status", mountpoint, check=False).returncode == 0

    def processes(self, word: str) -> list[str]:
        """Command lines in there that have a word; but for those that tests run."""
        script = 'for f in /proc/[0-9]*/cmdline; do tr "\\0" " " <$f; echo; done 2>/dev/null'
        return [line for line in self.run("sh", "-c", script).stdout.splitlines() if word in line and "tr " not in line]

    def kill(self, pid: int) -> None:
        """Kill a process, by its number in there."""
        self.run("sh", "-c", f"kill -KILL {pid}")

    @contextmanager
    def reading(self, directory: str) -> Iterator[Callable[[], dict[str, Any]]]:
        """Have a program read all files of a directory over and over, past the page cache.

        Yields:
            Ends it and returns how many `rounds` there were, and what calls `failed`.
        """
        self.copy(_READER, "/tmp/reader.py")
        words = self.command(PYTHON, "-I", "/tmp/reader.py", directory)
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            assert reader.stdout.readline() == "reading\n"

            def end() -> dict[str, Any]:
                out, _ = reader.communicate(timeout=_COMMAND_SECONDS)
                found = json.loads(out)
                assert isinstance(found, dict)
                return found

            try:
                yield end
            finally:
                reader.kill()

    def power_off(self) -> float:
        """Shut it down.

        Returns:
            How many seconds it took.
        """
        started = time.monotonic()
        self.run("systemctl", "poweroff", "--no-block", check=False)
        wait_until(lambda: not is_alive(self.init), _COMMAND_SECONDS)
        return time.monotonic() - started


def systemd_root(suite: str) -> Path:
    """A Debian with systemd and what rofs depends on, cached outside of the checkout."""
    script = REPOSITORY / "scripts" / "systemd-root"
    return Path(subprocess.run([script, suite], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


@contextmanager
def booted(suite: str) -> Iterator[Machine]:
    """Boot a system with this rofs in /opt/rofs; at the end, it is gone with all that was done in it."""
    if not ROOT_IS_A_MOUNT:
        pytest.skip("the root is no mount point (we are in a chroot): mounts cannot be made private")
    root, cgroup = systemd_root(suite), f"rofs-tests-{os.getpid()}-{next(_NUMBERS)}"
    with tempfile.TemporaryDirectory() as place, _container(root, cgroup, Path(place)) as init:
        machine = Machine(suite, init)
        wait_until(lambda: _is_up(machine), 60)
        machine.install()
        yield machine


@contextmanager
def _container(root: Path, cgroup: str, place: Path) -> Iterator[int]:
    words: list[str | Path] = ["unshare", "--mount", "sh", _BOOT, root, cgroup]
    process = subprocess.Popen(
        words, cwd=place, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "booting\n":
            pytest.skip(f"no systemd can run here: {process.communicate()[1].strip()}")
        (init,) = children_of(process.pid)
        try:
            yield init
        finally:
            with suppress(ProcessLookupError):
                os.kill(init, signal.SIGKILL)  # and with it everything in there
            process.communicate(timeout=_COMMAND_SECONDS)
    finally:
        process.kill()
        process.communicate()
        wait_until(lambda: _has_removed(cgroup, place))


def _has_removed(cgroup: str, place: Path) -> bool:
    """A process that has just ended may still count for a moment."""
    words = ["unshare", "--mount", "sh", "-c", _REMOVE_CGROUP, "sh", cgroup]
    return subprocess.run(words, cwd=place, check=False, stderr=subprocess.DEVNULL).returncode == 0


def _is_up(machine: Machine) -> bool:
    if not os.readlink(f"/proc/{machine.init}/exe").endswith("/systemd"):
        return False
    return machine.systemctl("is-system-running", check=False).stdout.strip() in {"running", "degraded"}
