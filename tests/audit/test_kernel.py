# SPDX-License-Identifier: Apache-2.0
"""Records as auditd 3.0.9 on Linux 6.18 has written them (paths shortened), and what could be among them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rofs.audit.kernel import refusals

_WHO = (
    "auid=4294967295 uid=65534 gid=65534 euid=65534 suid=65534 fsuid=65534 egid=65534 sgid=65534 fsgid=65534 "
    "tty=(none) ses=4294967295"
)
_FILE = "dev=00:2d mode=0100644 ouid=0 ogid=0 rdev=00:00"
_CAPS = "cap_fp=0 cap_fi=0 cap_fe=0 cap_fver=0 cap_frootid=0"
RECORDS = f"""\
type=DAEMON_START msg=audit(1795626545.390:8309): op=start ver=3.0.9 format=raw auid=4294967295 pid=15552 res=success
type=SYSCALL msg=audit(1795626546.397:27): arch=c000003e syscall=257 success=no exit=-13 a0=ffffff9c a1=5594a784bb78 \
a2=241 a3=1b6 items=1 ppid=15480 pid=15612 {_WHO} comm="sh" exe="/usr/bin/dash" key="rofs"
type=CWD msg=audit(1795626546.397:27): cwd="/srv"
type=PATH msg=audit(1795626546.397:27): item=0 name="rd/f" inode=2 {_FILE} nametype=NORMAL {_CAPS}
type=PROCTITLE msg=audit(1795626546.397:27): proctitle=7368002D63006361742072642F66
type=SYSCALL msg=audit(1795626546.401:28): arch=c000003e syscall=263 success=no exit=-13 a0=ffffff9c a1=55d23ec5fbf0 \
a2=0 a3=7f75401b9f80 items=2 ppid=15612 pid=15614 {_WHO} comm="rm" exe="/usr/bin/rm" key="rofs"
type=CWD msg=audit(1795626546.401:28): cwd="/srv"
type=PATH msg=audit(1795626546.401:28): item=0 name="rd/" inode=1 {_FILE} nametype=PARENT {_CAPS}
type=PATH msg=audit(1795626546.401:28): item=1 name="rd/f" inode=2 {_FILE} nametype=DELETE {_CAPS}
type=SYSCALL msg=audit(1795626546.405:29): arch=c000003e syscall=83 success=no exit=-13 a0=7ffdeceaaa76 a1=1ff a2=0 \
a3=7fdf5902f958 items=2 ppid=15612 pid=15616 {_WHO} comm=6D6B20646972 exe="/usr/bin/mkdir" key="rofs"
type=CWD msg=audit(1795626546.405:29): cwd="/srv"
type=PATH msg=audit(1795626546.405:29): item=0 name=72642F7370206163652F inode=3 {_FILE} nametype=PARENT {_CAPS}
type=PATH msg=audit(1795626546.405:29): item=1 name=72642F7370206163652F78 nametype=CREATE {_CAPS}
type=SYSCALL msg=audit(1795626546.409:30): arch=c000003e syscall=83 success=no exit=-30 a0=7ffe7b7fca71 a1=1ff a2=0 \
a3=7f3cc30eb958 items=1 ppid=14255 pid=14351 auid=1000 uid=0 gid=0 fsuid=0 fsgid=0 comm="mkdir" exe="/usr/bin/mkdir" \
key="rofs"
type=CWD msg=audit(1795626546.409:30): cwd="/srv"
type=PATH msg=audit(1795626546.409:30): item=0 name="rd/" inode=1 {_FILE} nametype=PARENT {_CAPS}
"""


def read(text: str | bytes) -> list[dict[str, object]]:
    data = text.encode() if isinstance(text, str) else text
    return list(refusals(data.splitlines(keepends=True)))


def test_records_of_a_real_kernel() -> None:
    first, second, third, fourth = read(RECORDS)
    assert first == {
        "time": "2026-11-25T17:09:06.397000000Z",
        "event": "write_blocked",
        "op": "openat",
        "path": "/srv/rd/f",
        "errno": "EACCES",
        "pid": 15612,
        "ppid": 15480,
        "uid": 65534,
        "gid": 65534,
        "comm": "sh",
        "exe": "/usr/bin/dash",
    }
    assert (second["op"], second["path"]) == ("unlinkat", "/srv/rd/f")
    assert (third["op"], third["path"], third["comm"]) == ("mkdir", "/srv/rd/sp ace/x", "mk dir")
    assert (fourth["errno"], fourth["auid"]) == ("EROFS", 1000)
    assert fourth["path"] == "/srv/rd/"  # in there: the kernel does not say under which name


def test_records_of_other_keys_and_what_succeeded_are_left_out() -> None:
    assert read(RECORDS.replace('key="rofs"', 'key="other"')) == []
    assert read(RECORDS.replace('key="rofs"', "key=(null)")) == []
    assert read(RECORDS.replace("exit=-", "exit=")) == []
    keys = b"other\x01rofs".hex().upper()
    assert len(read(RECORDS.replace('key="rofs"', f"key={keys}"))) == 4


def test_records_that_are_enriched_or_from_another_node() -> None:
    lines = [
        f'node=host.example {line}\x1dARCH=x86_64 SYSCALL=openat UID="root" fsuid=9' for line in RECORDS.splitlines()
    ]
    assert read("\n".join(lines)) == read(RECORDS)


def test_records_of_events_between_each_other() -> None:
    lines = RECORDS.splitlines(keepends=True)
    assert sorted(read("".join(lines[::2] + lines[1::2])), key=lambda event: str(event["time"])) == read(RECORDS)


def test_end_of_event_is_not_waited_for_in_vain() -> None:
    end = "type=EOE msg=audit(1795626546.397:27): \n"
    assert read(RECORDS + end)[0]["op"] == "openat"
    assert len(read(RECORDS + end)) == 4
    assert read(end) == []


def test_rename_has_two_paths() -> None:
    text = f"""\
type=SYSCALL msg=audit(1.000:6): arch=c00000b7 syscall=276 exit=-13 pid=1 key="rofs"
type=CWD msg=audit(1.000:6): cwd="/srv"
type=PATH msg=audit(1.000:6): item=0 name="/srv/a/" nametype=PARENT {_CAPS}
type=PATH msg=audit(1.000:6): item=1 name="/srv/b/" nametype=PARENT {_CAPS}
type=PATH msg=audit(1.000:6): item=2 name="/srv/a/f" nametype=DELETE {_CAPS}
type=PATH msg=audit(1.000:6): item=3 name="/srv/b/g" nametype=CREATE {_CAPS}
"""
    (event,) = read(text)
    assert (event["op"], event["path"], event["path2"]) == ("renameat2", "/srv/a/f", "/srv/b/g")


def test_unknown_call_keeps_its_number() -> None:
    (event,) = read('type=SYSCALL msg=audit(1.000:6): arch=c000003e syscall=9999 exit=-9999 key="rofs"\n')
    assert (event["op"], event["errno"]) == ("9999", "9999")
    assert "path" not in event


def test_events_that_never_end_do_not_pile_up() -> None:
    lines = (b'type=SYSCALL msg=audit(1.000:%d): exit=-30 key="rofs"\n' % number for number in range(5000))
    assert sum(1 for _ in refusals(lines)) == 5000


@given(st.lists(st.one_of(st.binary(max_size=50), st.sampled_from(RECORDS.encode().splitlines()))), st.randoms())
def test_any_lines_in_any_order(lines: list[bytes], random: object) -> None:
    for event in refusals(lines):
        assert event["event"] == "write_blocked"
    for event in refusals(line[: len(line) // 2] for line in lines):
        assert event["event"] == "write_blocked"
