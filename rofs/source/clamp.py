# SPDX-License-Identifier: Apache-2.0
"""No time of an image after the one that SOURCE_DATE_EPOCH names, but for what Python compares times with.

A .pyc file holds the second of its source's mtime. With another mtime of the source Python takes it for
stale, compiles again and tries to write, at every start. Such a source keeps its mtime: the image depends
on it in any case, through the .pyc file's content. Changes times only, never a content.

Source: reproducible-builds.org, "SOURCE_DATE_EPOCH", clamping; PEP 552 and PEP 3147 for .pyc files.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from rofs.pieces import filled
from rofs.tree import Inode, Source

_SECOND_NS = 10**9
_CACHE = b"__pycache__"
_PYC_HEADER = struct.Struct("<4sIII")  # magic, flags (0: by time), mtime in seconds, size of the source
_MASK = 0xFFFFFFFF


def clamp_times(source: Source, latest_seconds: int) -> int:
    """Set every mtime after a time to that time, in place.

    Args:
        source: The tree; of .pyc files the first bytes are read.
        latest_seconds: Seconds since the epoch.

    Returns:
        How many Python sources kept a later time.

    Raises:
        InputError: A .pyc file cannot be read.
    """
    latest_ns = latest_seconds * _SECOND_NS
    compiled = {
        id(inode)
        for directory in source.tree.walk()
        if _CACHE in directory.children
        for inode in _compiled(source, directory, latest_seconds)
    }
    for inode in source.tree.walk():
        if inode.mtime_ns > latest_ns and id(inode) not in compiled:
            inode.mtime_ns = latest_ns
    return len(compiled)


def _compiled(source: Source, directory: Inode, latest_seconds: int) -> Iterator[Inode]:
    """The Python sources of a directory for which a .pyc file counts that a clamped mtime would make stale."""
    for name, pyc in directory.children[_CACHE].children.items():
        inode = directory.children.get(_source_name(name))
        if inode is None or not inode.is_regular or not pyc.is_regular:
            continue
        seconds = inode.mtime_ns // _SECOND_NS
        if seconds > latest_seconds and _is_compiled_from(source, pyc, seconds, inode.size):
            yield inode


def _source_name(name: bytes) -> bytes:
    """Of `mod.cpython-311.pyc` or `mod.cpython-311.opt-1.pyc`, `mod.py`; empty for no such name."""
    stem = name.removesuffix(b".pyc")
    before, _, last = stem.rpartition(b".")
    if last.startswith(b"opt-"):
        stem = before
    return stem.rpartition(b".")[0] + b".py" if name.endswith(b".pyc") else b""


def _is_compiled_from(source: Source, pyc: Inode, seconds: int, size: int) -> bool:
    if pyc.size < _PYC_HEADER.size:
        return False
    header = b""
    blocks = filled(source.contents(pyc), pyc.size)  # the file is not read to its end
    while len(header) < _PYC_HEADER.size and (more := next(blocks, b"")):
        header += more
    _, flags, mtime, source_bytes = _PYC_HEADER.unpack_from(header)
    return (flags, mtime, source_bytes) == (0, seconds & _MASK, size & _MASK)
