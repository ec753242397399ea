# SPDX-License-Identifier: Apache-2.0
"""The options of every verb that opens an image: what is trusted, and what protection an image must have."""

from __future__ import annotations

import argparse
import dataclasses

from rofs.cli import config
from rofs.cli.options import UsageError, note
from rofs.errors import InputError, printable
from rofs.trust import store
from rofs.trust.image_policy import DEFAULT_IMAGE_POLICY, ImagePolicy, parse_image_policy
from rofs.trust.verify import TrustPolicy

_ROOT_HASH_HEX_DIGITS = (64, 128)  # sha256, sha512
_MAX_LISTED = 5


def add_trust_options(parser: argparse.ArgumentParser) -> None:
    """Add `--trust`, `--root-hash`, `--image-policy` and `--allow-unsigned`."""
    directories = ", ".join(f"{directory}/*.crt" for directory in store.DEFAULT_DIRECTORIES)
    group = parser.add_argument_group(
        "trust",
        f"Without --trust and --root-hash, the certificates that /etc/rofs.toml names, else those in\n{directories}.",
    )
    group.add_argument(
        "--trust",
        metavar="PATH",
        action="append",
        default=[],
        help="a PEM certificate file, or a directory of *.crt files, that may have signed the image; repeatable",
    )
    add_root_hash_option(group, "accept this root hash only; together with --trust both must hold")
    group.add_argument(
        "--image-policy",
        metavar="POLICY",
        help=f"what protection is required, as in systemd.image-policy(7) (default: {DEFAULT_IMAGE_POLICY.text})",
    )
    group.add_argument(
        "--allow-unsigned",
        action="store_true",
        help="accept an image that nobody trusted has signed: damage shows, tampering does not",
    )


def trust_policy(arguments: argparse.Namespace) -> TrustPolicy:
    """The policy that the options of `add_trust_options` ask for.

    Raises:
        InputError: A named certificate, or /etc/rofs.toml, cannot be used.
        UsageError: The root hash or the image policy is none, or contradicts another option.
    """
    defaults = config.load()
    image_policy = _image_policy(arguments, defaults)
    pinned = root_hash(arguments.root_hash)
    if arguments.allow_unsigned or any(image_policy.clause_of(d).allows_unsigned for d in ("root", "usr")):
        _warn_of_unsigned("--allow-unsigned" if arguments.allow_unsigned else "--image-policy", arguments.verb)
    return dataclasses.replace(
        _trusted(arguments.trust or ([] if pinned else list(defaults.trust)), pinned),
        pinned_root_hash=pinned,
        allow_unsigned=arguments.allow_unsigned,
        image_policy=image_policy,
    )


def _trusted(paths: list[str], pinned: bytes | None) -> TrustPolicy:
    """The certificates: those that were named, or this host's unless a root hash alone says what is trusted."""
    if not paths and pinned is not None:
        return TrustPolicy()
    loaded = store.load_trust(paths) if paths else store.load_default_trust()
    if paths and not loaded.certificates:
        raise InputError(f"no certificate found in {', '.join(map(printable, paths))}{_listed(loaded.skipped)}")
    return TrustPolicy(
        certificates=loaded.certificates,
        searched=tuple(paths) or store.DEFAULT_DIRECTORIES,
        skipped=loaded.skipped,
    )


def _listed(skipped: tuple[tuple[str, str], ...]) -> str:
    """Skipped files and why, for one line."""
    shown = [f"{printable(path)} ({why})" for path, why in skipped[:_MAX_LISTED]]
    more = f" and {len(skipped) - _MAX_LISTED} more" if len(skipped) > _MAX_LISTED else ""
    return f"; skipped: {', '.join(shown)}{more}" if shown else ""


def _warn_of_unsigned(option: str, verb: str) -> None:
    note(f"{option}: the image is checked against the root hash that it brings along itself; whoever can")
    note(f"replace the image can replace both.{' This is recorded.' if verb == 'mount' else ''}")


def _image_policy(arguments: argparse.Namespace, defaults: config.Config) -> ImagePolicy:
    if arguments.image_policy is None:
        if defaults.image_policy is None or arguments.allow_unsigned:
            return DEFAULT_IMAGE_POLICY
        return parse_image_policy(defaults.image_policy)
    if arguments.allow_unsigned:
        raise UsageError("--allow-unsigned goes without --image-policy; let the policy say root=verity+signed")
    try:
        return parse_image_policy(arguments.image_policy)
    except InputError as error:
        raise UsageError(str(error)) from error


def add_root_hash_option(parser: argparse._ActionsContainer, explanation: str) -> None:
    """Add `--root-hash`."""
    parser.add_argument("--root-hash", metavar="HEX", help=explanation)


def root_hash(text: str | None) -> bytes | None:
    """The digest that `--root-hash` names.

    Raises:
        UsageError: It names none.
    """
    if text is None:
        return None
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(text) not in _ROOT_HASH_HEX_DIGITS or 2 * len(digest) != len(text):
        raise UsageError(f"--root-hash {text[:80]!r}: expected 64 hex digits (sha256) or 128 (sha512)")
    return digest
