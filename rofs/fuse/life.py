# SPDX-License-Identifier: Apache-2.0
"""The life of a mount as a table: which event leads from which state to which.

The keeper asks it before it acts. An event that the table does not know in a state is an error and
changes nothing. The diagram in docs/architecture.md is made from this table.
"""

from __future__ import annotations

from enum import Enum

from rofs.errors import StateError


class State(Enum):
    """Where a mount is in its life."""

    STARTING = "starting"  # verifying, mounting; nobody was told yet
    SERVING = "serving"  # answers requests, all processes are there
    DEGRADED = "degraded"  # answers requests; a process is gone and not replaced yet
    HANDING_OVER = "handing over"  # another version of the program takes the processes' places
    ENDED = "ended"  # unmounted, everything closed


class Event(Enum):
    """What can happen to a mount."""

    READY = "ready"  # the workers answer and the mount is recorded
    FAILED = "failed"  # a step of the start did not succeed
    DIED = "a process died"
    REPLACED = "all processes are there"
    TAKEN_OVER = "takeover"  # a new program is the keeper
    UNMOUNTED = "unmounted"  # by rofs umount, umount(8), a signal or an abort


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STARTING, Event.READY): State.SERVING,
    (State.STARTING, Event.FAILED): State.ENDED,
    (State.STARTING, Event.TAKEN_OVER): State.HANDING_OVER,
    (State.SERVING, Event.DIED): State.DEGRADED,
    (State.SERVING, Event.UNMOUNTED): State.ENDED,
    (State.DEGRADED, Event.DIED): State.DEGRADED,
    (State.DEGRADED, Event.REPLACED): State.SERVING,
    (State.DEGRADED, Event.UNMOUNTED): State.ENDED,
    (State.HANDING_OVER, Event.DIED): State.DEGRADED,
    (State.HANDING_OVER, Event.REPLACED): State.SERVING,
    (State.HANDING_OVER, Event.UNMOUNTED): State.ENDED,
}


class Life:
    """The state of one mount."""

    def __init__(self) -> None:
        self.state = State.STARTING

    def happen(self, event: Event) -> State:
        """Follow an event.

        Returns:
            The new state.

        Raises:
            StateError: The event cannot happen in this state, which stays.
        """
        following = TRANSITIONS.get((self.state, event))
        if following is None:
            raise StateError(f"a mount that is {self.state.value} cannot become: {event.value}")
        self.state = following
        return following


def diagram() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.STARTING.value}"]
    lines += [f"    {before.value} --> {after.value}: {event.value}" for (before, event), after in TRANSITIONS.items()]
    return "\n".join([*lines, f"    {State.ENDED.value} --> [*]", ""])
