# SPDX-License-Identifier: Apache-2.0
"""The program as a function, and an image that its own `build` has made."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rofs.cli import config
from rofs.cli.main import main
from rofs.fuse import places
from rofs.trust import store
from tests.conftest import SigningKeys


def pairs(text: str) -> dict[str, str]:
    """Names and values of a result for people."""
    rows = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in rows}


@dataclass(frozen=True)
class Done:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def failed(self, code: int) -> str:
        """The one or two lines that say why; anything else is a failure of the test."""
        assert self.code == code, self.err
        assert self.out == ""
        lines = self.err.splitlines()
        assert 1 <= len([line for line in lines if line.startswith("rofs: error: ")]) == 1
        assert len(lines) <= 2
        assert "Traceback" not in self.err
        assert "internal error" not in self.err
        return lines[-1].removeprefix("rofs: error: ")

    def succeeded(self) -> str:
        assert self.code == 0, self.err
        assert self.err == ""
        return self.out


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process."""

    def run(*words: str | bytes | Path) -> Done:
        capsys.readouterr()
        code = main([os.fsdecode(word) for word in words])
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return run


@pytest.fixture(autouse=True)
def _nothing_of_this_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "runtime_directory", lambda: str(tmp_path / "runtime"))
    monkeypatch.setattr(config, "PATH", "/does/not/exist/rofs.toml")
    monkeypatch.setattr(store, "DEFAULT_DIRECTORIES", (str(tmp_path / "verity.d"),))
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    (tree / "dir" / "file").write_bytes(b"content\n" * 2000)
    (tree / "link").symlink_to("dir/file")
    Path(os.fsdecode(os.fsencode(tree) + b"/odd\xff")).write_bytes(b"odd")
    return tree


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, signing_keys: SigningKeys) -> Path:
    base = tmp_path_factory.mktemp("built")
    (base / "tree" / "dir").mkdir(parents=True)
    (base / "tree" / "dir" / "file").write_bytes(b"content\n" * 2000)
    words = ["build", base / "tree", "-o", base / "image.raw", "--name", "edge", "--release", "1.2"]
    words += ["--rollback-index", "3", "--key", signing_keys.key_path, "--cert", signing_keys.certificate_path]
    assert main([str(word) for word in words]) == 0
    return base / "image.raw"


@pytest.fixture
def image(built: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copyfile(built, tmp_path / "image.raw"))


@pytest.fixture
def trust(signing_keys: SigningKeys) -> tuple[str, str]:
    return "--trust", str(signing_keys.certificate_path)
