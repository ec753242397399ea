# SPDX-License-Identifier: Apache-2.0
"""systemd's own tools as neighbours: what systemd-repart makes opens here, what rofs makes opens there."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from rofs.image.open import open_file, open_image
from rofs.trust.image_policy import DESIGNATORS, parse_image_policy
from tests.compare import differences
from tests.conftest import REPOSITORY, SigningKeys
from tests.mounts.harness import ROOT_IS_A_MOUNT, mounted, rofs

# In a mount namespace of its own, which ends with the command: nothing is left in the cached root.
_ENTER = """
set -e
root=$1 work=$2; shift 2
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/mnt"
mkdir "$root/mnt/files" "$root/run/verity.d" "$root/run/mnt"
mount --bind "$work" "$root/mnt/files"
exec chroot "$root" sh -ec 'cd /mnt/files; exec "$@"' sh "$@"
"""


@dataclass(frozen=True)
class Chroot:
    """A Debian whose programs run on the files of one directory, which is their working directory."""

    root: Path
    work: Path

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        if not ROOT_IS_A_MOUNT:
            pytest.skip("the root is no mount point (we are in a chroot): mounts cannot be made private")
        command: list[str | Path] = ["unshare", "--mount", "sh", "-c", _ENTER, "sh", self.root, self.work, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert not check or done.returncode == 0, done.stderr
        return done


@pytest.fixture(scope="session")
def bookworm_root() -> Path:
    """A Debian 12 with systemd 252, cached outside of the checkout."""
    command: list[str | Path] = [REPOSITORY / "scripts" / "debian-root", "--include=systemd,erofs-utils", "bookworm"]
    return Path(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, signing_keys: SigningKeys, other_keys: SigningKeys) -> Path:
    """A directory with a tree, and the keys."""
    base = tmp_path_factory.mktemp("systemd")
    shutil.copy(signing_keys.key_path, base / "key")
    shutil.copy(signing_keys.certificate_path, base / "crt")
    shutil.copy(other_keys.certificate_path, base / "other.crt")
    tree = base / "tree"
    for directory in ("usr/lib", "lib", "etc", "many"):
        (tree / directory).mkdir(parents=True)
    for place in ("usr/lib", "lib"):
        (tree / place / "os-release").write_text('NAME=x\nIMAGE_ID=edge\nIMAGE_VERSION="1.2"\n')
    (tree / "etc" / "os-release").symlink_to("../usr/lib/os-release")
    (tree / "large").write_bytes(os.urandom(300_001))
    (tree / "program").write_bytes(b"x")
    (tree / "program").chmod(0o4755)
    for n in range(400):
        (tree / "many" / f"{n:03}").write_bytes(b"%d" % n * n)
    os.utime(tree, (1_700_000_000, 1_700_000_000))
    return base


@pytest.fixture(scope="session")
def trixie(oracle_root: Path, work: Path) -> Chroot:
    return Chroot(oracle_root, work)


@pytest.fixture(scope="session")
def bookworm(bookworm_root: Path, work: Path) -> Chroot:
    return Chroot(bookworm_root, work)


def definitions(directory: Path, designator: str, data: str, tree: str) -> None:
    """What systemd-repart is to make: one set of three partitions."""
    directory.mkdir()
    kinds = {"": ("data", data), "-verity": ("hash", tree), "-verity-sig": ("signature", "")}
    for number, (suffix, (kind, more)) in enumerate(kinds.items()):
        text = f"[Partition]\nType={designator}{suffix}\nVerity={kind}\nVerityMatchKey=x\n{more}"
        (directory / f"{number}.conf").write_text(text)


@pytest.fixture(scope="session", params=["root", "usr"])
def of_repart_257(request: pytest.FixtureRequest, trixie: Chroot) -> Path:
    name = f"257-{request.param}"
    data = "Format=erofs\nMinimize=best\nCopyFiles=/mnt/files/tree:/\n"
    definitions(trixie.work / name, request.param, data, "Minimize=best\n")
    keys = ("--private-key=key", "--certificate=crt")
    make = ("--empty=create", "--size=auto", "--dry-run=no", "--offline=yes")
    trixie.run("systemd-repart", f"--definitions={name}", *make, *keys, f"{name}.raw")
    return trixie.work / f"{name}.raw"


@pytest.fixture(scope="session")
def of_repart_252(bookworm: Chroot) -> Path:
    """Which copies a filesystem, needs a loop device, and writes hash trees over blocks of 512 bytes."""
    bookworm.run("mkfs.erofs", "252.erofs", "tree")
    sizes = "SizeMinBytes={0}\nSizeMaxBytes={0}\n"
    definitions(
        bookworm.work / "252", "root", "CopyBlocks=/mnt/files/252.erofs\n" + sizes.format("4M"), sizes.format("2M")
    )
    make = ("--empty=create", "--size=auto", "--dry-run=no", "--private-key=key", "--certificate=crt")
    bookworm.run("systemd-repart", "--definitions=252", *make, "252.raw")
    return bookworm.work / "252.raw"


def assert_opens_as_the_source(image: Path, work: Path, trust: Path, place: Path) -> None:
    verified = rofs("verify", image, "--trust", trust).stdout
    assert "edge" in verified
    assert "1.2" in verified
    with mounted(image, trust, place) as mount:
        assert differences(work / "tree", mount.directory) == []
        assert mount.status()["name"] == "edge"


def test_image_of_repart_257_opens_as_its_source(
    of_repart_257: Path, work: Path, signing_keys: SigningKeys, tmp_path: Path
) -> None:
    assert_opens_as_the_source(of_repart_257, work, signing_keys.certificate_path, tmp_path)


def test_image_of_repart_252_with_512_byte_blocks_opens_as_its_source(
    of_repart_252: Path, work: Path, signing_keys: SigningKeys, tmp_path: Path
) -> None:
    with open_file(str(of_repart_252)) as files:
        superblock = open_image(files, signing_keys.policy).device.superblock
        assert (superblock.data_block_size, superblock.hash_block_size) == (512, 512)
    assert_opens_as_the_source(of_repart_252, work, signing_keys.certificate_path, tmp_path)


def test_image_of_repart_by_another_signer_is_refused(of_repart_257: Path, other_keys: SigningKeys) -> None:
    done = rofs("verify", of_repart_257, "--trust", other_keys.certificate_path, check=False)
    assert done.returncode == 3


def test_image_of_repart_is_signed_once_more(of_repart_257: Path, tmp_path: Path, other_keys: SigningKeys) -> None:
    image = Path(shutil.copy(of_repart_257, tmp_path / "copy.raw"))
    rofs("sign", image, "--key", other_keys.key_path, "--cert", other_keys.certificate_path)
    rofs("verify", image, "--trust", other_keys.certificate_path)


# Ours, there


@pytest.fixture(scope="session")
def ours(work: Path, signing_keys: SigningKeys, other_keys: SigningKeys) -> Path:
    """`ours.raw`, `unsigned.raw`, and `two.raw` with two signers."""
    pair = ("--key", signing_keys.key_path, "--cert", signing_keys.certificate_path)
    rofs("build", work / "tree", "-o", work / "ours.raw", *pair)
    rofs("build", work / "tree", "-o", work / "unsigned.raw", "--unsigned")
    shutil.copy(work / "ours.raw", work / "two.raw")
    rofs("sign", work / "two.raw", "--key", other_keys.key_path, "--cert", other_keys.certificate_path)
    return work


@pytest.mark.parametrize("policy", ["root=signed", "root=verity", "root=signed:=absent"])
@pytest.mark.parametrize("image", ["ours.raw", "two.raw", "unsigned.raw"])
def test_systemd_dissect_validates_ours(trixie: Chroot, ours: Path, image: str, policy: str) -> None:
    assert trixie.run("systemd-dissect", "--validate", f"--image-policy={policy}", image).stdout.strip() == "OK"


def _verdict(trixie: Chroot, image: str, *certificates: str) -> str:
    """What systemd says of the signature when it is to mount an image; whether the mount works is the kernel's."""
    install = "".join(f"cp {name} /run/verity.d/{name}.crt; " for name in certificates)
    mount = f"SYSTEMD_LOG_LEVEL=debug systemd-dissect --mount --image-policy=root=signed {image} /run/mnt 2>&1"
    said = trixie.run("sh", "-c", f"{install} {mount}; umount -R /run/mnt 2>/dev/null; true").stdout
    verdicts = [line for line in said.splitlines() if "PKCS#7 validation" in line]
    if not verdicts and "via the kernel" not in said:
        pytest.skip(f"systemd-dissect did not get as far as the signature: {said.splitlines()[-1:]}")
    return verdicts[-1]


def test_systemd_accepts_our_signature(trixie: Chroot, ours: Path) -> None:
    assert "validation succeeded" in _verdict(trixie, "ours.raw", "crt")
    assert "validation failed" in _verdict(trixie, "ours.raw", "other.crt")


def test_systemd_wants_the_certificates_of_all_signers(trixie: Chroot, ours: Path) -> None:
    assert "validation succeeded" in _verdict(trixie, "two.raw", "crt", "other.crt")
    assert "validation failed" in _verdict(trixie, "two.raw", "crt")


# The policy grammar


def _flags(mode: str) -> set[str]:
    words = {"open": "verity+signed+encrypted+unprotected+unused+absent", "ignore": "unused+absent"}
    return set(words.get(mode, mode).split("+"))


def test_policies_mean_what_systemd_says(trixie: Chroot) -> None:
    policies = [
        *("root=signed", "root=verity+signed:usr=encrypted", "=signed", "=absent:root=open", "root=signed:=ignore"),
        *("*", "-", "~", "usr=unprotected+absent", "root=signed+read-only-on", "home=encrypted:swap=absent"),
    ]
    script = 'for policy in "$@"; do echo "== $policy"; systemd-analyze image-policy -- "$policy"; done'
    parts = trixie.run("sh", "-c", script, "sh", *policies).stdout.split("== ")[1:]
    assert len(parts) == len(policies)
    for text, part in zip(policies, parts, strict=True):
        table = {line.split()[0]: line.split()[1] for line in part.splitlines() if len(line.split()) == 4}
        for designator in ("root", "usr"):
            allowed = parse_image_policy(text).clause_of(designator).allows
            assert _flags(table[designator]) == set(allowed), (text, designator)


@pytest.mark.parametrize(
    "policy",
    ["root", "foo=signed", "root=sgined", "root=signed:root=verity", "root=signed:", "root=*", "=open:=absent"],
)
def test_policies_that_systemd_refuses_are_refused(trixie: Chroot, policy: str) -> None:
    assert trixie.run("systemd-analyze", "image-policy", "--", policy, check=False).returncode != 0
    assert rofs("verify", "/none", "--image-policy", policy, check=False).returncode == 2


def test_systemd_knows_no_other_partitions(trixie: Chroot) -> None:
    table = trixie.run("systemd-analyze", "image-policy", "--", "*").stdout.splitlines()
    known = [
        line.split()[0] for line in table if len(line.split()) == 4 and line.split()[0] not in {"PARTITION", "default"}
    ]
    assert sorted(known) == sorted(DESIGNATORS)


# Side files, as veritysetup makes them


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--data-block-size=512", "--hash-block-size=512"),
        ("--data-block-size=1024", "--hash-block-size=4096", "--salt=" + "ab" * 256),
        ("--hash=sha512", "--salt=-"),
        ("--data-block-size=4096", "--hash-block-size=65536"),
    ],
    ids=["defaults", "512", "longest salt", "sha512", "64 KiB"],
)
def test_side_files_of_veritysetup(
    trixie: Chroot, work: Path, signing_keys: SigningKeys, tmp_path: Path, options: tuple[str, ...]
) -> None:
    bare = Chroot(trixie.root, tmp_path)
    shutil.copytree(work / "tree", tmp_path / "tree")
    bare.run("mkfs.erofs", "bare.raw", "tree")
    bare.run("veritysetup", "format", "bare.raw", "bare.verity", "--root-hash-file=bare.roothash", *options)
    rofs("sign", tmp_path / "bare.raw", "--key", signing_keys.key_path, "--cert", signing_keys.certificate_path)
    trust: tuple[str | Path, ...] = ("--trust", signing_keys.certificate_path)
    rofs("verify", tmp_path / "bare.raw", *trust)
    with mounted(tmp_path / "bare.raw", signing_keys.certificate_path, tmp_path / "place") as mount:
        assert differences(tmp_path / "tree", mount.directory) == []


_Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "code"),
    [(lambda p: p.with_suffix(".roothash.p7s").unlink(), 3), (lambda p: p.with_suffix(".verity").unlink(), 1)],
    ids=["no signature", "no hash tree"],
)
def test_a_mount_refuses_incomplete_side_files(
    trixie: Chroot, work: Path, signing_keys: SigningKeys, tmp_path: Path, damage: _Damage, code: int
) -> None:
    bare = Chroot(trixie.root, tmp_path)
    shutil.copytree(work / "tree" / "lib", tmp_path / "tree")
    bare.run("mkfs.erofs", "bare.raw", "tree")
    bare.run("veritysetup", "format", "bare.raw", "bare.verity", "--root-hash-file=bare.roothash")
    rofs("sign", tmp_path / "bare.raw", "--key", signing_keys.key_path, "--cert", signing_keys.certificate_path)
    damage(tmp_path / "bare.raw")
    (tmp_path / "mnt").mkdir()
    words = (tmp_path / "bare.raw", tmp_path / "mnt", "--trust", signing_keys.certificate_path)
    assert rofs("mount", *words, check=False).returncode == code
