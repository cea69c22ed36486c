"""Makes one entry of many connections that differ only in their source ports. No I/O, no clock.

What is folded depends on the times of connections and their order alone, so the same connections, followed
again after a kill, are folded in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from tcpwatchd.connection import Closed, Connection, Folded, Owner

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_GROUPS = 20_000
"""Groups that are counted at once: memory is bounded. What is of no group is not folded."""


class Limit(NamedTuple):
    """How many of a kind are written one by one in a time."""

    entries: int
    nanoseconds: int


class GroupKnown(NamedTuple):
    """A `Group` that is kept."""

    began: int
    written: int
    item: Connection | Closed
    folded: int
    last: int


class Group:
    """Connections of a kind since the first of them."""

    __slots__ = "began", "folded", "item", "last", "written"

    def __init__(self, item: Connection | Closed) -> None:
        self.began = self.last = item.time
        """When the first of them opened, or closed, and the last: nanoseconds of CLOCK_BOOTTIME."""
        self.item = item
        """The first; as soon as some are folded, what those have in common."""
        self.written = 1
        """Those that were passed on one by one."""
        self.folded = 0
        """The others."""

    def add(self, item: Connection | Closed) -> None:
        self.item = merge(self.item, item) if self.folded else item
        self.last = max(self.last, item.time) if self.folded else item.time
        self.folded += 1

    def make_entries(self) -> list[Connection | Closed | Folded]:
        """One, if any were folded; a single one stays what it is."""
        if self.folded > 1:
            return [Folded(self.item, self.folded, self.last)]
        return [self.item] * self.folded


class Folding:
    """`limit` None: nothing is folded. `by_owner`: owners come from the kernel, and are told apart.

    Those that come from /proc may be others when the same connections are followed again: then what
    connections have in common is told.
    """

    def __init__(self, limit: Limit | None = None, by_owner: bool = False) -> None:
        self.limit = limit
        self._by_owner = by_owner
        self._groups: dict[Any, Group] = {}
        """In the order in which they began."""

    def follow(self, items: Iterable[Connection | Closed]) -> list[Connection | Closed | Folded]:
        """What is to be written now, in order."""
        if self.limit is None:
            return list(items)
        passed: list[Connection | Closed | Folded] = []
        for item in items:
            passed += self._add(item, self.limit)
        return passed

    def _add(self, item: Connection | Closed, limit: Limit) -> list[Connection | Closed | Folded]:
        key, ended = self._find_key(item), []
        group = self._groups.get(key)
        if group and item.time - group.began >= limit.nanoseconds:
            ended = self._groups.pop(key).make_entries()
            group = None
        if group is None:
            if len(self._groups) >= MOST_GROUPS:
                ended += self.settle(item.time)
            if len(self._groups) < MOST_GROUPS:
                self._groups[key] = Group(item)
            return [*ended, item]
        if group.written < limit.entries:
            group.written += 1
            return [item]
        group.add(item)
        return []

    def settle(self, until: int, everything: bool = False) -> list[Connection | Closed | Folded]:
        """Entries of groups whose time was over then: nanoseconds of CLOCK_BOOTTIME.

        The first that began is the first that is over; but for times that go back a little.
        """
        if self.limit is None:
            return []
        since, over = until - self.limit.nanoseconds, []
        for key, group in self._groups.items():
            if group.began > since and not everything:
                break
            over.append(key)
        return [entry for key in over for entry in self._groups.pop(key).make_entries()]

    def count_held(self) -> int:
        """Connections of which no entry was made yet."""
        return sum(group.folded for group in self._groups.values())

    @property
    def known(self) -> list[GroupKnown]:
        """All groups, for another process to go on from."""
        return [
            GroupKnown(one.began, one.written, one.item, one.folded, one.last)
            for one in self._groups.values()
        ]

    def restore(self, known: Iterable[GroupKnown]) -> None:
        for one in known:
            group = Group(one.item)
            group.began, group.written, group.item, group.folded, group.last = one
            key = self._find_key(one.item)
            while key in self._groups:  # it was told apart from another by what is not told apart here
                key = (key,)
            self._groups[key] = group

    def _find_key(self, item: Connection | Closed) -> Any:
        connection, end = (
            (item.connection, (item[2:4], item[-1])) if isinstance(item, Closed) else (item, None)
        )
        source, destination, direction, state, detected_by, _, guessed, priority, *_ = connection
        key = source[:-2], destination, direction, state, detected_by, guessed, priority, end
        if self._by_owner:
            return *key, find_identity(connection.owner), find_identity(connection.listener)
        return key


def find_identity(owner: Owner) -> tuple[Any, ...]:
    """Of an owner without its process."""
    user, _, unit, user_unit, container, *_, network = owner
    return user, unit, user_unit, container, network


def merge(first: Any, other: Any) -> Any:
    """The earlier one, with what both have."""
    if isinstance(first, Connection):
        time = min(first.time, other.time)
        if first.owner == other.owner and first.listener == other.listener:
            return first if time == first.time else first._replace(time=time)
        owner = merge_owners(first.owner, other.owner)
        return first._replace(time=time, owner=owner, listener=merge_owners(first.listener, other.listener))
    return first._replace(
        connection=merge(first.connection, other.connection),
        time=min(first.time, other.time),
        source_bytes=sum_known(first.source_bytes, other.source_bytes),
        destination_bytes=sum_known(first.destination_bytes, other.destination_bytes),
    )


def merge_owners(first: Owner, other: Owner) -> Owner:
    return first if first == other else Owner._make(a if a == b else None for a, b in zip(first, other))


def sum_known(first: int | None, other: int | None) -> int | None:
    return None if first is None or other is None else first + other
