# SPDX-License-Identifier: Apache-2.0
"""Puts files into a system and takes exactly those away again, by a manifest of what was installed.

The manifest lists each file with the digests it may have, so a file that somebody has changed since is known
as such: the administrator's configuration is then never touched, and nothing that somebody else has put
there is overwritten. Does not know what the files are for (`content`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from rofs import durable
from rofs.errors import InputError, StateError, from_os_error, printable
from rofs.system.content import SystemFile

MANIFEST_PATH: Final = "/var/lib/rofs/system.json"
MANIFEST_VERSION: Final = 1
_MAX_BYTES = 1 << 20  # of a file that is compared or a manifest; ours have some kilobytes
_MAX_LINKS = 40  # as the kernel follows, path_resolution(7)


@dataclass(slots=True)
class Report:
    """What was done, by path on the system that it was done to.

    Attributes:
        written: Files that are new, or other than before.
        unchanged: Files that were there as they should be.
        kept: Files that somebody has changed, and that were left alone.
        removed: Files that are gone.
    """

    written: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Manifest:
    """What was installed: the digests that each file may have, and the directories that were made for them."""

    files: dict[str, list[str]] = field(default_factory=dict)
    directories: list[str] = field(default_factory=list)


def install(root: str | bytes, files: Iterable[SystemFile]) -> Report:
    """Install files, in the place of those that were installed before.

    1. Look at what is there; refuse before anything has changed.
    2. Write the manifest of what is there and what will be: whatever happens now can be uninstalled.
    3. Write the files.
    4. Remove what was installed before and is no longer among them.
    5. Write the manifest of what is there.

    Args:
        root: The directory that is `/` of the system.
        files: What is to be there.

    Raises:
        InputError: A file of that name is there that was not installed by this function.
        StateError: The manifest cannot be read.
        HostError: No permission, no space, an I/O error; running it again completes it.
    """
    root, wanted, report = os.fsencode(root), {file.path: file for file in files}, Report()
    before = _read_manifest(root)
    todo = [file for file in wanted.values() if _must_write(root, file, before, report)]  # 1.
    missing = _missing_directories(root, [*wanted, MANIFEST_PATH])
    after = _Manifest(
        files={path: [_digest(file.data)] for path, file in wanted.items()},
        directories=sorted({*before.directories, *missing}),
    )
    both = {path: [*before.files.get(path, []), *after.files.get(path, [])] for path in before.files | after.files}
    _write_manifest(root, _Manifest(both, after.directories))  # 2.
    for file in todo:  # 3.
        _write(root, file)
    for path in before.files.keys() - wanted.keys():  # 4.
        _remove(root, path, before, report)
    for path in report.kept:
        after.files.setdefault(path, before.files.get(path, []))
    _write_manifest(root, after)  # 5.
    return report


def uninstall(root: str | bytes) -> Report:
    """Remove what `install` has installed, but for what was changed since, and the directories that are empty then.

    Args:
        root: As for `install`.

    Raises:
        StateError: Nothing is installed, or the manifest cannot be read.
        HostError: No permission, or an I/O error; running it again completes it.
    """
    root, report = os.fsencode(root), Report()
    manifest = _read_manifest(root)
    if not manifest.files:
        raise StateError(f"nothing is installed: there is no {MANIFEST_PATH}{_below(root)}")
    for path in manifest.files:
        _remove(root, path, manifest, report)
    durable.remove(locate(root, MANIFEST_PATH))
    for directory in sorted(manifest.directories, key=len, reverse=True):
        _remove_empty(root, directory)
    return report


def sbin(root: str | bytes) -> str:
    """Where mount(8) looks for its helpers: /sbin, which is /usr/sbin wherever the two are one."""
    place = _join(os.fsencode(root), b"/sbin")
    return "/sbin" if os.path.isdir(place) and not os.path.islink(place) else "/usr/sbin"


def locate(root: bytes, path: str) -> bytes:
    """Where a path of the system is, with the symbolic links of its directories followed inside of the system.

    A link to `/usr/sbin` in a system below another root leads to that root's, not to ours.

    Raises:
        InputError: The links lead nowhere.
    """
    at, left, links = b"/", os.fsencode(path).split(b"/"), 0
    while left:
        name = left.pop(0)
        if name in {b"", b"."}:
            continue
        at = os.path.dirname(at) if name == b".." else os.path.join(at, name)
        if not left:
            break
        with contextlib.suppress(OSError):
            target = os.readlink(_join(root, at))
            links += 1
            if links > _MAX_LINKS:
                raise InputError(f"{printable(path)}{_below(root)}: too many symbolic links")
            left[:0] = target.split(b"/")
            at = b"/" if target.startswith(b"/") else os.path.dirname(at)
    return _join(root, at)


def _join(root: bytes, path: bytes) -> bytes:
    return os.path.join(root, path.lstrip(b"/"))


def _below(root: bytes) -> str:
    return "" if os.path.abspath(root) == b"/" else f" below {printable(root)}"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_there(root: bytes, path: str) -> str | None:
    """Digest of a file that is there, None if none is. What is no regular file of ordinary size has none of ours."""
    place = locate(root, path)
    try:
        if not stat.S_ISREG(os.lstat(place).st_mode):
            return "not a regular file"
        with open(place, "rb") as file:
            return _digest(file.read(_MAX_BYTES))
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            return None
        raise from_os_error(error, "cannot read", place) from error


def _mode_there(root: bytes, path: str) -> int:
    return stat.S_IMODE(os.lstat(locate(root, path)).st_mode)


def _must_write(root: bytes, file: SystemFile, before: _Manifest, report: Report) -> bool:
    there = _digest_there(root, file.path)
    if there == _digest(file.data) and _mode_there(root, file.path) == file.mode:
        report.unchanged.append(file.path)
        return False
    if there is None and file.is_config and file.path in before.files:
        report.kept.append(file.path)  # the administrator has removed it
        return False
    if there is not None and there not in {_digest(file.data), *before.files.get(file.path, [])}:
        if file.is_config:
            report.kept.append(file.path)
            return False
        if file.path not in before.files:
            raise InputError(
                f"{printable(file.path)}{_below(root)} is there and was not installed by rofs install-system; "
                "nothing was changed; move it away first"
            )
    report.written.append(file.path)
    return True


def _write(root: bytes, file: SystemFile) -> None:
    place = locate(root, file.path)
    _make_directories(os.path.dirname(place))
    durable.write_atomic(place, file.data, mode=file.mode)


def _make_directories(path: bytes) -> None:
    try:
        durable.make_directories(path, 0o755)
    except OSError as error:
        raise from_os_error(error, "cannot create the directory", path) from error


def _missing_directories(root: bytes, paths: Iterable[str]) -> set[str]:
    """Directories that installing makes, by their path on the system."""
    missing = set()
    for path in paths:
        directory = os.path.dirname(path)
        while directory != "/" and not os.path.isdir(_joined_place(root, directory)):
            missing.add(directory)
            directory = os.path.dirname(directory)
    return missing


def _joined_place(root: bytes, directory: str) -> bytes:
    """The place of a directory, links in its last part followed too."""
    return os.path.dirname(locate(root, f"{directory}/x"))


def _remove(root: bytes, path: str, manifest: _Manifest, report: Report) -> None:
    there = _digest_there(root, path)
    if there is None:
        return
    if there not in manifest.files[path]:
        report.kept.append(path)
        return
    durable.remove(locate(root, path))
    report.removed.append(path)


def _remove_empty(root: bytes, directory: str) -> None:
    with contextlib.suppress(OSError):  # others have put something there, or removed it
        os.rmdir(_joined_place(root, directory))


def _read_manifest(root: bytes) -> _Manifest:
    place = locate(root, MANIFEST_PATH)
    try:
        with open(place, "rb") as file:
            data = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return _Manifest()
    except OSError as error:
        raise from_os_error(error, "cannot read", place) from error
    try:
        return _parse_manifest(json.loads(data))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateError(
            f"{printable(place)} is not the manifest of an installation by this version: {error!r}; "
            "restore it, or remove it and what was installed by hand"
        ) from error


def _parse_manifest(fields: Any) -> _Manifest:
    if fields["version"] != MANIFEST_VERSION:
        raise ValueError(f"version {fields['version']!r}, expected {MANIFEST_VERSION}")
    files = {str(path): [str(digest) for digest in digests] for path, digests in fields["files"].items()}
    directories = [str(path) for path in fields["directories"]]
    if not all(path.startswith("/") and ".." not in path.split("/") for path in [*files, *directories]):
        raise ValueError("a path in it is not absolute")
    return _Manifest(files, directories)


def _write_manifest(root: bytes, manifest: _Manifest) -> None:
    fields = {"version": MANIFEST_VERSION, "files": manifest.files, "directories": manifest.directories}
    place = locate(root, MANIFEST_PATH)
    _make_directories(os.path.dirname(place))
    durable.write_atomic(place, json.dumps(fields, indent=1, sort_keys=True).encode() + b"\n")
