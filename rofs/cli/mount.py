# SPDX-License-Identifier: Apache-2.0
"""`rofs mount`: a verified image as a filesystem."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rofs.cli import config
from rofs.cli.options import UsageError, naming, note
from rofs.cli.trust_options import add_trust_options, trust_policy
from rofs.errors import InputError, printable
from rofs.fuse.shared import MAX_WORKERS

if TYPE_CHECKING:
    from rofs.fuse.launch import MountOptions
    from rofs.image.open import ImageFacts

HELP = """
Mount a verified image. Every block is checked when it is read; a bad one is an I/O error. Returns when the
mount answers. Set-user-id bits, file capabilities and device nodes have no effect unless -o suid,dev.

In audit mode every write, rename and unlink is refused with EROFS and recorded in the audit log with who
tried. In sealed mode the mount is read-only for the kernel too, which refuses before rofs sees it: cheaper,
but nobody learns who tried. In both modes it is recorded when somebody remounts it or mounts over it.

The first corrupt block can also end the mount (--on-corruption stop: out of sight at once, the processes that
serve it end within seconds, with exit code 4 in the foreground) or restart the machine (restart: root only,
once for each image, as /var/lib/rofs/restarted-ROOTHASH says from then on; after that as eio).

Hooks run as whoever mounts, root without confinement, through /bin/sh: one process of each at a time, at most one
a second and 30 s long. ROFS_SKIPPED says how many events came too fast for one; the log has them all.

example:
  rofs mount tree.raw /mnt --trust keys/rofs.crt -o suid,dev

  mail what is corrupt, and go on:
  rofs mount tree.raw /mnt --corruption-hook 'mail -s corrupt root'

  a read-only superblock, and eight processes that answer:
  rofs mount tree.raw /mnt --trust keys/rofs.crt --mode sealed --workers 8

  after an update of rofs, put the new program in the place of the one that serves a living mount:
  rofs mount tree.raw /mnt --trust keys/rofs.crt --takeover
"""

MODES = ("audit", "sealed")
ON_CORRUPTION = ("eio", "stop", "restart")

_KNOWN = "suid, dev, exec, allow_other (or no and one of these), or noresend"

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
    parser.add_argument(
        "--mode",
        choices=MODES,
        help="audit: refuse every change and record who tried (the default); sealed: let the kernel refuse it, unseen",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=_worker_count,
        help=f"how many processes answer, 1 to {MAX_WORKERS} (default: as many as there are CPUs, from 2 to 4)",
    )
    parser.add_argument(
        "--on-corruption",
        choices=ON_CORRUPTION,
        help="what the first corrupt block brings about besides the I/O error (default: eio)",
    )
    parser.add_argument("--event-hook", metavar="CMD", help="shell command that gets each event on its standard input")
    parser.add_argument("--corruption-hook", metavar="CMD", help="the same for corruption alone")
    parser.add_argument(
        "--takeover",
        action="store_true",
        help="let this version of rofs serve what is mounted on DIR already; IMAGE must be the image that is "
        "mounted there, everything but --workers stays as it is, and reads go on meanwhile",
    )
    add_trust_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.fuse import launch

    if arguments.takeover:
        _check_takeover(arguments)
        policy = trust_policy(arguments)
        with naming(arguments.image):
            launch.take_over(arguments.image, arguments.directory, policy, workers=arguments.workers)
        return
    options = _options(arguments)
    with naming(arguments.image):
        if arguments.foreground:
            launch.mount_in_foreground(arguments.image, arguments.directory, options, _announce(arguments.directory))
        else:
            _warn(launch.mount_in_background(arguments.image, arguments.directory, options))


def _options(arguments: argparse.Namespace) -> MountOptions:
    """What the command line says, and where it does not, /etc/rofs.toml."""
    from rofs.fuse import launch, places
    from rofs.fuse.request import Reactions

    defaults = config.load()
    log = arguments.audit_log
    if log is None and defaults.audit_log_directory is not None:
        usual = places.default_log(os.path.realpath(os.fsencode(arguments.directory)))
        log = os.path.join(defaults.audit_log_directory, os.path.basename(usual))
    options = launch.MountOptions(
        trust_policy(arguments),
        log,
        mode=arguments.mode or defaults.mode or MODES[0],
        workers=arguments.workers or defaults.workers,
        reactions=Reactions(
            arguments.on_corruption or defaults.on_corruption or ON_CORRUPTION[0],
            _first(arguments.event_hook, defaults.event_hook),
            _first(arguments.corruption_hook, defaults.corruption_hook),
        ),
    )
    try:
        options = _mount_options(options, list(defaults.options))
    except UsageError as error:
        raise InputError(f"{printable(defaults.path)}, options in [mount]: {error}") from error
    return _mount_options(options, arguments.options)


def _first(*values: str | None) -> str | None:
    """The first that is said; an empty one says that there is none."""
    return next((value for value in values if value is not None), None) or None


def _worker_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= MAX_WORKERS):
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: expected a number from 1 to {MAX_WORKERS}")
    return int(text)


def _check_takeover(arguments: argparse.Namespace) -> None:
    """Refuse what a living mount cannot change any more, rather than ignore it."""
    given = {
        "--foreground": arguments.foreground,
        "--audit-log": arguments.audit_log is not None,
        "--mode": arguments.mode is not None,
        "--on-corruption": arguments.on_corruption is not None,
        "--event-hook": arguments.event_hook is not None,
        "--corruption-hook": arguments.corruption_hook is not None,
        "-o": bool(arguments.options),
    }
    for option in [option for option, is_given in given.items() if is_given]:
        raise UsageError(f"--takeover goes without {option}: the mount keeps what it was mounted with")


def _announce(directory: str) -> Callable[[ImageFacts], None]:
    def announce(facts: ImageFacts) -> None:
        _warn(facts)
        note(f"mounted on {printable(directory)}; Ctrl-C unmounts")
        sys.stderr.flush()

    return announce


def _warn(facts: ImageFacts) -> None:
    from rofs.fuse import confine

    for warning in (*facts.warnings, *confine.support().lacks):
        note(f"warning: {warning}")


def _mount_options(options: MountOptions, lists: list[str]) -> MountOptions:
    words = [word for text in lists for word in text.split(",") if word]
    for word in words:
        name = word.removeprefix("no")
        if name in {"suid", "dev", "exec"}:
            chosen: Any = {name: word == name}
            options = dataclasses.replace(options, **chosen)
        elif word in {"allow_other", "noallow_other"}:
            options = dataclasses.replace(options, allow_other=word == "allow_other")
        elif word == "noresend":
            options = dataclasses.replace(options, resend=False)
        elif word == "ro" and options.mode == "sealed":
            continue
        elif word == "ro":
            note("-o ro changes nothing: every change is refused, and the superblock stays writable to see attempts")
        elif word not in _IMPLIED and not word.startswith("x-"):
            raise UsageError(f"unknown mount option {word!r}: expected {_KNOWN}")
    return options
