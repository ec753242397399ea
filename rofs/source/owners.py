# SPDX-License-Identifier: Apache-2.0
"""Who owns the files of an image, when it is not who owns those of the source. Pure.

    0:0                               everything is root's
    1000:1000=0:0                     what is user 1000's becomes root's, and the same for the group
    100000-165535:100000-165535=0:0   a user namespace's ids become those that it shows, from 0 on
    :50=:8                            only the group

Numbers only: the names of the machine that builds are not the image's. The second and later forms are
about ids wherever they stand, so in ACLs too; the first is about the owner alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rofs.source.posix_acl import map_ids
from rofs.tree import Tree
from rofs.vfs import ACL_XATTRS

_MAX_ID = (1 << 32) - 2  # the last one means "no user"
_GRAMMAR = re.compile(r"(?:(?P<uids>[0-9-]*):(?P<gids>[0-9-]*)=)?(?P<uid>[0-9]*):(?P<gid>[0-9]*)")


@dataclass(frozen=True, slots=True)
class _Mapping:
    """Ids from `first` to `last` become those from `to` on."""

    first: int
    last: int
    to: int


@dataclass(frozen=True, slots=True)
class OwnerRule:
    """One rule; `owner_rule` makes it. None is about nothing; an int is everything's new owner."""

    uid: _Mapping | int | None
    gid: _Mapping | int | None


def owner_rule(text: str) -> OwnerRule:
    """Make a rule of `UID:GID` or `FROM=UID:GID`.

    Raises:
        ValueError: It is neither, or an id is out of range.
    """
    match = _GRAMMAR.fullmatch(text)
    if not match or not (match["uid"] or match["gid"]):
        raise ValueError(
            f"the owner {text!r} is not understood: expected UID:GID or FROM_UID:FROM_GID=UID:GID in numbers, where "
            "FROM may be a range like 100000-165535"
        )
    return OwnerRule(_part(match["uids"], match["uid"]), _part(match["gids"], match["gid"]))


def _part(source: str | None, target: str) -> _Mapping | int | None:
    if not target:
        if source:
            raise ValueError(f"the owner {source} has nothing to become")
        return None
    if source is None:
        return _id(target)
    first, dash, last = source.partition("-")
    mapping = _Mapping(_id(first), _id(last) if dash else _id(first), _id(target))
    if mapping.last < mapping.first:
        raise ValueError(f"the owners {source} are no range")
    _id(str(mapping.to + mapping.last - mapping.first))
    return mapping


def _id(text: str) -> int:
    if not re.fullmatch("[0-9]{1,20}", text) or int(text) > _MAX_ID:
        raise ValueError(f"{text!r} is no user or group: expected 0 to {_MAX_ID}")
    return int(text)


def change_owners(tree: Tree, rules: Sequence[OwnerRule]) -> None:
    """Change owners in place. For a user, and for a group, the first rule that is about it counts.

    Args:
        tree: The tree.
        rules: In the order in which they were given.
    """
    uids = [rule.uid for rule in rules if rule.uid is not None]
    gids = [rule.gid for rule in rules if rule.gid is not None]
    uid_maps = [part for part in uids if isinstance(part, _Mapping)]
    gid_maps = [part for part in gids if isinstance(part, _Mapping)]
    for inode in tree.walk() if rules else ():
        inode.uid, inode.gid = _mapped(inode.uid, uids), _mapped(inode.gid, gids)
        if any(name in ACL_XATTRS for name, _ in inode.xattrs):
            inode.xattrs = tuple(
                (name, map_ids(value, lambda u: _mapped(u, uid_maps), lambda g: _mapped(g, gid_maps)))
                if name in ACL_XATTRS
                else (name, value)
                for name, value in inode.xattrs
            )


def _mapped(number: int, parts: Sequence[_Mapping | int]) -> int:
    for part in parts:
        if isinstance(part, int):
            return part
        if part.first <= number <= part.last:
            return part.to + number - part.first
    return number
