"""The poll's rules of identity and direction: which rows of a snapshot are new connections. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import cached_property
from typing import TYPE_CHECKING

from tcpwatchd.connection import HALF_OPEN, Connection, End, Gone, Row, Socket, TcpState, list_listening

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tcpwatchd.connection import Detection, Direction, Endpoint, Snapshot

UNACCEPTED = frozenset({TcpState.ESTABLISHED, TcpState.CLOSE_WAIT})
"""States in which inode 0 means that the socket waits to be accepted; in the others it is an orphan."""

UNCOUNTED = HALF_OPEN | {TcpState.LISTEN}

SUCCESSORS = {
    TcpState.ESTABLISHED: frozenset(TcpState) - UNCOUNTED,
    TcpState.FIN_WAIT1: {TcpState.FIN_WAIT1, TcpState.FIN_WAIT2, TcpState.TIME_WAIT, TcpState.CLOSING},
    TcpState.FIN_WAIT2: {TcpState.FIN_WAIT2, TcpState.TIME_WAIT},
    TcpState.TIME_WAIT: {TcpState.TIME_WAIT},
    TcpState.CLOSE_WAIT: {TcpState.CLOSE_WAIT, TcpState.LAST_ACK},
    TcpState.LAST_ACK: {TcpState.LAST_ACK},
    TcpState.CLOSING: {TcpState.CLOSING, TcpState.TIME_WAIT},
}
"""The states in which a connection can be seen after each state."""

BEFORE_OTHERS_END = UNACCEPTED | {TcpState.FIN_WAIT1, TcpState.FIN_WAIT2}
"""States that an end has left before its other end enters TIME_WAIT: both have sent their FIN by then."""

EPHEMERAL = 32768
"""The lowest port that Linux gives to an end that opens, if ip_local_port_range is as it comes."""

REMEMBERED = 64_000_000_000
"""How long an end may come after its other end, in nanoseconds: the retries of a handshake end before."""
MOST_UNPAIRED = 100_000


def is_local(end: End, addresses: frozenset[bytes]) -> bool:
    """Whether an end alone shows that the connection stays inside this machine, which has these addresses."""
    local, remote = end
    address = remote[:-2]
    return local[:-2] == address or address in addresses or local.is_loopback


def can_be(before: Row, row: Row) -> bool:
    """Whether a row can be the same connection as an earlier row of the same end."""
    if row.state not in SUCCESSORS[before.state]:
        return False
    accepted_since = before.inode == 0 and before.state in UNACCEPTED
    orphaned = row.inode == 0 and row.state not in UNACCEPTED
    return before.inode == row.inode or accepted_since or orphaned


class Unpaired(dict[End, tuple[int, int]]):
    """Ends whose other end is not known of yet: how many times each, and until when it is waited for."""

    def add(self, end: End, when: int, wait: int = REMEMBERED) -> None:
        count, _ = self.pop(end, (0, 0))
        self[end] = count + 1, when + wait

    def settle(self, end: End, when: int) -> bool:
        """The other end came then: take one off. Whether there was any that waited so long."""
        count, until = self.get(end, (0, 0))
        if count > 1:
            self[end] = count - 1, until
        elif count:
            del self[end]
        return count > 0 and when <= until

    def is_told_since(self, end: End, when: int) -> bool:
        """Whether the end was told of then or later."""
        return end in self and self[end][1] >= when + REMEMBERED

    def forget(self, now: int) -> None:
        """Drop what is waited for no longer, and the oldest beyond what is bounded."""
        waiting = [(end, kept) for end, kept in self.items() if kept[1] >= now]
        self.clear()
        self.update(waiting[-MOST_UNPAIRED:])


class Comparison:
    """One snapshot against what was known before it. None stands for the unknown row of a known end."""

    def __init__(
        self,
        snapshot: Snapshot,
        unchanged: Iterable[Row],
        awaiting_row: dict[End, tuple[int, int]],
        absent: dict[End, Row | None],
        older_prints: frozenset[Row],
        unpaired: Unpaired,
        listeners: frozenset[Endpoint],
        addresses: frozenset[bytes],
    ) -> None:
        """`addresses` are this machine's own."""
        self._addresses = addresses
        self._snapshot = snapshot
        self._unpaired = unpaired
        self._awaiting_row = awaiting_row.copy()
        self._listeners = listeners
        self._ports = {listener[-2:] for listener in listeners}
        self._rows = [row for row in snapshot.fresh if is_counted(row)]
        self._gone = [row for row in snapshot.gone if is_counted(row) and row not in older_prints]
        self._older_prints = {*older_prints}.difference(snapshot.gone)
        self._shown = {row.end: row for row in (*unchanged, *self._rows)}
        # A row that went can be the past of one row; one that is still shown too, as the table is no instant.
        self._went: defaultdict[End, list[Row | None]] = defaultdict(list)
        self._stays = {row.end: row for row in unchanged}
        for row in self._gone:
            self._went[row.end].append(row)
        for end, last in absent.items():
            self._went[end].append(last)
        self._known = {*self._went, *self._stays, *self._awaiting_row}
        """Ends of which anything was known, or was found since."""
        self._rows_before = {end for end, rows in self._went.items() if None not in rows}.union(self._stays)
        """Ends of which an earlier row is known."""
        self._found: set[End] = set()
        """Ends of connections that this poll itself found, by their other end."""

    def find_new(self) -> list[Connection]:
        return self._report(self._rows, "poll")

    def find_at_start(self) -> list[Connection]:
        """What is open when the watch begins. TIME_WAIT is over: remembered only, and judged last."""
        rows = sorted(self._rows, key=lambda row: row.state == TcpState.TIME_WAIT)
        return [new for new in self._report(rows, "startup") if new.state != TcpState.TIME_WAIT]

    def _report(self, rows: Iterable[Row], detected_by: Detection) -> list[Connection]:
        ends = ((row, row.end.flipped) for row in rows)
        return [
            self._describe(row, flipped, detected_by) for row, flipped in ends if self._is_new(row, flipped)
        ]

    def _is_new(self, row: Row, flipped: End) -> bool:
        end = row.end
        was_known, flipped_known = end in self._known, flipped in self._known
        self._known.add(end)
        if not (was_known or flipped_known or flipped in self._unpaired):
            self._stays[end] = row
            return True
        reported = self._find_reported(end, flipped)
        if reported >= self._snapshot.started and self._may_precede(row, reported):
            self._awaiting_row[end] = reported, self._awaiting_row.get(end, (0, 1))[1]
            return False
        known = self._continues(row) or self._adopt(end)
        if not known and not was_known and end != flipped:
            # The second end, not known before, of a connection that is known.
            known = self._unpaired.settle(flipped, self._snapshot.started) or (
                flipped_known and not (row.state in BEFORE_OTHERS_END and self._is_over(flipped))
            )
        self._stays[end] = row
        if not known and end != flipped and flipped_known:
            self._expect(flipped)
        return not known

    def _find_reported(self, end: End, flipped: End) -> int:
        """When a connection was reported that the row of this end may be older than.

        The other end alone says nothing where there is an earlier row to compare with.
        """
        own, other = self._awaiting_row.get(end), self._awaiting_row.get(flipped)
        if own is None and end in self._rows_before:
            return 0
        return max(own[0] if own else 0, other[0] if other else 0)

    def _may_precede(self, row: Row, reported: int) -> bool:
        """Whether the row may be of the connection before the one reported then: it may be read earlier.

        It is not if this poll itself found the new one and the row is no continuation of the old one.
        """
        found = reported == self._snapshot.ended and row.end in self._found
        return not found or self._continues(row)

    def _continues(self, row: Row) -> bool:
        """Whether the row is a known connection of its end, further on."""
        went = self._went.get(row.end, [])
        pasts = [before for before in went if before is None or can_be(before, row)]
        if pasts:
            went.remove(min(pasts, key=lambda before: rank_past(before, row)))
            return True
        stays = self._stays.get(row.end)
        if stays is None or not can_be(stays, row):
            return False
        # Both stand in this snapshot: the kernel printed one socket twice. What it was is no past of others.
        if stays != row:
            self._older_prints.add(stays)
        return True

    def _is_over(self, end: End) -> bool:
        """Whether nothing but TIME_WAIT is known of an end."""
        stays = self._stays.get(end)
        rows = [*self._went.get(end, []), *([stays] if stays else [])]
        return end not in self._awaiting_row and {row and row.state for row in rows} == {TcpState.TIME_WAIT}

    def _adopt(self, end: End) -> bool:
        """Whether a reported connection of this end has no row yet: this is its row."""
        when, told = self._awaiting_row.pop(end, (0, -1))
        if told > 1:
            self._awaiting_row[end] = when, told - 1
        return told >= 0

    def _expect(self, end: End) -> None:
        """This is the other end of a connection that this poll found, whatever row it has now."""
        when, told = self._awaiting_row.get(end, (0, 0))
        self._awaiting_row[end] = self._snapshot.ended, told if when >= self._snapshot.started else 0
        self._found.add(end)

    def _describe(self, row: Row, flipped: End, detected_by: Detection) -> Connection:
        local, remote = row.end
        accepted = self._accepts(row)
        # No row shows which end opened; a program can also open connections from the port it listens at.
        guessed = not accepted or (row.inode != 0 and remote.port < min(EPHEMERAL, local.port))
        internal = is_local(row.end, self._addresses) or flipped in self._known or flipped in self._shown
        if internal:
            other = self._shown.get(flipped, Row(flipped, row.state, inode=-1))
            opened = self._accepts(other)
            guessed = accepted == opened and row.end != flipped
        if guessed and (internal or (detected_by == "startup" and not accepted)):
            accepted = self._guess_accepted(row.end, internal)
        source, destination = (remote, local) if accepted else (local, remote)
        direction: Direction = "internal" if internal else "ingress" if accepted else "egress"
        here = find_owner(row)
        there = find_owner(self._shown.get(flipped)) if internal else None
        opener, acceptor = (there, here) if accepted else (here, there)
        fields = source, destination, direction, row.state, detected_by, self._snapshot.ended, guessed
        return Connection(*fields, opener=opener, acceptor=acceptor)

    def _guess_accepted(self, end: End, internal: bool) -> bool:
        """Connections of a server share its port; where that shows nothing, a server's is the lower one.

        Those that are opened can share a port too, but go to ports of servers.
        """
        local, remote = (endpoint.port for endpoint in end)
        here, there = (max(1, self._connections[endpoint]) for endpoint in end)
        if internal:
            return local < remote if here == there else here > there
        return local < EPHEMERAL <= remote or (here > 1 and remote >= min(EPHEMERAL, local))

    @cached_property
    def _connections(self) -> Counter[Endpoint]:
        """How many connections have each local endpoint, of the rows that are known here."""
        return Counter(end.local for end in self._shown)

    def _accepts(self, row: Row) -> bool:
        """Whether the local end accepted: it listens, or the connection waits to be accepted."""
        if row.inode == 0 and row.state in UNACCEPTED:
            return True
        local = row.end.local
        if local[-2:] not in self._ports:
            return False
        return not self._listeners.isdisjoint(list_listening(local))

    def find_absent(self) -> dict[End, Row | None]:
        """Ends that this snapshot does not show, with their last row; a live row can be skipped once.

        An end that is only expected, as a poll found its other end, is not remembered: it will be the second
        end of that one.
        """
        absent: dict[End, Row | None] = {}
        for row in self._gone:
            last = absent.get(row.end)
            if row.end not in self._shown and (last is None or rank_last(last) < rank_last(row)):
                absent[row.end] = row
        for end, (reported, told) in self._awaiting_row.items():
            if reported < self._snapshot.started and end not in self._shown:
                absent.pop(end, None)
                if told:
                    absent[end] = None
        return absent

    def forget_closed(self, absent: dict[End, Row | None]) -> None:
        """No other end will come for an end that is in TIME_WAIT, or whose row is absent a second time."""
        closed = [row.end for row in self._rows if row.state == TcpState.TIME_WAIT]
        closed += [end for end, last in absent.items() if last and end not in self._shown]
        for end in closed:
            if not self._unpaired.is_told_since(end, self._snapshot.started):
                self._unpaired.pop(end, None)

    def list_gone(self, absent: dict[End, Row | None], since: tuple[int, int]) -> list[Gone]:
        """Ends whose socket is closed: in TIME_WAIT, or not shown for the second time.

        `absent` are those that were not shown in the snapshot before, and `since` is when that was read.
        """
        started, ended = self._snapshot.started, self._snapshot.ended
        over = [row for row in self._rows if row.state == TcpState.TIME_WAIT == self._shown[row.end].state]
        gone = [Gone(row.end, started, ended, True, True) for row in over]
        for end, last in absent.items():
            if end not in self._shown and not (last and last.state == TcpState.TIME_WAIT):
                gone.append(Gone(end, *since, False, last is not None))
        return gone

    @property
    def older_prints(self) -> frozenset[Row]:
        """Rows of this snapshot that are older prints of a socket that it shows again."""
        return frozenset(self._older_prints)

    def find_awaiting_row(self) -> dict[End, tuple[int, int]]:
        """Ends whose row this snapshot may have been too early to show."""
        started = self._snapshot.started
        return {end: reported for end, reported in self._awaiting_row.items() if reported[0] >= started}


def rank_past(before: Row | None, row: Row) -> tuple[bool, bool, int, int]:
    """Sorts rows that can be a row's past, likelier ones first: what went is in no order."""
    if before is None:
        return True, True, 0, 0
    return False, before.inode != row.inode, before.state, before.inode


def rank_last(row: Row) -> tuple[bool, int, int]:
    """Sorts rows of one end: one in TIME_WAIT was there before another."""
    return row.state != TcpState.TIME_WAIT, row.inode, row.state


def find_owner(row: Row | None) -> Socket | None:
    """All that a row tells of it is the user: of a socket that a process holds, and not where none does."""
    return Socket(row.user, 0, 0) if row and row.inode > 0 else None


def is_counted(row: Row) -> bool:
    """Whether the row is of a socket that reached ESTABLISHED."""
    return row.state not in UNCOUNTED and row.end.remote.port != 0
