"""Joins the trace and the poll: what is remembered, and the trace's rules of identity. No I/O, no clock.

What is remembered is ends, not connections: a connection inside this machine has two, and they come and go
one by one. Source, destination and direction are decided once, when a connection is reported: a service that
stops listening must not turn its sessions round.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from tcpwatchd.comparison import Comparison, Owed, is_local
from tcpwatchd.connection import NOTHING_KNOWN, Connection, End, Known, TcpState, make

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tcpwatchd.connection import Direction, Endpoint, Snapshot, Transition

ESTABLISHED, SYN_SENT, SYN_RECV, CLOSE = map(
    int, (TcpState.ESTABLISHED, TcpState.SYN_SENT, TcpState.SYN_RECV, TcpState.CLOSE)
)
HOLD = 50_000_000
"""How long a connection opened here waits for its other end before it says egress, in nanoseconds."""
REMEMBERED = 64_000_000_000
"""How long an accepting end may come after its opening one: the retries of a handshake end before."""
MOST_HEARD = 100_000
"""Ends told by the trace between two snapshots: beyond it the next is due, so that memory is bounded."""


class Tracker:
    """Joins both sources: tell it the transitions of a drain, then the snapshot that was read before it."""

    def __init__(self, known: Known = NOTHING_KNOWN) -> None:
        self._first = known.first
        self._heard = known.heard.copy()
        self._away = known.away.copy()
        self._listeners: Counter[Endpoint] = Counter(known.listeners)
        self._owed = Owed(known.owed.copy())
        self._opening = known.opening.copy()
        self._queue: deque[_Report] = deque()
        self._held: dict[End, _Report] = {}
        self.open = known.open
        """Sockets with an open connection in the last snapshot."""
        for connection, held in known.reports:
            self._enqueue(connection, held)

    @property
    def known(self) -> Known:
        """All that is remembered, for another tracker to go on from."""
        return Known(
            self._first,
            self.open,
            dict(self._listeners),
            self._heard.copy(),
            self._away.copy(),
            self._owed.ends,
            self._opening.copy(),
            [(report.connection, report.held) for report in self._queue],
        )

    @property
    def heard(self) -> list[End]:
        """Ends with a new connection whose own row is not known yet; the next snapshot is asked for them."""
        return list(self._heard)

    @property
    def full(self) -> bool:
        """Whether so much was heard since the last snapshot that the next should not wait."""
        return len(self._heard) >= MOST_HEARD

    def hear(self, transitions: Iterable[Transition], lossy: bool, is_shown: Callable[[End], bool]) -> None:
        """Take transitions in the order of time; `is_shown` tells whether the last snapshot had an end.

        What they report is taken with `release`. When records before them were lost, what is known of
        handshakes under way is not to be trusted: the address of a socket may be another's by now.
        """
        if lossy:
            self.forget_handshakes()
        opening = self._opening
        for when, skaddr, old, new, end, _ in transitions:
            if new == SYN_SENT:
                if not lossy:
                    opening[skaddr] = end.remote
            elif new == CLOSE:
                opening.pop(skaddr, None)
            elif new == ESTABLISHED:
                opened = opening.pop(skaddr, None) == end.remote or old == SYN_SENT
                self._establish(end, when, old == SYN_RECV, opened, is_shown)

    def forget_handshakes(self) -> None:
        """The addresses of sockets that were connecting may be others' by now."""
        self._opening.clear()

    def _establish(
        self, end: End, when: int, received: bool, opened: bool, is_shown: Callable[[End], bool]
    ) -> None:
        """`received`: it came from SYN_RECV."""
        flipped = end.flipped
        if received and end != flipped:
            owed = self._owed.settle(flipped)
            if owed or (not opened and self._is_second(end, flipped, is_shown)):
                self._heard[end] = when
                self._pair(flipped)
                return
        if end != flipped and self._is_known(flipped, is_shown):
            self._heard[flipped] = when
        self._heard[end] = when
        if opened:
            self._owed.add(end, when)
        internal = is_local(end)
        direction: Direction = "internal" if internal else "egress" if opened else "ingress"
        source, destination = end if opened else flipped
        fields = source, destination, direction, TcpState.ESTABLISHED, "trace", when
        self._enqueue(make(Connection, fields), held=opened and not internal)

    def _is_second(self, end: End, flipped: End, is_shown: Callable[[End], bool]) -> bool:
        """Whether an accepted end belongs to a connection whose other end is known by a poll, say."""
        unjudged = end in self._heard or (end in self._away and self._away[end] is None)
        return self._is_known(flipped, is_shown) and (unjudged or not self._is_known(end, is_shown))

    def _is_known(self, end: End, is_shown: Callable[[End], bool]) -> bool:
        return end in self._heard or end in self._away or is_shown(end)

    def _enqueue(self, connection: Connection, held: bool) -> None:
        report = _Report(connection, held)
        if held:
            self._held[End(connection.source, connection.destination)] = report
        self._queue.append(report)

    def _pair(self, opened: End) -> None:
        """Both ends of a report that is still held are on this machine."""
        report = self._held.pop(opened, None)
        if report:
            report.held = False
            report.connection = report.connection._replace(direction="internal")

    def release(self, now: int) -> list[Connection]:
        """What can be reported, in the order of time: a report is held a moment for its other end."""
        released = []
        while self._queue and (not self._queue[0].held or self._queue[0].connection.time + HOLD <= now):
            report = self._queue.popleft()
            if report.held:
                connection = report.connection
                self._held.pop(End(connection.source, connection.destination), None)
            released.append(report.connection)
        return released

    @property
    def due(self) -> int | None:
        """When the first report that is held is released, nanoseconds of CLOCK_MONOTONIC."""
        return self._queue[0].connection.time + HOLD if self._queue else None

    def find_new(self, snapshot: Snapshot) -> list[Connection]:
        """The connections that this snapshot is the first to show, in reading order."""
        listeners = frozenset(self._listeners)
        self._count(snapshot)
        listeners |= frozenset(self._listeners)
        comparison = Comparison(snapshot, self._heard, self._away, self._owed, listeners)
        new = comparison.find_at_start() if self._first else comparison.find_new()
        self._first = False
        self._away, self._heard = comparison.find_away(), comparison.find_heard()
        self._owed.forget(snapshot.ended - REMEMBERED)
        return new

    def _count(self, snapshot: Snapshot) -> None:
        for rows, change in ((snapshot.gone, -1), (snapshot.fresh, 1)):
            for row in rows:
                if row.state == TcpState.LISTEN:
                    self._listeners[row.end.local] += change
                elif row.state != TcpState.TIME_WAIT:
                    self.open += change
        self._listeners = +self._listeners


class _Report:
    """A connection told by the trace, and whether it waits for its other end."""

    __slots__ = ("connection", "held")

    def __init__(self, connection: Connection, held: bool) -> None:
        self.connection = connection
        self.held = held
