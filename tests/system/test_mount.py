# SPDX-License-Identifier: Apache-2.0
"""mount(8), fstab and mount.fuse3(8) with what `rofs install-system` installs, in a mount namespace of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pytest

from tests.conftest import SigningKeys
from tests.mounts.harness import ROFS, ROOT_IS_A_MOUNT, rofs, wait_until

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not ROOT_IS_A_MOUNT, reason="the root is no mount point: mounts cannot be made private"),
]

# The host's /usr, /etc and /var/lib, with changes that end with the namespace; and nothing stays mounted, whatever
# happens: the processes of a mount would keep the namespace.
_PRIVATE = """
set -e
rofs=$1 work=$2
cd "$work"
mkdir scratch
mount -t tmpfs tmpfs scratch
for place in usr etc var/lib; do
    mkdir -p "scratch/$place/upper" "scratch/$place/work"
    mount -t overlay -o "lowerdir=/$place,upperdir=scratch/$place/upper,workdir=scratch/$place/work" overlay "/$place"
done
trap 'umount --lazy "$work/dir" 2>/dev/null || true' EXIT
export PATH="$(dirname "$rofs"):$PATH"
opts=trust=$work/crt,audit-log=$work/log
"""


@dataclass(frozen=True)
class Work:
    """A directory with an image, its certificate, and a mount point."""

    path: Path

    def run(self, script: str, *, install: bool = True) -> list[str]:
        """What a script says, line by line, with nothing of rofs on the host but what it installs."""
        install_it = '"$rofs" install-system >/dev/null 2>&1\n' if install else ""
        done = subprocess.run(
            ["unshare", "--mount", "bash", "-c", _PRIVATE + install_it + script, "bash", ROFS, self.path],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout
        wait_until(lambda: not self._processes())
        return done.stdout.replace(f"{self.path}/", "").splitlines()

    def _processes(self) -> list[str]:
        """Of mounts below the directory."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = path.read_bytes()
            except OSError:
                continue
            if b"mount_helper" in command and os.fsencode(self.path) in command:
                found.append(path.parent.name)
        return found


@pytest.fixture
def work(tmp_path: Path, signing_keys: SigningKeys) -> Work:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("content\n")
    (tmp_path / "dir").mkdir()
    shutil.copy(signing_keys.certificate_path, tmp_path / "crt")
    pair = ("--key", signing_keys.key_path, "--cert", signing_keys.certificate_path)
    rofs("build", tmp_path / "tree", "-o", tmp_path / "img", *pair)
    return Work(tmp_path)


_SHOW = 'findmnt --noheadings --output FSTYPE,SOURCE,VFS-OPTIONS "$work/dir"\n'


def test_mount_by_type(work: Work) -> None:
    script = 'mount -t fuse.rofs "$work/img" "$work/dir" -o $opts\ncat dir/file\ntouch dir/x || true\n' + _SHOW
    content, refused, shown = work.run(script + 'umount "$work/dir"\n')
    assert content == "content"
    assert refused.endswith("Read-only file system")
    assert shown.split() == ["fuse.rofs", "img", "rw,nosuid,nodev,relatime"]
    assert '"write_blocked"' in (work.path / "log").read_text()


def test_fstab(work: Work) -> None:
    """With what fstab says to mount(8) and systemd; `suid` and `dev` behind `user` win."""
    script = (
        'echo "$work/img $work/dir fuse.rofs $opts,defaults,nofail,_netdev,noauto,user,suid,dev,ro,mode=sealed,'
        'workers=2,x-systemd.automount,comment=x 0 0" >fstab\n'
        'mount --fstab fstab "$work/dir"\n'
        f'{_SHOW}rofs status --json "$work/dir"\numount "$work/dir"\n'
    )
    shown, *status = work.run(script)
    assert shown.split() == ["fuse.rofs", "img", "ro,noexec,relatime"]
    (mounted,) = json.loads("".join(status))
    assert (mounted["mode"], len(mounted["workers"])) == ("sealed", 2)


@pytest.mark.parametrize("options", ["", ",mode=sealed"])
def test_remount_keeps_what_a_mount_has(work: Work, options: str) -> None:
    """As systemd-remount-fs does with the line of fstab, whose options are not those of the kernel."""
    script = (
        f'echo "$work/img $work/dir fuse.rofs $opts{options} 0 0" >fstab\nmount --fstab fstab "$work/dir"\n'
        f'mount --fstab fstab -o remount "$work/dir"\n{_SHOW}'
        f'mount -o remount,ro,noexec "$work/dir"\n{_SHOW}'
        'cat dir/file\numount "$work/dir"\n'
    )
    first, second, content = work.run(script)
    assert first.split()[2] == f"{'ro' if options else 'rw'},nosuid,nodev,relatime"
    assert second.split()[2] == "ro,nosuid,nodev,noexec,relatime"
    assert content == "content"


def test_exit_codes(work: Work) -> None:
    calls = [
        ('"$work/img" "$work/dir" -o bad=1', 1),
        ('"$work/img" "$work/none" -o $opts', 32),
        ('"$work/none" "$work/dir" -o $opts', 32),
        ('"$work/crt" "$work/dir" -o $opts', 32),
        ('"$work/img" "$work/dir" -o root-hash=' + "ab" * 32, 32),
        ('-f "$work/img" "$work/dir" -o $opts', 0),
    ]
    script = "".join(f'code=0; mount -t fuse.rofs {call} || code=$?; echo "= $code"\n' for call, _ in calls)
    said = work.run(script + 'mountpoint -q "$work/dir" && exit 1\ntrue\n')
    assert [line for line in said if line.startswith("= ")] == [f"= {code}" for _, code in calls]
    assert len(said) == 2 * len(calls) - 1  # each tells in one line why


def test_without_the_helper_mount_fuse3_is_told_the_way(work: Work) -> None:
    link = 'ln -sf "$rofs" /usr/bin/rofs\n'
    said = work.run(link + 'mount -t fuse.rofs "$work/img" "$work/dir" -o $opts && exit 1\ntrue\n', install=False)
    assert "rofs install-system" in "".join(said)


def test_uninstall_leaves_the_host_as_it_was(work: Work) -> None:
    script = (
        "list() { find /usr/sbin /usr/local /etc /var/lib/rofs ! -type d | sort; }\nlist >before\n"
        '"$rofs" install-system >/dev/null 2>&1\nlist >between\n"$rofs" install-system --uninstall >/dev/null 2>&1\n'
        "list >after\n"
    )
    work.run("mkdir -p /var/lib/rofs\n" + script, install=False)
    before, between, after = ((work.path / name).read_text() for name in ("before", "between", "after"))
    assert before == after
    assert "/usr/sbin/mount.fuse.rofs\n" in between


def test_what_the_unit_leaves_of_root_is_enough_to_mount(work: Work) -> None:
    unit = resources.files("rofs.system").joinpath("data", "rofs@.service").read_text()
    found = " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.MULTILINE)).split()
    bounding = ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for name in found)])
    script = (
        f"setpriv --bounding-set={bounding} --no-new-privs rofs mount img dir --trust crt --audit-log log\n"
        "cat dir/file\ntouch dir/x || true\nrofs mount img dir --trust crt --takeover\ncat dir/file\nrofs umount dir\n"
    )
    assert [line for line in work.run(script) if "Read-only" not in line] == ["content", "content"]
    (event,) = [line for line in (work.path / "log").read_text().splitlines() if '"write_blocked"' in line]
    assert '"exe"' in event
