# SPDX-License-Identifier: Apache-2.0
"""Tar archives for fuzzing: valid ones of every dialect in pieces, and their hostile children.

Each edit changes a number, a name, a type, a record of an extended header, or which pieces there are; lengths and
checksums are made right again unless the flags say otherwise. Does not read what it made.
"""

from __future__ import annotations

import bz2
import copy
import functools
import gzip
import lzma
import stat
from collections.abc import Callable
from dataclasses import dataclass

from tests.source import archives as tar
from tests.trees import ACL, content

from .edits import INTERESTING, TEXT_FLAGS, TEXT_KIND, TOKENS, Edit, Program, edit_text, interesting

_RAW_FLAGS = TEXT_FLAGS | 0x04  # all: the archive is changed as text
_CHECKSUM_FLAGS = 0x1C  # all: checksums stay wrong
_COMPRESS_FLAGS = 0x60
_COMPRESSIONS: tuple[Callable[[bytes], bytes], ...] = (
    functools.partial(gzip.compress, compresslevel=1, mtime=0),
    functools.partial(bz2.compress, compresslevel=1),
    functools.partial(lzma.compress, preset=0),
    functools.partial(lzma.compress, format=lzma.FORMAT_ALONE, preset=0),
)

_Field = tuple[int, int]
_SIZE: _Field = (124, 12)
_NUMBERS: tuple[_Field, ...] = ((100, 8), (108, 8), (116, 8), _SIZE, _SIZE, (136, 12), (329, 8), (337, 8))
_SPARSE_NUMBERS: tuple[_Field, ...] = (*((386 + 12 * number, 12) for number in range(8)), (483, 12))
_TEXTS: tuple[_Field, ...] = ((0, 100), (0, 100), (157, 100), (345, 155), (257, 8), (500, 12))
_TYPES = b"01234567\0SLKVDMNAXxgZ"
_MAX_PIECES = 200
_NAMES = (
    *(b"", b"/", b".", b"..", b"a/..", b"./", b"//a//", b"a/", b"file", b"dir/file", b"dir", b"x\0y", b"n" * 100),
    *(b"ustar\x0000", b"ustar  \0", b"\0\0\0\0\0\0\0\0tar\0", b"n" * 256, b"a/" * 2000 + b"b", b"\xff\n"),
)
_KEYS = (
    *(b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime", b"SCHILY.devmajor", b"SCHILY.devminor"),
    *(b"GNU.sparse.map", b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"GNU.sparse.size", b"GNU.sparse.realsize"),
    *(b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.name", b"SCHILY.acl.access", b"SCHILY.acl.default"),
    *(b"SCHILY.acl.ace", b"SCHILY.xattr.user.a", b"SCHILY.xattr.system.posix_acl_access", b"SCHILY.xattr.", b"x"),
    *(b"LIBARCHIVE.xattr.user.%61", b"LIBARCHIVE.xattr.", b"RHT.security.selinux", b"hdrcharset", b""),
)
_VALUES = (
    *(b"0", b"1", b"-1", b"1.5", b"-0.000000001", b"1.", b"99999999999999999999", b"0,1,1,1", b"0,5,5", b"4096,0"),
    *(b"u::rwx,g::r-x,o::---", b"user::rw-,user:7:r--,group::r--,mask::r--,other::r--", b"u:ada:rwx", ACL, b"=="),
    *(b"YWJj", b"a/b", b"../a", b"dir/file", b"\0", b"v" * 70_000),
)


@dataclass
class Piece:
    """A header block and what stands behind it.

    Attributes:
        block: Its size is made right, its checksum too.
        body: The content.
        records: In place of a body, in an extended header.
        extension: Blocks of a sparse map between header and content.
        keeps_size: Whether the size was edited, and so stays as it is.
    """

    block: bytes
    body: bytes = b""
    records: list[tuple[bytes, bytes]] | None = None
    extension: bytes = b""
    keeps_size: bool = False

    def encode(self, *, repair: bool) -> bytes:
        body = self.body if self.records is None else b"".join(tar.record(*record) for record in self.records)
        block = self.block if self.keeps_size else _put(self.block, _SIZE, tar.octal(len(body), 12))
        return (tar.with_checksum(block) if repair else block) + self.extension + tar.padded(body)


def hostile_archive(program: Program) -> bytes:
    """An archive after all edits, of its pieces and then of its text, perhaps compressed in between."""
    which = seeds()
    pieces = copy.deepcopy(list(which[program.seed % len(which)]))
    text_edits = []
    for edit in program.edits:
        if program.flags & _RAW_FLAGS == _RAW_FLAGS and edit.kind & TEXT_KIND:
            text_edits.append(edit)
        elif pieces:
            _edit(pieces, edit)
    repair = program.flags & _CHECKSUM_FLAGS != _CHECKSUM_FLAGS
    archive = b"".join(piece.encode(repair=repair) for piece in pieces) + tar.END
    if program.flags & _COMPRESS_FLAGS == _COMPRESS_FLAGS:
        archive = _COMPRESSIONS[program.seed // len(which) % len(_COMPRESSIONS)](archive)
    for edit in text_edits:
        archive = edit_text(archive, edit)
    return archive


def _put(block: bytes, field: _Field, value: bytes) -> bytes:
    at, size = field
    return block[:at] + value[:size].ljust(size, b"\0") + block[at + size :]


# The valid ones


@functools.cache
def seeds() -> tuple[tuple[Piece, ...], ...]:
    """As old programs, GNU tar, and programs with extended headers write them."""
    return _ustar(), _gnu(), _pax(), _pax_sparse()


def _piece(name: bytes, typeflag: bytes = b"0", body: bytes = b"", magic: bytes = tar.POSIX, **more: bytes) -> Piece:
    link, prefix = more.get("link", b""), more.get("prefix", b"")
    mode = 0o755 if typeflag == b"5" else 0o644
    ids = {"uid": 1000, "gid": 100, "mtime": 1_700_000_000}
    block = tar.header(name, typeflag, mode=mode, link=link, prefix=prefix, magic=magic, device=(1, 3), **ids)
    return Piece(block, body)


def _extended(typeflag: bytes, *records: tuple[bytes, bytes]) -> Piece:
    return Piece(tar.header(b"pax", typeflag), records=list(records))


def _ustar() -> tuple[Piece, ...]:
    return (
        _piece(b"./", b"5"),
        _piece(b"dir/", b"5"),
        _piece(b"file", b"0", content(700), prefix=b"dir"),
        _piece(b"dir/again", b"1", link=b"dir/file"),
        _piece(b"dir/link", b"2", link=b"../dir/file"),
        _piece(b"null", b"3"),
        _piece(b"disk", b"4"),
        _piece(b"fifo", b"6"),
        _piece(b"old", b"\0", b"v7", magic=b""),
        _piece(b"dir/file", b"7", b"later"),
    )


def _gnu() -> tuple[Piece, ...]:
    sparse = _piece(b"sparse", b"S", b"a" * 512 + b"b" * 5 * 512, magic=tar.GNU)
    pairs = [(0, 512), (4096, 512), (8192, 512), (12_288, 512)]
    fields = b"".join(tar.octal(number, 12) for pair in pairs for number in pair)
    block = _put(_put(sparse.block, (386, 96), fields), (482, 13), b"\1" + tar.octal(100_000, 12))
    rest = b"".join(tar.octal(number, 12) for number in (20_480, 512, 65_536, 512, 100_000, 0))
    long = b"long/" + b"n" * 200
    return (
        _piece(b"label", b"V", magic=tar.GNU),
        Piece(block, sparse.body, extension=rest.ljust(512, b"\0")),
        _piece(b"././@LongLink", b"L", long + b"\0", magic=tar.GNU),
        _piece(long[:100], b"0", b"content", magic=tar.GNU),
        _piece(b"forward", b"1", link=b"later", magic=tar.GNU),
        _piece(b"later", b"1", link=b"at-last", magic=tar.GNU),
        _piece(b"././@LongLink", b"K", b"t" * 300 + b"\0", magic=tar.GNU),
        _piece(b"long-link", b"2", link=b"t" * 100, magic=tar.GNU),
        _piece(b"dump/", b"D", b"Yfile\0\0", magic=tar.GNU),
        _piece(b"at-last", b"0", content(5000), magic=tar.GNU),
    )


def _pax() -> tuple[Piece, ...]:
    acl = b"user::rw-,user:1234:r--,group::r--,mask::rw-,other::r--"
    return (
        _extended(b"g", (b"comment", b"all of them"), (b"gid", b"5")),
        _extended(b"x", (b"path", b"dir/\xc3\xa4"), (b"mtime", b"-1.5"), (b"uid", b"4294967294"), (b"size", b"600")),
        _piece(b"short", b"0", content(600)),
        _extended(
            b"x",
            (b"SCHILY.xattr.user.a", content(300)),
            (b"SCHILY.xattr.security.capability", bytes(20)),
            (b"LIBARCHIVE.xattr.user.%62", b"YWJj"),
            (b"RHT.security.selinux", b"system_u:object_r:usr_t:s0"),
            (b"SCHILY.acl.access", acl),
        ),
        _piece(b"xattrs", b"0", b"x"),
        _extended(b"x", (b"SCHILY.acl.default", acl), (b"SCHILY.xattr.system.posix_acl_access", ACL)),
        _piece(b"acl", b"5"),
        _extended(b"x", (b"linkpath", b"t" * 200), (b"mtime", b"1700000000.123456789")),
        _piece(b"link", b"2", link=b"t"),
        _extended(b"x", (b"linkpath", b"dir/\xc3\xa4")),
        _piece(b"hard", b"1", link=b"short"),
        _extended(b"x", (b"SCHILY.devmajor", b"259"), (b"SCHILY.devminor", b"256")),
        _piece(b"node", b"4"),
    )


def _pax_sparse() -> tuple[Piece, ...]:
    version = (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")
    pairs = [(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"5")]
    pairs += [(b"GNU.sparse.offset", b"4096"), (b"GNU.sparse.numbytes", b"7")]
    return (
        _extended(b"x", (b"GNU.sparse.size", b"10000"), (b"GNU.sparse.numblocks", b"2"), *pairs),
        _piece(b"0.0", b"0", b"startmiddle!"),
        _extended(
            b"x", (b"GNU.sparse.size", b"9000"), (b"GNU.sparse.map", b"1,2,100,3"), (b"GNU.sparse.name", b"d/0.1")
        ),
        _piece(b"0.1", b"0", b"abcde"),
        _extended(b"x", *version, (b"GNU.sparse.name", b"d/1.0"), (b"GNU.sparse.realsize", b"70000")),
        _piece(b"1.0", b"0", tar.padded(b"2\n0\n512\n65536\n100\n") + content(612)),
        _piece(b"same", b"1", link=b"d/1.0"),
    )


# Edits


def _edit(pieces: list[Piece], edit: Edit) -> None:
    kind = edit.kind % 16
    at = edit.where % len(pieces)
    if kind < 10:
        _edit_piece(pieces, pieces[at], edit, kind)
    elif kind < 13:
        _edit_records(pieces, edit, kind)
    elif kind == 13:
        del pieces[at]
    elif len(pieces) < _MAX_PIECES:
        moved = copy.deepcopy(pieces[at]) if kind == 14 else pieces.pop(at)
        pieces.insert(edit.value % (len(pieces) + 1), moved)


def _edit_piece(pieces: list[Piece], piece: Piece, edit: Edit, kind: int) -> None:
    rest = edit.where >> 8
    if kind < 4:
        _edit_number(piece, rest, edit.value)
    elif kind < 7:
        used = [other.block[:100].rstrip(b"\0") for other in pieces]
        text = [*used, *_NAMES][edit.value % (len(used) + len(_NAMES))]
        piece.block = _put(piece.block, _TEXTS[rest % len(_TEXTS)], text)
    elif kind == 7:
        piece.block = _put(piece.block, (156, 1), _TYPES[edit.value % len(_TYPES) :])
    elif kind == 8 and piece.records is None:
        piece.body = edit_text(piece.body, edit._replace(kind=rest))
    else:
        at = edit.where % 512
        piece.block = piece.block[:at] + bytes([piece.block[at] ^ 1 << edit.value % 8]) + piece.block[at + 1 :]


def _edit_number(piece: Piece, which: int, value: int) -> None:
    """In the header, or in the extension of a sparse map."""
    is_sparse = piece.block[156:157] == b"S"
    fields = _NUMBERS + _SPARSE_NUMBERS * 2 if is_sparse else _NUMBERS
    field = fields[which % len(fields)]
    number = interesting(value, 64, (len(piece.body), 512, stat.S_IFDIR))
    text = _number_field(number, field[1], value)
    if is_sparse and value & 0x100:
        piece.extension = _put(piece.extension, (which % 43 * 12, 12), text)[:512]
    else:
        piece.keeps_size |= field == _SIZE
        piece.block = _put(piece.block, field, text)


def _number_field(number: int, size: int, value: int) -> bytes:
    if value & 0x200:
        bits = 8 * size - 2
        return tar.base256((-number if value & 0x400 else number) % (1 << bits) - (value & 0x400 and 1), size)
    return (b"%o" % number)[-size + 1 :].rjust(size - 1, b"0")


def _edit_records(pieces: list[Piece], edit: Edit, kind: int) -> None:
    extended = [piece for piece in pieces if piece.records is not None]
    if not extended:
        return
    records = extended[edit.where % len(extended)].records
    assert records is not None
    at = (edit.where >> 8) % (len(records) + 1)
    if at == len(records):
        records.append((_KEYS[edit.value % len(_KEYS)], _value(edit.value >> 8)))
    elif kind < 12:
        records[at] = (records[at][0], _value(edit.value))
    elif edit.value % 3 == 0:
        records[at] = (_KEYS[edit.value // 3 % len(_KEYS)], records[at][1])
    elif edit.value % 3 == 1:
        del records[at]
    else:
        records.append(records[at])


def _value(choice: int) -> bytes:
    some, rest = choice % 4, choice >> 2
    if some == 0:
        return b"%d" % INTERESTING[rest % len(INTERESTING)]
    if some == 1:
        return b"%d,%d" % (INTERESTING[rest % len(INTERESTING)], INTERESTING[(rest >> 8) % len(INTERESTING)])
    return TOKENS[rest % len(TOKENS)] if some == 2 else _VALUES[rest % len(_VALUES)]
