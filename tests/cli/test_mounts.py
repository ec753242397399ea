# SPDX-License-Identifier: Apache-2.0
"""`rofs mount`, `umount` and `status` as far as they come without a mount."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rofs.cli import mount as verb
from rofs.fuse import control, kernel, launch
from rofs.fuse.launch import MountOptions
from rofs.image.open import ImageFacts
from rofs.trust.verify import TrustPolicy
from tests.conftest import REPOSITORY
from tests.fuse.doubles import FACTS

from .conftest import Run, pairs

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it is told so before anything else is looked at")


def test_status_without_mounts(run: Run) -> None:
    assert run("status").succeeded() == ""
    assert run("status", "--json").json == []


@pytest.mark.parametrize("words", [("status",), ("umount",), ("status", "--json")])
def test_what_is_no_mount_of_ours(run: Run, tmp_path: Path, words: tuple[str, ...]) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        assert run(*words, directory).failed(1) == f"{directory} is not a rofs mount of this user"
    assert "odd\\xff\\n is not a rofs mount" in run(*words, os.fsencode(tmp_path) + b"/odd\xff\n").failed(1)


STATUS: dict[str, Any] = {
    "mountpoint": "/mnt\\xff",
    "image": "/images/edge.raw",
    "name": "edge\x1b[2J",
    "version": None,
    "root_hash": "ab" * 32,
    "accepted_by": "signature",
    "signer": "CN=x\ny",
    "mode": "audit",
    "keeper": 1,
    "supervisor": 2,
    "workers": [{"pid": 3}],
    "verified_blocks": 7,
    "blocked_writes": 2,
    "corruption": 0,
    "dropped": 0,
    "audit_log": "/var/log/rofs/mnt.jsonl",
    "audit_head": "cd" * 32,
    "audit_error": None,
}


def test_status_of_mounts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "mounts", lambda: [STATUS, {**STATUS, "dropped": 3, "audit_error": "disk full"}])
    first, second = run("status").succeeded().split("\n\n")
    shown = pairs(first)
    assert (shown["name"], shown["version"], shown["signer"]) == ("edge\\x1b[2J", "-", "CN=x\\ny")
    assert shown["mode"] == "audit (/proc/mounts says rw; every change is refused and recorded)"
    assert shown["processes"] == "keeper 1, supervisor 2"
    assert (shown["worker 3"], shown["restarts"]) == ("-", "-")  # as an older version tells it
    assert "not recorded" not in shown
    assert pairs(second)["not recorded"] == "3 events; disk full"
    assert run("status", "--json").json[0] == STATUS


def test_status_of_workers(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = {"pid": 3, "requests": 12, "verified_blocks": 5, "rss_bytes": 41 << 20, "memory_limit_bytes": 256 << 20}
    ended = {"pid": 4, "requests": 7, "memory_limit_bytes": 256 << 20}
    unlimited = {"pid": 5, "rss_bytes": 3 << 19}
    status = {**STATUS, "workers": [busy, ended, unlimited], "restarts": 1}
    monkeypatch.setattr(control, "mounts", lambda: [status])
    shown = pairs(run("status").succeeded())
    assert shown["worker 3"] == "12 requests, 41 of 256 MiB"
    assert shown["worker 4"] == "7 requests"
    assert shown["worker 5"] == "2 MiB"
    assert shown["restarts"] == "1"
    assert_fits_the_schema([status])


def test_status_in_sealed_mode(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed, later = {**STATUS, "mode": "sealed"}, {**STATUS, "mode": "other"}
    monkeypatch.setattr(control, "mounts", lambda: [sealed, later])
    first, second = run("status").succeeded().split("\n\n")
    assert pairs(first)["mode"] == (
        "sealed (/proc/mounts says ro; the kernel refuses changes before rofs sees who tried)"
    )
    assert pairs(second)["mode"] == "other (unknown to this version of rofs)"
    assert_fits_the_schema([sealed])


def assert_fits_the_schema(status: list[dict[str, Any]]) -> None:
    schema = json.loads((REPOSITORY / "docs" / "schemas" / "status.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(status)


def test_mount_point_that_cannot_be_one(run: Run, image: Path, trust: tuple[str, str], tmp_path: Path) -> None:
    assert run("mount", image, tmp_path / "none", *trust).failed(5) == (
        f"mount point {tmp_path}/none does not exist; create it with mkdir"
    )
    assert run("mount", image, image, *trust).failed(5) == f"mount point {image} is not a directory"


@needs_root
def test_image_that_cannot_be_opened(
    run: Run, tmp_path: Path, trust: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "open_device", lambda: os.open(os.devnull, os.O_RDWR))
    (tmp_path / "mnt").mkdir()
    assert "No such file" in run("mount", tmp_path / "none", tmp_path / "mnt", *trust).failed(1)
    assert "is a directory" in run("mount", tmp_path, tmp_path / "mnt", *trust).failed(1)


@pytest.mark.parametrize("option", ["suid", "dev"])
def test_who_is_not_root_gets_no_devices(
    run: Run, image: Path, tmp_path: Path, trust: tuple[str, str], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1001)
    (tmp_path / "mnt").mkdir()
    assert "leave out -o suid,dev" in run("mount", image, tmp_path / "mnt", *trust, "-o", option).failed(5)


@needs_root
def test_device_that_is_missing(
    run: Run, image: Path, tmp_path: Path, trust: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "FUSE_DEVICE", str(tmp_path / "fuse"))
    (tmp_path / "mnt").mkdir()
    assert "modprobe fuse" in run("mount", image, tmp_path / "mnt", *trust).failed(5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[MountOptions]:
    """What would have been mounted."""
    asked: list[MountOptions] = []

    def mounted(image: str, directory: str, options: MountOptions) -> ImageFacts:
        asked.append(options)
        return FACTS

    monkeypatch.setattr(launch, "mount_in_background", mounted)
    return asked


PINNED = ("--root-hash", "0" * 64)


@pytest.mark.parametrize(
    ("words", "suid", "dev", "exec_"),
    [
        ((), False, False, True),
        (("-o", "suid,dev"), True, True, True),
        (("-o", "suid", "-o", "nosuid,noexec"), False, False, False),
        (("-o", "rw,defaults,nofail,x-systemd.automount,,noatime"), False, False, True),
    ],
)
def test_mount_options(
    run: Run, tmp_path: Path, asked: list[MountOptions], words: tuple[str, ...], suid: bool, dev: bool, exec_: bool
) -> None:
    run("mount", "image.raw", tmp_path, *PINNED, *words).succeeded()
    (options,) = asked
    assert (options.suid, options.dev, options.exec) == (suid, dev, exec_)
    flags = options.mount_flags
    assert (bool(flags & 2), bool(flags & 4), bool(flags & 8)) == (not suid, not dev, not exec_)


def test_mode_and_workers(run: Run, tmp_path: Path, asked: list[MountOptions]) -> None:
    run("mount", "image.raw", tmp_path, *PINNED).succeeded()
    run("mount", "image.raw", tmp_path, *PINNED, "--mode", "audit", "--workers", "1").succeeded()
    run("mount", "image.raw", tmp_path, *PINNED, "--mode", "sealed", "--workers", "32").succeeded()
    assert [(options.mode, options.workers) for options in asked] == [("audit", None), ("audit", 1), ("sealed", 32)]
    assert [options.mount_flags & kernel.MS_RDONLY for options in asked] == [0, 0, kernel.MS_RDONLY]


@pytest.mark.parametrize("count", ["0", "33", "-1", "1.5", "two", "", "9" * 5000, "\u0664"])
def test_workers_that_are_no_number_of_them(run: Run, tmp_path: Path, asked: list[MountOptions], count: str) -> None:
    assert "expected a number from 1 to 32" in run("mount", "image.raw", tmp_path, f"--workers={count}").failed(2)
    assert asked == []


def test_mode_that_is_unknown(run: Run, tmp_path: Path, asked: list[MountOptions]) -> None:
    assert "'party'" in run("mount", "image.raw", tmp_path, "--mode", "party").failed(2)
    assert asked == []


def test_read_only_is_a_surprise_in_audit_mode_only(run: Run, tmp_path: Path, asked: list[MountOptions]) -> None:
    done = run("mount", "image.raw", tmp_path, *PINNED, "-o", "ro")
    assert (done.code, done.err.count("-o ro changes nothing")) == (0, 1)
    run("mount", "image.raw", tmp_path, *PINNED, "-o", "ro", "--mode", "sealed").succeeded()
    assert [options.mode for options in asked] == ["audit", "sealed"]


def test_takeover(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, bytes | None, int | None]] = []

    def taken_over(image: str, directory: str, policy: TrustPolicy, workers: int | None = None) -> None:
        asked.append((image, directory, policy.pinned_root_hash, workers))

    monkeypatch.setattr(launch, "take_over", taken_over)
    run("mount", "image.raw", tmp_path, "--takeover", *PINNED).succeeded()
    run("mount", "image.raw", tmp_path, "--takeover", *PINNED, "--workers", "3").succeeded()
    assert asked == [("image.raw", str(tmp_path), bytes(32), workers) for workers in (None, 3)]


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("-f",), "--foreground"),
        (("--audit-log", "log.jsonl"), "--audit-log"),
        (("--mode", "audit"), "--mode"),
        (("-o", "suid"), "-o"),
        (("--on-corruption", "eio"), "--on-corruption"),
        (("--event-hook", ""), "--event-hook"),
        (("--corruption-hook", "true"), "--corruption-hook"),
    ],
)
def test_takeover_changes_nothing_of_the_mount(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], option: str
) -> None:
    monkeypatch.setattr(launch, "take_over", None)
    assert run("mount", "image.raw", tmp_path, "--takeover", *words).failed(2) == (
        f"--takeover goes without {option}: the mount keeps what it was mounted with"
    )


def test_takeover_of_what_is_no_mount(run: Run, image: Path, trust: tuple[str, str], tmp_path: Path) -> None:
    assert run("mount", image, tmp_path, "--takeover", *trust).failed(1) == (
        f"{tmp_path} is not a rofs mount of this user"
    )


@pytest.mark.parametrize("word", ["party", "rw,party", "nonosuid", "uid=0", b"\xff"])
def test_mount_option_that_is_unknown(run: Run, tmp_path: Path, word: str) -> None:
    message = run("mount", "image.raw", tmp_path, "-o", word).failed(2)
    assert message.startswith("unknown mount option ")
    assert message.endswith("expected suid, dev, exec, allow_other (or no and one of these), or noresend")


def test_warnings_of_an_image_are_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    verb._announce(str(tmp_path))(dataclasses.replace(FACTS, warnings=("backup table is damaged",)))
    err = capsys.readouterr().err.splitlines()
    assert err == ["rofs: warning: backup table is damaged", f"rofs: mounted on {tmp_path}; Ctrl-C unmounts"]
