# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import errno
import itertools
import random
import stat
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.erofs import format as fmt
from rofs.erofs import reader as module
from rofs.erofs.reader import ErofsReader
from rofs.errors import FormatError, ImageError
from rofs.tree import Inode
from tests.trees import content, directory, file, node, symlink

from .builder import LyingFilesystem, compare_with_tree

Lie = Callable[[LyingFilesystem], object]


def tree() -> Inode:
    """Every kind of thing once, and things that must survive when it is broken."""
    return directory(
        {
            b"dir": directory({b"aa": file(b"a"), b"bb": file(b"b"), b"cc": directory()}),
            b"file": file(content(5000), xattrs=((b"user.one", b"value"), (b"user.two", b"other"))),
            b"inline": file(b"inline"),
            b"plain": file(content(4096)),
            b"symlink": symlink(b"target/of/it"),
            b"char": node(stat.S_IFCHR, 0x0103),
            b"fifo": node(stat.S_IFIFO),
            b"zz-fine": file(content(6000, 1), xattrs=((b"user.fine", b"yes"),)),
        }
    )


def use_everything(reader: ErofsReader, nid: int) -> None:
    """Every call that fits an inode; directories are not followed."""
    mode = reader.stat(nid).mode
    for name in reader.listxattr(nid):
        reader.getxattr(nid, name)
    reader.extents(nid)
    if stat.S_ISDIR(mode):
        for entry in itertools.islice(reader.readdir(nid), 10_000):
            reader.lookup(nid, entry.name)
    elif stat.S_ISREG(mode):
        reader.read(nid, 0, 1 << 20)
    elif stat.S_ISLNK(mode):
        reader.readlink(nid)


def test_a_sound_image_reads_back() -> None:
    image = LyingFilesystem(tree())
    compare_with_tree(image.reader(), image.source)


@pytest.mark.parametrize(
    ("path", "lie", "reason"),
    [
        pytest.param(b"dir", lambda i: i.rename_entry(b"dir", b"bb", b"b/"), "malformed name", id="name with /"),
        pytest.param(b"dir", lambda i: i.rename_entry(b"dir", b"bb", b"b\0"), "malformed name", id="name with NUL"),
        pytest.param(b"dir", lambda i: i.rename_entry(b"dir", b"cc", b"\0c"), "malformed name", id="empty last name"),
        pytest.param(b"dir", lambda i: i.set_entry(b"dir", b"bb", nameoff=63), "malformed name", id="empty name"),
        pytest.param(
            b"dir", lambda i: i.set_entry(b"dir", b"bb", nameoff=9999), "malformed name", id="nameoff outside"
        ),
        pytest.param(
            b"dir", lambda i: i.set_entry(b"dir", b"cc", nameoff=61), "malformed name", id="nameoff unordered"
        ),
        pytest.param(b"dir", lambda i: i.set_entry(b"dir", b".", nameoff=59), "first name", id="nameoff odd"),
        pytest.param(b"dir", lambda i: i.set_entry(b"dir", b".", nameoff=0), "first name", id="nameoff zero"),
        pytest.param(b"dir", lambda i: i.set_entry(b"dir", b".", nameoff=0xFFFC), "first name", id="nameoff huge"),
        pytest.param(b"dir", lambda i: i.set_inode(b"dir", i_size=11), "block of 11 bytes", id="directory too short"),
        pytest.param(b"dir", lambda i: i.set_inode(b"dir", i_size=1 << 62), "size of", id="directory of 4 EiB"),
        pytest.param(b"plain", lambda i: i.set_inode(b"plain", i_size=1 << 63), "size", id="size of 2^63"),
        pytest.param(b"plain", lambda i: i.set_inode(b"plain", i_size=(1 << 63) - 1), "outside", id="size of 2^63-1"),
        pytest.param(b"plain", lambda i: i.set_inode(b"plain", i_u=0xFFFFFFFF), "outside", id="content outside"),
        pytest.param(b"inline", lambda i: i.set_inode(b"inline", i_size=4095), "crosses", id="inline tail crossing"),
        pytest.param(b"inline", lambda i: i.set_inode(b"inline", i_format=1 | 1 << 1), "compressed", id="compressed"),
        pytest.param(
            b"inline", lambda i: i.set_inode(b"inline", i_format=1 | 3 << 1), "compressed", id="compact index"
        ),
        pytest.param(b"inline", lambda i: i.set_inode(b"inline", i_format=1 | 4 << 1), "chunk-based", id="chunk-based"),
        pytest.param(b"inline", lambda i: i.set_inode(b"inline", i_format=1 | 7 << 1), "i_format", id="layout 7"),
        pytest.param(b"inline", lambda i: i.set_inode(b"inline", i_format=1 | 1 << 5), "i_format", id="format bit 5"),
        pytest.param(b"inline", lambda i: i.set_inode(b"inline", i_mode=0o644), "file type", id="no file type"),
        pytest.param(b"inline", lambda i: i.set_inode(b"inline", i_mode=0xF000), "file type", id="unknown file type"),
        pytest.param(b"inline", lambda i: i.set_inode(b"inline", i_nlink=0), "nlink 0", id="no links"),
        pytest.param(b"inline", lambda i: i.set_inode(b"inline", i_mtime_nsec=10**9), "nanosec", id="10^9 nanoseconds"),
        pytest.param(
            b"file", lambda i: i.set_bytes(b"file", 14, b"\xff\xff"), "does not fit", id="xattr value too long"
        ),
        pytest.param(b"file", lambda i: i.set_bytes(b"file", 12, b"\xff"), "does not fit", id="xattr name too long"),
        pytest.param(b"file", lambda i: i.set_bytes(b"file", 13, b"\x05"), "prefix 5", id="xattr prefix unknown"),
        pytest.param(b"file", lambda i: i.set_bytes(b"file", 4, b"\x01"), "shared", id="shared xattrs"),
        pytest.param(b"file", lambda i: i.set_inode(b"file", i_xattr_icount=65535), "outside", id="xattr area outside"),
        pytest.param(b"symlink", lambda i: i.set_inode(b"symlink", i_size=0), "0 bytes", id="symlink without target"),
        pytest.param(b"symlink", lambda i: i.set_inode(b"symlink", i_size=4096), "4096", id="symlink too long"),
        pytest.param(b"symlink", lambda i: i.set_inode(b"symlink", i_size=1 << 62), "target of", id="symlink of 4 EiB"),
        pytest.param(b"symlink", lambda i: i.set_bytes(b"symlink", 3, b"\0"), "NUL", id="symlink with NUL"),
    ],
)
def test_a_malformed_object_harms_no_other(path: bytes, lie: Lie, reason: str) -> None:
    image = LyingFilesystem(tree())
    lie(image)
    reader = image.reader()
    broken = reader.lookup(reader.root_nid, path)
    assert broken is not None
    with pytest.raises(FormatError, match=reason):
        use_everything(reader, broken)
    for entry in reader.readdir(reader.root_nid):
        if entry.nid != broken:
            use_everything(reader, entry.nid)
    fine = reader.lookup(reader.root_nid, b"zz-fine")
    assert fine is not None
    assert reader.read(fine, 0, 6000) == content(6000, 1)
    assert reader.getxattr(fine, b"user.fine") == b"yes"


@pytest.mark.parametrize("nid", [-1, -(1 << 63), 0, 35, 1 << 20, (1 << 64) - 1, 1 << 70])
def test_a_nid_that_is_none(nid: int) -> None:
    reader = LyingFilesystem(tree()).reader()
    with pytest.raises(FormatError, match="outside"):
        reader.stat(nid)
    with pytest.raises(FormatError, match="outside"):
        reader.inode_extent(nid)


@pytest.mark.parametrize("nid", [0, 1 << 20, (1 << 64) - 1])
def test_an_entry_that_leads_nowhere(nid: int) -> None:
    reader = LyingFilesystem(tree()).set_entry(b"dir", b"bb", nid=nid).reader()
    entries = list(reader.readdir(LyingFilesystem(tree()).nid(b"dir")))
    assert [e.name for e in entries] == [b".", b"..", b"aa", b"bb", b"cc"]
    with pytest.raises(FormatError):
        reader.stat(entries[3].nid)
    use_everything(reader, entries[2].nid)


def test_a_directory_that_contains_itself() -> None:
    image = LyingFilesystem(tree())
    nid = image.nid(b"dir")
    reader = image.set_entry(b"dir", b"cc", nid=nid).reader()
    for _ in range(3000):
        below = reader.lookup(nid, b"cc")
        assert below == nid


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"magic": 0}, "magic"),
        ({"blkszbits": 0}, "block size"),
        ({"blkszbits": 9}, "block size"),
        ({"blkszbits": 255}, "block size"),
        ({"blocks": 1 << 31}, "do not fit"),
        ({"blocks": 0xFFFFFFFF}, "do not fit"),
        ({"meta_blkaddr": 0xFFFFFFFF}, "do not fit"),
        ({"sb_extslots": 1}, "superblock extension"),
        ({"feature_incompat": 0x2}, "compression configurations or big physical clusters"),
        ({"feature_incompat": 0x4}, "chunk-based files"),
        ({"feature_incompat": 0x8}, "a device table or a second compression head"),
        ({"feature_incompat": 0x1 | 0x10}, "ztailpacking"),
        ({"feature_incompat": 0x1 | 0x20}, "fragments or dedup"),
        ({"feature_incompat": 0x4 | 0x40}, "chunk-based files, long xattr name prefixes"),
        ({"feature_incompat": 0x80}, "48-bit"),
        ({"feature_incompat": 0x100}, "metabox"),
        ({"feature_incompat": 0x200}, "bit 9"),
        ({"feature_incompat": 0x80000000}, "bit 31"),
        ({"dirblkbits": 1}, r"directory blocks of 2\^1 filesystem blocks"),
        ({"dirblkbits": 255}, "directory blocks"),
        ({"build_time_nsec": 10**9}, "nanoseconds 1000000000"),
        ({"build_time_nsec": 0xFFFFFFFF}, "nanoseconds"),
    ],
)
def test_a_superblock_that_is_refused(fields: dict[str, int], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        LyingFilesystem(tree()).set_super(**fields).reader()


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_first_block_does_not_fit_its_checksum(seed: int) -> None:
    image = LyingFilesystem(tree())
    at = random.Random(seed).randrange(fmt.SUPER_OFFSET, 4096)
    image.data[at] ^= 1
    with pytest.raises(FormatError):
        image.reader()


def test_a_superblock_without_checksum_is_accepted() -> None:
    image = LyingFilesystem(tree()).set_super(feature_compat=0, checksum=0)
    compare_with_tree(image.reader(), image.source)


@pytest.mark.parametrize("root_nid", [0, 37, 0xFFFF])
def test_a_root_that_is_none(root_nid: int) -> None:
    reader = LyingFilesystem(tree()).set_super(root_nid=root_nid).reader()
    with pytest.raises((FormatError, NotADirectoryError)):
        list(reader.readdir(reader.root_nid))


@pytest.mark.parametrize("length", [0, 1, 1024, 1151, 1152, 4095, 4096, 8192])
def test_a_truncated_device(length: int) -> None:
    with pytest.raises(FormatError):
        LyingFilesystem(tree()).truncate(length).reader()


def test_calls_that_do_not_fit_the_inode() -> None:
    image = LyingFilesystem(tree())
    reader = image.reader()
    with pytest.raises(NotADirectoryError):
        list(reader.readdir(image.nid(b"file")))
    with pytest.raises(NotADirectoryError):
        reader.lookup(image.nid(b"file"), b"x")
    with pytest.raises(OSError, match="Invalid argument") as caught:
        reader.readlink(image.nid(b"file"))
    assert caught.value.errno == errno.EINVAL
    for path in (b"dir", b"fifo", b"char", b"symlink"):
        with pytest.raises(FormatError, match="regular"):
            reader.read(image.nid(path), 0, 1)


def test_reads_are_cut_at_the_end_and_never_reach_others() -> None:
    image = LyingFilesystem(tree())
    reader, nid = image.reader(), image.nid(b"file")
    whole = content(5000)
    for offset, length in itertools.product((0, 1, 4095, 4096, 4097, 4999, 5000, 5001, 1 << 62), (0, 1, 904, 5000)):
        assert reader.read(nid, offset, length) == whole[offset : offset + length]
    assert reader.read(nid, 0, -1) == b""
    assert reader.getxattr(nid, b"user.none") is None


def test_readdir_continues_anywhere() -> None:
    names = {b"%03d" % n * 20: file() for n in range(300)}
    image = LyingFilesystem(directory(names))
    reader = image.reader()
    entries = list(reader.readdir(reader.root_nid))
    assert len(entries) == 302
    offsets = [e.next_offset for e in entries]
    assert offsets == sorted(set(offsets))
    for number, entry in enumerate(entries):
        assert list(reader.readdir(reader.root_nid, entry.next_offset)) == entries[number + 1 :]
    assert list(reader.readdir(reader.root_nid, 1 << 62)) == []
    for name in (b"", b"!", b"000", b"~", b"150" * 20 + b"x", b"x" * 300):
        assert reader.lookup(reader.root_nid, name) is None


def test_extents_cover_every_byte_of_the_content() -> None:
    image = LyingFilesystem(tree())
    reader = image.reader()
    for path in (b"dir", b"file", b"inline", b"plain", b"symlink"):
        nid = image.nid(path)
        size = reader.stat(nid).size
        covered = sorted(
            (e.file_offset_bytes, e.length_bytes) for e in reader.extents(nid)[1:] if e.file_offset_bytes is not None
        )
        at = 0
        for offset, length in covered:
            assert offset == at
            at += length
        assert at == size
    assert len(reader.extents(image.nid(b"char"))) == 1
    assert reader.inode_extent(image.nid(b"file")).length_bytes == 64


@pytest.mark.parametrize("size", [1, 100, 4031, 4032, 4095, 4096, 4097, 8192, 10_000])
def test_extents_are_where_reads_go(size: int) -> None:
    """One map behind both: what `extents` names is what the device is asked for, byte by byte."""
    image = LyingFilesystem(directory({b"file": file(content(size)), b"link": symlink(b"t" * min(size, 4095))}))
    reader = image.reader()
    for path, data in ((b"file", content(size)), (b"link", b"t" * min(size, 4095))):
        extents = reader.extents(image.nid(path))
        found = b"".join(
            bytes(image.data[e.offset_bytes : e.offset_bytes + e.length_bytes])
            for e in extents
            if e.file_offset_bytes is not None
        )
        assert found == data


def test_a_device_number_is_no_place() -> None:
    """Of a device node with a size, as a liar makes it: i_u is not an address there."""
    image = LyingFilesystem(tree()).set_inode(b"char", i_size=5000)
    reader = image.reader()
    assert [e.file_offset_bytes for e in reader.extents(image.nid(b"char"))] == [None]


def test_caches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_METADATA_CACHE_BYTES", 8192)
    monkeypatch.setattr(module, "_INODE_CACHE_BYTES", 2000)
    monkeypatch.setattr(module, "_DIRECTORY_CACHE_BYTES", 20_000)
    image = LyingFilesystem(directory({b"%03d" % n * 50: file(b"%d" % n) for n in range(300)}))
    reader = image.reader()
    compare_with_tree(reader, image.source)
    used = (reader._metadata.used_bytes, reader._inodes.used_bytes, reader._directories.used_bytes)
    assert all(0 < used_bytes <= limit for used_bytes, limit in zip(used, (8192, 2000, 20_000), strict=True))


def walk_bounded(reader: ErofsReader, limit: int = 300) -> None:
    """Walk a hostile tree as far as it lets us; only what the protocol allows may come out."""
    pending = [reader.root_nid]
    seen: set[int] = set()
    while pending and len(seen) < limit:
        nid = pending.pop()
        if nid in seen:
            continue
        seen.add(nid)
        for call in (lambda n: use_everything(reader, n), reader.inode_extent, reader.extents):
            with contextlib.suppress(ImageError):
                call(nid)
        with contextlib.suppress(ImageError, NotADirectoryError):
            pending.extend(e.nid for e in itertools.islice(reader.readdir(nid), 200))
        with contextlib.suppress(ImageError, OSError):
            reader.readlink(nid)


MUTATED = LyingFilesystem(tree())
METADATA_BYTES = 4096


@given(
    st.lists(
        st.tuples(st.integers(fmt.SUPER_OFFSET + 8, METADATA_BYTES - 1), st.integers(0, 255)), min_size=1, max_size=12
    )
)
def test_mutated_metadata_only_raises_what_a_reader_may(changes: list[tuple[int, int]]) -> None:
    image = LyingFilesystem.__new__(LyingFilesystem)
    image.data = bytearray(MUTATED.data)
    for at, value in changes:
        image.data[at] = value
    image.seal()
    with contextlib.suppress(ImageError):
        walk_bounded(image.reader())


@given(st.sampled_from([b"dir", b"file", b"inline", b"symlink", b"char", b""]), st.binary(min_size=64, max_size=64))
def test_any_inode(path: bytes, data: bytes) -> None:
    image = LyingFilesystem.__new__(LyingFilesystem)
    image.data = bytearray(MUTATED.data)
    at = MUTATED.nid(path) * fmt.SLOT_BYTES
    # A plausible format and type, so that the checks behind them are reached.
    mode = random.Random(data).choice([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK]) | 0o644
    image.data[at : at + 64] = struct.pack("<HHH", 1 | (data[0] & 2) << 1, data[1] & 3, mode) + data[6:]
    image.seal()
    walk_bounded(image.reader())
