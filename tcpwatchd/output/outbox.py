"""What is to be written, in order, until the sink takes it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from tcpwatchd.clock import read_offset
from tcpwatchd.connection import Closed, Connection, Folded, Written
from tcpwatchd.output.event import (
    RECORDS_LOST,
    Event,
    connection_closed,
    connection_opened,
    connections_closed,
    connections_opened,
)
from tcpwatchd.output.metrics import Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tcpwatchd.output.sinks import Sink

    Item = Connection | Closed | Folded | Event

BATCH = 500
"""Events that are written between two looks at anything else."""
MOST_WAITING = 100_000
"""What may wait before nothing more is taken out of the kernel."""
RETRY = 0.05
"""Seconds until a sink that was stuck is tried again."""
MICROSECOND = 1000
SMALLEST_STEP = 1_000_000
"""Nanoseconds by which the time of day is set rather than slewed."""


class Outbox:
    """Holds connections as they are, and makes their events when they are written."""

    def __init__(
        self,
        sink: Sink,
        read_offset: Callable[[], int] = read_offset,
        message_owner: bool = False,
        closing: bool = False,
    ) -> None:
        """`message_owner`: whether the message of a connection ends with its owner; `closing`: whether it is
        reported when one closes.
        """
        self._sink = sink
        self.message_owner = message_owner
        self._read_offset = read_offset
        self.offset = read_offset()
        """What the time of day is ahead of CLOCK_BOOTTIME, in nanoseconds."""
        self.fileno = sink.fileno
        self.waiting: deque[Item] = deque()
        self.written = dict.fromkeys(("trace", "poll", "startup"), 0)
        """Connections that were reported when they opened, by what detected them."""
        self.written_closed = 0
        """Those that were reported when they closed."""
        self.written_folded = self.written_folded_closed = 0
        """Those of both kinds that were reported many in one entry."""
        self.written_folded_startup = 0
        """Among them those that had been open before."""
        self.measured = Measured(closing)
        self._events = self._entries = self._lost = 0
        self.stuck = False
        """Whether the sink took nothing although something waits."""

    @property
    def full(self) -> bool:
        return len(self.waiting) >= MOST_WAITING

    def add(self, items: Iterable[Item]) -> None:
        self._follow_clock()
        self.waiting.extend(items)

    def _follow_clock(self) -> None:
        """What waits keeps the time of day at which it opened, though the clock was set since.

        Otherwise the offset stays what it was: a connection closes with the very time at which it opened.
        """
        offset = self._read_offset()
        step = self.offset - offset
        if abs(step) > SMALLEST_STEP:
            self.offset = offset
            self.waiting = deque(shift(item, step) for item in self.waiting)

    def restore(self, offset: int | None, waiting: list[Item]) -> None:
        """Go on with what waited, and with the offset of the process before if no clock was set since."""
        step = 0 if offset is None else offset - self.offset
        if abs(step) <= SMALLEST_STEP:
            self.offset += step
            self.waiting.extend(waiting)
        else:
            self.waiting.extend(shift(item, step) for item in waiting)

    @property
    def total(self) -> Written:
        return Written(self._events, self._entries, self._lost)

    def count_waiting(self) -> int:
        """Connections that wait."""
        return sum(item.number if isinstance(item, Folded) else 1 for item in list_entries(self.waiting))

    def drop(self, entries: int, told: int) -> int:
        """Forget so many entries of connections and what stands before the last of them: all were written.

        `told` is the number of lost records that were told; returns those of them that were told elsewhere.
        """
        while self.waiting and (entries or (told and isinstance(self.waiting[0], Event))):
            item = self.waiting.popleft()
            if isinstance(item, Event):
                told -= count_lost(item)
            else:
                entries -= 1
        return max(0, told)

    def send(self) -> None:
        """Write a batch, as far as the sink takes it. Raises OSError."""
        left = BATCH
        self._follow_clock()
        offset = self.offset
        self.stuck = bool(self.waiting) and not self._sink.reach()
        waiting, is_ready, write = self.waiting, self._sink.is_ready, self._sink.write
        while waiting and left and not self.stuck:
            item = waiting[0]
            if is_ready() and write(make_event(item, offset, self.message_owner)):
                waiting.popleft()
                left -= 1
                self._count(item)
            else:
                self.stuck = True

    def _count(self, item: Item) -> None:
        self._events += 1
        if isinstance(item, Event):
            self._lost += count_lost(item)
            return
        self._entries += 1
        if isinstance(item, Connection):
            self.written[item.detected_by] += 1
            self.measured.add_opened(item)
        elif isinstance(item, Closed):
            self.written_closed += 1
            self.measured.add_closed(item)
        elif isinstance(item.first, Connection):
            self.written_folded += item.number
            self.written_folded_startup += item.number * (item.first.detected_by == "startup")
        else:
            self.written_folded_closed += item.number


def split_written(waiting: list[Item], written: Written) -> tuple[list[Item], Written]:
    """What is left of what waited when all this was written, and what was written after it."""
    done, rest = waiting[: written.events], waiting[written.events :]
    lost = sum(count_lost(item) for item in done if isinstance(item, Event))
    after = Written(
        written.events - len(done), written.entries - len(list_entries(done)), written.lost - lost
    )
    return rest, after


def list_entries(items: Iterable[Item]) -> list[Connection | Closed | Folded]:
    """Those of connections."""
    return [item for item in items if not isinstance(item, Event)]


def shift(item: Any, step: int) -> Any:
    """In time, by nanoseconds."""
    if isinstance(item, Connection):
        return item._replace(time=item.time + step)
    if isinstance(item, Closed):
        opened = item.connection._replace(time=item.connection.time + step)
        return item._replace(connection=opened, time=item.time + step)
    if isinstance(item, Folded):
        return item._replace(first=shift(item.first, step), last=item.last + step)
    return item


def count_lost(event: Event) -> int:
    return (
        int(event.fields.get("TCPWATCHD_RECORDS_LOST", 0))
        if event.fields["MESSAGE_ID"] == RECORDS_LOST
        else 0
    )


def make_event(item: Item, offset: int, message_owner: bool) -> Event:
    """`offset` is what CLOCK_REALTIME is ahead of CLOCK_BOOTTIME, in nanoseconds."""
    if isinstance(item, Connection):
        return connection_opened(item, (item.time + offset) // MICROSECOND, message_owner)
    if isinstance(item, Closed):
        opened, ended = (moment + offset for moment in (item.connection.time, item.time))
        return connection_closed(item, opened // MICROSECOND, ended // MICROSECOND, message_owner)
    if isinstance(item, Folded):
        first = item.first
        opened = (first if isinstance(first, Connection) else first.connection).time + offset
        times = opened // MICROSECOND, (item.last + offset) // MICROSECOND
        if isinstance(first, Connection):
            return connections_opened(first, item.number, *times, message_owner)
        return connections_closed(first, item.number, *times, message_owner)
    return item
