# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.image.os_release import os_release_of, parse_os_release
from rofs.tree import Inode
from tests.erofs.builder import LyingFilesystem
from tests.trees import directory, file, symlink

SAID = b"IMAGE_ID=edge\nIMAGE_VERSION=12\n"


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"X=plain", "plain"),
        (b"X=", ""),
        (b'X="two words"', "two words"),
        (b"X='single \\n $quoted'", "single \\n $quoted"),
        (rb'X="a \"b\" \$c \`d\` \\e \f"', 'a "b" $c `d` \\e \\f'),
        (rb"X=a\ b\\c", r"a b\c"),
        (b"  X=indented  ", "indented"),
        (b"X=crlf\r", "crlf"),
        ("X=näh".encode(), "näh"),
        (b"X=\xff", "\ufffd"),
        (b"X=1.2~rc3+git", "1.2~rc3+git"),
        (b"X=first\nX=last", "last"),
        (b"# X=comment", None),
        (b"#X=comment", None),
        (b"export X=1", None),
        (b"X =1", None),
        (b"X=two words", None),
        (b'X="open', None),
        (b'X="a"b"', None),
        (b"X=$HOME", None),
        (b"X=`id`", None),
        (b"X=a;b", None),
        (b"1X=a", None),
        (b"=a", None),
        (b"", None),
    ],
)
def test_shell_assignments_without_a_shell(line: bytes, value: str | None) -> None:
    assert parse_os_release(b"\n# comment\n\n" + line + b"\n").get("X") == value


@given(st.binary(max_size=200) | st.text(alphabet="AX_=\"'\\$`# \n1", max_size=60).map(str.encode))
def test_any_bytes(data: bytes) -> None:
    assert all("\n" not in value for value in parse_os_release(data).values())


def said(root: Inode, designator: str = "root") -> tuple[str | None, str | None]:
    return os_release_of(LyingFilesystem(root).reader(), designator)


def etc(content: bytes) -> dict[bytes, Inode]:
    return {b"etc": directory({b"os-release": file(content)})}


def usr(inode: Inode) -> dict[bytes, Inode]:
    return {b"usr": directory({b"lib": directory({b"os-release": inode})})}


def test_usr_comes_before_etc() -> None:
    assert said(directory(usr(file(SAID)))) == ("edge", "12")
    assert said(directory(etc(SAID))) == ("edge", "12")
    assert said(directory(usr(file(SAID)) | etc(b"IMAGE_ID=other\n"))) == ("edge", "12")


def test_one_file_says_both_or_they_are_not_mixed() -> None:
    both = directory(usr(file(b"IMAGE_ID=edge\n")) | etc(b"IMAGE_VERSION=9\n"))
    assert said(both) == ("edge", None)
    assert said(directory(usr(file(b"ID=debian\n")) | etc(SAID))) == ("edge", "12")


def test_an_image_for_usr_has_it_below_lib() -> None:
    lib = {b"lib": directory({b"os-release": file(SAID)})}
    assert said(directory(lib), "usr") == ("edge", "12")
    assert said(directory(lib)) == (None, None)
    assert said(directory(usr(file(SAID))), "usr") == (None, None)


@pytest.mark.parametrize("target", [b"../real", b"/real", b"../../../../real", b"/etc/.././real"])
def test_a_symbolic_link_is_followed_inside_the_image(target: bytes) -> None:
    links = {b"etc": directory({b"os-release": symlink(target)})}
    root = directory(links | usr(file(b"NAME=x\n")) | {b"real": file(b"IMAGE_ID=inside\n")})
    assert said(root) == ("inside", None)


@pytest.mark.parametrize("depth", [0, 3])
def test_a_symbolic_link_never_leads_out_of_the_image(tmp_path: Path, depth: int) -> None:
    (tmp_path / "os-release").write_bytes(b"IMAGE_ID=outside\n")
    target = b"../" * depth + str(tmp_path / "os-release").encode()
    assert said(directory(usr(symlink(target)))) == (None, None)


@pytest.mark.parametrize(
    "inode",
    [
        symlink(b"os-release"),
        symlink(b"missing"),
        directory(),
        file(b"IMAGE_ID=x\n" + b"#" * 70_000),
        file(b""),
        file(b"IMAGE_ID=\nIMAGE_VERSION=''\n"),
    ],
    ids=["loop", "dangling", "directory", "too large", "empty", "empty values"],
)
def test_what_says_nothing(inode: Inode) -> None:
    assert said(directory(usr(inode))) == (None, None)
