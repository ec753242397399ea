# SPDX-License-Identifier: Apache-2.0
"""Where a keeper's successor begins: `python -m rofs.fuse.resume FD`, executed by the keeper itself.

With `--check VERSION [FD]` it only tells by its exit status whether it starts at all and can read the state of
a mount, of which it has copies. Not for people: `rofs mount --takeover` is.
"""

from __future__ import annotations

import sys

from rofs.errors import RofsError
from rofs.fuse import handover, start


def main(arguments: list[str]) -> int:
    """Run it.

    Returns:
        The exit status.
    """
    if arguments[0] == handover.CHECK:
        if arguments[1] != str(handover.STATE_VERSION):
            sys.stderr.write(
                f"the mount's state has version {arguments[1]}, this program knows {handover.STATE_VERSION}; "
                "unmount and mount again\n"
            )
            return 1
        try:
            if arguments[2:]:
                handover.load(int(arguments[2]))
        except RofsError as error:
            sys.stderr.write(f"{error}\n")
            return 1
        sys.stdout.write(f"{handover.KNOWN}\n")
        return 0
    try:
        start.resume(handover.load(int(arguments[0])))
    except RofsError as error:
        sys.stderr.write(f"rofs: error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
