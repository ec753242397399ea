# SPDX-License-Identifier: Apache-2.0
"""What a keeper leaves to the program that takes its place: descriptors, and a description of them.

The keeper replaces itself by exec: same process, same children, same open descriptors, other program. The
description is JSON in a memfd; `STATE_VERSION` changes when a program that knows this one's could not read
it. Before that the new program is run once beside the keeper, to see that it starts and knows the state.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from rofs.errors import FormatError, StateError
from rofs.fuse.crew import Served, Worker
from rofs.fuse.kernel import Handshake
from rofs.fuse.process import Child
from rofs.fuse.request import Place, Reactions
from rofs.fuse.shared import SharedState
from rofs.image.open import ImageFacts, ImageFiles

STATE_VERSION: Final = 1
RESUME_MODULE: Final = "rofs.fuse.resume"
CHECK: Final = "--check"
KNOWN: Final = f"rofs keeper state {STATE_VERSION}"  # what a program answers to the check
_CHECK_SECONDS = 30.0
_MAX_SAID_CHARS = 500
_MAX_STATE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """All that a keeper has of a living mount.

    Attributes:
        place: Where it is.
        served: What its workers serve.
        mount_id: None when it could not be found.
        wanted: How many workers there are to be.
        workers: Those that there are.
        supervisor: None when it has just died.
        resolver: None when it has just died.
        link: Our end of the line to the supervisor.
        notify_address: Of the service manager; None when there is none.
        device: `MAJOR:MINOR` of the mounted filesystem, which tells it from a later mount of the same id.
        orphans: Clones of workers that have died with their keeper; to be closed when their requests are handed on.
        reactions: What is done when something happens to it.
    """

    place: Place
    served: Served
    mount_id: int | None
    wanted: int
    workers: list[Worker]
    supervisor: Child | None
    resolver: Child | None
    link: socket.socket
    notify_address: str | None = None
    orphans: tuple[int, ...] = ()
    device: str = ""
    reactions: Reactions = field(default_factory=Reactions)


def command_of_this_program() -> list[str]:
    """How to start this very program as a keeper's successor, but for its last arguments."""
    return [sys.executable, "-P", "-m", RESUME_MODULE]


def check(argv: Sequence[str], environment: Mapping[str, str], kept: Kept | None = None) -> str | None:
    """Try whether a program could take over.

    Args:
        argv: How it is started; `CHECK`, the state's version and the state's descriptor are added.
        environment: What directs its Python, in the place of what directs ours.
        kept: What it would have to take over, of which it gets copies; None to see whether it starts at all.

    Returns:
        None when it could, else why not, in one line.
    """
    words, fds = [*argv, CHECK, str(STATE_VERSION)], []
    if kept is not None:
        state = write_state(kept)
        words.append(str(state))
        fds = [state, *_fds(kept)]
    try:
        done = subprocess.run(
            words,
            env=_joined(environment),
            check=False,
            capture_output=True,
            timeout=_CHECK_SECONDS,
            cwd="/",
            pass_fds=fds,
        )
    except OSError as error:
        return f"{argv[0]} cannot be started: {error.strerror}"
    except ValueError as error:  # a NUL byte, or a `=` in a name
        return f"{argv[0]!r} cannot be started: {error}"
    except subprocess.TimeoutExpired:
        return f"{argv[0]} did not start within {_CHECK_SECONDS:g} s"
    finally:
        if kept is not None:
            os.close(state)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it does not say why"]
        return f"{argv[0]} does not start (exit status {done.returncode}): {said[-1][:_MAX_SAID_CHARS]}"
    if done.stdout.decode("utf-8", "replace").strip() != KNOWN:
        return f"{argv[0]} is not rofs: it does not answer what a keeper's successor would"
    return None


def execute(argv: Sequence[str], environment: Mapping[str, str], kept: Kept) -> OSError:
    """Become that program; returns only if that fails, and then nothing has changed."""
    state = write_state(kept)
    fds = _fds(kept)
    # Between the programs nobody handles signals: one that asks to stop would end the mount without order.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        for fd in fds:
            os.set_inheritable(fd, True)  # noqa: FBT003
        os.execve(argv[0], [*argv, str(state)], _joined(environment))  # noqa: S606 - that is the point
    except OSError as error:
        return error
    finally:
        for fd in fds:
            os.set_inheritable(fd, False)  # noqa: FBT003
        os.close(state)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def write_state(kept: Kept) -> int:
    """The description of a mount, in a memfd that is inherited."""
    state = os.memfd_create("rofs-state", 0)
    os.write(state, _pack(kept))
    return state


def _joined(environment: Mapping[str, str]) -> dict[str, str]:
    """Our environment without what led us to our own modules: the one before may have been another version."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**ours, **environment}


def load(state_fd: int) -> Kept:
    """Take over what the program before has left.

    Raises:
        StateError: It is not what this program can read.
    """
    return _load(state_fd, {})


def load_without_processes(state_fd: int, fds: Mapping[str, int], orphans: Sequence[int]) -> Kept:
    """Take over what a keeper has left that died with all its children.

    Args:
        state_fd: Of `write_state`; closed here.
        fds: The descriptors of the description, which have other numbers now, by their key in it.
        orphans: The clones of its workers.

    Raises:
        StateError: It is not what this program can read.
    """
    nobody, _ = socket.socketpair()
    processes: dict[str, Any] = {"workers": [], "supervisor": None, "resolver": None, "link_fd": nobody.detach()}
    return replace(_load(state_fd, {**fds, **processes, "notify_address": None}), orphans=tuple(orphans))


def _load(state_fd: int, changes: Mapping[str, Any]) -> Kept:
    data = os.pread(state_fd, _MAX_STATE_BYTES, 0)
    os.close(state_fd)
    try:
        kept = _unpack({**json.loads(data), **changes})
    except (ValueError, KeyError, TypeError, FormatError) as error:
        raise StateError(f"the keeper's state cannot be read: {type(error).__name__}: {error}") from error
    for fd in _fds(kept):
        os.set_inheritable(fd, False)  # noqa: FBT003
    return kept


def _fds(kept: Kept) -> list[int]:
    served = kept.served
    children = [child for child in (kept.supervisor, kept.resolver) if child is not None]
    fds = [*served.files.fds, served.fuse_fd, served.shared.fd, kept.link.fileno()]
    fds += [child.failure_fd for child in children]
    for member in kept.workers:
        fds += [member.child.failure_fd, member.clone_fd, member.reports.fileno()]
    return fds


def _pack(kept: Kept) -> bytes:
    place, served = kept.place, kept.served
    return json.dumps(
        {
            "version": STATE_VERSION,
            "place": {
                "image_path": os.fsdecode(place.image_path),
                "mountpoint": os.fsdecode(place.mountpoint),
                "log_path": os.fsdecode(place.log_path),
                "runtime_directory": place.runtime_directory,
                "mode": place.mode,
                "by_user": place.by_user,
            },
            "data_fd": served.files.data_fd,
            "hash_fd": served.files.hash_fd,
            "facts": served.facts.to_json().decode(),
            "fuse_fd": served.fuse_fd,
            "init_request": served.handshake.request.hex(),
            "resend": served.handshake.resend,
            "shared_fd": served.shared.fd,
            "mount_id": kept.mount_id,
            "device": kept.device,
            "wanted": kept.wanted,
            "workers": [
                {
                    "child": _pack_child(member.child),
                    "slot": member.slot,
                    "clone_fd": member.clone_fd,
                    "reports_fd": member.reports.fileno(),
                }
                for member in kept.workers
            ],
            "supervisor": _pack_child(kept.supervisor),
            "resolver": _pack_child(kept.resolver),
            "link_fd": kept.link.fileno(),
            "notify_address": kept.notify_address,
            "reactions": asdict(kept.reactions),
        }
    ).encode()


def _unpack(state: Mapping[str, Any]) -> Kept:
    if state["version"] != STATE_VERSION:
        raise ValueError(f"version {state['version']}, expected {STATE_VERSION}")
    place = state["place"]
    names = {key: os.fsencode(place[key]) for key in ("image_path", "mountpoint", "log_path")}
    return Kept(
        place=Place(
            **names, runtime_directory=place["runtime_directory"], mode=place["mode"], by_user=place["by_user"]
        ),
        served=Served(
            files=ImageFiles(state["data_fd"], state["hash_fd"]),
            facts=ImageFacts.from_json(state["facts"].encode()),
            fuse_fd=state["fuse_fd"],
            handshake=Handshake(bytes.fromhex(state["init_request"]), resend=state["resend"]),
            shared=SharedState(state["shared_fd"]),
        ),
        mount_id=state["mount_id"],
        device=state["device"],
        wanted=state["wanted"],
        workers=[
            Worker(
                child=_unpack_child(member["child"], "worker"),
                slot=member["slot"],
                clone_fd=member["clone_fd"],
                reports=socket.socket(fileno=member["reports_fd"]),
            )
            for member in state["workers"]
        ],
        supervisor=_unpack_child(state["supervisor"], "supervisor") if state["supervisor"] else None,
        resolver=_unpack_child(state["resolver"], "resolver") if state["resolver"] else None,
        link=socket.socket(fileno=state["link_fd"]),
        notify_address=state["notify_address"],
        reactions=Reactions(**state["reactions"]),
    )


def _pack_child(child: Child | None) -> list[int] | None:
    return None if child is None else [child.pid, child.failure_fd]


def _unpack_child(values: Sequence[int], name: str) -> Child:
    pid, failure_fd = values
    return Child(pid, name, failure_fd)
