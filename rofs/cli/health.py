# SPDX-License-Identifier: Apache-2.0
"""Whether mounts are as they should be, in one line, as monitoring plugins say it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def problems_of(mount: Mapping[str, Any]) -> list[str]:
    """What is wrong with a mount.

    Args:
        mount: As `status --json` has it.

    Returns:
        A phrase each; none when it is healthy.
    """
    return list(_problems(mount))


def _problems(mount: Mapping[str, Any]) -> Iterator[str]:
    workers, wanted = len(mount.get("workers", ())), mount.get("workers_wanted", 1)
    if workers < wanted:
        yield f"{workers} of {wanted} workers"
    if mount.get("corruption"):
        yield f"{mount['corruption']} reads met corrupt blocks"
    if mount.get("dropped"):
        yield f"{mount['dropped']} events are not in the audit log"
    if mount.get("audit_error"):
        yield f"audit log: {mount['audit_error']}"


def summary(mounts: Sequence[Mapping[str, Any]], missing: Sequence[str]) -> tuple[bool, str]:
    """Judge mounts.

    Args:
        mounts: Those that answer, as `status --json` has them.
        missing: Why one that was expected does not answer.

    Returns:
        Whether all is well, and a line that says so or why not.
    """
    found = list(missing)
    found += [f"{mount['mountpoint']}: {problem}" for mount in mounts for problem in problems_of(mount)]
    if found:
        return False, f"ROFS CRITICAL - {'; '.join(found)}"
    if not mounts:
        return False, "ROFS CRITICAL - no rofs mount of this user answers"
    named = "; ".join(f"{mount['mountpoint']}: {mount['name'] or '-'} {mount['version'] or '-'}" for mount in mounts)
    blocked = sum(mount["blocked_writes"] for mount in mounts)
    return True, f"ROFS OK - {named}; {blocked} writes refused"
