# SPDX-License-Identifier: Apache-2.0
"""Key pairs made once per run, and signatures made by the real openssl."""

from __future__ import annotations

import atexit
import functools
import hashlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from rofs.trust import keys
from rofs.trust.verify import TrustedCertificate

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
ROOT_HASH = hashlib.sha256(b"image").digest()
OTHER_ROOT_HASH = hashlib.sha256(b"other image").digest()

OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")


@dataclass(frozen=True)
class Pair:
    key_path: str
    certificate_path: str
    key: keys.PrivateKey
    certificate: x509.Certificate

    @property
    def trusted(self) -> TrustedCertificate:
        return TrustedCertificate(self.certificate_path, self.certificate, keys.fingerprint(self.certificate))


@functools.cache
def _workspace() -> str:
    directory = tempfile.mkdtemp(prefix="rofs-test-keys-")
    atexit.register(shutil.rmtree, directory)
    return directory


@functools.cache
def pair(key_type: keys.KeyType = "p256", common_name: str = "Alice") -> Pair:
    """A key pair in files; the same arguments give the same pair."""
    directory = tempfile.mkdtemp(dir=_workspace())
    key_path, certificate_path = (
        path.decode() for path in keys.generate(directory, key_type=key_type, common_name=common_name, now=NOW)
    )
    (certificate,) = keys.load_certificates(certificate_path)
    return Pair(key_path, certificate_path, keys.load_private_key(key_path), certificate)


def openssl(*arguments: str | Path, stdin: bytes | None = None) -> bytes:
    assert OPENSSL is not None
    done = subprocess.run([OPENSSL, *arguments], check=True, capture_output=True, input=stdin)
    return done.stdout


def openssl_sign(signer: Pair, *options: str, command: str = "smime", content: bytes | None = None) -> bytes:
    """DER of a detached signature over a root hash, or over other content."""
    content = ROOT_HASH.hex().encode() if content is None else content
    files = "-signer", signer.certificate_path, "-inkey", signer.key_path
    return openssl(command, "-sign", "-binary", "-outform", "der", *files, *options, stdin=content)
