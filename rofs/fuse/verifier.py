# SPDX-License-Identifier: Apache-2.0
"""The verifier: a short-lived process without privileges that parses the untrusted image first.

Partition table, signature and filesystem are read by it; what comes back to the privileged keeper is
`ImageFacts`, plain values that were checked field by field, or the error that refuses the image.

It may not be able to read the program's own files, so all modules that it may need are imported before
the fork.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import time

import cryptography.hazmat.backends.openssl.backend
import cryptography.x509  # noqa: F401 - as above

import rofs.ddi
import rofs.erofs
import rofs.trust
import rofs.verity
from rofs import errors
from rofs.errors import FormatError, HostError, RofsError, TrustError
from rofs.fuse.confine import VERIFIER, confine
from rofs.fuse.process import fork
from rofs.fuse.signals import Signals
from rofs.image.open import MAX_FACTS_BYTES, ImageFacts, ImageFiles, open_image
from rofs.trust.verify import TrustPolicy

# Reading a partition table, a signature and two blocks; a network disk may take its time.
_ANSWER_SECONDS = 60.0
_EXIT_SECONDS = 1.0  # once it has answered

_ERRORS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RofsError) and kind is not errors.CorruptionError
}


class Verification:
    """An image being opened by an unprivileged process, while the caller does something else.

    Args:
        image: Its open files, or the descriptor of a disk image.
        policy: What is trusted; read from the host's files, so not hostile.
    """

    def __init__(self, image: ImageFiles | int, policy: TrustPolicy) -> None:
        _warm_up()
        files = ImageFiles.of_disk_image(image) if isinstance(image, int) else image
        self._policy = policy
        self._reading, writing = os.pipe()
        try:
            self._child = fork(
                lambda: _answer(files, policy, writing),
                name="verifier",
                keep=(*files.fds, writing),
                unprivileged=True,
            )
        finally:
            os.close(writing)

    def finish(self, signals: Signals) -> ImageFacts:
        """Wait for what it finds out; to be called once.

        Args:
            signals: Of the caller; one that asks to stop ends the waiting.

        Raises:
            RofsError: What `open_image` raised, with the same message.
            HostError: The process died or did not answer.
        """
        try:
            answer = _read_answer(self._reading, signals)
        finally:
            os.close(self._reading)
            failure = self._child.end(_EXIT_SECONDS)
        if not answer:
            raise HostError(f"the process that verifies the image died: {failure}")
        if answer.startswith(b"E"):
            raise unpack_error(answer[1:])
        facts = ImageFacts.from_json(answer[1:])
        pinned = self._policy.pinned_root_hash
        if pinned is not None and facts.root_hash != pinned.hex():
            raise TrustError(f"root hash {pinned.hex()} is pinned, the verifier says {facts.root_hash}")
        return facts


def verify(image: ImageFiles | int, policy: TrustPolicy, signals: Signals) -> ImageFacts:
    """Have the image opened by an unprivileged process, and wait for it; see `Verification`."""
    return Verification(image, policy).finish(signals)


def _warm_up() -> None:
    """Import every module that opening an image could import late, for an odd certificate or error perhaps."""
    for package in (rofs.ddi, rofs.erofs, rofs.trust, rofs.verity):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)


def _read_answer(pipe: int, signals: Signals) -> bytes:
    """All that the process writes, within bounds: it may have been taken over by the image."""
    answer = b""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while len(answer) <= MAX_FACTS_BYTES:
        signals.wait_for(pipe, deadline - time.monotonic(), "the process that verifies the image")
        chunk = os.read(pipe, 65536)
        if not chunk:
            return answer
        answer += chunk
    raise FormatError(f"the process that verifies the image answered more than {MAX_FACTS_BYTES} bytes")


def _answer(files: ImageFiles, policy: TrustPolicy, pipe: int) -> None:
    confine(VERIFIER)
    try:
        answer = b"F" + open_image(files, policy).facts.to_json()
    except RofsError as error:
        answer = b"E" + pack_error(error)
    while answer:
        answer = answer[os.write(pipe, answer) :]


def pack_error(error: RofsError) -> bytes:
    """An error for `unpack_error` in another process."""
    return json.dumps([type(error).__name__, str(error)]).encode()


def unpack_error(data: bytes) -> RofsError:
    """The error of another process, as the same leaf; `ImageError` for those that carry more than text."""
    try:
        name, message = json.loads(data)
        kind = _ERRORS.get(name, errors.ImageError)
    except (ValueError, TypeError, RecursionError):
        return FormatError("a process of the mount failed and its error cannot be read")
    return kind(str(message))
