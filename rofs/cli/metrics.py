# SPDX-License-Identifier: Apache-2.0
"""The status of mounts in the Prometheus text format.

A few lines of our own: the format is simple, and prometheus_client would be a dependency for its escaping only.
Pure, but for `write_file`. Numbers come from `status --json`; those that a supervisor does not tell are absent.

Source: Prometheus text exposition format 0.0.4; naming as in "Metric and label naming" of its documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rofs import durable

_Status = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Metric:
    """One metric of a mount.

    Attributes:
        name: Without the prefix.
        kind: `counter` or `gauge`.
        meaning: For people.
        value: Of a status; None when that does not tell.
    """

    name: str
    kind: str
    meaning: str
    value: Callable[[_Status], object]


def _key(name: str) -> Callable[[_Status], object]:
    return lambda status: status.get(name)


def _memory(status: _Status) -> object:
    sizes = [worker["rss_bytes"] for worker in status.get("workers", ()) if "rss_bytes" in worker]
    return sum(sizes) if sizes else None


_METRICS = (
    _Metric("verified_blocks_total", "counter", "Blocks that were read and verified.", _key("verified_blocks")),
    _Metric("cache_hits_total", "counter", "Blocks that were found verified in memory.", _key("cache_hits")),
    _Metric("requests_total", "counter", "Requests of the kernel.", _key("requests")),
    _Metric("blocked_writes_total", "counter", "Attempts to change something, refused.", _key("blocked_writes")),
    _Metric("corruption_total", "counter", "Reads that met a block which does not verify.", _key("corruption")),
    _Metric("dropped_events_total", "counter", "Events that are not in the audit log.", _key("dropped")),
    _Metric("restarts_total", "counter", "Processes of the mount that were replaced.", _key("restarts")),
    _Metric("workers", "gauge", "Workers that serve the mount.", lambda status: len(status.get("workers", ()))),
    _Metric("workers_memory_bytes", "gauge", "Memory of all workers.", _memory),
    _Metric("audit_log_ok", "gauge", "Whether the audit log can be written.", lambda s: int(not s.get("audit_error"))),
)
_INFO = ("image", "name", "version", "root_hash", "signer", "mode", "program_version")


def metrics_text(mounts: Sequence[_Status], missing: Sequence[str] = ()) -> str:
    """Describe mounts.

    Args:
        mounts: As `status --json` has them.
        missing: Mount points where one was expected and is not, or does not answer.

    Returns:
        Lines, each with its newline.
    """
    lines = list(_family("up", "gauge", "Whether the mount answers.", _up(mounts, missing)))
    lines += _family("mount_info", "gauge", "What is mounted.", [(_labels(mount, _INFO), 1) for mount in mounts])
    for metric in _METRICS:
        samples = [(_labels(mount), metric.value(mount)) for mount in mounts]
        lines += _family(metric.name, metric.kind, metric.meaning, samples)
    return "".join(f"{line}\n" for line in lines)


def write_file(path: str, text: str) -> None:
    """Write what node_exporter's textfile collector reads, whole or not at all; all may read it.

    Args:
        path: Its name must end in `.prom` for the collector.
        text: As from `metrics_text`.

    Raises:
        InputError: The directory does not exist.
        HostError: No permission, no space, an I/O error.
    """
    durable.write_atomic(path, text.encode(), mode=0o644)


def _up(mounts: Sequence[_Status], missing: Sequence[str]) -> list[tuple[str, object]]:
    return [*((_labels(mount), 1) for mount in mounts), *((_labels({"mountpoint": path}), 0) for path in missing)]


def _family(name: str, kind: str, meaning: str, samples: Sequence[tuple[str, object]]) -> Iterator[str]:
    known = [(labels, value) for labels, value in samples if isinstance(value, int)]
    if known:
        yield f"# HELP rofs_{name} {meaning}"
        yield f"# TYPE rofs_{name} {kind}"
        yield from (f"rofs_{name}{labels} {int(value)}" for labels, value in known)


def _labels(mount: _Status, keys: Sequence[str] = ()) -> str:
    values = {key: mount[key] for key in ("mountpoint", *keys) if mount.get(key) is not None}
    return "{" + ",".join(f'{key}="{_escaped(str(value))}"' for key, value in values.items()) + "}"


def _escaped(text: str) -> str:
    # A lone surrogate, which JSON can hold, has no place in UTF-8.
    text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
