# SPDX-License-Identifier: Apache-2.0
"""`rofs audit`: show a log, or verify its chain."""

from __future__ import annotations

import argparse
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from rofs.cli.options import UsageError, add_debug_option
from rofs.cli.render import out, out_json
from rofs.errors import ChainError, InputError, from_os_error, printable

HELP = """
Show the events of an audit log, or verify it: each line carries the hash of the one before, so an
edited or a missing line shows by itself. A log that was cut at its end shows only against a head that
was kept elsewhere: status prints it.

example:
  rofs audit show /var/log/rofs/mnt.jsonl
  rofs audit verify /var/log/rofs/mnt.jsonl --head 3b0c...
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    verbs = parser.add_subparsers(dest="what", metavar="show|verify", required=True)
    show = verbs.add_parser(
        "show",
        help="print the events, one line each",
        epilog="example:  rofs audit show /var/log/rofs/mnt.jsonl --json | jq .path",
    )
    show.add_argument("log", metavar="LOG", help="the audit log")
    show.add_argument("--json", action="store_true", help="print the events as JSON, one a line")
    verify = verbs.add_parser(
        "verify",
        help="check the chain of hashes",
        epilog="example:  rofs audit verify /var/log/rofs/mnt.jsonl --head 3b0c...",
    )
    verify.add_argument("log", metavar="LOG", help="the audit log")
    verify.add_argument("--head", metavar="HASH", help="a head of this log that was kept elsewhere")
    verify.add_argument("--json", action="store_true", help="print the result as JSON")
    for parser_of_what in (show, verify):
        add_debug_option(parser_of_what)


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    (_show if arguments.what == "show" else _verify)(arguments)


def _show(arguments: argparse.Namespace) -> None:
    from rofs.audit.show import read_events, render

    with _opened(arguments.log) as file:
        for event in read_events(file):
            if arguments.json:
                out_json(event, indent=None)
            else:
                out(render(event))


def _verify(arguments: argparse.Namespace) -> None:
    from rofs.audit.chain import read_lines, verify_chain

    with _opened(arguments.log) as file:
        try:
            report = verify_chain(read_lines(file), arguments.head)
        except InputError as error:
            raise UsageError(f"--head: {error}") from error
    if arguments.json:
        out_json({"events": report.events, "head": report.head, "intact": True})
    else:
        out(f"intact: {report.events} events, head {report.head}")


@contextmanager
def _opened(path: str) -> Iterator[BinaryIO]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise from_os_error(error, "cannot read audit log", path) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):  # a FIFO would block, a device is nobody's log
        os.close(fd)
        raise InputError(f"cannot read audit log {printable(path)}: it is not a regular file")
    with os.fdopen(fd, "rb") as file:
        try:
            yield file
        except ChainError as error:
            raise ChainError(f"{printable(path)}: {error}") from error
