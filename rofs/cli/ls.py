# SPDX-License-Identifier: Apache-2.0
"""`rofs ls`: list what is in an image."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rofs.audit.event import escape_path
from rofs.cli.entries import (
    complaint,
    device_number,
    iso_time,
    mode_digits,
    opened,
    out_json_list,
    shown,
    type_name,
    xattrs_json,
)
from rofs.cli.options import add_image_arguments, naming
from rofs.cli.render import out
from rofs.cli.trust_options import add_trust_options, trust_policy
from rofs.errors import ImageError

if TYPE_CHECKING:
    from rofs.image.listing import Listed
    from rofs.image.problems import Problems

HELP = """
List a directory of an image as ls -l does, every byte of it verified: type and permissions, links, owner
and group as numbers, size or device number, modification time, name. Names that start with a dot are
listed too. A symbolic link is shown, not followed, unless / comes behind it. What cannot be read shows as
question marks; then the exit code is 4. With -R each line has the whole path.

example:
  rofs ls tree.raw /etc --trust keys/rofs.crt
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_image_arguments(parser)
    parser.add_argument("path", metavar="PATH", nargs="?", default="/", help="a path in the image (default: /)")
    parser.add_argument("-R", "--recursive", action="store_true", help="list everything below as well")
    add_trust_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.image.listing import list_path
    from rofs.image.problems import Problems

    problems = Problems()
    with opened(arguments.image, trust_policy(arguments)) as image, naming(arguments.image):
        listed = _noting(
            list_path(image.filesystem, os.fsencode(arguments.path), recursive=arguments.recursive), problems
        )
        if arguments.json:
            out_json_list(map(_fields, listed))
        else:
            for entry in listed:
                out(_line(entry, whole=arguments.recursive))
    if problems.count:
        with naming(arguments.image):
            raise complaint(problems, "entries cannot be read; the first:")


def _noting(listed: Iterator[Listed], problems: Problems) -> Iterator[Listed]:
    for entry in listed:
        if entry.error is not None:
            problems.add(entry.error)
        yield entry


def _line(entry: Listed, *, whole: bool) -> str:
    name = shown(entry.path if whole else entry.path.rpartition(b"/")[2] or entry.path)
    if entry.status is None:
        return f"?????????? {'?':>3} {'?':>5} {'?':>5} {'?':>10} {'?':>30} {name}"
    status = entry.status
    size = device_number(status.rdev) if _is_device(status.mode) else status.size
    target = f" -> {shown(entry.target)}" if entry.target is not None else ""
    return (
        f"{stat.filemode(status.mode)} {status.nlink:>3} {status.uid:>5} {status.gid:>5} {size:>10} "
        f"{iso_time(status.mtime_ns)} {name}{target}"
    )


def _fields(entry: Listed) -> dict[str, Any]:
    fields: dict[str, Any] = {"path": escape_path(entry.path)}
    if entry.status is not None:
        status = entry.status
        fields |= {
            "type": type_name(status.mode),
            "mode": mode_digits(status.mode),
            "nlink": status.nlink,
            "uid": status.uid,
            "gid": status.gid,
            "size": status.size,
            "mtime": iso_time(status.mtime_ns),
            "nid": status.nid,
            "xattrs": xattrs_json(entry.xattrs),
        }
        if _is_device(status.mode):
            fields |= {"major": os.major(status.rdev), "minor": os.minor(status.rdev)}
    if entry.target is not None:
        fields["target"] = escape_path(entry.target)
    if isinstance(entry.error, ImageError):
        fields["error"] = str(entry.error)
    return fields


def _is_device(mode: int) -> bool:
    return stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
