# SPDX-License-Identifier: Apache-2.0
"""The life of a mount: how it starts, how it ends, and what is left when a part of it dies."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest

from rofs.fuse import control, kernel, mountinfo, places
from tests.conftest import REPOSITORY, SigningKeys, make_keys
from tests.mounts.harness import (
    ROFS,
    ROOT_IS_A_MOUNT,
    children_of,
    count_of,
    is_alive,
    is_mount,
    kill,
    mounted,
    read_events,
    rofs,
    stopped,
    wait_until,
)

# What is mounted where it cannot be private is unmounted again.
UNSHARE = ("unshare", "-m", "--propagation", "private" if ROOT_IS_A_MOUNT else "unchanged")


def _verified(log: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return rofs("audit", "verify", log, *options, check=False)


def test_status_shows_what_the_contract_promises(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        status = mount.status()
        assert status["mountpoint"] == str(mount.directory)
        assert status["image"] == str(small_image)
        assert status["audit_log"] == str(mount.log)
        assert (status["name"], status["version"], status["mode"]) == (None, None, "audit")
        assert status["signer"] == "CN=rofs tests"
        assert (status["blocked_writes"], status["corruption"]) == (0, 0)
        pids = [status["keeper"], status["supervisor"], *(worker["pid"] for worker in status["workers"])]
        assert len(status["workers"]) == max(2, min(4, len(os.sched_getaffinity(0))))
        assert len(set(pids)) == 2 + len(status["workers"])
        assert all(0 < worker["rss_bytes"] < worker["memory_limit_bytes"] for worker in status["workers"])
        assert status["program_version"] == rofs("--version").stdout.split()[-1]
        assert status["restarts"] == 0
        assert all(map(is_alive, pids))
        assert _verified(mount.log, "--head", status["audit_head"]).returncode == 0
        assert str(mount.directory) in rofs("status").stdout


def test_the_workers_and_the_resolver_have_no_privileges(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        status = mount.status()
        unprivileged = set(children_of(status["keeper"])) - {status["supervisor"]}
        workers = {worker["pid"] for worker in status["workers"]}
        assert len(workers) == len(unprivileged) - 1
        assert workers < unprivileged
        for pid in unprivileged:
            lines = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
            assert all(int(uid) > 65535 for uid in lines["Uid"].split() + lines["Gid"].split())
            assert [int(lines[f"Cap{kind}"], 16) for kind in ("Prm", "Eff", "Inh", "Amb", "Bnd")] == [0] * 5
            assert lines["NoNewPrivs"] == "1"
            assert lines["Groups"].strip() == ""


def test_umount_leaves_nothing(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        keeper = mount.status()["keeper"]
        pids = [keeper, *children_of(keeper)]
        rofs("umount", mount.directory)
        assert not is_mount(mount.directory)
        assert not any(map(is_alive, pids))
        assert [event["event"] for event in mount.events()] == ["trust", "mount", "umount"]
        assert rofs("status", mount.directory, check=False).returncode == 1
        assert rofs("umount", mount.directory, check=False).returncode == 1


def test_umount_of_util_linux_ends_it_as_well(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        keeper = mount.status()["keeper"]
        subprocess.run(["umount", mount.directory], check=True)
        wait_until(lambda: not is_alive(keeper))
        assert mount.events()[-1]["event"] == "umount"


def test_a_busy_mount_stays(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount, (mount.directory / "plain").open("rb") as file:
        done = rofs("umount", mount.directory, check=False)
        assert done.returncode == 5
        assert "busy" in done.stderr
        assert file.read(2) == b"#!"
        assert mount.status()["workers"]


def test_the_chain_goes_on_across_mounts(small_image: Path, trust: Path, tmp_path: Path) -> None:
    for _ in range(3):
        with mounted(small_image, trust, tmp_path) as mount, pytest.raises(OSError, match="Read-only"):
            (mount.directory / "new").mkdir()
    assert _verified(mount.log).stdout.startswith("intact: 12 events")
    assert [event["seq"] for event in mount.events()] == list(range(1, 13))


def test_a_torn_line_is_cut_off_and_noted(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        pass
    with mount.log.open("ab") as file:
        file.write(b'{"v":1,"torn')
    assert _verified(mount.log).returncode == 4
    with mounted(small_image, trust, tmp_path) as mount:
        pass
    assert _verified(mount.log).returncode == 0
    assert "torn" in mount.events()[3]["detail"]


@pytest.mark.parametrize(("part", "code"), [("edited", 4), ("removed", 4), ("cut", 4), ("whole", 0)])
def test_audit_verify_tells(small_image: Path, trust: Path, tmp_path: Path, part: str, code: int) -> None:
    with mounted(small_image, trust, tmp_path) as mount, pytest.raises(OSError, match="Read-only"):
        (mount.directory / "new").mkdir()
    lines = mount.log.read_bytes().splitlines(keepends=True)
    head = mount.events()[-1]["hash"]
    changed = {
        "edited": [lines[0], lines[1], lines[2].replace(b"/new", b"/nev"), *lines[3:]],
        "removed": [*lines[:1], *lines[2:]],
        "cut": lines[:-1],
        "whole": lines,
    }[part]
    mount.log.write_bytes(b"".join(changed))
    done = _verified(mount.log, "--head", head)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == (1 if code else 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_mount_in_the_foreground_ends_by_a_signal(
    small_image: Path, trust: Path, tmp_path: Path, number: signal.Signals
) -> None:
    directory, log = tmp_path / "mnt", tmp_path / "audit.jsonl"
    directory.mkdir()
    words: list[str | Path] = [ROFS, "mount", "-f", small_image, directory, "--trust", trust, "--audit-log", log]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "mounted on" in process.stderr.readline()
        assert (directory / "plain").read_bytes()
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
    assert not is_mount(directory)
    assert read_events(log)[-1]["event"] == "umount"


@pytest.mark.parametrize("name", ["worker", "supervisor", "resolver"])
def test_a_process_that_dies_is_replaced(small_image: Path, trust: Path, tmp_path: Path, name: str) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        status = mount.status()
        workers = [worker["pid"] for worker in status["workers"]]
        (resolver,) = set(children_of(status["keeper"])) - {status["supervisor"], *workers}
        victim = {"worker": workers[0], "supervisor": status["supervisor"], "resolver": resolver}[name]
        kill(victim)
        assert mount.wait_for("worker_exit")[0]["pid"] == victim
        assert mount.events("worker_exit")[0]["detail"] == f"{name}: killed by signal 9"
        after = mount.wait_for_status(lambda status: len(status["workers"]) == len(workers))
        assert (after["keeper"], after["restarts"]) == (status["keeper"], 1)
        assert len(children_of(status["keeper"])) == 2 + len(workers)
        assert victim not in children_of(status["keeper"])
        assert (mount.directory / "plain").read_bytes()
        rofs("umount", mount.directory)
        assert not is_alive(status["keeper"])
        assert [event["event"] for event in mount.events()][-1] == "umount"
        assert _verified(mount.log).returncode == 0


def test_when_the_keeper_dies_nobody_goes_on_in_its_name(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        status = mount.status()
        others = children_of(status["keeper"])
        os.kill(status["keeper"], signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, others)))
        with pytest.raises(OSError, match="not connected") as caught:
            os.listdir(mount.directory)
        assert caught.value.errno == errno.ENOTCONN
        assert "keeper" in mount.events("worker_exit")[0]["detail"]
        assert _verified(mount.log).returncode == 0


def test_mounts_that_lost_their_processes_are_replaced(small_image: Path, trust: Path, tmp_path: Path) -> None:
    """kill -9 of everything, three times at the same place: one mount is left, and then none."""
    directory = tmp_path / "mnt"
    directory.mkdir()
    try:
        for _ in range(3):
            rofs("mount", small_image, directory, "--trust", trust, "--audit-log", tmp_path / "log")
            assert (directory / "plain").exists()
            assert Path("/proc/self/mountinfo").read_text().count(f" {directory} ") == 1
            keeper = control.status(str(directory))["keeper"]
            kill(keeper, *children_of(keeper))
        rofs("mount", small_image, directory, "--trust", trust, "--audit-log", tmp_path / "log")
        rofs("umount", directory)
        assert not is_mount(directory)
    finally:
        while is_mount(directory):
            assert kernel.unmount(os.fsencode(directory), lazy=True) == 0
    assert _verified(tmp_path / "log").returncode == 0


def test_a_stale_mount_is_replaced_though_its_keeper_has_only_just_died(
    small_image: Path, trust: Path, tmp_path: Path
) -> None:
    """Its workers may still be about to end."""
    with mounted(small_image, trust, tmp_path) as mount:
        os.kill(mount.status()["keeper"], signal.SIGKILL)
        rofs("mount", small_image, mount.directory, "--trust", trust, "--audit-log", mount.log)
        assert (mount.directory / "plain").exists()


def test_a_mount_that_only_hangs_is_not_replaced(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        keeper = mount.status()["keeper"]
        with stopped(keeper, *children_of(keeper)):
            again = rofs("mount", small_image, mount.directory, "--trust", trust, check=False)
        assert again.returncode == 5
        assert "does not tell its status" in again.stderr
        assert (mount.directory / "plain").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_even_when_files_are_open(
    small_image: Path, trust: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with mounted(small_image, trust, tmp_path) as mount, (mount.directory / "plain").open("rb"):
        keeper = mount.status()["keeper"]
        os.kill(keeper, number)
        wait_until(lambda: not is_mount(mount.directory))


def test_a_mount_that_hangs_can_be_taken_out_of_sight(small_image: Path, trust: Path, tmp_path: Path) -> None:
    """Nothing may ask the mount itself, not even for the attributes of its root."""
    with mounted(small_image, trust, tmp_path) as mount, stopped(*mount.worker_pids()):
        (mount.directory.parent / "other").symlink_to(mount.directory)
        rofs("umount", "--lazy", mount.directory)
        assert not is_mount(mount.directory)


def _left_of(directory: Path) -> tuple[bool, list[Path], bool]:
    """Whether it is mounted, which processes name it, whether it has a runtime directory."""
    processes = [path for path in Path("/proc").glob("[0-9]*/cmdline") if bytes(directory) in _read(path)]
    return is_mount(directory), processes, Path(places.mount_directory(bytes(directory))).exists()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("cycles", [10, pytest.param(500, marks=pytest.mark.long)])
def test_mounting_again_and_again_leaves_nothing(small_image: Path, trust: Path, tmp_path: Path, cycles: int) -> None:
    directory, log = tmp_path / "mnt", tmp_path / "log"
    directory.mkdir()
    for _ in range(cycles):
        rofs("mount", small_image, directory, "--trust", trust, "--audit-log", log)
        rofs("umount", directory)
    assert _left_of(directory) == (False, [], False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "mnt"]
    assert len(read_events(log, "umount")) == cycles


@pytest.mark.parametrize("key_type", ["p256", "rsa3072"])
def test_it_works_from_where_only_root_can_read(
    small_tree: Path, tmp_path: Path, other_keys: SigningKeys, key_type: Literal["p256", "rsa3072"]
) -> None:
    """Whoever has dropped privileges can import nothing any more from a home directory with mode 0700."""
    keys = make_keys(tmp_path / "keys", key_type)
    rofs("build", small_tree, "-o", tmp_path / "i", "--key", keys.key_path, "--cert", keys.certificate_path)
    (tmp_path / "private").mkdir()
    (tmp_path / "mnt").mkdir()
    script = f"""
        set -e
        cd {tmp_path}
        mount -t tmpfs -o mode=0700 none private
        mkdir private/checkout private/venv
        mount --bind {REPOSITORY} private/checkout
        mount --bind {sys.prefix} private/venv
        rofs() {{ PYTHONPATH=$PWD/private/checkout private/venv/bin/python -m rofs.cli.main "$@"; }}
        rofs mount i mnt --trust {keys.certificate_path} --audit-log log
        cmp {small_tree}/large mnt/large
        ! mkdir mnt/new 2>/dev/null
        rofs umount mnt
        code=0
        rofs mount i mnt --trust {other_keys.certificate_path} 2>said || code=$?
        test $code = 3
        grep -q 'not signed by a trusted certificate' said
        umount private/checkout private/venv private
    """
    done = subprocess.run([*UNSHARE, "bash", "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [event["event"] for event in read_events(tmp_path / "log")] == ["trust", "mount", "write_blocked", "umount"]
    assert read_events(tmp_path / "log")[2]["path"] == "/new"


def test_it_keeps_no_descriptor_of_its_caller(small_image: Path, trust: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        words: list[str | Path] = [
            ROFS,
            "mount",
            small_image,
            tmp_path / "mnt",
            "--trust",
            trust,
            "--audit-log",
            tmp_path / "log",
        ]
        (tmp_path / "mnt").mkdir()
        try:
            subprocess.run(words, check=True, pass_fds=[writing])
            os.close(writing)
            assert pipe.read() == b""  # which would wait for ever
        finally:
            rofs("umount", tmp_path / "mnt")


@contextmanager
def _covered_by_tmpfs(directory: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", directory], check=True)


def test_what_is_mounted_over_it_is_left_alone(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        keeper = mount.status()["keeper"]
        with _covered_by_tmpfs(mount.directory):
            (mount.directory / "mine").write_text("x")
            assert rofs("umount", mount.directory, check=False).returncode == 5
            os.kill(keeper, signal.SIGTERM)
            assert rofs("umount", mount.directory, check=False).returncode == 5  # after it has seen the signal
            assert (mount.directory / "mine").exists()
        rofs("umount", mount.directory)
        assert not is_alive(keeper)


def test_a_mount_that_was_given_our_id_is_not_unmounted(small_image: Path, trust: Path, tmp_path: Path) -> None:
    """The kernel uses the id of a mount again at once; ours may live on in a copy."""
    copy, other = tmp_path / "copy", tmp_path / "other"
    copy.mkdir()
    other.mkdir()
    with mounted(small_image, trust, tmp_path) as mount:
        ours = mountinfo.mount_on(bytes(mount.directory))
        assert ours is not None
        keeper = mount.status()["keeper"]
        subprocess.run(["mount", "--bind", mount.directory, copy], check=True)
        count = 0
        try:
            assert kernel.unmount(bytes(mount.directory)) == 0
            while (found := mountinfo.mount_on(bytes(other))) is None or found.mount_id != ours.mount_id:
                if count == 50:
                    pytest.skip("the kernel gave the id to nobody")
                subprocess.run(["mount", "-t", "tmpfs", "none", other], check=True)
                count += 1
            os.kill(keeper, signal.SIGTERM)
            subprocess.run(["umount", copy], check=True)
            wait_until(lambda: not is_alive(keeper))
            assert mountinfo.mount_on(bytes(other)) == found
        finally:
            for _ in range(count):
                kernel.unmount(bytes(other))
            kernel.unmount(bytes(copy), lazy=True)


def test_a_mount_that_was_moved_is_still_unmounted(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        subprocess.run(["mount", "--make-private", mount.directory], check=True)
        subprocess.run(["mount", "--move", mount.directory, elsewhere], check=True)
        assert (elsewhere / "plain").exists()
        rofs("umount", mount.directory)
        assert not is_mount(elsewhere)


def test_when_nobody_hears_that_it_is_mounted_it_is_not(small_image: Path, trust: Path, tmp_path: Path) -> None:
    """The launcher was killed: its pipe is broken when the keeper wants to tell."""
    (tmp_path / "mnt").mkdir()
    program = f"""
from rofs.fuse.launch import MountOptions, mount_in_foreground
from rofs.trust.store import load_trust
from rofs.trust.verify import TrustPolicy
def announce(facts):
    raise BrokenPipeError
options = MountOptions(TrustPolicy(tuple(load_trust([{str(trust)!r}]).certificates)), {str(tmp_path / "log")!r})
mount_in_foreground({str(small_image)!r}, {str(tmp_path / "mnt")!r}, options, announce)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.stderr.endswith("BrokenPipeError\n")
    assert not is_mount(tmp_path / "mnt")
    assert "start failed" in read_events(tmp_path / "log", "umount")[0]["detail"]


# What cannot be mounted


def _mount(image: Path, directory: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    done = rofs("mount", image, directory, *options, check=False)
    assert len(done.stderr.strip().splitlines()) in {1, 2, 3}, done.stderr
    assert "Traceback" not in done.stderr
    assert not is_mount(directory)
    return done


def test_mount_point_that_is_missing(small_image: Path, trust: Path, tmp_path: Path) -> None:
    done = _mount(small_image, tmp_path / "absent", "--trust", trust)
    assert done.returncode == 5
    assert "does not exist" in done.stderr


def test_mount_point_that_is_a_file(small_image: Path, trust: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert _mount(small_image, tmp_path / "file", "--trust", trust).returncode == 5


def test_mount_point_that_is_busy(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        done = rofs("mount", small_image, mount.directory, "--trust", trust, check=False)
        assert done.returncode == 5
        assert "busy" in done.stderr


def test_image_of_another_signer(small_image: Path, other_keys: SigningKeys, tmp_path: Path) -> None:
    done = _mount(small_image, tmp_path, "--trust", other_keys.certificate_path)
    assert done.returncode == 3
    assert "not signed by a trusted certificate" in done.stderr


def test_image_with_another_root_hash_than_the_pinned(small_image: Path, tmp_path: Path) -> None:
    assert _mount(small_image, tmp_path, "--root-hash", "0" * 64).returncode == 3


def test_nothing_trusted(small_image: Path, tmp_path: Path) -> None:
    done = _mount(small_image, tmp_path)
    assert done.returncode == 3
    assert "--trust" in done.stderr


def test_a_pinned_root_hash_is_enough(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path / "first") as mount:
        root_hash = mount.status()["root_hash"]
    directory = tmp_path / "mnt"
    directory.mkdir()
    rofs("mount", small_image, directory, "--root-hash", root_hash, "--audit-log", tmp_path / "log")
    try:
        assert read_events(tmp_path / "log", "trust")[0]["status"] == "root-hash"
    finally:
        rofs("umount", directory)


def test_unsigned_is_said_and_recorded(small_image: Path, other_keys: SigningKeys, trust: Path, tmp_path: Path) -> None:
    directory = tmp_path / "mnt"
    directory.mkdir()
    options = ("--trust", other_keys.certificate_path, "--allow-unsigned", "--audit-log", tmp_path / "log")
    done = rofs("mount", small_image, directory, *options)
    try:
        assert "recorded" in done.stderr
        assert read_events(tmp_path / "log", "trust")[0]["status"] == "unsigned"
    finally:
        rofs("umount", directory)


@pytest.mark.skipif(not ROOT_IS_A_MOUNT, reason="the root is no mount point (chroot): /dev cannot be covered privately")
def test_dev_fuse_that_is_missing(small_image: Path, trust: Path, tmp_path: Path) -> None:
    words = f"mount -t tmpfs none /dev && exec {ROFS} mount {small_image} {tmp_path} --trust {trust}"
    done = subprocess.run([*UNSHARE, "sh", "-c", words], check=False, capture_output=True, text=True)
    assert done.returncode == 5
    assert done.stderr.startswith("rofs: error: /dev/fuse is missing")


def test_audit_log_that_another_mount_writes(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        other = tmp_path / "other"
        other.mkdir()
        done = _mount(small_image, other, "--trust", trust, "--audit-log", mount.log)
        assert done.returncode == 5
        assert "in use by another rofs process" in done.stderr


def test_audit_log_that_is_something_else(small_image: Path, trust: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("not a log\n")
    directory = tmp_path / "mnt"
    directory.mkdir()
    assert _mount(small_image, directory, "--trust", trust, "--audit-log", tmp_path / "notes").returncode == 4
    assert (tmp_path / "notes").read_text() == "not a log\n"


def test_full_disk_under_the_audit_log(small_image: Path, trust: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=True)
    try:
        with mounted(small_image, trust, tmp_path / "place", "--audit-log", disk / "log") as mount:
            (disk / "filler").write_bytes(b"x" * (65536 - 8192))
            for number in range(30):  # repeats of the same would only be counted
                with pytest.raises(OSError, match="Read-only"):
                    (mount.directory / f"new-{number}").mkdir()
            assert (mount.directory / "plain").read_bytes()
            assert "space" in mount.status()["audit_error"]
            (disk / "filler").unlink()
            with pytest.raises(OSError, match="Read-only"):
                (mount.directory / "new").mkdir()
            wait_until(lambda: bool(read_events(disk / "log", "dropped")))
        assert count_of(disk / "log", "write_blocked") + count_of(disk / "log", "dropped") == 31
        assert _verified(disk / "log").returncode == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_full_disk_during_build_leaves_nothing(small_tree: Path, signing_keys: SigningKeys, tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", tmp_path], check=True)
    try:
        keys = ("--key", signing_keys.key_path, "--cert", signing_keys.certificate_path)
        done = rofs("build", small_tree, "-o", tmp_path / "image.raw", *keys, check=False)
        assert done.returncode == 5
        assert "No space left" in done.stderr
        assert os.listdir(tmp_path) == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)
