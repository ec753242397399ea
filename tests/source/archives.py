# SPDX-License-Identifier: Apache-2.0
"""Tar archives in memory, made byte by byte, so that they can lie."""

from __future__ import annotations

import io
import os
import stat
import struct
import tarfile
from collections.abc import Sequence
from pathlib import Path

from rofs.pieces import filled
from rofs.source.tar import TarSource
from rofs.source.tar_format import BLOCK_BYTES
from rofs.tree import Inode, Source

Records = Sequence[tuple[bytes, bytes]]

END = bytes(2 * BLOCK_BYTES)
POSIX, GNU = b"ustar\x0000", b"ustar  \0"


def octal(number: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, number)


def base256(number: int, width: int) -> bytes:
    field = bytearray(number.to_bytes(width, "big", signed=True))
    field[0] |= 0x80
    return bytes(field)


def header(
    name: bytes,
    typeflag: bytes = b"0",
    *,
    mode: bytes | int = 0o644,
    uid: bytes | int = 0,
    gid: bytes | int = 0,
    size: bytes | int = 0,
    mtime: bytes | int = 0,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    magic: bytes = POSIX,
    prefix: bytes = b"",
    checksum: int | None = None,
) -> bytes:
    """A header block; numbers may be given as fields."""

    def field(value: bytes | int, width: int) -> bytes:
        return value.ljust(width, b"\0") if isinstance(value, bytes) else octal(value, width)

    block = struct.pack(
        "100s8s8s8s12s12s8sc100s8s32s32s8s8s155s12x",
        name,
        field(mode, 8),
        field(uid, 8),
        field(gid, 8),
        field(size, 12),
        field(mtime, 12),
        b" " * 8,
        typeflag,
        link,
        magic,
        b"root",
        b"root",
        octal(device[0], 8),
        octal(device[1], 8),
        prefix,
    )
    return with_checksum(block, checksum)


def with_checksum(block: bytes, checksum: int | None = None) -> bytes:
    block = block[:148] + b" " * 8 + block[156:]
    total = sum(block) if checksum is None else checksum
    return block[:148] + b"%06o\0 " % total + block[156:]


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK_BYTES)


def record(key: bytes, value: bytes) -> bytes:
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def pax(records: Records, typeflag: bytes = b"x") -> bytes:
    data = b"".join(record(key, value) for key, value in records)
    return header(b"pax", typeflag, size=len(data)) + padded(data)


def gnu_long(typeflag: bytes, name: bytes) -> bytes:
    return header(b"././@LongLink", typeflag, size=len(name) + 1, magic=GNU) + padded(name + b"\0")


def file(name: bytes, data: bytes = b"", records: Records = (), **fields: bytes | int) -> bytes:
    before = pax(records) if records else b""
    return before + header(name, **{"size": len(data), **fields}) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, records: Records = (), **fields: bytes | int) -> bytes:
    return (pax(records) if records else b"") + header(name, b"5", **{"mode": 0o755, **fields})  # type: ignore[arg-type]


def hard_link(name: bytes, target: bytes, data: bytes = b"") -> bytes:
    """With data, as `pax -o linkdata` writes it."""
    return header(name, b"1", link=target, size=len(data)) + padded(data)


def symlink(name: bytes, target: bytes) -> bytes:
    return header(name, b"2", link=target, mode=0o777)


def source(tmp_path: Path, *members: bytes, end: bytes = END) -> TarSource:
    """The source that an archive of these members is."""
    path = tmp_path / "archive.tar"
    path.write_bytes(b"".join(members) + end)
    return TarSource(str(path))


def data(source: Source, inode: Inode) -> bytes:
    return b"".join(filled(source.contents(inode), inode.size))


def tar_of_tree(top: Path) -> bytes:
    """A PAX archive of a plain tree by the standard library, times exact, in whatever order a set has."""
    buffer = io.BytesIO()
    base = os.fsencode(top)
    links: dict[int, str] = {}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        for path in {top, *(Path(os.fsdecode(p)) for p in _paths(base))}:
            info = archive.gettarinfo(path, arcname=os.path.relpath(path, top))
            status = os.lstat(path)
            time_ns = status.st_mtime_ns
            first = links.setdefault(status.st_ino, info.name)
            if info.issym() and first != info.name:  # tarfile itself links only regular files
                info.type, info.linkname = tarfile.LNKTYPE, first
            info.pax_headers = {"mtime": f"{time_ns // 10**9}.{time_ns % 10**9:09}"}
            if info.isreg():
                with open(path, "rb") as content:
                    archive.addfile(info, content)
            else:
                archive.addfile(info)
    return buffer.getvalue()


def _paths(top: bytes) -> list[bytes]:
    found = []
    for path, names, files in os.walk(top):
        found += [os.path.join(path, name) for name in names + files]
    return found


def is_regular_at(root: Inode, name: bytes) -> bool:
    return stat.S_ISREG(root.children[name].mode)
