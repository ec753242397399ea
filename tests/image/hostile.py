# SPDX-License-Identifier: Apache-2.0
"""Images that a careless signer has signed: what they hold lies, and everything around it is right."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rofs.cli.main import main
from rofs.image.open import VerifiedImage, open_file, open_image
from rofs.tree import Inode
from tests.conftest import SigningKeys
from tests.erofs.builder import LyingFilesystem
from tests.fuzz.images import signed_image
from tests.trees import directory, file, symlink

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# Names of one length, to be exchanged for one another in a directory.
VICTIM = b"victim"
NOBODY = 65534


def hostile_tree() -> Inode:
    """What there is to lie about: each name occurs once."""
    return directory(
        {
            b"after": file(b"after everything that is hostile\n"),
            b"dir": directory({b"inside": file(b"inside\n"), b"other": directory({b"deep": file(b"deep\n")})}),
            b"escape": symlink(b"../outside"),
            b"plain": file(b"p" * 5000),
            VICTIM: directory({b"planted": file(b"planted\n")}),
            b"zz": symlink(b"/etc"),
        }
    )


@contextlib.contextmanager
def opened(path: Path, keys: SigningKeys) -> Iterator[VerifiedImage]:
    with open_file(str(path)) as files:
        yield open_image(files, keys.policy)


def sign(path: Path, filesystem: LyingFilesystem | bytes, keys: SigningKeys) -> Path:
    """Write an image around a filesystem, as the signer's tools would."""
    data = filesystem if isinstance(filesystem, bytes) else bytes(filesystem.data)
    path.write_bytes(signed_image(data, keys.key, keys.certificate)[0])
    return path


def as_ordinary_user(directory: Path, *words: str) -> tuple[int, str]:
    """Run `rofs` in a directory as somebody without privileges, and as ourselves when we have none.

    A fork: neither the checkout nor what is above the directory need be readable for others.

    Returns:
        The exit code and what was said on stderr.
    """
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if child == 0:
            code = 255
            try:
                os.chdir(directory)
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setresgid(NOBODY, NOBODY, NOBODY)
                    os.setresuid(NOBODY, NOBODY, NOBODY)
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                    code = main(words)
                said.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return os.waitstatus_to_exitcode(status), said.read()
