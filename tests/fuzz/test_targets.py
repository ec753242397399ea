# SPDX-License-Identifier: Apache-2.0
"""Hostile input of every format raises `RofsError` and nothing else, costs a bounded amount, and never lies.

Each target is run by hypothesis; `scripts/fuzz` runs the same ones for hours. What was found is in `corpus/`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from rofs.erofs.reader import ErofsReader
from rofs.source.tar import TarSource
from rofs.trust import store
from rofs.trust.image_policy import ImagePolicy, parse_image_policy
from rofs.verity.device import VerityDevice
from tests.erofs.builder import write_image
from tests.trees import MemorySource, directory, file
from tests.trust.builders import ROOT_HASH

from . import administration, filesystems, input_targets, targets
from .devices import FuzzDevice
from .drive import Findings, kind_of, main
from .edits import EDIT_BYTES, MAX_EDITS, MAX_INPUT_BYTES, parse_program
from .limits import UnboundedWorkError, executed_lines, peak_bytes
from .targets import TARGETS, Target

EXAMPLES, LONG_EXAMPLES = 400, 20_000
SAMPLE, COUNTED = 12, 200
# About ten times the most that was seen.
MAX_LINES = 1_500_000
MAX_PEAK_BYTES = 16 << 20

CORPUS = Path(__file__).parent / "corpus"
CASES = sorted(path.relative_to(CORPUS) for path in CORPUS.glob("*/*"))

every_target = pytest.mark.parametrize("name", TARGETS)


def inputs() -> st.SearchStrategy[bytes]:
    """Programs of edits, so that shrinking removes whole edits."""
    edits = st.lists(st.binary(min_size=EDIT_BYTES, max_size=EDIT_BYTES), max_size=MAX_EDITS)
    return st.builds(lambda head, body: head + b"".join(body), st.binary(min_size=2, max_size=2), edits)


def sample(count: int) -> Iterator[bytes]:
    """The same inputs every time."""
    for number in range(count):
        source = random.Random(number)
        yield source.randbytes(source.randrange(MAX_INPUT_BYTES + 1))


@every_target
def test_what_is_not_changed_is_valid(name: str) -> None:
    for seed in range(8):
        assert TARGETS[name](bytes([seed]))


@every_target
def test_hostile_input_raises_only_rofs_errors(name: str, pytestconfig: pytest.Config) -> None:
    is_long = bool(pytestconfig.getoption("--long"))

    @settings(
        max_examples=LONG_EXAMPLES if is_long else EXAMPLES,
        derandomize=not is_long,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs())
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()


@every_target
def test_at_least_half_of_the_inputs_get_past_the_first_check(name: str) -> None:
    past = sum(TARGETS[name](data) for data in sample(COUNTED))
    assert past >= COUNTED / 2, f"{past} of {COUNTED}"


@every_target
def test_work_and_memory_are_bounded(name: str) -> None:
    TARGETS[name](b"")  # what is made once is not counted
    for data in sample(SAMPLE):
        executed_lines(lambda data=data: TARGETS[name](data), MAX_LINES)  # type: ignore[misc]
        peak = peak_bytes(lambda data=data: TARGETS[name](data))  # type: ignore[misc]
        assert peak < MAX_PEAK_BYTES, f"{peak} bytes for {data.hex()}"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_found_before(case: Path) -> None:
    """Each file is named after a defect and is what was made of the fuzzer's input, compressed when it is an image."""
    made = (CORPUS / case).read_bytes()
    if case.suffix == ".xz":
        made = lzma.decompress(made)
    use = TARGETS[case.parent.name].use
    for program in map(parse_program, sample(5)):
        executed_lines(lambda program=program: use(made, program), MAX_LINES)  # type: ignore[misc]


def test_changed_filesystems_differ_in_their_integers_and_keep_their_length() -> None:
    for number, seed in enumerate(filesystems.seeds()):
        changed = filesystems.hostile_filesystem(parse_program(bytes([number, 0]) + bytes(range(1, 65))))
        assert len(changed) == len(seed.data)
        assert changed != seed.data


# That the targets would notice


def test_an_error_of_another_kind_leaves_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_value: bytes) -> None:
        raise KeyError("name")

    monkeypatch.setattr(targets, "parse_identity", broken)
    with pytest.raises(KeyError):
        TARGETS["identity"](b"")


def test_unverified_bytes_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VerityDevice, "_judge", lambda *_: iter(()))
    changed = bytes([0, 0, 9]) + bytes(7)  # the lowest bit of the first byte of data
    with pytest.raises(AssertionError):
        TARGETS["verity"](changed)


def test_a_signature_for_another_root_hash_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "OTHER_ROOT_HASH", ROOT_HASH)
    with pytest.raises(AssertionError):
        TARGETS["pkcs7"](b"")


def test_bytes_that_are_not_of_the_archive_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TarSource, "contents", lambda _self, inode: iter([(0, b"x" * inode.size)]))
    with pytest.raises(AssertionError):
        TARGETS["tar"](b"")


@pytest.mark.parametrize("seed", range(4))
def test_a_filesystem_that_is_not_the_archive_is_noticed(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    other = write_image(MemorySource(directory({b"other": file()})))
    monkeypatch.setattr(input_targets, "write_image", lambda _source: other)
    with pytest.raises(AssertionError):
        TARGETS["tar"](bytes([seed, 0x80]))


def test_a_policy_that_is_taken_for_an_open_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        input_targets, "parse_image_policy", lambda text: ImagePolicy(text, parse_image_policy("*").clauses)
    )
    with pytest.raises(AssertionError):
        TARGETS["image_policy"](b"")


def test_a_filesystem_under_another_root_hash_than_the_pinned_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_targets, "OTHER_ROOT_HASH", administration.bare_filesystem().root_hash)
    with pytest.raises(AssertionError):
        TARGETS["side_files"](b"")


def test_a_certificate_that_is_silently_left_out_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_reasons(root: str) -> store.LoadedTrust:
        return dataclasses.replace(store.load_default_trust(root), skipped=())

    monkeypatch.setattr(input_targets, "load_default_trust", without_reasons)
    with pytest.raises(AssertionError):
        TARGETS["trust_directory"].use(b"-----BEGIN CERTIFICATE-----", parse_program(b""))


def test_what_does_not_end_is_noticed() -> None:
    data = filesystems.seeds()[1].data

    def for_ever() -> None:
        while True:
            ErofsReader(FuzzDevice(data))

    with pytest.raises(UnboundedWorkError):
        executed_lines(for_ever, 10_000)


def test_a_finding_is_kept_once_as_its_shortest_input(tmp_path: Path) -> None:
    findings = Findings(tmp_path / "found")
    error = _raised()
    assert findings.add(b"long", b"made", error) == kind_of(error)
    assert findings.add(b"longer", b"", error) is None
    assert findings.add(b"x", b"made of x", error) is None
    assert findings.count == 1
    assert (tmp_path / "found" / kind_of(error)).read_bytes() == b"x"
    assert (tmp_path / "found" / f"{kind_of(error)}.made").read_bytes() == b"made of x"
    assert "as told" in (tmp_path / "found" / f"{kind_of(error)}.txt").read_text()


def test_the_driver_goes_on_after_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a double of Atheris, which tries an input that fails, twice, and one that does not."""
    started: list[Any] = []
    double = SimpleNamespace(
        instrument_imports=lambda include: contextlib.nullcontext(),
        Setup=lambda arguments, run: started.append((arguments, run)),
        Fuzz=lambda: [run(data) for _, run in started for data in (b"ab", b"a", b"good")],
    )

    def use(made: bytes, _program: object) -> bool:
        return bool(int(made))

    monkeypatch.setitem(sys.modules, "atheris", double)
    monkeypatch.setitem(TARGETS, "doubled", Target(lambda program: b"7" if program.seed == ord("g") else b"seven", use))
    main(["doubled", str(tmp_path / "found"), str(tmp_path), "-runs=3"])
    assert started[0][0][1:] == [str(tmp_path), f"-max_len={MAX_INPUT_BYTES}", "-len_control=0", "-runs=3"]
    (kept,) = (path for path in (tmp_path / "found").iterdir() if not path.suffix)
    assert kept.read_bytes() == b"a"
    assert Path(f"{kept}.made").read_bytes() == b"seven"


def _raised() -> ValueError:
    try:
        int("as told")
    except ValueError as error:
        return error
    raise AssertionError
