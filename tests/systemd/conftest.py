# SPDX-License-Identifier: Apache-2.0
"""A machine for each test, with rofs installed and an image that is not mounted yet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SigningKeys
from tests.mounts.harness import rofs
from tests.systemd.harness import ROFS, Machine, booted

IMAGE = "/var/lib/images/app.raw"
MOUNTPOINT = "/srv/app"
CERTIFICATE = "/etc/rofs/vendor.crt"
UNIT = "rofs@app.service"
SUITES = ["bookworm", "trixie"]


def _build(place: Path, files: dict[str, int], keys: SigningKeys) -> Path:
    for name, size in files.items():
        (place / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "tree" / name).write_bytes(os.urandom(size))
    pair = ("--key", keys.key_path, "--cert", keys.certificate_path)
    rofs("build", place / "tree", "-o", place / "app.raw", *pair)
    return place / "app.raw"


@pytest.fixture(scope="session")
def image(signing_keys: SigningKeys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some files, small and large."""
    files = {"data/0": 10, "data/1": 5_000, "data/2": 300_000, "data/3": 3_000_000}
    return _build(tmp_path_factory.mktemp("image"), files, signing_keys)


@pytest.fixture(scope="session")
def other_image(signing_keys: SigningKeys, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As if it were the next version."""
    return _build(tmp_path_factory.mktemp("image"), {"other": 10}, signing_keys)


@pytest.fixture(params=SUITES)
def machine(request: pytest.FixtureRequest, image: Path, signing_keys: SigningKeys) -> Iterator[Machine]:
    """With `rofs install-system` done, and all that `rofs@app` needs in place."""
    with booted(request.param) as machine:
        machine.run(ROFS, "install-system")
        machine.systemctl("daemon-reload")
        machine.copy(image, IMAGE)
        machine.copy(signing_keys.certificate_path, CERTIFICATE)
        machine.path(MOUNTPOINT).mkdir(parents=True)
        # What the documentation says that one should do.
        example = machine.path("/usr/local/share/doc/rofs/examples/NAME.conf").read_text()
        machine.write("/etc/rofs/app.conf", example)
        yield machine
