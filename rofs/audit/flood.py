# SPDX-License-Identifier: Apache-2.0
"""Floods of the same thing, collapsed: the first is recorded at once, repeats are counted and recorded later.

Three bounds, each of its own use. `Collapser`: a program that does the same again and again makes one
record, then one with a count each time a window closes; windows grow. `TokenBucket`: how many bytes may be
written per second. `Excess`: what goes beyond, counted under a few coarse keys. Every one of these keeps
what it counts until it has handed it out, so nothing is lost; memory is bounded. Pure: the clock is an
argument, and what is counted is opaque. It writes nothing and looks at no process.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

_Sample = TypeVar("_Sample")
_Key = TypeVar("_Key", bound=Hashable)

_SECOND_NS: Final = 1_000_000_000
FIRST_WINDOW_NS: Final = 1 * _SECOND_NS
LONGEST_WINDOW_NS: Final = 60 * _SECOND_NS
# Different things at a time. With a sample for each of their threads: a few MB.
MAX_ENTRIES: Final = 512
# A program that is started again and again (a shell loop around touch) does the same in a new process each
# time. So many are recorded each by itself, then they count as one.
MAX_THREADS: Final = 8
MAX_EXCESS_KEYS: Final = 64


@dataclass(frozen=True, slots=True)
class Repeats(Generic[_Sample]):
    """How often something was repeated during a window.

    Attributes:
        sample: What came with the one that was recorded at once.
        count: Repeats, without that one.
        first_ns: When the first repeat was, nanoseconds since the epoch.
        last_ns: When the last one was.
        several: Whether they were of other threads than the sample's, but of the same program.
    """

    sample: _Sample
    count: int
    first_ns: int
    last_ns: int
    several: bool = False


class _Tally:
    __slots__ = ("count", "first_ns", "last_ns")

    def __init__(self) -> None:
        self.count = 0
        self.first_ns = 0
        self.last_ns = 0

    def add(self, count: int, first_ns: int, last_ns: int) -> None:
        self.first_ns = min(self.first_ns, first_ns) if self.count else first_ns
        self.last_ns = max(self.last_ns, last_ns)
        self.count += count

    def taken(self, sample: _Sample, *, several: bool = False) -> Repeats[_Sample]:
        repeats = Repeats(sample, self.count, self.first_ns, self.last_ns, several)
        self.count = self.first_ns = self.last_ns = 0
        return repeats


class _Window:
    """An interval at whose end something is recorded; the longer it goes on, the longer the next."""

    def __init__(self, now_ns: int) -> None:
        self.length_ns = FIRST_WINDOW_NS
        self.ends_ns = now_ns + self.length_ns

    def renew(self, now_ns: int) -> None:
        self.length_ns = min(2 * self.length_ns, LONGEST_WINDOW_NS)
        self.ends_ns = now_ns + self.length_ns


class _Entry(Generic[_Sample]):
    """One thing that one program does."""

    def __init__(self, now_ns: int) -> None:
        self.window = _Window(now_ns)
        self.threads: dict[Hashable, tuple[_Sample, _Tally]] = {}
        self.others = _Tally()  # threads beyond `MAX_THREADS`

    def tally_of(self, thread: Hashable) -> _Tally | None:
        known = self.threads.get(thread)
        if known is not None:
            return known[1]
        return self.others if len(self.threads) >= MAX_THREADS else None

    def taken(self) -> list[Repeats[_Sample]]:
        repeats = [tally.taken(sample) for sample, tally in self.threads.values() if tally.count]
        if self.others.count:
            sample = next(iter(self.threads.values()))[0]
            repeats.append(self.others.taken(sample, several=True))
        return repeats


class Collapser(Generic[_Sample]):
    """Counts what is repeated.

    A repeat has the same `what` and `program`, and the same `thread` unless that program has done it in
    many threads already. Whoever asks makes sure that these mean what they say: that a thread id is not
    another thread's by now.

    Args:
        max_entries: Different things to keep in mind; what was seen longest ago is handed out first.
    """

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[Hashable, _Entry[_Sample]] = OrderedDict()
        self._evicted: list[Repeats[_Sample]] = []

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to hand out, now or later."""
        return not self._entries and not self._evicted

    def count(self, what: Hashable, program: Hashable, thread: Hashable, time_ns: int) -> bool:
        """Count it if it is a repeat.

        Args:
            what: What was done, to what.
            program: Which program did it, and who runs it.
            thread: Which thread of it.
            time_ns: When, nanoseconds since the epoch.

        Returns:
            False when it is new: it is to be recorded by itself, and told to `begin`.
        """
        key = what, program
        entry = self._entries.get(key)
        tally = entry.tally_of(thread) if entry is not None else None
        if tally is None:
            return False
        tally.add(1, time_ns, time_ns)
        self._entries.move_to_end(key)
        return True

    def begin(self, what: Hashable, program: Hashable, thread: Hashable, sample: _Sample, now_ns: int) -> None:
        """From now on this is not new.

        Args:
            what: As for `count`, which has just returned False.
            program: As for `count`.
            thread: As for `count`.
            sample: Comes back with its repeats.
            now_ns: Of a monotonic clock.
        """
        key = what, program
        entry = self._entries.setdefault(key, _Entry(now_ns))
        entry.threads[thread] = sample, _Tally()
        self._entries.move_to_end(key)
        while len(self._entries) > self._max_entries:
            _, oldest = self._entries.popitem(last=False)
            self._evicted += oldest.taken()

    def due(self, now_ns: int) -> list[Repeats[_Sample]]:
        """What is to be recorded now; what was not repeated during its window is forgotten.

        Args:
            now_ns: Of the same clock as for `begin`.
        """
        repeats, self._evicted = self._evicted, []
        for key, entry in list(self._entries.items()):
            if entry.window.ends_ns > now_ns:
                continue
            counted = entry.taken()
            repeats += counted
            if counted:
                entry.window.renew(now_ns)
            else:
                del self._entries[key]
        return repeats

    def rest(self) -> list[Repeats[_Sample]]:
        """All that is counted, whether it is due or not; after that everything is new."""
        repeats, self._evicted = self._evicted, []
        for entry in self._entries.values():
            repeats += entry.taken()
        self._entries.clear()
        return repeats


class TokenBucket:
    """How much may be written: so many bytes a second, and more for a moment after a quiet time.

    Args:
        rate_bytes: Per second.
        burst_bytes: At most at once.
    """

    def __init__(self, rate_bytes: int, burst_bytes: int) -> None:
        self._rate_bytes = rate_bytes
        self._burst_ns = burst_bytes * _SECOND_NS
        self._level_ns = self._burst_ns  # bytes times nanoseconds: whole numbers, so nothing is rounded away
        self._seen_ns: int | None = None

    def admit(self, cost_bytes: int, now_ns: int) -> bool:
        """Whether anything may be written now; what it costs may go below zero, and is waited for later.

        Args:
            cost_bytes: What it will take, as far as is known; `charge` corrects it.
            now_ns: Of a monotonic clock.
        """
        if self._seen_ns is not None:
            self._level_ns = min(self._burst_ns, self._level_ns + (now_ns - self._seen_ns) * self._rate_bytes)
        self._seen_ns = now_ns
        if self._level_ns <= 0:
            return False
        self.charge(cost_bytes)
        return True

    def charge(self, cost_bytes: int) -> None:
        """Take so many bytes, or give them back when negative."""
        self._level_ns = min(self._burst_ns, self._level_ns - cost_bytes * _SECOND_NS)


class Excess(Generic[_Key]):
    """Counts under coarse keys what is not recorded by itself.

    Args:
        fold: A coarser key, for when there are too many; it must give only a few.
        max_keys: How many are too many.
    """

    def __init__(self, fold: Callable[[_Key], _Key], max_keys: int = MAX_EXCESS_KEYS) -> None:
        self._fold = fold
        self._max_keys = max_keys
        self._tallies: dict[_Key, _Tally] = {}
        self._window: _Window | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to hand out, now or later."""
        return self._window is None

    def add(self, key: _Key, count: int, *, first_ns: int, last_ns: int, now_ns: int) -> None:
        """Count some.

        Args:
            key: What kind.
            count: How many.
            first_ns: When the first was, nanoseconds since the epoch.
            last_ns: When the last was.
            now_ns: Of a monotonic clock.
        """
        if self._window is None:
            self._window = _Window(now_ns)
        if key not in self._tallies and len(self._tallies) >= self._max_keys:
            key = self._fold(key)
        self._tallies.setdefault(key, _Tally()).add(count, first_ns, last_ns)

    def due(self, now_ns: int) -> list[Repeats[_Key]]:
        """What is to be recorded now: everything, each time the window closes."""
        if self._window is None or self._window.ends_ns > now_ns:
            return []
        repeats = self._taken()
        if repeats:
            self._window.renew(now_ns)
        else:
            self._window = None
        return repeats

    def rest(self) -> list[Repeats[_Key]]:
        """All that is counted, whether it is due or not."""
        self._window = None
        return self._taken()

    def _taken(self) -> list[Repeats[_Key]]:
        repeats = [tally.taken(key) for key, tally in self._tallies.items()]
        self._tallies.clear()
        return repeats
