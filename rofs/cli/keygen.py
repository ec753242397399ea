# SPDX-License-Identifier: Apache-2.0
"""`rofs keygen`: a signing key and its self-signed certificate."""

from __future__ import annotations

import argparse
import datetime as dt

from rofs.cli.render import out
from rofs.errors import printable

HELP = """
Make DIR with a new private key, rofs.key, and the certificate that goes with it, rofs.crt. The key
signs images and stays on the build host; the certificate goes wherever images are trusted. Files that
exist are never overwritten.

example:
  rofs keygen keys --type p256 --cn "Example build host"
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("directory", metavar="DIR", help="where to put rofs.key and rofs.crt; made when missing")
    parser.add_argument(
        "--type", choices=("p256", "rsa3072"), default="p256", help="kind of key (default: %(default)s)"
    )
    parser.add_argument("--cn", default="rofs image signer", help="common name in the certificate")


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.trust import keys

    key, certificate = keys.generate(
        arguments.directory,
        key_type=arguments.type,
        common_name=arguments.cn,
        now=dt.datetime.now(dt.UTC),
    )
    (leaf,) = keys.load_certificates(certificate)
    out(f"private key: {printable(key)}")
    out(f"certificate: {printable(certificate)} (SHA-256 {keys.fingerprint(leaf)})")
