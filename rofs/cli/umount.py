# SPDX-License-Identifier: Apache-2.0
"""`rofs umount`: end a mount."""

from __future__ import annotations

import argparse

from rofs.cli.options import note
from rofs.errors import printable

HELP = """
Unmount, and return when the last event is recorded and every process of the mount has ended. A mount
that is in use stays.

With --lazy it is taken out of sight in any case, and the command does not wait for those who use it: they go on
reading what they have open, as they may be a program that runs from there. Its processes end, and the last event is
recorded, when the last of them has let go. It also takes away a mount whose processes have died or do not answer.

example:
  rofs umount /mnt
  rofs umount --lazy /mnt
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("directory", metavar="DIR", help="the mount point")
    parser.add_argument("--lazy", action="store_true", help="take it out of sight now, though it may be in use")


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.fuse import control

    if not arguments.lazy:
        control.unmount(arguments.directory)
    elif (keeper := control.unmount_lazily(arguments.directory)) is not None:
        note(
            f"{printable(arguments.directory)} is out of sight; its processes (keeper {keeper}) end when the last user "
            "of its files has let go"
        )
