# SPDX-License-Identifier: Apache-2.0
"""`rofs build`: a signed image of a directory."""

from __future__ import annotations

import argparse
import os
import re

from rofs.cli.options import UsageError
from rofs.cli.render import TerminalProgress, out, out_json
from rofs.errors import InputError, printable

HELP = """
Build a signed image of a directory: GPT with EROFS, dm-verity hash tree and signature, which systemd
and the kernel take as well. Everything is read back and compared with the source before it is signed,
and the output appears only when it is complete. The same tree gives the same root hash anywhere;
SOURCE_DATE_EPOCH, when set, is the image's time in place of the newest file's. Prints the root hash.

example:
  rofs build tree -o tree.raw --key keys/rofs.key --cert keys/rofs.crt --name edge --release 1.2
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("source", metavar="SOURCE", help="the directory")
    parser.add_argument("-o", "--output", metavar="IMAGE.raw", required=True, help="the image to make")
    parser.add_argument("--key", metavar="FILE", required=True, help="private key, PEM")
    parser.add_argument("--cert", metavar="FILE", required=True, help="its certificate, PEM")
    parser.add_argument("--name", help="what system this is; recorded under the root hash")
    parser.add_argument("--release", metavar="VERSION", help="its version; recorded under the root hash")
    parser.add_argument(
        "--rollback-index", metavar="N", type=int, default=0, help="its place in the order of releases (default: 0)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing image")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.image.build import SigningKey, build_image
    from rofs.source.directory import DirectorySource
    from rofs.trust import keys

    created = _source_date_epoch()
    if os.path.lexists(arguments.output) and not arguments.force:
        raise InputError(f"{printable(arguments.output)} exists already; --force replaces it")
    _check_outside(arguments.output, arguments.source)
    key = keys.load_private_key(arguments.key)
    certificate = keys.load_certificates(arguments.cert)[0]
    built = build_image(
        DirectorySource(arguments.source),
        arguments.output,
        SigningKey(key, certificate),
        name=arguments.name,
        version=arguments.release,
        rollback_index=arguments.rollback_index,
        created=created,
        replace=arguments.force,
        progress=TerminalProgress(),
    )
    if arguments.json:
        out_json(
            {
                "root_hash": built.root_hash.hex(),
                "image": os.path.abspath(arguments.output),
                "size": built.size_bytes,
                "inodes": built.inodes,
                "name": built.identity.name,
                "version": built.identity.version,
                "rollback_index": built.identity.rollback_index,
                "created": built.identity.created,
            }
        )
    else:
        out(built.root_hash.hex())


def _check_outside(output: str, source: str) -> None:
    """Refuse an output inside the source: the next build would take it in."""
    directory, top = os.path.realpath(os.path.dirname(os.path.abspath(output))), os.path.realpath(source)
    if os.path.commonpath((directory, top)) == top:
        raise InputError(f"output {printable(output)} lies inside the source {printable(source)}; write it elsewhere")


def _source_date_epoch() -> int | None:
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,11}", text):
        raise UsageError(f"SOURCE_DATE_EPOCH is {text!r}: expected seconds since the epoch")
    return int(text)
