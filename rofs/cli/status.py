# SPDX-License-Identifier: Apache-2.0
"""`rofs status`: what is mounted, and what has happened to it."""

from __future__ import annotations

import argparse
from typing import Any

from rofs.cli.render import image_pairs, out, out_json, out_pairs
from rofs.errors import printable

HELP = """
Show all rofs mounts of this user, or one. /proc/mounts says rw of a mount in audit mode: the kernel
passes attempts to write on, so that they can be recorded, and rofs refuses each with EROFS.

example:
  rofs status /mnt --json
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("directory", metavar="DIR", nargs="?", help="one mount point (default: all)")
    parser.add_argument("--json", action="store_true", help="print a list of mounts as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.fuse import control

    mounts = [control.status(arguments.directory)] if arguments.directory is not None else control.mounts()
    if arguments.json:
        out_json(mounts)
        return
    for index, mount in enumerate(mounts):
        if index:
            out("")
        out_pairs(_pairs(mount))


def _pairs(mount: dict[str, Any]) -> list[tuple[str, object]]:
    workers = " ".join(str(worker["pid"]) for worker in mount["workers"])
    pairs: list[tuple[str, object]] = [
        ("mount point", printable(mount["mountpoint"])),
        ("image", printable(mount["image"])),
        *image_pairs(mount),
        ("accepted by", mount["accepted_by"]),
        ("mode", f"{mount['mode']} (/proc/mounts says rw; every change is refused and recorded)"),
        ("processes", f"keeper {mount['keeper']}, supervisor {mount['supervisor']}, workers {workers}"),
        ("verified blocks", mount["verified_blocks"]),
        ("blocked writes", mount["blocked_writes"]),
        ("corruption", mount["corruption"]),
        ("audit log", printable(mount["audit_log"])),
        ("audit head", mount["audit_head"]),
    ]
    if mount["dropped"] or mount["audit_error"]:
        pairs.append(("not recorded", f"{mount['dropped']} events; {mount['audit_error']}"))
    return pairs
