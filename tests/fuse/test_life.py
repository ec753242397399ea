# SPDX-License-Identifier: Apache-2.0
"""The table of a mount's life: everything in it is of use, nothing outside of it happens."""

from __future__ import annotations

import itertools

import pytest

from rofs.errors import StateError
from rofs.fuse.life import TRANSITIONS, Event, Life, State, diagram


def in_state(state: State) -> Life:
    life = Life()
    life.state = state
    return life


def reachable() -> set[State]:
    found = {Life().state}
    while more := {after for (before, _), after in TRANSITIONS.items() if before in found} - found:
        found |= more
    return found


def test_every_state_can_be_reached_and_every_event_can_happen() -> None:
    assert reachable() == set(State)
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_every_life_ends() -> None:
    ending = {State.ENDED}
    while more := {before for (before, _), after in TRANSITIONS.items() if after in ending} - ending:
        ending |= more
    assert ending == set(State)
    assert State.ENDED not in {before for before, _ in TRANSITIONS}


@pytest.mark.parametrize(("state", "event"), list(itertools.product(State, Event)))
def test_only_what_the_table_knows_changes_anything(state: State, event: Event) -> None:
    life = in_state(state)
    if (state, event) in TRANSITIONS:
        assert life.happen(event) is TRANSITIONS[state, event]
        assert life.state is TRANSITIONS[state, event]
    else:
        with pytest.raises(StateError, match=f"{state.value}.*{event.value}"):
            life.happen(event)
        assert life.state is state


def test_diagram_shows_the_whole_table() -> None:
    lines = diagram().splitlines()
    assert lines[0] == "stateDiagram-v2"
    for (before, event), after in TRANSITIONS.items():
        assert f"    {before.value} --> {after.value}: {event.value}" in lines
    assert len(lines) == len(TRANSITIONS) + 3
