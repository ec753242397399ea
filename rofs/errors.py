# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, by whose fault: one root, a few leaves.

Every error that leaves rofs for bad input or a broken environment is a `RofsError`; its message says
what, where, expected, found and what to do. Misuse of the Python API is a builtin exception. This
module does not know exit codes (`cli/main.py`) or errno values (`fuse/errnos.py`).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Literal


class RofsError(Exception):
    """Root of every error that rofs raises on purpose."""


class InputError(RofsError):
    """What the caller named is missing, unreadable or of the wrong type."""


class StateError(RofsError):
    """A thing that rofs keeps (a mount, a log, a store) is not in the state the operation needs."""


class HostError(RofsError):
    """The environment lacks something: a device, a privilege, space, a kernel feature, a free mount point."""


class TrustError(RofsError):
    """The image is not trusted: signature, certificate, root hash or policy."""


class ImageError(RofsError):
    """The image cannot be what it claims to be."""


class FormatError(ImageError):
    """A structure of the image is malformed, truncated or not supported."""


class ChainError(RofsError):
    """An audit log was edited, shortened or is not an audit log."""


@dataclass(frozen=True, slots=True)
class BlockFault:
    """Which block of a verity-protected device is bad, and how.

    Attributes:
        kind: `mismatch` (the bytes are not the signed ones) or `io` (they could not be read).
        level: -1 for a data block, 0 for the leaf level of the hash tree, counting up to its top.
        block: Number of the block within its level; for level -1 a data block address.
        expected: Digest that the level above holds, None when it could not be known.
        found: Digest of what was read, None when nothing could be read.
    """

    kind: Literal["mismatch", "io"]
    level: int
    block: int
    expected: bytes | None = None
    found: bytes | None = None

    def __str__(self) -> str:
        """One phrase for an error message."""
        where = f"data block {self.block}" if self.level < 0 else f"hash block {self.block} of tree level {self.level}"
        if self.kind == "io":
            return f"{where} cannot be read"
        expected = self.expected.hex() if self.expected is not None else "unknown"
        found = self.found.hex() if self.found is not None else "unknown"
        return f"{where}: digest expected {expected}, found {found}"


class CorruptionError(ImageError):
    """A block does not match the hash tree under the trusted root hash.

    Attributes:
        fault: The block, its level, and both digests.
    """

    def __init__(self, fault: BlockFault) -> None:
        super().__init__(f"corrupt image: {fault}")
        self.fault = fault


class ReadError(ImageError):
    """The device under the image failed to deliver bytes.

    Attributes:
        fault: The block, when the reader knows it.
    """

    def __init__(self, message: str, fault: BlockFault | None = None) -> None:
        super().__init__(message)
        self.fault = fault


_INPUT_ERRNOS = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP})


def from_os_error(error: OSError, doing: str, path: str | bytes) -> RofsError:
    """Turn an `OSError` into the RofsError leaf that names the fault.

    Args:
        error: What the system call said.
        doing: A phrase like "cannot open".
        path: The file it was about; written with escapes, never as raw bytes.

    Returns:
        `InputError` when the named thing is missing or of the wrong type, else `HostError`.
    """
    reason = os.strerror(error.errno) if error.errno else str(error)
    text = f"{doing} {printable(path)}: {reason}"
    if error.errno in _INPUT_ERRNOS:
        return InputError(text)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return HostError(f"{text}; free some space there and run it again")
    return HostError(text)


def printable(path: str | bytes) -> str:
    """A path for one line of text: undecodable and control characters are escaped.

    Args:
        path: Bytes, or a string with surrogate escapes as the shell gave it.

    Returns:
        Text that is safe on a terminal and in a log line.
    """
    return one_line(os.fsencode(path).decode("utf-8", "backslashreplace"))


def one_line(text: str) -> str:
    """Text that is safe on a terminal and stays one line, whatever an image or a log says of itself."""
    if text.isprintable():  # nearly always, and builds describe every file in case it fails
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
