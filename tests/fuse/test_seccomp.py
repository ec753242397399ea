# SPDX-License-Identifier: Apache-2.0
"""Filters: the numbers are the kernel's, and each call gets the verdict it should, by a machine of our own."""

from __future__ import annotations

import errno
import fcntl
import mmap
import re
import socket
import struct
from pathlib import Path

import pytest

from rofs.fuse import seccomp
from rofs.fuse.seccomp import EVIDENCE, RESOLVER, VERIFIER, WORKER, Profile

ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
HEADERS = {"x86_64": "x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "asm-generic/unistd.h"}
PROFILES = [VERIFIER, RESOLVER, WORKER]
PID = 4711
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
both_machines = pytest.mark.parametrize("machine", ARCHES)
all_profiles = pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)


def verdict(profile: Profile, machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """Run a filter as the kernel does (networking/filter.rst), as far as ours go."""
    padded = [argument & (1 << 64) - 1 for argument in (*arguments, *[0] * 6)][:6]
    data = struct.pack("<iIQ6Q", number, ARCHES[machine] if arch is None else arch, 0, *padded)
    instructions = list(struct.iter_unpack("<HBBI", seccomp.program(profile, machine, PID)))
    assert len(instructions) <= 4096  # BPF_MAXINSNS
    at = value = 0
    while True:
        code, if_true, if_false, constant = instructions[at]
        at += 1
        match code:
            case 0x20:
                (value,) = struct.unpack_from("<I", data, constant)
            case 0x54:
                value &= constant
            case 0x15:
                at += if_true if value == constant else if_false
            case 0x35:
                at += if_true if value >= constant else if_false
            case 0x06:
                return int(constant)
            case _:
                pytest.fail(f"unknown instruction {code:#x}")


def judged(profile: Profile, name: str, *arguments: int) -> int:
    found = {verdict(profile, machine, seccomp.numbers(machine)[name], *arguments) for machine in ARCHES}
    assert len(found) == 1
    return found.pop()


@both_machines
def test_numbers_are_those_of_the_kernel(machine: str) -> None:
    header = Path("/usr/include") / HEADERS[machine]
    if not header.exists():
        pytest.skip(f"needs {header} (linux-libc-dev of that machine)")
    found = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text()))
    ours = seccomp.numbers(machine)
    assert {name: int(found[name]) for name in ours if name in found} == ours | {
        name: int(found[name]) for name in found if name in ours
    }
    assert set(ours) - set(found) <= {"open_by_handle_at"}  # which the generic header spells in another way


def test_every_name_has_a_number() -> None:
    names = {*EVIDENCE, *(name for profile in PROFILES for name in profile.allowed)}
    assert names == set(seccomp.numbers("x86_64"))


def test_only_known_machines() -> None:
    assert seccomp.knows("x86_64")
    assert seccomp.knows("aarch64")
    assert not any(map(seccomp.knows, ("", "i686", "riscv64", "ppc64le")))


@both_machines
@all_profiles
def test_every_system_call_is_allowed_refused_or_evidence(profile: Profile, machine: str) -> None:
    names = {number: name for name, number in seccomp.numbers(machine).items()}
    for number in range(-1, 600):
        name = names.get(number, "")
        outcome = verdict(profile, machine, number)
        if name in profile.allowed and not profile.allowed[name]:
            assert outcome == ALLOW
        elif name in EVIDENCE:
            assert outcome == KILL
        else:
            assert outcome == REFUSE or profile.allowed.get(name) or (number == -1 and machine == "x86_64")


@all_profiles
def test_other_architectures_end_the_process(profile: Profile) -> None:
    assert verdict(profile, "x86_64", 0, arch=0x40000003) == KILL  # i386, by int 0x80
    assert verdict(profile, "x86_64", 0x40000000) == KILL  # x32
    assert verdict(profile, "aarch64", 63, arch=0x40000028) == KILL  # arm


@all_profiles
def test_memory_never_becomes_executable(profile: Profile) -> None:
    readable, anonymous = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    assert judged(profile, "mmap", 0, 4096, readable, anonymous, -1, 0) == ALLOW
    assert judged(profile, "mmap", 0, 4096, readable | mmap.PROT_EXEC, anonymous, -1, 0) == REFUSE
    assert judged(profile, "mmap", 0, 4096, mmap.PROT_READ, mmap.MAP_SHARED, 3, 0) == REFUSE
    assert judged(profile, "mprotect", 0, 4096, readable) == ALLOW
    assert judged(profile, "mprotect", 0, 4096, mmap.PROT_READ | mmap.PROT_EXEC) == REFUSE


@all_profiles
def test_signals_to_oneself_only(profile: Profile) -> None:
    for name in ("kill", "tgkill"):
        assert judged(profile, name, PID, 9) == ALLOW
        assert {judged(profile, name, pid, 9) for pid in (1, 0, -1, -PID, PID + 1)} == {KILL}


def test_a_line_has_one_other_end() -> None:
    for profile in (WORKER, RESOLVER):
        assert judged(profile, "sendto", 5, 4096, 10, 0, 0, 0) == ALLOW
        assert judged(profile, "sendto", 5, 4096, 10, 0, 0x1000, 16) == REFUSE
        assert judged(profile, "sendto", 5, 4096, 10, 0, 1 << 40, 16) == REFUSE
    assert judged(VERIFIER, "sendto", 5, 4096, 10, 0, 0, 0) == REFUSE


def test_a_worker_sets_timeouts_and_locks_only() -> None:
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        assert judged(WORKER, "setsockopt", 5, socket.SOL_SOCKET, option, 1, 16) == ALLOW
    assert judged(WORKER, "setsockopt", 5, socket.SOL_SOCKET, socket.SO_SNDBUF, 1, 4) == REFUSE
    assert judged(WORKER, "setsockopt", 5, socket.IPPROTO_IP, socket.SO_RCVTIMEO, 1, 16) == REFUSE
    for command in (fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_GETFD):
        assert judged(WORKER, "fcntl", 5, command, 0) == ALLOW
    for command in (fcntl.F_SETOWN, fcntl.F_SETFL, fcntl.F_DUPFD, fcntl.F_NOTIFY, 1031, 1033):  # pipe size, seals
        assert judged(WORKER, "fcntl", 5, command, 0) == REFUSE
    for profile in (VERIFIER, RESOLVER):
        assert {judged(profile, name) for name in ("read", "writev", "fcntl", "setsockopt", "dup3")} == {REFUSE}
