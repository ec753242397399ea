# SPDX-License-Identifier: Apache-2.0
"""Options that several verbs share, and what they mean: trust, above all."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

from rofs.errors import ImageError, InputError, RofsError, TrustError, printable
from rofs.trust.store import load_trust
from rofs.trust.verify import TrustPolicy

_ROOT_HASH_HEX_DIGITS = (64, 128)  # sha256, sha512


class UsageError(RofsError):
    """The words of the command line do not make sense together."""


class Parser(argparse.ArgumentParser):
    """Raises instead of exiting, so that one place decides about exit codes."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise UsageError(f"{message}; see {self.prog} --help")


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """Let `--debug` stand behind the verb too; the program's own help shows it."""
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_trust_options(parser: argparse.ArgumentParser) -> None:
    """Add `--trust`, `--root-hash` and `--allow-unsigned`."""
    group = parser.add_argument_group("trust", "Nothing is trusted unless it is named here.")
    group.add_argument(
        "--trust",
        metavar="PATH",
        action="append",
        default=[],
        help="a PEM certificate file, or a directory of *.crt files, that may have signed the image; repeatable",
    )
    group.add_argument(
        "--root-hash",
        metavar="HEX",
        help="accept this root hash only; together with --trust both must hold",
    )
    group.add_argument(
        "--allow-unsigned",
        action="store_true",
        help="accept an image that nobody trusted has signed: damage shows, tampering does not",
    )


def trust_policy(arguments: argparse.Namespace) -> TrustPolicy:
    """The policy that the options of `add_trust_options` ask for.

    Raises:
        InputError: A named certificate cannot be used.
        UsageError: The root hash is not one.
    """
    loaded = load_trust(arguments.trust)
    for path, why in loaded.skipped:
        note(f"skipped {printable(path)}: {why}")
    if arguments.trust and not loaded.certificates:
        raise InputError(f"no certificate found in {', '.join(map(printable, arguments.trust))}")
    if arguments.allow_unsigned:
        note("--allow-unsigned: the image is checked against the root hash that it brings along itself; whoever can")
        note("replace the image can replace both. This is recorded.")
    return TrustPolicy(
        certificates=tuple(loaded.certificates),
        pinned_root_hash=_root_hash(arguments.root_hash),
        allow_unsigned=arguments.allow_unsigned,
    )


def _root_hash(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(text) not in _ROOT_HASH_HEX_DIGITS or 2 * len(digest) != len(text):
        raise UsageError(f"--root-hash {text[:80]!r}: expected 64 hex digits (sha256) or 128 (sha512)")
    return digest


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
    print(f"rofs: {text}", file=sys.stderr)  # noqa: T201 - the command line talks
