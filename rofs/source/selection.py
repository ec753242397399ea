# SPDX-License-Identifier: Apache-2.0
"""What of a tree enters an image: patterns that exclude and include, as gitignore(5) has them. Pure.

Each name of a tree is compared with all patterns, and the last one that matches it decides; what none
matches stays. A directory that is excluded goes with all below it, so nothing there can be included.

    *.pyc           every name that ends so, at any depth: a pattern without `/` is about names
    /boot           only at the top: a pattern with `/` in it, but at the end, is about the path
    var/cache/*     what the directory holds, but not itself
    doc/            only directories
    usr/**/test     `**` is any number of directories

`*` and `?` never match `/`; `[a-z]`, `[!a-z]` and a backslash are as in the shell. Names are matched as
UTF-8, and bytes that are none match only `*`, `?`, and themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rofs.tree import Inode

_ENCODING, _ERRORS = "utf-8", "surrogateescape"


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern; `rule` makes it.

    Attributes:
        keep: Whether what it matches stays.
        directories_only: Whether it matches nothing else.
        regex: Matches a whole path without the leading `/`.
    """

    keep: bool
    directories_only: bool
    regex: re.Pattern[str]


def rule(pattern: bytes, *, keep: bool) -> Rule:
    """Make a rule of a pattern.

    Raises:
        ValueError: No name can match it.
    """
    text = pattern.decode(_ENCODING, _ERRORS)
    body = text.rstrip("/")
    anchored = "/" in body
    body = body.removeprefix("/")
    names = body.split("/")
    if not body or not set(names).isdisjoint({"", ".", ".."}):
        raise ValueError(f"the pattern {text!r} matches nothing: it is empty, or has an empty part, `.` or `..`")
    regex = _path_regex(names)
    return Rule(keep, text.endswith("/"), re.compile(regex if anchored else f"(?:.*/)?{regex}", re.DOTALL))


def select(root: Inode, rules: Sequence[Rule]) -> None:
    """Take out of a tree what is excluded; make a new `Tree` of the root afterwards.

    Args:
        root: The root directory, which always stays.
        rules: In the order in which they were given.
    """
    stack = [("", root)]
    while stack and rules:
        prefix, directory = stack.pop()
        kept = {}
        for name, inode in directory.children.items():
            path = prefix + name.decode(_ENCODING, _ERRORS)
            if _stays(path, inode, rules):
                kept[name] = inode
                if inode.is_directory:
                    stack.append((path + "/", inode))
        directory.children = kept


def _stays(path: str, inode: Inode, rules: Sequence[Rule]) -> bool:
    for one in reversed(rules):
        if (inode.is_directory or not one.directories_only) and one.regex.fullmatch(path):
            return one.keep
    return True


def _path_regex(names: list[str]) -> str:
    parts = []
    for number, name in enumerate(names, 1):
        last = number == len(names)
        if name == "**":
            parts.append(".+" if last else "(?:[^/]+/)*")
        else:
            parts.append(_name_regex(name) + ("" if last else "/"))
    return "".join(parts)


def _name_regex(name: str) -> str:
    parts, at = [], 0
    while at < len(name):
        char = name[at]
        close = name.find("]", at + (3 if name[at + 1 : at + 2] == "!" else 2)) if char == "[" else -1
        if char == "*":
            parts.append("[^/]*")
        elif char == "?":
            parts.append("[^/]")
        elif close > 0:
            parts.append(_class_regex(name[at + 1 : close]))
            at = close
        elif char == "\\" and at + 1 < len(name):
            at += 1
            parts.append(re.escape(name[at]))
        else:
            parts.append(re.escape(char))
        at += 1
    return "".join(parts)


def _class_regex(members: str) -> str:
    if members.startswith(("[:", "![:")):  # gitignore(5) has these; to take them for letters would exclude nothing
        raise ValueError(f"[{members}]] in a pattern is a POSIX class, which is not supported; write the range, as 0-9")
    negated = members.startswith("!")
    ranges = re.sub(r"([\\\[\]^&|~])", r"\\\1", members.removeprefix("!"))
    text = f"[^/{ranges}]" if negated else f"(?!/)[{ranges}]"
    try:
        re.compile(text)
    except re.error:
        raise ValueError(f"[{members}] in a pattern is no set of characters") from None
    return text
