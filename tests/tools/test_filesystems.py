# SPDX-License-Identifier: Apache-2.0
"""One tree, one root hash: whichever filesystem it lies on, in whichever order it was made, and whoever builds.

The filesystems are the kernel's, made by their own mkfs. They differ in what must not show: the order of names, inode
numbers, st_nlink and st_size of directories, st_blocks, where SEEK_DATA sees holes. What one of them cannot hold
at all (xfs: symbolic links of more than 1023 bytes, device numbers with a minor of over 18 bits) is not in the tree.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.compare import differences
from tests.mounts.harness import ROFS, kernel_erofs, partitions
from tests.trees import ACL, CAPABILITY, NAMES, SIZES, content, settle

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, device nodes and foreign owners")

MIB = 1 << 20
# Size of the image file, which is sparse, and how to make the filesystem; nothing is needed for one in memory.
MAKING: dict[str, tuple[int, tuple[str, ...]]] = {
    "ext4": (64 * MIB, ("mkfs.ext4", "-q")),
    "tmpfs": (0, ()),
    "xfs": (300 * MIB, ("mkfs.xfs", "-q")),
    "btrfs": (128 * MIB, ("mkfs.btrfs", "-q")),
}
NOBODY = 65534


@contextlib.contextmanager
def filesystem(kind: str, place: Path) -> Iterator[Path]:
    """A new filesystem, mounted; skips the test when the kernel has no such one."""
    place.mkdir()
    size, mkfs = MAKING[kind]
    image = place.with_suffix(f".{kind}")
    if mkfs:
        image.touch()
        os.truncate(image, size)
        subprocess.run([*mkfs, image], check=True, capture_output=True)
    what = ["-o", "loop", image] if mkfs else [kind]
    done = subprocess.run(["mount", "-t", kind, *what, place], check=False, capture_output=True, text=True)
    if done.returncode and kind not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"the kernel has no {kind}: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        image.unlink(missing_ok=True)


# The tree


def make_tree(top: Path, *, seed: int) -> None:
    """Something of everything that all filesystems hold; `seed` changes the order in which it is made."""
    order = random.Random(seed)
    base = os.fsencode(top)
    files = _files()
    directories = sorted({os.path.dirname(name) for name in files} | {b"empty", b"deep/er/and/deeper"})
    for path in (base, *(os.path.join(base, name) for name in order.sample(directories, len(directories)))):
        os.makedirs(path, exist_ok=True)
    for name in order.sample(sorted(files), len(files)):
        files[name](os.path.join(base, name))
    links = [(b"sizes/4097", b"links/a"), (b"sizes/4097", b"sizes/link"), (b"symlinks/60", b"links/symlink")]
    for old, new in order.sample(links, len(links)):
        os.link(os.path.join(base, old), os.path.join(base, new), follow_symlinks=False)
    settle(top)
    _set_attributes(top, order)


def _files() -> dict[bytes, Callable[[bytes], None]]:
    files: dict[bytes, Callable[[bytes], None]] = {
        b"sparse/islands": functools.partial(_write_sparse, allocate=False),
        b"sparse/allocated": functools.partial(_write_sparse, allocate=True),
        b"sparse/nothing": functools.partial(_write, size=0, length=3 * MIB + 1),
        b"nodes/fifo": os.mkfifo,
        b"nodes/socket": functools.partial(os.mknod, mode=stat.S_IFSOCK | 0o644),
        b"links/first": functools.partial(_write, size=10),
    }
    for kind, name in ((stat.S_IFCHR, b"nodes/char-%d"), (stat.S_IFBLK, b"nodes/block-%d")):
        for major, minor in ((0, 0), (1, 3), (259, 256), (511, (1 << 18) - 1)):
            files[name % major] = functools.partial(os.mknod, mode=kind | 0o600, device=os.makedev(major, minor))
    for size in SIZES:
        files[b"sizes/%d" % size] = functools.partial(_write, size=size)
    for name in NAMES:
        files[b"names/" + name] = functools.partial(_write, size=len(name))
    for number in range(300):
        files[b"many/%03d" % number * 5] = functools.partial(_write, size=number % 3)
    for length in (1, 59, 60, 61, 500, 1023):
        files[b"symlinks/%d" % length] = functools.partial(os.symlink, b"t" * length)
    for number in range(4):
        files[b"attributes/%d" % number] = functools.partial(_write, size=100 * number)
    return files


def _write(path: bytes, size: int, length: int | None = None) -> None:
    with open(path, "wb") as new:
        new.write(content(size))
        new.truncate(size if length is None else length)


def _write_sparse(path: bytes, *, allocate: bool) -> None:
    """Islands in holes; what is allocated and never written to is zeros, too."""
    with open(path, "wb") as new:
        new.truncate(4 * MIB)
        if allocate:
            os.posix_fallocate(new.fileno(), MIB, MIB)
        for at, size in ((65_536, 1), (MIB + 5, 5000), (3 * MIB - 4096, 8192)):
            new.seek(at)
            new.write(content(size))


def _set_attributes(top: Path, order: random.Random) -> None:
    """Owners, xattrs, ACLs and modes, in this order: a change of owner takes capabilities away.

    All of it can be seen by an ordinary user, which is not so of trusted.*.
    """
    files = [top / "attributes" / str(number) for number in range(4)]
    for number, path in enumerate(files):
        os.chown(path, 70_000 + number, 4_294_967_294 - number)
        xattrs = {f"user.{key}": content(size, number) for key, size in (("a", 0), ("bb", 7), ("c" * 200, 300))}
        for name in order.sample(sorted(xattrs), len(xattrs)):
            os.setxattr(path, name, xattrs[name])
    os.setxattr(files[1], "security.capability", CAPABILITY)
    os.setxattr(files[2], "system.posix_acl_access", ACL)
    for name in ("system.posix_acl_access", "system.posix_acl_default"):
        os.setxattr(top / "empty", name, ACL.replace(b"\x06\0", b"\x07\0"))
    files[3].chmod(0o6755)
    (top / "deep").chmod(0o3775)


# Building


def root_hash(tree: Path, output: Path, user: int) -> str:
    done = subprocess.run(
        [ROFS, "build", tree, "-o", output, "--unsigned", "--name", "same", "--json"],
        check=False,
        capture_output=True,
        text=True,
        user=user,
        group=user,
        extra_groups=[],
        umask=0o077 if user else 0o022,
        env={name: value for name, value in os.environ.items() if name != "SOURCE_DATE_EPOCH"},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["root_hash"]
    assert isinstance(found, str)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that an ordinary user can reach and write to."""
    place = tmp_path_factory.mktemp("filesystems")
    for path in (place, *place.parents):
        if not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o011)
    (place / "built").mkdir()
    (place / "built").chmod(0o1777)
    return place


@pytest.fixture(scope="module")
def expected(place: Path) -> str:
    """The root hash of the tree on ext4, of an image in which everything of it is."""
    image = place / "built" / "expected.raw"
    with filesystem("ext4", place / "expected") as top:
        make_tree(top / "tree", seed=0)
        found = root_hash(top / "tree", image, 0)
        data = partitions(image)["root"]
        with kernel_erofs(image, place / "erofs", data["offset"], data["size"]) as seen:
            assert differences(top / "tree", seen) == []
    return found


@pytest.mark.parametrize("kind", MAKING)
def test_the_filesystem_the_order_of_making_and_the_builder_do_not_show(place: Path, kind: str, expected: str) -> None:
    with filesystem(kind, place / kind) as top:
        make_tree(top / "tree", seed=1 + len(kind))
        found = {user: root_hash(top / "tree", place / "built" / f"{kind}-{user}.raw", user) for user in (0, NOBODY)}
    assert found == {0: expected, NOBODY: expected}
