# SPDX-License-Identifier: Apache-2.0
"""`rofs audit`: show, verify and follow a log, report on it, and print rules for the kernel's audit subsystem."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

from rofs.cli.options import UsageError, add_debug_option
from rofs.cli.render import flush, out, out_json
from rofs.errors import ChainError, InputError

HELP = """
Show the events of an audit log, verify it, follow it, or report on it. LOG is all files of the log: LOG.1 and
so on, which were rotated away, come first. Each line carries the hash of the one before, from file to file, so
an edited or a missing line shows by itself. A log that was cut at its end shows only against a head that was
kept elsewhere: status prints it.

example:
  rofs audit show /var/log/rofs/mnt.jsonl
  rofs audit verify /var/log/rofs/mnt.jsonl --head 3b0c...
  rofs audit report /var/log/rofs/*.jsonl --since 1d
"""

_LOOK_AGAIN_SECONDS = 0.2
_SHOWN_AT_FIRST = 10


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    verbs = parser.add_subparsers(dest="what", metavar="show|verify|follow|report|rules", required=True)

    def add(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        below = verbs.add_parser(name, help=summary, epilog=f"example:  rofs audit {name} {example}")
        add_debug_option(below)
        return below

    show = add("show", "print the events, one line each", "/var/log/rofs/mnt.jsonl --json | jq .path")
    verify = add("verify", "check the chain of hashes", "/var/log/rofs/mnt.jsonl --head 3b0c...")
    follow = add("follow", "print new events as they come, checked", "/var/log/rofs/mnt.jsonl")
    for one in (show, verify, follow):
        one.add_argument("log", metavar="LOG", help="the audit log")
    verify.add_argument("--head", metavar="HASH", help="a head of this log that was kept elsewhere")
    verify.add_argument("--after", metavar="HASH", help="the head of the file before LOG, which is then checked alone")
    report = add("report", "count who tried what, what is corrupt, who tampered", "/var/log/rofs/mnt.jsonl --since 1d")
    report.add_argument("log", metavar="LOG", nargs="+", help="an audit log")
    report.add_argument(
        "--since", metavar="TIME", help="leave out what was before: 2025-01-31T12:00 (local), or 90m, 1d"
    )
    report.add_argument(
        "--kernel", metavar="FILE", help="records of the kernel's audit: ausearch --key rofs --raw > FILE"
    )
    report.add_argument("--top", metavar="N", type=int, default=10, help="how many names of each kind (default: 10)")
    for one in (show, verify, follow, report):
        one.add_argument("--json", action="store_true", help="print JSON")
    rules = add("rules", "print rules for auditctl: what the kernel refuses before rofs sees it", "/mnt > rofs.rules")
    rules.add_argument("directory", metavar="DIR", nargs="+", help="a mount point")


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    verbs: dict[str, Callable[[argparse.Namespace], None]] = {
        "show": _show,
        "verify": _verify,
        "follow": _follow,
        "report": _report,
        "rules": _rules,
    }
    verbs[arguments.what](arguments)


def _show(arguments: argparse.Namespace) -> None:
    for event in _events(arguments.log):
        _out_event(event, as_json=arguments.json)


def _verify(arguments: argparse.Namespace) -> None:
    from rofs.audit.chain import parsed_head, read_lines, verify_files
    from rofs.audit.event import GENESIS
    from rofs.audit.rotation import opened_log

    for option in ("head", "after"):
        try:
            if getattr(arguments, option) is not None:
                parsed_head(getattr(arguments, option))
        except InputError as error:
            raise UsageError(f"--{option}: {error}") from error
    with opened_log(arguments.log, alone=arguments.after is not None) as files:
        lines = [(name, read_lines(file, name)) for name, file in files]
        report = verify_files(lines, arguments.head, arguments.after)
    found: dict[str, Any] = {"events": report.events, "head": report.head, "intact": True}
    text = f"intact: {report.events} events, head {report.head}"
    if len(files) > 1:
        found["files"] = len(files)
        text += f", in {len(files)} files"
    if report.after != GENESIS:
        found["after"] = report.after
        text += f", after {report.after} in a file before"
    if arguments.json:
        out_json(found)
    else:
        out(text)


def _follow(arguments: argparse.Namespace) -> None:
    from collections import deque

    from rofs.audit.follow import Follower

    try:
        with Follower(arguments.log) as follower:
            for event in deque(follower.new_events(), _SHOWN_AT_FIRST):
                _out_event(event, as_json=arguments.json)
            while True:
                flush()
                time.sleep(_LOOK_AGAIN_SECONDS)
                for event in follower.new_events():
                    _out_event(event, as_json=arguments.json)
    except KeyboardInterrupt:
        return


def _report(arguments: argparse.Namespace) -> None:
    from rofs.audit.report import report_on
    from rofs.cli.audit_report import out_report
    from rofs.cli.times import parse_since

    since = parse_since(arguments.since, time.time_ns()) if arguments.since is not None else None
    report = report_on((event for log in arguments.log for event in _events(log)), since)
    if arguments.kernel is not None:
        from rofs.audit.kernel import refusals
        from rofs.audit.rotation import open_log_file

        with open_log_file(os.fsencode(arguments.kernel)) as file:
            for record in refusals(file):
                if since is None or record["time"] >= since:
                    report.add_kernel(record)
    if arguments.json:
        out_json(report.as_json())
    else:
        out_report(report, max(0, arguments.top))


def _rules(arguments: argparse.Namespace) -> None:
    from rofs.audit.rules import rules_for

    directories = [os.path.realpath(os.fsencode(name)) for name in arguments.directory]
    for line in list(rules_for(directories, platform.machine())):  # all or none
        out(line)


def _events(path: str) -> Iterator[dict[str, Any]]:
    from rofs.audit.rotation import opened_log
    from rofs.audit.show import read_events

    with opened_log(path) as files:
        for name, file in files:
            try:
                yield from read_events(file)
            except ChainError as error:
                raise ChainError(f"{name}: {error}") from error


def _out_event(event: dict[str, Any], *, as_json: bool) -> None:
    from rofs.audit.show import render

    if as_json:
        out_json(event, indent=None)
    else:
        out(render(event))
