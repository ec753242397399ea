# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rofs.erofs import format as fmt
from rofs.erofs.reader import ErofsReader
from rofs.errors import FormatError
from rofs.vfs import Extent
from tests.trees import content, directory, file
from tests.verity.doubles import MemoryDevice

from .builder import LyingFilesystem

BLOCK = 4096
CHUNKED = 1 | fmt.LAYOUT_CHUNK_BASED << 1
NULL = fmt.NULL_ADDRESS
DATA_BLOCKS = 12


def chunked(addresses: list[int], size: int, bits: int = 0, *, indexes: bool = False) -> LyingFilesystem:
    """A file of chunks that lie where the addresses say, counted from the data of another file."""
    data = content(DATA_BLOCKS * BLOCK)
    # Its inline tail is as long as the table that takes its place, with room for aligning it.
    table = file(b"t" * (len(addresses) * 8 + 8))
    image = LyingFilesystem(directory({b"data": file(data), b"file": table}))
    first = image.content_place(b"data")[0] // BLOCK
    places = [a if a == NULL else a + first for a in addresses]
    if indexes:
        packed = b"".join(struct.pack("<HHI", 0, 0, place) for place in places)
        bits |= fmt.CHUNK_FORMAT_INDEXES
    else:
        packed = b"".join(struct.pack("<I", place) for place in places)
    return image.set_bytes(b"file", 0, packed).set_inode(b"file", i_format=CHUNKED, i_u=bits, i_size=size)


def expected(addresses: list[int], size: int, bits: int) -> bytes:
    data, chunk = content(DATA_BLOCKS * BLOCK), BLOCK << bits
    parts = [bytes(chunk) if a == NULL else data[a * BLOCK :][:chunk].ljust(chunk, b"?") for a in addresses]
    return b"".join(parts)[:size]


@pytest.mark.parametrize("indexes", [False, True])
@given(
    bits=st.integers(0, 2),
    addresses=st.lists(st.one_of(st.just(NULL), st.integers(0, DATA_BLOCKS - 4)), min_size=1, max_size=20),
    short_bytes=st.integers(0, BLOCK - 1),
    offset=st.integers(0, 200_000),
    length=st.integers(0, 200_000),
)
def test_chunks_and_holes_read_as_they_stand(
    indexes: bool, bits: int, addresses: list[int], short_bytes: int, offset: int, length: int
) -> None:
    size = (len(addresses) * BLOCK << bits) - short_bytes
    image = chunked(addresses, size, bits, indexes=indexes)
    reader, whole = image.reader(), expected(addresses, size, bits)
    assert reader.read(image.nid(b"file"), offset, length) == whole[offset : offset + length]
    assert extents_as_bytes(image, reader, size) == whole


def extents_as_bytes(image: LyingFilesystem, reader: ErofsReader, size: int) -> bytes:
    """One map behind both: what the extents say is what a read gives."""
    found = bytearray(size)
    last = -1
    for extent in list(reader.extents(image.nid(b"file")))[1:]:
        assert extent.file_offset_bytes is not None
        assert extent.file_offset_bytes > last
        last = extent.file_offset_bytes
        found[last : last + extent.length_bytes] = image.data[extent.offset_bytes :][: extent.length_bytes]
    return bytes(found)


def test_neighbours_are_read_at_once_and_holes_not_at_all() -> None:
    image = chunked([0, 1, 2, NULL, NULL, 3, 4], 7 * BLOCK)
    device = MemoryDevice(bytes(image.data))
    reader = ErofsReader(device)
    nid = image.nid(b"file")
    reader.stat(nid)
    device.reads.clear()
    reader.read(nid, 0, 7 * BLOCK)
    first = image.content_place(b"data")[0]
    assert [read for read in device.reads if read[0] >= first] == [(first, 3 * BLOCK), (first + 3 * BLOCK, 2 * BLOCK)]
    device.reads.clear()
    assert reader.read(nid, 3 * BLOCK, 2 * BLOCK) == bytes(2 * BLOCK)
    assert device.reads == []


def test_the_chunk_table_belongs_to_the_inode() -> None:
    image = chunked([0, 1, NULL], 3 * BLOCK, indexes=True)
    place = image.nid(b"file") * fmt.SLOT_BYTES
    extents = list(image.reader().extents(image.nid(b"file")))
    assert extents[0] == Extent(place, 64 + 3 * 8, None)


def test_a_hole_of_4_eib_costs_nothing() -> None:
    image = chunked([NULL], 1 << 43, 31)
    reader, nid = image.reader(), image.nid(b"file")
    tracemalloc.start()
    try:
        assert reader.read(nid, (1 << 43) - 100, 1000) == bytes(100)
        assert len(list(reader.extents(nid))) == 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_a_flat_file_at_the_null_address_is_a_hole() -> None:
    image = LyingFilesystem(directory({b"file": file(content(8192))})).set_inode(b"file", i_u=NULL)
    reader, nid = image.reader(), image.nid(b"file")
    assert reader.read(nid, 100, 10_000) == bytes(8092)
    assert len(list(reader.extents(nid))) == 1


def test_a_last_block_that_is_inline_as_a_whole_has_no_room() -> None:
    """Of an inline file of whole blocks the last one is the tail, as for the kernel."""
    image = LyingFilesystem(directory({b"file": file(content(8192))}))
    image.set_inode(b"file", i_format=1 | fmt.LAYOUT_FLAT_INLINE << 1)
    reader, nid = image.reader(), image.nid(b"file")
    assert reader.read(nid, 0, BLOCK) == content(8192)[:BLOCK]
    with pytest.raises(FormatError, match="crosses a block"):
        reader.read(nid, BLOCK, 1)


def test_chunk_indexes_are_aligned_to_their_size() -> None:
    """Behind xattrs of 12 + 4 n bytes, which end at an odd multiple of 4."""
    data = content(BLOCK)
    xattrs = ((b"user.a", b""),)  # 12 + 8 bytes
    image = LyingFilesystem(directory({b"data": file(data), b"file": file(b"t" * 40, xattrs=xattrs)}))
    first = image.content_place(b"data")[0] // BLOCK
    image.set_bytes(b"file", 24, struct.pack("<HHI", 0, 0, first))
    image.set_inode(b"file", i_format=CHUNKED, i_u=fmt.CHUNK_FORMAT_INDEXES, i_size=BLOCK)
    assert image.reader().read(image.nid(b"file"), 0, BLOCK) == data


def test_only_the_asked_part_of_a_chunk_table_is_read() -> None:
    """Here a table of 1 MiB, whose middle is asked for."""
    image = LyingFilesystem(directory({b"a": file(b"t" * 16), b"rest": file(content(2 << 20))}))
    image.set_inode(b"a", i_format=CHUNKED, i_u=0, i_size=1 << 30)
    device = MemoryDevice(bytes(image.data))
    reader = ErofsReader(device)
    reader.stat(image.nid(b"a"))
    device.reads.clear()
    with pytest.raises(FormatError, match="outside"):
        reader.read(image.nid(b"a"), 1 << 29, 100 * BLOCK)
    assert sum(length for _, length in device.reads) <= 64 << 10  # and what is read ahead


@pytest.mark.parametrize("bad", [DATA_BLOCKS, 1000, NULL - 1])
def test_a_chunk_outside_harms_only_what_is_asked_of_it(bad: int) -> None:
    image = chunked([0, 0, NULL], 3 * BLOCK)
    first = image.content_place(b"data")[0] // BLOCK
    image.set_bytes(b"file", 4, struct.pack("<I", min(NULL - 1, bad + first)))
    reader, nid = image.reader(), image.nid(b"file")
    assert reader.read(nid, 0, BLOCK) == content(DATA_BLOCKS * BLOCK)[:BLOCK]
    assert reader.read(nid, 2 * BLOCK, BLOCK) == bytes(BLOCK)
    with pytest.raises(FormatError, match="outside"):
        reader.read(nid, BLOCK, 1)
