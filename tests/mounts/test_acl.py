# SPDX-License-Identifier: Apache-2.0
"""POSIX ACLs of an image are enforced: mode bits alone would grant more than the image says."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from tests.conftest import SigningKeys
from tests.mounts.harness import mounted, rofs

USER = 1000
_NO_ID = 0xFFFFFFFF


def _acl_that_denies(uid: int) -> bytes:
    """Owner rw, that user nothing, group and others read."""
    entries = ((1, 6, _NO_ID), (2, 0, uid), (4, 4, _NO_ID), (16, 4, _NO_ID), (32, 4, _NO_ID))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def _can_read(path: Path, uid: int) -> bool:
    return (
        subprocess.run(["cat", path], check=False, user=uid, group=uid, extra_groups=[], capture_output=True).returncode
        == 0
    )


def test_a_user_denied_by_acl_stays_denied(signing_keys: SigningKeys, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "secret").write_text("for some")
    (tree / "public").write_text("for all")
    os.setxattr(tree / "secret", "system.posix_acl_access", _acl_that_denies(USER))
    image = tmp_path / "acl.raw"
    rofs("build", tree, "-o", image, "--key", signing_keys.key_path, "--cert", signing_keys.certificate_path)
    for parent in (*reversed(tmp_path.parents), tmp_path):
        if parent.is_relative_to("/tmp") and parent != Path("/tmp"):
            parent.chmod(0o755)
    with mounted(image, signing_keys.certificate_path, tmp_path / "place") as mount:
        assert _can_read(mount.directory / "public", USER)
        assert _can_read(mount.directory / "secret", USER + 1)
        assert not _can_read(mount.directory / "secret", USER)
