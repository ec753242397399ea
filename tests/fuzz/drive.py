# SPDX-License-Identifier: Apache-2.0
"""Runs one fuzz target under Atheris, which is guided by the coverage of rofs: `scripts/fuzz` starts it.

    python -m tests.fuzz.drive TARGET FINDINGS CORPUS [libFuzzer options]

A finding does not end the run: each kind (an exception and the line of rofs that raised it) is kept once, as
the shortest input that shows it. What hangs or takes too much memory ends the run, and libFuzzer keeps it.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from pathlib import Path
from typing import Any

from .edits import MAX_INPUT_BYTES, parse_program

_OURS = ("/rofs/", "/tests/fuzz/")


class Findings:
    """A directory of findings: for each kind an input, and beside it a traceback and what was made of the input.

    Attributes:
        count: How many kinds were found by this run.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lengths: dict[str, int] = {}
        self.count = 0

    def add(self, data: bytes, made: bytes, error: BaseException) -> str | None:
        """Keep an input, unless a shorter one of its kind is there.

        Args:
            data: Of the fuzzer.
            made: The hostile input made of it, which goes into `corpus/` once it is fixed.
            error: What it led to.

        Returns:
            The name of the kind when it is new to this run.
        """
        kind = kind_of(error)
        known = self._lengths.get(kind)
        if known is not None and known <= len(data):
            return None
        self._lengths[kind] = len(data)
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / kind).write_bytes(data)
        (self._directory / f"{kind}.made").write_bytes(made)
        (self._directory / f"{kind}.txt").write_text("".join(traceback.format_exception(error)))
        self.count += known is None
        return kind if known is None else None


def kind_of(error: BaseException) -> str:
    """A file name for an exception: its type, and the innermost function of rofs or the targets, with its line."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if any(part in f.filename for part in _OURS)]
    where = frames[-1] if frames else None
    text = (
        f"{type(error).__name__}-{Path(where.filename).stem}-{where.name}-{where.lineno}"
        if where
        else type(error).__name__
    )
    return re.sub(r"[^\w.-]", "_", text)


def main(arguments: list[str]) -> None:
    """Fuzz until libFuzzer's options say that it is enough; does not return."""
    target_name, findings_path, corpus, *options = arguments
    atheris: Any = importlib.import_module("atheris")  # an extra: not there for type checkers either
    with atheris.instrument_imports(include=["rofs"]):
        targets = importlib.import_module("tests.fuzz.targets")
    target = targets.TARGETS[target_name]
    findings = Findings(Path(findings_path))

    def run(data: bytes) -> None:
        program = parse_program(data)
        made = target.make(program)
        try:
            target.use(made, program)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - also a panic of a Rust library, which is no Exception
            kind = findings.add(data, made, error)
            if kind is not None:
                print(f"finding: {target_name}: {kind}", flush=True)  # noqa: T201 - this is its output

    atheris.Setup([sys.argv[0], corpus, f"-max_len={MAX_INPUT_BYTES}", "-len_control=0", *options], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
