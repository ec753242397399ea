# SPDX-License-Identifier: Apache-2.0
"""Trees that break image builders, built by the program and read through a real mount.

What each part makes of them by itself is tested beside the part; `test_big_tree.py` has what is only large.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rofs.audit.event import unescape_path
from tests.compare import differences
from tests.conftest import SigningKeys
from tests.mounts.harness import Mounted, kernel_erofs, mounted, partitions, rofs
from tests.source import archives
from tests.trees import DEEP_NAME, DEPTH, NAMES, SIZES, content, odd_tree, settle

from .disks import filesystem

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, device nodes and foreign owners")

LONG_XATTR = content(60 << 10)
XATTRS = ((b"user.empty", b""), (b"user.binary", bytes(range(256))), (b"user.long", LONG_XATTR))
FILESYSTEMS = {"tmpfs": (), "ext4 with blocks of 1 KiB": ("mkfs.ext4", "-q", "-b1024"), "xfs": ("mkfs.xfs", "-q")}


def _build(source: Path, image: Path, keys: SigningKeys) -> str:
    words = ("build", source, "-o", image, "--key", keys.key_path, "--cert", keys.certificate_path, "--json")
    root_hash = json.loads(rofs(*words).stdout)["root_hash"]
    assert isinstance(root_hash, str)
    return root_hash


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory, signing_keys: SigningKeys) -> Iterator[tuple[Path, Path]]:
    """The odd tree and its image."""
    place = tmp_path_factory.mktemp("odd")
    with odd_tree(place / "tree") as tree:
        _build(tree, place / "odd.raw", signing_keys)
        yield tree, place / "odd.raw"


@pytest.fixture
def mount(odd: tuple[Path, Path], signing_keys: SigningKeys, tmp_path: Path) -> Iterator[Mounted]:
    with mounted(odd[1], signing_keys.certificate_path, tmp_path) as living:
        yield living


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_a_mount_shows_the_odd_tree_as_it_was(
    odd: tuple[Path, Path], signing_keys: SigningKeys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locale: str
) -> None:
    for variable in ("LC_ALL", "LANG"):
        monkeypatch.setenv(variable, locale)
    with mounted(odd[1], signing_keys.certificate_path, tmp_path) as mount:
        assert differences(odd[0], mount.directory) == []


# Names


def test_a_blocked_write_to_any_name_is_recorded_without_loss(mount: Mounted) -> None:
    names = os.fsencode(mount.directory) + b"/names/"
    for name in NAMES:
        with pytest.raises(OSError, match="Read-only"):
            os.unlink(names + name)
        with pytest.raises(OSError, match="Read-only"):
            os.mkdir(names + b"new" + name[:252])
    events = mount.wait_for("write_blocked", 2 * len(NAMES))
    recorded = Counter((event["op"], unescape_path(event["path"])) for event in events)
    expected = [(b"/names/" + name, b"/names/new" + name[:252]) for name in NAMES]
    assert recorded == Counter(
        {**{("unlink", old): 1 for old, _ in expected}, **{("mkdir", new): 1 for _, new in expected}}
    )


def test_json_has_any_name_without_loss(odd: tuple[Path, Path], signing_keys: SigningKeys) -> None:
    done = rofs("ls", odd[1], "names", "--json", "--trust", signing_keys.certificate_path)
    paths = {unescape_path(entry["path"]) for entry in json.loads(done.stdout)}
    assert paths == {b"/names/" + name for name in (*NAMES, b"lengths")}


def test_names_of_every_length_come_once_wherever_replies_break(odd: tuple[Path, Path], mount: Mounted) -> None:
    """Buffers of many sizes break the listing before, in turn, each of the names."""
    expected = sorted([b".", b"..", *os.listdir(os.fsencode(odd[0] / "names" / "lengths"))])
    for size in (*range(280, 4400, 113), *range(4096, 40_000, 1999)):
        fd = os.open(mount.directory / "names" / "lengths", os.O_RDONLY)
        try:
            assert sorted(_listed(fd, size)) == expected, size
        finally:
            os.close(fd)


def _listed(fd: int, buffer_bytes: int) -> list[bytes]:
    """What getdents64(2) gives with a buffer of that size; libc's readdir has one of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(buffer_bytes)
    names = []
    while (got := libc.getdents64(fd, buffer, ctypes.c_size_t(buffer_bytes))) > 0:
        at = 0
        while at < got:
            (length,) = struct.unpack_from("<H", buffer, at + 16)
            names.append(buffer.raw[at + 19 : at + length].partition(b"\0")[0])
            at += length
    assert got == 0, os.strerror(ctypes.get_errno())
    return names


def test_an_entry_that_is_looked_for_from_anywhere(odd: tuple[Path, Path], mount: Mounted) -> None:
    found = subprocess.run(["find", mount.directory, "-print0"], check=True, stdout=subprocess.PIPE).stdout
    expected = subprocess.run(["find", odd[0], "-print0"], check=True, stdout=subprocess.PIPE).stdout
    cut = [
        sorted(path[len(os.fsencode(top)) :] for path in paths.split(b"\0"))
        for top, paths in ((mount.directory, found), (odd[0], expected))
    ]
    assert cut[0] == cut[1]


# Sizes and holes


def test_blocks_and_links_are_those_of_the_kernels_erofs(
    odd: tuple[Path, Path], mount: Mounted, tmp_path: Path
) -> None:
    part = partitions(odd[1])["root"]
    with kernel_erofs(odd[1], tmp_path / "kernel", part["offset"], part["size"]) as kernel:
        pairs = [
            (_status(theirs), _status(ours)) for theirs, ours in zip(_walk(kernel), _walk(mount.directory), strict=True)
        ]
    assert len(pairs) > 2000
    assert [(theirs, ours) for theirs, ours in pairs if theirs != ours] == []


def _walk(top: Path) -> Iterator[bytes]:
    """Everything but what is too deep for a path."""
    for path, names, files in os.walk(os.fsencode(top)):
        names.sort()
        if path.count(DEEP_NAME) > 20:
            names.clear()
        yield from (os.path.join(path, name) for name in sorted(names + files))


def _status(path: bytes) -> tuple[bytes, int, int, int]:
    status = os.lstat(path)
    return os.path.basename(path), status.st_blocks, status.st_size, status.st_nlink


def test_copies_of_sparse_files_from_a_mount_are_right(signing_keys: SigningKeys, tmp_path: Path) -> None:
    """The image is as small as the data; since EROFS gives all blocks, only cp finds the holes again, and not tar."""
    tree = tmp_path / "tree"
    tree.mkdir()
    spots = {"hole": (), "begins": (0,), "ends": ((4 << 20) - 5,), "both": (0, 2 << 20, (4 << 20) - 5)}
    for name, places in spots.items():
        with (tree / name).open("wb") as new:
            new.truncate(4 << 20)
            for place in places:
                new.seek(place)
                new.write(b"data!")
    _build(tree, tmp_path / "sparse.raw", signing_keys)
    assert (tmp_path / "sparse.raw").stat().st_size < 2 << 20
    for name in ("copy", "unpacked"):
        (tmp_path / name).mkdir()
    with mounted(tmp_path / "sparse.raw", signing_keys.certificate_path, tmp_path / "place") as mount:
        subprocess.run(["tar", "--sparse", "-C", mount.directory, "-cf", tmp_path / "tar", "."], check=True)
        subprocess.run(["cp", "-a", "--sparse=always", f"{mount.directory}/.", tmp_path / "copy"], check=True)
    subprocess.run(["tar", "-C", tmp_path / "unpacked", "-xf", tmp_path / "tar"], check=True)
    for name in spots:
        for copy in ("copy", "unpacked"):
            assert (tmp_path / copy / name).read_bytes() == (tree / name).read_bytes(), name
        assert (tmp_path / "copy" / name).stat().st_blocks * 512 < 1 << 20


# Depth and loops


def test_a_blocked_write_1100_levels_deep_is_recorded_with_its_whole_path(mount: Mounted) -> None:
    fd = os.open(mount.directory / "deep", os.O_RDONLY)
    try:
        for _ in range(DEPTH):
            below = os.open(DEEP_NAME, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        with pytest.raises(OSError, match="Read-only"):
            os.unlink("bottom", dir_fd=fd)
    finally:
        os.close(fd)
    (event,) = mount.wait_for("write_blocked")
    assert event["path"] == "/deep" + "/deep" * DEPTH + "/bottom"
    assert len(event["path"]) > 4096


def test_a_symlink_loop_is_the_kernels_eloop(mount: Mounted) -> None:
    with pytest.raises(OSError, match="symbolic links") as caught:
        (mount.directory / "links" / "loop").read_bytes()
    assert caught.value.errno == errno.ELOOP
    assert os.readlink(mount.directory / "links" / "loop") == "loop"


# Xattrs


def test_xattrs_of_60_kib_empty_and_binary_come_through_a_mount(signing_keys: SigningKeys, tmp_path: Path) -> None:
    """From an archive and from a directory alike; ext4 holds no such value, tmpfs and XFS do."""
    records = [(b"SCHILY.xattr." + name, value) for name, value in XATTRS]
    members = archives.directory(b"./", mtime=10**9) + archives.file(b"./file", b"x", records, mtime=10**9)
    (tmp_path / "tree.tar").write_bytes(members + archives.END)
    of_archive = _build(tmp_path / "tree.tar", tmp_path / "image.raw", signing_keys)
    with filesystem(tmp_path / "disk", ()) as disk:
        tree = disk / "tree"
        tree.mkdir(mode=0o755)
        (tree / "file").write_bytes(b"x")
        (tree / "file").chmod(0o644)
        for name, value in XATTRS:
            os.setxattr(tree / "file", name, value)
        for path in (tree / "file", tree):
            os.utime(path, (10**9, 10**9))
        assert _build(tree, tmp_path / "other.raw", signing_keys) == of_archive
        with mounted(tmp_path / "image.raw", signing_keys.certificate_path, tmp_path / "place") as mount:
            assert differences(tree, mount.directory) == []
            path = mount.directory / "file"
            assert {os.fsencode(name): os.getxattr(path, name) for name in os.listxattr(path)} == dict(XATTRS)


# Same tree, same hash


@pytest.mark.parametrize("kind", FILESYSTEMS)
def test_the_filesystem_of_the_source_does_not_show(signing_keys: SigningKeys, tmp_path: Path, kind: str) -> None:
    """Each lists names in an order of its own, knows other holes, and gives directories other sizes and links."""
    expected = _build(_small_tree(tmp_path / "here"), tmp_path / "here.raw", signing_keys)
    with filesystem(tmp_path / "disk", FILESYSTEMS[kind]) as disk:
        assert _build(_small_tree(disk / "there"), tmp_path / "there.raw", signing_keys) == expected


def _small_tree(top: Path) -> Path:
    """What each of these filesystems can hold: no long targets of symbolic links, no long xattrs."""
    base = os.fsencode(top)
    for name in (b"", b"names", b"sub", b"sub/deeper"):
        os.mkdir(os.path.join(base, name))
    for number, name in enumerate(NAMES):
        with open(base + b"/names/" + name, "wb") as new:
            new.write(content(SIZES[number]))
    with (top / "sparse").open("wb") as new:
        new.truncate(1 << 20)
        new.seek(500_000)
        new.write(b"data")
    os.setxattr(top / "sparse", "user.note", b"kept")
    os.link(top / "sparse", top / "sub" / "link")
    (top / "sub" / "symlink").symlink_to("../sparse")
    os.mkfifo(top / "fifo")
    settle(top)
    os.chown(top / "sparse", 2_097_152, 4_294_967_294)
    os.utime(top / "sparse", ns=((1 << 31) * 10**9 + 999_999_999,) * 2)
    return top
