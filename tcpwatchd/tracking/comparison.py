"""The poll's rules of identity and direction: which rows of a snapshot are new connections. Pure."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from tcpwatchd.connection import HALF_OPEN, IPV4_ANY, IPV6_ANY, Connection, Row, TcpState, make

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tcpwatchd.connection import Detection, Direction, End, Endpoint, Snapshot

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

MOST_OWED = 100_000


def is_local(end: End) -> bool:
    """Whether an end alone shows that the connection stays inside this machine."""
    local, remote = end
    return local[:-2] == remote[:-2] or local.is_loopback


def can_be(before: Row, row: Row) -> bool:
    """Whether a row can be the same connection as an earlier row of the same end."""
    if row.state not in SUCCESSORS[before.state]:
        return False
    accepted_since = before.inode == 0 and before.state in UNACCEPTED
    orphaned = row.inode == 0 and row.state not in UNACCEPTED
    return before.inode == row.inode or accepted_since or orphaned


class Unpaired:
    """Ends opened here whose accepting end is not known of yet, each with its count and the last time."""

    def __init__(self, ends: dict[End, tuple[int, int]]) -> None:
        self._ends = ends

    @property
    def ends(self) -> dict[End, tuple[int, int]]:
        return self._ends.copy()

    def add(self, end: End, when: int) -> None:
        count, _ = self._ends.pop(end, (0, 0))
        self._ends[end] = count + 1, when

    def has(self, end: End) -> bool:
        return end in self._ends

    def settle(self, end: End) -> bool:
        """An accepting end came: take one off. Whether there was any."""
        count, when = self._ends.get(end, (0, 0))
        if count > 1:
            self._ends[end] = count - 1, when
        elif count:
            del self._ends[end]
        return count > 0

    def forget(self, before: int) -> None:
        """Drop what is older, and the oldest beyond what is bounded. The order is that of time."""
        for end, (_, when) in list(self._ends.items()):
            if when >= before and len(self._ends) <= MOST_OWED:
                break
            del self._ends[end]


class Comparison:
    """One snapshot against what was known before it. None stands for the unknown row of a known end."""

    def __init__(
        self,
        snapshot: Snapshot,
        unchanged: Iterable[Row],
        awaiting_row: dict[End, int],
        absent: dict[End, Row | None],
        unpaired: Unpaired,
        listeners: frozenset[Endpoint],
    ) -> None:
        self._snapshot = snapshot
        self._unpaired = unpaired
        self._awaiting_row = awaiting_row.copy()
        self._listeners = listeners
        self._ports = {listener[-2:] for listener in listeners}
        self._rows = [row for row in snapshot.fresh if is_counted(row)]
        self._gone = [row for row in snapshot.gone if is_counted(row)]
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
        if not (was_known or flipped_known or self._unpaired.has(flipped)):
            self._stays[end] = row
            return True
        reported = max(self._awaiting_row.get(end, 0), self._awaiting_row.get(flipped, 0))
        if reported >= self._snapshot.started and self._may_precede(row, flipped, reported):
            self._awaiting_row[end] = reported
            return False
        known = self._awaiting_row.pop(end, None) is not None or self._continues(row)
        if not known and not was_known and end != flipped:
            # The second end, not known before, of a connection that is known.
            known = self._unpaired.settle(flipped) or flipped_known
        self._stays[end] = row
        if not known and end != flipped and flipped_known:
            self._awaiting_row[flipped] = self._snapshot.ended
            self._found.add(flipped)
        return not known

    def _may_precede(self, row: Row, flipped: End, reported: int) -> bool:
        """Whether the row may be of the connection before the one reported then: it may be read earlier.

        It is not if this poll itself found the new one and the row is no continuation of the old one.
        """
        found = reported == self._snapshot.ended and not self._found.isdisjoint((row.end, flipped))
        return not found or self._continues(row)

    def _continues(self, row: Row) -> bool:
        """Whether the row is a known connection of its end, further on."""
        went = self._went.get(row.end, [])
        for before in went:
            if before is None or can_be(before, row):
                went.remove(before)
                return True
        stays = self._stays.get(row.end)
        return stays is not None and can_be(stays, row)

    def _describe(self, row: Row, flipped: End, detected_by: Detection) -> Connection:
        local, remote = row.end
        accepted = self._accepts(row)
        internal = is_local(row.end) or flipped in self._known or flipped in self._shown
        if internal:
            other = self._shown.get(flipped, Row(flipped, row.state, inode=-1))
            opened = self._accepts(other)
            if accepted == opened:
                accepted = local.port < remote.port
        source, destination = (remote, local) if accepted else (local, remote)
        direction: Direction = "internal" if internal else "ingress" if accepted else "egress"
        fields = source, destination, direction, row.state, detected_by, self._snapshot.ended
        return make(Connection, fields)

    def _accepts(self, row: Row) -> bool:
        """Whether the local end accepted: it listens, or the connection waits to be accepted."""
        if row.inode == 0 and row.state in UNACCEPTED:
            return True
        local = row.end.local
        port = local[-2:]
        if port not in self._ports:
            return False
        names = [local, IPV6_ANY + port]
        if local.is_ipv4:
            names.append(IPV4_ANY + port)
        return not self._listeners.isdisjoint(names)

    def find_absent(self) -> dict[End, Row | None]:
        """Ends that this snapshot does not show, with their last row; a live row can be skipped once."""
        absent: dict[End, Row | None] = {row.end: row for row in self._gone if row.end not in self._shown}
        for end, reported in self._awaiting_row.items():
            if reported < self._snapshot.started and end not in self._shown:
                absent[end] = None
        return absent

    def find_awaiting_row(self) -> dict[End, int]:
        """Ends whose row this snapshot may have been too early to show."""
        started = self._snapshot.started
        return {end: reported for end, reported in self._awaiting_row.items() if reported >= started}


def is_counted(row: Row) -> bool:
    """Whether the row is of a socket that reached ESTABLISHED."""
    return row.state not in UNCOUNTED and row.end.remote.port != 0
