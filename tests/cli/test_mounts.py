# SPDX-License-Identifier: Apache-2.0
"""`rofs mount`, `umount` and `status` as far as they come without a mount."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rofs.cli import mount as verb
from rofs.fuse import control, kernel, launch
from rofs.fuse.launch import MountOptions

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
    assert "every change is refused and recorded" in shown["mode"]
    assert "not recorded" not in shown
    assert pairs(second)["not recorded"] == "3 events; disk full"
    assert run("status", "--json").json[0] == STATUS


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


def test_who_is_not_root(
    run: Run, image: Path, tmp_path: Path, trust: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1001)
    (tmp_path / "mnt").mkdir()
    assert "needs root" in run("mount", image, tmp_path / "mnt", *trust).failed(5)


@needs_root
def test_device_that_is_missing(
    run: Run, image: Path, tmp_path: Path, trust: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "FUSE_DEVICE", str(tmp_path / "fuse"))
    (tmp_path / "mnt").mkdir()
    assert "modprobe fuse" in run("mount", image, tmp_path / "mnt", *trust).failed(5)


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
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    suid: bool,
    dev: bool,
    exec_: bool,
) -> None:
    seen: list[MountOptions] = []

    def mounted(image: str, directory: str, options: MountOptions) -> Any:
        from tests.fuse.doubles import FACTS

        seen.append(options)
        return FACTS

    monkeypatch.setattr(launch, "mount_in_background", mounted)
    run("mount", "image.raw", tmp_path, "--root-hash", "0" * 64, *words).succeeded()
    (options,) = seen
    assert (options.suid, options.dev, options.exec) == (suid, dev, exec_)
    flags = options.mount_flags
    assert (bool(flags & 2), bool(flags & 4), bool(flags & 8)) == (not suid, not dev, not exec_)


@pytest.mark.parametrize("word", ["party", "rw,party", "allow_other", "nonosuid", "uid=0", b"\xff"])
def test_mount_option_that_is_unknown(run: Run, tmp_path: Path, word: str) -> None:
    message = run("mount", "image.raw", tmp_path, "-o", word).failed(2)
    assert message.startswith("unknown mount option ")
    assert message.endswith("expected suid, dev, exec, nosuid, nodev or noexec")


def test_warnings_of_an_image_are_told(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import dataclasses

    from tests.fuse.doubles import FACTS

    verb._announce(str(tmp_path))(dataclasses.replace(FACTS, warnings=("backup table is damaged",)))
    err = capsys.readouterr().err.splitlines()
    assert err == ["rofs: warning: backup table is damaged", f"rofs: mounted on {tmp_path}; Ctrl-C unmounts"]
