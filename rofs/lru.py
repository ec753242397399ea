# SPDX-License-Identifier: Apache-2.0
"""A cache bounded in bytes: the least recently used entry goes first.

What an entry costs is the caller's to say. Knows nothing of what it keeps; not for several threads.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Value = TypeVar("_Value")


class ByteLru(Generic[_Key, _Value]):
    """The most recently used entries, up to a number of bytes.

    An entry that costs more than the limit is not kept, and drives out no other.

    Args:
        limit_bytes: The most to keep, by the costs given to `put`.

    Attributes:
        used_bytes: What the entries kept now cost.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[_Key, tuple[_Value, int]] = OrderedDict()
        self.used_bytes = 0

    def get(self, key: _Key) -> _Value | None:
        """The value, which is then the most recently used; None when it is not here."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: _Key, value: _Value, cost_bytes: int) -> None:
        """Keep a value, in place of what the key had.

        Args:
            key: What `get` will be asked for.
            value: Anything but None.
            cost_bytes: What keeping it costs, 0 or more.
        """
        old = self._entries.pop(key, None)
        if old is not None:
            self.used_bytes -= old[1]
        if cost_bytes > self._limit_bytes:
            return
        self._entries[key] = value, cost_bytes
        self.used_bytes += cost_bytes
        while self.used_bytes > self._limit_bytes:
            _, (_, dropped_bytes) = self._entries.popitem(last=False)
            self.used_bytes -= dropped_bytes
