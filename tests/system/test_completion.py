# SPDX-License-Identifier: Apache-2.0
"""Shell completion, by the shells themselves."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from rofs.system.content import SystemFile

_COMPLETE = """
source "$1"; shift
complete -p rofs >/dev/null || exit 1
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_shtab_rofs rofs "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def directory(files: dict[str, SystemFile], tmp_path: Path) -> Path:
    for name in ("bash-completion/completions/rofs", "zsh/site-functions/_rofs"):
        (tmp_path / name.partition("-")[0].partition("/")[0]).write_bytes(files[f"/usr/local/share/{name}"].data)
    (tmp_path / "work" / "images").mkdir(parents=True)
    (tmp_path / "work" / "image.raw").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["in"], {"inspect", "install-system"}),
        (["mount", "--mo"], {"--mode"}),
        (["mount", "--mode", ""], {"audit", "sealed"}),
        (["mount", "im"], {"image.raw", "images"}),
        (["verify", "--trust", "im"], {"image.raw", "images"}),
        (["umount", "im"], {"images"}),
        (["install-system", "--root", "im"], {"images"}),
        (["audit", "v"], {"verify"}),
        (["audit", "verify", "--he"], {"--help", "--head"}),
    ],
)
def test_bash_completes(directory: Path, words: list[str], found: set[str]) -> None:
    command: list[str | Path] = ["bash", "-c", _COMPLETE, "bash", directory / "bash", "rofs", *words]
    done = subprocess.run(command, cwd=directory / "work", capture_output=True, text=True, check=True, timeout=60)
    assert (set(done.stdout.split()), done.stderr) == (found, "")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_reads_its_script(directory: Path) -> None:
    script = directory / "zsh"
    assert script.read_text().startswith("#compdef rofs\n")
    done = subprocess.run(["zsh", "-n", script], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
