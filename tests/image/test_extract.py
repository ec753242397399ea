# SPDX-License-Identifier: Apache-2.0
"""Unpacking images: exact copies of good ones, and nothing outside of the directory from hostile ones."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rofs.errors import HostError, ImageError, InputError, RofsError
from rofs.image import extract as module
from rofs.image.build import SigningKey, build_image
from rofs.image.extract import Extraction, extract_image
from rofs.image.lookup import children
from rofs.source.directory import DirectorySource
from rofs.tree import Inode
from rofs.vfs import DirEntry, ReadOnlyFilesystem
from tests.compare import differences
from tests.conftest import SigningKeys
from tests.erofs.builder import LyingFilesystem, write_image
from tests.fuzz.edits import MAX_INPUT_BYTES, parse_program
from tests.fuzz.filesystems import hostile_filesystem
from tests.trees import (
    DEEP_NAME,
    DEPTH,
    NAMES,
    MemorySource,
    content,
    directory,
    file,
    find,
    node,
    odd_tree,
    remove_deep,
    symlink,
    write_plain_tree,
)

from .builder import SmallImage
from .hostile import VICTIM, as_ordinary_user, hostile_tree, needs_root, opened, sign

Extract = Callable[..., Extraction]


@pytest.fixture
def extract(tmp_path: Path, signing_keys: SigningKeys) -> Extract:
    """Unpacks a filesystem, signed, into `tmp_path/new/out`."""
    (tmp_path / "new").mkdir()

    def extract(filesystem: LyingFilesystem | bytes | Inode, *paths: bytes, replace: bool = False) -> Extraction:
        made = write_image(MemorySource(filesystem)) if isinstance(filesystem, Inode) else filesystem
        with opened(sign(tmp_path / "image.raw", made, signing_keys), signing_keys) as image:
            return extract_image(image, str(tmp_path / "new" / "out"), paths, replace=replace)

    return extract


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "new" / "out"


def names_below(top: Path) -> set[bytes]:
    base = os.fsencode(top)
    found = set()
    for path, directories, files in os.walk(base):
        found |= {os.path.relpath(os.path.join(path, name), base) for name in directories + files}
    return found


def clean(done: Extraction) -> Extraction:
    assert done.problems.first == []
    assert all(shortfall.expected for shortfall in done.shortfalls)
    return done


# Exact copies


@needs_root
def test_odd_tree_comes_back_as_it_was(tmp_path: Path, signing_keys: SigningKeys) -> None:
    signer = SigningKey(signing_keys.key, signing_keys.certificate)
    with odd_tree(tmp_path / "tree") as tree:
        build_image(DirectorySource(str(tree)), str(tmp_path / "image.raw"), signer)
        with opened(tmp_path / "image.raw", signing_keys) as image:
            done = clean(extract_image(image, str(tmp_path / "copy")))
        try:
            # A hole has no blocks; that all have is what an EROFS shows.
            assert [d for d in differences(tree, tmp_path / "copy") if "has blocks" not in d] == []
            assert os.listxattr(tmp_path / "copy") == []  # a directory is not that image
        finally:
            remove_deep(tmp_path / "copy" / "deep")
    assert done.entries > 3000


def test_an_ordinary_user_gets_all_but_owners(tmp_path: Path, signing_keys: SigningKeys) -> None:
    """With modes, times, links; the copy's own owner is nobody, so owners are compared with that."""
    open_to_all = tmp_path / "all"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    write_plain_tree(tmp_path / "tree")
    closed = tmp_path / "tree" / "closed"
    closed.mkdir()
    (closed / "linked").write_bytes(b"linked")
    os.link(closed / "linked", tmp_path / "tree" / "zz-linked")
    (tmp_path / "tree" / "setuid").write_bytes(b"")
    (tmp_path / "tree" / "setuid").chmod(0o6755)
    (tmp_path / "tree" / "unreadable").write_bytes(b"x")
    (tmp_path / "tree" / "unreadable").chmod(0)
    closed.chmod(0o600)
    signer = SigningKey(signing_keys.key, signing_keys.certificate)
    built = build_image(DirectorySource(str(tmp_path / "tree")), str(open_to_all / "image.raw"), signer)
    code, said = as_ordinary_user(open_to_all, "extract", "image.raw", "copy", "--root-hash", built.root_hash.hex())
    assert code == 0, said
    copy = open_to_all / "copy"
    assert stat.S_IMODE((copy / "setuid").stat().st_mode) == 0o755
    assert (copy / "closed" / "linked").stat().st_ino == (copy / "zz-linked").stat().st_ino
    ignored = ("st_uid", "st_gid", "/'setuid': st_mode", "has blocks")
    assert [d for d in differences(tmp_path / "tree", copy) if not any(word in d for word in ignored)] == []
    if os.geteuid() == 0:
        assert said.count("\n") == 1
        assert said.startswith("rofs: not restored, since only root can: owners (")
        assert "setuid and setgid bits (1)" in said


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(extract: Extract, out: Path, umask: int) -> None:
    tree = directory(
        {b"d": directory({b"f": file(b"x", mode=0o666)}, mode=0o777), b"p": node(stat.S_IFIFO)}, mode=0o751
    )
    before = os.umask(umask)
    try:
        clean(extract(tree))
    finally:
        os.umask(before)
    found = {name: stat.S_IMODE(os.lstat(out / name).st_mode) for name in ("", "d", "d/f", "p")}
    assert found == {"": 0o751, "d": 0o777, "d/f": 0o666, "p": 0o600}


def test_default_acl_of_the_directory_is_not_inherited(extract: Extract, out: Path) -> None:
    out.mkdir()
    try:
        subprocess.run(["setfacl", "-d", "-m", "u:12345:rwx", out], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("setfacl is missing, or the filesystem has no ACLs")
    clean(extract(directory({b"d": directory({b"f": file(b"x")})})))
    for path in (out, out / "d", out / "d" / "f"):
        assert [name for name in os.listxattr(path) if "acl" in name] == []


def test_zeros_become_holes(extract: Extract, out: Path) -> None:
    block = b"x" * 4096
    tree = {
        b"all": bytes(3 << 20),
        b"middle": block + bytes(2 << 20) + block,
        b"start": bytes(1 << 20) + b"end",
        b"end": block + bytes((1 << 20) + 5),
        b"none": block * 300,
        b"small": bytes(5),
    }
    clean(extract(directory({name: file(data) for name, data in tree.items()})))
    for name, data in tree.items():
        path = os.path.join(os.fsencode(out), name)
        with open(path, "rb") as made:
            assert made.read() == data
    assert (out / "all").stat().st_blocks == 0
    assert (out / "middle").stat().st_blocks < 64
    assert (out / "start").stat().st_blocks < 64


def test_tree_deeper_than_any_stack_or_path(extract: Extract, out: Path) -> None:
    linked = file(b"linked")
    root = directory({b"bottom": linked})
    for _ in range(DEPTH):
        root = directory({DEEP_NAME: root})
    root.add(b"zz", linked)
    try:
        assert clean(extract(root)).entries == DEPTH + 2
        assert (out / "zz").stat().st_nlink == 2
    finally:
        remove_deep(out)


def test_thousands_of_links(extract: Extract, out: Path) -> None:
    linked, link = file(b"linked"), symlink(b"target")
    names = {b"%04d" % n: (linked, link)[n % 2] for n in range(4000)}
    done = clean(extract(directory({b"a": directory(names), b"b": directory(dict(names))})))
    assert (done.entries, done.content_bytes) == (8002, 6)
    assert (out / "a" / "0000").stat().st_nlink == 4000
    assert os.lstat(out / "b" / "3999").st_ino == os.lstat(out / "a" / "0001").st_ino


def test_odd_names(extract: Extract, out: Path) -> None:
    clean(extract(directory({name: file(name) for name in NAMES})))
    assert names_below(out) == set(NAMES)
    for name in NAMES:
        with open(os.path.join(os.fsencode(out), name), "rb") as made:
            assert made.read() == name


# Parts


def test_paths_keep_their_places(extract: Extract, out: Path) -> None:
    tree = directory(
        {
            b"usr": directory({b"bin": directory({b"env": file(b"env"), b"sh": file(b"sh")}, mode=0o711)}, mode=0o700),
            b"bin": symlink(b"usr/bin"),
            b"etc": directory({b"a": directory({b"b": file(b"b"), b"c": file()})}),
            b"other": directory({b"x": file()}),
        }
    )
    clean(extract(tree, b"bin/env", b"etc/a", b"/etc/a/b", b"bin"))
    assert names_below(out) == {b"usr", b"usr/bin", b"usr/bin/env", b"etc", b"etc/a", b"etc/a/b", b"etc/a/c", b"bin"}
    assert stat.S_IMODE((out / "usr" / "bin").stat().st_mode) == 0o711
    assert stat.S_IMODE((out / "usr").stat().st_mode) == 0o700


def test_the_root_among_the_paths_means_all(extract: Extract, out: Path) -> None:
    extract(hostile_tree(), b"after", b"dir/..")
    assert b"plain" in names_below(out)


def test_a_path_that_is_missing_makes_nothing(extract: Extract, out: Path) -> None:
    with pytest.raises(InputError, match="dir/none: no such file in the image"):
        extract(hostile_tree(), b"after", b"dir/none")
    assert not out.exists()


def test_a_link_alone_is_the_file(extract: Extract, out: Path) -> None:
    linked = file(b"linked")
    clean(extract(directory({b"a": linked, b"b": directory({b"c": linked})}), b"b/c"))
    assert (out / "b" / "c").read_bytes() == b"linked"
    assert (out / "b" / "c").stat().st_nlink == 1


# What is there already


def test_directory_that_is_not_empty_is_left_alone(extract: Extract, out: Path) -> None:
    out.mkdir()
    (out / "plain").write_bytes(b"mine")
    with pytest.raises(InputError, match="is not empty; --force"):
        extract(hostile_tree())
    assert names_below(out) == {b"plain"}
    assert (out / "plain").read_bytes() == b"mine"


def test_new_filesystem_counts_as_empty(extract: Extract, out: Path) -> None:
    (out / "lost+found").mkdir(parents=True)
    clean(extract(hostile_tree()))


@pytest.mark.parametrize("what", ["file", "directory/below", "none"])
def test_directory_that_is_none(extract: Extract, tmp_path: Path, out: Path, what: str) -> None:
    if what == "none":
        (tmp_path / "new").rmdir()
    else:
        (tmp_path / "new").rmdir()
        (tmp_path / "new").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot extract into .*out: "):
        extract(hostile_tree())


def test_what_is_in_the_way_is_replaced_by_force_and_no_link_followed(
    extract: Extract, out: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(b"precious")
    (out / "dir").mkdir(parents=True)
    (out / "dir" / "mine").write_bytes(b"mine")
    (out / "dir" / "inside").symlink_to(outside / "file")  # where a file belongs
    (out / "dir" / "other").symlink_to(outside)  # where a directory belongs
    os.link(outside / "file", out / "plain")  # another name of somebody's file
    (out / "escape").write_bytes(b"")
    (out / os.fsdecode(VICTIM)).write_bytes(b"")
    (out / "after").mkdir()
    (out / "after" / "full").write_bytes(b"")
    done = extract(hostile_tree(), replace=True)
    (problem,) = done.problems.first
    assert str(problem) == f"{out}/after is a directory, in the way of a file; remove it"
    assert (out / "dir" / "mine").read_bytes() == b"mine"
    assert (out / "dir" / "inside").read_bytes() == b"inside\n"
    assert (out / "dir" / "other" / "deep").read_bytes() == b"deep\n"
    assert (out / os.fsdecode(VICTIM) / "planted").is_file()
    assert os.readlink(out / "escape") == "../outside"
    assert names_below(outside) == {b"file"}
    assert (outside / "file").read_bytes() == b"precious"
    assert (outside / "file").stat().st_nlink == 1


def test_again_over_itself(extract: Extract, out: Path) -> None:
    tree = directory(
        {b"d": directory({b"e": directory({b"f": file(b"f")}, mode=0o500)}, mode=0o555), b"l": symlink(b"d")}
    )
    clean(extract(tree))
    clean(extract(tree, replace=True))
    assert stat.S_IMODE((out / "d").stat().st_mode) == 0o555
    for path in (out / "d", out / "d" / "e"):
        path.chmod(0o755)


ACL = "u::rwx,u:12345:rwx,g::r-x,m::rwx,o::---"


def kept_directory(path: Path) -> None:
    """With attributes that no image here gives, and an ACL, also a default one."""
    path.mkdir(parents=True)
    if os.geteuid() == 0:
        os.chown(path, 1000, 1001)
    path.chmod(0o2770)
    for option in ("-m", "-dm"):
        try:
            subprocess.run(["setfacl", option, ACL, path], check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError):
            pytest.skip("setfacl is missing, or the filesystem has no ACLs")
    os.setxattr(path, "user.mine", b"1")


def facts(path: Path) -> tuple[object, ...]:
    status = path.stat()
    xattrs = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    return status.st_mode, status.st_uid, status.st_gid, status.st_atime_ns, status.st_mtime_ns, xattrs


def home_tree() -> Inode:
    new = directory({b"deep": file(b"deep", mode=0o640), b"pipe": node(stat.S_IFIFO)}, mode=0o751)
    home = directory({b"a": file(b"a"), b"p": node(stat.S_IFIFO), b"new": new, b"l": symlink(b"a")}, mode=0o755)
    return directory({b"home": home, b"a": file(b"a")}, mode=0o711)


PARTS = (b"home/a", b"home/p", b"home/l", b"home/new/deep", b"home/new/pipe", b"a")


@pytest.fixture
def kept(out: Path) -> dict[Path, tuple[object, ...]]:
    """The directory and one in it that stand already, and what they are."""
    paths = [out, out / "home"]
    for path in paths:
        kept_directory(path)
    (out / "home" / "a").write_bytes(b"mine")
    for number, path in enumerate(paths):
        os.utime(path, ns=(1_000_000_007 + number, 2_000_000_009 + number))
    return {path: facts(path) for path in paths}


def test_directories_on_the_way_that_were_there_stay_as_they_are(
    extract: Extract, out: Path, kept: dict[Path, tuple[object, ...]]
) -> None:
    clean(extract(home_tree(), *PARTS, replace=True))
    assert {path: facts(path) for path in kept} == kept
    home = out / "home"
    assert (home / "a").read_bytes() == b"a"
    modes = {name: stat.S_IMODE((home / name).stat().st_mode) for name in ("a", "p", "new", "new/deep", "new/pipe")}
    assert modes == {"a": 0o644, "p": 0o600, "new": 0o751, "new/deep": 0o640, "new/pipe": 0o600}
    for name in modes:  # a default ACL is not inherited either
        assert os.listxattr(home / name) == []
        assert (home / name).stat().st_mtime == 0


def test_empty_directory_that_was_there_stays_as_it_is_for_paths(extract: Extract, out: Path) -> None:
    kept_directory(out)
    before = facts(out)
    clean(extract(home_tree(), b"home/a"))
    assert facts(out) == before
    assert stat.S_IMODE((out / "home").stat().st_mode) == 0o755
    assert os.listxattr(out / "home") == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, HostError, ImageError])
def test_directories_on_the_way_stay_as_they_are_when_it_breaks_off(
    extract: Extract,
    kept: dict[Path, tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
    error: type[BaseException],
) -> None:
    def broken(*_: object) -> Iterator[tuple[int, bytes]]:
        yield 0, b"half"
        raise error("broken")

    monkeypatch.setattr(module, "contents", broken)
    with contextlib.nullcontext() if error is ImageError else pytest.raises(error):
        assert extract(home_tree(), b"home/l", b"home/new/deep", replace=True).problems.count == 1
    assert {path: facts(path) for path in kept} == kept


def test_what_is_asked_for_gets_the_attributes_of_the_image(
    extract: Extract, out: Path, kept: dict[Path, tuple[object, ...]]
) -> None:
    clean(extract(home_tree(), b"home", replace=True))
    assert facts(out) == kept[out]
    status = (out / "home").stat()
    assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o755, 0)
    assert os.listxattr(out / "home") == ["user.mine"]


def test_all_into_a_directory_that_was_there(extract: Extract, out: Path, kept: dict[Path, tuple[object, ...]]) -> None:
    (out / "mine").write_bytes(b"mine")
    clean(extract(home_tree(), replace=True))
    found = {path: (stat.S_IMODE(path.stat().st_mode), path.stat().st_mtime) for path in kept}
    assert found == {out: (0o711, 0), out / "home": (0o755, 0)}
    assert all(os.listxattr(path) == ["user.mine"] for path in kept)
    assert (out / "mine").read_bytes() == b"mine"


def test_a_link_on_the_way_is_replaced_by_a_new_directory(extract: Extract, out: Path, tmp_path: Path) -> None:
    out.mkdir()
    (tmp_path / "outside").mkdir()
    (out / "home").symlink_to(tmp_path / "outside")
    clean(extract(home_tree(), b"home/a", replace=True))
    assert not (out / "home").is_symlink()
    assert (stat.S_IMODE((out / "home").stat().st_mode), (out / "home").stat().st_mtime) == (0o755, 0)


# Corrupt images


def test_corrupt_file_is_left_out_and_the_rest_comes(image: SmallImage, tmp_path: Path) -> None:
    with image.open() as good:
        directory_nid = good.filesystem.lookup(good.filesystem.root_nid, b"large")
        assert directory_nid is not None
        nid = good.filesystem.lookup(directory_nid, b"l03")
        assert nid is not None
        (start,) = (e.offset_bytes for e in good.filesystem.extents(nid) if e.file_offset_bytes == 0)
    with image.corrupt_block(start // 4096 + 9).open() as bad:
        done = extract_image(bad, str(tmp_path / "copy"))
    (problem,) = done.problems.first
    assert isinstance(problem, ImageError)
    assert str(problem).startswith("/large/l03: corrupt image: data block ")
    made = names_below(tmp_path / "copy")
    assert b"large/l03" not in made
    assert {b"large/l02", b"large/l04", b"link"} <= made
    for name, inode in find(image.source.tree.root, b"large").children.items():
        if name != b"l03":
            assert (tmp_path / "copy" / "large" / os.fsdecode(name)).read_bytes() == inode.source_key


def test_corrupt_directory_is_named_and_the_rest_comes(extract: Extract, out: Path) -> None:
    lying = LyingFilesystem(hostile_tree()).set_inode(b"/dir/other", i_size=1 << 62)
    (problem,) = extract(lying).problems.first
    assert str(problem).startswith("/dir/other: EROFS: ")
    assert {b"dir/other", b"dir/inside", b"after"} <= names_below(out)


# Hostile images


def planted(top: Path) -> bytes:
    """Everything around the directory, to be unchanged."""
    return subprocess.run(
        [
            "find",
            top,
            "-path",
            top / "new" / "out",
            "-prune",
            "-o",
            "-name",
            "image.raw",
            "-o",
            *("-type", "d", "-printf", "%P %y %m\\n", "-o", "-printf", "%P %y %m %s\\n"),
        ],
        check=True,
        stdout=subprocess.PIPE,
    ).stdout


@pytest.mark.parametrize("name", [b"../esc", b"/etc/x", b"a/../b", b"dir/in", b"\0scape", b"es\0ape"])
def test_hostile_names_make_nothing(extract: Extract, out: Path, tmp_path: Path, name: bytes) -> None:
    before = planted(tmp_path)
    lying = LyingFilesystem(hostile_tree()).rename_entry(b"/", b"escape", name)
    with contextlib.suppress(ImageError):
        extract(lying)
    assert planted(tmp_path) == before
    assert names_below(out) <= {*names_below_of(hostile_tree())} if out.exists() else True


def names_below_of(root: Inode) -> Iterator[bytes]:
    for inode in MemorySource(root).tree.walk():
        yield inode.path()[1:]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("links_to", [b"..", b"../outside", b"/etc", b"/"])
def test_files_below_a_symbolic_link_that_is_a_directory_too(
    extract: Extract, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links_to: bytes, replace: bool
) -> None:
    """The reader refuses two entries of one name; here it does not, for the second line of defence."""
    (tmp_path / "outside").mkdir()
    before = planted(tmp_path)

    def renamed(filesystem: ReadOnlyFilesystem, nid: int) -> Iterator[DirEntry]:
        for entry in children(filesystem, nid):
            yield entry._replace(name=b"name") if entry.name in {b"1-link", b"2-dir"} else entry

    monkeypatch.setattr(module, "children", renamed)
    tree = directory({b"1-link": symlink(links_to), b"2-dir": directory({b"planted": file(b"planted")})})
    done = extract(tree, replace=replace)
    assert planted(tmp_path) == before
    assert names_below(tmp_path / "outside") == set()
    assert not (tmp_path / "new" / "planted").exists()
    if replace:
        assert (out / "name" / "planted").read_bytes() == b"planted"
    else:
        assert [str(problem) for problem in done.problems.first] == [f"cannot extract {out}/name: File exists"]


@pytest.mark.parametrize("contains", [b"/", b"/dir", b"/dir/other", b"/victim"])
def test_directory_that_contains_itself_ends(extract: Extract, out: Path, contains: bytes) -> None:
    lying = LyingFilesystem(hostile_tree())
    done = extract(lying.set_entry(b"/dir", b"other", nid=lying.nid(contains)))
    assert done.problems.count <= 1
    assert all("stands in a second place" in str(problem) for problem in done.problems.first)
    assert b"zz" in names_below(out)
    assert len(names_below(out)) < 12


def test_directory_under_a_million_paths_is_unpacked_once(extract: Extract, out: Path) -> None:
    tree = directory({b"bottom": file()})
    for _ in range(10):
        tree = directory({b"%d" % n: tree if n == 0 else directory() for n in range(10)})
    lying = LyingFilesystem(tree)
    path = b""
    for _ in range(10):
        below = lying.nid(path + b"/0")
        for number in range(1, 10):
            lying.set_entry(path or b"/", b"%d" % number, nid=below)
        path += b"/0"
    done = extract(lying)
    assert done.problems.count == 90
    assert len(names_below(out)) == 11


def test_sizes_that_no_disk_has(extract: Extract, out: Path) -> None:
    done = extract(LyingFilesystem(hostile_tree()).set_inode(b"/plain", i_size=(1 << 63) - 1))
    (problem,) = done.problems.first
    assert "/plain: " in str(problem)
    assert b"plain" not in names_below(out)
    assert b"zz" in names_below(out)


@needs_root
def test_owners_and_devices_that_no_system_takes(extract: Extract, out: Path) -> None:
    tree = directory({b"f": file(b"f", mode=0o4755), b"s": symlink(b"t")})
    for inode in tree.children.values():
        inode.uid = inode.gid = 0xFFFFFFFF
    done = extract(tree)
    assert done.problems.count == 0
    assert {s.what: (s.count, s.expected) for s in done.shortfalls} == {
        "owners": (2, False),
        "setuid and setgid bits": (1, False),
    }
    assert stat.S_IMODE((out / "f").stat().st_mode) == 0o755  # root's authority was not for this file


def test_mutated_filesystems_stay_inside(tmp_path: Path, signing_keys: SigningKeys) -> None:
    """Whatever the signer signed: an error of ours or a tree, and nothing beside it."""
    (tmp_path / "new").mkdir()
    before = planted(tmp_path)
    unpacked = 0
    for number in range(60):
        source = random.Random(number)
        filesystem = hostile_filesystem(parse_program(source.randbytes(source.randrange(MAX_INPUT_BYTES + 1))))
        target = tmp_path / "new" / "out"
        try:
            with opened(sign(tmp_path / "image.raw", filesystem, signing_keys), signing_keys) as image:
                unpacked += extract_image(image, str(target)).entries > 3
        except RofsError:
            pass
        assert planted(tmp_path) == before
        subprocess.run(["rm", "-rf", target], check=True)
    assert unpacked > 20


# Trouble with the target


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    place = tmp_path / "new" / "out"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=20", "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_full_disk_leaves_no_half_file(extract: Extract, small_disk: Path) -> None:
    tree = directory({b"a": file(b"a" * 4096), b"b": file(content(1 << 20)), b"c": file(b"c")})
    with pytest.raises(HostError, match=r"/b: No space left on device; free some space there") as caught:
        extract(tree)
    assert "what was extracted before is left there" in str(caught.value)
    assert names_below(small_disk) == {b"a"}


def test_disk_without_inodes(extract: Extract, small_disk: Path) -> None:
    with pytest.raises(HostError, match="No space left on device"):
        extract(directory({b"%d" % n: file() for n in range(100)}))


def test_interrupted_leaves_no_half_file(extract: Extract, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> Iterator[tuple[int, bytes]]:
        yield 0, b"half"
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "contents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        extract(directory({b"a": directory({b"b": file(b"whole")})}))
    assert names_below(out) == {b"a"}
