"""Joins the trace and the poll: what is remembered, and the trace's rules of identity. No I/O, no clock.

The tracker remembers ends, not connections: a connection inside this machine has two, and they come and go
one by one. Source, destination and direction are decided once, when a connection is reported: a service that
stops listening must not turn its sessions round.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from tcpwatchd.connection import (
    CONNECTED,
    NOBODY,
    NOTHING_KNOWN,
    PLAIN,
    Caller,
    Connection,
    End,
    Known,
    Loss,
    TcpState,
    Transition,
    make,
)
from tcpwatchd.tracking.comparison import MOST_UNPAIRED, REMEMBERED, Comparison, Unpaired, is_local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tcpwatchd.connection import Direction, Endpoint, Gone, Row, Snapshot, Socket

    Holds = Callable[[End], int]
    """Tells the state of an end's row in the last snapshot, 0 if it has none."""

ESTABLISHED, SYN_SENT, SYN_RECV, TIME_WAIT, CLOSE = map(
    int, (TcpState.ESTABLISHED, TcpState.SYN_SENT, TcpState.SYN_RECV, TcpState.TIME_WAIT, TcpState.CLOSE)
)
ENDED_EARLY = frozenset({TcpState.FIN_WAIT1, TcpState.CLOSE_WAIT})
"""States that a Fast Open child can enter from SYN_RECV: it had its data before its handshake was over.

It can also be reset then, or close with data unread, and enters CLOSE. So does every handshake that is reset,
and nothing in a record tells whether there was data: such a child is not told, for no connection is invented.
"""
HOLD = 50_000_000
"""How long a connection opened here waits for its other end before it says egress, in nanoseconds."""
FOREVER = 2**63
"""Later than anything is held."""
NO_HANDSHAKE: tuple[Endpoint | None, Caller] = None, Caller(0, 0, None)
NOT_AWAITED = 0, 0
MOST_AWAITING_ROW = 100_000
"""Ends reported by the trace between two snapshots before the next is overdue: memory is bounded."""


class Tracker:
    """Joins both sources: give it the transitions of a drain, then the snapshot that was read before it.

    `network` is the inode of the network namespace whose tables are polled. `follows_closing`: records of
    ends that close are released too, and those of ends that come after their connection was.
    """

    def __init__(self, network: int = 0, follows_closing: bool = False) -> None:
        self._network = network
        self.follows_closing = follows_closing
        self.addresses: frozenset[bytes] = frozenset()
        """This machine's own, packed: what goes there stays inside it, though its other end may come late."""
        self.restore(NOTHING_KNOWN)

    def restore(self, known: Known) -> None:
        """Go on from what another tracker knew."""
        self._first = known.first
        self._awaiting_row = known.awaiting_row.copy()
        self._absent = known.absent.copy()
        self._listeners: Counter[Endpoint] = Counter(known.listeners)
        self._unpaired = Unpaired(known.unpaired)
        self._handshakes = known.handshakes.copy()
        self._queue: deque[_Report | Transition | Loss] = deque()
        self._held: dict[End, list[_Report]] = {}
        """By the end that was opened, the newest last: in two namespaces there can be two at once."""
        self._older_prints = known.older_prints
        self._polled_ahead = known.polled_ahead.copy()
        self._absent_since = known.absent_since
        self.open = known.open
        """Sockets with an open connection in the last snapshot."""
        self.gone: list[Gone] = []
        """Ends that the last snapshot showed to be closed."""
        for item, held in known.reports:
            if isinstance(item, Connection):
                self._enqueue(item, held)
            else:
                self._queue.append(item)

    @property
    def known(self) -> Known:
        """All that is remembered, for another tracker to go on from."""
        return Known(
            first=self._first,
            open=self.open,
            listeners=dict(self._listeners),
            awaiting_row=self._awaiting_row.copy(),
            absent=self._absent.copy(),
            unpaired=dict(self._unpaired),
            handshakes=self._handshakes.copy(),
            reports=[
                (item.connection, item.held) if isinstance(item, _Report) else (item, False)
                for item in self._queue
            ],
            older_prints=self._older_prints,
            polled_ahead=self._polled_ahead.copy(),
            absent_since=self._absent_since,
        )

    @property
    def listeners(self) -> Counter[Endpoint]:
        """How many rows of the last snapshot listen at each endpoint."""
        return self._listeners

    @property
    def awaiting_row(self) -> list[End]:
        """Ends that were reported and whose own row was not compared yet: the next snapshot shows them."""
        return list(self._awaiting_row)

    def shows(self, end: End, holds: Holds) -> bool:
        """Whether an open socket of this end is in the last snapshot, or was in the one before it."""
        last = self._absent.get(end)
        return holds(end) in CONNECTED or (last is not None and last.state != TIME_WAIT)

    @property
    def full(self) -> bool:
        """Whether so much was reported since the last snapshot that the next should not wait."""
        return len(self._awaiting_row) >= MOST_AWAITING_ROW

    def follow(
        self, transitions: Iterable[Transition], lossy: bool, holds: Holds, whole: bool = True, began: int = 0
    ) -> None:
        """Take transitions in the order of time; `holds` tells what the last snapshot shows of an end.

        What they report is taken with `release`. When records before them were lost, what is known of
        handshakes under way is not to be trusted: the address of a socket may be another's by now. `whole`:
        no older ones can follow. `began`: when they were begun to be read.
        """
        if lossy:
            self._note_loss(began)
        handshakes = self._handshakes
        for transition in transitions:
            when, skaddr, old, new, end, thread, name, socket, _ = transition
            if new == SYN_SENT:
                if not lossy:
                    handshakes[skaddr] = end.remote, make(Caller, (when, thread, name))
            elif new == CLOSE:
                handshakes.pop(skaddr, None)
                if self.follows_closing and old in CONNECTED:
                    self._queue.append(transition)
            elif new == ESTABLISHED or (old == SYN_RECV and new in ENDED_EARLY):
                to, caller = handshakes.pop(skaddr, NO_HANDSHAKE)
                if self._polled_ahead and self._was_polled(end, when, socket, holds):
                    self._tell_late(transition)
                    continue
                opened = old == SYN_SENT or to == end.remote
                self._establish(transition, caller if opened else None, holds)
        if whole:
            self._polled_ahead.clear()

    def _note_loss(self, time: int) -> None:
        self.forget_handshakes()
        if self.follows_closing:
            self._queue.append(Loss(time))

    def forget_handshakes(self) -> None:
        """The addresses of sockets that were connecting may be others' by now."""
        self._handshakes.clear()

    def _is_elsewhere(self, socket: Socket) -> bool:
        """Whether the socket is of another network namespace: none of its rows is in our tables."""
        return socket.network != self._network != 0

    def _was_polled(self, end: End, when: int, socket: Socket | None, holds: Holds) -> bool:
        """Whether a poll found the connection of this end, of which a record comes only now."""
        if socket and self._is_elsewhere(socket) and holds(end):
            return False  # what the poll found is the same end of our own network
        return self._polled_ahead.pop(end, 0) >= when

    def _establish(self, transition: Transition, caller: Caller | None, holds: Holds) -> None:
        """`caller`: who sent the SYN of an end opened here."""
        when, _, old, state, end, _, _, socket, _ = transition
        local, remote = end
        flipped, received = make(End, (remote, local)), old == SYN_RECV
        opened, ended_early, awaiting = caller is not None, state != ESTABLISHED, self._awaiting_row
        elsewhere = socket is not None and self._is_elsewhere(socket)
        _, told = NOT_AWAITED if elsewhere else awaiting.get(end, NOT_AWAITED)
        other_known = False
        if local != remote:
            if received:
                # A Fast Open child that ends early can be told of before its opening end; a row of that one
                # is older then.
                second = self._unpaired.settle(flipped, when) or (
                    not (opened or ended_early) and self._is_expected(end, flipped, elsewhere, holds)
                )
            else:
                begun = caller.time if caller else 0
                second = flipped in self._unpaired and self._is_opener(flipped, when, begun)
            if second:
                if not elsewhere:
                    awaiting[end] = when, told or 1
                elif awaiting.get(end, (0, 1))[1] == 0:
                    del awaiting[end]  # a poll expected it, and it has no row here
                self._make_internal(flipped if received else end, transition, caller, received)
                return
            other_known = not elsewhere and self._is_known(flipped, holds)
            if other_known:
                _, other_told = awaiting.get(flipped, NOT_AWAITED)
                awaiting[flipped] = when, other_told or 1
        if not elsewhere:
            awaiting[end] = when, told + 1
        elif not (opened or ended_early) and self._may_be_ours(remote):
            # Its opening end is here, and was not told of: the row of that one is this connection's.
            _, other_told = awaiting.get(flipped, NOT_AWAITED)
            awaiting[flipped] = when, other_told
        self._report(transition, caller, other_known)

    def _report(self, transition: Transition, caller: Caller | None, other_known: bool) -> None:
        """Of a pair the end that was told of first."""
        when, skaddr, _, state, end, _, _, socket, _ = transition
        local, remote = end
        opened, ended_early = caller is not None, state != ESTABLISHED
        internal = is_local(end, self.addresses)
        if opened or ended_early:
            # What was accepted with these ports before came from elsewhere, and this is the other half of a
            # transparent proxy; or it has closed, and its successor comes at once.
            brief = opened and other_known and not internal
            self._unpaired.add(end, when, HOLD if brief else REMEMBERED)
            if len(self._unpaired) > 2 * MOST_UNPAIRED:
                self._unpaired.forget(when)
        direction: Direction = "internal" if internal else "egress" if opened else "ingress"
        source, destination = end if opened else (remote, local)
        opener, acceptor = (socket, None) if opened else (None, socket)
        if local == remote:
            acceptor = socket
        fields = source, destination, direction, state, "trace", when, False, PLAIN, opener, acceptor, caller
        # One that stays here has a second owner, if records tell of owners.
        held = (opened or ended_early) and local != remote and (not internal or socket is not None)
        sockets = (skaddr, 0) if opened else (0, skaddr)
        self._enqueue(make(Connection, (*fields, NOBODY, NOBODY, *sockets)), held)

    def _may_be_ours(self, endpoint: Endpoint) -> bool:
        """Whether what is connected with it from another network namespace can be connected with us."""
        return endpoint.address in self.addresses and not endpoint.is_loopback

    def _is_expected(self, end: End, flipped: End, elsewhere: bool, holds: Holds) -> bool:
        """Whether a poll knows the other end of an accepted one, which is then new, or expected by it."""
        if elsewhere:
            return self._may_be_ours(end.remote) and self._is_open(flipped, holds)
        if not self._is_open(flipped, holds):
            return False
        if end in self._awaiting_row:
            return self._awaiting_row[end][1] == 0
        return not self._is_known(end, holds)

    def _is_opener(self, flipped: End, when: int, begun: int) -> bool:
        """Whether a Fast Open child was told of before its opening end, but not before that one's SYN."""
        told_since = self._unpaired.is_told_since(flipped, begun or when - HOLD)
        return told_since and self._unpaired.settle(flipped, when)

    def _is_known(self, end: End, holds: Holds) -> bool:
        return end in self._awaiting_row or end in self._absent or bool(holds(end))

    def _is_open(self, end: End, holds: Holds) -> bool:
        """Whether the end is known, and not as one that has closed."""
        if end in self._awaiting_row:
            return True
        last = self._absent.get(end)
        state = last.state if last else ESTABLISHED if end in self._absent else holds(end)
        return state not in (0, TIME_WAIT)

    def _enqueue(self, connection: Connection, held: bool) -> None:
        report = _Report(connection, held)
        if held:
            end = End(connection.source, connection.destination)
            if end in self._held:
                self._held[end].append(report)
            else:
                self._held[end] = [report]
        self._queue.append(report)

    def _make_internal(
        self, opened: End, transition: Transition, caller: Caller | None, accepted: bool
    ) -> None:
        """A report that is held for its other end has it: both are on this machine."""
        socket, report = transition.socket, None
        reports = self._held.pop(opened, [])
        if reports:
            report = find_other(reports, opened, socket, accepted) if socket else reports[-1]
        if len(reports) > 1 or (reports and not report):
            self._held[opened] = [one for one in reports if one is not report]
        if report:
            report.held = False
            report.connection = complete(report.connection, transition, caller, accepted)
        else:
            self._tell_late(transition)

    def _tell_late(self, transition: Transition) -> None:
        """An end of a connection that was reported."""
        if self.follows_closing:
            self._queue.append(transition)

    def release(self, now: int, at_least: int = 0) -> list[Connection | Transition | Loss]:
        """What can be reported, in the order of time: a report is held a moment for its other end.

        `at_least` so many were released before.
        """
        released: list[Connection | Transition | Loss] = []
        while self._queue:
            item = self._queue[0]
            if isinstance(item, _Report):
                if item.held and item.connection.time + HOLD > now and len(released) >= at_least:
                    break
                if item.held:
                    self._release_held(item)
                released.append(item.connection)
            else:
                released.append(item)
            self._queue.popleft()
        return released

    def _release_held(self, report: _Report) -> None:
        end = End(report.connection.source, report.connection.destination)
        self._held[end].remove(report)
        if not self._held[end]:
            del self._held[end]

    @property
    def closing(self) -> set[End]:
        """Ends of which a record that they close waits to be released."""
        return {item.end for item in self._queue if isinstance(item, Transition) and item.new == CLOSE}

    @property
    def next_release(self) -> int | None:
        """When the first report that is held is released, nanoseconds of CLOCK_BOOTTIME."""
        if not self._queue:
            return None
        item = self._queue[0]
        return item.connection.time + HOLD if isinstance(item, _Report) else item.time

    def find_new(
        self, snapshot: Snapshot, unchanged: Iterable[Row] = (), records_may_follow: bool = False
    ) -> list[Connection]:
        """The connections that this snapshot is the first to show, in reading order.

        `unchanged` are rows that stayed as they were, at either end of a fresh row's connection, beside a row
        that went, or at an end that awaits its row. `records_may_follow`: the trace could not be read whole
        after the snapshot.
        """
        listeners = frozenset(self._listeners)
        self._count(snapshot)
        listeners |= frozenset(self._listeners)
        comparison = Comparison(
            snapshot,
            unchanged,
            self._awaiting_row,
            self._absent,
            self._older_prints,
            self._unpaired,
            listeners,
            self.addresses,
        )
        new = comparison.find_at_start() if self._first else comparison.find_new()
        self._first = False
        comparison.forget_closed(self._absent)
        if self.follows_closing:
            self.gone = comparison.list_gone(self._absent, self._absent_since)
            self._absent_since = snapshot.started, snapshot.ended
        self._absent, self._awaiting_row = comparison.find_absent(), comparison.find_awaiting_row()
        self._older_prints = comparison.older_prints
        self._unpaired.forget(snapshot.ended)
        if records_may_follow and len(self._polled_ahead) < MOST_AWAITING_ROW:
            for source, destination, *_ in new:
                self._polled_ahead[End(source, destination)] = snapshot.ended
                self._polled_ahead[End(destination, source)] = snapshot.ended
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


def find_other(reports: list[_Report], opened: End, socket: Socket, accepted: bool) -> _Report | None:
    """Of those that are held, the one that this end belongs to.

    That is one that lacks just this end; of these one of the same network namespace, if there is one, else
    the newest. Over loopback both ends are of one.
    """
    role, first = ("acceptor", "opener") if accepted else ("opener", "acceptor")
    lacking = [one for one in reports if getattr(one.connection, role) is None] or reports
    near = [one for one in lacking if is_of(getattr(one.connection, first), socket.network)]
    if not near and opened.local.is_loopback:
        return None
    return (near or lacking)[-1]


def complete(
    connection: Connection, transition: Transition, caller: Caller | None, accepted: bool
) -> Connection:
    """With its other end, which accepted it, or which opened it by this caller."""
    source, destination, _, *told, opener, acceptor, first, owner, listener, opening, accepting = connection
    if accepted:
        acceptor, accepting = transition.socket, transition.skaddr
    else:
        opener, first, opening = transition.socket, caller, transition.skaddr
    fields = source, destination, "internal", *told, opener, acceptor, first, owner, listener
    return make(Connection, (*fields, opening, accepting))


def is_of(socket: Socket | None, network: int) -> bool:
    return socket is not None and socket.network == network
