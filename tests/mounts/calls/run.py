# SPDX-License-Identifier: Apache-2.0
"""Makes the calls on a mount, each in a process of its own, as root or another user.

It reports what each call got and does not judge it: `python -m tests.mounts.calls.run MOUNT UID PART` prints JSON.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.mounts.calls.changing import CHANGING
from tests.mounts.calls.reading import READING

_REPOSITORY = Path(__file__).parents[3]
_SECONDS = 20


class Outcome(NamedTuple):
    """What a call got.

    Attributes:
        pid: Of the process that made it.
        got: The name of an errno or signal, `done`, or what it returned.
    """

    pid: int
    got: Any


def make_calls(mount: Path, uid: int, part: str = "") -> dict[str, Outcome]:
    """Make calls on a mount.

    Args:
        mount: Which one; `outside` beside it must be a directory to which the user may write.
        uid: Whose process makes them.
        part: Of the names of the calls to make; empty for all.
    """
    words = [sys.executable, "-m", "tests.mounts.calls.run", str(mount), str(uid), part]
    done = subprocess.run(words, cwd=_REPOSITORY, check=False, capture_output=True, timeout=180)
    assert done.returncode == 0, done.stderr.decode()
    return {name: Outcome(pid, got) for name, (pid, got) in json.loads(done.stdout).items()}


def _outcome(call: Callable[[], object]) -> Any:
    try:
        result = call()
    except OSError as error:
        # Linux has one number for EOPNOTSUPP and ENOTSUP.
        return "EOPNOTSUPP" if error.errno == errno.EOPNOTSUPP else errno.errorcode[error.errno or 0]
    return "done" if result is None else result


def _in_a_process(call: Callable[[], object]) -> tuple[int, Any]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(_SECONDS)
        try:
            os.write(writing, json.dumps(_outcome(call)).encode())
        except BaseException:  # noqa: BLE001 - must not go on as a copy of the parent
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    _pid, status = os.waitpid(pid, 0)
    return pid, signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else json.loads(answer)


def _main() -> None:
    mount, uid, part = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    os.chdir(mount)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    got = {name: _in_a_process(call) for name, call in {**READING, **CHANGING}.items() if part in name}
    sys.stdout.write(json.dumps(got))


if __name__ == "__main__":
    _main()
