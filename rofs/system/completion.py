# SPDX-License-Identifier: Apache-2.0
"""Shell completion from the command line's parser, by shtab. Adds what an argument names: files or directories."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import shtab

# What the arguments with other metavars name cannot be completed.
_COMPLETE: dict[str, Any] = {
    **dict.fromkeys(("A", "B", "FILE", "IMAGE", "IMAGE.raw", "LOG", "PATH", "SOURCE"), shtab.FILE),
    "DIR": shtab.DIRECTORY,
}


def scripts(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The scripts, by their place below `share`: where bash-completion(7) and zsh look for them."""
    for action in _actions(parser):
        if isinstance(action.metavar, str) and action.metavar in _COMPLETE:
            action.complete = _COMPLETE[action.metavar]  # type: ignore[attr-defined] # shtab's interface
    return {
        f"bash-completion/completions/{parser.prog}": shtab.complete(parser, "bash"),
        f"zsh/site-functions/_{parser.prog}": shtab.complete(parser, "zsh"),
    }


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of a parser and those of its verbs."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to look at a parser
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for below in action.choices.values():
                yield from _actions(below)
