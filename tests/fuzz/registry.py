# SPDX-License-Identifier: Apache-2.0
"""What a fuzz target is, the list of all of them, and places in memory for their inputs. Knows no format."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .edits import Program, parse_program

Make = Callable[[Program], bytes]
Use = Callable[[bytes, Program], bool]


@dataclass(frozen=True)
class Target:
    """One format.

    Attributes:
        make: A hostile input of a program of edits.
        use: Does with it what rofs does; the program gives further numbers, such as offsets.
    """

    make: Make
    use: Use

    def __call__(self, data: bytes) -> bool:
        program = parse_program(data)
        return self.use(self.make(program), program)


TARGETS: dict[str, Target] = {}


def target(make: Make) -> Callable[[Use], Use]:
    """Register what uses the inputs of `make`, under its name."""

    def register(use: Use) -> Use:
        TARGETS[use.__name__] = Target(make, use)
        return use

    return register


@contextlib.contextmanager
def memory_file(content: bytes) -> Iterator[int]:
    """A file without a name."""
    fd = os.memfd_create("rofs-fuzz")
    try:
        os.pwrite(fd, content, 0)
        yield fd
    finally:
        os.close(fd)


def scratch() -> str | None:
    """Where directories of files are made for every input: memory, where there is some."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
