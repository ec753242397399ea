# SPDX-License-Identifier: Apache-2.0
"""From inodes and bad blocks to paths, on a real image, whatever numbers a hostile worker has made up."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from rofs.audit.event import escape_path
from rofs.fuse import resolver
from rofs.fuse.messages import MAX_MESSAGE_BYTES, PathsAnswer, PathsQuestion
from rofs.fuse.resolver import Resolver
from rofs.image.open import VerifiedImage, open_image
from tests.conftest import SigningKeys


@pytest.fixture
def image(image_fd: int, signing_keys: SigningKeys) -> VerifiedImage:
    return open_image(image_fd, signing_keys.policy)


def nid_of(image: VerifiedImage, path: str) -> int:
    nid = image.filesystem.root_nid
    for name in path.strip("/").split("/"):
        found = image.filesystem.lookup(nid, os.fsencode(name))
        assert found is not None
        nid = found
    return nid


def test_paths_of_an_inode(image: VerifiedImage) -> None:
    answers = Resolver(image)
    assert answers.answer(PathsQuestion(image.filesystem.root_nid)) == PathsAnswer(("/",))
    assert answers.answer(PathsQuestion(nid_of(image, "dir/below"))) == PathsAnswer(("/dir/below",))
    assert set(answers.answer(PathsQuestion(nid_of(image, "hard"))).paths) == {"/dir/file", "/hard"}


def test_name_that_is_not_utf8_is_escaped(image: VerifiedImage) -> None:
    nid = nid_of(image, os.fsdecode(b"odd\xff\\"))
    assert Resolver(image).answer(PathsQuestion(nid)).paths == (escape_path(b"/odd\xff\\"),)


def test_block_names_the_asked_inode_first_and_where_it_is_bad(image: VerifiedImage) -> None:
    nid = nid_of(image, "dir/below/same")
    extent = next(e for e in image.filesystem.extents(nid) if e.file_offset_bytes == 0)
    block = extent.offset_bytes // 4096 + 2
    answer = Resolver(image).answer(PathsQuestion(nid, -1, block))
    assert answer.paths[0] == "/dir/below/same"
    assert answer.offset == 2 * 4096


def test_no_limit_cuts_the_asked_inode_off(image: VerifiedImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "MAX_PATHS", 2)
    for path in ("hard", "dir/below/same", "dir/below"):
        nid = nid_of(image, path)
        answer = Resolver(image).answer(PathsQuestion(nid, 0, 0))
        assert len(answer.paths) == 2
        assert answer.paths[0] in {"/" + path, "/dir/file"}


def test_it_keeps_nothing_of_what_it_is_asked(image: VerifiedImage) -> None:
    answers = Resolver(image)
    answers.answer(PathsQuestion(image.filesystem.root_nid, 0, 0))
    before = {key: value for key, value in vars(answers).items() if isinstance(value, dict | list | set)}
    assert before == {}


def test_bad_hash_block_names_everything_below_it(image: VerifiedImage) -> None:
    answer = Resolver(image).answer(PathsQuestion(nid_of(image, "hard"), 0, 0))
    assert {"/hard", "/dir/file", "/dir/below/same", "/dir", "/"} <= set(answer.paths)
    assert answer.offset == 0


@pytest.mark.parametrize("nid", [0, 5, 2**31, 2**63, 2**64 - 1])
@pytest.mark.parametrize("level", [-1, 0, 1, 63])
@pytest.mark.parametrize("block", [None, 0, 2**32, 2**64 - 1])
def test_numbers_that_a_hostile_worker_made_up(image: VerifiedImage, nid: int, level: int, block: int | None) -> None:
    answer = Resolver(image).answer(PathsQuestion(nid, level, block))
    assert PathsAnswer.parse(answer.pack()) == answer


def test_serves_until_the_supervisor_is_gone(image: VerifiedImage) -> None:
    supervisor, connection = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with supervisor, connection:
        supervisor.settimeout(10)
        serving = threading.Thread(target=resolver.serve, args=(connection, image))
        serving.start()
        for _ in range(2):
            supervisor.send(PathsQuestion(image.filesystem.root_nid).pack())
            assert PathsAnswer.parse(supervisor.recv(MAX_MESSAGE_BYTES)).paths == ("/",)
        supervisor.close()
        serving.join(10)
        assert not serving.is_alive()
