# SPDX-License-Identifier: Apache-2.0
"""What is installed: units that systemd and our own parser understand, and nothing half filled in."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rofs.cli import mount_helper
from rofs.cli.main import build_parser
from rofs.errors import InputError
from rofs.system.content import SystemFile
from tests.conftest import REPOSITORY
from tests.mounts.harness import ROOT_IS_A_MOUNT
from tests.tools.test_systemd import Chroot

from .conftest import system_files

UNIT = "/usr/local/lib/systemd/system/rofs@.service"
EXAMPLES = "/usr/local/share/doc/rofs/examples"
# Each gives the service a mount namespace, and then nobody else sees its mounts. Source: systemd.exec(5).
NAMESPACING = re.compile(
    "^(PrivateTmp|PrivateDevices|PrivateMounts|PrivateNetwork|PrivateIPC|ProtectSystem|ProtectHome|ProtectProc|ProcSubset|"
    "ProtectKernel|ProtectControlGroups|ProtectHostname|ReadWritePaths|ReadOnlyPaths|InaccessiblePaths|ExecPaths|"
    "NoExecPaths|Bind|TemporaryFileSystem|MountFlags|MountImages|RootDirectory|RootImage|Extension|DynamicUser|"
    "LogNamespace|StateDirectory|RuntimeDirectory)"
)


def text(files: dict[str, SystemFile], path: str) -> str:
    return files[path].data.decode()


def settings(unit: str) -> list[tuple[str, str]]:
    pairs = [line.partition("=")[::2] for line in unit.splitlines() if re.match(r"[A-Z]\w+=", line)]
    return [(name, value) for name, value in pairs]


def values(unit: str, name: str) -> list[str]:
    return [value for key, value in settings(unit) if key == name]


def command(unit: str, name: str, environment: dict[str, str]) -> list[str]:
    """The words of a command line as systemd gives them to the program. Source: systemd.service(5)."""
    (line,) = values(unit, name)
    words: list[str] = []
    for word in shlex.split(line):
        if re.fullmatch(r"\$\w+", word):
            words += shlex.split(environment.get(word[1:], ""))
        else:
            words.append(re.sub(r"\$\{(\w+)\}", lambda match: environment.get(match[1], ""), word))
    return words


def environment(files: dict[str, SystemFile]) -> dict[str, str]:
    lines = text(files, f"{EXAMPLES}/NAME.conf").splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_nothing_is_left_to_fill_in(files: dict[str, SystemFile]) -> None:
    for file in files.values():
        assert not re.search(rb"@[A-Z]+@", file.data), file.path
        assert file.mode == (0o755 if file.path == "/usr/sbin/mount.fuse.rofs" else 0o644)
    assert [path for path, file in files.items() if file.is_config] == ["/etc/rofs.toml"]


def test_commands_of_the_unit_are_commands_of_rofs(files: dict[str, SystemFile]) -> None:
    unit, given = text(files, UNIT), environment(files)
    given["OPTIONS"] = "--mode sealed --workers 4 -o suid,dev"
    start, reload = command(unit, "ExecStart", given), command(unit, "ExecReload", given)
    for words in (start, reload):
        assert words[:4] == [sys.executable, "-I", "-m", "rofs.cli.main"]
    arguments = build_parser(start[4:]).parse_args(start[4:])
    assert (arguments.verb, arguments.foreground, arguments.takeover) == ("mount", True, False)
    assert (arguments.image, arguments.directory) == ("/var/lib/images/app.raw", "/srv/app")
    assert (arguments.trust, arguments.mode, arguments.workers) == (["/etc/rofs/vendor.crt"], "sealed", 4)
    arguments = build_parser(reload[4:]).parse_args(reload[4:])
    assert (arguments.verb, arguments.foreground, arguments.takeover) == ("mount", False, True)
    assert (arguments.image, arguments.directory) == ("/var/lib/images/app.raw", "/srv/app")
    assert (arguments.trust, arguments.mode, arguments.options) == (["/etc/rofs/vendor.crt"], None, [])


def test_odd_names_stay_one_word(files: dict[str, SystemFile]) -> None:
    given = {"IMAGE": "-o my image.raw", "MOUNTPOINT": "/srv/a b"}
    words = command(text(files, UNIT), "ExecStart", given)[4:]
    arguments = build_parser(words).parse_args(words)
    assert (arguments.image, arguments.directory, arguments.options) == ("-o my image.raw", "/srv/a b", [])


def test_the_unit_shares_the_mount_namespace_of_the_host(files: dict[str, SystemFile]) -> None:
    names = [name for name, _ in settings(text(files, UNIT))]
    assert [name for name in names if NAMESPACING.match(name)] == []


def test_a_crash_does_not_unmount(files: dict[str, SystemFile]) -> None:
    """ExecStop= is run when the main process has died, too, and ExecStopPost= always."""
    unit = text(files, UNIT)
    assert values(unit, "ExecStop") == values(unit, "ExecStopPost") == []
    assert values(unit, "KillMode") == ["mixed"]
    assert values(unit, "Restart") == ["on-failure"]
    assert values(unit, "OOMPolicy") == ["continue"]


def test_the_mount_example_is_what_the_helper_takes(files: dict[str, SystemFile]) -> None:
    unit = text(files, f"{EXAMPLES}/srv-app.mount")
    (where,), (what,), (options,) = (values(unit, name) for name in ("Where", "What", "Options"))
    assert values(unit, "Type") == ["fuse.rofs"]
    assert mount_helper.main([what, where, "-f", "-o", f"rw,{options}"]) == 0
    (line,) = re.findall(r"^#   (/var\S+ .*)$", unit, re.MULTILINE)
    assert line.split() == [what, where, "fuse.rofs", options, "0", "0"]


@pytest.mark.parametrize("python", ["/opt/my rofs/bin/python", "/opt/50%/$x/\"q'/python", "/opt/back\\slash/python"])
def test_an_interpreter_with_an_odd_path(python: str, tmp_path: Path) -> None:
    files = system_files(python=python)
    helper = text(files, "/usr/sbin/mount.fuse.rofs")
    assert shlex.split(helper.splitlines()[-1])[:5] == ["exec", python, "-I", "-m", "rofs.cli.mount_helper"]
    (line,) = values(text(files, UNIT), "ExecStart")
    assert shlex.split(line.replace("%%", "%").replace("$$", "$"))[0] == python


@pytest.mark.parametrize(("python", "prefix"), [("python3", "/usr"), ("/a\nb", "/usr"), ("/p", "usr"), ("/p", "/u\n")])
def test_what_cannot_stand_in_a_unit_is_refused(python: str, prefix: str) -> None:
    with pytest.raises(InputError, match="must be an absolute path"):
        system_files(python=python, prefix=prefix)


# systemd's opinion


def _write_units(files: dict[str, SystemFile], directory: Path) -> list[str]:
    directory.mkdir()
    (directory / "rofs@.service").write_bytes(files[UNIT].data)
    (directory / "rofs@app.service").symlink_to("rofs@.service")
    (directory / "srv-app.mount").write_bytes(files[f"{EXAMPLES}/srv-app.mount"].data)
    return [f"./{directory.name}/{name}" for name in ("rofs@.service", "rofs@app.service", "srv-app.mount")]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_of_this_host_has_nothing_to_say_about_the_units(files: dict[str, SystemFile], tmp_path: Path) -> None:
    units = _write_units(files, tmp_path / "units")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(not ROOT_IS_A_MOUNT, reason="the root is no mount point: mounts cannot be made private")
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_systemd_252_and_257_have_nothing_to_say_about_the_units(suite: str, oracle_root: Path, tmp_path: Path) -> None:
    root = oracle_root
    if suite == "bookworm":
        make: list[str | Path] = [REPOSITORY / "scripts" / "debian-root", "--include=systemd,erofs-utils", suite]
        root = Path(subprocess.run(make, stdout=subprocess.PIPE, text=True, check=True).stdout.strip())
    units = _write_units(system_files(python="/usr/bin/python3"), tmp_path / "units")
    done = Chroot(root, tmp_path).run("systemd-analyze", "verify", "--man=no", *units)
    assert done.stdout + done.stderr == ""
    with (tmp_path / units[0]).open("a") as unit:
        unit.write("[Service]\nNoSuchSetting=1\n")
    done = Chroot(root, tmp_path).run("systemd-analyze", "verify", "--man=no", *units, check=False)
    assert "NoSuchSetting" in done.stdout + done.stderr  # it does look
