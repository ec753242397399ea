# SPDX-License-Identifier: Apache-2.0
"""`rofs cat`: the verified bytes of files in an image."""

from __future__ import annotations

import argparse
import os
import stat
from typing import TYPE_CHECKING

from rofs.cli.entries import opened
from rofs.cli.options import naming
from rofs.cli.render import flush, out_bytes
from rofs.cli.trust_options import add_trust_options, trust_policy
from rofs.errors import InputError, printable

if TYPE_CHECKING:
    from rofs.vfs import ReadOnlyFilesystem

HELP = """
Write the content of regular files in an image to the standard output, every byte verified before it is
written. At a corrupt block it stops, behind the last good byte, and names file and block: exit code 4.
Symbolic links are followed inside of the image.

example:
  rofs cat tree.raw /etc/os-release --trust keys/rofs.crt
"""
_ZEROS = bytes(1 << 20)


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("image", metavar="IMAGE", help="the image file")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a regular file in the image")
    add_trust_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    with opened(arguments.image, trust_policy(arguments)) as image, naming(arguments.image):
        for path in arguments.paths:
            _write(image.filesystem, os.fsencode(path))


def _write(filesystem: ReadOnlyFilesystem, path: bytes) -> None:
    from rofs.image.lookup import at, contents, find

    found = find(filesystem, path, follow=True)
    with at(found.path):
        status = filesystem.stat(found.nid)
        if not stat.S_ISREG(status.mode):
            raise InputError(f"{printable(path)}: not a regular file")
        end = 0
        try:
            for offset, data in contents(filesystem, found.nid):
                _write_zeros(offset - end)
                out_bytes(data)
                end = offset + len(data)
            _write_zeros(status.size - end)
        finally:
            flush()


def _write_zeros(count: int) -> None:
    """A hole."""
    while count > 0:
        out_bytes(_ZEROS[:count])
        count -= len(_ZEROS)
