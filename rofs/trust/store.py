# SPDX-License-Identifier: Apache-2.0
"""Loads pinned certificates from files and directories, and says which files were skipped and why.

Source: the trust store of systemd-dissect(1), `*.crt` in the `verity.d` directories, in the order of
precedence that systemd gives its configuration directories: of several files of one name the first
counts, and one that is empty or a symbolic link to /dev/null masks the later ones.
This module decides nothing about an image.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from rofs.errors import HostError, InputError, RofsError, from_os_error
from rofs.trust.verify import TrustedCertificate

DEFAULT_DIRECTORIES = ("/etc/verity.d", "/run/verity.d", "/usr/local/lib/verity.d", "/usr/lib/verity.d")
_SUFFIX = ".crt"
_DEV_NULL = os.makedev(1, 3)


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
    """Load the pinned certificates that somebody named.

    A file that masks does so in its own and later directories; files of one name do not override each
    other: every key pair of `rofs keygen` has a `rofs.crt`.

    Args:
        paths: PEM certificate files of any suffix, each with one or more certificates, and
            directories, of which `*.crt` is used; in order of precedence for masks.

    Returns:
        The certificates, and what was skipped.

    Raises:
        InputError: A path is missing, or a file that was named is no certificate.
        HostError: A path that was named is unreadable.
    """
    loading = _Loading(override=False)
    for path in paths:
        if os.path.isdir(path):
            loading.take_directory(path)
        else:
            loading.certificates += _load_file(path)
    return loading.result()


def load_default_trust(root: str = "/") -> LoadedTrust:
    """Load the pinned certificates that this host trusts: `*.crt` in `DEFAULT_DIRECTORIES`.

    Directories that do not exist are no error, and nothing in one that does is: it is skipped.

    Args:
        root: Where the directories are looked for; another one than `/` is for tests and images.
    """
    loading = _Loading(override=True)
    for directory in DEFAULT_DIRECTORIES:
        path = os.path.join(root, directory.lstrip("/"))
        try:
            loading.take_directory(path)
        except InputError:  # it does not exist
            continue
        except HostError as error:
            loading.skipped.append((path, str(error)))
    return loading.result()


def _load_file(path: str) -> list[TrustedCertificate]:
    from rofs.trust import keys  # noqa: PLC0415 - a pinned root hash needs no cryptography

    loaded = keys.load_certificates(path)
    return [TrustedCertificate(path, found, keys.fingerprint(found)) for found in loaded]


class _Loading:
    """Several directories, one after the other.

    Args:
        override: Whether a file hides those of its name in later directories.
    """

    def __init__(self, *, override: bool) -> None:
        self.certificates: list[TrustedCertificate] = []
        self.skipped: list[tuple[str, str]] = []
        self._override = override
        self._masks: dict[str, str] = {}  # by name, the path that masks
        self._taken: dict[str, str] = {}  # by name, the path that counts

    def result(self) -> LoadedTrust:
        """Each certificate once."""
        unique: dict[str, TrustedCertificate] = {}
        for trusted in self.certificates:
            unique.setdefault(trusted.fingerprint, trusted)
        return LoadedTrust(tuple(unique.values()), tuple(self.skipped))

    def take_directory(self, directory: str) -> None:
        """Take what a directory has.

        Raises:
            InputError: It does not exist or is none.
            HostError: It is unreadable.
        """
        try:
            names = sorted(os.listdir(directory), key=os.fsencode)
        except OSError as error:
            raise from_os_error(error, "cannot read", directory) from error
        for name in names:
            path = os.path.join(directory, name)
            reason = self._passed_over(name) or self._take(name, path)
            if reason is not None:
                self.skipped.append((path, reason))

    def _passed_over(self, name: str) -> str | None:
        """Why the name of a file alone keeps it from being looked at, or None."""
        if not name.endswith(_SUFFIX):
            return f"its name does not end in {_SUFFIX}"
        if self._override and name in self._taken:
            return f"overridden by {self._taken[name]}"
        return f"masked by {self._masks[name]}" if name in self._masks else None

    def _take(self, name: str, path: str) -> str | None:
        """Take one file; why not, if not."""
        try:
            status = os.stat(path)
        except OSError as error:  # a link that leads nowhere, as systemd has it, does not take the name
            return str(from_os_error(error, "cannot read", path))
        if _is_mask(status):
            self._masks[name] = path
            return f"it masks {name}"
        if not stat.S_ISREG(status.st_mode):  # a FIFO or device could block or never end
            return "it is not a regular file"
        self._taken.setdefault(name, path)
        try:
            self.certificates += _load_file(path)
        except RofsError as error:
            return str(error)
        return None


def _is_mask(status: os.stat_result) -> bool:
    """An empty file, or /dev/null behind a symbolic link."""
    if stat.S_ISREG(status.st_mode):
        return status.st_size == 0
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == _DEV_NULL
