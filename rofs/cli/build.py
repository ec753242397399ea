# SPDX-License-Identifier: Apache-2.0
"""`rofs build`: a signed image of a directory."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from rofs.cli.options import UsageError, note
from rofs.cli.render import TerminalProgress, out, out_json
from rofs.cli.signing_options import add_key_options, load_signer
from rofs.errors import InputError, one_line, printable

if TYPE_CHECKING:
    from rofs.image.build import SigningKey
    from rofs.source.owners import OwnerRule
    from rofs.source.prepare import PreparedSource
    from rofs.source.selection import Rule

HELP = """
Build a signed image: GPT with EROFS, dm-verity hash tree and signature, which systemd and the kernel take
as well. Everything is read back and compared with the source before it is signed, and the output appears
only when it is complete. The same tree gives the same root hash anywhere, from a directory or from a tar
archive with its owners, times and xattrs. Prints the root hash; warns of what a read-only system lacks.

SOURCE is a directory, a tar archive (plain, gzip, bzip2, xz, lzma or zstd, in a file or a pipe), or `-` for
one on standard input. Of several, the later is laid over the earlier: directories are merged and take the
attributes of the later, anything else is replaced.

PATTERN is as in gitignore(5): with a `/` inside or in front it is about the whole path, else about names at
any depth; `**` is any number of directories, `/` at the end means directories only. The last pattern that
matches a name decides; what is below an excluded directory is not looked at.

SOURCE_DATE_EPOCH, when set, is the image's time in place of the newest file's, and files that are newer get
it as their time; Python sources keep theirs when a .pyc file would become stale.

example:
  rofs build tree -o tree.raw --key keys/rofs.key --cert keys/rofs.crt --name edge --release 1.2
  docker export box | rofs build - extra/ -o box.raw --key keys/rofs.key --cert keys/rofs.crt --exclude '*.pyc'
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("source", metavar="SOURCE", nargs="+", help="a directory, a tar archive, or - for one on stdin")
    parser.add_argument("-o", "--output", metavar="IMAGE.raw", required=True, help="the image to make")
    add_key_options(parser)
    parser.add_argument("--cert", metavar="FILE", help="certificate of the key, PEM")
    parser.add_argument("--unsigned", action="store_true", help="leave room for the signature of rofs sign")
    _add_tree_options(parser)
    parser.add_argument("--name", help="what system this is; recorded under the root hash")
    parser.add_argument("--release", metavar="VERSION", help="its version; recorded under the root hash")
    parser.add_argument(
        "--rollback-index", metavar="N", type=int, default=0, help="its place in the order of releases (default: 0)"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing image")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_tree_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exclude", metavar="PATTERN", dest="selection", action="append", type=_exclude, help="leave out what matches"
    )
    parser.add_argument(
        "--include", metavar="PATTERN", dest="selection", action="append", type=_include, help="but keep what matches"
    )
    parser.add_argument(
        "--owner",
        metavar="[FROM=]UID:GID",
        dest="owners",
        action="append",
        type=_owner,
        help="whose all files are, or those of FROM, which is UID:GID too or ranges like 100000-165535; repeatable",
    )


def _exclude(text: str) -> Rule:
    return _rule(text, keep=False)


def _include(text: str) -> Rule:
    return _rule(text, keep=True)


def _rule(text: str, *, keep: bool) -> Rule:
    from rofs.source.selection import rule

    try:
        return rule(os.fsencode(text), keep=keep)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _owner(text: str) -> OwnerRule:
    from rofs.source.owners import owner_rule

    try:
        return owner_rule(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.image.build import build_image

    created = _source_date_epoch()
    if os.path.lexists(arguments.output) and not arguments.force:
        raise InputError(f"{printable(arguments.output)} exists already; --force replaces it")
    for source in arguments.source:
        _check_outside(arguments.output, source)
    signer = _signer(arguments)
    progress = TerminalProgress()
    source = _prepared_source(arguments, created, progress)
    for warning in source.warnings:
        note(f"warning: {warning}")
    built = build_image(
        source,
        arguments.output,
        signer,
        name=arguments.name,
        version=arguments.release,
        rollback_index=arguments.rollback_index,
        created=created,
        replace=arguments.force,
        progress=progress,
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
                "warnings": [one_line(warning) for warning in source.warnings],
            }
        )
    else:
        out(built.root_hash.hex())


def _signer(arguments: argparse.Namespace) -> SigningKey | None:
    """Who signs; None for `--unsigned`."""
    named = [option for option in ("key", "cert") if getattr(arguments, option) is not None]
    if arguments.unsigned:
        if named:
            raise UsageError(f"--unsigned goes without --{named[0]}; rofs sign signs the image later")
        return None
    if len(named) < 2:
        raise UsageError("build takes --key and --cert, or --unsigned; see rofs build --help")
    return load_signer(arguments)


def _prepared_source(
    arguments: argparse.Namespace, latest_seconds: int | None, progress: TerminalProgress
) -> PreparedSource:
    from rofs.source.prepare import STDIN, PreparedSource, open_source

    if arguments.source.count(STDIN) > 1:
        raise UsageError(f"{STDIN} is given more than once, but there is one standard input")
    if STDIN in arguments.source and arguments.key_passphrase_file == STDIN:
        raise UsageError("standard input cannot hold both the archive and the passphrase")

    def unpacking(total_bytes: int) -> Callable[[int], None]:
        return progress.stage("unpacking", total_bytes) if total_bytes else lambda _: None

    return PreparedSource(
        [open_source(source, progress=unpacking) for source in arguments.source],
        selection=arguments.selection or (),
        owners=arguments.owners or (),
        latest_seconds=latest_seconds,
    )


def _check_outside(output: str, source: str) -> None:
    """Refuse an output inside the source, which the next build would take in, and one that is the source."""
    directory, top = os.path.realpath(os.path.dirname(os.path.abspath(output))), os.path.realpath(source)
    if os.path.commonpath((directory, top)) == top:
        raise InputError(f"output {printable(output)} lies inside the source {printable(source)}; write it elsewhere")
    if os.path.realpath(output) == top:
        raise InputError(f"output {printable(output)} is the source; write it elsewhere")


def _source_date_epoch() -> int | None:
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,11}", text):
        raise UsageError(f"SOURCE_DATE_EPOCH is {text!r}: expected seconds since the epoch")
    return int(text)
