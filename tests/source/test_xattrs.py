# SPDX-License-Identifier: Apache-2.0
"""Xattrs of an archive's records: what an image keeps, and what was never the file's own."""

from __future__ import annotations

import pytest

from rofs.source.xattrs import xattrs_of_records


@pytest.mark.parametrize("name", [b"trusted.SGI_ACL_FILE", b"trusted.SGI_ACL_DEFAULT", b"btrfs.compression"])
def test_what_a_filesystem_shows_of_its_own_storage_is_left_out(name: bytes) -> None:
    """GNU tar as root on xfs or btrfs stores it; from any other filesystem it would not be there."""
    records = {b"SCHILY.xattr." + name: b"x", b"SCHILY.xattr.user.a": b"1"}
    assert xattrs_of_records(records) == ((b"user.a", b"1"),)


def test_other_trusted_names_are_kept() -> None:
    assert xattrs_of_records({b"SCHILY.xattr.trusted.overlay.opaque": b"y"}) == ((b"trusted.overlay.opaque", b"y"),)
