# SPDX-License-Identifier: Apache-2.0
"""The options of the verbs that sign: a key, its certificate, and where the passphrase comes from."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING

from rofs.errors import HostError, InputError, from_os_error, printable

if TYPE_CHECKING:
    from rofs.image.build import SigningKey

_MAX_LINE_BYTES = 4096  # what a terminal gives at once


def add_key_options(parser: argparse._ActionsContainer) -> None:
    """Add `--key` and `--key-passphrase-file`."""
    parser.add_argument("--key", metavar="FILE", help="private key, PEM")
    parser.add_argument(
        "--key-passphrase-file",
        metavar="FILE",
        help="its first line decrypts the key, - reads standard input; without it a terminal is asked",
    )


def load_signer(arguments: argparse.Namespace) -> SigningKey:
    """The key and the certificate that `--key` and `--cert` name.

    Raises:
        InputError: One of them cannot be used, they do not belong together, or the passphrase is wrong.
        HostError: One of them is unreadable, or the key is encrypted and nobody can be asked.
    """
    from rofs.image.build import SigningKey
    from rofs.trust import keys

    def passphrase() -> bytes:
        if arguments.key_passphrase_file is not None:
            return read_passphrase(arguments.key_passphrase_file)
        return _ask(arguments.key)

    key = keys.load_private_key(arguments.key, passphrase)
    return SigningKey(key, keys.load_certificates(arguments.cert)[0])


def read_passphrase(path: str) -> bytes:
    """The first line of a file, or of standard input for `-`, without its end.

    Raises:
        InputError: It is missing, empty or too long.
        HostError: It is unreadable.
    """
    from rofs.trust.keys import MAX_PASSPHRASE_BYTES

    shown = "standard input" if path == "-" else printable(path)
    try:
        with contextlib.nullcontext(sys.stdin.buffer) if path == "-" else open(path, "rb") as file:
            line = file.readline(MAX_PASSPHRASE_BYTES + 2)
    except OSError as error:
        raise from_os_error(error, "cannot read the passphrase from", path) from error
    line = line.rstrip(b"\r\n")
    if not 0 < len(line) <= MAX_PASSPHRASE_BYTES:
        raise InputError(f"the first line of {shown} is no passphrase: 1 to {MAX_PASSPHRASE_BYTES} bytes expected")
    return line


def _ask(key: str) -> bytes:
    """Ask on the terminal, whatever standard input is; in bytes, as the key was encrypted."""
    import termios

    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        raise HostError(
            f"{printable(key)} is encrypted, and there is no terminal to ask for its passphrase; name a file with "
            "--key-passphrase-file"
        ) from None
    try:
        before = termios.tcgetattr(terminal)
        silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        termios.tcsetattr(terminal, termios.TCSAFLUSH, silent)
        try:
            os.write(terminal, f"passphrase of {printable(key)}: ".encode())
            return os.read(terminal, _MAX_LINE_BYTES).rstrip(b"\r\n")
        finally:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
            os.write(terminal, b"\n")
    finally:
        os.close(terminal)
