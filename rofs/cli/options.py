# SPDX-License-Identifier: Apache-2.0
"""What the verbs share: the parser, notes to people, and errors that name their image. Trust is in `trust_options`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from rofs.errors import ImageError, RofsError, TrustError, one_line, printable


class UsageError(RofsError):
    """The words of the command line do not make sense together."""


class Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that one place decides about exit codes; takes no abbreviations."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UsageError(f"{message}; see {self.prog} --help")


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """Let `--debug` stand behind the verb too; the program's own help shows it."""
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every verb that reports on an image takes: the image and `--json`."""
    parser.add_argument("image", metavar="IMAGE", help="the image file")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


@contextlib.contextmanager
def naming(image: str) -> Iterator[None]:
    """Let errors about an image say which one; they stay what they are."""
    try:
        yield
    except (ImageError, TrustError) as error:
        error.args = (f"{printable(image)}: {error}",)
        raise


def note(text: str) -> None:
    """Tell a person something that is neither a result nor an error."""
    print(f"rofs: {one_line(text)}", file=sys.stderr)  # noqa: T201 - the command line talks
