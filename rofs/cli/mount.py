# SPDX-License-Identifier: Apache-2.0
"""`rofs mount`: a verified image as a filesystem."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rofs.cli.options import UsageError, naming, note
from rofs.cli.trust_options import add_trust_options, trust_policy
from rofs.errors import printable

if TYPE_CHECKING:
    from rofs.fuse.launch import MountOptions
    from rofs.image.open import ImageFacts

HELP = """
Mount a verified image. Every block is checked when it is read; a bad one is an I/O error. Every write,
rename and unlink is refused with EROFS and recorded in the audit log with who tried. Returns when the
mount answers. Set-user-id bits, file capabilities and device nodes have no effect unless -o suid,dev.

example:
  rofs mount tree.raw /mnt --trust keys/rofs.crt -o suid,dev
"""

# What fstab and mount(8) say that is true of every rofs mount anyway.
_IMPLIED = frozenset({"rw", "defaults", "auto", "noauto", "nofail", "_netdev", "relatime", "noatime", "async"})


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("image", metavar="IMAGE", help="the image file")
    parser.add_argument("directory", metavar="DIR", help="the mount point, an existing directory")
    parser.add_argument("--audit-log", metavar="FILE", help="where to record (default: /var/log/rofs/NAME.jsonl)")
    parser.add_argument("-f", "--foreground", action="store_true", help="stay in the foreground until unmounted")
    parser.add_argument(
        "-o", dest="options", metavar="OPTS", action="append", default=[], help="suid, dev, noexec and their opposites"
    )
    add_trust_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.fuse.launch import MountOptions, mount_in_background, mount_in_foreground

    options = _mount_options(MountOptions(trust_policy(arguments), arguments.audit_log), arguments.options)
    with naming(arguments.image):
        if arguments.foreground:
            mount_in_foreground(arguments.image, arguments.directory, options, _announce(arguments.directory))
        else:
            _warn(mount_in_background(arguments.image, arguments.directory, options))


def _announce(directory: str) -> Callable[[ImageFacts], None]:
    def announce(facts: ImageFacts) -> None:
        _warn(facts)
        note(f"mounted on {printable(directory)}; Ctrl-C unmounts")
        sys.stderr.flush()

    return announce


def _warn(facts: ImageFacts) -> None:
    for warning in facts.warnings:
        note(f"warning: {warning}")


def _mount_options(options: MountOptions, lists: list[str]) -> MountOptions:
    words = [word for text in lists for word in text.split(",") if word]
    for word in words:
        name = word.removeprefix("no")
        if name in {"suid", "dev", "exec"}:
            chosen: Any = {name: word == name}
            options = dataclasses.replace(options, **chosen)
        elif word == "ro":
            note("-o ro changes nothing: every change is refused, and the superblock stays writable to see attempts")
        elif word not in _IMPLIED and not word.startswith("x-"):
            raise UsageError(f"unknown mount option {word!r}: expected suid, dev, exec, nosuid, nodev or noexec")
    return options
