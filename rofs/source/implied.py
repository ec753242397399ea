# SPDX-License-Identifier: Apache-2.0
"""Directories that nobody described, but that must be there for what lies below them. Pure."""

from __future__ import annotations

import stat

from rofs.tree import Inode

_IMPLIED = "implied"


def implied_directory() -> Inode:
    """A directory as an archive without a member for it implies it: 0755, root's, of 1970."""
    return Inode(mode=stat.S_IFDIR | 0o755, source_key=_IMPLIED)


def is_implied(directory: Inode) -> bool:
    """Whether nobody described it, so that its attributes must not take the place of others."""
    return directory.source_key is _IMPLIED


def take_attributes(directory: Inode, described: Inode) -> None:
    """Give a directory the attributes of another one, but what lies below it stays."""
    directory.mode, directory.uid, directory.gid = described.mode, described.uid, described.gid
    directory.mtime_ns, directory.xattrs = described.mtime_ns, described.xattrs
    directory.source_key = described.source_key
