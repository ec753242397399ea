# SPDX-License-Identifier: Apache-2.0
"""The processes of a real mount are confined; code that an image has planted in a worker gets nowhere."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rofs.cli import mount as cli_mount
from rofs.fuse import confine
from rofs.fuse.confine import Support
from tests.fuse.doubles import FACTS
from tests.mounts.harness import children_of, mounted

SUPPORT = confine.support()
needs_seccomp = pytest.mark.skipif(not SUPPORT.seccomp, reason="needs seccomp filters on x86-64 or aarch64")

# Runs rofs with a worker that the content of two files takes over: one tries what is refused, one a socket.
PLANTED = """
import errno, os, socket, sys
from rofs.cli.main import main
from rofs.erofs.reader import ErofsReader

def outcome(action):
    try:
        action()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def planted(reader, nid, offset, length, read=ErofsReader.read):
    content = read(reader, nid, offset, length)
    if content.startswith(b"#!/bin/sh\\n# program"):
        socket.socket()
    if content.startswith(b"#!/bin/sh\\n# plain"):
        actions = (
            lambda: os.open("/etc/passwd", os.O_RDONLY), lambda: os.open("/proc/self/mem", os.O_RDWR), os.fork,
            lambda: os.open("/dev/fuse", os.O_RDWR), lambda: os.listdir("/proc/self/fd"), lambda: os.stat("/"),
        )
        return " ".join(map(outcome, actions)).encode().ljust(len(content))
    return content

ErofsReader.read = planted
sys.exit(main())
"""

LACKING = """
import sys
from rofs.cli.main import main
from rofs.fuse import confine

confine.support = lambda: confine.Support(seccomp=False, landlock_abi=0)
sys.exit(main())
"""


@needs_seccomp
def test_every_process_that_reads_the_image_is_confined(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        status = mount.status()
        assert status["confinement"] == {"seccomp": SUPPORT.seccomp, "landlock_abi": SUPPORT.landlock_abi}
        for pid in {*children_of(status["keeper"])} - {status["supervisor"]}:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            fields = dict(line.split(":\t", 1) for line in lines)
            assert (fields["Seccomp"], fields["NoNewPrivs"], int(fields["CapEff"], 16)) == ("2", "1", 0)


@needs_seccomp
def test_a_worker_that_was_taken_over_gets_nowhere(small_image: Path, trust: Path, tmp_path: Path) -> None:
    program = tmp_path / "planted.py"
    program.write_text(PLANTED)
    with mounted(small_image, trust, tmp_path, program=(sys.executable, program)) as mount:
        assert (mount.directory / "plain").read_bytes().split() == [b"EPERM"] * 6
        with pytest.raises(OSError):  # noqa: PT011 - which one is the kernel's affair: no worker survives it
            (mount.directory / "program").read_bytes()
        ends = mount.wait_for("worker_exit")
        assert all("SIGSYS" in end["detail"] for end in ends)
        assert (mount.directory / "large").read_bytes().startswith(b"large 00000000")


def test_what_is_missing_is_recorded_and_shown(small_image: Path, trust: Path, tmp_path: Path) -> None:
    program = tmp_path / "lacking.py"
    program.write_text(LACKING)
    with mounted(small_image, trust, tmp_path, program=(sys.executable, program)) as mount:
        assert "seccomp and Landlock are missing here" in mount.events("trust")[0]["detail"]
        assert mount.status()["confinement"] == {"seccomp": False, "landlock_abi": 0}
        assert (mount.directory / "large").read_bytes().startswith(b"large 00000000")


def test_what_is_missing_is_said_when_mounting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli_mount._warn(FACTS)
    assert ("missing here" in capsys.readouterr().err) == bool(SUPPORT.lacks)
    monkeypatch.setattr(confine, "support", lambda: Support(seccomp=True, landlock_abi=0))
    cli_mount._warn(FACTS)
    assert "warning: Landlock is missing here" in capsys.readouterr().err
