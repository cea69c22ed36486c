"""Counts in bounded memory: how often each name came, and which values were the largest. No I/O."""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Hashable

IN, OUT, WITHIN, BYTES, RESETS = range(5)
"""Columns of a row: connections by direction, payload of those that closed, how many of them were reset."""
COLUMNS = 5
DIRECTIONS = {b"ingress": IN, b"egress": OUT, b"internal": WITHIN}


class Tally:
    """A row of counts for each key.

    With more than twice `most` keys, those with the fewest connections are forgotten: each of the others can
    have `most_missed` connections more than its row says, no more.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.rows: dict[Any, list[int]] = {}
        self.most_missed = 0

    def find_row(self, key: Hashable) -> list[int]:
        """To be counted in at once: the next call may forget it."""
        row = self.rows.get(key)
        if row is None:
            if len(self.rows) >= 2 * self._most:
                self._forget()
            row = self.rows[key] = [0] * COLUMNS
        return row

    def _forget(self) -> None:
        ranked = sorted(self.rows.items(), key=lambda item: count(item[1]), reverse=True)
        self.most_missed += count(ranked[self._most][1])
        self.rows = dict(ranked[: self._most])

    def list_top(self, number: int) -> list[tuple[Any, list[int]]]:
        """Those with the most connections, and then bytes; equal ones by name."""
        counted = (item for item in self.rows.items() if any(item[1]))
        return heapq.nsmallest(number, counted, key=lambda item: (-count(item[1]), -item[1][BYTES], item[0]))

    def list_reset(self, number: int) -> list[tuple[Any, list[int]]]:
        """Those of which the most were reset."""
        reset = (item for item in self.rows.items() if item[1][RESETS])
        return heapq.nsmallest(number, reset, key=lambda item: (-item[1][RESETS], item[0]))


def count(row: list[int]) -> int:
    """Its connections."""
    return row[IN] + row[OUT] + row[WITHIN]


class Recent:
    """The last keys that were added, so many at least and twice as many at most, and not removed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._young: set[int] = set()
        self._old: set[int] = set()
        self.has_forgotten = False

    def __contains__(self, key: int) -> bool:
        return key in self._young or key in self._old

    def add(self, key: int) -> None:
        if len(self._young) >= self._most:
            self.has_forgotten |= bool(self._old)
            self._young, self._old = set(), self._young
        self._young.add(key)

    def discard(self, key: int) -> None:
        self._young.discard(key)
        self._old.discard(key)


class Largest:
    """So many of the largest values, each with what it belongs to; of equal ones the first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[int, int, Any]] = []
        self._order = 0
        self.least = -1
        """What a value must exceed to be among them."""

    def add(self, value: int, item: Any) -> None:
        self._order -= 1
        entry = (value, self._order, item)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heappushpop(self._heap, entry)
        if len(self._heap) == self._most:
            self.least = self._heap[0][0]

    @property
    def items(self) -> list[tuple[int, Any]]:
        """The largest first."""
        return [(value, item) for value, _, item in sorted(self._heap, reverse=True)]
