# SPDX-License-Identifier: Apache-2.0
"""`scripts/fuzz`: what it refuses, and that its tool is no part of what everybody installs."""

from __future__ import annotations

import subprocess
import tomllib

import pytest

from tests.conftest import REPOSITORY

SCRIPT = REPOSITORY / "scripts" / "fuzz"


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *words], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    "words", [["--what"], ["--seconds"], ["--seconds", "0"], ["--hours", "1h"], ["erofs", "gpt"]], ids=" ".join
)
def test_refuses_words_it_does_not_know(words: list[str]) -> None:
    done = _run(*words)
    assert done.returncode == 2
    assert done.stdout.startswith("usage: scripts/fuzz")


def test_explains_itself() -> None:
    done = _run("--help")
    assert done.returncode == 0
    assert "--hours" in done.stdout


def test_is_valid_and_licensed() -> None:
    assert SCRIPT.read_text().startswith("#!/usr/bin/env bash\n# SPDX-License-Identifier: Apache-2.0\n")
    subprocess.run(["bash", "-n", SCRIPT], check=True)


def test_atheris_is_not_among_the_test_tools() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("atheris") for requirement in extras["fuzz"])
    assert not any(requirement.startswith("atheris") for requirement in extras["test"])
