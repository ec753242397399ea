# SPDX-License-Identifier: Apache-2.0
"""What all tests share: the --long switch, keys, a real Debian root, and the check that nothing is left behind."""

from __future__ import annotations

import datetime as dt
import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from cryptography.x509 import Certificate

from rofs.fuse.places import escape_path_name
from rofs.trust import keys
from rofs.trust.keys import PrivateKey
from rofs.trust.verify import TrustedCertificate, TrustPolicy

REPOSITORY = Path(__file__).parent.parent


# What a shell starts in the background ignores SIGINT, and so would all that tests start and want to interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No timed tests: how long an input takes to make, or to be worked on, says how busy the machine is.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run what takes too long for every run, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: only with --long"))


@dataclass(frozen=True)
class SigningKeys:
    """A key pair on disk and in memory, made once per run."""

    key_path: Path
    certificate_path: Path
    key: PrivateKey
    certificate: Certificate

    @property
    def policy(self) -> TrustPolicy:
        """Trusts this key alone."""
        path = str(self.certificate_path)
        trusted = TrustedCertificate(path, self.certificate, keys.fingerprint(self.certificate))
        return TrustPolicy(certificates=(trusted,))


def make_keys(directory: Path, key_type: keys.KeyType = "p256") -> SigningKeys:
    key, certificate = keys.generate(
        str(directory), key_type=key_type, common_name="rofs tests", now=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    )
    key_path, certificate_path = Path(os.fsdecode(key)), Path(os.fsdecode(certificate))
    return SigningKeys(
        key_path,
        certificate_path,
        keys.load_private_key(str(key_path)),
        keys.load_certificates(str(certificate_path))[0],
    )


@pytest.fixture(scope="session")
def signing_keys(tmp_path_factory: pytest.TempPathFactory) -> SigningKeys:
    return make_keys(tmp_path_factory.mktemp("keys") / "pair")


@pytest.fixture(scope="session")
def other_keys(tmp_path_factory: pytest.TempPathFactory) -> SigningKeys:
    """A signer that nobody trusts."""
    return make_keys(tmp_path_factory.mktemp("keys") / "other")


@pytest.fixture(scope="session")
def debian_root() -> Path:
    """A minimal Debian with Python, made by debootstrap and cached outside of the checkout."""
    made = subprocess.run([REPOSITORY / "scripts" / "debian-root"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(made.stdout.strip())


@pytest.fixture(scope="session")
def oracle_root() -> Path:
    """A Debian 13 with the tools that give a second opinion, cached like `debian_root`."""
    made = subprocess.run([REPOSITORY / "scripts" / "oracle-root"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(made.stdout.strip())


@pytest.fixture(autouse=True)
def _no_unexpected_log_lines(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    for phase in ("setup", "call"):
        for record in caplog.get_records(phase):
            assert record.levelno < logging.WARNING, f"unexpected log line: {record.getMessage()}"


@pytest.fixture(autouse=True, scope="session")
def _nothing_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every test works below one directory, so what is left there, or names it, was left by a test."""
    base = str(tmp_path_factory.getbasetemp())
    yield
    left = _traces(base)
    assert not any(left.values()), f"the tests left behind: {left}"


def _traces(base: str) -> dict[str, list[str]]:
    """Mounts, loop devices, runtime directories and processes that have to do with a directory."""
    escaped = escape_path_name(os.fsencode(base))
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    loops = [path.read_text() for path in Path("/sys/block").glob("loop*/loop/backing_file")]
    run = Path("/run/rofs")
    return {
        "mounts": [path for path in mounts if path.startswith(base)],
        "loop devices": [path for path in loops if path.startswith(base)],
        "runtime directories": [path.name for path in run.glob("*") if path.name.startswith(escaped)],
        "processes": _processes_naming(base),
    }


def _processes_naming(base: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, state = (path / "cmdline").read_bytes(), (path / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if b"rofs" in command and f"{base}/".encode() in command and state != "Z" and int(path.name) != os.getpid():
            found.append(path.name)
    return found
