# SPDX-License-Identifier: Apache-2.0
"""Tells two trees apart: what was added, removed, changed, and how.

Contents are compared byte by byte, and those of an image verified on the way: leaf digests would find
equal blocks without reading them, but would call a block equal that has become corrupt. Does not know
what the trees are kept in, nor how differences are shown.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from rofs.errors import ImageError
from rofs.image.lookup import at
from rofs.image.sides import EntryFacts, Key, Side
from rofs.pieces import first_difference

Kind = Literal["added", "removed", "changed", "unreadable"]


class Change(NamedTuple):
    """One way in which an entry differs.

    Attributes:
        what: type, mode, owner, mtime, size, content, target, device, xattr or links.
        old: In the first tree: bits of the type or mode, (uid, gid), nanoseconds, bytes, the target, the
            device number, the value of the xattr, or the first path of the inode; None when there is none.
        new: In the second.
        name: Of the xattr.
    """

    what: str
    old: Any = None
    new: Any = None
    name: bytes = b""


@dataclass(frozen=True, slots=True)
class Difference:
    """An entry that is not the same in both trees.

    Attributes:
        path: From the root, beginning with `/`.
        kind: `added` is in the second tree alone, `removed` in the first alone; `unreadable` could not be
            compared, in at least one of them.
        mode: Of what was added or removed; in the first tree for what changed; 0 when unknown.
        changes: What changed.
        error: Why it could not be compared: a message that names the tree, and the path in it.
    """

    path: bytes
    kind: Kind
    mode: int = 0
    changes: tuple[Change, ...] = ()
    error: ImageError | None = None


class _Place:
    """A directory or an entry in it; the path is put together only when somebody asks."""

    __slots__ = ("_name", "_parent")

    def __init__(self, name: bytes = b"", parent: _Place | None = None) -> None:
        self._name = name
        self._parent = parent

    def path(self) -> bytes:
        names = []
        place: _Place | None = self
        while place is not None and place._parent is not None:  # noqa: SLF001 - one of its own
            names.append(place._name)  # noqa: SLF001
            place = place._parent  # noqa: SLF001
        return b"/" + b"/".join(reversed(names))


def diff_trees(old: Side, new: Side, *, progress: Callable[[int], None] = lambda _: None) -> Iterator[Difference]:
    """Everything that differs, depth first, names bytewise.

    Args:
        old: The first tree.
        new: The second.
        progress: Called with the number of content bytes just compared.

    Yields:
        One difference per entry. What is below an added or removed directory comes too; what is below
        an unreadable one does not.

    Raises:
        InputError: A file of a directory cannot be read, or changed meanwhile.
    """
    walk = _Walk(old, new, progress)
    stack = [_Pair(_Place(), old.root, new.root)]
    while stack:
        pair = stack.pop()
        difference: Difference | None
        try:
            walk.read_facts(pair)
            difference = walk.compare(pair)
            below = walk.below(pair)
        except ImageError as error:
            difference, below = Difference(pair.place.path(), "unreadable", error=error), []
        if difference is not None:
            yield difference
        stack += below


@dataclass(slots=True)
class _Pair:
    """One path in both trees; None stands for what is not there."""

    place: _Place
    old: Key | None
    new: Key | None
    before: EntryFacts | None = None
    after: EntryFacts | None = None


class _Walk:
    def __init__(self, old: Side, new: Side, progress: Callable[[int], None]) -> None:
        self._old = old
        self._new = new
        self._progress = progress
        # Where each inode with several names was found first: what hard links are known by.
        self._old_firsts: dict[Key, _Place] = {}
        self._new_firsts: dict[Key, _Place] = {}

    def read_facts(self, pair: _Pair) -> None:
        if pair.old is not None:
            with _naming(self._old, pair.place):
                pair.before = self._old.facts(pair.old)
        if pair.new is not None:
            with _naming(self._new, pair.place):
                pair.after = self._new.facts(pair.new)

    def compare(self, pair: _Pair) -> Difference | None:
        before, after = pair.before, pair.after
        old_first = _first(self._old_firsts, pair.old, before, pair.place)
        new_first = _first(self._new_firsts, pair.new, after, pair.place)
        if before is None or after is None:
            present = before or after
            assert present is not None
            return Difference(pair.place.path(), "added" if before is None else "removed", present.mode)
        changes = list(_attribute_changes(before, after))
        if stat.S_ISREG(before.mode) and stat.S_ISREG(after.mode):
            if before.size != after.size:
                changes += [Change("size", before.size, after.size), Change("content")]
            elif not self._same_content(pair, before.size):
                changes.append(Change("content"))
        # Both trees are walked in one order: links are the same when every name has the same first one.
        if old_first != new_first:
            changes.append(Change("links", old_first, new_first))
        return Difference(pair.place.path(), "changed", before.mode, tuple(changes)) if changes else None

    def below(self, pair: _Pair) -> list[_Pair]:
        """What is in a directory, last name first."""
        old = _names(self._old, pair.old, pair.before, pair.place)
        new = _names(self._new, pair.new, pair.after, pair.place)
        names = sorted(old.keys() | new.keys(), reverse=True)
        return [_Pair(_Place(name, pair.place), old.get(name), new.get(name)) for name in names]

    def _same_content(self, pair: _Pair, size: int) -> bool:
        old, new = (_contents(side, key, pair.place) for side, key in ((self._old, pair.old), (self._new, pair.new)))
        return first_difference(old, new, size, self._progress) is None


@contextlib.contextmanager
def _naming(side: Side, place: _Place) -> Iterator[None]:
    """Let errors about an image say which one, and where in it."""
    with at(side.name), at(place.path):
        yield


def _names(side: Side, key: Key | None, facts: EntryFacts | None, place: _Place) -> Mapping[bytes, Key]:
    if facts is None or not stat.S_ISDIR(facts.mode):
        return {}
    with _naming(side, place):
        return side.names(key)


def _contents(side: Side, key: Key, place: _Place) -> Iterator[tuple[int, bytes]]:
    with _naming(side, place):
        yield from side.contents(key)


def _first(firsts: dict[Key, _Place], key: Key | None, facts: EntryFacts | None, place: _Place) -> bytes | None:
    """The path that an inode was found at before, None when it is new."""
    if facts is None or not facts.linked or stat.S_ISDIR(facts.mode):
        return None
    first = firsts.setdefault(key, place)
    return None if first is place else first.path()


def _attribute_changes(old: EntryFacts, new: EntryFacts) -> Iterator[Change]:
    for what, before, after in (
        ("type", stat.S_IFMT(old.mode), stat.S_IFMT(new.mode)),
        ("mode", stat.S_IMODE(old.mode), stat.S_IMODE(new.mode)),
        ("owner", (old.uid, old.gid), (new.uid, new.gid)),
        ("mtime", old.mtime_ns, new.mtime_ns),
        ("device", old.rdev, new.rdev),
        ("target", old.target, new.target),
    ):
        if before != after:
            yield Change(what, before, after)
    for name in sorted(old.xattrs.keys() | new.xattrs.keys()):
        if old.xattrs.get(name) != new.xattrs.get(name):
            yield Change("xattr", old.xattrs.get(name), new.xattrs.get(name), name)
