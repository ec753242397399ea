# SPDX-License-Identifier: Apache-2.0
"""Images and clocks that must not be trusted, and careless signers, met by real mounts.

What each part decides by itself is tested beside the part: signatures in `tests/trust`, partitions in
`tests/ddi` and `tests/image/test_open.py`, lies of a filesystem in `tests/erofs` and `tests/fuzz`.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from rofs.image.extract import extract_image
from tests.conftest import SigningKeys
from tests.erofs.builder import LyingFilesystem
from tests.fuzz.test_mount import lies
from tests.image.builder import SIGNATURE, Pristine, SmallImage, build_pristine, tiny_tree
from tests.image.hostile import opened, sign
from tests.mounts.harness import is_mount, mounted, read_events, rofs
from tests.trees import content, directory, file

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts")

GOOD = content(20_000, 5)
LIES_IN_NAMES = ("dot", "empty-name", "nul", "unordered-names")
LIES_IN_SIZES = ("size-of-2^63", "size-of-2^64-1", "chunk-table-outside")
LIES = (*LIES_IN_NAMES, *LIES_IN_SIZES, "size-of-4-eib", "chunk-outside")
CHUNKED, CHUNK_INDEXES = 1 | 4 << 1, 0x20

# Moves the clock on the wall and leaves the one that only counts, which nobody can set either.
CLOCK = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t id, struct timespec *ts)
{
    int failed = syscall(SYS_clock_gettime, id, ts);
    if (!failed && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
        ts->tv_sec = atoll(getenv("FALSE_TIME"));
    return failed;
}

time_t time(time_t *at)
{
    time_t now = atoll(getenv("FALSE_TIME"));
    if (at)
        *at = now;
    return now;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone)
{
    at->tv_sec = atoll(getenv("FALSE_TIME"));
    at->tv_usec = 0;
    return 0;
}
"""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory, signing_keys: SigningKeys) -> Pristine:
    return build_pristine(tmp_path_factory.mktemp("pristine") / "image.raw", signing_keys, tiny_tree())


@pytest.fixture
def image(tmp_path: Path, pristine: Pristine, signing_keys: SigningKeys) -> SmallImage:
    return SmallImage(tmp_path / "image.raw", pristine, signing_keys)


# Signatures


@pytest.mark.parametrize(
    "defect",
    [
        pytest.param(lambda i: i.without_signature(), id="removed"),
        pytest.param(lambda i: i.zero_partition(SIGNATURE), id="zeroed"),
        pytest.param(lambda i: i.retype_partition(SIGNATURE), id="of another type"),
    ],
)
@pytest.mark.parametrize("policy", [(), ("--image-policy", "root=signed")], ids=["default", "signed"])
def test_a_signature_that_is_gone_mounts_nothing(
    image: SmallImage, tmp_path: Path, defect: Callable[[SmallImage], object], policy: tuple[str, ...]
) -> None:
    """The partitions' UUIDs still tell the root hash, and the tree is whole: that is no reason to mount it."""
    defect(image)
    image.path.write_bytes(image.data)
    (tmp_path / "mnt").mkdir()
    words: tuple[str | Path, ...] = ("--trust", image.keys.certificate_path, "--audit-log", tmp_path / "log", *policy)
    try:
        done = rofs("mount", image.path, tmp_path / "mnt", *words, check=False)
        assert done.returncode == 3
        (line,) = done.stderr.splitlines()
        assert f"root hash {image.root_hash.hex()} is not signed" in line
        assert not is_mount(tmp_path / "mnt")
        assert os.listdir(tmp_path / "mnt") == []
    finally:
        rofs("umount", tmp_path / "mnt", check=False)


# Clocks


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, to set a clock for one program")
@pytest.mark.parametrize(("seconds", "year"), [(5, "1970"), (2_208_988_800, "2040"), (5_000_000_000, "2128")])
def test_a_wrong_clock_keeps_no_image_from_being_mounted(
    image: SmallImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: int, year: str
) -> None:
    """Before the certificate's first day, between, and behind its last."""
    expires = image.keys.certificate.not_valid_after_utc
    assert image.keys.certificate.not_valid_before_utc.timestamp() < 2_208_988_800 < expires.timestamp()
    image.path.write_bytes(image.data)
    (tmp_path / "clock.c").write_text(CLOCK)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "clock.so", tmp_path / "clock.c"], check=True)
    monkeypatch.setenv("FALSE_TIME", str(seconds))
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "clock.so"))
    rofs("verify", image.path, "--trust", image.keys.certificate_path)
    with mounted(image.path, image.keys.certificate_path, tmp_path / "place") as mount:
        assert (mount.directory / "file").read_bytes() == content(5000)
        with pytest.raises(OSError, match="Read-only"):
            (mount.directory / "new").mkdir()
        mount.wait_for("write_blocked")
        log = mount.log
    assert {event["time"][:4] for event in read_events(log)} == {year}
    rofs("audit", "verify", log)


# A careless signer


def more_lies() -> bytes:
    """What `tests.fuzz.test_mount.lies` does not tell: a lie of each kind in an object of its own."""
    tree = {name.encode(): directory({b"a": file(), b"bb": file(), b"cc": file()}) for name in LIES_IN_NAMES}
    files = {name.encode(): file(content(5000)) for name in LIES_IN_SIZES}
    tail = {b"chunk-outside": file(b"tail"), b"good": file(GOOD), b"size-of-4-eib": directory({b"a": file()})}
    image = LyingFilesystem(directory({**tree, **files, **tail}))
    image.rename_entry(b"dot", b"a", b".")
    image.rename_entry(b"nul", b"bb", b"b\0")
    names_at = 5 * 12  # behind the entries `.`, `..`, `a`, `bb` and `cc`
    image.set_entry(b"empty-name", b"bb", nameoff=names_at + 3)
    image.set_entry(b"unordered-names", b"bb", nameoff=names_at + 1)
    image.set_inode(b"size-of-2^63", i_size=1 << 63)
    image.set_inode(b"size-of-2^64-1", i_size=(1 << 64) - 1)
    image.set_inode(b"size-of-4-eib", i_size=1 << 62)
    image.set_inode(b"chunk-table-outside", i_format=CHUNKED, i_u=CHUNK_INDEXES, i_size=1 << 40)
    image.set_inode(b"chunk-outside", i_format=CHUNKED, i_u=0)
    return bytes(image.set_bytes(b"chunk-outside", 0, b"\xfe\xff\xff\xff").data)


def test_each_lie_fails_by_itself_and_the_mount_lives(signing_keys: SigningKeys, tmp_path: Path) -> None:
    image = sign(tmp_path / "image.raw", more_lies(), signing_keys)
    with mounted(image, signing_keys.certificate_path, tmp_path / "place") as mount:
        assert {name: _error_of(mount.directory / name) for name in LIES} == dict.fromkeys(LIES, errno.EUCLEAN)
        assert (mount.directory / "good").read_bytes() == GOOD
        assert mount.events("worker_exit") == []


def _error_of(path: Path) -> int | None:
    try:
        if path.is_dir():
            os.listdir(path)
        else:
            with path.open("rb") as opened_file:
                opened_file.read(1 << 20)  # of some it would be endless
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("hostile", [lies, more_lies])
def test_extract_of_every_lie_leaves_nothing_beside_the_directory(
    signing_keys: SigningKeys, tmp_path: Path, hostile: Callable[[], bytes]
) -> None:
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    with opened(sign(tmp_path / "image.raw", hostile(), signing_keys), signing_keys) as image:
        done = extract_image(image, str(place / "out"))
    assert done.problems.count >= 8
    good = (place / "out" / "good").read_bytes()
    assert good in {GOOD, b"good\n" * 2000}
    assert os.listdir(place) == ["out"]
    assert os.listdir(tmp_path / "a") == ["b"]
    assert sorted(os.listdir(tmp_path)) == ["a", "image.raw"]
    for path, names, _ in os.walk(place / "out"):
        assert {os.path.realpath(os.path.join(path, name)) for name in names} == {
            os.path.join(path, name) for name in names
        }
