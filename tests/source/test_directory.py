# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rofs.errors import InputError
from rofs.pieces import filled
from rofs.source.directory import DirectorySource
from tests.conftest import REPOSITORY
from tests.trees import ACL, CAPABILITY, DEPTH, OWNERS, TIMES_NS, content, find, odd_tree

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: device nodes, foreign owners, other users")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "file\n").write_bytes(content(3_000_000))
    return tmp_path / "tree"


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DirectorySource]:
    with odd_tree(tmp_path_factory.mktemp("odd") / "tree") as top:
        yield DirectorySource(str(top))


@needs_root
def test_attributes_are_taken_as_they_are(odd: DirectorySource) -> None:
    attributes = find(odd.tree.root, b"attributes")
    assert {find(attributes, b"owner-%d" % owner).uid for owner in OWNERS} == set(OWNERS)
    assert {attributes.children[b"time%d" % time].mtime_ns for time in TIMES_NS} == set(TIMES_NS)
    assert find(attributes, b"mode-7777").mode == stat.S_IFREG | 0o7777
    assert find(attributes, b"closed/file").size == 10
    nodes = find(odd.tree.root, b"nodes")
    assert find(nodes, b"block-4095-1048575").rdev == os.makedev(4095, (1 << 20) - 1)
    assert find(nodes, b"char-0-0").rdev == 0
    assert stat.S_ISSOCK(find(nodes, b"socket").mode)


@needs_root
def test_xattrs_are_taken_sorted(odd: DirectorySource) -> None:
    xattrs = find(odd.tree.root, b"xattrs/several").xattrs
    assert list(xattrs) == sorted(xattrs)
    assert dict(xattrs)[b"security.capability"] == CAPABILITY
    assert dict(xattrs)[b"system.posix_acl_access"] == ACL
    assert dict(xattrs)[b"user.\xff"] == b"user.\xff"
    assert dict(find(odd.tree.root, b"xattrs/opaque").xattrs)[b"trusted.overlay.opaque"] == b"y"
    assert find(odd.tree.root, b"xattrs/symlink").xattrs == ((b"trusted.on-a-symlink", b""),)


@needs_root
def test_hard_links_are_one_inode(odd: DirectorySource) -> None:
    links = find(odd.tree.root, b"links")
    assert find(links, b"a") is find(links, b"z") is find(links, b"m") is find(links, b"other/n")
    assert (find(links, b"a").nlink, find(links, b"a").path()) == (4, b"/links/a")
    assert find(links, b"symlink") is find(links, b"other/symlink-again")
    empty = list(find(odd.tree.root, b"counts/1000").children.values())
    assert len(empty) == 1000
    assert all(i.nlink == 1 for i in empty)


@needs_root
def test_contents_beyond_path_max(odd: DirectorySource) -> None:
    bottom = find(odd.tree.root, b"deep/" + b"deep/" * DEPTH + b"bottom")
    assert len(bottom.path()) > 4096
    assert list(odd.contents(bottom)) == []


def test_a_link_to_a_file_outside_of_the_tree_counts_no_name_there(tree: Path) -> None:
    os.link(tree / "sub" / "file\n", tree.parent / "outside")
    assert find(DirectorySource(str(tree)).tree.root, b"sub/file\n").nlink == 1


def test_symlinks_are_never_followed_but_the_root_is(tree: Path) -> None:
    (tree / "link").symlink_to("/etc")
    (tree.parent / "way").symlink_to("tree")
    root = DirectorySource(os.fsencode(tree.parent / "way")).tree.root
    assert find(root, b"link").target == b"/etc"
    assert not find(root, b"link").children


def test_contents_come_in_pieces(tree: Path) -> None:
    source = DirectorySource(str(tree))
    pieces = list(source.contents(find(source.tree.root, b"sub/file\n")))
    assert max(len(data) for _, data in pieces) <= 1 << 20
    assert b"".join(filled(pieces, 3_000_000)) == content(3_000_000)


def _replace(path: Path) -> None:
    path.with_name("new").write_bytes(content(3_000_000))
    path.with_name("new").rename(path)


def _become_a_symlink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def _become_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _become_a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda p: os.truncate(p, 10), "changed during the build", id="shortened"),
        pytest.param(lambda p: os.truncate(p, 3_000_001), "changed during", id="grown"),
        pytest.param(lambda p: p.write_bytes(bytes(3_000_000)), "changed during the build", id="overwritten"),
        pytest.param(lambda p: p.chmod(0o600), "changed during the build", id="chmod"),
        pytest.param(_replace, "changed during the build", id="replaced"),
        pytest.param(lambda p: p.unlink(), "No such file", id="vanished"),
        pytest.param(lambda p: p.rename(p.with_name("moved")), "No such file", id="moved"),
        pytest.param(_become_a_symlink, "symbolic links", id="became a symlink"),
        pytest.param(_become_a_directory, "changed during the build", id="became a directory"),
        pytest.param(_become_a_fifo, "changed during the build", id="became a FIFO"),
    ],
)
def test_a_source_that_changes_is_named(tree: Path, change: Callable[[Path], object], reason: str) -> None:
    source = DirectorySource(str(tree))
    change(tree / "sub" / "file\n")
    with pytest.raises(InputError, match=reason) as caught:
        list(source.contents(find(source.tree.root, b"sub/file\n")))
    assert "sub/file\\n" in str(caught.value)


def _cut_and_grow(path: Path) -> None:
    os.truncate(path, 1 << 20)
    os.truncate(path, 3_000_000)


def _rewrite_the_end(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        opened.write(b"x")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda p: os.truncate(p, 1 << 20), id="cut where the last piece ended"),
        pytest.param(lambda p: os.truncate(p, 0), id="emptied"),
        pytest.param(_cut_and_grow, id="its end made a hole"),
        pytest.param(_rewrite_the_end, id="rewritten"),
    ],
)
def test_a_file_changed_while_it_is_read(tree: Path, change: Callable[[Path], object]) -> None:
    """What is gone then must not become a hole."""
    source = DirectorySource(str(tree))
    pieces = source.contents(find(source.tree.root, b"sub/file\n"))
    next(pieces)
    change(tree / "sub" / "file\n")
    with pytest.raises(InputError, match=r"sub/file\\n changed during the build"):
        list(pieces)


def test_a_medium_that_fails(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for call in ("listdir", "lstat", "listxattr"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, broken)
            with pytest.raises(InputError, match=r"tree.*Input/output error"):
                DirectorySource(str(tree))


def test_an_xattr_that_cannot_be_kept_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "listxattr", lambda *_, **__: ["system.nfs4_acl"])
    monkeypatch.setattr(os, "getxattr", lambda *_, **__: b"")
    with pytest.raises(InputError, match=r"system\.nfs4_acl cannot be kept"):
        DirectorySource(str(tree))


def test_a_filesystem_without_xattrs(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object, **__: object) -> object:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "listxattr", unsupported)
    assert find(DirectorySource(str(tree)).tree.root, b"sub").xattrs == ()


@pytest.mark.parametrize("name", ["none", "tree/sub/file\n"])
def test_what_is_no_directory(tree: Path, name: str) -> None:
    with pytest.raises(InputError, match="source"):
        DirectorySource(str(tree.parent / name))


@needs_root
@pytest.mark.parametrize("closed", ["tree", "tree/sub", "tree/sub/file\n"])
def test_what_the_user_may_not_read_is_named(tree: Path, closed: str) -> None:
    for path in (tree.parent, *tree.parent.parents):
        path.chmod(path.stat().st_mode | 0o011)
    (tree.parent / closed).chmod(0)
    script = (
        "import os, sys\n"
        "from rofs.errors import RofsError\n"
        "from rofs.source.directory import DirectorySource\n"
        "from tests.erofs.builder import write_image\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    write_image(DirectorySource(sys.argv[1]))\n"
        "except RofsError as error:\n"
        "    sys.exit(str(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tree], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "Permission denied" in line
    assert closed.replace("\n", "\\n") in line
