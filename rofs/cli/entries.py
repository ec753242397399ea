# SPDX-License-Identifier: Apache-2.0
"""How the verbs that look into an image write names, attributes and long lists; and how they open it.

Does not decide what is listed.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rofs.audit.event import escape_path
from rofs.cli.options import naming, note
from rofs.cli.render import out
from rofs.errors import ImageError, InputError, ReadError, RofsError

if TYPE_CHECKING:
    from rofs.image.open import VerifiedImage
    from rofs.image.problems import Problems
    from rofs.trust.verify import TrustPolicy

MAX_NOTES = 20  # of problems told one by one; the number of the rest follows
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


@contextlib.contextmanager
def opened(path: str, policy: TrustPolicy) -> Iterator[VerifiedImage]:
    """An image for as long as it is needed; its warnings are told, and errors of opening it say which it is."""
    from rofs.image.open import open_file, open_image

    with open_file(path) as files:
        with naming(path):
            image = open_image(files, policy)
        for warning in image.facts.warnings:
            note(f"warning: {warning}")
        yield image


def shown(name: bytes) -> str:
    r"""A name or path for people, without loss: `\\` for a backslash, `\xHH` for what does not print."""
    return "".join(c if c.isprintable() else _hex(c) for c in escape_path(name))


def _hex(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


def type_name(mode: int) -> str:
    """The file type of a mode as a word."""
    return _TYPES.get(stat.S_IFMT(mode), "unknown")


def mode_digits(mode: int) -> str:
    """The permission bits as chmod(1) takes them, four digits."""
    return f"{stat.S_IMODE(mode):04o}"


def iso_time(time_ns: int) -> str:
    """RFC 3339 in UTC with nanoseconds, or `@SECONDS.NANOSECONDS` for years that it cannot write."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    try:
        date = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)
    except OverflowError:
        return f"@{seconds}.{nanoseconds:09d}"
    return f"{date:%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z".rjust(30, "0")


def device_number(rdev: int) -> str:
    """Major and minor number."""
    return f"{os.major(rdev)}:{os.minor(rdev)}"


def xattrs_json(xattrs: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Names and values of extended attributes, the values in hex."""
    return {escape_path(name): value.hex() for name, value in xattrs}


def out_json_list(items: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON array, one element a line, as the elements come; whole also when they end early."""
    held: str | None = None
    try:
        for item in items:
            out("[" if held is None else f"{held},")
            held = json.dumps(item)
        if held is None:
            out("[]")
    finally:
        if held is not None:
            out(held)
            out("]")


def complaint(problems: Problems, what: str) -> RofsError:
    """The error of a verb that went on after some; notes tell those that its one line cannot.

    Args:
        problems: At least one.
        what: A phrase like "entries cannot be read; the first:", which the number of them comes before.

    Returns:
        Of the kind of the worst, which decides the exit code.
    """
    worst = problems.worst
    assert worst is not None
    kind = next(kind for kind in (ReadError, ImageError, InputError) if isinstance(worst, kind))
    if problems.count == 1:
        return kind(str(worst))
    told = problems.first[:MAX_NOTES]
    for problem in told:
        note(str(problem))
    if problems.count > len(told):
        note(f"and {problems.count - len(told)} more")
    return kind(f"{problems.count} {what} {worst}")
