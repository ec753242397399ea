# SPDX-License-Identifier: Apache-2.0
"""Mounts of ordinary users: by fusermount3, and as the root of a user namespace."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rofs.fuse import kernel
from tests.mounts.harness import ROFS, ROOT_IS_A_MOUNT, is_mount, read_events, wait_until

USER = 65534


@dataclass(frozen=True)
class User:
    """An ordinary user with a home, an image, a certificate and a mount point."""

    home: Path
    image: Path
    trust: Path
    directory: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home / "run")}

    def run(
        self, *words: str | Path, environment: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words,
            env=dict(environment or self.environment),
            user=USER,
            group=USER,
            extra_groups=[],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.home,
            **options,
        )

    def rofs(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run(ROFS, *words)

    def mount(self, *options: str | Path) -> subprocess.CompletedProcess[str]:
        return self.rofs("mount", self.image, self.directory, "--trust", self.trust, *options)

    @property
    def log(self) -> Path:
        (log,) = (self.home / ".local/state/rofs").glob("*.jsonl")
        return log


@pytest.fixture
def open_device() -> Iterator[None]:
    """/dev/fuse as udev makes it."""
    before = stat.S_IMODE(os.stat(kernel.FUSE_DEVICE).st_mode)
    os.chmod(kernel.FUSE_DEVICE, 0o666)
    yield
    os.chmod(kernel.FUSE_DEVICE, before)


@pytest.fixture
def user(open_device: None, small_image: Path, trust: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    # pytest's own directories are closed to others.
    home = Path(subprocess.run(["mktemp", "-d"], check=True, capture_output=True, text=True).stdout.strip())
    try:
        home.chmod(0o755)
        (home / "run").mkdir(0o700)
        (home / "mnt").mkdir()
        shutil.copy(small_image, home / "image.raw")
        shutil.copy(trust, home / "trust.crt")
        for path in (home, *home.iterdir()):
            os.chown(path, USER, USER)
        made = User(home, home / "image.raw", home / "trust.crt", home / "mnt")
        if made.rofs("--version").returncode:
            pytest.skip("the checkout lies where other users cannot read")
        yield made
    finally:
        while is_mount(home / "mnt"):
            assert kernel.unmount(os.fsencode(home / "mnt"), lazy=True) == 0
        shutil.rmtree(home)


def _options_of(directory: Path) -> Sequence[str]:
    lines = Path("/proc/mounts").read_text().splitlines()
    (line,) = [line for line in lines if line.split()[1] == str(directory)]
    return line.split()[3].split(",")


def test_a_user_mounts_reads_is_refused_and_unmounts(user: User) -> None:
    done = user.mount()
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{user.image} {user.directory} fuse.rofs " in Path("/proc/mounts").read_text()
    assert {"nosuid", "nodev", "default_permissions"} <= set(_options_of(user.directory))
    read = user.run("cat", user.directory / "plain")
    assert read.stdout.startswith("#!/bin/sh")
    refused = user.run("touch", user.directory / "new")
    assert "Read-only file system" in refused.stderr
    (event,) = read_events(user.log, "write_blocked")
    assert (event["path"], event["comm"], event["uid"]) == ("/new", "touch", USER)
    assert event["exe"].endswith(("touch", "coreutils"))
    (status,) = json.loads(user.rofs("status", user.directory, "--json").stdout)
    assert len(status["workers"]) >= 2
    done = user.rofs("umount", user.directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_mount(user.directory)
    assert not (user.home / "run" / "rofs").exists() or not list((user.home / "run" / "rofs").iterdir())


def test_a_user_may_not_have_the_machine_restarted(user: User) -> None:
    done = user.mount("--on-corruption", "restart")
    assert done.returncode == 5
    assert "--on-corruption restart needs root" in done.stderr
    assert not is_mount(user.directory)


def test_a_user_unmounts_lazily_though_it_is_in_use(user: User) -> None:
    user.mount("--event-hook", f"id -u > {user.home}/told")
    done = user.run("sh", "-c", f"exec 9< {user.directory}/plain; {ROFS} umount --lazy {user.directory}")
    assert done.returncode == 0, done.stderr
    assert "is out of sight" in done.stderr
    assert not is_mount(user.directory)
    wait_until(lambda: read_events(user.log)[-1]["event"] == "umount")
    assert (user.home / "told").read_text() == f"{USER}\n"  # by whom it is run


def test_another_user_may_not_look(user: User) -> None:
    user.mount()
    with pytest.raises(PermissionError):
        os.listdir(user.directory)  # not even root
    assert user.rofs("umount", user.directory).returncode == 0


def test_a_killed_worker_costs_a_user_no_call_either(user: User) -> None:
    user.mount()
    (status,) = json.loads(user.rofs("status", user.directory, "--json").stdout)
    for worker in status["workers"]:
        os.kill(worker["pid"], signal.SIGKILL)
    assert user.run("cat", user.directory / "large").returncode == 0
    assert user.rofs("umount", user.directory).returncode == 0


def test_a_takeover_keeps_a_users_mount(user: User) -> None:
    user.mount()
    done = user.mount("--takeover", "--workers", "3")
    assert (done.returncode, done.stderr) == (0, "")
    assert user.run("cat", user.directory / "large").returncode == 0
    done = user.rofs("umount", user.directory)
    assert (done.returncode, done.stderr) == (0, "")
    assert not is_mount(user.directory)


def test_a_users_stale_mount_is_replaced(user: User) -> None:
    for _ in range(2):
        assert user.mount().returncode == 0
        (status,) = json.loads(user.rofs("status", user.directory, "--json").stdout)
        os.kill(status["keeper"], signal.SIGKILL)
    assert user.mount().returncode == 0
    assert Path("/proc/self/mountinfo").read_text().count(f" {user.directory} ") == 1
    assert user.rofs("umount", user.directory).returncode == 0


def test_sealed_mode_is_for_users_too(user: User) -> None:
    assert user.mount("--mode", "sealed").returncode == 0
    assert "ro" in _options_of(user.directory)
    assert user.rofs("umount", user.directory).returncode == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("allow_other", "user_allow_other"),
        ("suid", "leave out -o suid,dev"),
        ("dev", "leave out -o suid,dev"),
    ],
)
def test_what_users_may_not_do_is_said_in_one_line(user: User, option: str, message: str) -> None:
    done = user.mount("-o", option)
    assert done.returncode == 5
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not is_mount(user.directory)


def test_a_mount_point_of_somebody_else(user: User) -> None:
    os.chown(user.directory, 0, 0)
    done = user.mount()
    assert done.returncode == 5
    assert "cannot mount on" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_fusermount3_that_is_missing(user: User) -> None:
    done = user.run(
        ROFS,
        "mount",
        user.image,
        user.directory,
        "--trust",
        user.trust,
        environment={**user.environment, "PATH": "/nowhere"},
    )
    assert done.returncode == 5
    assert "install the package fuse3" in done.stderr


def test_device_that_is_closed_to_users(user: User) -> None:
    os.chmod(kernel.FUSE_DEVICE, 0o600)
    done = user.mount()
    assert done.returncode == 5
    assert "/dev/fuse" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not ROOT_IS_A_MOUNT, reason="in a chroot no user namespace can be made (user_namespaces(7))")
def test_the_root_of_a_user_namespace_mounts_itself(user: User) -> None:
    """Where there is one id only, the workers have no other user to become, but no capability either."""
    script = f"""
        mount -t tmpfs none /run
        {ROFS} mount {user.image} {user.directory} --trust {user.trust} --audit-log {user.home}/log || exit 1
        cmp {user.directory}/copy-a {user.directory}/copy-b || exit 2
        touch {user.directory}/new 2>/dev/null && exit 3
        {ROFS} status {user.directory} --json >{user.home}/status
        for worker in $(sed -n 's/.*"pid": *\\([0-9]*\\).*/\\1/p' {user.home}/status); do
            grep -q '^CapEff:.0*$' /proc/$worker/status || exit 4
        done
        {ROFS} umount {user.directory} || exit 5
    """
    done = user.run("unshare", "-Urm", "bash", "-c", script)
    assert done.returncode == 0, done.stderr
    assert [event["event"] for event in read_events(user.home / "log")] == ["trust", "mount", "write_blocked", "umount"]
