# SPDX-License-Identifier: Apache-2.0
"""What /sbin/mount.fuse.rofs runs: `rofs mount` as mount(8) calls it, with mount(8)'s exit codes.

Source: mount(8), "External Helpers", "Filesystem-Independent Mount Options" and "Exit status". Every long option of
`rofs mount` is a mount option of the same name. Mounts nothing itself: the verb does, and a remount, which
is the kernel's alone, is handed to `mount -i`.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rofs.cli import main as program
from rofs.cli import mount as verb
from rofs.cli.options import Parser, UsageError, note
from rofs.errors import HostError

EXIT_USAGE = 1
EXIT_SYSTEM = 2
EXIT_INTERRUPTED = 8
EXIT_FAILED = 32

_FILESYSTEM_TYPE = "fuse.rofs"
_INTERRUPTED = 130  # as the program says it

# Honoured: what `rofs mount -o` takes.
_HONOURED = frozenset({"suid", "nosuid", "dev", "nodev", "exec", "noexec", "noresend"})
# What these stand for unless an option behind them says otherwise.
_IMPLIES = {
    "user": ("noexec", "nosuid", "nodev"),
    "users": ("noexec", "nosuid", "nodev"),
    "owner": ("nosuid", "nodev"),
    "group": ("nosuid", "nodev"),
}
# Dropped from a mount: about writing and times, which there are not. `ro` and `rw` too: the mode decides.
_OF_THE_KERNEL = frozenset(
    [
        *("ro", "rw", "async", "sync", "dirsync", "iversion", "noiversion", "mand", "nomand", "silent", "loud"),
        *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime"),
        *("lazytime", "nolazytime", "symfollow", "nosymfollow"),
    ]
)
# Dropped always: for mount(8) and systemd alone.
_DROPPED = frozenset(
    {"defaults", "auto", "noauto", "nofail", "fail", "_netdev", "nouser", "nousers", "noowner", "nogroup"}
)
_DROPPED_BEGINNINGS = ("x-", "X-", "comment=", "helper=", "uhelper=")
# How the kernel shows a FUSE mount in /proc/self/mountinfo, from where mount(8) takes options for a remount.
_SHOWN = frozenset({"user_id", "group_id", "default_permissions", "allow_other", "max_read", "blksize"})
_ACTIONS_ELSEWHERE = frozenset(
    [
        "bind",
        "rbind",
        "move",
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "unbindable",
        "runbindable",
    ]
)
_NO_MOUNT_OPTIONS = frozenset({"--help", "--debug", "--takeover", "--foreground"})


@dataclass(slots=True)
class _Options:
    """Mount options, sorted by who they are for.

    Attributes:
        kernel: For the kernel, in a remount.
        honoured: For `rofs mount -o`.
        own: Options of `rofs mount`, as words of its command line.
        remount: Whether it is one.
    """

    kernel: list[str] = field(default_factory=list)
    honoured: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    remount: bool = False


def main(words: Sequence[str] | None = None) -> int:
    """Run the helper.

    Args:
        words: `SPEC DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`; None takes the process's.

    Returns:
        An exit code of mount(8): 0, 1 for a wrong call or a lack of permissions, 2 for a system that lacks
        memory, space or descriptors, 8 when interrupted, 32 when it could not be mounted.
    """
    if words is None:
        program.prepare_process()
    words = list(sys.argv[1:] if words is None else words)
    code = program.guarded(lambda: _run(words), debug=False, code_of=_code_of)
    return EXIT_INTERRUPTED if code == _INTERRUPTED else code


def _code_of(error: Exception) -> int:
    if isinstance(error, UsageError) or (isinstance(error, HostError) and os.geteuid() != 0):
        return EXIT_USAGE
    return EXIT_SYSTEM if program.is_lack(error) or program.is_lack(error.__cause__) else EXIT_FAILED


def _run(words: list[str]) -> int:
    arguments = _parser().parse_args(words)
    if arguments.type not in {None, _FILESYSTEM_TYPE}:
        raise UsageError(f"-t {arguments.type}: expected {_FILESYSTEM_TYPE}")
    if arguments.namespace is not None:
        raise UsageError("-N is not supported: use nsenter --mount=NAMESPACE mount ...")
    options = _sort(split_options(arguments.options), sloppy=arguments.sloppy)
    command = _command(arguments, options)
    if arguments.verbose:
        note(" ".join(command))
    if options.remount:
        return 0 if arguments.fake else subprocess.run(command, check=False).returncode
    mount = Parser(prog="rofs mount")
    verb.add_parser(mount)
    parsed = mount.parse_args(command[2:], argparse.Namespace(verb="mount"))
    if not arguments.fake:
        verb.run(parsed)
    return 0


def _parser() -> Parser:
    parser = Parser(prog="mount.fuse.rofs", description="Called by mount(8) for the type fuse.rofs.")
    parser.add_argument("spec", metavar="SPEC", help="the image file")
    parser.add_argument("directory", metavar="DIR", help="the mount point")
    parser.add_argument("-s", dest="sloppy", action="store_true", help="tolerate mount options that are not known")
    parser.add_argument("-f", dest="fake", action="store_true", help="check the call, but mount nothing")
    parser.add_argument("-n", dest="no_mtab", action="store_true", help="ignored: there is no mtab to write")
    parser.add_argument("-v", dest="verbose", action="store_true", help="tell what is run")
    parser.add_argument("-N", dest="namespace", metavar="NAMESPACE", help="not supported")
    parser.add_argument("-o", dest="options", metavar="OPTIONS", action="append", default=[], help="mount options")
    parser.add_argument("-t", dest="type", metavar="TYPE", help=f"{_FILESYSTEM_TYPE}")
    return parser


def split_options(lists: Iterable[str]) -> list[str]:
    """Mount options one by one; in double quotes, as mount(8) takes them, a comma does not end one."""
    found = []
    for text in lists:
        for option in re.findall(r'(?:"[^"]*"|[^,"]|")+', text):
            name, equals, value = option.partition("=")
            if len(value) >= 2 and value[0] == value[-1] == '"':
                value = value[1:-1]
            found.append(name + equals + value)
    return found


def _sort(words: list[str], *, sloppy: bool) -> _Options:
    options, own = _Options(), _own_options()
    for word in words:
        name, equals, value = word.partition("=")
        if word == "remount":
            options.remount = True
        elif word in _HONOURED:
            options.honoured.append(word)
        elif word in _IMPLIES:
            options.honoured += _IMPLIES[word]
        elif word in _OF_THE_KERNEL:
            options.kernel.append(word)
        elif word in _ACTIONS_ELSEWHERE:
            raise UsageError(f"mount option {word}: mount(8) does that without a helper")
        elif name in own and own[name] == bool(equals):
            options.own.append(f"--{name}{equals}{value}")
        elif name in own:
            raise UsageError(f"mount option {name} {'needs a value' if own[name] else 'takes no value'}")
        elif not (sloppy or word in _DROPPED or name in _SHOWN or word.startswith(_DROPPED_BEGINNINGS)):
            raise UsageError(f"unknown mount option {word[:80]!r}; own ones of rofs are {', '.join(sorted(own))}")
    return options


def _own_options() -> dict[str, bool]:
    """The options of `rofs mount` that are mount options, and whether they take a value."""
    parser = Parser()
    verb.add_parser(parser)
    return {
        flag.removeprefix("--"): action.nargs != 0
        for action in parser._actions  # noqa: SLF001 - argparse has no other way to look at a parser
        for flag in action.option_strings
        if flag.startswith("--") and flag not in _NO_MOUNT_OPTIONS
    }


def _command(arguments: argparse.Namespace, options: _Options) -> list[str]:
    if not options.remount:
        honoured = ["-o", ",".join(options.honoured)] if options.honoured else []
        return ["rofs", "mount", *options.own, *honoured, "--", arguments.spec, arguments.directory]
    # Both are named, so that mount(8) looks nothing up and no option of ours reaches the kernel. What it then
    # leaves out is cleared: suid and dev only for those who have asked for them.
    flags = ["nosuid", "nodev", *(word for word in options.honoured if word != "noresend")]
    sealed = ["ro"] if "--mode=sealed" in options.own else []
    words = ",".join(["remount", *options.kernel, *sealed, *flags])
    return ["mount", "-i", "-t", _FILESYSTEM_TYPE, "-o", words, arguments.spec, arguments.directory]


if __name__ == "__main__":
    sys.exit(main())
