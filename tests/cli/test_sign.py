# SPDX-License-Identifier: Apache-2.0
"""`rofs sign`, `rofs build --unsigned`, and keys with a passphrase."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import SigningKeys
from tests.trust.builders import needs_openssl, openssl

from .conftest import Run


@pytest.fixture
def unsigned(run: Run, tree: Path, tmp_path: Path) -> Path:
    run("build", tree, "-o", tmp_path / "unsigned.raw", "--unsigned").succeeded()
    return tmp_path / "unsigned.raw"


@pytest.fixture(scope="session")
def locked_keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key that needs a passphrase, and the file that has it."""
    from rofs.cli.main import main

    directory = tmp_path_factory.mktemp("locked")
    (directory / "passphrase").write_bytes(b"open s\xe9same\nand more\n")
    assert main(["keygen", str(directory / "keys"), "--passphrase-file", str(directory / "passphrase")]) == 0
    return directory


def pair(keys: SigningKeys) -> tuple[str | Path, ...]:
    return "--key", keys.key_path, "--cert", keys.certificate_path


def test_signed_later_is_accepted(run: Run, unsigned: Path, signing_keys: SigningKeys, trust: tuple[str, str]) -> None:
    assert "is not signed" in run("verify", unsigned, *trust).failed(3)
    root_hash, line = run("sign", unsigned, *pair(signing_keys)).succeeded().splitlines()
    assert line.startswith("signed by CN=rofs tests (")
    done = run("verify", unsigned, *trust, "--json")
    assert (done.json["accepted_by"], done.json["root_hash"]) == ("signature", root_hash)


def test_unsigned_and_signed_builds_have_one_root_hash(
    run: Run, tree: Path, tmp_path: Path, signing_keys: SigningKeys
) -> None:
    hashes = {
        run("build", tree, "-o", tmp_path / name, *words).succeeded()
        for name, words in (("a.raw", pair(signing_keys)), ("b.raw", ("--unsigned",)))
    }
    assert len(hashes) == 1


def test_several_signers(run: Run, image: Path, signing_keys: SigningKeys, other_keys: SigningKeys) -> None:
    done = run("sign", image, *pair(other_keys), "--json")
    assert len(done.json["signers"]) == 2
    for keys in (signing_keys, other_keys):
        run("verify", image, "--trust", keys.certificate_path).succeeded()


@needs_openssl
def test_signature_made_where_the_key_is(
    run: Run, unsigned: Path, tmp_path: Path, signing_keys: SigningKeys, trust: tuple[str, str]
) -> None:
    """With the very command that the help names."""
    from rofs.cli.sign import HELP

    (command,) = [line for line in HELP.splitlines() if "| openssl" in line]
    root_hash = run("inspect", unsigned, "--json").json["root_hash"]
    for word, value in (
        ("ROOTHASH", root_hash),
        ("-signer C", f"-signer {signing_keys.certificate_path}"),
        ("-inkey K", f"-inkey {signing_keys.key_path}"),
        ("-out FILE", f"-out {tmp_path / 'sig'}"),
    ):
        assert word in command
        command = command.replace(word, value)
    subprocess.run(["sh", "-ec", command], check=True)
    run("sign", unsigned, "--signature", tmp_path / "sig", "--cert", signing_keys.certificate_path).succeeded()
    run("verify", unsigned, *trust).succeeded()


@needs_openssl
def test_signature_that_does_not_belong_is_not_added(
    run: Run, unsigned: Path, tmp_path: Path, signing_keys: SigningKeys, other_keys: SigningKeys
) -> None:
    before = unsigned.read_bytes()
    files = "-signer", signing_keys.certificate_path, "-inkey", signing_keys.key_path, "-out", tmp_path / "sig"
    openssl("smime", "-sign", "-binary", "-noattr", "-outform", "der", *files, stdin=b"00" * 32)
    for keys in (signing_keys, other_keys):
        message = run("sign", unsigned, "--signature", tmp_path / "sig", "--cert", keys.certificate_path).failed(3)
        assert str(keys.certificate_path) in message
    assert unsigned.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "No such file"),
        (b"", "is empty"),
        (b"-----BEGIN PKCS7-----\n", "is PEM or text; expected PKCS#7 in DER"),
        (b"\xff\xfe", "is no DER"),
        (b"\x30\x03\x02\x01\x01", "PKCS#7 signature is malformed"),
    ],
)
def test_signature_file_that_is_none(
    run: Run, unsigned: Path, tmp_path: Path, signing_keys: SigningKeys, content: bytes | None, what: str
) -> None:
    if content is not None:
        (tmp_path / "sig").write_bytes(content)
    words = "--signature", tmp_path / "sig", "--cert", signing_keys.certificate_path
    message = run("sign", unsigned, *words).failed(1)
    assert what in message
    assert f"{tmp_path}/sig" in message


@pytest.mark.parametrize(
    "words",
    [("--cert", "x"), ("--key", "x"), ("--key", "x", "--signature", "x", "--cert", "x"), ("--unsigned",)],
)
def test_sign_takes_a_key_or_a_signature(run: Run, unsigned: Path, words: tuple[str, ...]) -> None:
    run("sign", unsigned, *words).failed(2)


@pytest.mark.parametrize(
    "words", [(), ("--key", "x"), ("--cert", "x"), ("--unsigned", "--key", "x"), ("--unsigned", "--cert", "x")]
)
def test_build_takes_a_key_pair_or_unsigned(run: Run, tree: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    run("build", tree, "-o", tmp_path / "out.raw", *words).failed(2)
    assert not (tmp_path / "out.raw").exists()


@pytest.mark.parametrize("verb", ["sign", "build"])
@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("missing", "No such file"),
        ("empty", "is empty; expected PEM"),
        ("certificate", "is a certificate; expected a private key"),
        ("another's", "do not belong together: public key"),
    ],
)
def test_key_file_that_is_no_use(
    run: Run,
    verb: str,
    unsigned: Path,
    tree: Path,
    tmp_path: Path,
    signing_keys: SigningKeys,
    other_keys: SigningKeys,
    defect: str,
    message: str,
) -> None:
    (tmp_path / "empty").touch()
    key = {
        "missing": tmp_path / "none",
        "empty": tmp_path / "empty",
        "certificate": signing_keys.certificate_path,
        "another's": other_keys.key_path,
    }[defect]
    words = (unsigned,) if verb == "sign" else (tree, "-o", tmp_path / "out.raw")
    said = run(verb, *words, "--key", key, "--cert", signing_keys.certificate_path).failed(1)
    assert message in said
    assert defect == "another's" or str(key) in said


# Passphrases


def test_passphrase_from_a_file(run: Run, unsigned: Path, tree: Path, tmp_path: Path, locked_keys: Path) -> None:
    words = "--key", locked_keys / "keys/rofs.key", "--cert", locked_keys / "keys/rofs.crt"
    file = "--key-passphrase-file", locked_keys / "passphrase"
    run("sign", unsigned, *words, *file).succeeded()
    run("build", tree, "-o", tmp_path / "out.raw", *words, *file).succeeded()
    for image in (unsigned, tmp_path / "out.raw"):
        run("verify", image, "--trust", locked_keys / "keys/rofs.crt").succeeded()


def test_passphrase_from_standard_input(
    run: Run, unsigned: Path, locked_keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"open s\xe9same")))
    words = "--key", locked_keys / "keys/rofs.key", "--cert", locked_keys / "keys/rofs.crt"
    run("sign", unsigned, *words, "--key-passphrase-file", "-").succeeded()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"wrong\n", "cannot be decrypted: the passphrase is wrong"),
        (b"", "is no passphrase"),
        (b"\nsecond", "is no passphrase"),
        (b"x" * 5000, "is no passphrase"),
        (None, "cannot read the passphrase from"),
    ],
)
def test_passphrase_file_that_is_no_use(
    run: Run, unsigned: Path, tmp_path: Path, locked_keys: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    words = "--key", locked_keys / "keys/rofs.key", "--cert", locked_keys / "keys/rofs.crt"
    assert message in run("sign", unsigned, *words, "--key-passphrase-file", tmp_path / "file").failed(1)
    if content != b"wrong\n":
        run("keygen", tmp_path / "new", "--passphrase-file", tmp_path / "file").failed(1)
        assert not (tmp_path / "new").exists()


def _sign_command(image: Path, keys: Path) -> list[str]:
    program = str(Path(sys.executable).parent / "rofs")
    return [program, "sign", str(image), "--key", str(keys / "keys/rofs.key"), "--cert", str(keys / "keys/rofs.crt")]


def test_without_a_terminal_the_option_is_named(unsigned: Path, locked_keys: Path) -> None:
    done = subprocess.run(
        _sign_command(unsigned, locked_keys), capture_output=True, text=True, start_new_session=True, check=False
    )
    assert done.returncode == 5
    assert "--key-passphrase-file" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_terminal_is_asked(unsigned: Path, tmp_path: Path, locked_keys: Path, run: Run) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        command = _sign_command(unsigned, locked_keys)
        os.execv(command[0], command)
    said = b""
    while b"passphrase of " not in said:
        said += os.read(terminal, 1000)
    os.write(terminal, b"open s\xe9same\n")
    status = os.waitpid(pid, 0)[1]
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
    run("verify", unsigned, "--trust", locked_keys / "keys/rofs.crt").succeeded()
