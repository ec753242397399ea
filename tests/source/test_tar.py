# SPDX-License-Identifier: Apache-2.0
"""Tar archives: the same tree as the directory they were made of, and one clear error for each lie."""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import lzma
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rofs.errors import HostError, InputError, RofsError
from rofs.source import tar_format
from rofs.source.directory import DirectorySource
from rofs.source.prepare import PreparedSource
from rofs.source.selection import rule
from rofs.source.tar import TarSource
from rofs.tree import Source
from tests.erofs.builder import write_image
from tests.trees import ACL, content, find, odd_tree, write_plain_tree

from . import archives
from .archives import GNU, base256, directory, file, gnu_long, hard_link, header, padded, pax, source, symlink

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: device nodes, foreign owners, trusted xattrs")
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "none": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "zstd": zstd.compress,
}


def image(source: Source) -> str:
    return hashlib.sha256(write_image(source)).hexdigest()


# The same tree, the same image


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with odd_tree(tmp_path_factory.mktemp("odd") / "tree") as top:
        (top / "nodes" / "socket").unlink()  # which no archive can hold
        yield top


@needs_root
@pytest.mark.parametrize("more", [(), ("--sparse",), ("--sparse", "--sparse-version=0.1"), ("--sort=name",)])
def test_an_archive_of_gnu_tar_and_its_directory(odd: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    command = ["tar", "--format=pax", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", *more]
    subprocess.run([*command, "-C", odd, "-cf", tmp_path / "odd.tar", "."], check=True)
    assert image(TarSource(str(tmp_path / "odd.tar"))) == image(DirectorySource(str(odd)))


@needs_root
@pytest.mark.skipif(not shutil.which("bsdtar"), reason="needs bsdtar, of the package libarchive-tools")
def test_an_archive_of_bsdtar_and_its_directory(odd: Path, tmp_path: Path) -> None:
    """But for times before 1970 with a fraction, which it writes wrong: -1 ns as -1.999999999."""
    command = ["bsdtar", "--format=pax", "--xattrs", "--acls", "--numeric-owner", "--exclude=time-1"]
    env = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run([*command, "-C", odd, "-cf", tmp_path / "odd.tar", "."], check=False, capture_output=True, env=env)
    expected = PreparedSource([DirectorySource(str(odd))], selection=[rule(b"time-1", keep=False)])
    assert image(TarSource(str(tmp_path / "odd.tar"))) == image(expected)


def test_an_archive_of_pythons_tarfile_and_its_directory(tmp_path: Path) -> None:
    write_plain_tree(tmp_path / "tree")
    (tmp_path / "archive.tar").write_bytes(archives.tar_of_tree(tmp_path / "tree"))
    expected = image(DirectorySource(str(tmp_path / "tree")))
    assert image(TarSource(os.fsencode(tmp_path / "archive.tar"))) == expected


@pytest.mark.parametrize("form", ["gnu", "ustar", "v7", "oldgnu"])
def test_other_formats_of_gnu_tar(tmp_path: Path, form: str) -> None:
    """They know no fractions of seconds, and ustar and v7 only short names, but the rest must be right."""
    name = "n" * (200 if form.endswith("gnu") else 90)
    top = tmp_path / "tree"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / name).write_bytes(content(5000))
    (top / "link").symlink_to("sub")
    os.link(top / "sub" / name, top / "hard")
    for path in (top, *top.rglob("*")):
        os.utime(path, (10**9, 10**9), follow_symlinks=False)
    subprocess.run(["tar", f"--format={form}", "-C", top, "-cf", tmp_path / "a.tar", "."], check=True)
    assert image(TarSource(str(tmp_path / "a.tar"))) == image(DirectorySource(str(top)))


@pytest.mark.parametrize(
    "form", ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0"]
)
def test_sparse_files(tmp_path: Path, form: str) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    with open(top / "sparse", "wb") as new:
        for offset in range(0, 60 * 65536, 65536):  # more pieces than a header and an extension have places for
            new.seek(offset)
            new.write(b"data")
        new.truncate(60 * 65536 + 5)
    with open(top / "hole", "wb") as new:
        new.truncate(1 << 20)
    for path in (top, *top.iterdir()):
        os.utime(path, (10**9, 10**9))
    words = ["tar", "--sparse", *f"--format={form}".split()]
    subprocess.run([*words, "-C", top, "-cf", tmp_path / "a.tar", "."], check=True)
    assert (tmp_path / "a.tar").stat().st_size < 1 << 20
    assert image(TarSource(str(tmp_path / "a.tar"))) == image(DirectorySource(str(top)))


HUGE = 2 << 40


def huge_sparse(tmp_path: Path) -> TarSource:
    """2 TiB with four bytes in the middle."""
    records = [(b"GNU.sparse.map", b"%d,4" % (HUGE // 2)), (b"GNU.sparse.size", b"%d" % HUGE)]
    return source(tmp_path, file(b"a", b"data", records))


def test_a_hole_of_terabytes_is_not_looked_at(tmp_path: Path) -> None:
    """It would take hours and is only said: what is counted are the pieces."""
    found = huge_sparse(tmp_path)
    assert list(found.contents(found.tree.root.children[b"a"])) == [(HUGE // 2, b"data")]


def test_a_hole_of_terabytes_is_the_same_image_from_a_directory(tmp_path: Path) -> None:
    found = huge_sparse(tmp_path)
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree" / "a").open("wb") as new:
        new.seek(HUGE // 2)
        new.write(b"data")
        new.truncate(HUGE)
    directory_source = DirectorySource(str(tmp_path / "tree"))
    for inode in (*found.tree.walk(), *directory_source.tree.walk()):
        inode.mtime_ns, inode.uid, inode.gid = 0, 0, 0
        inode.mode = stat.S_IFMT(inode.mode) | 0o700
    assert len(list(directory_source.contents(directory_source.tree.root.children[b"a"]))) == 1
    assert image(found) == image(directory_source)


def test_holes_of_the_archive_itself_are_not_read(tmp_path: Path) -> None:
    """As long as it does not change: a file of zeros in a sparse archive, and zeros behind the end mark."""
    size = 1 << 40
    path = tmp_path / "archive.tar"
    with path.open("wb") as new:
        new.write(pax([(b"size", b"%d" % size)]) + header(b"a"))
        new.seek(size, os.SEEK_CUR)
        new.write(file(b"b", b"x"))
        new.truncate(2 * size)
    found = TarSource(str(path))
    pieces = list(found.contents(found.tree.root.children[b"a"]))
    assert sum(len(data) for _, data in pieces) < 1 << 20  # blocks that headers share
    assert not any(data.strip(b"\0") for _, data in pieces)
    os.truncate(path, 3 * size)
    with pytest.raises(InputError, match="changed during the build"):
        list(found.contents(found.tree.root.children[b"a"]))


# From a file, a pipe, in any compression


@pytest.mark.parametrize("kind", COMPRESSIONS)
@pytest.mark.parametrize("way", ["file", "pipe", "descriptor"])
def test_compressions(tmp_path: Path, kind: str, way: str) -> None:
    path = tmp_path / "misnamed.zip"
    packed = COMPRESSIONS[kind](file(b"a", content(3_000_000)) + file(b"zeros", bytes(500_000)) + archives.END)
    path.write_bytes(packed)
    if way == "pipe":
        path.unlink()
        os.mkfifo(path)
        writer = threading.Thread(target=path.write_bytes, args=(packed,))
        writer.start()
        found = TarSource(str(path))
        writer.join()
    elif way == "descriptor":
        path.write_bytes(b"before" + packed)
        with open(path, "rb", buffering=0) as opened:
            opened.seek(6)
            found = TarSource(opened.fileno())
    else:
        found = TarSource(str(path))
    path.unlink()
    assert archives.data(found, found.tree.root.children[b"a"]) == content(3_000_000)
    assert archives.data(found, found.tree.root.children[b"zeros"]) == bytes(500_000)
    found.close()
    found.close()


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zstd"])
def test_several_streams_in_a_row(tmp_path: Path, kind: str) -> None:
    """As pigz, pbzip2, pixz and pzstd write, and with padding behind."""
    whole = file(b"a", content(100_000)) + archives.END
    pack = COMPRESSIONS[kind]
    (tmp_path / "a").write_bytes(pack(whole[:777]) + pack(whole[777:5000]) + pack(whole[5000:]) + bytes(1024))
    found = TarSource(str(tmp_path / "a"))
    assert archives.data(found, found.tree.root.children[b"a"]) == content(100_000)


def test_skippable_frames_of_zstd(tmp_path: Path) -> None:
    skipped = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    (tmp_path / "a").write_bytes(skipped + zstd.compress(file(b"a") + archives.END) + skipped)
    assert list(TarSource(str(tmp_path / "a")).tree.root.children) == [b"a"]


@pytest.mark.parametrize("kind", [kind for kind in COMPRESSIONS if kind != "none"])
def test_compressed_data_that_is_cut_or_damaged(tmp_path: Path, kind: str) -> None:
    packed = COMPRESSIONS[kind](file(b"a", content(100_000)) + archives.END)
    path = tmp_path / "a"
    for cut in (len(packed) // 2, len(packed) - 1):
        path.write_bytes(packed[:cut])
        with pytest.raises(InputError, match=f"a: its {kind} data ends too early"):
            TarSource(str(path))
    path.write_bytes(packed + b"garbage, more than a block of it" * 20)
    with pytest.raises(InputError, match=f"its {kind} data is damaged"):
        TarSource(str(path))
    if kind != "lzma":  # which has no checksum: the archive's own must do
        path.write_bytes(packed[:-30] + bytes(byte ^ 0x55 for byte in packed[-30:]))
        with pytest.raises(InputError, match=f"its {kind} data (is damaged|ends too early)"):
            TarSource(str(path))


@pytest.mark.parametrize(
    ("magic", "name"),
    [(b"LZIP", "lzip"), (b"\x04\x22\x4d\x18", "lz4"), (b"\x1f\x9d", "compress"), (b"PK\x03\x04", "zip")],
)
def test_compressions_that_are_only_known_by_name(tmp_path: Path, magic: bytes, name: str) -> None:
    (tmp_path / "a").write_bytes(magic + content(1000))
    with pytest.raises(InputError, match=f"compressed by {name}, which is not supported"):
        TarSource(str(tmp_path / "a"))


def test_a_first_name_that_looks_compressed(tmp_path: Path) -> None:
    assert list(source(tmp_path, file(b"BZh91AY")).tree.root.children) == [b"BZh91AY"]


def test_zeros_of_a_pipe_take_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0
    real = os.pwrite

    def counting(fd: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += len(data)
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", counting)
    (tmp_path / "a").write_bytes(gzip.compress(file(b"a", bytes(30 << 20)) + archives.END, 1))
    found = TarSource(str(tmp_path / "a"))
    assert written < 1 << 20
    assert archives.data(found, found.tree.root.children[b"a"]) == bytes(30 << 20)


def test_no_space_for_what_a_pipe_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(os, "pwrite", full)
    (tmp_path / "a").write_bytes(gzip.compress(file(b"a") + archives.END))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(HostError, match=r"No space left on device; set TMPDIR"):
        TarSource(str(tmp_path / "a"))
    assert len(os.listdir("/proc/self/fd")) == len(before)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    with pytest.raises(HostError, match=r"none: No such file"):
        TarSource(str(tmp_path / "a"))


def test_nothing_stays_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    kept = source(tmp_path, file(b"a", b"x"))
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del kept
    with pytest.raises(InputError):
        source(tmp_path, file(b"../a", b"x"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_an_archive_that_changes_during_the_build(tmp_path: Path) -> None:
    found = source(tmp_path, file(b"a", content(3_000_000)))
    pieces = found.contents(found.tree.root.children[b"a"])
    next(pieces)
    os.truncate(tmp_path / "archive.tar", 100_000)
    with pytest.raises(InputError, match="changed during the build"):
        list(pieces)
    with pytest.raises(InputError, match="changed during the build"):
        archives.data(found, found.tree.root.children[b"a"])


@pytest.mark.parametrize("text", [b"x", b"text " * 1000, b"\x7fELF" + bytes(2000)])
def test_a_file_that_is_no_archive(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a").write_bytes(text)
    with pytest.raises(InputError, match="a is neither a directory nor a tar archive"):
        TarSource(str(tmp_path / "a"))


def test_an_archive_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is empty"):
        source(tmp_path, end=b"")
    with pytest.raises(InputError, match="has no members"):
        source(tmp_path)


# What members mean


def test_attributes_are_the_archives(tmp_path: Path) -> None:
    found = source(
        tmp_path,
        directory(b"./", uid=7, mode=0o700, mtime=9),
        header(b"char", b"3", device=(4095, (1 << 20) - 1), mode=0o600),
        header(b"block", b"4", device=(259, 256)),
        header(b"fifo", b"6"),
        symlink(b"link", b"../to"),
        file(b"setuid", b"x", mode=0o4755, uid=base256(4294967294, 8), gid=65536),
        file(b"old", b"x", mtime=base256(-5, 12)),
        file(b"exact", b"x", [(b"mtime", b"4294967296.999999999"), (b"uid", b"2097152"), (b"gid", b"4294967294")]),
        file(b"contiguous", b"x", typeflag=b"7"),
        file(b"v7", b"x", typeflag=b"\0", magic=bytes(8)),
    ).tree.root
    assert (found.uid, stat.S_IMODE(found.mode), found.mtime_ns) == (7, 0o700, 9 * 10**9)
    assert (found.children[b"char"].mode, found.children[b"char"].rdev) == (
        stat.S_IFCHR | 0o600,
        os.makedev(4095, (1 << 20) - 1),
    )
    assert (stat.S_IFMT(found.children[b"block"].mode), found.children[b"block"].rdev) == (
        stat.S_IFBLK,
        os.makedev(259, 256),
    )
    assert stat.S_ISFIFO(found.children[b"fifo"].mode)
    assert (found.children[b"link"].target, found.children[b"link"].size) == (b"../to", 5)
    setuid, exact = found.children[b"setuid"], found.children[b"exact"]
    assert (setuid.mode, setuid.uid, setuid.gid) == (stat.S_IFREG | 0o4755, 4294967294, 65536)
    assert found.children[b"old"].mtime_ns == -5 * 10**9
    assert (exact.mtime_ns, exact.uid, exact.gid) == ((1 << 32) * 10**9 + 999_999_999, 2097152, 4294967294)
    assert archives.is_regular_at(found, b"contiguous")
    assert archives.is_regular_at(found, b"v7")


def test_names_from_the_root_and_from_here(tmp_path: Path) -> None:
    found = source(tmp_path, file(b"/abs/a"), file(b"./here/b"), file(b"x//./c"), directory(b"d///"))
    assert sorted(i.path() for i in found.tree.walk()) == [
        b"/",
        b"/abs",
        b"/abs/a",
        b"/d",
        b"/here",
        b"/here/b",
        b"/x",
        b"/x/c",
    ]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    found = source(tmp_path, file(b"a/b/c", uid=5, mtime=99)).tree.root
    for path in (b"", b"a", b"a/b"):
        inode = find(found, path)
        assert (inode.mode, inode.uid, inode.gid, inode.mtime_ns) == (stat.S_IFDIR | 0o755, 0, 0, 0)


def test_a_parent_that_comes_after_its_child(tmp_path: Path) -> None:
    found = source(tmp_path, file(b"a/b"), directory(b"a", mode=0o711, uid=3)).tree.root
    assert (found.children[b"a"].mode, found.children[b"a"].uid) == (stat.S_IFDIR | 0o711, 3)
    assert list(found.children[b"a"].children) == [b"b"]


def test_of_duplicates_the_later_counts(tmp_path: Path) -> None:
    found = source(
        tmp_path,
        file(b"a", b"first"),
        hard_link(b"keeps", b"a"),
        file(b"./a", b"second"),
        directory(b"d"),
        file(b"d/x"),
        directory(b"d", mode=0o700),
        directory(b"e"),
        file(b"e/y"),
        symlink(b"e", b"d"),
        symlink(b"f", b"d"),
        directory(b"f"),
    )
    root = found.tree.root
    assert archives.data(found, root.children[b"a"]) == b"second"
    assert archives.data(found, root.children[b"keeps"]) == b"first"
    assert (root.children[b"a"].nlink, root.children[b"keeps"].nlink) == (1, 1)
    assert (list(root.children[b"d"].children), root.children[b"d"].mode) == ([b"x"], stat.S_IFDIR | 0o700)
    assert stat.S_ISLNK(root.children[b"e"].mode)
    assert root.children[b"f"].is_directory


def test_a_hard_link_before_its_target(tmp_path: Path) -> None:
    found = source(
        tmp_path,
        hard_link(b"z/last", b"./a"),
        hard_link(b"chain", b"z/last"),
        hard_link(b"replaced", b"none"),
        file(b"replaced", b"x"),
        file(b"a", b"data"),
        symlink(b"s", b"a"),
        hard_link(b"t", b"/s"),
    )
    root = found.tree.root
    assert find(root, b"z/last") is root.children[b"a"] is root.children[b"chain"]
    assert (root.children[b"a"].nlink, root.children[b"a"].path()) == (3, b"/a")
    assert root.children[b"s"] is root.children[b"t"]
    assert archives.data(found, root.children[b"replaced"]) == b"x"


def test_hard_links_with_a_size_have_no_content(tmp_path: Path) -> None:
    """As old programs write them: the size is the target's."""
    found = source(tmp_path, file(b"a", content(1000)), header(b"b", b"1", link=b"a", size=1000), file(b"c"))
    assert found.tree.root.children[b"b"] is found.tree.root.children[b"a"]
    assert b"c" in found.tree.root.children


@pytest.mark.parametrize("data", [content(1), content(512), content(3_000_001), bytes(5000), b"\0" * 600 + b"x"])
@pytest.mark.parametrize("first", [True, False])
def test_hard_links_with_a_content(tmp_path: Path, data: bytes, first: bool) -> None:
    """As POSIX allows them: the content stands there once more, and is the same."""
    members = [file(b"a", data), hard_link(b"b", b"a", data)]
    found = source(tmp_path, *(members if first else members[::-1]), file(b"c"))
    assert found.tree.root.children[b"b"] is found.tree.root.children[b"a"]
    assert b"c" in found.tree.root.children
    assert archives.data(found, found.tree.root.children[b"b"]) == data


def test_hard_link_with_a_content_that_a_record_measures(tmp_path: Path) -> None:
    link = pax([(b"size", b"700")]) + header(b"b", b"1", link=b"a") + padded(content(700))
    found = source(tmp_path, file(b"a", content(700)), link, file(b"c"))
    assert sorted(found.tree.root.children) == [b"a", b"b", b"c"]


def test_hard_link_with_a_content_to_a_sparse_file(tmp_path: Path) -> None:
    sparse = pax([(b"GNU.sparse.map", b"1000,4"), (b"GNU.sparse.size", b"2000")]) + header(b"a", size=4)
    data = bytes(1000) + b"data" + bytes(996)
    found = source(tmp_path, sparse + padded(b"data"), hard_link(b"b", b"a", data), file(b"c"))
    assert archives.data(found, found.tree.root.children[b"b"]) == data


@pytest.mark.parametrize("data", [content(1000, 1), content(999), content(1001)])
def test_hard_link_with_another_content_than_its_file(tmp_path: Path, data: bytes) -> None:
    """Programs that unpack it would take the last one; it is not said anywhere that they should."""
    with pytest.raises(InputError, match="member b: it is a hard link that comes with another content than its file"):
        source(tmp_path, file(b"a", content(1000)), hard_link(b"b", b"a", data), file(b"c"))


def test_hard_link_with_a_content_to_what_has_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="member b: it is a hard link with a content to a, which has none"):
        source(tmp_path, symlink(b"a", b"x"), hard_link(b"b", b"a", b"x"))


def test_hard_link_to_an_archive_that_may_or_may_not_follow(tmp_path: Path) -> None:
    """Its members must not become those of the archive around it."""
    inner = file(b"inner", b"x") + archives.END
    with pytest.raises(InputError, match=r"member b\.tar: it is a hard link of size 2048, perhaps to an archive"):
        source(tmp_path, file(b"a.tar", inner), hard_link(b"b.tar", b"a.tar", inner))


def test_hard_link_with_a_sparse_content(tmp_path: Path) -> None:
    link = pax([(b"GNU.sparse.map", b"0,4"), (b"GNU.sparse.size", b"2000")]) + hard_link(b"b", b"a", b"data")
    with pytest.raises(InputError, match="member b: it is a hard link with a sparse content"):
        source(tmp_path, file(b"a", b"data"), link)


def test_hard_link_with_a_size_and_nothing_of_it(tmp_path: Path) -> None:
    for size in (5, 5000, (1 << 33) - 1):
        link = header(b"b", b"1", link=b"a", size=size)
        with pytest.raises(InputError, match=f"member b: it is a hard link of size {size}, and a header is neither"):
            source(tmp_path, file(b"a"), link + padded(b"x" * 600), end=b"")


def test_long_names_of_gnu(tmp_path: Path) -> None:
    name, target = b"d/" * 100 + b"n" * 255, b"t" * 300
    found = source(tmp_path, gnu_long(b"L", name), gnu_long(b"K", target), header(b"cut", b"2", link=b"cut", magic=GNU))
    assert find(found.tree.root, name).target == target


def test_global_records_hold_until_the_member_says_otherwise(tmp_path: Path) -> None:
    found = source(
        tmp_path,
        pax([(b"uid", b"7"), (b"comment", b"0123abcd")], b"g"),
        file(b"a"),
        file(b"b", records=[(b"uid", b"8")]),
        pax([(b"uid", b"")], b"g"),
        file(b"c", uid=9),
    ).tree.root
    assert [found.children[name].uid for name in (b"a", b"b", b"c")] == [7, 8, 9]


def test_labels_and_dumped_directories_of_gnu(tmp_path: Path) -> None:
    found = source(
        tmp_path,
        header(b"label", b"V", magic=GNU),
        header(b"d/", b"D", size=6, magic=GNU) + padded(b"Yfile\0"),
        file(b"d/file"),
    )
    assert sorted(i.path() for i in found.tree.walk()) == [b"/", b"/d", b"/d/file"]


def test_a_directory_of_old_programs(tmp_path: Path) -> None:
    assert source(tmp_path, header(b"d/", b"\0", magic=bytes(8)), file(b"d/f")).tree.root.children[b"d"].is_directory
    with pytest.raises(InputError, match=r"member d/: it is a regular file with content"):
        source(tmp_path, file(b"d/", b"x"))


def test_xattrs_in_all_forms(tmp_path: Path) -> None:
    found = source(
        tmp_path,
        file(
            b"a",
            b"",
            [
                (b"SCHILY.xattr.user.b", b"\xff=\n\0"),
                (b"SCHILY.xattr.user.a%3Db%2541", b"gnu"),
                (b"SCHILY.xattr.user.empty", b""),
                (b"LIBARCHIVE.xattr.user.only%FF", b"/z14Cg"),
                (b"LIBARCHIVE.xattr.user.b", b"AAAA"),
                (b"RHT.security.selinux", b"system_u:object_r:etc_t:s0"),
                (b"SCHILY.acl.access", b"user::rw-\nuser:1234:r--\ngroup::r--\nmask::rw-\nother::r--\n"),
            ],
        ),
        file(
            b"minimal", b"", [(b"SCHILY.acl.access", b"user::rw-,group::r--,other::r--"), (b"SCHILY.acl.default", b"")]
        ),
    ).tree.root
    assert list(found.children[b"a"].xattrs) == [
        (b"security.selinux", b"system_u:object_r:etc_t:s0\0"),
        (b"system.posix_acl_access", ACL),
        (b"user.a=b%41", b"gnu"),
        (b"user.b", b"\xff=\n\0"),
        (b"user.empty", b""),
        (b"user.only\xff", b"\xff=x\n"),
    ]
    assert found.children[b"a"].mode == stat.S_IFREG | 0o664  # the group's bits are the mask
    assert found.children[b"minimal"].xattrs == ()


# What is refused, by name


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        pytest.param(file(b"../x"), r"member \.\./x: .*could lead out", id="dotdot"),
        pytest.param(file(b"a/../../x"), r"`\.\.`", id="dotdot inside"),
        pytest.param(
            hard_link(b"x", b"../../etc/shadow"), r"member x: the path \.\./\.\./etc/shadow", id="link to dotdot"
        ),
        pytest.param(
            hard_link(b"x", b"none"), "member x: it is a hard link to none, not in the archive", id="dangling"
        ),
        pytest.param(hard_link(b"x", b"x"), "member x: it is a hard link to itself", id="link to itself"),
        pytest.param(hard_link(b"x", b"y") + hard_link(b"y", b"x"), "hard link to itself", id="link loop"),
        pytest.param(
            directory(b"d") + hard_link(b"x", b"d"), "member x: .* which is a directory", id="link to directory"
        ),
        pytest.param(hard_link(b"x", b"d") + directory(b"d"), "member x: .* a directory", id="link to later directory"),
        pytest.param(hard_link(b"x", b""), "member x: its name is empty", id="link to nothing"),
        pytest.param(
            symlink(b"l", b"/etc") + file(b"l/passwd"),
            "l/passwd: it lies below l, which is no dir",
            id="below a symlink",
        ),
        pytest.param(file(b"f") + file(b"f/x"), "member f/x: it lies below f", id="below a file"),
        pytest.param(file(b"."), r"member \.: it would take the place of the root", id="root a file"),
        pytest.param(symlink(b"/", b"etc"), "member /: it would take the place of the root", id="root a symlink"),
        pytest.param(file(b""), "its name is empty", id="no name"),
        pytest.param(file(b"x", records=[(b"path", b"a\0b")]), r"member a\\x00b: .*NUL", id="NUL in a name"),
        pytest.param(gnu_long(b"L", b"a\0b") + header(b"x"), "NUL", id="NUL in a long name"),
        pytest.param(symlink(b"x", b""), "member x: it is a symbolic link to , of 0 bytes", id="no target"),
        pytest.param(pax([(b"linkpath", b"t" * 4096)]) + symlink(b"x", b""), "4096 bytes", id="target too long"),
        pytest.param(file(b"x", records=[(b"path", b"n" * 256)]), "more than 255 bytes", id="name too long"),
        pytest.param(header(b"x", b"3", device=(4096, 0)), "member x: its device is 4096:0", id="device"),
        pytest.param(file(b"x", uid=base256(1 << 32, 8)), "member x: its uid is 4294967296", id="uid"),
        pytest.param(file(b"x", uid=base256(-1, 8)), "member x: its uid is -1", id="negative uid"),
        pytest.param(file(b"x", records=[(b"gid", b"garbage")]), "member x: its gid is b'garbage'", id="gid"),
        pytest.param(file(b"x", records=[(b"mtime", b"1e9")]), "member x: its time is b'1e9'", id="time"),
        pytest.param(file(b"x", mtime=base256(1 << 80, 12)), "member x: its time is", id="time too late"),
        pytest.param(file(b"x", size=base256(-512, 12)), "member x: its size is -512", id="negative size"),
        pytest.param(file(b"x", records=[(b"size", b"-1")]), "member x: its size is b'-1'", id="negative size record"),
        pytest.param(
            file(b"x", size=base256(1 << 62, 12)), "member x: its content has 4611686018427387904 bytes", id="size lies"
        ),
        pytest.param(
            file(b"x", records=[(b"size", b"99999")]), "member x: its content has 99999 bytes", id="size record lies"
        ),
        pytest.param(file(b"x", typeflag=b"s"), "member x: its type is b's'", id="type"),
        pytest.param(file(b"x", typeflag=b"M"), "member x: .*another volume", id="multi-volume"),
        pytest.param(file(b"x", typeflag=b"A"), "member x: .*Solaris ACL", id="Solaris ACL"),
        pytest.param(file(b"x", typeflag=b"S"), "member x: it is a sparse file as star", id="sparse of star"),
        pytest.param(
            file(b"x", records=[(b"SCHILY.xattr.system.nfs4_acl", b"")]),
            "member x: its xattr b'system.nfs4_acl'",
            id="xattr",
        ),
        pytest.param(
            file(b"x", records=[(b"SCHILY.acl.ace", b"owner@:rwx")]), "member x: it has an NFSv4 ACL", id="NFSv4"
        ),
        pytest.param(file(b"x", records=[(b"LIBARCHIVE.xattr.user.a", b"***")]), "member x: .*base 64", id="base 64"),
        pytest.param(
            file(b"x", records=[(b"SCHILY.acl.access", b"user::rw-,user:ada:r--,group::r--,mask::r--,other::r--")]),
            "member x: .*'ada' is no number",
            id="ACL by name",
        ),
        pytest.param(header(b"pax", b"x", size=5) + padded(b"5 a=b"), "damaged", id="records damaged"),
        pytest.param(header(b"pax", b"x", size=9 << 20), "has 9437184 bytes, expected at most", id="records too long"),
        pytest.param(header(b"pax", b"x", size=base256(-1, 12)), "has -1 bytes", id="records negative"),
        pytest.param(
            file(b"x") + pax([(b"a", b"b")]), "after member x: an extended header has no member", id="records alone"
        ),
        pytest.param(
            file(b"x") + b"j" * 512, "after member x: at byte 512: this is no tar header", id="damaged header"
        ),
        pytest.param(
            file(b"x", b"d", [(b"GNU.sparse.map", b"0,2"), (b"GNU.sparse.size", b"9")]),
            "member x: its sparse map is about 2",
            id="sparse",
        ),
        pytest.param(
            file(b"x", b"d", [(b"GNU.sparse.major", b"2")]), "member x: its sparse format is", id="sparse version"
        ),
        pytest.param(
            file(b"x", b"9" * 2000, [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]),
            "member x: its sparse map",
            id="sparse 1.0",
        ),
        pytest.param(
            file(b"x", b"", [(b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.size", b"%d" % (1 << 50))]),
            f"member x: its size is {1 << 50}, at most",
            id="larger than any image",
        ),
        pytest.param(
            pax([(b"comment", b"c" * 70_000)], b"g") + file(b"x"), "global headers have more than 65536", id="globals"
        ),
        pytest.param(
            file(b"x", b"", [(b"SCHILY.xattr.user.a\0b", b"1")]), "member x: its xattr", id="NUL in an xattr's name"
        ),
        pytest.param(
            file(b"x", b"", [(b"SCHILY.xattr.user.a%00b", b"1")]), "member x: its xattr", id="escaped NUL in a name"
        ),
        pytest.param(file(b"x", b"", [(b"SCHILY.xattr.user.", b"1")]), "member x: its xattr", id="xattr without name"),
        pytest.param(
            file(b"x", b"", [(b"SCHILY.xattr.user." + b"n" * 251, b"1")]), "member x: its xattr", id="long xattr name"
        ),
        pytest.param(
            file(b"x", b"", [(b"SCHILY.xattr.system.posix_acl_access", b"junk")]), "member x: its ACL", id="no ACL"
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, member: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        source(tmp_path, member)
    assert "archive.tar" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_archive_cut_anywhere(tmp_path: Path) -> None:
    whole = file(b"a", b"x" * 600, [(b"mtime", b"1.5")]) + file(b"b", b"y") + archives.END
    path = tmp_path / "a.tar"
    for length in range(1, len(whole) - 512, 256):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"not whole|neither"):
            TarSource(str(path))
    path.write_bytes(whole[:-512])  # one of two blocks of zeros is an end, too
    assert sorted(TarSource(str(path)).tree.root.children) == [b"a", b"b"]


def test_what_stands_behind_the_end(tmp_path: Path) -> None:
    assert source(tmp_path, file(b"a"), end=bytes(1 << 21))
    with pytest.raises(InputError, match=r"after member a: byte 1536, behind the end mark, is not zero"):
        source(tmp_path, file(b"a"), archives.END, file(b"b"))
    with pytest.raises(InputError, match="behind the end mark"):
        source(tmp_path, file(b"a"), end=archives.END + bytes(2_000_001) + b"\x01")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4),
    repair=st.booleans(),
)
def test_any_change_makes_a_tree_or_one_clear_error(
    tmp_path: Path, changes: list[tuple[int, bytes]], repair: bool
) -> None:
    records = [
        (b"mtime", b"1.5"),
        (b"SCHILY.acl.default", b"u::rwx,g::rx,o::-"),
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
    ]
    archive = bytearray(file(b"a", padded(b"1\n0\n5\n") + b"hello", [*records, (b"GNU.sparse.realsize", b"9")]))
    archive += hard_link(b"b", b"a") + gnu_long(b"L", b"d/" * 90) + directory(b"d") + archives.END
    for at, new in changes:
        archive[at : at + len(new)] = new
    if repair:
        for at in range(0, len(archive), 512):
            if archive[at + 257 : at + 262] == b"ustar":
                archive[at : at + 512] = archives.with_checksum(bytes(archive[at : at + 512]))
    path = tmp_path / "a.tar"
    path.write_bytes(archive)
    with contextlib.suppress(RofsError):
        found = TarSource(str(path))
        if all(inode.size < 1 << 20 for inode in found.tree.walk()):
            image(found)


def test_the_pieces_of_all_sparse_maps_are_counted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is small in the archive, and all of them are kept."""
    monkeypatch.setattr(tar_format, "MAX_EXTENTS", 5)
    members = [file(b"%d" % n, b"", [(b"GNU.sparse.map", b"0,0,1,0"), (b"GNU.sparse.size", b"9")]) for n in range(3)]
    source(tmp_path, *members[:2])
    with pytest.raises(InputError, match="member 2: the sparse maps of the archive have more than 5 pieces"):
        source(tmp_path, *members)
