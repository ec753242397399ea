# SPDX-License-Identifier: Apache-2.0
"""`rofs keygen`: a signing key and its self-signed certificate."""

from __future__ import annotations

import argparse
import datetime as dt

from rofs.cli.render import out
from rofs.cli.signing_options import read_passphrase
from rofs.errors import printable

HELP = """
Make DIR with a new private key, rofs.key, and the certificate that goes with it, rofs.crt. The key
signs images and stays on the build host; the certificate goes wherever images are trusted. Without
--passphrase-file whoever can read the key can use it. Files that exist are never overwritten.

example:
  rofs keygen keys --type p256 --cn "Example build host"
"""


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("directory", metavar="DIR", help="where to put rofs.key and rofs.crt; made when missing")
    parser.add_argument(
        "--type", choices=("p256", "rsa3072"), default="p256", help="kind of key (default: %(default)s)"
    )
    parser.add_argument(
        "--passphrase-file", metavar="FILE", help="its first line encrypts the key, - reads standard input"
    )
    parser.add_argument("--cn", default="rofs image signer", help="common name in the certificate")


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.trust import keys

    passphrase = None if arguments.passphrase_file is None else read_passphrase(arguments.passphrase_file)
    key, certificate = keys.generate(
        arguments.directory,
        key_type=arguments.type,
        common_name=arguments.cn,
        now=dt.datetime.now(dt.UTC),
        passphrase=passphrase,
    )
    (leaf,) = keys.load_certificates(certificate)
    out(f"private key: {printable(key)}")
    out(f"certificate: {printable(certificate)} (SHA-256 {keys.fingerprint(leaf)})")
