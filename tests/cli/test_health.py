# SPDX-License-Identifier: Apache-2.0
"""`status --check`: each thing that is wrong is found, and named in one line."""

from __future__ import annotations

from typing import Any

import pytest

from rofs.cli.health import problems_of, summary
from tests.cli.conftest import Run
from tests.cli.test_metrics import STATUS


def test_healthy() -> None:
    assert summary([STATUS | {"dropped": 0}], []) == (True, "ROFS OK - /mnt: os -; 3 writes refused")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"corruption": 5}, "5 reads met corrupt blocks"),
        ({"dropped": 2}, "2 events are not in the audit log"),
        ({"audit_error": "no space"}, "audit log: no space"),
        ({"workers": []}, "0 of 1 workers"),
        ({"workers": [{"pid": 1}], "workers_wanted": 2}, "1 of 2 workers"),
    ],
)
def test_each_problem_is_named(change: dict[str, Any], problem: str) -> None:
    mount = STATUS | {"dropped": 0} | change
    assert problems_of(mount) == [problem]
    assert summary([mount], []) == (False, f"ROFS CRITICAL - /mnt: {problem}")


def test_all_problems_are_named() -> None:
    mount = STATUS | {"corruption": 1}
    is_well, line = summary([mount, mount], ["/a is not a rofs mount of this user"])
    assert not is_well
    assert line.count("corrupt") == 2
    assert "CRITICAL - /a is not" in line


def test_no_mount_is_a_problem() -> None:
    assert not summary([], [])[0]


def test_check_of_what_is_not_there(run: Run, tmp_path: object) -> None:
    for words in (("status", str(tmp_path), "--check"), ("status", "--check")):
        done = run(*words)
        assert (done.code, done.err) == (1, "")
        assert done.out.startswith("ROFS CRITICAL - ")
        assert len(done.out.splitlines()) == 1


def test_metrics_of_what_is_not_there(run: Run, tmp_path: object) -> None:
    assert f'rofs_up{{mountpoint="{tmp_path}"}} 0\n' in run("status", str(tmp_path), "--metrics").succeeded()
    file = f"{tmp_path}/rofs.prom"
    assert run("status", str(tmp_path), "--metrics-file", file).succeeded() == ""
    with open(file) as written:
        assert "rofs_up" in written.read()
    assert "not allowed with" in run("status", "--metrics", "--json").failed(2)
