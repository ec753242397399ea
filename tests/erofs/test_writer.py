# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rofs.erofs import contents, writer
from rofs.erofs import format as fmt
from rofs.erofs.reader import ErofsReader
from rofs.erofs.writer import write_filesystem
from rofs.errors import InputError
from rofs.pieces import filled
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
    settle,
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


class Huge:
    """A huge file that is never in memory as a whole."""

    def __init__(self, size: int) -> None:
        huge = Inode(mode=stat.S_IFREG | 0o644, size=size)
        self.tree = Tree(directory({b"huge": huge}))
        self.asked = 0
        self.filler = b"x"

    def contents(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        self.asked += 1
        chunk = self.filler * (1 << 20)
        for offset in range(0, inode.size, len(chunk)):
            yield offset, chunk[: inode.size - offset]


def test_contents_are_streamed() -> None:
    written = []
    source = Huge((256 << 20) + 5)
    tracemalloc.start()
    try:
        result = write_filesystem(source, lambda at, data: written.append(len(data)), build_time=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.blocks == 1 + (256 << 20) // BLOCK
    assert max(written) <= 1 << 20
    assert source.asked == 2  # once for its holes
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


# Holes


HOLE = bytes(1 << 20)
ISLANDS = HOLE + b"island" + HOLE[:-6] + content(5000) + HOLE


def write_sparse(path: Path, data: bytes) -> None:
    """Write what is not zeros, and leave the rest a hole."""
    with path.open("wb") as new:
        new.truncate(len(data))
        for at in range(0, len(data), BLOCK):
            if any(data[at : at + BLOCK]):
                new.seek(at)
                new.write(data[at : at + BLOCK])


def test_a_sparse_copy_and_a_full_one_become_the_same_image(tmp_path: Path) -> None:
    images = []
    for name, write in (("sparse", write_sparse), ("full", Path.write_bytes)):
        tree = tmp_path / name
        tree.mkdir()
        write(tree / "file", ISLANDS)
        write(tree / "zeros", HOLE)
        settle(tree)
        images.append(write_image(DirectorySource(str(tree))))
    assert (tmp_path / "sparse" / "file").stat().st_blocks < (tmp_path / "full" / "file").stat().st_blocks
    assert images[0] == images[1]
    assert len(images[0]) < 50_000


@pytest.mark.parametrize("chunk_bytes", [7, 4095, 4097, 70_000])
def test_the_size_of_pieces_does_not_move_holes(chunk_bytes: int) -> None:
    def tree() -> Inode:
        return directory({b"islands": file(ISLANDS), b"behind": file(content(9000)), b"hole": file(HOLE + b"x")})

    assert write_image(MemorySource(tree(), chunk_bytes=chunk_bytes)) == write_image(MemorySource(tree()))


def layout_of(reader: ErofsReader, name: bytes) -> int:
    nid = reader.lookup(reader.root_nid, name)
    assert nid is not None
    return reader._inode(nid).layout


def test_only_what_saves_something_becomes_chunk_based() -> None:
    source = MemorySource(
        directory({b"small": file(bytes(65_536)), b"data": file(content(300_000)), b"zeros": file(bytes(70_000))})
    )
    reader = read_back(source)
    assert layout_of(reader, b"small") == fmt.LAYOUT_FLAT_PLAIN
    assert layout_of(reader, b"data") == fmt.LAYOUT_FLAT_INLINE
    assert layout_of(reader, b"zeros") == fmt.LAYOUT_CHUNK_BASED


def test_only_chunk_based_files_need_a_feature_of_the_reader() -> None:
    def feature_incompat(data: bytes) -> int:
        image = write_image(MemorySource(directory({b"file": file(data)})))
        return fmt.parse_superblock(image, len(image)).feature_incompat

    assert feature_incompat(content(100_000)) == 0
    assert feature_incompat(HOLE) == fmt.FEATURE_INCOMPAT_CHUNKED_FILE


def test_equal_contents_with_holes_are_stored_once() -> None:
    one = write_image(MemorySource(directory({b"a": file(ISLANDS)})))
    source = MemorySource(directory({b"a": file(ISLANDS), b"b": file(ISLANDS), b"c": file(content(BLOCK, 9))}))
    read_back(source)
    assert len(write_image(source)) == len(one) + BLOCK


def test_zeros_inside_of_a_chunk_are_written_over_what_was_there() -> None:
    """A copy of earlier data lies where the zeros of a chunk go."""
    earlier = content(64 * BLOCK)
    data = bytearray(HOLE * 16)
    for at in (0, 2 * BLOCK):
        data[at : at + 5] = b"data!"
    source = MemorySource(
        directory({b"a": file(earlier), b"b": file(earlier), b"c": file(bytes(data)), b"d": file(bytes(data[:-10]))})
    )
    reader = read_back(source)
    assert layout_of(reader, b"c") == fmt.LAYOUT_CHUNK_BASED
    nid = reader.lookup(reader.root_nid, b"c")
    assert nid is not None
    assert reader._inode(nid).chunk_blkbits > 0


BLOCKS = st.lists(
    st.sampled_from([bytes(BLOCK), bytes(BLOCK), content(BLOCK, 1), bytes(BLOCK - 1) + b"x"]), min_size=17, max_size=80
)


@settings(max_examples=50)
@given(st.lists(st.tuples(BLOCKS, st.sampled_from([b"", b"tail", bytes(100)])), min_size=1, max_size=3))
def test_any_holes_read_back(contents: list[tuple[list[bytes], bytes]]) -> None:
    files = {b"%d" % n: file(b"".join(blocks) + tail) for n, (blocks, tail) in enumerate(contents)}
    read_back(MemorySource(directory(files)))


def test_a_huge_hole_is_neither_kept_nor_written() -> None:
    source = Huge(5 << 30)
    source.filler = b"\0"
    written = []
    tracemalloc.start()
    try:
        result = write_filesystem(source, lambda at, data: written.append(len(data)), build_time=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.blocks == 1
    assert sum(written) < BLOCK
    assert peak < 16 << 20


def test_progress_counts_holes() -> None:
    done: list[int] = []
    source = MemorySource(directory({b"a": file(ISLANDS), b"b": file(HOLE), b"c": file(content(5000))}))
    write_filesystem(source, lambda at, data: None, build_time=0, progress=done.append)
    assert sum(done) == len(ISLANDS) + len(HOLE) + 5000


# Block sizes


@pytest.mark.parametrize("bits", range(fmt.MIN_BLOCK_BITS, fmt.MAX_BLOCK_BITS + 1))
def test_any_block_size_reads_back(monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """The writer is made to use block sizes that rofs never writes, and few tools here can."""
    monkeypatch.setattr(writer, "BLOCK_BITS", bits)
    monkeypatch.setattr(writer, "BLOCK_BYTES", 1 << bits)
    root = directory(
        {
            b"sizes": directory({b"%d" % n: file(content(n)) for n in (*SIZES, 65_535, 65_536, 65_537)}),
            b"many": directory({b"%04d" % n * 3: file() for n in range(3000)}),
            b"xattrs": file(b"tail", xattrs=((b"user.a", content(3000)), (b"user.b", b"b"))),
            b"holes": file(ISLANDS),
            b"link": symlink(b"t" * 4095),
        }
    )
    source = MemorySource(root)
    device = MemoryDevice()
    result = write_filesystem(source, lambda at, d: device.write_at(at, bytes(d)), build_time=0)
    device.content = device.content[: result.blocks << bits].ljust(result.blocks << bits, b"\0")
    if bits <= 10:  # the superblock is not in the first block, whose checksum the writer makes
        device.write_at(fmt.SUPER_OFFSET + 4, struct.pack("<I", checksum_of(device.content)))
    compare_with_tree(ErofsReader(device), source)


def checksum_of(data: bytearray) -> int:
    return fmt.superblock_checksum(bytes(data[: fmt.superblock_span_bytes(bytes(data[:4096]))]))


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
    extent = list(reader.extents(nid))[1]
    assert image[extent.offset_bytes :] == b"t" * 4095 + b"\0"


@pytest.mark.parametrize("xattr_bytes", [0, 1, 5, 20, 100, 4000, 4096, 60_000])
def test_inline_tails_stay_inside_a_block(xattr_bytes: int) -> None:
    xattrs = ((b"user.a", content(xattr_bytes)),) if xattr_bytes else ()
    tails = [0, 1, 31, 32, 100, 2000, 3990, *range(4025, 4040), 4095]
    source = MemorySource(directory({b"%04d" % n: file(content(n), xattrs=xattrs) for n in tails}))
    reader = read_back(source)
    for entry in reader.readdir(reader.root_nid):
        for extent in list(reader.extents(entry.nid))[1:]:
            assert extent.offset_bytes // BLOCK == (extent.offset_bytes + extent.length_bytes - 1) // BLOCK


def test_a_tree_of_small_files_wastes_little() -> None:
    sizes = [random.Random(n).randrange(4032) for n in range(2000)]
    image = write_image(MemorySource(directory({b"%04d" % n: file(content(size, n)) for n, size in enumerate(sizes)})))
    used = sum(sizes) + 64 * len(sizes) + (12 + 4) * len(sizes)
    assert len(image) < used * 1.15


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


def test_a_tree_of_more_than_32_bits_of_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "_MAX_BLOCKS", 1000)
    with pytest.raises(InputError, match="limit of EROFS"):
        write_filesystem(Huge(1000 * BLOCK), lambda at, data: None, build_time=0)


class Sparse:
    """A file with single bytes at some places, and holes that it knows of between."""

    def __init__(self, size: int, places: Iterable[int]) -> None:
        self.tree = Tree(directory({b"sparse\n": Inode(mode=stat.S_IFREG | 0o644, size=size)}))
        self._places = places

    def contents(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        for place in self._places:
            yield place, b"x"


def test_a_file_longer_than_all_blocks_is_refused() -> None:
    with pytest.raises(InputError, match=rf"/sparse\\n cannot be kept .* it has {1 << 44} bytes, holes included"):
        write_filesystem(Sparse(1 << 44, []), lambda at, data: None, build_time=0)


def test_the_longest_file_with_a_byte_at_both_ends() -> None:
    size = ((1 << 32) - 1) * BLOCK
    reader = ErofsReader(MemoryDevice(write_image(Sparse(size, [0, size - 1]))))
    assert reader.statfs().blocks < 12_000
    nid = reader.lookup(reader.root_nid, b"sparse\n")
    assert nid is not None
    assert reader.read(nid, size - 1, 2) == b"x"


def test_data_scattered_over_a_huge_hole_is_refused() -> None:
    """Table and padding would be a thousand times the data."""
    size = 8 << 40
    places = range(0, size, size // 20_000)
    with pytest.raises(InputError, match=r"/sparse\\n cannot be kept .* scattered over .* chunk table .* would take"):
        write_filesystem(Sparse(size, places), lambda at, data: None, build_time=0)


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
            assert reader.read(nid, 0, inode.size + 1) == b"".join(filled(source.contents(inode), inode.size))
        elif inode.target:
            assert reader.readlink(nid) == inode.target
        for name, child in inode.children.items():
            below = reader.lookup(nid, name)
            assert below is not None
            nids[id(child)] = below
    assert find(source.tree.root, b"sizes/4097").nlink == 3
