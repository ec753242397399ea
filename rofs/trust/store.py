# SPDX-License-Identifier: Apache-2.0
"""Loads pinned certificates from files and directories, and says which files were skipped and why.

Source: the trust store of systemd-dissect(1), `*.crt` in the `verity.d` directories, where a symlink
to /dev/null masks every file of its name in this and later directories.
This module does not choose the directories and decides nothing about an image.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from rofs.errors import RofsError, from_os_error
from rofs.trust.verify import TrustedCertificate

_SUFFIX = ".crt"
_MASK = "/dev/null"


@dataclass(frozen=True, slots=True)
class LoadedTrust:
    """What was found.

    Attributes:
        certificates: Each once, in the order of the arguments and sorted within a directory.
        skipped: Path and reason of each file in a directory that was not used.
    """

    certificates: tuple[TrustedCertificate, ...]
    skipped: tuple[tuple[str, str], ...]


def load_trust(paths: Sequence[str]) -> LoadedTrust:
    """Load pinned certificates.

    Args:
        paths: PEM certificate files of any suffix, each with one or more certificates, and
            directories, of which `*.crt` is used; in order of precedence for masks.

    Returns:
        The certificates, and what was skipped.

    Raises:
        InputError: A path is missing, or a file that was named is no certificate.
        HostError: A path that was named is unreadable.
    """
    certificates: list[TrustedCertificate] = []
    skipped: list[tuple[str, str]] = []
    masks: dict[str, str] = {}
    for path in paths:
        if os.path.isdir(path):
            found, left_out = _load_directory(path, masks)
            certificates += found
            skipped += left_out
        else:
            certificates += _load_file(path)
    unique: dict[str, TrustedCertificate] = {}
    for trusted in certificates:
        unique.setdefault(trusted.fingerprint, trusted)
    return LoadedTrust(tuple(unique.values()), tuple(skipped))


def _load_file(path: str) -> list[TrustedCertificate]:
    from rofs.trust import keys  # noqa: PLC0415 - a pinned root hash needs no cryptography

    loaded = keys.load_certificates(path)
    return [TrustedCertificate(path, found, keys.fingerprint(found)) for found in loaded]


def _load_directory(directory: str, masks: dict[str, str]) -> tuple[list[TrustedCertificate], list[tuple[str, str]]]:
    try:
        names = sorted(os.listdir(directory), key=os.fsencode)
    except OSError as error:
        raise from_os_error(error, "cannot read", directory) from error
    certificates: list[TrustedCertificate] = []
    skipped: list[tuple[str, str]] = []
    for name in names:
        path = os.path.join(directory, name)
        if _is_mask(path):
            masks.setdefault(name, path)
        reason = f"masked by {masks[name]}" if name in masks else _why_not(path)
        if reason is None:
            try:
                certificates += _load_file(path)
            except RofsError as error:
                reason = str(error)
        if reason is not None:
            skipped.append((path, reason))
    return certificates, skipped


def _is_mask(path: str) -> bool:
    return path.endswith(_SUFFIX) and os.path.islink(path) and os.path.realpath(path) == _MASK


def _why_not(path: str) -> str | None:
    """Why a directory entry is not even opened, or None."""
    if not path.endswith(_SUFFIX):
        return f"its name does not end in {_SUFFIX}"
    if not os.path.isfile(path):  # a FIFO or device could block or never end
        return "it is not a regular file"
    return None
