# SPDX-License-Identifier: Apache-2.0
"""Where the files of a mount are: runtime directory, control socket, default audit log.

Names come from the mount point, escaped as systemd-escape(1) --path does. Creates nothing.
"""

from __future__ import annotations

import hashlib
import os
import string

CONTROL_SOCKET = "control"  # in a mount's runtime directory

_PLAIN = frozenset((string.ascii_letters + string.digits + ":_.").encode())
_NAME_MAX_BYTES = 200  # leaves room for a suffix within the 255 of a file name


def escape_path_name(path: bytes) -> str:
    """A path as one file name, as `systemd-escape --path` writes it; long ones end in a digest."""
    stripped = b"/".join(part for part in path.split(b"/") if part)
    if not stripped:
        return "-"
    name = "".join(_escape(byte, first=index == 0) for index, byte in enumerate(stripped))
    if len(name) <= _NAME_MAX_BYTES:
        return name
    return f"{name[:_NAME_MAX_BYTES]}-{hashlib.sha256(path).hexdigest()[:16]}"


def _escape(byte: int, *, first: bool) -> str:
    if byte == ord("/"):
        return "-"
    if byte in _PLAIN and not (first and byte == ord(".")):
        return chr(byte)
    return f"\\x{byte:02x}"


def runtime_directory() -> str:
    """The directory that holds one directory per mount: /run/rofs for root, else the user's own."""
    if os.geteuid() == 0:
        return "/run/rofs"
    base = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(base, "rofs") if base else f"/tmp/rofs-{os.geteuid()}"  # noqa: S108 - made 0700, owner checked


def mount_directory(mountpoint: bytes) -> str:
    """The runtime directory of one mount."""
    return os.path.join(runtime_directory(), escape_path_name(mountpoint))


def default_log(mountpoint: bytes) -> str:
    """The audit log of a mount for which none is named."""
    name = f"{escape_path_name(mountpoint)}.jsonl"
    if os.geteuid() == 0:
        return os.path.join("/var/log/rofs", name)
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(state, "rofs", name)
