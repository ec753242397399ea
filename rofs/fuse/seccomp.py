# SPDX-License-Identifier: Apache-2.0
"""Seccomp filters as bytes: which system calls a process may make, compiled for one machine.

A filter lists what is allowed, some of it only with certain arguments. Of the rest, what no program does by
accident ends the process (`EVIDENCE`), anything else fails with EPERM. Installs nothing; see `confine`.

Source: seccomp(2); Linux include/uapi/linux/{seccomp,filter,bpf_common,audit}.h, arch/x86/entry/syscalls/
syscall_64.tbl and include/uapi/asm-generic/unistd.h, which is what aarch64 uses.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

RET_KILL_PROCESS: Final = 0x80000000
_RET_ERRNO = 0x00050000
_RET_ALLOW = 0x7FFF0000

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]. All machines here are little-endian.
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
_INSTRUCTION = struct.Struct("<HBBI")  # struct sock_filter: code, jt, jf, k
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_IF_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_IF_GREATER_OR_EQUAL = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_X32_BIT = 0x40000000
_ALL = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Check:
    """What half of an argument must be.

    Attributes:
        half: Twice the argument's number for its low 32 bits, one more for the high ones.
        values: One of these ...
        mask: ... once all bits but these are cleared.
    """

    half: int
    values: tuple[int, ...]
    mask: int = _ALL


Checks = tuple[Check, ...]

# Low halves only: of an `int` the kernel looks at nothing else.
_NEVER_EXECUTABLE = Check(4, (0,), mmap.PROT_EXEC)
_ONLY_MEMORY = Check(6, (mmap.MAP_ANONYMOUS,), mmap.MAP_ANONYMOUS)
_LOCKS_AND_FLAGS = Check(2, (fcntl.F_SETLK, fcntl.F_SETLKW, fcntl.F_GETFD, fcntl.F_GETFL))
_TO_THE_OTHER_END = (Check(8, (0,)), Check(9, (0,)))  # no address
_TIMEOUTS = (Check(2, (socket.SOL_SOCKET,)), Check(4, (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO)))


@dataclass(frozen=True, slots=True)
class Profile:
    """What one kind of process may do; most frequent first, since older kernels go through it for each call.

    Attributes:
        name: For messages.
        allowed: System calls by name, with what their arguments must be.
    """

    name: str
    allowed: dict[str, Checks]


def _any(names: str) -> dict[str, Checks]:
    return dict.fromkeys(names.split(), ())


# Memory, time, signals to oneself, the end: what the C library and the interpreter do on their own account.
_COMMON: dict[str, Checks] = {
    **_any("futex brk munmap madvise mremap"),
    "mmap": (_NEVER_EXECUTABLE, _ONLY_MEMORY),
    "mprotect": (_NEVER_EXECUTABLE,),
    **_any("clock_gettime gettimeofday time rt_sigreturn rt_sigprocmask rt_sigaction sigaltstack restart_syscall"),
    **_any("lseek write close getrandom getpid gettid getuid geteuid getgid getegid getcpu sysinfo getrusage"),
    **_any("fstat sched_yield nanosleep clock_nanosleep rseq set_robust_list exit exit_group"),
}
_LINE: dict[str, Checks] = {"sendto": _TO_THE_OTHER_END, "recvfrom": ()}

VERIFIER: Final = Profile("verifier", {**_any("pread64"), **_COMMON})
RESOLVER: Final = Profile("resolver", {**_any("pread64"), **_LINE, **_COMMON})
# pipe2 and dup3 are libfuse's and ours while the session is attached; both reach only what is open already.
WORKER: Final = Profile(
    "worker",
    {
        **_any("read writev pread64"),
        "fcntl": (_LOCKS_AND_FLAGS,),
        **_LINE,
        "setsockopt": _TIMEOUTS,
        **_COMMON,
        **_any("dup3 pipe2"),
    },
)

# What nothing in these processes does, not even by way of a library's odd corner.
EVIDENCE: Final = tuple(
    _any("""
    execve execveat ptrace process_vm_readv process_vm_writev kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo
    pidfd_open pidfd_getfd pidfd_send_signal socket connect bind mount umount2 pivot_root chroot unshare setns
    open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr setuid setgid setreuid setregid setresuid
    setresgid setfsuid setfsgid setgroups capset bpf perf_event_open userfaultfd io_uring_setup keyctl add_key
    request_key init_module finit_module delete_module kexec_load kexec_file_load open_by_handle_at reboot swapon acct
    iopl ioperm
    """)
)

_X86_64, _AARCH64 = 0, 1
# platform.machine() → AUDIT_ARCH_*, column of the table.
_MACHINES: dict[str, tuple[int, int]] = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}
_TABLE = """
read 0 63             write 1 64             close 3 57             fstat 5 80             lseek 8 62
mmap 9 222            mprotect 10 226        munmap 11 215          brk 12 214             rt_sigaction 13 134
rt_sigprocmask 14 135 rt_sigreturn 15 139    pread64 17 67          writev 20 66           sched_yield 24 124
mremap 25 216         madvise 28 233         nanosleep 35 101       getpid 39 172          socket 41 198
connect 42 203        sendto 44 206          recvfrom 45 207        bind 49 200            setsockopt 54 208
execve 59 221         exit 60 93             kill 62 129            fcntl 72 25            gettimeofday 96 169
getrusage 98 165      sysinfo 99 179         ptrace 101 117         getuid 102 174         getgid 104 176
setuid 105 146        setgid 106 144         geteuid 107 175        getegid 108 177        setreuid 113 145
setregid 114 143      setgroups 116 159      setresuid 117 147      setresgid 119 149      setfsuid 122 151
setfsgid 123 152      capset 126 91          rt_sigqueueinfo 129 138 sigaltstack 131 132   pivot_root 155 41
chroot 161 51         acct 163 89            mount 165 40           umount2 166 39         swapon 167 224
reboot 169 142        iopl 172 -             ioperm 173 -           init_module 175 105    delete_module 176 106
gettid 186 178        tkill 200 130          time 201 -             futex 202 98           restart_syscall 219 128
clock_gettime 228 113 clock_nanosleep 230 115 exit_group 231 94     tgkill 234 131         kexec_load 246 104
add_key 248 217       request_key 249 218    keyctl 250 219         unshare 272 97         set_robust_list 273 99
dup3 292 24           pipe2 293 59           rt_tgsigqueueinfo 297 240 perf_event_open 298 241
open_by_handle_at 304 265 setns 308 268      getcpu 309 168         process_vm_readv 310 270
process_vm_writev 311 271 finit_module 313 273 getrandom 318 278    kexec_file_load 320 294 bpf 321 280
execveat 322 281      userfaultfd 323 282    rseq 334 293           pidfd_send_signal 424 424
io_uring_setup 425 425 open_tree 428 428     move_mount 429 429     fsopen 430 430         fsconfig 431 431
fsmount 432 432       fspick 433 433         pidfd_open 434 434     pidfd_getfd 438 438    mount_setattr 442 442
"""


def numbers(machine: str) -> dict[str, int]:
    """The numbers of the system calls that filters name; without those that a machine does not have.

    Args:
        machine: As `platform.machine` says; one of `knows`.
    """
    column = _MACHINES[machine][1]
    words = _TABLE.split()
    rows = zip(words[::3], words[1::3], words[2::3], strict=True)
    return {name: int(columns[column]) for name, *columns in rows if columns[column] != "-"}


def knows(machine: str) -> bool:
    """Whether filters can be made for a machine."""
    return machine in _MACHINES


def program(profile: Profile, machine: str, pid: int) -> bytes:
    """Compile a filter: an array of struct sock_filter.

    1. Another machine's system calls, as those of 32-bit programs and x32, end the process.
    2. What the profile allows is allowed, if the arguments are as they must be.
    3. `EVIDENCE` ends the process; to send a signal to itself, as abort(3) does, is none.
    4. Everything else fails with EPERM.

    Args:
        profile: What is allowed.
        machine: As `platform.machine` says; one of `knows`.
        pid: Of the process.
    """
    arch, column = _MACHINES[machine]
    known = numbers(machine)
    code = [
        _instruction(_LOAD, _ARCH_OFFSET),
        _instruction(_IF_EQUAL, arch, 1, 0),
        _instruction(_RETURN, RET_KILL_PROCESS),
        _instruction(_LOAD, _NUMBER_OFFSET),
    ]
    if column == _X86_64:
        code += [_instruction(_IF_GREATER_OR_EQUAL, _X32_BIT, 0, 1), _instruction(_RETURN, RET_KILL_PROCESS)]
    kill = _instruction(_RETURN, RET_KILL_PROCESS)
    refuse = _instruction(_RETURN, _RET_ERRNO | errno.EPERM)
    itself = (Check(0, (pid,)),)
    for name, checks in {**profile.allowed, "kill": itself, "tgkill": itself}.items():
        if name in known:
            otherwise = kill if name in EVIDENCE else refuse
            code += _when(known[name], [*_checked(checks, otherwise), _instruction(_RETURN, _RET_ALLOW)])
    for name in EVIDENCE:
        if name in known:
            code += _when(known[name], [kill])
    return b"".join([*code, refuse])


def _when(number: int, then: list[bytes]) -> list[bytes]:
    return [_instruction(_IF_EQUAL, number, 0, len(then)), *then]


def _checked(checks: Iterable[Check], otherwise: bytes) -> list[bytes]:
    code = []
    for check in checks:
        code += [_instruction(_LOAD, _ARGUMENTS_OFFSET + 4 * check.half), _instruction(_AND, check.mask)]
        for left, value in reversed(list(enumerate(reversed(check.values)))):
            code.append(_instruction(_IF_EQUAL, value, left + 1, 0))
        code.append(otherwise)
    return code


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return _INSTRUCTION.pack(code, if_true, if_false, value)
