# SPDX-License-Identifier: Apache-2.0
"""The scripts that a newcomer runs first: what they do, what they say, and what they leave behind."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.test_readme import assert_shown, block

SCRIPTS = REPOSITORY / "scripts"
ALL = ["setup", "debian-root", "oracle-root", "systemd-root", "demo", "test", "fuzz", "bench"]


def run(*words: str | Path, check: bool = True, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        check=False,
        timeout=280,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def test_setup_has_nothing_to_do_when_run_again() -> None:
    said = run(SCRIPTS / "setup").stdout
    assert re.fullmatch(r"setup: ready: Python 3\.\d+\.\d+, rofs \S+\n", said)


@pytest.mark.parametrize("script", ALL)
def test_is_valid_and_licensed(script: str) -> None:
    text = (SCRIPTS / script).read_text()
    assert text.startswith("#!/usr/bin/env bash\n# SPDX-License-Identifier: Apache-2.0\n")
    assert "\nset -euo pipefail\n" in text
    run("bash", "-n", SCRIPTS / script)


@pytest.mark.parametrize("script", ["setup", "debian-root", "oracle-root", "systemd-root", "demo"])
def test_refuses_words_it_does_not_know(script: str) -> None:
    done = run(SCRIPTS / script, "--what", check=False)
    assert done.returncode == 2
    assert "usage: scripts/" in done.stdout


def test_the_benchmarks_are_named_and_others_refused() -> None:
    said = run(SCRIPTS / "bench", "--help").stdout
    assert "build, verify, scale, mount" in said
    done = run(SCRIPTS / "bench", "speed", check=False)
    assert done.returncode == 2
    assert "unknown: speed" in done.stderr


def test_ci_runs_exactly_the_tests() -> None:
    lines = (REPOSITORY / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert commands == ['exec "$(dirname "$0")/../scripts/test"']
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


def test_the_debian_root_is_cached_and_clean(debian_root: Path) -> None:
    assert run(SCRIPTS / "debian-root").stdout == f"{debian_root}\n"
    assert (debian_root / "usr" / "bin" / "python3").exists()
    assert (debian_root / "etc" / "hostname").read_text() == "debian\n"
    assert not list((debian_root / "var" / "cache" / "apt" / "archives").glob("*.deb"))
    assert str(debian_root) not in Path("/proc/self/mountinfo").read_text()


def test_the_demo_shows_what_the_readme_says(tmp_path: Path, debian_root: Path) -> None:
    said = run(SCRIPTS / "demo", env={"TMPDIR": str(tmp_path)}).stdout
    assert_shown(block("text", "demo"), said[said.index("rofs: a signed Debian root") :])
    assert said.splitlines()[-1].startswith("Summary: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("truth", "lie", "failure"),
    [
        ('EROFS="Read-only file system"\n', 'EROFS="Read-only file system"\nchroot() { true; }\n', "this succeeded"),
        ("image[at + BLOCK // 2] ^= 1", "pass", "this succeeded"),
        ("event=corruption", "event=no_such_event", "no event names"),
    ],
    ids=["a write succeeds", "no block is flipped", "an event is missing"],
)
def test_the_demo_fails_when_a_step_does_not_show_it(
    tmp_path: Path, debian_root: Path, truth: str, lie: str, failure: str
) -> None:
    text = (SCRIPTS / "demo").read_text()
    assert text.count(truth) == 1
    liar, work = tmp_path / "demo", tmp_path / "work"
    liar.write_text(re.sub(r"^SCRIPTS=.*$", f"SCRIPTS={SCRIPTS}", text.replace(truth, lie), flags=re.MULTILINE))
    work.mkdir()
    done = run("bash", liar, check=False, env={"TMPDIR": str(work)})
    assert done.returncode == 1
    assert "demo: FAILED in step" in done.stderr
    assert failure in done.stderr
    assert list(work.iterdir()) == []
