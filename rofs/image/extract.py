# SPDX-License-Identifier: Apache-2.0
"""Unpacks an image, or parts of it, into a directory: verified, and going on after what cannot be had.

What an image of a careless signer may do is bounded: names are checked by the reader, each directory is
entered once, and the `TargetTree` never leaves its directory. Nothing here recurses, however deep the
tree. Does not create anything itself.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rofs.errors import ImageError, InputError
from rofs.image.identity import XATTR
from rofs.image.lookup import OnceOnly, at, children, contents, find
from rofs.image.open import VerifiedImage
from rofs.image.problems import Problems
from rofs.image.progress import Meter, Progress, Silent
from rofs.target.attributes import Attributes, Shortfall
from rofs.target.tree import TargetTree
from rofs.vfs import ReadOnlyFilesystem, Stat

Names = tuple[bytes, ...]
# What is wanted of a directory: all of it, or these names.
_Wanted = dict[bytes, "_Wanted"] | None


@dataclass(slots=True)
class Extraction:
    """What came of unpacking an image.

    Attributes:
        entries: Names made, hard links included.
        content_bytes: Of regular files, holes included, hard links once.
        problems: Why an entry is missing or a directory incomplete; each names its path.
        shortfalls: Which attributes could not be set, each kind once.
    """

    entries: int = 0
    content_bytes: int = 0
    problems: Problems = field(default_factory=Problems)
    shortfalls: tuple[Shortfall, ...] = ()


def extract_image(
    image: VerifiedImage,
    directory: str | bytes,
    paths: Iterable[bytes] = (),
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> Extraction:
    """Unpack a whole image, or some paths of it with all the directories that lead there.

    A file is complete and verified, or it is not there. The image's identity is not unpacked: a directory
    is not that image.

    Args:
        image: Trusted; its blocks are verified as they are read.
        directory: Where to; made when it is missing.
        paths: What, as paths in the image; symbolic links on the way are resolved. All when empty.
        replace: Whether the directory may hold something already, which is replaced where it is in the
            way; see `TargetTree`. With paths, it and directories that are there on the way to them keep
            their attributes; without, it gets those of the root of the image.
        progress: Told how many bytes of content were done.

    Returns:
        Counts, and what could not be unpacked: corrupt, malformed, or refused by the target.

    Raises:
        InputError: A path is not in the image, or the directory is not empty; nothing was unpacked then.
        ImageError: The way to a path, or the root of the image, is corrupt.
        HostError: The directory takes nothing more: no permission, no space, an I/O error.
    """
    filesystem = image.filesystem
    wanted = _wanted(filesystem, paths)
    # A bound that costs nothing to know: contents that files share count more than once, holes are done at once.
    total = filesystem.statfs().blocks * filesystem.statfs().block_size
    with TargetTree(directory, replace=replace, keep=wanted is not None) as target:
        done = _Unpacking(filesystem, target, Meter(progress or Silent(), "extracting", total)).run(wanted)
        done.shortfalls = target.shortfalls
    return done


def _wanted(filesystem: ReadOnlyFilesystem, paths: Iterable[bytes]) -> _Wanted:
    wanted: dict[bytes, _Wanted] = {}
    for path in paths:
        names = find(filesystem, path, follow=False).names
        if not names:
            return None
        _add(wanted, names)
    return wanted or None


def _add(wanted: dict[bytes, _Wanted], names: Names) -> None:
    for name in names[:-1]:
        below = wanted.setdefault(name, {})
        if below is None:  # is in it already
            return
        wanted = below
    wanted[names[-1]] = None


@dataclass(slots=True)
class _Level:
    """A directory that is being unpacked."""

    attributes: Attributes
    entries: Iterator[tuple[bytes, int, _Wanted]]


class _Unpacking:
    def __init__(self, filesystem: ReadOnlyFilesystem, target: TargetTree, meter: Meter) -> None:
        self._filesystem = filesystem
        self._target = target
        self._meter = meter
        self._done = Extraction()
        self._once = OnceOnly()
        self._names: list[bytes] = []
        self._links: dict[int, Names] = {}  # the first name of each inode that says it has several

    def run(self, wanted: _Wanted) -> Extraction:
        root = self._level(self._filesystem.root_nid, wanted)
        stack = [root]
        while stack:
            try:
                with at(self._target.path_of):
                    entry = next(stack[-1].entries, None)
            except ImageError as error:  # the rest of this directory cannot be read
                self._done.problems.add(error)
                entry = None
            if entry is None:
                left = stack.pop()
                if stack:
                    self._target.leave(left.attributes)
                    self._names.pop()
                continue
            below = self._unpack(*entry)
            if below is not None:
                self._names.append(entry[0])
                stack.append(below)
        self._target.finish(root.attributes)
        self._meter.end()
        return self._done

    def _unpack(self, name: bytes, nid: int, wanted: _Wanted) -> _Level | None:
        """Make one entry; a directory is returned for what is in it."""
        try:
            with at(lambda: self._target.path_of(name)):
                below = self._make(name, nid, wanted)
        except (ImageError, InputError) as error:
            self._done.problems.add(error)
            return None
        self._done.entries += 1
        return below

    def _make(self, name: bytes, nid: int, wanted: _Wanted) -> _Level | None:
        status = self._filesystem.stat(nid)
        kind = stat.S_IFMT(status.mode)
        if kind == stat.S_IFDIR:
            level = self._level(nid, wanted)
            self._target.enter(name, keep=wanted is not None)
            return level
        if nid in self._links:
            self._target.add_link(name, self._links[nid])
            return None
        attributes = self._attributes(nid, status)
        if kind == stat.S_IFREG:
            self._target.add_file(name, self._content(nid), attributes)
            self._done.content_bytes += status.size
        elif kind == stat.S_IFLNK:
            self._target.add_symlink(name, self._filesystem.readlink(nid), attributes)
        else:
            self._target.add_node(name, attributes)
        if status.nlink > 1:
            self._links[nid] = (*self._names, name)
        return None

    def _level(self, nid: int, wanted: _Wanted) -> _Level:
        self._once.enter(nid)
        attributes = self._attributes(nid, self._filesystem.stat(nid))
        return _Level(attributes, self._entries(nid, wanted))

    def _entries(self, nid: int, wanted: _Wanted) -> Iterator[tuple[bytes, int, _Wanted]]:
        if wanted is None:
            for entry in children(self._filesystem, nid):
                yield entry.name, entry.nid, None
            return
        for name, below in wanted.items():
            child = self._filesystem.lookup(nid, name)
            assert child is not None  # it was found before, and nothing changes
            yield name, child, below

    def _attributes(self, nid: int, status: Stat) -> Attributes:
        names = self._filesystem.listxattr(nid)
        if nid == self._filesystem.root_nid:
            names = [name for name in names if name != XATTR]
        return Attributes(status, tuple((name, self._filesystem.getxattr(nid, name) or b"") for name in names))

    def _content(self, nid: int) -> Iterator[tuple[int, bytes]]:
        for offset, data in contents(self._filesystem, nid):
            yield offset, data
            self._meter.add(len(data))
