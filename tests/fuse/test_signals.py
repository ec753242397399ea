# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal

import pytest

from rofs.errors import HostError, StateError
from rofs.fuse import signals


def test_a_readable_descriptor_is_named() -> None:
    reading, writing = os.pipe()
    with signals.caught() as caught, os.fdopen(reading, "rb"), os.fdopen(writing, "wb"):
        assert caught.wait([reading], 0) == set()
        os.write(writing, b"x")
        assert caught.wait([reading], 0) == {reading}
        assert not caught.stop


@pytest.mark.parametrize("number", signals.STOP_SIGNALS)
def test_a_stop_signal_ends_the_waiting(number: signal.Signals) -> None:
    reading, writing = os.pipe()
    with signals.caught() as caught, os.fdopen(reading, "rb"), os.fdopen(writing, "wb"):
        os.kill(os.getpid(), number)
        with pytest.raises(StateError, match="stopped by a signal"):
            caught.wait_for(reading, 60, "nobody")
        assert caught.stop


def test_the_death_of_a_child_wakes_but_does_not_stop() -> None:
    with signals.caught() as caught:
        pid = os.fork()
        if not pid:
            os._exit(0)
        assert caught.wait([], 60) == set()
        assert not caught.stop
        os.waitpid(pid, 0)


def test_who_does_not_answer_in_time_is_named() -> None:
    reading, writing = os.pipe()
    with (
        signals.caught() as caught,
        os.fdopen(reading, "rb"),
        os.fdopen(writing, "wb"),
        pytest.raises(HostError, match="the silent one did not answer within 0 s"),
    ):
        caught.wait_for(reading, 0, "the silent one")


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in (*signals.STOP_SIGNALS, signal.SIGCHLD)]
    with signals.caught():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (*signals.STOP_SIGNALS, signal.SIGCHLD)] == before
