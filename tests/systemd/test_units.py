# SPDX-License-Identifier: Apache-2.0
"""rofs@.service and mount units under a real systemd, of Debian 12 and of Debian 13."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, SigningKeys
from tests.mounts.harness import wait_until
from tests.systemd.conftest import CERTIFICATE, IMAGE, MOUNTPOINT, UNIT
from tests.systemd.harness import Machine

FSTAB_UNIT = "srv-app.mount"
_VERSION = "0.1.0+tests"
_SHUTDOWN_SECONDS = 30  # far less than the 90 s after which systemd kills what does not end


def _nothing_is_left(machine: Machine) -> None:
    assert machine.mount_ids(MOUNTPOINT) == []
    assert machine.processes("rofs.") == []
    assert not machine.path("/run/rofs").exists() or not list(machine.path("/run/rofs").iterdir())


# Start and stop


def test_a_started_service_answers_and_a_stopped_one_leaves_nothing(machine: Machine) -> None:
    machine.systemctl("start", UNIT)
    assert machine.run("ls", f"{MOUNTPOINT}/data").stdout.split() == ["0", "1", "2", "3"]
    status = machine.status(MOUNTPOINT)
    assert machine.show(UNIT, "ActiveState", "MainPID", "StatusText") == {
        "ActiveState": "active",
        "MainPID": str(status["keeper"]),
        "StatusText": f"serving {MOUNTPOINT}",
    }
    machine.systemctl("stop", UNIT)
    assert machine.show(UNIT, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    assert machine.show(UNIT, "NFileDescriptorStore") == {"NFileDescriptorStore": "0"}
    _nothing_is_left(machine)


def test_a_start_is_over_only_when_the_mount_answers(machine: Machine) -> None:
    script = f"systemctl start {UNIT} && cat {MOUNTPOINT}/data/0 >/dev/null && systemctl stop {UNIT}"
    for _ in range(5):
        machine.run("sh", "-ec", script)


def test_a_service_runs_at_the_next_boot_once_it_is_enabled(machine: Machine) -> None:
    machine.systemctl("enable", "--now", UNIT)
    assert machine.show("multi-user.target", "Wants")["Wants"].split().count(UNIT) == 1


def test_an_image_that_is_not_trusted_is_a_failed_unit_with_the_reason(
    machine: Machine, other_keys: SigningKeys
) -> None:
    machine.copy(other_keys.certificate_path, CERTIFICATE)
    assert machine.systemctl("start", UNIT, check=False).returncode != 0
    assert machine.show(UNIT, "ActiveState", "ExecMainStatus", "NRestarts") == {
        "ActiveState": "failed",
        "ExecMainStatus": "3",
        "NRestarts": "0",
    }
    assert re.search(r"^rofs: error: .*app\.raw: .*signed", machine.journal(UNIT), re.MULTILINE)
    _nothing_is_left(machine)


def test_a_missing_image_is_tried_again(machine: Machine) -> None:
    machine.path(IMAGE).rename(machine.path(f"{IMAGE}.later"))
    assert machine.systemctl("start", UNIT, check=False).returncode != 0
    machine.path(f"{IMAGE}.later").rename(machine.path(IMAGE))
    wait_until(lambda: machine.show(UNIT, "ActiveState")["ActiveState"] == "active")
    assert machine.run("ls", f"{MOUNTPOINT}/data").stdout


def test_a_service_stops_while_a_file_on_it_is_open(machine: Machine) -> None:
    machine.systemctl("start", UNIT)
    machine.run("systemd-run", "--unit=holder", "sh", "-c", f"exec sleep 1000 <{MOUNTPOINT}/data/1")
    machine.systemctl("stop", UNIT)
    assert machine.show(UNIT, "Result") == {"Result": "success"}
    _nothing_is_left(machine)


def test_restart_mounts_the_image_that_is_there_now(machine: Machine, other_image: Path) -> None:
    machine.systemctl("start", UNIT)
    before = machine.status(MOUNTPOINT)
    machine.copy(other_image, f"{IMAGE}.new")
    machine.path(f"{IMAGE}.new").rename(machine.path(IMAGE))
    machine.systemctl("restart", UNIT)
    after = machine.status(MOUNTPOINT)
    assert after["keeper"] != before["keeper"]
    assert after["root_hash"] != before["root_hash"]
    assert machine.run("ls", MOUNTPOINT).stdout.split() == ["other"]
    assert len(machine.mount_ids(MOUNTPOINT)) == 1


def test_an_unmount_by_hand_ends_the_service(machine: Machine) -> None:
    machine.systemctl("start", UNIT)
    machine.run("umount", MOUNTPOINT)
    wait_until(lambda: machine.show(UNIT, "ActiveState")["ActiveState"] == "inactive")
    assert machine.show(UNIT, "Result", "NRestarts") == {"Result": "success", "NRestarts": "0"}
    _nothing_is_left(machine)


def test_a_refused_write_is_recorded_where_the_service_says(machine: Machine) -> None:
    machine.systemctl("start", UNIT)
    assert machine.run("sh", "-c", f"echo x >{MOUNTPOINT}/data/0", check=False).returncode != 0
    logs = list(machine.path("/var/log/rofs").glob("*.jsonl"))
    assert len(logs) == 1
    assert '"event":"write_blocked"' in logs[0].read_text()
    assert machine.status(MOUNTPOINT)["dropped"] == 0


# Reload and crashes


@pytest.fixture(scope="session")
def other_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as if an update had been installed."""
    package = tmp_path_factory.mktemp("version") / "rofs"
    shutil.copytree(REPOSITORY / "rofs", package, ignore=shutil.ignore_patterns("__pycache__"))
    text = (package / "__init__.py").read_text()
    (package / "__init__.py").write_text(re.sub(r"(?m)^__version__ = .*$", f'__version__ = "{_VERSION}"', text))
    return package


def test_reload_puts_an_update_in_place_and_reads_go_on(machine: Machine, other_version: Path) -> None:
    machine.systemctl("start", UNIT)
    before, mount_ids = machine.status(MOUNTPOINT), machine.mount_ids(MOUNTPOINT)
    with machine.reading(f"{MOUNTPOINT}/data") as end_reading:
        machine.install(other_version)
        machine.systemctl("reload", UNIT)
        after = machine.status(MOUNTPOINT)
        assert end_reading()["failed"] == []
    assert machine.show(UNIT, "ActiveState", "MainPID", "NRestarts") == {
        "ActiveState": "active",
        "MainPID": str(before["keeper"]),
        "NRestarts": "0",
    }
    assert after["keeper"] == before["keeper"]
    assert machine.mount_ids(MOUNTPOINT) == mount_ids
    assert after["program_version"] == _VERSION
    assert after["supervisor"] != before["supervisor"]
    assert not _workers(after) & _workers(before)
    machine.systemctl("stop", UNIT)
    _nothing_is_left(machine)


def test_a_reload_that_cannot_be_done_fails_and_the_mount_goes_on(machine: Machine, other_keys: SigningKeys) -> None:
    machine.systemctl("start", UNIT)
    before = machine.status(MOUNTPOINT)
    machine.copy(other_keys.certificate_path, CERTIFICATE)
    assert machine.systemctl("reload", UNIT, check=False).returncode != 0
    assert "signed" in machine.journal(UNIT)
    assert machine.show(UNIT, "ActiveState") == {"ActiveState": "active"}
    assert _workers(machine.status(MOUNTPOINT)) == _workers(before)


def _workers(status: dict[str, object]) -> set[int]:
    workers = status["workers"]
    assert isinstance(workers, list)
    return {worker["pid"] for worker in workers}


def _kill_the_keeper(machine: Machine) -> None:
    """And wait for the next one to serve."""
    before = machine.status(MOUNTPOINT)["keeper"]
    machine.kill(before)
    wait_until(lambda: machine.show(UNIT, "ActiveState", "MainPID")["MainPID"] not in {"0", str(before)})
    wait_until(lambda: machine.answers(MOUNTPOINT) and machine.status(MOUNTPOINT)["keeper"] != before)
    wait_until(lambda: machine.show(UNIT, "ActiveState")["ActiveState"] == "active")


@pytest.mark.parametrize("reloaded", [False, True], ids=["first program", "after a reload"])
def test_a_killed_keeper_is_followed_by_one_that_goes_on_with_the_mount(machine: Machine, reloaded: bool) -> None:
    machine.systemctl("start", UNIT)
    if reloaded:
        machine.systemctl("reload", UNIT)
    mount_ids = machine.mount_ids(MOUNTPOINT)
    with machine.reading(f"{MOUNTPOINT}/data") as end_reading:
        for count in (1, 2):
            _kill_the_keeper(machine)
            assert machine.show(UNIT, "NRestarts") == {"NRestarts": str(count)}
        found = end_reading()
    assert machine.mount_ids(MOUNTPOINT) == mount_ids
    assert found["rounds"] > 0
    if _kernel_resends():
        assert found["failed"] == []
    machine.systemctl("stop", UNIT)
    assert machine.show(UNIT, "NFileDescriptorStore") == {"NFileDescriptorStore": "0"}
    _nothing_is_left(machine)


def _kernel_resends() -> bool:
    """Whether the kernel hands out a dead process's requests again (FUSE_HAS_RESEND)."""
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    assert release is not None
    return (int(release[1]), int(release[2])) >= (6, 9)


def test_a_keeper_that_cannot_go_on_with_the_mount_before_mounts_anew(machine: Machine, tmp_path: Path) -> None:
    """Instead of waiting for ever for a mount that nobody serves, but whose descriptors the manager still has."""
    machine.systemctl("start", UNIT)
    package = shutil.copytree(REPOSITORY / "rofs", tmp_path / "rofs", ignore=shutil.ignore_patterns("__pycache__"))
    handover = package / "fuse" / "handover.py"
    text = handover.read_text()
    handover.write_text(re.sub(r"(?m)^(STATE_VERSION: Final = )", r"\g<1>1000 + ", text))
    assert handover.read_text() != text
    machine.install(package)
    _kill_the_keeper(machine)
    assert machine.run("ls", f"{MOUNTPOINT}/data").stdout
    assert len(machine.mount_ids(MOUNTPOINT)) == 1


def test_a_service_stops_right_after_its_keeper_was_killed(machine: Machine) -> None:
    machine.systemctl("start", UNIT)
    machine.kill(machine.status(MOUNTPOINT)["keeper"])
    machine.systemctl("stop", UNIT)
    wait_until(lambda: machine.show(UNIT, "ActiveState")["ActiveState"] in {"inactive", "failed"})
    machine.systemctl("start", UNIT)
    assert machine.run("ls", f"{MOUNTPOINT}/data").stdout
    assert len(machine.mount_ids(MOUNTPOINT)) == 1


# Mount units


def _fstab(machine: Machine, options: str) -> None:
    machine.write("/etc/fstab", f"{IMAGE} {MOUNTPOINT} fuse.rofs trust={CERTIFICATE},{options} 0 0\n")
    machine.systemctl("daemon-reload")


def test_the_example_of_a_mount_unit_mounts(machine: Machine) -> None:
    example = machine.path("/usr/local/share/doc/rofs/examples/srv-app.mount").read_text()
    machine.write(f"/etc/systemd/system/{FSTAB_UNIT}", example)
    machine.systemctl("daemon-reload")
    machine.systemctl("start", FSTAB_UNIT)
    assert machine.run("ls", f"{MOUNTPOINT}/data").stdout
    machine.systemctl("stop", FSTAB_UNIT)
    assert machine.show(FSTAB_UNIT, "ActiveState", "Result") == {"ActiveState": "inactive", "Result": "success"}
    wait_until(lambda: not machine.processes("rofs."))
    _nothing_is_left(machine)


def test_a_line_of_fstab_mounts_and_survives_daemon_reload_and_remount(machine: Machine) -> None:
    _fstab(machine, "nofail")
    machine.systemctl("start", FSTAB_UNIT)
    mount_ids = machine.mount_ids(MOUNTPOINT)
    _fstab(machine, "nofail,x-systemd.device-timeout=5")
    machine.systemctl("restart", "systemd-remount-fs.service")
    machine.systemctl("reload", FSTAB_UNIT)  # a remount
    assert machine.show(FSTAB_UNIT, "ActiveState") == {"ActiveState": "active"}
    assert machine.mount_ids(MOUNTPOINT) == mount_ids
    assert machine.run("ls", f"{MOUNTPOINT}/data").stdout
    machine.run("umount", MOUNTPOINT)
    wait_until(lambda: machine.show(FSTAB_UNIT, "ActiveState")["ActiveState"] == "inactive")


def test_a_line_of_fstab_that_cannot_be_mounted_says_why(machine: Machine, other_keys: SigningKeys) -> None:
    machine.copy(other_keys.certificate_path, CERTIFICATE)
    _fstab(machine, "nofail")
    assert machine.systemctl("start", FSTAB_UNIT, check=False).returncode != 0
    assert machine.show(FSTAB_UNIT, "ActiveState", "Result") == {"ActiveState": "failed", "Result": "exit-code"}
    assert re.search("rofs: error: .*signed", machine.journal(FSTAB_UNIT))
    _nothing_is_left(machine)


def test_an_automount_mounts_at_the_first_access(machine: Machine) -> None:
    _fstab(machine, "noauto,x-systemd.automount")
    machine.systemctl("start", "srv-app.automount")
    assert machine.show(FSTAB_UNIT, "ActiveState") == {"ActiveState": "inactive"}
    assert machine.run("ls", f"{MOUNTPOINT}/data").stdout
    assert machine.show(FSTAB_UNIT, "ActiveState") == {"ActiveState": "active"}
    machine.systemctl("stop", "srv-app.automount", FSTAB_UNIT)
    assert machine.mount_ids(MOUNTPOINT) == []


# Shutdown


@pytest.mark.parametrize("how", ["service", "fstab"])
def test_the_system_shuts_down_while_a_mount_is_in_use(machine: Machine, how: str) -> None:
    if how == "fstab":
        _fstab(machine, "nofail")
    machine.systemctl("start", UNIT if how == "service" else FSTAB_UNIT)
    busy = f"exec 3<{MOUNTPOINT}/data/1; while :; do cat {MOUNTPOINT}/data/*; done >/dev/null"
    machine.run("systemd-run", "--unit=user-of-it", "sh", "-c", busy)
    assert machine.power_off() < _SHUTDOWN_SECONDS
