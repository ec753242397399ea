# SPDX-License-Identifier: Apache-2.0
"""Mounts of hostile filesystems that a careless signer has signed: bad objects fail, the mount lives on."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rofs.erofs.reader import ErofsReader
from rofs.errors import RofsError
from tests.conftest import SigningKeys
from tests.erofs.builder import LyingFilesystem
from tests.mounts.harness import Mounted, mounted
from tests.trees import content, directory, file, symlink

from .devices import FuzzDevice
from .edits import MAX_INPUT_BYTES, parse_program
from .filesystems import hostile_filesystem, seeds
from .images import signed_image

GOOD = b"good"
CHANGED = 4
_SECONDS = 100  # for one command: far more than any needs, far less than for ever

# Everything that can be read, of everything that can be reached.
_READ_ALL = """
import os, sys
for path, names, files in os.walk(sys.argv[1].encode()):
    for name in [*names, *files]:
        whole = os.path.join(path, name)
        for use in (os.lstat, os.readlink, os.statvfs, lambda p: [os.getxattr(p, n) for n in os.listxattr(p)]):
            try:
                use(whole)
            except OSError:
                pass
        if os.path.isfile(whole) and not os.path.islink(whole):
            try:
                with open(whole, "rb") as file:
                    file.read(300_000)
            except OSError:
                pass
"""


def lies() -> bytes:
    """What a hostile filesystem is expected to try, each lie in a directory of its own."""
    names = (b"self", b"slash", b"dots", b"nameoff", b"deaf", b"order")
    tree = {name: directory({b"aa": file(b"a"), b"bb": file(b"b")}) for name in names}
    files = {name: file(content(5000)) for name in (b"huge", b"outside", b"typeless", b"chunky")}
    image = LyingFilesystem(directory({**tree, **files, b"empty": symlink(b"x"), GOOD: file(b"good\n" * 2000)}))
    image.set_entry(b"self", b"aa", nid=image.nid(b"self"), file_type=2)
    image.set_entry(b"self", b"bb", nid=image.nid(b""), file_type=2)
    image.rename_entry(b"slash", b"aa", b"/a")
    image.rename_entry(b"dots", b"aa", b"..")
    image.set_entry(b"nameoff", b"bb", nameoff=0xFFFF)
    image.set_entry(b"deaf", b"aa", nid=(1 << 64) - 1)
    image.rename_entry(b"order", b"aa", b"zz")
    image.set_inode(b"huge", i_size=(1 << 63) - 1)
    image.set_inode(b"outside", i_u=0xFFFFFFF0)
    image.set_inode(b"typeless", i_mode=0o170000)
    image.set_inode(b"chunky", i_format=1 | 4 << 1, i_u=0x3F)
    image.set_inode(b"empty", i_size=0)
    return bytes(image.data)


def changed(count: int) -> Iterator[bytes]:
    """Filesystems of the fuzzer's in which something fails, but neither the root nor the good file."""
    number = 0
    while count:
        number += 1
        source = random.Random(number)
        program = parse_program(source.randbytes(MAX_INPUT_BYTES))
        data = hostile_filesystem(program)
        original = seeds()[program.seed % len(seeds())].data
        if _good_content(data) == _good_content(original) and _has_faults(data):
            count -= 1
            yield data


def _good_content(data: bytes) -> bytes | None:
    try:
        reader = ErofsReader(FuzzDevice(data))
        nid = reader.lookup(reader.root_nid, GOOD)
        list(reader.readdir(reader.root_nid))
        reader.listxattr(reader.root_nid)
        return None if nid is None else reader.read(nid, 0, 1 << 20)
    except (RofsError, NotADirectoryError):
        return None


def _has_faults(data: bytes) -> bool:
    reader = ErofsReader(FuzzDevice(data))
    try:
        for entry in reader.readdir(reader.root_nid):
            reader.stat(entry.nid)
            reader.listxattr(entry.nid)
            list(itertools.islice(reader.extents(entry.nid), 100))
            with contextlib.suppress(NotADirectoryError):
                list(reader.readdir(entry.nid))
    except RofsError:
        return True
    return False


def test_each_lie_fails_by_itself(signing_keys: SigningKeys, tmp_path: Path) -> None:
    with _mounted(lies(), signing_keys, tmp_path) as mount:
        failed = {name: _errno_of(mount.directory / name) for name in sorted(os.listdir(mount.directory))}
        wrong_names = dict.fromkeys(("dots", "nameoff", "order", "slash"), errno.EUCLEAN)
        wrong_contents = dict.fromkeys(("chunky", "empty", "huge", "outside"), errno.EUCLEAN)
        assert failed.pop("self") in {errno.ELOOP, errno.EIO}  # the kernel's answer
        # Names without a good inode are left out of listings by older versions of glibc.
        assert failed.pop("deaf") in {None, errno.EUCLEAN}
        assert failed.pop("typeless", errno.EUCLEAN) == errno.EUCLEAN
        assert failed == {**wrong_names, **wrong_contents, GOOD.decode(): None}
        for left_out in ("typeless", "deaf/aa"):  # of listings; by its name it is an error
            with pytest.raises(OSError, match="Structure needs cleaning"):
                (mount.directory / left_out).lstat()


def _errno_of(path: Path) -> int | None:
    """Of the first thing that fails with an object, by whatever reads it and what it names."""
    try:
        if path.is_symlink():
            path.readlink()
        elif path.is_dir():
            for name in os.listdir(path):
                (path / name).lstat()
        else:
            path.read_bytes()
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("number", range(1 + CHANGED), ids=["lies", *(f"changed-{n}" for n in range(CHANGED))])
def test_mount_of_a_careless_signers_image_lives_on(number: int, signing_keys: SigningKeys, tmp_path: Path) -> None:
    filesystem = [lies(), *changed(CHANGED)][number]
    with _mounted(filesystem, signing_keys, tmp_path) as mount:
        before = _worker_pids(mount)
        _use_everything(mount.directory)
        assert (mount.directory / os.fsdecode(GOOD)).read_bytes() == _good_content(filesystem)
        assert _worker_pids(mount) == before
        assert mount.events("worker_exit") == []
        _check_refusing(mount)


def _worker_pids(mount: Mounted) -> list[int]:
    return [worker["pid"] for worker in mount.status()["workers"]]


def _use_everything(directory: Path) -> None:
    """As people and tools do; whatever they say, they come to an end."""
    commands: list[list[str | Path]] = [
        ["find", directory, "-ls"],
        ["ls", "-lR", directory],
        [sys.executable, "-c", _READ_ALL, directory],
    ]
    if shutil.which("getfattr"):
        commands.append(["getfattr", "--recursive", "--dump", "--match=-", directory])
    for command in commands:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=_SECONDS, check=False)


def _check_refusing(mount: Mounted) -> None:
    """A change is refused and recorded as ever."""
    with pytest.raises(OSError, match="Read-only file system"):
        (mount.directory / os.fsdecode(GOOD)).unlink()
    assert mount.wait_for("write_blocked")[0]["path"] == f"/{os.fsdecode(GOOD)}"


def _mounted(filesystem: bytes, keys: SigningKeys, place: Path) -> contextlib.AbstractContextManager[Mounted]:
    image, _ = signed_image(filesystem, keys.key, keys.certificate)
    (place / "image.raw").write_bytes(image)
    return mounted(place / "image.raw", keys.certificate_path, place / "place")
