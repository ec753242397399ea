# SPDX-License-Identifier: Apache-2.0
"""`rofs extract`: the verified content of an image as a directory."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from rofs.audit.event import escape_path
from rofs.cli.entries import complaint, opened
from rofs.cli.options import add_image_arguments, naming, note
from rofs.cli.render import TerminalProgress, out_json
from rofs.cli.trust_options import add_trust_options, trust_policy
from rofs.errors import InputError, printable

if TYPE_CHECKING:
    from rofs.image.extract import Extraction
    from rofs.target.attributes import Shortfall

HELP = """
Unpack an image, or some paths of it, into DIR, which is made when it is missing and must be empty unless
--force is given. Every block is verified; a file with a bad one is left out and named, the rest comes
(exit code 4). Nothing is ever written outside of DIR, whatever the image says. Modes, owners, times to the
nanosecond, xattrs, ACLs, hard links, device nodes and holes are restored. As an ordinary user: no owners,
no setuid and setgid bits, no trusted.* and security.* xattrs, which one note tells. Whatever else cannot be
restored is told, and the exit code is 1. DIR itself gets the attributes of the image's root, also when it was
there before. With PATHs, DIR and the directories on the way to them get attributes only when they are made;
those that were there keep theirs. Nothing is synced: run sync(1) if a power cut matters.

example:
  rofs extract tree.raw copy /etc /usr/bin/env --trust keys/rofs.crt
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_image_arguments(parser)
    parser.add_argument("directory", metavar="DIR", help="where to")
    parser.add_argument(
        "paths", metavar="PATH", nargs="*", help="a path in the image, which keeps its place below DIR (default: all)"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="extract into a DIR that is not empty: files in the way are replaced, directories filled up",
    )
    add_trust_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.image.extract import extract_image

    with opened(arguments.image, trust_policy(arguments)) as image, naming(arguments.image):
        done = extract_image(
            image,
            arguments.directory,
            [os.fsencode(path) for path in arguments.paths],
            replace=arguments.force,
            progress=TerminalProgress(),
        )
    if arguments.json:
        out_json(_fields(done))
    _tell(done, arguments)


def _tell(done: Extraction, arguments: argparse.Namespace) -> None:
    expected = [f"{s.what} ({s.count})" for s in done.shortfalls if s.expected]
    if expected:
        note(f"not restored, since only root can: {', '.join(expected)}")
    unexpected = [_told(shortfall) for shortfall in done.shortfalls if not shortfall.expected]
    if done.problems.count:
        for text in unexpected:
            note(text)
        with naming(arguments.image):
            error = complaint(done.problems, "entries were not extracted; the first:")
            error.args = (f"{error}; the rest was extracted",)
            raise error
    for text in unexpected[1:]:
        note(text)
    if unexpected:
        raise InputError(f"extracted into {printable(arguments.directory)}, but {unexpected[0]}")


def _told(shortfall: Shortfall) -> str:
    return (
        f"{shortfall.what} could not be restored on {shortfall.count} entries, first {printable(shortfall.path)}: "
        f"{shortfall.reason}"
    )


def _fields(done: Extraction) -> dict[str, Any]:
    return {
        "entries": done.entries,
        "content_bytes": done.content_bytes,
        "problems": [str(problem) for problem in done.problems.first],
        "more_problems": done.problems.count - len(done.problems.first),
        "not_restored": [
            {
                "what": shortfall.what,
                "entries": shortfall.count,
                "first": escape_path(shortfall.path),
                "reason": shortfall.reason,
                "expected": shortfall.expected,
            }
            for shortfall in done.shortfalls
        ],
    }
