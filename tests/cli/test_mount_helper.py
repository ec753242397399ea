# SPDX-License-Identifier: Apache-2.0
"""The mount helper's command line: what mount(8) passes, and what becomes of it. Real mounts: tests/system."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from rofs.cli import mount as verb
from rofs.cli import mount_helper as helper
from rofs.errors import FormatError, HostError, InputError, RofsError, TrustError

SPEC, DIRECTORY = "/images/app.raw", "/srv/app"


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `rofs mount` is asked for."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(verb, "run", lambda arguments: found.append(dict(vars(arguments))))
    return found


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What mount(8) is asked for; it says 32."""
    found: list[list[str]] = []

    class Done:
        returncode = 32

    def run(words: list[str], *, check: bool) -> Done:
        found.append(words)
        return Done()

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_generic_options_that_mean_nothing_to_a_mount(mounts: list[dict[str, Any]]) -> None:
    generic = "rw,ro,defaults,nofail,_netdev,noauto,auto,relatime,noatime,lazytime,sync,x-systemd.automount,"
    generic += "x-systemd.requires-mounts-for=/a,X-mount.mkdir=0755,x-foo,comment=some text,nouser,loud,silent"
    assert helper.main([SPEC, DIRECTORY, "-o", generic]) == 0
    (mount,) = mounts
    assert (mount["image"], mount["directory"], mount["options"]) == (SPEC, DIRECTORY, [])
    assert (mount["trust"], mount["mode"], mount["foreground"], mount["takeover"]) == ([], None, False, False)
    assert mount["verb"] == "mount"


@pytest.mark.parametrize(
    ("given", "honoured"),
    [
        ("suid,dev,noexec", "suid,dev,noexec"),
        ("user", "noexec,nosuid,nodev"),
        ("users,exec", "noexec,nosuid,nodev,exec"),
        ("suid,owner", "suid,nosuid,nodev"),
        ("group,dev", "nosuid,nodev,dev"),
        ("noresend", "noresend"),
    ],
)
def test_generic_options_that_apply(mounts: list[dict[str, Any]], given: str, honoured: str) -> None:
    assert helper.main([SPEC, DIRECTORY, "-o", f"rw,{given}"]) == 0
    assert mounts[0]["options"] == [honoured]


def test_own_options(mounts: list[dict[str, Any]]) -> None:
    own = "trust=/a.crt,trust=-b,root-hash=abcd,image-policy=root=verity+signed:=absent,mode=sealed,workers=3"
    assert helper.main([SPEC, DIRECTORY, "-n", "-o", own, "-o", "audit-log=/l,allow-unsigned", "-t", "fuse.rofs"]) == 0
    (mount,) = mounts
    assert mount["trust"] == ["/a.crt", "-b"]
    assert (mount["root_hash"], mount["image_policy"]) == ("abcd", "root=verity+signed:=absent")
    assert (mount["mode"], mount["workers"], mount["audit_log"]) == ("sealed", 3, "/l")
    assert mount["allow_unsigned"] is True


def test_own_options_are_those_of_the_verb() -> None:
    """A new option of `rofs mount` is a mount option too; if it must not be, or hides a generic one, say so."""
    own = helper._own_options()
    assert own == {
        **dict.fromkeys(("audit-log", "image-policy", "mode", "root-hash", "trust", "workers"), True),
        **dict.fromkeys(("corruption-hook", "event-hook", "on-corruption"), True),
        "allow-unsigned": False,
    }
    assert not own.keys() & (helper._DROPPED | helper._OF_THE_KERNEL | helper._HONOURED | helper._IMPLIES.keys())


def test_hooks_may_hold_commas_and_spaces(mounts: list[dict[str, Any]]) -> None:
    own = 'event-hook="logger -t rofs,mount",corruption-hook=mail root,on-corruption=stop'
    assert helper.main([SPEC, DIRECTORY, "-o", own]) == 0
    (mount,) = mounts
    assert (mount["event_hook"], mount["corruption_hook"]) == ("logger -t rofs,mount", "mail root")
    assert mount["on_corruption"] == "stop"


def test_a_comma_in_double_quotes_ends_no_option(mounts: list[dict[str, Any]]) -> None:
    assert helper.main([SPEC, DIRECTORY, "-o", 'rw,trust="/a,b.crt",audit-log=/l"x,,suid']) == 0
    (mount,) = mounts
    assert (mount["trust"], mount["audit_log"], mount["options"]) == (["/a,b.crt"], '/l"x', ["suid"])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "SPEC, DIR"),
        ([SPEC], "DIR"),
        ([SPEC, DIRECTORY, "-x"], "-x"),
        ([SPEC, DIRECTORY, "-o", "turst=/a"], "unknown mount option 'turst=/a'; own ones of rofs are allow-unsigned, "),
        ([SPEC, DIRECTORY, "-o", "takeover"], "unknown mount option 'takeover'"),
        ([SPEC, DIRECTORY, "-o", "foreground"], "unknown mount option 'foreground'"),
        ([SPEC, DIRECTORY, "-o", "trust"], "mount option trust needs a value"),
        ([SPEC, DIRECTORY, "-o", "allow-unsigned=yes"], "mount option allow-unsigned takes no value"),
        ([SPEC, DIRECTORY, "-o", "workers=0"], "expected a number from 1 to 32"),
        ([SPEC, DIRECTORY, "-o", "mode=rw"], "invalid choice: 'rw'"),
        ([SPEC, DIRECTORY, "-o", "bind"], "mount option bind"),
        ([SPEC, DIRECTORY, "-t", "fuse.sshfs"], "expected fuse.rofs"),
        ([SPEC, DIRECTORY, "-N", "/proc/1/ns/mnt"], "nsenter --mount"),
    ],
)
def test_a_wrong_call_is_1(
    mounts: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert helper.main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert mounts == []


def test_sloppy_tolerates_what_it_does_not_know(mounts: list[dict[str, Any]]) -> None:
    assert helper.main([SPEC, DIRECTORY, "-s", "-o", "turst=/a,trust=/b"]) == 0
    assert mounts[0]["trust"] == ["/b"]


def test_fake_checks_and_mounts_nothing(mounts: list[dict[str, Any]], commands: list[list[str]]) -> None:
    assert helper.main([SPEC, DIRECTORY, "-f", "-o", "trust=/a"]) == 0
    assert helper.main([SPEC, DIRECTORY, "-f", "-o", "remount"]) == 0
    assert helper.main([SPEC, DIRECTORY, "-f", "-o", "mode=rw"]) == 1
    assert (mounts, commands) == ([], [])


def test_verbose_tells_what_is_run(mounts: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert helper.main([SPEC, DIRECTORY, "-v", "-o", "rw,suid,trust=/a"]) == 0
    assert capsys.readouterr().err == f"rofs: rofs mount --trust=/a -o suid -- {SPEC} {DIRECTORY}\n"


@pytest.mark.parametrize(
    ("given", "handed"),
    [
        ("remount,ro", "remount,ro,nosuid,nodev"),
        ("rw,remount,trust=/a,workers=2,nofail,x-foo,noatime", "remount,rw,noatime,nosuid,nodev"),
        ("rw,remount,mode=sealed", "remount,rw,ro,nosuid,nodev"),
        ("rw,remount,suid,dev", "remount,rw,nosuid,nodev,suid,dev"),
        ("remount,rw,user_id=0,group_id=0,default_permissions,allow_other,max_read=4096", "remount,rw,nosuid,nodev"),
    ],
)
def test_remount_is_the_kernels(
    mounts: list[dict[str, Any]], commands: list[list[str]], given: str, handed: str
) -> None:
    """With what rofs implies, since mount(8) clears what is not named; and without what the kernel does not know."""
    assert helper.main([SPEC, DIRECTORY, "-o", given]) == 32
    assert commands == [["mount", "-i", "-t", "fuse.rofs", "-o", handed, SPEC, DIRECTORY]]
    assert mounts == []


def _caused(error: RofsError, number: int) -> RofsError:
    error.__cause__ = OSError(number, "")
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 32),
        (TrustError("x"), 32),
        (FormatError("x"), 32),
        (HostError("x"), 32),
        (_caused(HostError("x"), errno.EPERM), 32),
        (_caused(HostError("x"), errno.ENOSPC), 2),
        (OSError(errno.ENOMEM, "x"), 2),
        (OSError(errno.EIO, "x"), 32),
        (ZeroDivisionError("x"), 32),
        (KeyboardInterrupt(), 8),
    ],
)
def test_exit_codes_are_those_of_mount(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    def fail(arguments: object) -> None:
        raise error

    monkeypatch.setattr(verb, "run", fail)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert helper.main([SPEC, DIRECTORY]) == code
    assert len(capsys.readouterr().err.splitlines()) == (0 if code == 8 else 1)


def test_who_may_not_mount_is_told_so_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: object) -> None:
        raise HostError("mounting needs root")

    monkeypatch.setattr(verb, "run", fail)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert helper.main([SPEC, DIRECTORY]) == 1
    assert "mounting needs root" in capsys.readouterr().err


def test_the_call_of_mount_fuse3_is_answered_with_the_way(run: Callable[..., Any]) -> None:
    """It adds `suid` and `dev` of its own, so it is not taken for a mount."""
    said = run(SPEC, DIRECTORY, "-o", "rw,dev,suid").failed(2)
    assert "rofs install-system" in said
    assert "invalid choice" in run("bild", "tree", "-o", "image").failed(2)
