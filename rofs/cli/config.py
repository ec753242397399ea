# SPDX-License-Identifier: Apache-2.0
"""/etc/rofs.toml: what applies where the command line says nothing. Reads and checks it; the verbs use it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rofs.errors import InputError, RofsError, from_os_error, printable

PATH = "/etc/rofs.toml"

_MAX_SHOWN = 80  # characters of a wrong value


@dataclass(frozen=True, slots=True)
class Config:
    """The defaults of one host; None or empty where the file does not say.

    Attributes:
        path: Of the file, for messages.
        trust: Certificate files, and directories of them, in the place of the verity.d directories.
        image_policy: As for `--image-policy`.
        mode: As for `mount --mode`.
        workers: As for `mount --workers`.
        audit_log_directory: Where audit logs are.
        options: As for `mount -o`.
        on_corruption: As for `mount --on-corruption`.
        event_hook: As for `mount --event-hook`.
        corruption_hook: As for `mount --corruption-hook`.
    """

    path: str
    trust: tuple[str, ...] = ()
    image_policy: str | None = None
    mode: str | None = None
    workers: int | None = None
    audit_log_directory: str | None = None
    options: tuple[str, ...] = ()
    on_corruption: str | None = None
    event_hook: str | None = None
    corruption_hook: str | None = None


def load(path: str | None = None) -> Config:
    """Read the defaults of this host; a file that does not exist says nothing.

    Args:
        path: Another file than /etc/rofs.toml, for tests.

    Raises:
        InputError: It is no TOML, or says something that rofs does not know.
        HostError: It cannot be read.
    """
    path = path or PATH
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return Config(path)
    except OSError as error:
        raise from_os_error(error, "cannot read", path) from error
    import tomllib

    try:
        text = data.decode()
        tables = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{printable(path)}: {error}") from error
    return Config(path, **_values(path, text, tables))


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise ValueError('expected a list of strings, such as ["a", "b"]')
    return tuple(value)


def _paths(value: object) -> tuple[str, ...]:
    paths = _strings(value)
    if not paths or not all(map(os.path.isabs, paths)):
        raise ValueError("expected a list of absolute paths, at least one")
    return paths


def _directory(value: object) -> str:
    if not isinstance(value, str) or not os.path.isabs(value) or "\0" in value:
        raise ValueError("expected an absolute path")
    return value


def _one_of(value: object, choices: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"expected {' or '.join(map(repr, choices))}")
    return value


def _mode(value: object) -> str:
    from rofs.cli.mount import MODES

    return _one_of(value, MODES)


def _on_corruption(value: object) -> str:
    from rofs.cli.mount import ON_CORRUPTION

    return _one_of(value, ON_CORRUPTION)


def _command(value: object) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError("expected a command for the shell")
    return value


def _workers(value: object) -> int:
    from rofs.fuse.shared import MAX_WORKERS

    if type(value) is not int or not 1 <= value <= MAX_WORKERS:
        raise ValueError(f"expected a number from 1 to {MAX_WORKERS}")
    return value


def _image_policy(value: object) -> str:
    from rofs.trust.image_policy import parse_image_policy

    if not isinstance(value, str):
        raise ValueError("expected a string")  # noqa: TRY004 - the file's type, not a caller's
    parse_image_policy(value)
    return value


_KEYS: dict[str, dict[str, Callable[[object], Any]]] = {
    "": {"trust": _paths, "image-policy": _image_policy},
    "mount": {
        "mode": _mode,
        "workers": _workers,
        "audit-log-directory": _directory,
        "options": _strings,
        "on-corruption": _on_corruption,
        "event-hook": _command,
        "corruption-hook": _command,
    },
}


def _values(path: str, text: str, tables: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says, checked, by the names of `Config`."""
    values: dict[str, Any] = {}
    for key, value in tables.items():
        if key in _KEYS and isinstance(value, dict):
            for name, below in value.items():
                _take(values, path, text, (key, name), below)
        else:
            _take(values, path, text, ("", key), value)
    return values


def _take(values: dict[str, Any], path: str, text: str, place: tuple[str, str], value: object) -> None:
    table, key = place
    check = _KEYS[table].get(key)
    where = f"{printable(path)}{_line_of(text, table, key)}"
    if check is None:
        raise InputError(f"{where}: unknown {_named(table, key, value)}; {_suggestion(table, key)}")
    try:
        values[key.replace("-", "_")] = check(value)
    except (ValueError, RofsError) as error:
        shown = repr(value)[:_MAX_SHOWN]
        raise InputError(f"{where}: {_named(table, key, value)} is {shown}: {error}") from error


def _named(table: str, key: str, value: object) -> str:
    if isinstance(value, dict):
        return f"table [{printable(f'{table}.{key}' if table else key)}]"
    return f"key {printable(key)!r}{f' in [{table}]' if table else ''}"


def _suggestion(table: str, key: str) -> str:
    """Where a key belongs, or which there are."""
    for other, keys in _KEYS.items():
        if other != table and key in keys:
            return f"it belongs {f'into [{other}]' if other else 'before the first table'}"
    near = difflib.get_close_matches(key, _KEYS[table], n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(_KEYS[table])}"


def _line_of(text: str, table: str, key: str) -> str:
    """`, line N` of a key or table; empty when it is written in a way that is not found (tomllib does not tell)."""
    quote = "[\"']?"
    name = f"{quote}{re.escape(key)}{quote}"
    dotted = rf"{quote}{re.escape(table)}{quote}\s*(\.\s*{name}\s*[.=]|=)"
    patterns = {table: rf"\s*{name}\s*[.=]", **({"": rf"\s*{dotted}"} if table else {})}
    at = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]*?)\s*\]", line):
            at = header[1].strip("\"'")
            if at == (f"{table}.{key}" if table else key):
                return f", line {number}"
        elif at in patterns and re.match(patterns[at], line):
            return f", line {number}"
    return ""
