# SPDX-License-Identifier: Apache-2.0
"""What Prometheus reads, checked by a parser of our own: each line, each escape."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from rofs.cli import metrics
from rofs.errors import InputError

_SAMPLE = re.compile(r'rofs_[a-z_]+\{(?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)*\} \d+')
STATUS: dict[str, Any] = {
    "mountpoint": "/mnt",
    "image": "/images/os.raw",
    "name": "os",
    "version": None,
    "root_hash": "ab" * 32,
    "signer": "CN=x",
    "mode": "audit",
    "workers": [{"pid": 5, "rss_bytes": 1000}, {"pid": 6, "rss_bytes": 500}],
    "verified_blocks": 7,
    "blocked_writes": 3,
    "corruption": 0,
    "dropped": 2,
    "audit_error": None,
}


def values(text: str) -> dict[str, int]:
    assert text.endswith("\n")
    found = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            assert _SAMPLE.fullmatch(line), line
            name, _, value = line.rpartition(" ")
            found[name] = int(value)
    return found


def test_numbers_of_a_mount() -> None:
    found = values(metrics.metrics_text([STATUS]))
    assert found['rofs_up{mountpoint="/mnt"}'] == 1
    assert found['rofs_verified_blocks_total{mountpoint="/mnt"}'] == 7
    assert found['rofs_blocked_writes_total{mountpoint="/mnt"}'] == 3
    assert found['rofs_corruption_total{mountpoint="/mnt"}'] == 0
    assert found['rofs_dropped_events_total{mountpoint="/mnt"}'] == 2
    assert found['rofs_workers{mountpoint="/mnt"}'] == 2
    assert found['rofs_workers_memory_bytes{mountpoint="/mnt"}'] == 1500
    assert found['rofs_audit_log_ok{mountpoint="/mnt"}'] == 1
    (info,) = [name for name in found if name.startswith("rofs_mount_info")]
    assert 'name="os"' in info
    assert "version=" not in info


def test_what_the_status_does_not_tell_is_absent() -> None:
    assert "cache_hits" not in metrics.metrics_text([STATUS])
    assert 'rofs_cache_hits_total{mountpoint="/mnt"} 9\n' in metrics.metrics_text([{**STATUS, "cache_hits": 9}])


def test_log_that_cannot_be_written() -> None:
    assert 'rofs_audit_log_ok{mountpoint="/mnt"} 0\n' in metrics.metrics_text([{**STATUS, "audit_error": "full"}])


def test_each_metric_is_described_once_before_its_samples() -> None:
    lines = metrics.metrics_text([STATUS, {**STATUS, "mountpoint": "/b"}]).splitlines()
    described = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(described) == len(set(described))
    order = [line.split("{")[0] for line in lines if not line.startswith("#")]
    assert list(dict.fromkeys(order)) == described
    for name in described:
        assert order.count(name) == 2


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "\ud800", "é", '"} 1\nrofs_up{mountpoint="'])
def test_names_cannot_break_out(name: str) -> None:
    text = metrics.metrics_text([{**STATUS, "mountpoint": name, "name": name}], [name + "2"])
    assert len(values(text)) == len(text.splitlines()) - 2 * text.count("# TYPE")


def test_missing_mount_is_down_and_none_is_nothing() -> None:
    assert values(metrics.metrics_text([], ["/mnt"])) == {'rofs_up{mountpoint="/mnt"}': 0}
    assert metrics.metrics_text([]) == ""


def test_file_is_whole_and_for_all(tmp_path: Path) -> None:
    path = tmp_path / "rofs.prom"
    path.write_text("old")
    os.umask(os.umask(0o077))
    metrics.write_file(str(path), "new\n")
    assert path.read_text() == "new\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["rofs.prom"]
    with pytest.raises(InputError):
        metrics.write_file(str(tmp_path / "none" / "rofs.prom"), "")
