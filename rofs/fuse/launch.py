# SPDX-License-Identifier: Apache-2.0
"""Starting a mount from the command line: checks first, then a keeper in the foreground or behind.

In the background the caller returns when the mount answers, or with the reason why it does not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import resource
import stat
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rofs.errors import HostError, RofsError, StateError, from_os_error, printable
from rofs.fuse import control, kernel, mountinfo, places, reaction, signals, usermount, verifier
from rofs.fuse.notify import Notifier, stored_fds
from rofs.fuse.process import close_all_but, fork
from rofs.fuse.request import MountRequest, Place, Reactions
from rofs.fuse.verifier import Verification, pack_error, unpack_error
from rofs.image.open import ImageFacts, open_file
from rofs.trust.verify import TrustPolicy

# Two at least, since one may sleep in the kernel until another one answers.
_FEWEST_WORKERS = 2
_USUAL_WORKERS = 4
_ANSWER_SECONDS = 5.0
_DYING_SECONDS = 2.0
_LOOK_AGAIN_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class MountOptions:
    """What `rofs mount` was told.

    Attributes:
        policy: Which image is trusted.
        log_path: None for the default.
        suid: Whether setuid bits and file capabilities count.
        dev: Whether device nodes can be opened.
        exec: Whether programs can be run.
        mode: `audit` to see attempts to write, `sealed` to have the kernel refuse them unseen.
        workers: How many processes answer requests; None for 2, or as many as there are CPUs up to 4.
        allow_other: Whether other users may use it; None for yes with root, and no for an ordinary user.
        resend: Whether a dead worker's requests are handed out again where the kernel can.
        reactions: What is done when something happens to it.
    """

    policy: TrustPolicy
    log_path: str | None = None
    suid: bool = False
    dev: bool = False
    exec: bool = True
    mode: str = "audit"
    workers: int | None = None
    allow_other: bool | None = None
    resend: bool = True
    reactions: Reactions = field(default_factory=Reactions)

    @property
    def mount_flags(self) -> int:
        """As mount(2) takes them."""
        return (
            (kernel.MS_RDONLY if self.mode == "sealed" else 0)
            | (0 if self.suid else kernel.MS_NOSUID)
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
    notifier = Notifier.from_environment()
    stored = stored_fds()
    if stored and _recover(stored, notifier, announce):
        return
    request = _request(image, directory, options)
    try:
        _keep(request, options.policy, announce, notifier)
    finally:
        request.files.close()


def _recover(stored: Sequence[tuple[str, int]], notifier: Notifier, announce: Callable[[ImageFacts], None]) -> bool:
    """Go on with the mount of a keeper of this unit that has died, until it ends; whether there was one."""
    from rofs.fuse import fdstore, start  # noqa: PLC0415 - heavy, and seldom of use

    kept = fdstore.recover(stored)
    if kept is None:
        for name in {name for name, _ in stored}:  # or a mount that nobody can go on with would never count as dead
            notifier.remove(name)
        notifier.barrier(_ANSWER_SECONDS)
        return False
    with signals.caught() as caught:
        start.recover(kept, notifier, caught, announce)
    return True


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
        _be_keeper(request, options.policy, writing)
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
        os.statvfs(request.place.mountpoint)
    except OSError as error:
        raise from_os_error(error, "mounted, but it does not answer:", request.place.mountpoint) from error
    return facts


def take_over(image: str | bytes, directory: str | bytes, policy: TrustPolicy, workers: int | None = None) -> None:
    """Put this program in the place of the one that keeps a mount; everything on it goes on.

    Args:
        image: What is mounted there; another one cannot take its place under a living mount.
        directory: The mount point.
        policy: Which image is trusted.
        workers: How many processes answer requests from now on; None for as many as before.

    Raises:
        StateError: There is no rofs mount there, or it is of another image.
        TrustError: The image is not trusted (any more); the mount goes on as it was.
        HostError: This program cannot take over; the mount goes on as it was.
    """
    mounted = control.status(directory)
    with open_file(image) as files, signals.caught() as caught:
        facts = verifier.verify(files, policy, caught)
    if facts.root_hash != mounted["root_hash"]:
        raise StateError(
            f"{printable(directory)} has the image with root hash {mounted['root_hash']}, {printable(image)} has "
            f"{facts.root_hash}; another image needs another mount"
        )
    from rofs.fuse import handover  # noqa: PLC0415 - heavy, and of no use before

    environment = {name: value for name, value in os.environ.items() if name.startswith("PYTHON")}
    control.take_over(directory, handover.command_of_this_program(), environment, workers)


def _keep(
    request: MountRequest, policy: TrustPolicy, announce: Callable[[ImageFacts], None], notifier: Notifier
) -> None:
    with signals.caught() as caught:
        verification = Verification(request.files, policy)
        # What the other processes need takes as long to import as the image to open: at the same time.
        from rofs.fuse import start  # noqa: PLC0415

        start.run(request, verification, caught, announce, notifier)


def _be_keeper(request: MountRequest, policy: TrustPolicy, pipe: int) -> None:
    """Serve in the child process, which never returns."""
    waiting = os.fdopen(pipe, "wb", buffering=0)  # closed by whoever answers

    def announce(facts: ImageFacts) -> None:
        with waiting:
            waiting.write(b"F" + facts.to_json())

    def fail(error: RofsError) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody waits any more
            waiting.write(b"E" + pack_error(error))

    status = 1
    try:
        # While we are in the group of whoever has started us; see `MountRequest`.
        directory_fd = os.open(request.place.mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        request = dataclasses.replace(request, mountpoint_fd=directory_fd)
        os.setsid()
        os.chdir("/")
        _lift_limits()
        _let_go_of_the_caller({*request.files.fds, pipe, directory_fd})
        _keep(request, policy, announce, Notifier(None))
        status = 0
    except RofsError as error:
        fail(error)
    except BaseException as error:  # noqa: BLE001 - the parent waits for an answer
        fail(HostError(f"internal error: {type(error).__name__}: {error}"))
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
    by_user = os.geteuid() != 0
    if by_user:
        _check_user_can(options)
    elif options.reactions.on_corruption == "restart":
        reaction.check()
    os.close(kernel.open_device())  # what is missing is said before anything was started
    files = open_file(image)
    log_path = places.default_log(mountpoint) if options.log_path is None else options.log_path
    place = Place(
        image_path=os.path.abspath(os.fsencode(image)),
        mountpoint=mountpoint,
        log_path=os.path.abspath(os.fsencode(log_path)),
        runtime_directory=places.mount_directory(mountpoint),
        mode=options.mode,
        by_user=by_user,
    )
    return MountRequest(
        files=files,
        place=place,
        mount_flags=options.mount_flags,
        workers=options.workers or max(_FEWEST_WORKERS, min(_USUAL_WORKERS, len(os.sched_getaffinity(0)))),
        allow_other=not by_user if options.allow_other is None else options.allow_other,
        resend=options.resend,
        reactions=options.reactions,
    )


def _check_user_can(options: MountOptions) -> None:
    """Say what fusermount3 would not do, rather than do something else."""
    if options.suid or options.dev:
        raise HostError("an ordinary user's mount has neither set-user-id bits nor devices: leave out -o suid,dev")
    if options.reactions.on_corruption == "restart":
        raise HostError("--on-corruption restart needs root, since it restarts the machine: use stop, or eio")


def _mountpoint(directory: str | bytes) -> bytes:
    """The mount point, absolute and without symbolic links.

    Raises:
        HostError: It is missing, not a directory, or has a rofs mount already.
    """
    path = mountinfo.resolve(directory)
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
    """Refuse a second rofs mount on top of one. stat(2) does not show it: attributes are cached for ever.

    One whose processes are all gone can only be in the way: it is taken out of sight.
    """
    while (mount := mountinfo.mount_on(path)) is not None and mount.fstype == kernel.FILESYSTEM_TYPE.encode():
        if control.is_alive(path):
            raise HostError(f"mount point {shown} is busy: a rofs mount is there; end it with rofs umount")
        if not _is_dead(path):
            raise HostError(f"mount point {shown} is busy: a rofs mount is there that does not tell its status")
        number = (usermount.unmount if os.geteuid() else kernel.unmount)(path, lazy=True)
        if number:
            raise HostError(
                f"mount point {shown} is busy: the rofs mount there has lost its processes and cannot be unmounted: "
                f"{os.strerror(number)}; end it with umount -l"
            )


def _is_dead(path: bytes) -> bool:
    """Whether nobody serves a mount any more; in a process of its own, since one that hangs would not answer."""

    def ask() -> None:
        try:
            os.statvfs(path)
        except OSError as error:
            if error.errno in {errno.ENOTCONN, errno.ECONNABORTED}:
                return
        raise StateError("somebody answers")

    deadline = time.monotonic() + _DYING_SECONDS
    while True:
        dead = fork(ask, name="asker", keep=(), unprivileged=False).end(_ANSWER_SECONDS) is None
        if dead or time.monotonic() > deadline:
            return dead
        time.sleep(_LOOK_AGAIN_SECONDS)  # its processes end when their keeper has
