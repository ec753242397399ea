# SPDX-License-Identifier: Apache-2.0
"""EROFS images of others, without compression, and ours in others' hands: the kernel and two mkfs.erofs agree."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rofs.erofs.reader import ErofsReader
from rofs.errors import FormatError
from rofs.source.directory import DirectorySource
from tests.compare import differences
from tests.erofs.builder import kernel_mount, write_image
from tests.trees import content, odd_tree, remove_deep
from tests.verity.doubles import MemoryDevice

from .foreign import Tools, view_differences

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, device nodes and foreign owners")

# Whether the tree comes back as it was; otherwise the kernel's view of the image is all there is to compare with.
AS_IT_WAS = True
CHANGED = False

OPTIONS_1_5 = [
    ((), AS_IT_WAS),
    (("-Enoinline_data",), AS_IT_WAS),
    (("-Eforce-inode-extended",), AS_IT_WAS),
    (("-Eforce-inode-compact", "--all-root"), CHANGED),
    (("-Elegacy-compress",), AS_IT_WAS),
    (("-Enosbcrc",), AS_IT_WAS),
    (("-x1",), AS_IT_WAS),
    (("-x-1",), CHANGED),
    (("--chunksize=4096",), AS_IT_WAS),
    (("--chunksize=65536",), AS_IT_WAS),
    (("--chunksize=65536", "-Eforce-chunk-indexes", "-x0"), AS_IT_WAS),
    (("-T1600000000",), CHANGED),
    (("--ignore-mtime",), CHANGED),
    (("--all-root", "-Enoinline_data"), CHANGED),
]
OPTIONS_1_8_6 = [
    *OPTIONS_1_5,
    (("-b512",), AS_IT_WAS),
    (("-b1024",), AS_IT_WAS),
    (("-b2048", "-x1"), AS_IT_WAS),
    (("-b4096",), AS_IT_WAS),
    (("-b512", "--chunksize=1024"), AS_IT_WAS),
    (("-b1024", "--chunksize=4096", "-Eforce-chunk-indexes"), AS_IT_WAS),
    (("-Exattr-name-filter",), AS_IT_WAS),
    (("-E^xattr-name-filter", "-x0"), AS_IT_WAS),
    (("--xattr-prefix=user.long.prefix.", "--xattr-prefix=trusted.overlay."), AS_IT_WAS),
    (("--xattr-prefix=user.long.prefix.", "-x0", "-b512"), AS_IT_WAS),
    (("-Ededupe",), AS_IT_WAS),
    (("-Efragments",), AS_IT_WAS),
    (("--root-xattr-isize=200",), AS_IT_WAS),
    (("--dsunit=8",), AS_IT_WAS),
    (("--hard-dereference",), CHANGED),
    (("--uid-offset=70000", "--preserve-mtime"), CHANGED),
]
IS_1_5 = b" 1.5" in subprocess.run(["fsck.erofs", "-V"], capture_output=True, check=False).stdout
needs_1_5 = pytest.mark.skipif(not IS_1_5, reason="erofs-utils 1.5 are Debian 12's; this machine has others")
CASES = [("1.5", *case) for case in OPTIONS_1_5] + [("1.8.6", *case) for case in OPTIONS_1_8_6]


def add_what_images_share(top: Path) -> None:
    """Xattrs that many files have, names with a long prefix in common, and holes of every kind."""
    (top / "shared").mkdir()
    for number in range(300):
        path = top / "shared" / f"{number}"
        path.write_bytes(content(number * 7, number))
        os.setxattr(path, "user.long.prefix.same", b"the same everywhere")
        os.setxattr(path, f"user.long.prefix.{number % 5}", b"v" * (number % 11))
        os.setxattr(path, "security.selinux", b"system_u:object_r:usr_t:s0\0")
    (top / "sparse").mkdir()
    with (top / "sparse" / "islands").open("wb") as new:
        new.truncate(3 << 20)
        for offset in (65_536, 1_000_000, (3 << 20) - 1):
            new.seek(offset)
            new.write(b"island")
    with (top / "sparse" / "only-a-hole").open("wb") as new:
        new.truncate((1 << 20) + 1)
    (top / "sparse" / "written-zeros").write_bytes(bytes(200_000))
    (top / "sparse" / "zeros-then-data").write_bytes(bytes(70_000) + content(100_000))


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The odd tree but for its depth: mkfs.erofs takes no path of more than 4095 bytes."""
    with odd_tree(tmp_path_factory.mktemp("foreign") / "tree") as tree:
        remove_deep(tree / "deep")
        add_what_images_share(tree)
        yield tree


@pytest.fixture(scope="module")
def odd_for_1_5(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without names of 255 bytes, which mkfs.erofs 1.5 does not find."""
    copy = tmp_path_factory.mktemp("foreign") / "shorter"
    Tools().run("cp", "-a", "--sparse=always", odd, copy)
    for path, _, files in os.walk(os.fsencode(copy)):
        times = os.stat(path)
        for name in files:
            if len(name) == 255:
                os.unlink(os.path.join(path, name))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return copy


@pytest.mark.parametrize(
    ("version", "options", "as_it_was"), CASES, ids=[f"{version} {' '.join(o)}" for version, o, _ in CASES]
)
def test_an_image_of_mkfs_erofs(
    version: str,
    options: tuple[str, ...],
    as_it_was: bool,
    odd: Path,
    odd_for_1_5: Path,
    oracle_root: Path,
    tmp_path: Path,
) -> None:
    tree, tools = (odd_for_1_5, Tools()) if version == "1.5" else (odd, Tools(oracle_root))
    image = tools.mkfs(tmp_path / "image", tree, *options)
    with kernel_mount(image, tmp_path / "mount") as mounted:
        assert view_differences(image, mounted) == []
        if as_it_was:
            assert differences(tree, mounted) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("-zlz4hc", "-C65536"), "compression configurations or big physical clusters"),
        (("-zlz4hc", "-Eztailpacking"), "ztailpacking"),
        (("-zlz4hc", "-Efragments"), "fragments or deduplicated"),
        (("-zzstd",), "compression configurations"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    options: tuple[str, ...], reason: str, odd: Path, oracle_root: Path, tmp_path: Path
) -> None:
    image = Tools(oracle_root).mkfs(tmp_path / "image", odd / "sizes", *options)
    with pytest.raises(FormatError, match=f"not supported: .*{reason}"):
        ErofsReader(MemoryDevice(image.read_bytes()))


@needs_1_5
def test_contents_on_another_device_are_refused_by_name(odd: Path, tmp_path: Path) -> None:
    """By 1.5: 1.8.6 crashes here."""
    options = ("--chunksize=4096", f"--blobdev={tmp_path / 'blob'}")
    image = Tools().mkfs(tmp_path / "image", odd / "sizes", *options)
    with pytest.raises(FormatError, match="not supported: a device table"):
        ErofsReader(MemoryDevice(image.read_bytes()))


def test_a_compressed_file_is_refused_by_name_and_harms_no_other(odd: Path, tmp_path: Path) -> None:
    """Plain LZ4 has no feature bit: it shows in the inode."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "compressed").write_bytes(b"again and again " * 10_000)
    (tree / "not").write_bytes(content(5000))
    image = Tools().mkfs(tmp_path / "image", tree, "-zlz4hc")
    reader = ErofsReader(MemoryDevice(image.read_bytes()))
    nids = {entry.name: entry.nid for entry in reader.readdir(reader.root_nid)}
    with pytest.raises(FormatError, match="not supported: compressed"):
        reader.stat(nids[b"compressed"])
    assert reader.read(nids[b"not"], 0, 5000) == content(5000)


@pytest.fixture(scope="module")
def ours(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("ours") / "image"
    image.write_bytes(write_image(DirectorySource(str(odd))))
    return image


def test_the_kernel_sees_our_holes_as_the_source(odd: Path, ours: Path, tmp_path: Path) -> None:
    with kernel_mount(ours, tmp_path / "mount") as mounted:
        assert differences(odd, mounted) == []
        assert view_differences(ours, mounted) == []


@pytest.mark.parametrize("version", [pytest.param("1.5", marks=needs_1_5), "1.8.6"])
def test_fsck_erofs_accepts_ours_with_holes(version: str, ours: Path, oracle_root: Path) -> None:
    tools = Tools() if version == "1.5" else Tools(oracle_root)
    assert version in tools.run("fsck.erofs", "-V").stdout
    tools.run("fsck.erofs", "--extract", ours)


def test_copies_that_look_for_holes_get_the_content(ours: Path, odd: Path, tmp_path: Path) -> None:
    tools = Tools()
    with kernel_mount(ours, tmp_path / "mount") as mounted:
        tools.run("tar", "--sparse", "-C", mounted / "sparse", "-cf", tmp_path / "tar", ".")
        tools.run("cp", "-a", "--sparse=always", mounted / "sparse", tmp_path / "copy")
    (tmp_path / "extracted").mkdir()
    tools.run("tar", "-C", tmp_path / "extracted", "-xf", tmp_path / "tar")
    for path in (odd / "sparse").iterdir():
        for copy in ("copy", "extracted"):
            assert (tmp_path / copy / path.name).read_bytes() == path.read_bytes()
