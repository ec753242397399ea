# SPDX-License-Identifier: Apache-2.0
"""The README is true: its commands run and say what it shows, and what it claims of the program is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
BIN = Path(sys.executable).parent

_BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# What differs from run to run, and what stands in its place for the comparison.
_VARIABLE = (
    (re.compile(r"\b[0-9a-f]{64}\b"), "HASH"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "TIME"),
    (re.compile(r"\[\d+\]"), "[PID]"),
    (re.compile(r"by pid \d+"), "by pid PID"),
    (re.compile(r"/[\w./-]*/(?=(keys|tree\.raw|debian\.raw|tampered\.raw|usr/bin/chsh)\b)"), "DIR/"),
    (re.compile(r"/[\w./-]*/debian-bookworm-\S+"), "DIR"),
)


def block(kind: str, name: str | None) -> str:
    """The README's only code block of a kind and name."""
    (found,) = [text for kind_, name_, text in _BLOCK.findall(README) if (kind_, name_ or None) == (kind, name)]
    return str(found)


def normalised(line: str, *, numbers: bool = False) -> str:
    """A line of output without what differs from run to run; with `numbers`, without any number."""
    for pattern, word in _VARIABLE:
        line = pattern.sub(word, line)
    return re.sub(r"\d+", "N", line.rstrip()) if numbers else line.rstrip()


def assert_shown(shown: str, said: str) -> None:
    """Every line that is shown was said, in this order; lines may be missing only where it shows an ellipsis."""
    lines = [normalised(line, numbers=True) for line in said.splitlines()]
    at, gap = 0, False
    for line in shown.splitlines():
        if line.strip() == "…":
            gap = True
            continue
        wanted = normalised(line, numbers=True)
        position = lines.index(wanted, at) if wanted in lines[at:] else None
        assert position is not None, f"the README shows what was not said there: {line}"
        assert gap or position == at, f"the README leaves out without an ellipsis: {lines[at:position]}"
        at, gap = position + 1, False
    assert gap or at == len(lines), f"the README leaves out the end: {lines[at:]}"


def sessions(text: str) -> list[tuple[str, str]]:
    """Commands of a console block, each with the output that is shown for it."""
    parts = re.split(r"^\$ (.*)\n", text, flags=re.MULTILINE)
    assert parts[0] == ""
    return list(zip(parts[1::2], parts[2::2], strict=True))


def test_daily_use_says_what_the_readme_shows(tmp_path: Path) -> None:
    (tmp_path / "tree" / "etc").mkdir(parents=True)
    (tmp_path / "tree" / "etc" / "motd").write_text("hello\n")
    (tmp_path / "mnt").mkdir()
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    commands = sessions(block("console", "daily"))
    assert len(commands) == 5
    try:
        for command, shown in commands:
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60,
                check=False,
            )
            said = [normalised(line) for line in done.stdout.splitlines()]
            assert said == [normalised(line) for line in shown.splitlines()], command
            assert (done.returncode == 0) is not command.startswith("rm "), command
        assert (tmp_path / "tree" / "etc" / "motd").exists()
    finally:
        if os.path.ismount(tmp_path / "mnt"):
            subprocess.run([BIN / "rofs", "umount", tmp_path / "mnt"], check=True, timeout=60)


def test_a_containers_image_is_built_as_the_readme_shows(tmp_path: Path) -> None:
    """With a stand-in for docker, which needs a daemon: it gives the archive of a tree."""
    for path in ("box/etc", "box/var/cache/x", "extra/etc", "bin"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "box" / "etc" / "motd").write_text("hello\n")
    (tmp_path / "bin" / "docker").write_text('#!/bin/sh\ntest "$*" = "export box" && exec tar -C box -cf - .\n')
    (tmp_path / "bin" / "docker").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{BIN}:{os.environ['PATH']}"}
    command = f"set -e -o pipefail; rofs keygen keys >/dev/null; {block('sh', 'container')}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=True
    )
    assert (len(done.stdout), done.stderr) == (65, b"")
    assert (tmp_path / "box.raw").exists()


@pytest.mark.parametrize("command", ["scripts/demo", "scripts/test"])
def test_the_named_scripts_are_there(command: str) -> None:
    assert f"```sh\n{command}\n```" in README
    assert os.access(REPOSITORY / command, os.X_OK)


def _help() -> str:
    return subprocess.run([BIN / "rofs", "--help"], stdout=subprocess.PIPE, text=True, check=True).stdout


def test_every_verb_is_explained_and_no_other() -> None:
    listed = re.findall(
        r"^    ([\w-]+)(?:  +\S|$)", _help().partition("verbs:")[2].partition("exit codes:")[0], re.MULTILINE
    )
    assert listed
    assert re.findall(r"^\| `rofs ([\w-]+)` \|", README, re.MULTILINE) == listed


def test_exit_codes_are_those_of_the_help() -> None:
    (codes,) = re.findall(r"^exit codes: (.*)$", _help(), re.MULTILINE)
    assert f"Exit codes: {codes}." in " ".join(README.split())


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []


def test_the_install_packages_are_those_of_setup() -> None:
    setup = (REPOSITORY / "scripts" / "setup").read_text()
    packages = re.sub(r"#.*", "", setup.partition("PACKAGES=(")[2].partition("\n)")[0]).split()
    (line,) = [line for line in block("sh", "install").splitlines() if " apt-get " in line]
    named = line.partition("--no-install-recommends")[2].split()
    assert named
    assert set(named) <= set(packages)


@pytest.mark.long
def test_the_install_commands_install(tmp_path: Path) -> None:
    commands = block("sh", "install").replace("sudo ", "").replace("/opt/", f"{tmp_path}/")
    commands = commands.replace("/usr/local/bin/", f"{tmp_path}/bin-")
    lines = [line for line in commands.splitlines() if "apt-get" not in line]
    subprocess.run(["bash", "-ec", "\n".join(lines)], cwd=REPOSITORY, check=True, timeout=600)
    said = subprocess.run([tmp_path / "bin-rofs", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.startswith("rofs ")


def test_a_readme_that_shows_something_else_fails() -> None:
    assert_shown("a 1\n…\nc [5]\n", "a 2\nb\nc [7]\n")
    for shown in ("a\nc\n", "a\n…\nd\n", "b\n", "a\n", "c\n…\na\n"):
        with pytest.raises(AssertionError):
            assert_shown(shown, "a\nb\nc\n")
