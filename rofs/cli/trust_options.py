# SPDX-License-Identifier: Apache-2.0
"""The options of every verb that opens an image: what is trusted. Nothing is, unless it is named."""

from __future__ import annotations

import argparse

from rofs.cli.options import UsageError, note
from rofs.errors import InputError, printable
from rofs.trust.store import load_trust
from rofs.trust.verify import TrustPolicy

_ROOT_HASH_HEX_DIGITS = (64, 128)  # sha256, sha512
_LOOKS_LIKE_A_CERTIFICATE = (".crt", ".pem", ".cer", ".der")


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
        if path.endswith(_LOOKS_LIKE_A_CERTIFICATE):  # a directory may hold much else, which nobody meant
            note(f"skipped {printable(path)}: {why}")
    if arguments.trust and not loaded.certificates:
        skipped = f" (skipped: {len(loaded.skipped)} files; expected *.crt)" if loaded.skipped else ""
        raise InputError(f"no certificate found in {', '.join(map(printable, arguments.trust))}{skipped}")
    if arguments.allow_unsigned:
        note("--allow-unsigned: the image is checked against the root hash that it brings along itself; whoever can")
        note(f"replace the image can replace both.{' This is recorded.' if arguments.verb == 'mount' else ''}")
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
