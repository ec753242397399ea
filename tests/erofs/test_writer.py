# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rofs.erofs import format as fmt
from rofs.erofs.reader import ErofsReader
from rofs.erofs.writer import _Slots, write_filesystem
from rofs.errors import InputError
from rofs.source.directory import DirectorySource
from rofs.tree import Inode, Tree
from tests.compare import differences
from tests.conftest import REPOSITORY
from tests.trees import (
    DIRECTORY_BYTES,
    SIZES,
    TARGET_LENGTHS,
    MemorySource,
    content,
    directory,
    file,
    find,
    names_for_directory_bytes,
    node,
    odd_tree,
    remove_deep,
    symlink,
    write_plain_tree,
)
from tests.verity.doubles import MemoryDevice

from .builder import compare_with_tree, fsck, kernel_mount, needs_fsck, write_image

BLOCK = 4096
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, device nodes and foreign owners")


def read_back(source: MemorySource) -> ErofsReader:
    reader = ErofsReader(MemoryDevice(write_image(source)))
    compare_with_tree(reader, source)
    return reader


# Same tree, same bytes


@pytest.mark.parametrize("seed", range(1, 4))
def test_the_order_of_creation_and_the_place_do_not_show(tmp_path: Path, seed: int) -> None:
    write_plain_tree(tmp_path / "one")
    (tmp_path / "far").mkdir()
    write_plain_tree(tmp_path / "far" / "away")
    write_plain_tree(tmp_path / "other", seed=seed)
    images = {write_image(DirectorySource(str(tmp_path / name))) for name in ("one", "other", "far/away")}
    assert len(images) == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_listing_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    write_plain_tree(tmp_path / "tree")
    expected = write_image(DirectorySource(str(tmp_path / "tree")))
    shuffle, real = random.Random(seed), os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: shuffle.sample(names := real(path), len(names)))
    assert write_image(DirectorySource(str(tmp_path / "tree"))) == expected


@pytest.mark.parametrize("chunk_bytes", [1, 7, 4095, 4096, 4097])
def test_the_size_of_chunks_does_not_show(chunk_bytes: int) -> None:
    def tree() -> Inode:
        sizes = {b"%d" % n: file(content(n)) for n in SIZES if n < 20_000}
        return directory({**sizes, b"copy": file(content(8193)), b"z": symlink(b"t" * 4095)})

    assert write_image(MemorySource(tree(), chunk_bytes=chunk_bytes)) == write_image(MemorySource(tree()))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")
def test_the_builder_does_not_show(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write_plain_tree(tree)
    for path in (tmp_path, *tmp_path.parents):
        if not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    script = (
        "import os, sys, hashlib\n"
        "from rofs.source.directory import DirectorySource\n"
        "from tests.erofs.builder import write_image\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "print(os.getuid(), hashlib.sha256(write_image(DirectorySource(sys.argv[1]))).hexdigest())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tree], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["65534", hashlib.sha256(write_image(DirectorySource(str(tree)))).hexdigest()]


# Streaming


class Sparse:
    """A huge file that would not fit into memory: it fails when asked for much at once or twice."""

    def __init__(self, size: int) -> None:
        huge = Inode(mode=stat.S_IFREG | 0o644, size=size)
        self.tree = Tree(directory({b"huge": huge}))
        self.asked = 0
        self.unfinished: list[int] = []

    def chunks(self, inode: Inode) -> Iterator[bytes]:
        self.asked += 1
        chunk = bytes(1 << 20)
        for _ in range(inode.size >> 20):
            yield chunk
            assert not self.unfinished, "a chunk was kept while the next one was fetched"
        yield bytes(inode.size % (1 << 20))


def test_contents_are_streamed() -> None:
    written = []
    source = Sparse((256 << 20) + 5)
    tracemalloc.start()
    try:
        result = write_filesystem(source, lambda at, data: written.append(len(data)), build_time=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.blocks == 1 + (256 << 20) // BLOCK
    assert max(written) <= 1 << 20
    assert source.asked == 1
    assert peak < 16 << 20


def test_a_sparse_file_of_a_directory_is_read_in_pieces(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as new:
        new.truncate(256 << 20)
    source = DirectorySource(str(tmp_path))
    tracemalloc.start()
    try:
        write_filesystem(source, lambda at, data: None, build_time=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


# Places


def test_equal_contents_are_stored_once() -> None:
    def blocks(*contents: bytes) -> int:
        children = {b"%d" % n: file(data) for n, data in enumerate(contents)}
        source = MemorySource(directory(children))
        read_back(source)
        return len(write_image(source)) // BLOCK

    data = content(10 * BLOCK)
    assert blocks(data, data, data) == blocks(data)
    assert blocks(data, data[:-1] + b"!") == blocks(data) + 10
    # Equal whole blocks, other tails.
    assert blocks(data + b"a", data + b"b") == blocks(data)
    # A copy longer than what is written next over its traces.
    assert blocks(data, data, content(BLOCK - 1, 2)) == blocks(data) + 1


def test_nothing_of_a_copy_remains_behind_a_symlink() -> None:
    data = content(10 * BLOCK)
    # Xattrs whose length is no multiple of a slot: 4095 more bytes cannot stay in a block with their end.
    link = symlink(b"t" * 4095)
    link.xattrs = ((b"trusted.a", b""),)
    source = MemorySource(directory({b"a": file(data), b"b": file(data), b"c": link}))
    image = write_image(source)
    reader = ErofsReader(MemoryDevice(image))
    nid = reader.lookup(reader.root_nid, b"c")
    assert nid is not None
    extent = reader.extents(nid)[1]
    assert image[extent.offset_bytes :] == b"t" * 4095 + b"\0"


@pytest.mark.parametrize("xattr_bytes", [0, 1, 5, 20, 100, 4000, 4096, 60_000])
def test_inline_tails_stay_inside_a_block(xattr_bytes: int) -> None:
    xattrs = ((b"user.a", content(xattr_bytes)),) if xattr_bytes else ()
    tails = [0, 1, 31, 32, 100, 2000, 3990, *range(4025, 4040), 4095]
    source = MemorySource(directory({b"%04d" % n: file(content(n), xattrs=xattrs) for n in tails}))
    reader = read_back(source)
    for entry in reader.readdir(reader.root_nid):
        for extent in reader.extents(entry.nid)[1:]:
            assert extent.offset_bytes // BLOCK == (extent.offset_bytes + extent.length_bytes - 1) // BLOCK


def test_gaps_are_filled() -> None:
    slots = _Slots(fmt.FIRST_FREE_BYTE)
    slots.allocate(64, 4000)  # does not fit behind the superblock
    end = slots.end
    assert slots.allocate(64, 100) == (fmt.FIRST_FREE_BYTE // 32, True)
    assert slots.allocate(64, 0) == (-(-(fmt.FIRST_FREE_BYTE + 164) // 32), False)
    assert slots.end == end


def test_a_tree_of_small_files_wastes_little() -> None:
    sizes = [random.Random(n).randrange(4032) for n in range(2000)]
    image = write_image(MemorySource(directory({b"%04d" % n: file(content(size, n)) for n, size in enumerate(sizes)})))
    used = sum(sizes) + 64 * len(sizes) + (12 + 4) * len(sizes)
    assert len(image) < used * 1.15


@given(st.lists(st.tuples(st.integers(0, 70_000 // 4), st.integers(0, 4095)), max_size=60))
def test_places_never_overlap(requests: list[tuple[int, int]]) -> None:
    slots = _Slots(fmt.FIRST_FREE_BYTE)
    taken: list[tuple[int, int]] = [(0, fmt.FIRST_FREE_BYTE)]
    for xattr_words, tail_bytes in requests:
        header_bytes = 64 + (8 + 4 * xattr_words if xattr_words else 0)
        nid, inline = slots.allocate(header_bytes, tail_bytes)
        start = nid * fmt.SLOT_BYTES
        end = start + header_bytes + (tail_bytes if inline else 0)
        taken.append((start, end))
        if inline:
            assert tail_bytes
            assert (end - tail_bytes) % BLOCK + tail_bytes <= BLOCK
        assert end <= slots.end
    taken.sort()
    for (_, before), (after, _) in itertools.pairwise(taken):
        assert before <= after


# Round trips


def test_every_kind_of_thing() -> None:
    acl = ((b"system.posix_acl_access", bytes(28)), (b"trusted.t", b""), (b"user.long", content(60_000)))
    shared = file(b"linked")
    link = symlink(b"s")
    root = directory(
        {
            b"empty": directory(),
            b"sub": directory({b"again": shared, b"link": link}, mode=0o1777),
            b"one": shared,
            b"two": shared,
            b"link": link,
            b"xattrs": file(content(4031), mode=0o4000, xattrs=acl),
            b"char": node(stat.S_IFCHR, os.makedev(4095, (1 << 20) - 1)),
            b"block": node(stat.S_IFBLK, os.makedev(259, 256)),
            b"whiteout": node(stat.S_IFCHR),
            b"fifo": node(stat.S_IFIFO),
            b"socket": node(stat.S_IFSOCK),
        }
    )
    root.uid, root.gid, root.mtime_ns = 4_294_967_294, 65536, -1
    read_back(MemorySource(root))


def test_sizes_targets_and_directories_at_the_boundaries() -> None:
    root = directory(
        {
            b"sizes": directory({b"%d" % n: file(content(n)) for n in SIZES}),
            b"targets": directory({b"%d" % n: symlink(b"t" * n) for n in TARGET_LENGTHS}),
            **{b"%d" % n: directory({x: file() for x in names_for_directory_bytes(n)}) for n in DIRECTORY_BYTES},
        }
    )
    reader = read_back(MemorySource(root))
    for size in DIRECTORY_BYTES:
        nid = reader.lookup(reader.root_nid, b"%d" % size)
        assert nid is not None
        assert reader.stat(nid).size == size


def test_a_root_with_other_xattrs() -> None:
    source = MemorySource(directory(xattrs=((b"user.mine", b"1"),)))
    device = MemoryDevice()
    write_filesystem(
        source, lambda at, d: device.write_at(at, bytes(d)), build_time=5, root_xattrs=((b"user.a", b"2"),)
    )
    device.write_at(4095, b"\0")  # the writer's caller makes whole blocks of it
    reader = ErofsReader(device)
    assert reader.listxattr(reader.root_nid) == [b"user.a"]


@pytest.mark.parametrize(
    ("name", "inode", "reason"),
    [
        (b"bad\n", file(xattrs=((b"system.nfs4_acl", b""),)), "no prefix"),
        (b"bad\n", file(xattrs=((b"user.a", bytes(65536)),)), "too long"),
        (b"bad\n", node(stat.S_IFCHR, os.makedev(4096, 0)), "too large"),
    ],
)
def test_what_cannot_be_kept_is_named(name: bytes, inode: Inode, reason: str) -> None:
    with pytest.raises(InputError, match=reason) as caught:
        write_image(MemorySource(directory({b"sub": directory({name: inode})})))
    assert "/sub/bad\\n" in str(caught.value)


def test_a_tree_of_more_than_32_bits_of_blocks_is_refused() -> None:
    class Huge(Sparse):
        def chunks(self, inode: Inode) -> Iterator[bytes]:
            yield b"x" * BLOCK

    with pytest.raises(InputError, match="limit of EROFS"):
        write_filesystem(Huge(1 << 45), lambda at, data: None, build_time=0)


NAMES = st.binary(min_size=1, max_size=255).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in {b".", b".."}
)
XATTRS = st.dictionaries(
    st.sampled_from([b"user.a", b"user.b", b"trusted.overlay.opaque", b"security.capability"]),
    st.binary(max_size=50),
    max_size=3,
).map(lambda x: tuple(sorted(x.items())))
CONTENTS = st.one_of(
    st.binary(max_size=40), st.builds(content, st.sampled_from(SIZES), st.integers(0, 2)), st.just(bytes(4096))
)
LEAVES = st.one_of(
    st.builds(file, CONTENTS, st.integers(0, 0o7777), XATTRS),
    st.builds(symlink, st.binary(min_size=1, max_size=4095).filter(lambda t: b"\0" not in t)),
    st.builds(node, st.just(stat.S_IFBLK), st.builds(os.makedev, st.integers(0, 4095), st.integers(0, 1048575))),
    st.builds(node, st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR])),
)


def _directories(below: st.SearchStrategy[Inode]) -> st.SearchStrategy[Inode]:
    return st.builds(directory, st.dictionaries(NAMES, below, max_size=12), st.integers(0, 0o7777), XATTRS)


@st.composite
def trees(draw: st.DrawFn) -> MemorySource:
    root = draw(_directories(st.recursive(LEAVES, _directories, max_leaves=25)))
    inodes = list(Tree(root).walk())
    numbers = st.integers(0, (1 << 32) - 1)
    for inode in draw(st.lists(st.sampled_from(inodes), max_size=4)):
        inode.uid, inode.gid, inode.mtime_ns = draw(numbers), draw(numbers), draw(st.integers(-(1 << 62), 1 << 62))
    parents = [i for i in inodes if i.is_directory]
    files = [i for i in inodes if not i.is_directory]
    if files:  # hard links
        for target in draw(st.lists(st.sampled_from(files), max_size=3)):
            parent, name = draw(st.sampled_from(parents)), draw(NAMES)
            if name not in parent.children:
                parent.add(name, target)
    return MemorySource(root)


@settings(deadline=None)
@given(trees())
def test_any_tree_reads_back(source: MemorySource) -> None:
    read_back(source)


# Second opinions


@needs_fsck
@pytest.mark.parametrize("seed", range(4))
def test_fsck_accepts_random_trees(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    root = directory()
    parents = [root]
    for number in range(300):
        name = rng.randbytes(rng.choice([1, 3, 40, 255])).translate(bytes.maketrans(b"/\0.", b"___"))
        child = rng.choice(
            [
                file(content(rng.choice([*SIZES, rng.randrange(20_000)]), number % 50)),
                symlink(b"t" * rng.choice(TARGET_LENGTHS)),
                directory(),
                node(rng.choice([stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])),
            ]
        )
        child.xattrs = ((b"user.a", bytes(rng.randrange(60))),) if rng.random() < 0.3 else ()
        parent = rng.choice(parents)
        if name not in parent.children:
            parent.add(name, child)
            if child.is_directory:
                parents.append(child)
    source = MemorySource(root)
    read_back(source)
    image = tmp_path / "image"
    image.write_bytes(write_image(source))
    fsck(image)


@pytest.fixture(scope="module")
def odd_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The odd tree and its filesystem image."""
    top = tmp_path_factory.mktemp("odd")
    with odd_tree(top / "tree") as tree:
        image = top / "image"
        image.write_bytes(write_image(DirectorySource(str(tree))))
        yield tree, image


@needs_root
@needs_fsck
def test_fsck_accepts_the_odd_tree_without_its_depth(tmp_path: Path) -> None:
    with odd_tree(tmp_path / "tree") as tree:
        remove_deep(tree / "deep")
        image = tmp_path / "image"
        image.write_bytes(write_image(DirectorySource(str(tree))))
        fsck(image)


@needs_root
def test_the_kernel_shows_the_odd_tree_as_it_was(odd_image: tuple[Path, Path], tmp_path: Path) -> None:
    tree, image = odd_image
    with kernel_mount(image, tmp_path / "mount") as mounted:
        assert differences(tree, mounted) == []


@needs_root
def test_the_kernel_agrees_on_blocks_and_xattrs_of_60_kib(tmp_path: Path) -> None:
    long = content(60_000)
    source = MemorySource(
        directory(
            {
                b"long": file(b"x", xattrs=((b"user.long", long),)),
                b"sizes": directory({b"%d" % n: file(content(n)) for n in SIZES}),
            }
        )
    )
    reader = read_back(source)
    image = tmp_path / "image"
    image.write_bytes(write_image(source))
    with kernel_mount(image, tmp_path / "mount") as mounted:
        assert os.getxattr(mounted / "long", "user.long") == long
        for path in (mounted, mounted / "sizes", *(mounted / "sizes").iterdir()):
            status = path.stat()
            assert reader.stat(status.st_ino).blocks == status.st_blocks, path
        assert os.statvfs(mounted).f_blocks == reader.statfs().blocks


@needs_root
@pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="mkfs.erofs (erofs-utils) is not installed")
@pytest.mark.parametrize("options", [["-x-1"], ["-x-1", "-T0"], ["-x-1", "-Eforce-inode-compact"]])
def test_an_image_of_mkfs_erofs_reads_back(tmp_path: Path, options: list[str]) -> None:
    """Foreign images have compact inodes, another block order and a metadata area of their own."""
    write_plain_tree(tmp_path / "tree")
    (tmp_path / "tree" / "names" / ("n" * 255)).unlink()  # mkfs.erofs 1.5 finds no such file
    image = tmp_path / "image"
    subprocess.run(["mkfs.erofs", *options, image, tmp_path / "tree"], check=True, capture_output=True)
    data = image.read_bytes()
    reader = ErofsReader(MemoryDevice(data))
    source = DirectorySource(str(tmp_path / "tree"))
    nids = {id(source.tree.root): reader.root_nid}
    for inode in source.tree.walk():
        nid = nids[id(inode)]
        assert reader.stat(nid).mode == inode.mode
        if inode.is_regular:
            assert reader.read(nid, 0, inode.size + 1) == b"".join(source.chunks(inode))
        elif inode.target:
            assert reader.readlink(nid) == inode.target
        for name, child in inode.children.items():
            below = reader.lookup(nid, name)
            assert below is not None
            nids[id(child)] = below
    assert find(source.tree.root, b"sizes/4097").nlink == 3
