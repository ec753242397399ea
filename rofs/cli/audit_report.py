# SPDX-License-Identifier: Apache-2.0
"""A report on audit logs for people: tables. What is counted, `audit.report` knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rofs.audit.report import Report, top
from rofs.cli.render import out, out_pairs

_LONGEST_BAR = 40


def out_report(report: Report, number: int) -> None:
    """Write a report.

    Args:
        report: What was counted.
        number: How many names of each kind at most.
    """
    if not report.events:
        out("no events")
        return
    out_pairs(
        [
            ("from", report.first),
            ("to", report.last),
            ("events", report.events),
            ("refused writes", _attempts(report)),
            ("corruption", report.by_event["corruption"]),
            ("tamper", report.by_event["tamper"]),
            ("not recorded", report.dropped),
        ]
    )
    for title, counts in (
        ("programs", report.programs),
        ("users", report.users),
        ("paths", report.paths),
        ("operations", report.operations),
        ("corrupt files, by reads that failed", report.corruption),
    ):
        _out_top(title, counts, number)
    _out_hours(report.hours)
    _out_tamper(report, number)


def _attempts(report: Report) -> str:
    if not report.kernel and not report.seen_twice:
        return str(report.attempts)
    return (
        f"{report.attempts}, of which {report.kernel} by the kernel; {report.seen_twice} of its records were left out, "
        "being here already"
    )


def _out_top(title: str, counts: Counter[str], number: int) -> None:
    if counts and number:
        rest = sum(count for _, count in top(counts)[number:])
        more = [(f"({len(counts) - number} more)", rest)] if rest else []
        _out_table(title, [*top(counts, number), *more])


def _out_table(title: str, rows: Iterable[tuple[str, int]]) -> None:
    shown = [(name, str(count)) for name, count in rows]
    width = max(len(count) for _, count in shown)
    out("")
    out(f"{title}:")
    for name, count in shown:
        out(f"  {count:>{width}}  {name}")


def _out_hours(hours: Counter[str]) -> None:
    if not hours:
        return
    most = max(hours.values())
    width = len(str(most))
    out("")
    out("by hour, UTC:")
    for hour, count in sorted(hours.items()):
        out(f"  {hour}  {count:>{width}}  {'#' * max(1, round(_LONGEST_BAR * count / most))}")


def _out_tamper(report: Report, number: int) -> None:
    if not report.tamper or not number:
        return
    out("")
    out("tamper:")
    for event in report.tamper[-number:]:
        out(f"  {event['time']}  {event['status']}  {event['path']}  {event['detail']}")
