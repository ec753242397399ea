# SPDX-License-Identifier: Apache-2.0
"""The program `rofs`: finds the verb, runs it, and turns every error into one line and an exit code.

The only place that knows exit codes. Each verb is a module with `add_parser` and `run`, imported when
the command line names it: `rofs status` does not load what only `rofs build` needs.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import rofs
from rofs.cli.options import Parser, UsageError, add_debug_option
from rofs.cli.render import flush
from rofs.errors import ChainError, HostError, ImageError, ReadError, RofsError, TrustError, one_line, printable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_TRUSTED = 3
EXIT_CORRUPT = 4
EXIT_ENVIRONMENT = 5

# The first match counts.
_EXIT_CODES: tuple[tuple[type[RofsError], int], ...] = (
    (UsageError, EXIT_USAGE),
    (TrustError, EXIT_NOT_TRUSTED),
    (ReadError, EXIT_FAILED),
    (ImageError, EXIT_CORRUPT),
    (ChainError, EXIT_CORRUPT),
    (HostError, EXIT_ENVIRONMENT),
)


_LACKS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class _Verb:
    name: str
    summary: str


_VERBS = (
    _Verb("keygen", "make a signing key and its certificate"),
    _Verb("build", "build a signed image of a directory"),
    _Verb("sign", "sign an image, or add a signature made elsewhere"),
    _Verb("verify", "check an image: signature, then every block"),
    _Verb("inspect", "say what an image is and whether it would be accepted"),
    _Verb("ls", "list what is in an image"),
    _Verb("cat", "write the content of files in an image"),
    _Verb("extract", "unpack an image into a directory"),
    _Verb("diff", "compare two images, or an image and a directory"),
    _Verb("mount", "mount a verified image; refuse and record every change"),
    _Verb("umount", "unmount"),
    _Verb("status", "show mounts"),
    _Verb("audit", "show, verify, follow or report on an audit log"),
    _Verb("install-system", "install mount helper, units, man pages and completion"),
)
_EPILOG = """\
exit codes: 0 done, 1 failed, 2 usage, 3 not trusted, 4 corrupt, 5 the environment lacks something

example:
  rofs keygen keys
  rofs build tree -o tree.raw --key keys/rofs.key --cert keys/rofs.crt
  rofs mount tree.raw /mnt --trust keys/rofs.crt
"""


class _VerbModule(Protocol):
    def add_parser(self, parser: Parser) -> None: ...
    def run(self, arguments: object) -> int | None: ...


def main(words: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        words: The command line without the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    if words is None:
        prepare_process()
    words = list(sys.argv[1:] if words is None else words)
    return guarded(lambda: _run(words), debug="--debug" in words)


def guarded(action: Callable[[], int], *, debug: bool, code_of: Callable[[Exception], int] | None = None) -> int:
    """Run a program's action and turn whatever it raises into one line and an exit code.

    Args:
        action: Returns the exit code.
        debug: Whether a traceback is shown.
        code_of: The exit code of an error, where it is not that of `rofs`.
    """
    try:
        return action()
    except BrokenPipeError:  # the reader of our output has seen enough
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except _TerminatedError as error:
        return 128 + error.number
    except Exception as error:  # noqa: BLE001 - a bug of ours still gets one clear line
        if debug:
            traceback.print_exc()
        _complain(_told(error))
        return (code_of or _code_of)(error)


def _told(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, RofsError):
        return str(error)
    if isinstance(error, OSError):  # what no layer foresaw, such as a working directory that was deleted
        where = f"{printable(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{where}{error.strerror or error}"
    return f"internal error: {type(error).__name__}: {error}; please report it with the output of --debug"


def _code_of(error: Exception) -> int:
    if isinstance(error, RofsError):
        return exit_code_of(error)
    return EXIT_ENVIRONMENT if is_lack(error) else EXIT_FAILED


def is_lack(error: BaseException | None) -> bool:
    """Whether the system had none left of what every process needs: memory, descriptors, space."""
    return isinstance(error, OSError) and error.errno in _LACKS


class _TerminatedError(BaseException):
    """A signal to end came. Unwinding the stack removes what is half-written; being killed would not."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _terminate(number: int, _frame: object) -> None:
    raise _TerminatedError(number)


def prepare_process() -> None:
    """Make a usable process of whatever we were started as."""
    for fd in (0, 1, 2):  # a closed one would become the image's or a pipe's
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115 - as long as we live
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup(1) leaves it
            signal.signal(number, _terminate)


def exit_code_of(error: RofsError) -> int:
    """The exit code that says whose fault an error is."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), EXIT_FAILED)


def _run(words: list[str]) -> int:
    _check_caller(words)
    parser = build_parser(words)
    try:
        arguments = parser.parse_args(words)
    except SystemExit:  # --help or --version
        flush()
        raise
    if arguments.verb is None:
        raise UsageError("no verb given; see rofs --help")
    code = _module(arguments.verb).run(arguments)
    flush()
    return EXIT_DONE if code is None else code


def _check_caller(words: list[str]) -> None:
    """Tell the way when mount.fuse3(8) calls us as `rofs IMAGE DIR -o OPTIONS` for want of our own helper.

    Its call is not taken for a mount: it adds `suid` and `dev` by itself, as nobody has asked for.
    """
    is_its_call = len(words) == 4 and words[2] == "-o" and words[1].startswith("/")
    if is_its_call and words[0] not in {verb.name for verb in _VERBS}:
        raise UsageError(
            f"{words[0]!r} is no verb. For `mount -t fuse.rofs` and fstab, mount(8) needs the helper that "
            "`rofs install-system` installs; by hand it is `rofs mount IMAGE DIR`"
        )


def complete_parser() -> Parser:
    """The parser, complete for every verb, for documentation."""
    return build_parser([verb.name for verb in _VERBS])


def build_parser(words: Sequence[str]) -> Parser:
    """The parser of a command line: complete for the verb that it names, a summary of the others."""
    parser = Parser(
        prog="rofs",
        description="Signed read-only images: every block verified on every read, every refused write recorded.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rofs {rofs.__version__}")
    parser.add_argument("--debug", action="store_true", help="show a traceback with an error")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for verb in _VERBS:
        below = verbs.add_parser(verb.name, help=verb.summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if verb.name in words:
            module = _module(verb.name)
            below.description, below.epilog = _help_of(module, verb)
            module.add_parser(below)
            add_debug_option(below)
    return parser


def _help_of(module: object, verb: _Verb) -> tuple[str, str]:
    """Description and epilog of a verb: its module's `HELP`, cut before `example:`."""
    text = (getattr(module, "HELP", "") or verb.summary).strip()
    description, _, example = text.partition("\nexample:\n")
    return description.strip(), f"example:\n{example}" if example else ""


def _module(verb: str) -> _VerbModule:
    module: _VerbModule = importlib.import_module(f"rofs.cli.{verb.replace('-', '_')}")
    return module


def _complain(text: str) -> None:
    print(f"rofs: error: {one_line(text)}", file=sys.stderr)  # noqa: T201 - the command line talks


if __name__ == "__main__":
    sys.exit(main())
