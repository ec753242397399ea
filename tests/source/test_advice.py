# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from rofs.source.advice import advise
from rofs.tree import Inode, Tree
from tests.trees import directory, file, find, symlink


def system() -> Inode:
    """What nothing can be said about."""
    return directory(
        {
            b"etc": directory({b"machine-id": file(), b"ssh": directory({b"ssh_host_rsa_key.pub": file(b"public")})}),
            b"usr": directory({b"lib": directory({b"os-release": file(b"ID=x\n")})}),
            b"lib": symlink(b"usr/lib"),
            b"var": directory({b"a.db": file(b"x"), b"log-wal": file(b"no database of that name")}),
            **{name: directory() for name in (b"proc", b"sys", b"dev", b"run", b"tmp")},
        }
    )


def test_nothing_to_say() -> None:
    assert advise(Tree(system())) == []


@pytest.mark.parametrize("text", [b"", b"uninitialized\n"])
def test_a_machine_id_to_be_filled_in(text: bytes) -> None:
    root = system()
    root.children[b"etc"].add(b"machine-id", file(text))
    assert advise(Tree(root)) == []


def _remove(path: bytes) -> Callable[[Inode], None]:
    parent, _, name = path.rpartition(b"/")

    def change(root: Inode) -> None:
        at = find(root, parent)
        at.children = {key: inode for key, inode in at.children.items() if key != name}

    return change


def _add(path: bytes, *names: bytes, data: bytes = b"x") -> Callable[[Inode], None]:
    def change(root: Inode) -> None:
        at = root
        for part in path.split(b"/"):
            if part not in at.children:
                at.add(part, directory())
            at = at.children[part]
        for name in names:
            at.add(name, file(data))

    return change


def _owner(root: Inode) -> None:
    root.uid = 1000


def _closed(root: Inode) -> None:
    root.mode &= ~0o055


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        pytest.param(_remove(b"etc/machine-id"), "there is no /etc/machine-id", id="machine-id"),
        pytest.param(_remove(b"etc"), "there is no /etc/machine-id", id="no etc"),
        pytest.param(
            _add(b"etc", b"machine-id", data=b"0" * 32 + b"\n"),
            "/etc/machine-id is filled in",
            id="machine-id filled in",
        ),
        pytest.param(_remove(b"proc"), "none can be made: /proc;", id="proc"),
        pytest.param(_remove(b"sys"), "none can be made: /sys;", id="sys"),
        pytest.param(_remove(b"dev"), "none can be made: /dev;", id="dev"),
        pytest.param(_remove(b"run"), "none can be made: /run;", id="run"),
        pytest.param(_remove(b"tmp"), "none can be made: /tmp;", id="tmp"),
        pytest.param(
            _add(b"etc/ssh", b"ssh_host_rsa_key"), "private SSH keys, .*: /etc/ssh/ssh_host_rsa_key$", id="host key"
        ),
        pytest.param(
            _add(b"root/.ssh", b"id_rsa", b"id_rsa.pub"), "private SSH keys, .*: /root/.ssh/id_rsa$", id="user's key"
        ),
        pytest.param(_add(b"home/\xff/.ssh", b"id_x"), r"/home/\\xff/.ssh/id_x", id="odd name"),
        pytest.param(_add(b"var/lib", b"a.db", b"a.db-wal"), "SQLite .*: /var/lib/a.db;", id="wal"),
        pytest.param(
            _add(b"var/lib", b"a.db", b"a.db-wal", b"a.db-shm"), "SQLite .*: /var/lib/a.db;", id="wal and shm"
        ),
        pytest.param(
            _add(b"var", *(b"%d%s" % (n, s) for n in range(5) for s in (b"", b"-shm"))), "/var/2 and 2 more;", id="many"
        ),
        pytest.param(_owner, "belongs to 1000:0, expected 0:0", id="owner of the root"),
        pytest.param(_closed, "has mode 0700", id="mode of the root"),
    ],
)
def test_what_is_warned_of(change: Callable[[Inode], None], warning: str) -> None:
    root = system()
    change(root)
    (found,) = advise(Tree(root))
    assert re.search(warning, found), found


def test_all_mount_points_in_one_line() -> None:
    (_, line) = advise(Tree(directory({b"usr": directory()})))
    assert "/dev, /proc, /run, /sys, /tmp" in line


def test_what_is_no_system_gets_no_advice() -> None:
    assert (
        advise(Tree(directory({b"a.db": file(), b"a.db-wal": file(), b".ssh": directory({b"id_rsa": file()})}))) == []
    )
    assert advise(Tree(directory({b"etc": directory({b"os-release": file()})}))) != []
