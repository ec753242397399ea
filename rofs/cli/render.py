# SPDX-License-Identifier: Apache-2.0
"""Output: results on stdout, as lines for people or as JSON for programs; progress on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from rofs.errors import HostError, one_line


def out(text: str) -> None:
    """Write a line of the result; control and other non-printable characters are escaped."""
    _print(one_line(text))


def out_json(value: Any, *, indent: int | None = 2) -> None:
    """Write a result for a program; ASCII, so that any text can be written."""
    _print(json.dumps(value, indent=indent, sort_keys=indent is not None))


def out_bytes(data: bytes) -> None:
    """Write bytes as they are, behind what was written before."""
    with _writing():
        sys.stdout.flush()
        sys.stdout.buffer.write(data)


def flush() -> None:
    """Write out what is still buffered.

    Raises:
        BrokenPipeError: Nobody reads it any more.
        HostError: It cannot be written.
    """
    with _writing():
        sys.stdout.flush()


def _print(text: str) -> None:
    with _writing():
        print(text)  # noqa: T201 - the command line talks


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter would try once more, and complain
        if isinstance(error, BrokenPipeError):
            raise
        raise HostError(f"cannot write the output: {error.strerror}") from error


def out_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Write names and values in two columns; None shows as a dash."""
    rows = [(name, "-" if value is None else str(value)) for name, value in pairs]
    width = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        out(f"{name + ':':<{width}}{value}")


def image_pairs(fields: Mapping[str, Any]) -> list[tuple[str, object]]:
    """What a person wants to know of an image first."""
    return [
        ("name", fields["name"]),
        ("version", fields["version"]),
        ("root hash", fields["root_hash"]),
        ("signer", fields["signer"]),
    ]


class TerminalProgress:
    """Progress bars on a terminal (bytes, rate, time left), silence elsewhere; an `image.progress.Progress`."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()

    def stage(self, name: str, total_bytes: int) -> Callable[[int], None]:
        """Begin a stage."""
        if not self._shown:
            return lambda _: None
        from tqdm import tqdm

        tqdm.monitor_interval = 0  # its thread would be in the way of forking
        bar = tqdm(total=total_bytes, desc=name, unit="B", unit_scale=True, leave=False, delay=0.5)

        def advance(count: int) -> None:
            bar.update(count)
            if bar.n >= total_bytes:
                bar.close()

        return advance
