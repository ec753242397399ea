# SPDX-License-Identifier: Apache-2.0
"""/etc/rofs.toml: it says what applies where the command line is silent, and what it cannot mean is told."""

from __future__ import annotations

import os
import re
from importlib import resources
from pathlib import Path

import pytest

from rofs.cli import config
from rofs.cli import mount as verb
from rofs.cli.config import Config
from rofs.cli.options import Parser
from rofs.errors import HostError, InputError
from rofs.fuse import launch, places
from rofs.fuse.launch import MountOptions
from rofs.fuse.request import Reactions
from rofs.trust.image_policy import DEFAULT_IMAGE_POLICY
from tests.conftest import SigningKeys
from tests.fuse.doubles import FACTS

from .conftest import Run

ALL = """
trust = ["/etc/rofs/a.crt", "/etc/rofs/trust.d"]
image-policy = "root=verity+signed"
[mount]
mode = "sealed"
workers = 7
audit-log-directory = "/var/log/elsewhere"
options = ["noexec", "suid"]
on-corruption = "stop"
event-hook = "logger"
corruption-hook = "mail root"
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this host's defaults are, for the test."""
    file = tmp_path / "rofs.toml"
    monkeypatch.setattr(config, "PATH", str(file))
    return file


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> list[MountOptions]:
    """The options of each mount that a command line asks for; nothing is mounted."""
    found: list[MountOptions] = []

    def mount(image: str, directory: str, options: MountOptions) -> object:
        found.append(options)
        return FACTS

    monkeypatch.setattr(launch, "mount_in_background", mount)
    return found


def test_everything_that_can_be_said(file: Path) -> None:
    file.write_text(ALL)
    assert config.load() == Config(
        path=str(file),
        trust=("/etc/rofs/a.crt", "/etc/rofs/trust.d"),
        image_policy="root=verity+signed",
        mode="sealed",
        workers=7,
        audit_log_directory="/var/log/elsewhere",
        options=("noexec", "suid"),
        on_corruption="stop",
        event_hook="logger",
        corruption_hook="mail root",
    )


def test_no_file_says_nothing(file: Path) -> None:
    assert config.load() == Config(path=str(file))
    file.write_text("")
    assert config.load() == Config(path=str(file))


def _installed() -> str:
    return resources.files("rofs.system").joinpath("data", "rofs.toml").read_text()


def test_what_is_installed_says_nothing_until_it_is_uncommented(file: Path) -> None:
    file.write_text(_installed())
    assert config.load() == Config(path=str(file))
    file.write_text(re.sub(r"(?m)^#(?=[a-z-]+ = )", "", _installed()))
    said = config.load()
    keys = [key for table in config._KEYS.values() for key in table]
    assert all(getattr(said, key.replace("-", "_")) for key in keys)
    assert (said.mode, said.image_policy) == (verb.MODES[0], DEFAULT_IMAGE_POLICY.text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("\n\ntrsut = []\n", ", line 3: unknown key 'trsut'; did you mean 'trust'?"),
        ("xyz = 1\n", ", line 1: unknown key 'xyz'; known are trust, image-policy"),
        ("[mount]\n\nwrokers = 3\n", ", line 3: unknown key 'wrokers' in [mount]; did you mean 'workers'?"),
        ("mode = 'audit'\n", ", line 1: unknown key 'mode'; it belongs into [mount]"),
        ("[mount]\n\n'trust' = []\n", ", line 3: unknown key 'trust' in [mount]; it belongs before the first table"),
        ("mount.wrokers = 3\n", ", line 1: unknown key 'wrokers' in [mount]; did you mean 'workers'?"),
        ("mount = {wrokers = 3}\n", ", line 1: unknown key 'wrokers' in [mount]; did you mean 'workers'?"),
        ("[mount]\n[slots]\nx = 1\n", ", line 2: unknown table [slots]; known are trust, image-policy"),
        ("[mount.audit]\nx = 1\n", ", line 1: unknown table [mount.audit]; known are mode, "),
        ("mount = 3\n", ", line 1: unknown key 'mount'; known are trust, image-policy"),
        ('"\\u001b" = 1\n', ": unknown key '\\\\x1b'; known are"),
        ("\ntrust = 'x'\n", ", line 2: key 'trust' is 'x': expected a list of strings"),
        ("trust = []\n", ", line 1: key 'trust' is []: expected a list of absolute paths, at least one"),
        ("trust = ['a.crt']\n", ", line 1: key 'trust' is ['a.crt']: expected a list of absolute paths"),
        ("trust = ['/a\\u0000']\n", "expected a list of strings"),
        ("trust = [1]\n", "expected a list of strings"),
        ("image-policy = 1\n", ", line 1: key 'image-policy' is 1: expected a string"),
        ("image-policy = 'root=sealed'\n", ", line 1: key 'image-policy' is 'root=sealed': "),
        ("[mount]\nmode = 'rw'\n", ", line 2: key 'mode' in [mount] is 'rw': expected 'audit' or 'sealed'"),
        ("[mount]\nworkers = 33\n", ", line 2: key 'workers' in [mount] is 33: expected a number from 1 to 32"),
        ("[mount]\nworkers = true\n", "is True: expected a number from 1 to 32"),
        ("[mount]\naudit-log-directory = 'log'\n", "is 'log': expected an absolute path"),
        ("[mount]\non-corruption = 'panic'\n", " is 'panic': expected 'eio' or 'stop' or 'restart'"),
        ("[mount]\nevent-hook = ''\n", ", line 2: key 'event-hook' in [mount] is '': expected a command for the shell"),
        ("[mount]\ncorruption-hook = ['mail']\n", "expected a command for the shell"),
        ("[mount]\noptions = 'suid'\n", "is 'suid': expected a list of strings"),
        ("[mount\n", " (at line 1, column 7)"),
        ("trust = ['" + "[" * 100_000, ""),
    ],
)  # fmt: skip
def test_what_it_cannot_mean_is_told_with_its_line(file: Path, text: str, says: str) -> None:
    # tomllib reads '' strings as they are, so what TOML escapes must be in "".
    file.write_text(text.replace("'/a\\u0000'", '"/a\\u0000"'))
    with pytest.raises(InputError) as raised:
        config.load()
    assert str(raised.value).startswith(str(file))
    assert says in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(file))


def test_a_file_that_is_none(file: Path) -> None:
    file.mkdir()
    with pytest.raises(InputError, match="Is a directory"):
        config.load()
    file.rmdir()
    file.write_bytes(b"\xff = 1")
    with pytest.raises(InputError, match="decode"):
        config.load()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read(file: Path) -> None:
    file.touch(0)
    with pytest.raises(HostError, match="cannot read"):
        config.load()


# Where it applies


def _mount(run: Run, *words: str | Path) -> str:
    done = run("mount", "image", "/mnt", *words)
    assert done.code == 0, done.err
    return done.err


def test_a_mount_is_as_the_file_says(
    run: Run, file: Path, mounted: list[MountOptions], signing_keys: SigningKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "default_log", lambda mountpoint: f"/usual/{mountpoint.decode()[1:]}.jsonl")
    file.write_text(ALL.replace('"/etc/rofs/a.crt", "/etc/rofs/trust.d"', f'"{signing_keys.certificate_path}"'))
    assert "--image-policy" in _mount(run)  # unsigned is allowed, and that is told
    (options,) = mounted
    assert [trusted.certificate for trusted in options.policy.certificates] == [signing_keys.certificate]
    assert options.policy.image_policy.text == "root=verity+signed"
    assert (options.mode, options.workers, options.exec, options.suid) == ("sealed", 7, False, True)
    assert options.log_path == "/var/log/elsewhere/mnt.jsonl"
    assert options.reactions == Reactions("stop", "logger", "mail root")


def test_the_command_line_wins(
    run: Run, file: Path, mounted: list[MountOptions], signing_keys: SigningKeys, other_keys: SigningKeys
) -> None:
    file.write_text(ALL.replace("/etc/rofs/a.crt", str(other_keys.certificate_path)))
    trust = ("--trust", signing_keys.certificate_path, "--image-policy", "root=signed")
    _mount(run, *trust, "--mode", "audit", "--workers", "2", "--audit-log", "/x", "-o", "exec,nosuid")
    (options,) = mounted
    assert [trusted.certificate for trusted in options.policy.certificates] == [signing_keys.certificate]
    assert options.policy.image_policy.text == "root=signed"
    assert (options.mode, options.workers, options.exec, options.suid) == ("audit", 2, True, False)
    assert options.log_path == "/x"


def test_the_command_line_wins_about_reactions(
    run: Run, file: Path, mounted: list[MountOptions], signing_keys: SigningKeys
) -> None:
    """An empty command is none."""
    file.write_text(ALL.replace("/etc/rofs/a.crt", str(signing_keys.certificate_path)))
    _mount(run, "--trust", signing_keys.certificate_path, "--on-corruption", "eio", "--event-hook", "")
    assert mounted[0].reactions == Reactions("eio", None, "mail root")


def test_a_pinned_root_hash_needs_no_certificate(run: Run, file: Path, mounted: list[MountOptions]) -> None:
    file.write_text('trust = ["/does/not/exist"]\n')
    _mount(run, "--root-hash", "ab" * 32)
    assert mounted[0].policy.certificates == ()


def test_unsigned_is_allowed_by_the_command_line_alone(run: Run, file: Path, mounted: list[MountOptions]) -> None:
    file.write_text('image-policy = "root=signed"\n')
    _mount(run, "--allow-unsigned")
    assert mounted[0].policy.allow_unsigned


def test_other_verbs_trust_what_it_names(run: Run, file: Path, image: Path, signing_keys: SigningKeys) -> None:
    assert run("verify", image).code == 3
    file.write_text(f'trust = ["{signing_keys.certificate_path}"]\n')
    assert run("verify", image).code == 0
    file.write_text('trust = ["/does/not/exist"]\n')
    assert "/does/not/exist" in run("verify", image).failed(1)


def test_a_wrong_file_stops_every_verb_that_it_is_for(run: Run, file: Path, image: Path) -> None:
    file.write_text("\nmood = 1\n")
    for name in ("verify", "inspect", "ls"):
        assert run(name, image).failed(1).startswith(f"{file}, line 2: unknown key 'mood'")
    assert run("status").code == 0


def test_an_unknown_mount_option_is_told_with_the_file(run: Run, file: Path, mounted: list[MountOptions]) -> None:
    file.write_text('[mount]\noptions = ["sudi"]\n')
    said = run("mount", "image", "/mnt", "--root-hash", "ab" * 32).failed(1)
    assert said.startswith(f"{file}, options in [mount]: unknown mount option 'sudi'")
    assert mounted == []


def test_keys_are_options_of_the_command_line() -> None:
    parser = Parser()
    verb.add_parser(parser)
    known = {flag for action in parser._actions for flag in action.option_strings}
    for key in (key for table in config._KEYS.values() for key in table):
        assert {"options": "-o", "audit-log-directory": "--audit-log"}.get(key, f"--{key}") in known
