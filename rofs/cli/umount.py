# SPDX-License-Identifier: Apache-2.0
"""`rofs umount`: end a mount."""

from __future__ import annotations

import argparse

HELP = """
Unmount, and return when the last event is recorded and every process of the mount has ended. A mount
that is in use stays.

example:
  rofs umount /mnt
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("directory", metavar="DIR", help="the mount point")


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.fuse import control

    control.unmount(arguments.directory)
