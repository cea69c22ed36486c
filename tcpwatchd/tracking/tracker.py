"""Joins the trace and the poll: what is remembered, and the trace's rules of identity. No I/O, no clock.

The tracker remembers ends, not connections: a connection inside this machine has two, and they come and go
one by one. Source, destination and direction are decided once, when a connection is reported: a service that
stops listening must not turn its sessions round.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from tcpwatchd.connection import NOTHING_KNOWN, Connection, End, Known, TcpState, make
from tcpwatchd.tracking.comparison import Comparison, Unpaired, is_local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tcpwatchd.connection import Direction, Endpoint, Row, Snapshot, Transition

ESTABLISHED, SYN_SENT, SYN_RECV, CLOSE = map(
    int, (TcpState.ESTABLISHED, TcpState.SYN_SENT, TcpState.SYN_RECV, TcpState.CLOSE)
)
HOLD = 50_000_000
"""How long a connection opened here waits for its other end before it says egress, in nanoseconds."""
REMEMBERED = 64_000_000_000
"""How long an accepting end may come after its opening one: the retries of a handshake end before."""
MOST_AWAITING_ROW = 100_000
"""Ends reported by the trace between two snapshots before the next is overdue: memory is bounded."""


class Tracker:
    """Joins both sources: give it the transitions of a drain, then the snapshot that was read before it."""

    def __init__(self) -> None:
        self.restore(NOTHING_KNOWN)

    def restore(self, known: Known) -> None:
        """Go on from what another tracker knew."""
        self._first = known.first
        self._awaiting_row = known.awaiting_row.copy()
        self._absent = known.absent.copy()
        self._listeners: Counter[Endpoint] = Counter(known.listeners)
        self._unpaired = Unpaired(known.unpaired.copy())
        self._handshakes = known.handshakes.copy()
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
            first=self._first,
            open=self.open,
            listeners=dict(self._listeners),
            awaiting_row=self._awaiting_row.copy(),
            absent=self._absent.copy(),
            unpaired=self._unpaired.ends,
            handshakes=self._handshakes.copy(),
            reports=[(report.connection, report.held) for report in self._queue],
        )

    @property
    def awaiting_row(self) -> list[End]:
        """Ends that were reported and whose own row was not compared yet: the next snapshot shows them."""
        return list(self._awaiting_row)

    @property
    def full(self) -> bool:
        """Whether so much was reported since the last snapshot that the next should not wait."""
        return len(self._awaiting_row) >= MOST_AWAITING_ROW

    def follow(self, transitions: Iterable[Transition], lossy: bool, is_shown: Callable[[End], bool]) -> None:
        """Take transitions in the order of time; `is_shown` tells whether the last snapshot had an end.

        What they report is taken with `release`. When records before them were lost, what is known of
        handshakes under way is not to be trusted: the address of a socket may be another's by now.
        """
        if lossy:
            self.forget_handshakes()
        handshakes = self._handshakes
        for when, skaddr, old, new, end, _ in transitions:
            if new == SYN_SENT:
                if not lossy:
                    handshakes[skaddr] = end.remote
            elif new == CLOSE:
                handshakes.pop(skaddr, None)
            elif new == ESTABLISHED:
                opened = handshakes.pop(skaddr, None) == end.remote or old == SYN_SENT
                self._establish(end, when, old == SYN_RECV, opened, is_shown)

    def forget_handshakes(self) -> None:
        """The addresses of sockets that were connecting may be others' by now."""
        self._handshakes.clear()

    def _establish(
        self, end: End, when: int, received: bool, opened: bool, is_shown: Callable[[End], bool]
    ) -> None:
        """`received`: the socket came from SYN_RECV."""
        flipped = end.flipped
        if received and end != flipped:
            paired = self._unpaired.settle(flipped)
            # The other end may be known by a poll; this one must then be new, or its row not compared yet.
            if not paired and not opened and self._is_known(flipped, is_shown):
                row_unknown = end in self._awaiting_row or self._absent.get(end, end) is None
                paired = row_unknown or not self._is_known(end, is_shown)
            if paired:
                self._awaiting_row[end] = when
                self._make_internal(flipped)
                return
        if end != flipped and self._is_known(flipped, is_shown):
            self._awaiting_row[flipped] = when
        self._awaiting_row[end] = when
        if opened:
            self._unpaired.add(end, when)
        internal = is_local(end)
        direction: Direction = "internal" if internal else "egress" if opened else "ingress"
        source, destination = end if opened else flipped
        fields = source, destination, direction, TcpState.ESTABLISHED, "trace", when
        self._enqueue(make(Connection, fields), held=opened and not internal)

    def _is_known(self, end: End, is_shown: Callable[[End], bool]) -> bool:
        return end in self._awaiting_row or end in self._absent or is_shown(end)

    def _enqueue(self, connection: Connection, held: bool) -> None:
        report = _Report(connection, held)
        if held:
            self._held[End(connection.source, connection.destination)] = report
        self._queue.append(report)

    def _make_internal(self, opened: End) -> None:
        """A report that is held for its other end has it: both are on this machine."""
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
    def next_release(self) -> int | None:
        """When the first report that is held is released, nanoseconds of CLOCK_MONOTONIC."""
        return self._queue[0].connection.time + HOLD if self._queue else None

    def find_new(self, snapshot: Snapshot, unchanged: Iterable[Row] = ()) -> list[Connection]:
        """The connections that this snapshot is the first to show, in reading order.

        `unchanged` are rows that stayed as they were, at either end of a fresh row's connection or at an end
        that awaits its row.
        """
        listeners = frozenset(self._listeners)
        self._count(snapshot)
        listeners |= frozenset(self._listeners)
        comparison = Comparison(
            snapshot, unchanged, self._awaiting_row, self._absent, self._unpaired, listeners
        )
        new = comparison.find_at_start() if self._first else comparison.find_new()
        self._first = False
        self._absent, self._awaiting_row = comparison.find_absent(), comparison.find_awaiting_row()
        self._unpaired.forget(snapshot.ended - REMEMBERED)
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
