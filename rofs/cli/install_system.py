# SPDX-License-Identifier: Apache-2.0
"""`rofs install-system`: puts in place what pip cannot, and takes it away again."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from rofs.cli.options import UsageError, note
from rofs.cli.render import out
from rofs.errors import printable

if TYPE_CHECKING:
    from rofs.system.installer import Report

HELP = """
Install what the system needs to know of rofs: the helper that `mount -t fuse.rofs` and /etc/fstab run, the
unit rofs@.service, man pages, completion for bash and zsh, examples, and /etc/rofs.toml with the defaults.
Run it again after an update of rofs. What somebody has changed in /etc/rofs.toml stays.

Helper and unit start the Python that runs this command, so with --root it must be in the same place there.

example:
  sudo rofs install-system
  sudo rofs install-system --uninstall

  for a package:
  rofs install-system --root debian/rofs --prefix /usr
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("--root", metavar="DIR", default="/", help="the directory that is / of the system")
    parser.add_argument(
        "--prefix", metavar="DIR", help="where units, man pages and completion go (default: /usr/local)"
    )
    parser.add_argument(
        "--uninstall",
        action="store_true",
        help="remove what was installed; files that were changed since stay",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.system import installer

    if arguments.uninstall:
        if arguments.prefix is not None:
            raise UsageError("--uninstall goes without --prefix: what was installed is known")
        report = installer.uninstall(arguments.root)
    else:
        report = _install(arguments)
    _tell(report)
    if os.path.realpath(arguments.root) == "/" and os.path.isdir("/run/systemd/system"):
        note("for systemd to see it: systemctl daemon-reload")


def _install(arguments: argparse.Namespace) -> Report:
    import rofs
    from rofs.cli.main import complete_parser
    from rofs.system import content, installer

    files = content.files(
        complete_parser(),
        python=sys.executable,
        version=rofs.__version__,
        prefix=arguments.prefix or content.DEFAULT_PREFIX,
        sbin=installer.sbin(arguments.root),
    )
    umask = os.umask(0o022)  # directories that others must be able to enter
    try:
        return installer.install(arguments.root, files)
    finally:
        os.umask(umask)


def _tell(report: Report) -> None:
    for word, paths in (("installed", report.written), ("removed", report.removed)):
        for path in sorted(paths):
            out(f"{word} {printable(path)}")
    for path in sorted(report.kept):
        note(f"{printable(path)} was changed since it was installed; it was left as it is")
    if not (report.written or report.removed):
        out("nothing to do")
