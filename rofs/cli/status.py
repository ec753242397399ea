# SPDX-License-Identifier: Apache-2.0
"""`rofs status`: what is mounted, and what has happened to it."""

from __future__ import annotations

import argparse
import os
from typing import Any

from rofs.audit.event import escape_path
from rofs.cli.render import image_pairs, out, out_bytes, out_json, out_pairs
from rofs.errors import StateError, printable

HELP = """
Show all rofs mounts of this user, or one. /proc/mounts says rw of a mount in audit mode: the kernel
passes attempts to write on, so that they can be recorded, and rofs refuses each with EROFS. It says ro of
one in sealed mode: the kernel refuses them itself.

--check prints one line and exits with 0 when all is well, else with 1: a mount that is not there or does not
answer, corruption, events that are not in the audit log, a log that cannot be written, missing workers. Without
DIR it takes all mounts that answer, and wants at least one: name those that must be there.

--metrics and --metrics-file say the same as numbers for Prometheus; a DIR where nothing is mounted has rofs_up 0.

example:
  rofs status /mnt --json
  rofs status /mnt --check
  rofs status --metrics-file /var/lib/prometheus/node-exporter/rofs.prom
"""

_MODES = {
    "audit": "/proc/mounts says rw; every change is refused and recorded",
    "sealed": "/proc/mounts says ro; the kernel refuses changes before rofs sees who tried",
}


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("directory", metavar="DIR", nargs="?", help="one mount point (default: all)")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print a list of mounts as JSON")
    form.add_argument("--check", action="store_true", help="print one line; exit with 1 unless all is well")
    form.add_argument("--metrics", action="store_true", help="print numbers in the Prometheus text format")
    form.add_argument(
        "--metrics-file", metavar="FILE", help="write them to FILE, for node_exporter's textfile collector"
    )


def run(arguments: argparse.Namespace) -> int | None:
    """Run the verb."""
    if arguments.check or arguments.metrics or arguments.metrics_file is not None:
        return _monitor(arguments)
    _show(arguments)
    return None


def _monitor(arguments: argparse.Namespace) -> int:
    """For programs that watch: a mount that is not there is a finding, not an error."""
    from rofs.cli.health import summary
    from rofs.cli.metrics import metrics_text, write_file

    mounts, missing = _found(arguments.directory)
    if arguments.check:
        is_well, line = summary(mounts, list(missing.values()))
        out(line)
        return 0 if is_well else 1
    text = metrics_text(mounts, list(missing))
    if arguments.metrics_file is not None:
        write_file(arguments.metrics_file, text)
    else:
        out_bytes(text.encode())
    return 0


def _found(directory: str | None) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The mounts that answer, and those that should, with the reason why they do not."""
    from rofs.fuse import control

    if directory is None:
        return control.mounts(), {}
    try:
        return [control.status(directory)], {}
    except StateError as error:
        return [], {escape_path(os.fsencode(os.path.realpath(directory))): str(error)}


def _show(arguments: argparse.Namespace) -> None:
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
    pairs: list[tuple[str, object]] = [
        ("mount point", printable(mount["mountpoint"])),
        ("image", printable(mount["image"])),
        *image_pairs(mount),
        ("accepted by", mount["accepted_by"]),
        ("mode", f"{mount['mode']} ({_MODES.get(mount['mode'], 'unknown to this version of rofs')})"),
        ("processes", f"keeper {mount['keeper']}, supervisor {mount['supervisor']}"),
        *((f"worker {worker['pid']}", _worker(worker)) for worker in mount["workers"]),
        ("on corruption", mount.get("on_corruption")),
        ("restarts", mount.get("restarts")),
        ("verified blocks", mount["verified_blocks"]),
        ("blocked writes", mount["blocked_writes"]),
        ("corruption", mount["corruption"]),
        ("audit log", printable(mount["audit_log"])),
        ("audit head", mount["audit_head"]),
    ]
    if mount["dropped"] or mount["audit_error"]:
        pairs.append(("not recorded", f"{mount['dropped']} events; {mount['audit_error']}"))
    return pairs


def _worker(worker: dict[str, Any]) -> str | None:
    """What one worker does; what is not known of it is left out."""
    parts = []
    if "requests" in worker:
        parts.append(f"{worker['requests']} requests")
    if "rss_bytes" in worker:
        limit = f" of {_mib(worker['memory_limit_bytes'])}" if "memory_limit_bytes" in worker else ""
        parts.append(f"{_mib(worker['rss_bytes'])}{limit} MiB")
    return ", ".join(parts) or None


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.0f}"
