# SPDX-License-Identifier: Apache-2.0
"""Rules for the kernel's audit subsystem: attempts that fail before rofs could see them.

The kernel refuses by itself what permissions forbid, O_TMPFILE, and on a sealed mount everything. Pure: they
are only written here, for auditctl(8) and augenrules(8) to load; `kernel` reads what comes of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from rofs.audit.syscalls import NEWER_THAN_TOOLS, OF_MACHINE, OPENING
from rofs.errors import HostError, InputError, printable

KEY: Final = "rofs"

# By what the kernel refuses: a read-only superblock, permissions, immutable files and privileges.
_REFUSALS = ("EROFS", "EACCES", "EPERM")

# O_TMPFILE fails before the kernel has noted which directory it was about (fs/namei.c, do_tmpfile), so these
# cannot be held to one: `open` and `openat` with that flag in their argument.
_TMPFILE_FLAG = "0x400000"
_TMPFILE_REFUSALS = ("EROFS", "EOPNOTSUPP")
_TMPFILE_CALLS = {"open": "a1", "openat": "a2"}

# A rule file has no way to quote.
_PLAIN = re.compile(rb"/[^\x00-\x20\x7f\"'#\\]*")
_LONGEST_PATH_BYTES = 4095

_HEAD = """\
## Attempts to change what a rofs mount shows that the kernel refuses before rofs sees them: where permissions
## forbid it, O_TMPFILE, and everything on a mount in sealed mode. Load them while the directories are mounted
## (auditctl -R FILE): the kernel forgets them at umount. What they find: ausearch --key {key} --raw
## O_TMPFILE on any filesystem, since such a filter does not find it."""


def rules_for(directories: Iterable[bytes], machine: str) -> Iterator[str]:
    """The lines of a rule file.

    Args:
        directories: Mount points, absolute.
        machine: Of the kernel, as uname(2) calls it.

    Yields:
        Each line, without newline.

    Raises:
        InputError: A directory cannot stand in a rule.
        HostError: The machine is none that is known here.
    """
    if machine not in OF_MACHINE:
        raise HostError(f"no audit rules for a machine of type {printable(machine)}; known: {', '.join(OF_MACHINE)}")
    yield from _HEAD.format(key=KEY).splitlines()
    for width, calls in OF_MACHINE[machine].items():
        for call in (name for name in _TMPFILE_CALLS if name in calls):
            for errno in _TMPFILE_REFUSALS:
                yield _rule(width, [call], f"-F {_TMPFILE_CALLS[call]}&{_TMPFILE_FLAG} -F exit=-{errno}")
    for directory in directories:
        yield from _rules_for(_checked(directory), machine)


def _rules_for(directory: str, machine: str) -> Iterator[str]:
    for width, calls in OF_MACHINE[machine].items():
        opening = [name for name in calls if name in OPENING]
        changing = [str(calls[name]) if name in NEWER_THAN_TOOLS else name for name in calls if name not in OPENING]
        where = f"-F dir={directory}"
        for errno in _REFUSALS:
            yield _rule(width, opening, f"{where} -F perm=w -F exit=-{errno}")
            yield _rule(width, changing, f"{where} -F exit=-{errno}")


def _rule(width: str, calls: Iterable[str], filters: str) -> str:
    return f"-a always,exit -F arch={width} -S {','.join(sorted(calls))} {filters} -F key={KEY}"


def _checked(directory: bytes) -> str:
    text = directory.decode("utf-8", "surrogateescape")
    if not _PLAIN.fullmatch(directory) or not text.isprintable() or len(directory) > _LONGEST_PATH_BYTES:
        raise InputError(
            f"{printable(directory)} cannot stand in an audit rule: expected an absolute path without spaces, quotes, "
            "backslashes, # and what cannot be printed; mount at another place"
        )
    return text
