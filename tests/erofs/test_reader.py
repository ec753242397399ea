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
from rofs.lru import ByteLru
from rofs.tree import Inode
from tests.trees import content, directory, file, node, symlink
from tests.verity.doubles import MemoryDevice

from .builder import LyingFilesystem, compare_with_tree

Lie = Callable[[LyingFilesystem], object]
BLOCK = 4096
CHUNKED = 1 | fmt.LAYOUT_CHUNK_BASED << 1


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
        pytest.param(b"plain", lambda i: i.set_inode(b"plain", i_u=0xFFFFFFFE), "outside", id="content outside"),
        pytest.param(b"inline", lambda i: i.set_inode(b"inline", i_size=4095), "crosses", id="inline tail crossing"),
        pytest.param(b"inline", lambda i: i.set_inode(b"inline", i_format=1 | 1 << 1), "compressed", id="compressed"),
        pytest.param(
            b"inline", lambda i: i.set_inode(b"inline", i_format=1 | 3 << 1), "compressed", id="compact index"
        ),
        pytest.param(
            b"inline", lambda i: i.set_inode(b"inline", i_format=CHUNKED, i_u=0x40), "48-bit", id="48-bit chunks"
        ),
        pytest.param(
            b"inline", lambda i: i.set_inode(b"inline", i_format=CHUNKED, i_u=0x80), "chunk format", id="chunk format"
        ),
        pytest.param(
            b"plain",
            lambda i: i.set_inode(b"plain", i_format=CHUNKED, i_u=0, i_size=1 << 62),
            "chunk table of",
            id="chunk table of 2^52 bytes",
        ),
        pytest.param(
            b"plain",
            lambda i: i.set_inode(b"plain", i_format=CHUNKED, i_u=0x20, i_size=1 << 62),
            "chunk table of",
            id="chunk indexes of 2^53 bytes",
        ),
        pytest.param(
            b"inline",
            lambda i: i.set_inode(b"inline", i_format=CHUNKED, i_u=0).set_bytes(b"inline", 0, b"\xfe\xff\xff\xff"),
            "outside",
            id="chunk outside",
        ),
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
        pytest.param(b"file", lambda i: i.set_bytes(b"file", 13, b"\x80"), "prefix 128", id="long prefix missing"),
        pytest.param(b"file", lambda i: i.set_bytes(b"file", 4, b"\xff"), "255 shared", id="too many shared xattrs"),
        pytest.param(
            b"file",
            lambda i: i.set_bytes(b"file", 4, b"\x01" + bytes(7) + b"\xff" * 4 + bytes(20)),
            "outside",
            id="shared xattr outside",
        ),
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


@pytest.mark.parametrize(("old", "new"), [(b"bb", b"dd"), (b"bb", b"aa"), (b"aa", b"cb"), (b"cc", b"!!")])
def test_names_out_of_order_are_no_names(old: bytes, new: bytes) -> None:
    """A search would miss them, so whether a name is there would depend on how one asks."""
    image = LyingFilesystem(tree())
    nid = image.nid(b"dir")
    reader = image.rename_entry(b"dir", old, new).reader()
    for ask in (lambda: list(reader.readdir(nid)), lambda: reader.lookup(nid, b"cc"), lambda: reader.lookup(nid, b"x")):
        with pytest.raises(FormatError, match="out of order"):
            ask()


def test_blocks_out_of_order_are_found_out_before_a_name_is_missed() -> None:
    names = [b"%03d" % n * 20 for n in range(300)]
    image = LyingFilesystem(directory({b"dir": directory({name: file() for name in names})}))
    nid = image.nid(b"dir")
    start = list(image.reader().extents(nid))[1].offset_bytes
    blocks = [bytes(image.data[at : at + BLOCK]) for at in range(start, start + 4 * BLOCK, BLOCK)]
    image.data[start : start + 4 * BLOCK] = blocks[0] + blocks[2] + blocks[1] + blocks[3]
    reader = image.reader()
    with pytest.raises(FormatError, match="the names of block 2 are out of order"):
        list(reader.readdir(nid))
    missed = 0
    for name in (*names, b"not there"):
        try:
            assert reader.lookup(nid, name) is not None
        except FormatError:
            missed += 1
    assert missed > 50


def test_a_directory_is_checked_once() -> None:
    image = LyingFilesystem(directory({b"%03d" % n * 20: file() for n in range(300)}))
    device = MemoryDevice(bytes(image.data))
    reader = ErofsReader(device)
    assert reader.lookup(reader.root_nid, b"not there") is None
    reader._directories = ByteLru(0)
    reader._metadata.cache = ByteLru(0)
    device.reads.clear()
    assert reader.lookup(reader.root_nid, b"not there") is None
    assert len(device.reads) <= 5  # of 6 blocks


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
        ({"blkszbits": 8}, "block size"),
        ({"blkszbits": 17}, "block size"),
        ({"blkszbits": 255}, "block size"),
        ({"blocks": 1 << 31}, "do not fit"),
        ({"blocks": 0xFFFFFFFF}, "do not fit"),
        ({"meta_blkaddr": 0xFFFFFFFF}, "do not fit"),
        ({"sb_extslots": 1}, "superblock extension"),
        ({"feature_incompat": 0x2}, "compression configurations or big physical clusters"),
        ({"feature_incompat": 0x8}, r"a device table \(contents on other devices\) or a second compression head"),
        ({"feature_incompat": 0x1 | 0x10}, "ztailpacking"),
        ({"feature_incompat": 0x1 | 0x20}, "fragments or dedup"),
        ({"feature_incompat": 0x2 | 0x10}, "big physical clusters, inlined compressed tails"),
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


# Xattrs that others write


def entry(index: int, suffix: bytes, value: bytes) -> bytes:
    packed = bytes([len(suffix), index]) + len(value).to_bytes(2, "little") + suffix + value
    return packed + bytes(-len(packed) % 4)


def with_shared(shared: bytes, number: int = 0) -> LyingFilesystem:
    """`file`, whose own xattrs give way to one shared entry, which stands in a block of its own at `plain`."""
    image = LyingFilesystem(tree())
    start, _ = image.content_place(b"plain")
    image.data[start : start + len(shared)] = shared
    image.set_bytes(b"file", 4, b"\1" + bytes(7) + number.to_bytes(4, "little"))
    # What is left of the area: one entry that hides nothing, then fillers.
    image.set_bytes(b"file", 16, entry(1, b"own", b"1").ljust(20, b"\0"))
    return image.set_super(xattr_blkaddr=start // BLOCK)


def xattrs_of(reader: ErofsReader, nid: int) -> dict[bytes, bytes | None]:
    return {name: reader.getxattr(nid, name) for name in reader.listxattr(nid)}


@pytest.mark.parametrize("number", [0, 5, 1020])
def test_shared_xattrs(number: int) -> None:
    image = with_shared(bytes(number * 4) + entry(6, b"selinux", b"label\0"), number)
    reader = image.reader()
    assert xattrs_of(reader, image.nid(b"file")) == {b"user.own": b"1", b"security.selinux": b"label\0"}
    place = image.content_place(b"plain")[0] + number * 4
    assert [e.offset_bytes for e in reader.extents(image.nid(b"file"))][1] == place


def test_of_two_xattrs_of_a_name_the_inode_has_its_own() -> None:
    image = with_shared(entry(1, b"own", b"shared"))
    assert xattrs_of(image.reader(), image.nid(b"file")) == {b"user.own": b"1"}


def with_prefixes(records: bytes, count: int, *, packed: bool) -> LyingFilesystem:
    """`user.one` of `file` gets the first long prefix; the prefixes stand 4 bytes into the content of `plain`."""
    image = LyingFilesystem(tree())
    start, _ = image.content_place(b"plain")
    image.data[start + 4 : start + 4 + len(records)] = records
    image.set_bytes(b"file", 13, b"\x80")
    fields = {"xattr_prefix_count": count, "xattr_prefix_start": 1, "packed_nid": image.nid(b"plain")}
    if packed:
        return image.set_super(**fields, feature_incompat=0x60)
    return image.set_super(**{**fields, "xattr_prefix_start": start // 4 + 1}, feature_incompat=0x40)


PREFIXES = b"\x0c\0\x04overlay.foo" + bytes(2) + b"\x04\0\x01abc"


@pytest.mark.parametrize("packed", [False, True])
def test_long_name_prefixes(packed: bool) -> None:
    image = with_prefixes(PREFIXES, 2, packed=packed)
    found = xattrs_of(image.reader(), image.nid(b"file"))
    assert found == {b"trusted.overlay.fooone": b"value", b"user.two": b"other"}


@pytest.mark.parametrize(
    ("records", "count", "reason"),
    [
        pytest.param(b"\0\0", 1, "malformed", id="empty"),
        pytest.param(b"\x02\0\x05x", 1, "malformed", id="base index unknown"),
        pytest.param(b"\x02\x01\x01", 1, "malformed", id="longer than a name"),
        pytest.param(b"\xff\xff\x01", 1, "lies outside|, which has 4096 bytes", id="beyond the end"),
        pytest.param(PREFIXES, 0, "prefix 128", id="none at all"),
        pytest.param(PREFIXES + bytes(8), 255, "malformed", id="more than there are"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_long_name_prefixes_that_are_none(packed: bool, records: bytes, count: int, reason: str) -> None:
    image = with_prefixes(records, count, packed=packed)
    reader = image.reader()
    with pytest.raises(FormatError, match=reason):
        reader.listxattr(image.nid(b"file"))
    assert xattrs_of(reader, image.nid(b"zz-fine")) == {b"user.fine": b"yes"}
    assert reader.read(image.nid(b"file"), 0, 5000) == content(5000)


def test_a_packed_inode_that_is_none_harms_only_who_needs_it() -> None:
    image = with_prefixes(PREFIXES, 2, packed=True).set_super(packed_nid=1 << 60)
    reader = image.reader()
    with pytest.raises(FormatError, match="outside"):
        reader.listxattr(image.nid(b"file"))
    assert xattrs_of(reader, image.nid(b"zz-fine")) == {b"user.fine": b"yes"}


def test_a_damaged_shared_xattr_leaves_the_rest_of_the_inode() -> None:
    image = with_shared(entry(6, b"selinux", b"label")[:-4] + b"\xff" * 8, 1)
    reader, nid = image.reader(), image.nid(b"file")
    with pytest.raises(FormatError):
        reader.listxattr(nid)
    assert reader.read(nid, 0, 5000) == content(5000)


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
            (e.file_offset_bytes, e.length_bytes)
            for e in list(reader.extents(nid))[1:]
            if e.file_offset_bytes is not None
        )
        at = 0
        for offset, length in covered:
            assert offset == at
            at += length
        assert at == size
    assert len(list(reader.extents(image.nid(b"char")))) == 1
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
    used = (reader._metadata.cache.used_bytes, reader._inodes.used_bytes, reader._directories.used_bytes)
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
