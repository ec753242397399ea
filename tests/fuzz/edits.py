# SPDX-License-Identifier: Apache-2.0
"""Reads a fuzzer's bytes as a short list of edits, and applies edits to binary data and to text.

An edit is eight bytes wide, so that what a fuzzer inserts, removes or copies between inputs is whole edits.
An input that is too short is as good as one with zeros behind it; the empty one leaves a valid input as it is.
Knows no format: which integers there are, and which values are interesting beyond the usual ones, is told
by whoever made the valid input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

EDIT_BYTES = 8
MAX_EDITS = 8  # more only make it likelier that the first check refuses everything
MAX_INPUT_BYTES = 2 + EDIT_BYTES * MAX_EDITS
# Text whose syntax is wrong gets no further: these flags and kinds of edits together allow it.
TEXT_FLAGS = 0x03
TEXT_KIND = 0x80
_MAX_DATA_BYTES = 1 << 18  # duplicated text must not grow without bound

# What integers break on: sizes of sectors, blocks, inodes and names, and one less and one more than each.
_POWERS = (1, 2, 4, 8, 12, 16, 32, 64, 128, 255, 512, 1024, 4096, 1 << 15, 1 << 16, 1 << 31, 1 << 32, 1 << 53)
INTERESTING = tuple(
    sorted({power + delta for power in _POWERS for delta in (-1, 0, 1)} | {(1 << 63) - 1, 1 << 63, (1 << 64) - 1})
)

# What text formats break on; also for places in which no text belongs.
TOKENS = (
    b"",
    b"\0",
    b"\xff\xfe",
    b"\n",
    b"\r\n\x1b[31m",
    b"\\u0000",
    b'"\\ud800"',
    b"null",
    b"true",
    b"-0",
    b"1e999",
    b"-1",
    b"NaN",
    b"18446744073709551616",
    b"9" * 5000,
    b"[" * 100_000,
    b'{"v":' * 50_000,
    b"{}",
    b"[]",
    b"[1,2]",
    b'""',
    b',"v":1',
    b'"' + b"a" * 70_000 + b'"',
    b"\xe2\x80\xae",
    b"\\",
    b"../../../etc/passwd",
)


class Edit(NamedTuple):
    """One change: what to do, where, and with which value; each is taken modulo what there is."""

    kind: int
    where: int
    value: int


class Program(NamedTuple):
    """An input of a fuzzer: which valid input to start from, flags, and edits."""

    seed: int
    flags: int
    edits: tuple[Edit, ...]


class Field(NamedTuple):
    """An integer in a binary format, little-endian."""

    offset: int
    size: int


@dataclass(frozen=True)
class Seed:
    """A valid binary input.

    Attributes:
        data: Its bytes.
        fields: The integers in it; those listed more than once are changed more often.
        values: Interesting values beyond the usual ones: addresses and lengths of this input.
    """

    data: bytes
    fields: tuple[Field, ...]
    values: tuple[int, ...] = ()


def parse_program(data: bytes) -> Program:
    """Read a fuzzer's input; every input is one."""
    padded = data[:MAX_INPUT_BYTES].ljust(2, b"\0")
    body = padded[2:]
    edits = [body[at : at + EDIT_BYTES].ljust(EDIT_BYTES, b"\0") for at in range(0, len(body), EDIT_BYTES)]
    return Program(
        padded[0],
        padded[1],
        tuple(Edit(e[0], int.from_bytes(e[1:4], "little"), int.from_bytes(e[4:8], "little")) for e in edits),
    )


def interesting(value: int, bits: int, others: Sequence[int] = ()) -> int:
    """A number of at most `bits` bits: usually an interesting one, otherwise what the edit says."""
    choice, rest = value & 0xFF, value >> 8
    if choice < 96 and others:
        number = others[rest % len(others)] + (choice % 3 - 1)
    elif choice < 208:
        number = INTERESTING[rest % len(INTERESTING)]
    else:
        number = rest
    return number & (1 << bits) - 1


def edit_binary(data: bytearray, edit: Edit, seed: Seed) -> None:
    """Apply one edit to data that keeps its length."""
    kind = edit.kind % 16
    if kind < 9 and seed.fields:
        _edit_field(data, edit, seed, kind)
        return
    at = edit.where % len(data)
    length = 1 << (edit.value >> 24) % 8
    if kind < 12:
        data[at] ^= 1 << edit.value % 8
    elif kind < 14:  # splice
        start = edit.value % len(data)
        piece = data[start : start + length]
        data[at : at + len(piece)] = piece[: len(data) - at]
    else:
        end = min(at + length, len(data))
        data[at:end] = (b"\0", b"\xff")[kind % 2] * (end - at)


def _edit_field(data: bytearray, edit: Edit, seed: Seed, kind: int) -> None:
    offset, size = seed.fields[edit.where % len(seed.fields)]
    old = int.from_bytes(data[offset : offset + size], "little")
    if kind < 5:
        new = interesting(edit.value, 8 * size, seed.values)
    elif kind < 7:
        new = old + edit.value % 65 - 32
    else:  # what another field says
        other = seed.fields[edit.value % len(seed.fields)]
        new = int.from_bytes(data[other.offset : other.offset + other.size], "little")
    data[offset : offset + size] = (new % (1 << 8 * size)).to_bytes(size, "little")


def edit_text(text: bytes, edit: Edit) -> bytes:
    """Apply one edit to text, which may grow or shrink."""
    at = edit.where % (len(text) + 1)
    length = 1 << (edit.value >> 24) % 10
    kind = edit.kind % 6
    if kind == 0 and at < len(text):
        return text[:at] + bytes([text[at] ^ 1 << edit.value % 8]) + text[at + 1 :]
    if kind == 1:
        return text[:at]
    if kind == 2:
        return text[:at] + text[at + length :]
    if kind == 3:  # duplicate
        return (text[:at] + text[at : at + length] + text[at:])[:_MAX_DATA_BYTES]
    if kind == 4:  # splice
        start = edit.value % (len(text) + 1)
        return text[:at] + text[start : start + length] + text[at + length :]
    return (text[:at] + TOKENS[edit.value % len(TOKENS)] + text[at:])[:_MAX_DATA_BYTES]
