# SPDX-License-Identifier: Apache-2.0
"""Starting a mount from the command line: checks first, then a keeper in the foreground or behind.

In the background the caller returns when the mount answers, or with the reason why it does not.
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass

from rofs.errors import HostError, RofsError, from_os_error, printable
from rofs.fuse import control, keeper, kernel, mountinfo, places
from rofs.fuse.keeper import MountRequest
from rofs.fuse.process import close_all_but
from rofs.fuse.verifier import pack_error, unpack_error
from rofs.image.open import ImageFacts, open_file
from rofs.trust.verify import TrustPolicy


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What `rofs mount` was told.

    Attributes:
        policy: Which image is trusted.
        log_path: None for the default.
        suid: Whether setuid bits and file capabilities count.
        dev: Whether device nodes can be opened.
        exec: Whether programs can be run.
    """

    policy: TrustPolicy
    log_path: str | None = None
    suid: bool = False
    dev: bool = False
    exec: bool = True

    @property
    def mount_flags(self) -> int:
        """As mount(2) takes them."""
        return (
            (0 if self.suid else kernel.MS_NOSUID)
            | (0 if self.dev else kernel.MS_NODEV)
            | (0 if self.exec else kernel.MS_NOEXEC)
        )


def mount_in_foreground(
    image: str | bytes, directory: str | bytes, options: MountOptions, announce: Callable[[ImageFacts], None]
) -> None:
    """Mount and serve until unmounted or told to stop.

    Raises:
        RofsError: It could not be mounted, or ended otherwise than by an unmount.
    """
    request = _request(image, directory, options)
    try:
        keeper.run(request, announce)
    finally:
        request.files.close()


def mount_in_background(image: str | bytes, directory: str | bytes, options: MountOptions) -> ImageFacts:
    """Mount, and return when the mount answers; its processes go on.

    Raises:
        RofsError: It could not be mounted; nothing is left.
    """
    request = _request(image, directory, options)
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _be_keeper(request, writing)
    os.close(writing)
    request.files.close()
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    if not answer.startswith(b"F"):
        with contextlib.suppress(ChildProcessError):  # who started us may have had SIGCHLD ignored
            os.waitpid(pid, 0)
        raise unpack_error(answer[1:]) if answer else HostError("the keeper process died during the start")
    facts = ImageFacts.from_json(answer[1:])
    try:
        os.statvfs(request.mountpoint)
    except OSError as error:
        raise from_os_error(error, "mounted, but it does not answer:", request.mountpoint) from error
    return facts


def _be_keeper(request: MountRequest, pipe: int) -> None:
    """Serve in the child process, which never returns."""

    def announce(facts: ImageFacts) -> None:
        os.write(pipe, b"F" + facts.to_json())
        os.close(pipe)

    status = 1
    try:
        os.setsid()
        os.chdir("/")
        _lift_limits()
        _let_go_of_the_caller({*request.files.fds, pipe})
        keeper.run(request, announce)
        status = 0
    except RofsError as error:
        with contextlib.suppress(OSError):
            os.write(pipe, b"E" + pack_error(error))
    except BaseException as error:  # noqa: BLE001 - the parent waits for an answer
        with contextlib.suppress(OSError):
            os.write(pipe, b"E" + pack_error(HostError(f"internal error: {type(error).__name__}: {error}")))
    finally:
        os._exit(status)


def _lift_limits() -> None:
    """Limits that the caller's shell set for a command must not end a mount that lives for months."""
    for limit in (resource.RLIMIT_CPU, resource.RLIMIT_NOFILE):
        _soft, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (hard, hard))


def _let_go_of_the_caller(keep: set[int]) -> None:
    """Before any child is forked: who waits for the end of our output, or of any pipe, must see it now."""
    close_all_but({0, 1, 2, *keep})
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nothing, fd)
    os.close(nothing)


def _request(image: str | bytes, directory: str | bytes, options: MountOptions) -> MountRequest:
    mountpoint = _mountpoint(directory)
    if os.geteuid() != 0:
        raise HostError("mounting needs root (CAP_SYS_ADMIN); run rofs mount as root")
    os.close(kernel.open_device())  # what is missing is said before anything was started
    files = open_file(image)
    return MountRequest(
        files=files,
        image_path=os.path.abspath(os.fsencode(image)),
        mountpoint=mountpoint,
        policy=options.policy,
        mount_flags=options.mount_flags,
        log_path=os.path.abspath(
            os.fsencode(places.default_log(mountpoint) if options.log_path is None else options.log_path)
        ),
        runtime_directory=places.mount_directory(mountpoint),
    )


def _mountpoint(directory: str | bytes) -> bytes:
    """The mount point, absolute and without symbolic links.

    Raises:
        HostError: It is missing, not a directory, or has a rofs mount already.
    """
    path = os.path.realpath(os.fsencode(directory))
    shown = printable(directory)
    _check_free(path, shown)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise HostError(f"mount point {shown} does not exist; create it with mkdir") from None
    except OSError as error:
        raise from_os_error(error, "cannot use mount point", directory) from error
    if not stat.S_ISDIR(mode):
        raise HostError(f"mount point {shown} is not a directory")
    return path


def _check_free(path: bytes, shown: str) -> None:
    """Refuse a second rofs mount on top of one. stat(2) does not show it: attributes are cached for ever."""
    mount = mountinfo.mount_on(path)
    if mount is None or mount.fstype != kernel.FILESYSTEM_TYPE.encode():
        return
    if control.is_alive(path):
        raise HostError(f"mount point {shown} is busy: a rofs mount is there; end it with rofs umount")
    raise HostError(f"mount point {shown} is busy: the rofs mount there has lost its process; end it with umount -l")
