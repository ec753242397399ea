# SPDX-License-Identifier: Apache-2.0
"""The program: verbs, help, exit codes, and how errors are told."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rofs
from rofs import errors
from rofs.cli import keygen, main, status
from rofs.cli.options import UsageError
from rofs.errors import (
    BlockFault,
    ChainError,
    CorruptionError,
    FormatError,
    HostError,
    ImageError,
    InputError,
    ReadError,
    RofsError,
    StateError,
    TrustError,
)

from .conftest import Run

VERBS = [verb.name for verb in main._VERBS]
EXIT_CODES = {
    RofsError: 1,
    InputError: 1,
    StateError: 1,
    ReadError: 1,
    UsageError: 2,
    TrustError: 3,
    ImageError: 4,
    FormatError: 4,
    CorruptionError: 4,
    ChainError: 4,
    HostError: 5,
}


def program(*words: str | bytes | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    """The real program, as its users start it."""
    command = [sys.executable, "-m", "rofs.cli.main", *words]
    return subprocess.run(command, check=False, capture_output=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


def test_every_error_has_an_exit_code() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RofsError)}
    assert kinds | {UsageError} == set(EXIT_CODES)
    for kind, code in EXIT_CODES.items():
        error = kind(BlockFault("mismatch", -1, 0)) if kind is CorruptionError else kind("text")
        assert main.exit_code_of(error) == code


@pytest.mark.parametrize("kind", [InputError, HostError, TrustError, FormatError])
def test_error_is_one_line_and_its_code(run: Run, monkeypatch: pytest.MonkeyPatch, kind: type[RofsError]) -> None:
    def fail(arguments: object) -> None:
        raise kind("what\nwent \x1b[31mwrong \udcff \ud800")

    monkeypatch.setattr(status, "run", fail)
    assert run("status").failed(EXIT_CODES[kind]) == "what\\nwent \\x1b[31mwrong \\udcff \\ud800"


@pytest.mark.parametrize("words", [("--debug", "status"), ("status", "--debug")])
def test_traceback_only_with_debug(run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    def fail(arguments: object) -> None:
        raise InputError("what went wrong")

    monkeypatch.setattr(status, "run", fail)
    done = run(*words)
    assert done.code == 1
    assert "Traceback" in done.err
    assert done.err.endswith("rofs: error: what went wrong\n")


def test_bug_of_ours_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: object) -> None:
        raise KeyError("x\ny")

    monkeypatch.setattr(status, "run", fail)
    done = run("status")
    assert (done.code, done.out, len(done.err.splitlines())) == (1, "", 1)
    assert "internal error: KeyError" in done.err
    assert "--debug" in done.err
    assert "Traceback" in run("--debug", "status").err


def test_interrupt(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(keygen, "run", interrupt)
    done = run("keygen", "x")
    assert (done.code, done.out, done.err) == (130, "", "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "no verb given; see rofs --help"),
        (("party",), "invalid choice: 'party'"),
        (("status", "--party"), "--party; see rofs"),
        (("build",), "SOURCE, -o/--output; see rofs build --help"),
        (("keygen", "x", "--type", "p521"), "invalid choice: 'p521'"),
        (("build", "x", "--rollback-index", "one"), "invalid int value: 'one'"),
        (("audit",), "show|verify|follow|report|rules; see rofs audit --help"),
        (("audit", "party"), "invalid choice: 'party'"),
        (("mount", "image"), "DIR; see rofs mount --help"),
        ((b"party\xff\n",), "invalid choice: 'party\\udcff\\n'"),
        (("status", b"--party\xff\n"), "\\udcff\\n"),
    ],
)
def test_command_line_that_makes_no_sense(run: Run, words: tuple[str, ...], message: str) -> None:
    assert message in run(*words).failed(2)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_has_an_example(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as caught:
        main.main([verb, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "\nexample:\n" in text
    assert f"  rofs {verb}" in text.partition("\nexample:\n")[2]
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize("what", ["show", "verify"])
def test_help_below_audit_has_an_example(capsys: pytest.CaptureFixture[str], what: str) -> None:
    with pytest.raises(SystemExit):
        main.main(["audit", what, "--help"])
    assert f"rofs audit {what} " in capsys.readouterr().out.partition("example:")[2]


def test_help_names_every_verb_and_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--help"])
    text = capsys.readouterr().out
    for verb in main._VERBS:
        assert re.search(rf"^    {verb.name}\s", text, re.MULTILINE)
        assert verb.summary.split(":")[0] in text
    assert "3 not trusted" in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--version"])
    assert capsys.readouterr().out == f"rofs {rofs.__version__}\n"


# As a process


def test_program() -> None:
    assert program("--version").stdout == f"rofs {rofs.__version__}\n".encode()
    done = program("party")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"rofs: error: ")


def test_name_that_is_not_utf8_goes_in_and_comes_out(tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path) + b"/k\xff\n"
    done = program("keygen", directory)
    assert done.returncode == 0, done.stderr
    assert b"k\\xff\\n/rofs.key" in done.stdout
    assert os.path.exists(directory + b"/rofs.key")
    done = program("keygen", directory)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"k\\xff\\n/rofs.key exists already" in done.stderr


def test_reader_that_has_seen_enough(tmp_path: Path) -> None:
    """As `rofs audit show LOG | head -1`, with more than a pipe holds."""
    log = tmp_path / "log.jsonl"
    log.write_text('{"event": "mount"}\n' * 100_000)
    for words in (("audit", "show", log), ("audit", "show", log, "--json")):
        with subprocess.Popen(
            [sys.executable, "-m", "rofs.cli.main", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait(30) == 128 + 13


def test_nobody_reads_the_help() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "rofs.cli.main", "--help"]
    done = subprocess.run(command, check=False, stdout=writing, stderr=subprocess.PIPE, timeout=60)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + 13, b"")


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "rofs.cli.main", "keygen", tmp_path / "keys"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert done.returncode == 5
    assert done.stderr == b"rofs: error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("verb", ["status", "keygen"])
def test_light_verbs_do_not_load_what_only_others_need(verb: str) -> None:
    code = (
        "import sys; from rofs.cli.main import build_parser, _module; "
        f"build_parser(['{verb}']); print(*sorted(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert not {"pyfuse3", "trio", "cryptography", "tqdm"} & set(done.stdout.split())
