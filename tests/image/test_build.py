# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import platform
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rofs import durable
from rofs.ddi.gpt import read_gpt
from rofs.ddi.roles import Architecture, architecture_of
from rofs.erofs.writer import WrittenFilesystem, write_filesystem
from rofs.errors import HostError, ImageError, InputError
from rofs.image import build as module
from rofs.image.build import SigningKey, build_image
from rofs.image.diff import diff_trees
from rofs.image.extract import extract_image
from rofs.image.sides import ImageSide, SourceSide
from rofs.source.directory import DirectorySource
from rofs.tree import Inode, Source
from rofs.verity.builder import build_tree
from tests.conftest import REPOSITORY, SigningKeys, make_keys
from tests.faults import FailingCalls, KillingCalls
from tests.trees import MemorySource, content, directory, file, settle, write_plain_tree
from tests.verity.doubles import MemoryDevice

from .builder import SIGNATURE, Pristine, SmallImage, build, small_tree, tiny_tree
from .hostile import opened

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: becomes another user")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "image.raw"


def test_the_result_says_what_was_built(pristine: Pristine) -> None:
    assert pristine.built.size_bytes == len(pristine.data)
    assert pristine.built.identity.name == "demo"
    assert pristine.built.inodes == 59


def test_the_mode_does_not_depend_on_the_umask(output: Path, signing_keys: SigningKeys) -> None:
    before = os.umask(0o077)
    try:
        build(MemorySource(tiny_tree()), output, signing_keys)
    finally:
        os.umask(before)
    assert stat.S_IMODE(output.stat().st_mode) == 0o644
    assert os.listdir(output.parent) == ["image.raw"]


def test_a_sparse_file_of_terabytes_there_and_back(tmp_path: Path, output: Path, signing_keys: SigningKeys) -> None:
    """Built, read back, compared and unpacked: none of it may look at the hole, which would take hours."""
    size = 2 << 40
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree" / "sparse").open("wb") as new:
        new.seek(size // 3)
        new.write(b"data")
        new.truncate(size)
    source = DirectorySource(str(tmp_path / "tree"))
    build(source, output, signing_keys)
    assert output.stat().st_size < 32 << 20
    with opened(output, signing_keys) as image:
        assert list(diff_trees(ImageSide(image), SourceSide(source))) == []
        assert not extract_image(image, str(tmp_path / "back")).problems.count
    with (tmp_path / "back" / "sparse").open("rb") as made:
        assert os.fstat(made.fileno()).st_size == size
        assert os.fstat(made.fileno()).st_blocks < 64
        assert os.pread(made.fileno(), 6, size // 3 - 1) == b"\0data\0"


# The same tree, the same image


def test_only_an_ecdsa_signature_differs(
    tmp_path: Path, output: Path, pristine: Pristine, signing_keys: SigningKeys
) -> None:
    again = build(MemorySource(small_tree(), chunk_bytes=1000), output, signing_keys)
    assert again.root_hash == pristine.built.root_hash
    first, second = (SmallImage(tmp_path / "x", p, signing_keys) for p in (pristine, pristine))
    second.data = bytearray(output.read_bytes())
    assert first.data != second.data
    assert first.zero_partition(SIGNATURE).data == second.zero_partition(SIGNATURE).data


def test_with_an_rsa_key_the_whole_file_is_the_same(tmp_path: Path, output: Path) -> None:
    keys = make_keys(tmp_path / "rsa", "rsa3072")
    write_plain_tree(tmp_path / "one")
    write_plain_tree(tmp_path / "two", seed=1)
    build(DirectorySource(str(tmp_path / "one")), output, keys)
    first = output.read_bytes()
    build(DirectorySource(str(tmp_path / "two")), output, keys, replace=True)
    assert output.read_bytes() == first


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_bytes(b"other"),
        lambda path: path.chmod(0o640),
        lambda path: os.utime(path, ns=(1, 1)),
        lambda path: path.rename(path.with_name("renamed")),
        lambda path: os.link(path, path.with_name("linked")),
        lambda path: os.setxattr(path, "user.x", b""),
    ],
)
def test_every_change_changes_the_root_hash(
    tmp_path: Path, output: Path, signing_keys: SigningKeys, change: Callable[[Path], object]
) -> None:
    top = tmp_path / "tree"
    top.mkdir()
    (top / "file").write_bytes(b"bytes")
    settle(top)
    times = top.stat()
    first = build(DirectorySource(str(top)), output, signing_keys).root_hash
    change(top / "file")
    os.utime(top, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert build(DirectorySource(str(top)), output, signing_keys, replace=True).root_hash != first


# What stops a build


def refuse(
    output: Path, keys: SigningKeys, source: Source, error: type[Exception], reason: str, *, old: bytes | None = None
) -> None:
    with pytest.raises(error, match=reason):
        build(source, output, keys, replace=old is not None)
    assert os.listdir(output.parent) == ([] if old is None else [output.name])


def test_an_existing_output(output: Path, signing_keys: SigningKeys) -> None:
    output.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already; it was left as it is"):
        build(MemorySource(tiny_tree()), output, signing_keys)
    assert output.read_bytes() == b"mine"
    build(MemorySource(tiny_tree()), output, signing_keys, replace=True)
    assert output.read_bytes() != b"mine"


@pytest.mark.parametrize("where", [0, 100, 4095, 4096, 4999])
def test_a_writer_that_lies_about_content(
    output: Path, signing_keys: SigningKeys, monkeypatch: pytest.MonkeyPatch, where: int
) -> None:
    original = content(5000)

    def lying(source: Source, write_at: Callable[[int, bytes], None], **options: object) -> WrittenFilesystem:
        places: list[int] = []

        def write(offset: int, data: bytes | memoryview) -> None:
            data = bytes(data)
            whole, tail = original[:4096], original[4096:]
            if where < 4096 and whole in data:
                places.append(offset + data.index(whole) + where)
            elif where >= 4096 and tail in data:
                places.append(offset + data.index(tail) + where - 4096)
            write_at(offset, data)

        written = write_filesystem(source, write, **options)  # type: ignore[arg-type]
        (place,) = places
        write_at(place, bytes([original[where] ^ 1]))
        return written

    monkeypatch.setattr(module, "write_filesystem", lying)
    # The tail shares its block with the superblock, whose checksum covers it.
    reason = "does not read back as its source at /file: content" if where < 4096 else "superblock checksum"
    refuse(output, signing_keys, MemorySource(tiny_tree()), ImageError, reason)


def test_a_tree_that_lies(output: Path, signing_keys: SigningKeys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash block written wrongly: what was read back does not match the root hash."""
    real = build_tree

    def lying(data: object, write_at: Callable[[int, bytes], None], **options: object) -> object:
        return real(data, lambda offset, block: write_at(offset, block[:-1] + b"!"), **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "build_tree", lying)
    refuse(output, signing_keys, MemorySource(tiny_tree()), ImageError, "corrupt image: hash block")


class Changing(MemorySource):
    """A file that is other than it was from the second reading on."""

    def __init__(self, root: Inode) -> None:
        super().__init__(root)
        self.readings = 0

    def contents(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        self.readings += 1
        for offset, data in super().contents(inode):
            yield offset, data if self.readings == 1 else data[::-1]


def test_a_source_that_reads_differently_the_second_time(output: Path, signing_keys: SigningKeys) -> None:
    source = Changing(directory({b"file\n": file(content(9000))}))
    refuse(output, signing_keys, source, ImageError, r"does not read back as its source at /file\\n: content")


@pytest.mark.parametrize("at_stage", ["writing", "hashing", "reading back"])
def test_a_file_changed_during_the_build(
    tmp_path: Path, output: Path, signing_keys: SigningKeys, at_stage: str
) -> None:
    (tmp_path / "tree").mkdir()
    path = tmp_path / "tree" / "file"
    path.write_bytes(content(9000))

    class Meddling:
        def stage(self, name: str, total_bytes: int) -> Callable[[int], None]:
            if name == at_stage:
                path.write_bytes(bytes(9000))
            return lambda _: None

    with pytest.raises(InputError, match="file changed during the build"):
        build_image(
            DirectorySource(str(tmp_path / "tree")),
            str(output),
            SigningKey(signing_keys.key, signing_keys.certificate),
            progress=Meddling(),
        )
    assert os.listdir(output.parent) == []


def test_what_cannot_be_kept(output: Path, signing_keys: SigningKeys) -> None:
    source = MemorySource(directory({b"x": file(xattrs=((b"system.odd", b""),))}))
    refuse(output, signing_keys, source, InputError, "/x cannot be kept")


def test_a_missing_directory(output: Path, signing_keys: SigningKeys) -> None:
    with pytest.raises(InputError, match="No such file"):
        build(MemorySource(tiny_tree()), output.parent / "none" / "image.raw", signing_keys)


def test_a_key_and_a_foreign_certificate_cannot_even_begin(signing_keys: SigningKeys, other_keys: SigningKeys) -> None:
    with pytest.raises(InputError, match="do not belong together"):
        SigningKey(signing_keys.key, other_keys.certificate)


def test_a_machine_without_partition_types(
    output: Path, signing_keys: SigningKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "m68k")
    refuse(output, signing_keys, MemorySource(tiny_tree()), HostError, "m68k; expected x86_64")


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "m68k"])
def test_an_image_for_other_machines(
    output: Path, signing_keys: SigningKeys, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    key = SigningKey(signing_keys.key, signing_keys.certificate)
    architectures: tuple[Architecture, ...] = ("x86-64", "arm64")
    root_hashes = set()
    for architecture in architectures:
        built = build_image(MemorySource(tiny_tree()), str(output), key, architecture=architecture, replace=True)
        assert architectures_in(output) == [architecture] * 3
        root_hashes.add(built.root_hash)
    assert len(root_hashes) == 1


def test_without_a_word_it_is_for_this_machine(
    output: Path, signing_keys: SigningKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    build(MemorySource(tiny_tree()), output, signing_keys)
    assert architectures_in(output) == ["arm64"] * 3


def architectures_in(image: Path) -> list[Architecture | None]:
    return [architecture_of(p.type_guid) for p in read_gpt(MemoryDevice(image.read_bytes())).partitions]


@needs_root
def test_a_file_that_the_user_may_not_read(tmp_path: Path, signing_keys: SigningKeys) -> None:
    for path in (tmp_path, *tmp_path.parents):
        path.chmod(path.stat().st_mode | 0o011)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "secret").write_bytes(b"x")
    (tmp_path / "tree" / "secret").chmod(0o600)
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    script = (
        "import os, sys\n"
        "from rofs.trust import keys\n"
        "from rofs.image.build import SigningKey, build_image\n"
        "from rofs.source.directory import DirectorySource\n"
        "signer = SigningKey(keys.load_private_key(sys.argv[3]), keys.load_certificates(sys.argv[4])[0])\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    build_image(DirectorySource(sys.argv[1]), sys.argv[2], signer)\n"
        "except Exception as error:\n"
        "    sys.exit(f'{type(error).__name__}: {error}')\n"
    )
    arguments = [tmp_path / "tree", tmp_path / "out" / "i.raw", signing_keys.key_path, signing_keys.certificate_path]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False, cwd=REPOSITORY
    )
    assert done.stderr == f"InputError: cannot read source {tmp_path}/tree/secret: Permission denied\n"
    assert os.listdir(tmp_path / "out") == []


# Disks that fail


def number_of_calls(output: Path, keys: SigningKeys) -> list[str]:
    calls = FailingCalls()
    with durable.using(calls):
        build(MemorySource(tiny_tree()), output, keys)
    output.unlink()
    return calls.calls


@pytest.mark.parametrize("forever", [False, True])
def test_a_full_disk_at_any_call_leaves_nothing(output: Path, signing_keys: SigningKeys, forever: bool) -> None:
    calls = number_of_calls(output, signing_keys)
    assert len(calls) > 15
    for fail_at in range(len(calls)):
        failing = FailingCalls(fail_at, forever=forever)
        full = pytest.raises(HostError, match=r"image\.raw: No space left on device; free some space")
        with durable.using(failing), full:
            build(MemorySource(tiny_tree()), output, signing_keys)
        if "link" in calls[:fail_at]:  # it was complete and named already
            build(MemorySource(tiny_tree()), output, signing_keys, replace=True)
            output.unlink()
        assert os.listdir(output.parent) == []


def test_a_full_disk_leaves_the_old_image(output: Path, signing_keys: SigningKeys) -> None:
    calls = number_of_calls(output, signing_keys)
    output.write_bytes(b"old")
    for fail_at in range(0, len(calls) - 3, 5):
        with durable.using(FailingCalls(fail_at)), pytest.raises(HostError):
            build(MemorySource(tiny_tree()), output, signing_keys, replace=True)
        assert output.read_bytes() == b"old"
        assert os.listdir(output.parent) == [output.name]


def test_a_power_cut_at_any_call_leaves_no_half_image(output: Path, signing_keys: SigningKeys) -> None:
    calls = number_of_calls(output, signing_keys)
    link = calls.index("link")
    for fail_at in {0, 1, 2, len(calls) // 2, link - 1, link, link + 1, len(calls) - 1}:
        child = os.fork()
        if not child:
            try:
                with durable.using(KillingCalls(fail_at)):
                    build(MemorySource(tiny_tree()), output, signing_keys)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status)
        assert output.exists() == (fail_at > link)
        for name in os.listdir(output.parent):
            (output.parent / name).unlink()
