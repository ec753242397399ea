# SPDX-License-Identifier: Apache-2.0
"""The unprivileged verifier: the same facts, and the same errors, as if the image had been opened here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rofs import errors
from rofs.errors import (
    BlockFault,
    CorruptionError,
    FormatError,
    HostError,
    ImageError,
    InputError,
    ReadError,
    RofsError,
    TrustError,
)
from rofs.fuse import signals, verifier
from rofs.fuse.verifier import pack_error, unpack_error
from rofs.image.open import ImageFacts, open_image
from rofs.trust.verify import TrustPolicy
from tests.conftest import SigningKeys
from tests.fuse.doubles import open_descriptors


@contextmanager
def changed(image: Path, tmp_path: Path, change: Callable[[Path], object]) -> Iterator[int]:
    """A descriptor of a copy that was changed."""
    copy = tmp_path / "copy.raw"
    shutil.copyfile(image, copy)
    change(copy)
    fd = os.open(copy, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def overwrite(offset: int, data: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return change


def error_of(function: Callable[[int, TrustPolicy], object], fd: int, policy: TrustPolicy) -> RofsError:
    with pytest.raises(RofsError) as caught:
        function(fd, policy)
    return caught.value


def verified(fd: int, policy: TrustPolicy) -> ImageFacts:
    with signals.caught() as caught:
        return verifier.verify(fd, policy, caught)


def test_good_image(image_fd: int, signing_keys: SigningKeys) -> None:
    facts = verified(image_fd, signing_keys.policy)
    assert facts == open_image(image_fd, signing_keys.policy).facts
    assert (facts.accepted_by, facts.identity.name) == ("signature", "edge")


def test_untrusted_image(image_fd: int, other_keys: SigningKeys) -> None:
    for policy in (other_keys.policy, TrustPolicy(), TrustPolicy(pinned_root_hash=b"\x01" * 32)):
        error = error_of(verified, image_fd, policy)
        assert type(error) is TrustError
        assert str(error) == str(error_of(open_image, image_fd, policy))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, 5000),
        lambda path: os.truncate(path, path.stat().st_size // 2),
        lambda path: path.write_bytes(b"text\n" * 2000),
    ],
)
def test_malformed_image(
    image_path: Path, tmp_path: Path, signing_keys: SigningKeys, change: Callable[[Path], object]
) -> None:
    with changed(image_path, tmp_path, change) as fd:
        here, there = error_of(open_image, fd, signing_keys.policy), error_of(verified, fd, signing_keys.policy)
    assert type(there) is type(here)
    assert isinstance(there, ImageError)
    assert str(there) == str(here)


def test_corrupt_image(image_path: Path, image_fd: int, tmp_path: Path, signing_keys: SigningKeys) -> None:
    offset = open_image(image_fd, signing_keys.policy).facts.data_offset_bytes
    with changed(image_path, tmp_path, overwrite(offset + 1024, b"\xff" * 64)) as fd:
        here, there = error_of(open_image, fd, signing_keys.policy), error_of(verified, fd, signing_keys.policy)
    assert type(here) is CorruptionError
    assert isinstance(there, ImageError)
    assert str(there) == str(here)


@pytest.mark.parametrize("status", [0, 1, -9])
def test_verifier_that_dies(
    monkeypatch: pytest.MonkeyPatch, image_fd: int, signing_keys: SigningKeys, status: int
) -> None:
    def die(*_: object) -> None:
        if status < 0:
            os.kill(os.getpid(), -status)
        os._exit(status)

    monkeypatch.setattr(verifier, "_answer", die)
    with pytest.raises(HostError, match="verifies the image died"):
        verified(image_fd, signing_keys.policy)


@pytest.mark.parametrize("answer", [b"F", b"F[]", b"F{}", b"Fgarbage", b"Egarbage", b"E5", b"E[]", b"E[[],1]", b"X{}"])
def test_verifier_that_talks_nonsense(
    monkeypatch: pytest.MonkeyPatch, image_fd: int, signing_keys: SigningKeys, answer: bytes
) -> None:
    monkeypatch.setattr(verifier, "_answer", lambda _fd, _policy, pipe: os.write(pipe, answer))
    with pytest.raises(FormatError):
        verified(image_fd, signing_keys.policy)


def test_no_descriptor_is_left_open(image_fd: int, signing_keys: SigningKeys) -> None:
    before = open_descriptors()
    verified(image_fd, signing_keys.policy)
    error_of(verified, image_fd, TrustPolicy())
    assert open_descriptors() == before


LEAVES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, RofsError) and kind is not CorruptionError
]


@pytest.mark.parametrize("kind", LEAVES)
def test_error_comes_back_as_the_same_leaf(kind: type[RofsError]) -> None:
    error = unpack_error(pack_error(kind("what: näh\n")))
    assert type(error) is kind
    assert str(error) == "what: näh\n"


def test_error_that_carries_more_than_text_keeps_its_fault() -> None:
    error = unpack_error(pack_error(CorruptionError(BlockFault("mismatch", -1, 7))))
    assert isinstance(error, ImageError)
    assert "data block 7" in str(error)


@pytest.mark.parametrize(
    "data", [b"", b"null", b"5", b"{", b"[1]", b"[1,2,3]", b'[{}, ""]', b"[" * 100_000, b"\xff\xff"]
)
def test_hostile_error_is_an_error_all_the_same(data: bytes) -> None:
    assert isinstance(unpack_error(data), FormatError)


def test_hostile_error_cannot_choose_another_class() -> None:
    assert type(unpack_error(b'["SystemExit", "x"]')) is ImageError
    assert type(unpack_error(b'["InputError", null]')) is InputError
    assert {ReadError, HostError} <= set(LEAVES)


@pytest.mark.parametrize(
    "data", [b"", b"5", b"{", b"[" * 100_000, b'{"identity": {}}', b'{"identity": 5, "warnings": []}']
)
def test_hostile_facts_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        ImageFacts.from_json(data)
