# SPDX-License-Identifier: Apache-2.0
"""Puts together the fields of an event from what worker, /proc and resolver have found out. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rofs.fuse.messages import Attempt, FaultReport, InternalReport, PathsAnswer


def of_attempt(
    attempt: Attempt, who: Mapping[str, int | str], paths: Sequence[str], new_paths: Sequence[str]
) -> dict[str, Any]:
    """Fields of `write_blocked`.

    Args:
        attempt: As the worker saw it.
        who: From `audit.identity`; empty when the process is gone or not visible.
        paths: Of the inode, or of the directory when the attempt has a name.
        new_paths: Of the directory of the new name, for rename and link.
    """
    named = [_join(path, attempt.name) for path in paths] if attempt.name is not None else list(paths)
    second = [_join(path, attempt.name2) for path in new_paths] if attempt.name2 is not None else []
    return {
        "op": attempt.op,
        **_paths(named),
        "path2": second[0] if second else None,
        "flags": list(attempt.flags) or None,
        "changes": list(attempt.changes) or None,
        "xattr": attempt.xattr,
        "errno": attempt.errno,
        "nid": attempt.nid if attempt.name is None or not paths else None,
        "detail": _unknown_path(attempt) if attempt.name is not None and not paths else None,
        **({"tid": attempt.tid} if attempt.tid else {}),
        **who,
        "uid": attempt.uid,
        "gid": attempt.gid,
    }


def _unknown_path(attempt: Attempt) -> str:
    """What is known of an attempt when the resolver knows no path of its directory."""
    new = "" if attempt.name2 is None else f", new name {attempt.name2} in the directory with nid {attempt.nid2}"
    return f"path unknown: name {attempt.name} in the directory with nid {attempt.nid}{new}"


def of_fault(report: FaultReport, answer: PathsAnswer) -> tuple[str, dict[str, Any]]:
    """Name and fields of `corruption` (bytes that do not match) or `io_error` (bytes that do not come)."""
    return "corruption" if report.kind == "mismatch" else "io_error", {
        "nid": report.nid,
        **_paths(answer.paths),
        "offset": answer.offset,
        "block": report.block,
        "level": report.level,
        "expected": report.expected,
        "found": report.found,
    }


def of_internal(report: InternalReport, paths: Sequence[str]) -> dict[str, Any]:
    """Fields of `io_error` for a request that failed otherwise."""
    return {"nid": report.nid, **_paths(paths), "detail": report.detail}


def _paths(paths: Sequence[str]) -> dict[str, Any]:
    return {"path": paths[0]} if len(paths) == 1 else {"paths": list(paths) or None}


def _join(directory: str, name: str | None) -> str:
    return f"{directory.rstrip('/')}/{name}"
