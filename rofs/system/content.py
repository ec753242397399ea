# SPDX-License-Identifier: Apache-2.0
"""What is installed where: the templates in `data`, and what is generated from the command line's parser.

Writes nothing. Places are those of file-hierarchy(7), systemd.unit(5), mount(8) ("External Helpers") and
manpath(5), for software that does not come with the distribution: below /usr/local unless told otherwise.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Final

from rofs.errors import InputError, printable
from rofs.system import completion, manual

DEFAULT_PREFIX: Final = "/usr/local"
CONFIG_PATH: Final = "/etc/rofs.toml"
UNIT_NAME: Final = "rofs@.service"
HELPER_NAME: Final = "mount.fuse.rofs"
_HELPER_PAGE = "mount.fuse.rofs.8"
_EXAMPLES = ("NAME.conf", "srv-app.mount")


@dataclass(frozen=True, slots=True)
class SystemFile:
    """A file to install.

    Attributes:
        path: Absolute, on the system that it is for.
        data: All of it.
        mode: Permission bits.
        is_config: Whether it belongs to the administrator once it is there.
    """

    path: str
    data: bytes
    mode: int = 0o644
    is_config: bool = False


def files(parser: argparse.ArgumentParser, *, python: str, version: str, prefix: str, sbin: str) -> list[SystemFile]:
    """Everything that is installed.

    Args:
        parser: Of the whole program, complete for every verb.
        python: The interpreter that runs this rofs, absolute.
        version: Of rofs.
        prefix: Where the units, man pages, completion and examples go.
        sbin: Where mount(8) looks for its helpers.

    Raises:
        InputError: The prefix or the interpreter cannot stand in a unit or a script.
    """
    for what, path in (("prefix", prefix), ("Python interpreter", python)):
        if not (os.path.isabs(path) and path.isprintable()):
            raise InputError(f"the {what} {printable(path)} must be an absolute path of printable characters")
    share = os.path.join(prefix, "share")
    examples = os.path.join(share, "doc/rofs/examples")
    unit = {"PYTHON": _for_unit(python), "PREFIX": prefix}
    pages = {name: text.encode() for name, text in manual.pages(parser, version).items()}
    pages[_HELPER_PAGE] = _template(_HELPER_PAGE, {"VERSION": version.replace("-", "\\-")})
    return [
        SystemFile(os.path.join(sbin, HELPER_NAME), _template(HELPER_NAME, {"PYTHON": shlex.quote(python)}), 0o755),
        SystemFile(os.path.join(prefix, "lib/systemd/system", UNIT_NAME), _template(UNIT_NAME, unit)),
        SystemFile(CONFIG_PATH, _template("rofs.toml", {}), is_config=True),
        *(SystemFile(os.path.join(examples, name), _template(name, {})) for name in _EXAMPLES),
        *(SystemFile(os.path.join(share, name), text.encode()) for name, text in completion.scripts(parser).items()),
        *(SystemFile(os.path.join(share, "man/man" + name[-1], name), data) for name, data in pages.items()),
    ]


def _template(name: str, values: Mapping[str, str]) -> bytes:
    text = resources.files("rofs.system").joinpath("data", name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text.encode("utf-8", "surrogateescape")


def _for_unit(path: str) -> str:
    """A program in a command line of a unit. Source: systemd.service(5), "COMMAND LINES"; systemd.unit(5), `%%`."""
    text = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{text}"' if set(text) & set(" '\"\\;") else text
