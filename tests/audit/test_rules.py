# SPDX-License-Identifier: Apache-2.0
"""Rules: as auditctl takes them, if there is one, and in any case of its form; names cannot become rules."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from rofs.audit.rules import rules_for
from rofs.audit.syscalls import OF_MACHINE, name_of
from rofs.errors import HostError, InputError

_RULE = re.compile(
    r"-a always,exit -F arch=(b64|b32) -S ([a-z0-9_,]+)"
    r"( -F dir=/[^ ]*)?( -F perm=w| -F a[12]&0x400000)? -F exit=-(EROFS|EACCES|EPERM|EOPNOTSUPP) -F key=rofs"
)
# The longest rule that the kernel takes (audit_rule_data is read in one netlink message) and auditctl reads.
_LONGEST_LINE_BYTES = 8192


def _rules(*directories: bytes, machine: str = "x86_64") -> list[str]:
    lines = list(rules_for(directories, machine))
    return [line for line in lines if not line.startswith("##")]


@pytest.mark.parametrize("machine", OF_MACHINE)
def test_every_line_is_a_rule(machine: str) -> None:
    rules = _rules(b"/mnt", b"/srv/b", machine=machine)
    for rule in rules:
        assert _RULE.fullmatch(rule), rule
        assert len(rule) < _LONGEST_LINE_BYTES
    assert len(rules) == len(set(rules))
    for directory in ("/mnt", "/srv/b"):
        for errno in ("EROFS", "EACCES", "EPERM"):
            for width in ("b64", "b32"):
                of_directory = [rule for rule in rules if f"arch={width}" in rule and f"dir={directory} " in rule]
                assert sum(f"exit=-{errno} " in rule for rule in of_directory) == 2
    assert any("a2&0x400000" in rule for rule in rules)


def test_calls_that_a_machine_does_not_have_are_not_named() -> None:
    for rule in _rules(b"/mnt", machine="aarch64"):
        if "arch=b64" in rule:
            names = re.search(r"-S (\S+)", rule)
            assert names
            assert not {"open", "mkdir", "rename", "chmod"} & set(names[1].split(","))


def test_numbers_and_names_belong_together() -> None:
    assert name_of("c000003e", "257") == "openat"
    assert name_of("C00000B7", "56") == "openat"
    assert name_of("40000003", "39") == "mkdir"
    assert name_of("40000028", "322") == "openat"
    assert name_of("c000003e", "0") == "0"
    assert name_of("", "257") == "257"


def test_numbers_are_those_of_this_kernels_headers() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("the header unistd_64.h of x86-64 is missing")
    numbers = dict(re.findall(r"__NR_(\w+)\s+(\d+)", header.read_text()))
    ours = OF_MACHINE["x86_64"]["b64"]
    assert {name: int(numbers[name]) for name in ours if name in numbers} == {
        name: number for name, number in ours.items() if name in numbers
    }


@pytest.mark.parametrize(
    "name",
    [
        b"relative",
        b"/a b",
        b"/a\nb",
        b"/a\tb",
        b"/a\x7f",
        b'/"',
        b"/'",
        b"/#",
        b"/\\",
        b"/\xff",
        b"",
        b"/" + b"x" * 5000,
    ],
)
def test_directory_that_cannot_stand_in_a_rule_is_refused(name: bytes) -> None:
    with pytest.raises(InputError, match="cannot stand in an audit rule"):
        _rules(name)


def test_name_of_more_than_ascii_is_no_problem() -> None:
    assert "dir=/é " in _rules("/é".encode())[-1]


def test_unknown_machine_is_told() -> None:
    with pytest.raises(HostError, match="s390x"):
        _rules(b"/mnt", machine="s390x")


def test_the_real_tool_takes_them(tmp_path: Path) -> None:
    """Loaded for a directory that goes away, which takes the rules with it."""
    if shutil.which("auditctl") is None:
        pytest.skip("auditctl (package auditd) is missing")
    listed = subprocess.run(["auditctl", "-l"], check=False, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip(f"the kernel's audit cannot be used here: {listed.stderr.strip()}")
    if "key=rofs" in listed.stdout:
        pytest.skip("this machine has rules of rofs, which would be removed")
    rules = tmp_path / "rules"
    rules.write_text("\n".join(rules_for([os.fsencode(tmp_path)], platform.machine())) + "\n")
    try:
        done = subprocess.run(["auditctl", "-R", rules], check=False, capture_output=True, text=True)
        assert (done.returncode, "rror" in done.stdout + done.stderr) == (0, False), done.stderr
        listed = subprocess.run(["auditctl", "-l"], check=True, capture_output=True, text=True)
        assert listed.stdout.count("rofs") == len(_rules(os.fsencode(tmp_path), machine=platform.machine()))
    finally:
        subprocess.run(["auditctl", "-D", "-k", "rofs"], check=True, capture_output=True)
