# SPDX-License-Identifier: Apache-2.0
"""`rofs sign`: a signature for an image that exists."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from rofs.cli.options import UsageError, add_image_arguments, naming, note
from rofs.cli.render import TerminalProgress, out, out_json
from rofs.cli.signing_options import add_key_options, load_signer
from rofs.cli.trust_options import add_root_hash_option, root_hash
from rofs.errors import FormatError, InputError, from_os_error, printable

if TYPE_CHECKING:
    from rofs.image.files import ImageFiles
    from rofs.image.sign import SignedImage

HELP = """
Sign an image: with a key, after every block was checked, or with a signature that was made elsewhere,
where the key is. Signatures that are there stay, so that one image can have several signers; a signature
by the same certificate is renewed. Only the signature partition changes, in place. A power cut leaves
the old signature, the new one, or an image that is not signed: then run it again.

systemd accepts an image with several signers only where the certificates of all of them are trusted;
rofs and the kernel are content with one.

A signature for --signature is detached PKCS#7 in DER over the root hash in lower-case hex:

  printf %s ROOTHASH | openssl smime -sign -binary -noattr -outform der -signer C -inkey K -out FILE

example:
  rofs build tree -o tree.raw --unsigned
  rofs sign tree.raw --key keys/rofs.key --cert keys/rofs.crt
"""
_MAX_SIGNATURE_FILE_BYTES = 1 << 20


def add_parser(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    add_image_arguments(parser)
    add_key_options(parser)
    parser.add_argument("--signature", metavar="FILE", help="a signature made elsewhere, PKCS#7 in DER")
    parser.add_argument("--cert", metavar="FILE", required=True, help="certificate of the signer, PEM")
    add_root_hash_option(parser, "which set of partitions to sign, when the image has several")


def run(arguments: argparse.Namespace) -> None:
    """Run the verb."""
    from rofs.image.files import open_file

    if (arguments.key is None) == (arguments.signature is None):
        raise UsageError("sign takes either --key or --signature; see rofs sign --help")
    with open_file(arguments.image, writable=True) as files, naming(arguments.image):
        signed = _add_signature(arguments, files) if arguments.signature else _sign(arguments, files)
    if signed.replaced is not None:
        note(f"replaced what stood in the place of a signature: {signed.replaced}")
    signers = [{"subject": s.subject, "fingerprint": s.fingerprint} for s in signed.signers]
    if arguments.json:
        out_json(
            {
                "root_hash": signed.root_hash.hex(),
                "image": os.path.abspath(arguments.image),
                "signers": signers,
            }
        )
        return
    out(signed.root_hash.hex())
    for signer in signed.signers:
        out(f"signed by {signer.subject} ({signer.fingerprint})")


def _sign(arguments: argparse.Namespace, files: ImageFiles) -> SignedImage:
    from rofs.image.sign import sign_image

    signer = load_signer(arguments)
    chosen = root_hash(arguments.root_hash)
    return sign_image(files, arguments.image, signer, root_hash=chosen, progress=TerminalProgress())


def _add_signature(arguments: argparse.Namespace, files: ImageFiles) -> SignedImage:
    from rofs.image.sign import add_signature
    from rofs.trust.store import load_trust

    certificates = load_trust([arguments.cert]).certificates
    der = _read_signature(arguments.signature)
    return add_signature(files, arguments.image, der, certificates, root_hash=root_hash(arguments.root_hash))


def _read_signature(path: str) -> bytes:
    from rofs.trust import pkcs7

    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_SIGNATURE_FILE_BYTES)
    except OSError as error:
        raise from_os_error(error, "cannot read signature", path) from error
    if not data.startswith(b"\x30"):  # SEQUENCE, as every PKCS#7 in DER begins
        what = "is empty" if not data else "is PEM or text" if data.isascii() else "is no DER"
        raise InputError(f"signature {printable(path)} {what}; expected PKCS#7 in DER (openssl smime -outform der)")
    try:
        pkcs7.parse_signed_data(data)
    except FormatError as error:
        raise InputError(f"signature {printable(path)}: {error}") from error
    return data
