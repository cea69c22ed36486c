"""A tracker fed with hand-written tables, poll by poll, through the real parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcpwatchd.connection import Connection, End, Socket, TcpState, Transition
from tcpwatchd.kernel.tables import Tables
from tcpwatchd.tracking.tracker import Tracker
from tests.model import pack
from tests.table import endpoint4, endpoint6, row, write_tables

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tcpwatchd.connection import Snapshot

MS = 1_000_000
LATE = 2**62


def split(endpoint: str) -> tuple[str, int]:
    address, _, port = endpoint.rpartition(":")
    return address.strip("[]"), int(port)


def take(tables: Tables) -> Snapshot:
    """Read a snapshot, and make it the last one."""
    snapshot = tables.read_snapshot()
    tables.keep()
    return snapshot


def find_new(tables: Tables, tracker: Tracker) -> list[Connection]:
    """What a poll finds without the trace."""
    snapshot = tables.read_snapshot()
    unchanged = tables.find_unchanged(tracker.awaiting_row)
    tables.keep()
    return tracker.find_new(snapshot, unchanged)


class Polls:
    """Each row is "LOCAL REMOTE STATE INODE" perhaps a timeout; bracketed ones stand in the table of IPv6."""

    def __init__(self, root: Path, started: bool = True, network: int = 0) -> None:
        """`started`: there was a first poll, of nothing. `network`: the namespace whose tables are polled."""
        self._root = root
        self._tables = Tables(str(root))
        self._tracker = Tracker(network)
        self.reported: list[Connection] = []
        """What was reported last."""
        self.guessed: set[bool] = set()
        """Whether the directions of what was reported last are guesses."""
        if started:
            self.see()

    def hear(self, *records: str, now: int | None = None, lossy: bool = False) -> list[str]:
        """What is reported after these records, each "MILLISECONDS SOCKET OLD NEW LOCAL REMOTE".

        A seventh word is the network namespace, which the socket's group and its user are called after too.
        `now`, in milliseconds, is when the drain ends; by default so late that nothing is held any more.
        """
        self._follow(records, lossy)
        self.reported = self._release(LATE if now is None else now * MS)
        return [describe(new) for new in self.reported]

    def _follow(self, records: Iterable[str], lossy: bool) -> None:
        transitions = []
        for text in records:
            when, sock, old, new, local, remote, *network = text.split()
            end = End(*(pack(split(endpoint)) for endpoint in (local, remote)))
            states = TcpState[old], TcpState[new]
            socket = make_socket(int(network[0])) if network else None
            transitions.append(Transition(int(when) * MS, int(sock), *states, end, 1, None, socket))
        self._tracker.follow(transitions, lossy, self._tables.holds)

    def _release(self, now: int) -> list[Connection]:
        return [item for item in self._tracker.release(now) if isinstance(item, Connection)]

    def own(self, *addresses: str) -> None:
        """Addresses of this machine."""
        self._tracker.addresses = frozenset(pack((address, 0)).address for address in addresses)

    @property
    def open(self) -> int:
        return self._tracker.open

    def see(self, *rows: str, at: int | None = None, told: Iterable[str] = ()) -> list[str]:
        """What is reported at a poll that reads these rows: "SOURCE -> DESTINATION direction".

        `at` is when it begins, in milliseconds; it takes one. `told` are records that its own drain takes
        out; what they report comes first.
        """
        tables: dict[bool, list[str]] = {False: [], True: []}
        for text in rows:
            local, remote, state, inode, *timeout = text.split()
            ipv6 = local.startswith("[")
            format_endpoint = endpoint6 if ipv6 else endpoint4
            here, there = format_endpoint(*split(local)), format_endpoint(*split(remote))
            number = len(tables[ipv6])
            tables[ipv6].append(row(number, here, there, TcpState[state], int(inode), 0, *map(int, timeout)))
        write_tables(self._root, tables[False], tables[True])
        snapshot = self._tables.read_snapshot()
        self._follow(told, lossy=False)
        unchanged = self._tables.find_unchanged(self._tracker.awaiting_row)
        self._tables.keep()
        if at is not None:
            snapshot = snapshot._replace(started=at * MS, ended=(at + 1) * MS)
        found = [*self._release(LATE), *self._tracker.find_new(snapshot, unchanged)]
        self.reported = found
        self.guessed = {new.guessed for new in found}
        return [describe(new) for new in found]


def make_socket(network: int) -> Socket:
    return Socket(network, network, network)


def describe(connection: Connection) -> str:
    return f"{connection.source} -> {connection.destination} {connection.direction}"
