# SPDX-License-Identifier: Apache-2.0
"""Several sources laid over each other, the later over the earlier.

A directory over a directory adds to it and gives it its attributes; anything else takes the place of
what was there, with all that was below. Names alone count: there are no whiteouts, and no symbolic link
is followed.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence

from rofs.errors import printable
from rofs.source.implied import is_implied, take_attributes
from rofs.tree import Inode, Source, Tree


class LayeredSource:
    """The tree that comes of several.

    Args:
        sources: At least one, the lowest first. Their trees become part of this one, and are of no use by
            themselves any more; contents still come from them.

    Attributes:
        warnings: What a later source replaced that one would rather have merged.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.warnings: list[str] = []
        self._sources: dict[int, Source] = {}  # by id() of a regular file
        for source in sources:
            self._sources.update((id(inode), source) for inode in source.tree.walk() if inode.is_regular)
        root = sources[0].tree.root
        for source in sources[1:]:
            self._lay(root, source.tree.root)
        self.tree = Tree(root)

    def contents(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        """The content of a regular file from where it comes; see `tree.Source.contents`."""
        return self._sources[id(inode)].contents(inode)

    def _lay(self, lower_root: Inode, upper_root: Inode) -> None:
        stack = [(lower_root, upper_root)]
        while stack:
            lower, upper = stack.pop()
            if not is_implied(upper):
                take_attributes(lower, upper)
            for name, inode in upper.children.items():
                before = lower.children.get(name)
                if before is not None and before.is_directory and inode.is_directory:
                    stack.append((before, inode))
                    continue
                if before is not None and stat.S_ISLNK(before.mode) and inode.is_directory:
                    self._warn_of_link(before, inode)
                lower.add(name, inode)

    def _warn_of_link(self, before: Inode, inode: Inode) -> None:
        self.warnings.append(
            f"{printable(inode.path())} was a symbolic link to {printable(before.target)}, and is the directory of a "
            "later source now; put what it holds where the link leads"
        )
