# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

import pytest

from rofs.source.selection import rule, select
from rofs.tree import Inode, Tree
from tests.trees import directory, file, symlink

PATHS = (
    b"a.pyc",
    b"boot/x",
    b"doc",
    b"srv/boot",
    b"srv/doc/a.pyc",
    b"usr/lib/test/x",
    b"usr/lib/x/test",
    b"usr/test/x",
    b"var/cache/a/b",
    b"var/cache/.c",
)


def tree(paths: Sequence[bytes] = PATHS) -> Inode:
    root = directory()
    for path in paths:
        at = root
        *parents, name = path.split(b"/")
        for parent in parents:
            if parent not in at.children:
                at.add(parent, directory())
            at = at.children[parent]
        at.add(name, file())
    return root


def left(patterns: Sequence[str | bytes], paths: Sequence[bytes] = PATHS) -> set[bytes]:
    """Files that stay; a pattern with `+` in front includes."""
    root = tree(paths)
    texts = [p.encode() if isinstance(p, str) else p for p in patterns]
    select(root, [rule(text.removeprefix(b"+"), keep=text.startswith(b"+")) for text in texts])
    return {inode.path()[1:] for inode in Tree(root).walk() if inode.is_regular}


@pytest.mark.parametrize(
    ("patterns", "gone"),
    [
        (["*.pyc"], {b"a.pyc", b"srv/doc/a.pyc"}),
        (["/*.pyc"], {b"a.pyc"}),
        (["boot"], {b"boot/x", b"srv/boot"}),
        (["/boot"], {b"boot/x"}),
        (["boot/"], {b"boot/x"}),
        (["doc"], {b"doc", b"srv/doc/a.pyc"}),
        (["doc/"], {b"srv/doc/a.pyc"}),
        (["var/cache/*"], {b"var/cache/a/b", b"var/cache/.c"}),
        (["var/cache/?"], {b"var/cache/a/b"}),
        (["var/cache/[!a]*"], {b"var/cache/.c"}),
        (["var/cache/[.-a]*"], {b"var/cache/a/b", b"var/cache/.c"}),
        (["usr/**/test"], {b"usr/lib/test/x", b"usr/lib/x/test", b"usr/test/x"}),
        (["**/x"], {b"boot/x", b"usr/lib/test/x", b"usr/lib/x/test", b"usr/test/x"}),
        (["usr/**"], {b"usr/lib/test/x", b"usr/lib/x/test", b"usr/test/x"}),
        (["usr/*/x"], {b"usr/lib/x/test", b"usr/test/x"}),
        (["lib/x"], set()),
        (["*.pyc", "+/a.pyc"], {b"srv/doc/a.pyc"}),
        (["+*.pyc", "*.pyc"], {b"a.pyc", b"srv/doc/a.pyc"}),
        (["srv", "+a.pyc"], {b"srv/boot", b"srv/doc/a.pyc"}),
        (["/*", "+/var", "var/cache/a"], set(PATHS) - {b"var/cache/.c"}),
        (["+anything"], set()),
        ([], set()),
    ],
)
def test_patterns(patterns: list[str], gone: set[bytes]) -> None:
    assert set(PATHS) - left(patterns) == gone


ODD = (b"\xff\xfe", b"caf\xc3\xa9", b"new\nline", b"st*r", b"[x]", b"back\\slash", b"a^b", b"-rf")


@pytest.mark.parametrize(
    ("pattern", "gone"),
    [
        (b"\xff*", {b"\xff\xfe"}),
        (b"??", {b"\xff\xfe"}),
        (b"caf?", {b"caf\xc3\xa9"}),
        ("caf[à-ü]", {b"caf\xc3\xa9"}),
        (b"new*", {b"new\nline"}),
        (b"st\\*r", {b"st*r"}),
        (b"\\[x]", {b"[x]"}),
        (b"[[]x[]]", {b"[x]"}),
        (b"back\\\\slash", {b"back\\slash"}),
        (b"a[\\^]b", {b"a^b"}),
        (b"[", set()),
        (b"-*", {b"-rf"}),
    ],
)
def test_names_of_any_bytes(pattern: bytes, gone: set[bytes]) -> None:
    assert set(ODD) - left([pattern], ODD) == gone


@pytest.mark.parametrize("pattern", ["", "/", "//", "a//b", "./a", "../a", "a/..", "[z-a]"])
def test_patterns_that_match_nothing(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        rule(pattern.encode(), keep=False)


def test_the_root_and_what_only_looks_like_a_directory_stay() -> None:
    root = directory({b"link": symlink(b"/")})
    select(root, [rule(b"link/", keep=False)])
    assert list(root.children) == [b"link"]
    select(root, [rule(b"**", keep=False)])
    assert not root.children


def test_one_name_of_a_hard_link() -> None:
    linked = file(b"x")
    root = directory({b"a": linked, b"d": directory({b"b": linked})})
    select(root, [rule(b"/a", keep=False)])
    Tree(root)
    assert (linked.nlink, linked.path()) == (1, b"/d/b")


@pytest.mark.parametrize("text", ["[[:digit:]]*", "a/[![:space:]]"])
def test_posix_classes_are_refused_rather_than_taken_for_letters(text: str) -> None:
    with pytest.raises(ValueError, match="POSIX class, which is not supported"):
        rule(text.encode(), keep=False)
