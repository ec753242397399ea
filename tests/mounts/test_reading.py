# SPDX-License-Identifier: Apache-2.0
"""A mount shows exactly the tree that the image was built from; so does the kernel's own EROFS."""

from __future__ import annotations

import mmap
import os
import subprocess
from pathlib import Path

from tests.compare import differences
from tests.mounts.harness import kernel_erofs, mounted, partitions


def test_debian_in_a_rofs_mount_equals_its_source(
    debian_root: Path, debian_image: Path, trust: Path, tmp_path: Path
) -> None:
    with mounted(debian_image, trust, tmp_path) as mount:
        assert differences(debian_root, mount.directory) == []
        assert mount.status()["verified_blocks"] > 0


def test_debian_in_the_kernels_erofs_equals_its_source(debian_root: Path, debian_image: Path, tmp_path: Path) -> None:
    part = partitions(debian_image)["root"]
    with kernel_erofs(debian_image, tmp_path / "mnt", part["offset"], part["size"]) as directory:
        assert differences(debian_root, directory) == []


def test_python_runs_from_a_mount_in_a_chroot(debian_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(debian_image, trust, tmp_path) as mount:
        program = "import json, sys; print(json.dumps(sys.version_info[:2]))"
        done = subprocess.run(
            ["chroot", mount.directory, "/usr/bin/python3", "-c", program], check=False, capture_output=True
        )
        assert done.stdout.startswith(b"[3,"), done.stderr
        assert mount.events("write_blocked") == []


def test_shared_read_only_mapping_works(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        fd = os.open(mount.directory / "plain", os.O_RDONLY)
        try:
            with mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ) as mapping:
                assert mapping[:] == (mount.directory / "plain").read_bytes()
        finally:
            os.close(fd)


def test_negative_lookups_are_cached_by_the_kernel(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        assert not (mount.directory / "absent").exists()
        before = mount.status()["requests"]
        for _ in range(50):
            assert not (mount.directory / "absent").exists()
        assert mount.status()["requests"] - before < 5


def test_df_shows_a_full_filesystem(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        totals = os.statvfs(mount.directory)
        assert totals.f_blocks > 0
        assert (totals.f_bfree, totals.f_bavail, totals.f_ffree) == (0, 0, 0)
        assert totals.f_namemax == 255


def test_proc_mounts_shows_type_source_and_safe_flags(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path) as mount:
        (line,) = [x for x in Path("/proc/mounts").read_text().splitlines() if f" {mount.directory} " in x]
        source, _directory, kind, options = line.split()[:4]
        assert (source, kind) == (str(small_image), "fuse.rofs")
        assert {"nosuid", "nodev"} <= set(options.split(","))


def test_suid_and_dev_count_only_when_asked_for(small_image: Path, trust: Path, tmp_path: Path) -> None:
    with mounted(small_image, trust, tmp_path, "-o", "suid,dev,noexec") as mount:
        (line,) = [x for x in Path("/proc/mounts").read_text().splitlines() if f" {mount.directory} " in x]
        options = set(line.split()[3].split(","))
        assert "noexec" in options
        assert not {"nosuid", "nodev"} & options


def test_every_offset_of_a_directory_can_be_returned_to(tmp_path: Path, trust: Path, debian_image: Path) -> None:
    with mounted(debian_image, trust, tmp_path) as mount:
        directory = mount.directory / "usr/bin"
        assert len(set(os.listdir(directory))) == len(os.listdir(directory)) > 200
