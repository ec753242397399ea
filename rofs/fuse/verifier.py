# SPDX-License-Identifier: Apache-2.0
"""The verifier: a short-lived process without privileges that parses the untrusted image first.

Partition table, signature and filesystem are read by it; what comes back to the privileged keeper is
`ImageFacts`, plain values that were checked field by field, or the error that refuses the image.
"""

from __future__ import annotations

import json
import os

from rofs import errors
from rofs.errors import FormatError, RofsError
from rofs.fuse.process import fork
from rofs.image.open import ImageFacts, open_image
from rofs.trust.verify import TrustPolicy

_ERRORS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RofsError) and kind is not errors.CorruptionError
}


def verify(image_fd: int, policy: TrustPolicy) -> ImageFacts:
    """Have the image opened by an unprivileged process.

    Args:
        image_fd: The image.
        policy: What is trusted; read from the host's files, so not hostile.

    Returns:
        What is known of the image.

    Raises:
        RofsError: What `open_image` raised, with the same message.
    """
    reading, writing = os.pipe()
    try:
        pid = fork(lambda: _answer(image_fd, policy, writing), keep=(image_fd, writing), unprivileged=True)
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _pid, status = os.waitpid(pid, 0)
    if status or not answer:
        raise FormatError(f"the process that verifies the image died (status {os.waitstatus_to_exitcode(status)})")
    if answer.startswith(b"E"):
        raise unpack_error(answer[1:])
    return ImageFacts.from_json(answer[1:])


def _answer(image_fd: int, policy: TrustPolicy, pipe: int) -> None:
    try:
        answer = b"F" + open_image(image_fd, policy).facts.to_json()
    except RofsError as error:
        answer = b"E" + pack_error(error)
    with os.fdopen(pipe, "wb") as file:
        file.write(answer)


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
