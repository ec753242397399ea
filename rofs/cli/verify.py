# SPDX-License-Identifier: Apache-2.0
"""`rofs verify`: signature, policy, then every block."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from rofs.audit.event import escape_path
from rofs.cli.options import add_image_arguments, naming, note
from rofs.cli.render import TerminalProgress, image_pairs, out, out_json, out_pairs
from rofs.cli.trust_options import add_trust_options, trust_policy
from rofs.errors import ImageError, ReadError, printable

if TYPE_CHECKING:
    from rofs.image.check import CheckResult

HELP = """
Check an image completely: who signed it and whether that is trusted, then every block of the hash tree
and of the data against the root hash. Goes on after a bad block, and names the files of each.

example:
  rofs verify tree.raw --trust keys/rofs.crt
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_image_arguments(parser)
    add_trust_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.image.check import check_image
    from rofs.image.open import open_file, open_image

    policy = trust_policy(arguments)
    with open_file(arguments.image) as files, naming(arguments.image):
        image = open_image(files, policy)
        for warning in image.facts.warnings:
            note(f"warning: {warning}")
        result = check_image(image, TerminalProgress())
    fields = {
        "root_hash": image.facts.root_hash,
        "accepted_by": image.facts.accepted_by,
        "signer": image.facts.signer,
        "name": image.identity.name,
        "version": image.identity.version,
        "rollback_index": image.identity.rollback_index,
        "blocks": result.blocks,
        "corrupt": _faults(result),
        "more_corrupt": result.more,
        "unjudged_blocks": result.unjudged_blocks,
    }
    if arguments.json:
        out_json(fields)
    elif not result.faults:
        out_pairs([*image_pairs(fields), ("accepted by", image.facts.accepted_by)])
        out(f"verified:    {result.blocks} of {result.blocks} blocks match the root hash")
    if result.faults:
        unreadable = all(fault.kind == "io" for fault, _ in result.faults)
        raise (ReadError if unreadable else ImageError)(_complaint(arguments.image, result))


def _faults(result: CheckResult) -> list[dict[str, object]]:
    return [
        {
            "kind": fault.kind,
            "level": fault.level,
            "block": fault.block,
            "expected": fault.expected.hex() if fault.expected else None,
            "found": fault.found.hex() if fault.found else None,
            "paths": [escape_path(path) for path in paths],
        }
        for fault, paths in result.faults
    ]


def _complaint(image: str, result: CheckResult) -> str:
    fault, paths = result.faults[0]
    bad = len(result.faults) + result.more
    where = f" in {', '.join(map(printable, paths[:5]))}" if paths else ""
    more = f"; {bad - 1} more bad blocks (--json lists them)" if bad > 1 else ""
    what = "is corrupt" if fault.kind == "mismatch" else "cannot be read"
    return f"{printable(image)} {what}: {fault}{where}{more}"
