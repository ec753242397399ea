# SPDX-License-Identifier: Apache-2.0
"""From what a command line names to the one tree that becomes an image.

The order is fixed: sources are laid over each other, names are selected, owners are changed, times are
clamped. What each step does is in a module of its own.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

from rofs.errors import InputError, printable
from rofs.source.advice import advise
from rofs.source.clamp import clamp_times
from rofs.source.directory import DirectorySource
from rofs.source.layers import LayeredSource
from rofs.source.owners import OwnerRule, change_owners
from rofs.source.selection import Rule, select
from rofs.source.tar import Progress, TarSource, silent
from rofs.tree import Inode, Source, Tree

STDIN = "-"


class PreparedSource:
    """A tree that is ready to become an image.

    Args:
        sources: At least one, the lowest first; they are used up.
        selection: What of it is left out or kept.
        owners: Whose its files become.
        latest_seconds: SOURCE_DATE_EPOCH; later mtimes become this one. None keeps all.

    Attributes:
        warnings: What one should know of the result, a line each.

    Raises:
        InputError: A source cannot be read any more.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        selection: Sequence[Rule] = (),
        owners: Sequence[OwnerRule] = (),
        latest_seconds: int | None = None,
    ) -> None:
        layered = LayeredSource(sources)
        self._layered = layered
        self.warnings = layered.warnings
        select(layered.tree.root, selection)
        self.tree = layered.tree = Tree(layered.tree.root)
        change_owners(self.tree, owners)
        kept = clamp_times(layered, latest_seconds) if latest_seconds is not None else 0
        if kept:
            self.warnings.append(
                f"{kept} Python sources keep their time, later than SOURCE_DATE_EPOCH, because their .pyc files hold "
                "it; compile by `python -m compileall --invalidation-mode unchecked-hash` to have no times in the image"
            )
        self.warnings += advise(self.tree)

    def contents(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        """The content of a regular file; see `tree.Source.contents`."""
        return self._layered.contents(inode)


def open_source(argument: str | bytes, *, progress: Progress = silent) -> Source:
    """The source that a word of the command line names.

    Args:
        argument: A directory, a tar archive in a file or a pipe, or `-` for one on standard input.
        progress: As `TarSource` has it.

    Raises:
        InputError: It is none of these, or cannot be read or kept.
        HostError: There is no space to keep what a pipe gives.
    """
    if os.fsdecode(argument) == STDIN:
        if os.isatty(0):
            raise InputError("standard input is a terminal; expected a tar archive")
        return TarSource(0, progress=progress)
    try:
        status = os.stat(argument)
    except OSError as error:
        raise InputError(f"cannot read source {printable(argument)}: {os.strerror(error.errno or 0)}") from error
    if stat.S_ISDIR(status.st_mode):
        return DirectorySource(argument)
    if stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode):
        return TarSource(argument, progress=progress)
    raise InputError(f"source {printable(argument)} is neither a directory nor a tar archive")
