"""A model of what the kernel's TCP does to its tables, to drive random histories through the real parser.

A connection is two sockets; those of this machine stand in the tables. Steps change them one at a time, also
while a table is being walked; a step that is impossible does nothing. The oracle is kept apart: to which
connection each printed row belonged.
"""

from __future__ import annotations

import socket as packing
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.connection import CONNECTED, Closing, End, Endpoint, TcpState, Transition
from tcpwatchd.connection import Socket as KernelSocket
from tests.table import endpoint4, endpoint6, row, write_tables

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tcpwatchd.connection import Closed, Connection

Address = tuple[str, int]
TICK = 1_000_000
LATE = 10 * TICK
Step = tuple[str, int, int]

ESTABLISHED, CLOSE_WAIT, TIME_WAIT = TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, TcpState.TIME_WAIT
WAITING = (ESTABLISHED, CLOSE_WAIT)
AFTER_CLOSE = {ESTABLISHED: TcpState.FIN_WAIT1, CLOSE_WAIT: TcpState.LAST_ACK}
AFTER_FIN = {
    ESTABLISHED: CLOSE_WAIT,
    TcpState.FIN_WAIT1: TcpState.CLOSING,
    TcpState.FIN_WAIT2: TIME_WAIT,
}
AFTER_ACK = {TcpState.FIN_WAIT1: TcpState.FIN_WAIT2, TcpState.CLOSING: TIME_WAIT}


class Kind(NamedTuple):
    """Addresses, which ends are on this machine, and which of them stand in the table of IPv6."""

    client: str
    server: str
    client_here: bool
    server_here: bool
    client6: bool
    server6: bool
    direction: str
    client_elsewhere: bool = False
    server_elsewhere: bool = False
    """Whether an end that is not in our tables is in another network namespace of this machine."""


KINDS = (
    Kind("192.0.2.56", "10.0.0.5", False, True, False, False, "ingress"),
    Kind("10.0.0.5", "198.51.100.7", True, False, False, False, "egress"),
    Kind("127.0.0.1", "127.0.0.1", True, True, False, False, "internal"),
    Kind("10.0.0.5", "10.0.0.6", True, True, False, False, "internal"),
    Kind("192.0.2.57", "10.0.0.5", False, True, False, True, "ingress"),
    Kind("127.0.0.2", "127.0.0.1", True, True, False, True, "internal"),
    Kind("2001:db8::1", "2001:db8::5", False, True, True, True, "ingress"),
    Kind("::1", "::1", True, True, True, True, "internal"),
)
ELSEWHERE = (
    Kind("127.0.0.1", "127.0.0.1", False, False, False, False, "internal", True, True),
    Kind("10.0.0.5", "10.0.0.9", True, False, False, False, "internal", server_elsewhere=True),
    Kind("10.0.0.9", "10.0.0.6", False, True, False, False, "internal", client_elsewhere=True),
)
"""The first has the addresses of another kind in our own network; the trace tells of all."""
OWN, OTHER, REMOTE = 1, 2, 0
"""Network namespaces; a remote end has none."""
TWINS = KINDS[2], ELSEWHERE[0]
CLIENT_PORTS, SERVER_PORTS = (40000, 40001), (80, 50000)
PROXIED = Kind("192.0.2.60", "198.51.100.9", False, True, False, False, "ingress")
"""What a transparent proxy accepts for another machine; it opens to that one with the same ports."""
ONWARD = PROXIED._replace(client_here=True, server_here=False, direction="egress")
HOLD = 60 * TICK
"""Longer than an opening end is held for its other end."""
STEPS = ("listen", "open", "accept", "close", "shutdown", "fin", "ack", "expire", "reset", "poll")


def find_pair(closed: Closed) -> frozenset[Address]:
    return frozenset((end.ip, end.port) for end in closed.connection[:2])


def pack(address: Address) -> Endpoint:
    family = packing.AF_INET6 if ":" in address[0] else packing.AF_INET
    return Endpoint(packing.inet_pton(family, address[0]) + address[1].to_bytes(2, "big"))


@dataclass(eq=False)
class Socket:
    link: Link
    local: Address
    remote: Address
    table6: bool
    here: bool
    network: int
    user: int
    """Another one for each socket, so that it tells whose a report is."""
    state: TcpState = ESTABLISHED
    inode: int = 0
    accepted: bool = True
    fin_arrived: bool = False
    skipped: bool = False
    closed_at: int = 0
    """When its →CLOSE was recorded, if it was."""


@dataclass(eq=False)
class Link:
    """One connection, and what was printed of it."""

    kind: Kind
    client: Address
    server: Address
    sockets: list[Socket] = field(default_factory=list)
    printed: bool = False
    certain: bool = False
    after_another: bool = False
    """At its first row, another connection's row of the same 4-tuple was still remembered."""


class Print(NamedTuple):
    poll: int
    link: Link
    state: TcpState
    inode: int
    unsure: bool = False
    """Whether it could be the connection before, read before the other end of this one was."""


def is_successor(before: Print, after: Print) -> bool:
    """Whether one socket could have printed both rows, as far as the model's own steps lead."""
    states, inode = {before.state}, before.inode
    for _ in range(4):
        states |= {steps[s] for steps in (AFTER_CLOSE, AFTER_FIN, AFTER_ACK) for s in states if s in steps}
    if after.state not in states:
        return False
    accepted = inode == 0 and before.state in WAITING
    closed = after.inode == 0 and after.state not in WAITING
    return inode == after.inode or accepted or closed


class Kernel:
    """`clock` counts nanoseconds, a millisecond a step; `records` are what the trace holds.

    `owned`: records tell of the socket's user and network namespace, and there is another namespace.
    `closing`: records tell when connections close.
    """

    def __init__(self, root: Path, owned: bool = False, closing: bool = False) -> None:
        self._owned = owned
        self._closing = closing
        self.closed: list[Closed] = []
        self._kinds = KINDS + ELSEWHERE if owned else KINDS
        self.clock = TICK
        self.records: list[Transition] = []
        self._root = root
        self.links: list[Link] = []
        self._sockets: dict[tuple[Address, Address], Socket] = {}
        self._listeners: dict[tuple[Address, bool], int] = {}
        self._inode = 100
        self.polls = 0
        self._last: dict[tuple[Address, Address], Print] = {}
        self._now: dict[tuple[Address, Address], Print] = {}
        self._shown: list[set[Address]] = [set(), set()]
        self.reports: defaultdict[frozenset[Address], int] = defaultdict(int)

    def take(self, step: Step) -> None:
        self.clock += TICK
        name, which, what = step
        if name == "listen":
            self._listen(self._kinds[which % len(self._kinds)], what)
        elif name == "open":
            self._open(self._kinds[which % len(self._kinds)], what)
        elif name == "fast":
            self._open(self._kinds[which % len(self._kinds)], what, ended_early=True)
        elif name == "proxy":
            self._proxy(what)
        elif name == "twins":
            self._open_twins(what)
        elif self.links and name in STEPS and name != "poll":
            link = self.links[-1 - which % min(4, len(self.links))]
            sockets = [link.sockets[what % 2]] if name != "reset" else list(link.sockets)
            for socket in sockets:
                getattr(self, f"_{name}")(socket)

    def _new_inode(self) -> int:
        self._inode += 1
        return self._inode

    def _listen(self, kind: Kind, what: int) -> None:
        key = (kind.server, SERVER_PORTS[what % 2]), kind.server6
        if not kind.server_here:
            return
        if self._listeners.pop(key, None) is None:
            self._listeners[key] = self._new_inode()
            return
        for socket in list(self._sockets.values()):
            if socket.local == key[0] and not socket.accepted:
                self._reset(socket)
                self._reset(self._peer(socket))

    def _proxy(self, what: int) -> None:
        """What comes within the hold of the opening end before cannot be told from that one's other end."""
        self.clock += HOLD
        self._listeners.setdefault(((PROXIED.server, SERVER_PORTS[what // 2 % 2]), False), self._new_inode())
        if self._open(PROXIED, what):
            self._open(ONWARD, what)

    def _open_twins(self, what: int) -> None:
        """Two connections with the same addresses and ports, in two networks, at the same time."""
        records = len(self.records)
        if not all(self._open(kind, what) for kind in TWINS) or len(self.records) != records + 6:
            return
        # Each is SYN_SENT, then ESTABLISHED at both ends: the other order of these leaves the same pairs.
        times = [record.time for record in self.records[records:]]
        first, second = self.records[records : records + 3], self.records[records + 3 :]
        mixed = [record for pair in zip(first, second) for record in pair]
        self.records[records:] = [record._replace(time=time) for record, time in zip(mixed, times)]

    def _open(self, kind: Kind, what: int, ended_early: bool = False) -> bool:
        """Whether the ports are free. `ended_early`: the server closes before the handshake is over."""
        client = kind.client, CLIENT_PORTS[what % 2]
        server = kind.server, SERVER_PORTS[what // 2 % 2]
        if kind.server_here and (server, kind.server6) not in self._listeners:
            return False
        for end, remote_gone in (((client, server), False), ((server, client), not kind.client_here)):
            old = self._sockets.get(end)
            elsewhere = kind.client_elsewhere and kind.server_elsewhere
            if self._closing and old and old.state != TIME_WAIT and remote_gone:
                self._reset(old)
            elif old and old.state != TIME_WAIT and not remote_gone and not elsewhere:
                return False
        link = Link(kind, client, server)
        networks = [
            OWN if here else OTHER if elsewhere else REMOTE
            for here, elsewhere in (
                (kind.client_here, kind.client_elsewhere),
                (kind.server_here, kind.server_elsewhere),
            )
        ]
        user = 2 * len(self.links)
        inode = self._new_inode()
        link.sockets = [
            Socket(link, client, server, kind.client6, kind.client_here, networks[0], user, inode=inode),
            Socket(
                link, server, client, kind.server6, kind.server_here, networks[1], user + 1, accepted=False
            ),
        ]
        self.links.append(link)
        opening, accepting = link.sockets
        for socket in link.sockets:
            if socket.here:
                self._sockets[socket.local, socket.remote] = socket
        self._tell(opening, TcpState.CLOSE, TcpState.SYN_SENT)
        if ended_early:
            # A Fast Open child: it had its data with the SYN.
            accepting.accepted, accepting.state = True, TcpState.FIN_WAIT1
            self._tell(accepting, TcpState.SYN_RECV, TcpState.FIN_WAIT1)
        self._tell(opening, TcpState.SYN_SENT, ESTABLISHED)
        if not ended_early:
            self._tell(accepting, TcpState.SYN_RECV, ESTABLISHED)
        return True

    def _tell(self, socket: Socket, old: TcpState, new: TcpState) -> None:
        """Write a record, as inet_sock_set_state does; the port is not chosen yet at →SYN_SENT.

        What was established and closes passes the instance's filter if that is asked for.
        """
        closes = new == TcpState.CLOSE and old in CONNECTED
        if not socket.network or socket.closed_at or (closes and not self._closing):
            return
        self.clock += 1
        if closes:
            socket.closed_at = self.clock
        local = (socket.local[0], 0) if new == TcpState.SYN_SENT else socket.local
        end = End(pack(local), pack(socket.remote))
        known = KernelSocket(socket.user, 0, socket.network) if self._owned else None
        peer, done = self._peer(socket), None
        if closes and self._owned:
            done = Closing(socket.network, 0, 3, socket.user, socket.user, peer.user, 0)
        self.records.append(Transition(self.clock, id(socket), old, new, end, 1, None, known, done))

    def drain(self, left: int = 0) -> list[Transition]:
        """Take out records; the newest `left` came too late for this drain, as far as they are new at all."""
        cut = max(0, len(self.records) - left)
        while cut < len(self.records) and self.records[cut].time < self.clock - LATE:
            cut += 1
        taken, self.records = self.records[:cut], self.records[cut:]
        return taken

    def _peer(self, socket: Socket) -> Socket:
        client, server = socket.link.sockets
        return server if socket is client else client

    def _alive(self, socket: Socket) -> bool:
        return not socket.here or self._sockets.get((socket.local, socket.remote)) is socket

    def _accept(self, socket: Socket) -> None:
        if self._alive(socket) and not socket.accepted:
            socket.accepted, socket.inode = True, self._new_inode()

    def _shutdown(self, socket: Socket) -> None:
        if self._alive(socket) and socket.accepted:
            socket.state = AFTER_CLOSE.get(socket.state, socket.state)

    def _close(self, socket: Socket) -> None:
        if self._alive(socket) and socket.accepted:
            socket.state = AFTER_CLOSE.get(socket.state, socket.state)
            socket.inode = 0

    def _fin(self, socket: Socket) -> None:
        """The peer's FIN arrives."""
        peer = self._peer(socket)
        sent = peer.state not in WAITING
        if self._alive(socket) and sent and not socket.fin_arrived:
            socket.fin_arrived = True
            self._become(socket, AFTER_FIN.get(socket.state, socket.state))

    def _ack(self, socket: Socket) -> None:
        """The acknowledgement of this socket's FIN arrives."""
        if self._alive(socket) and self._peer(socket).fin_arrived:
            if socket.state == TcpState.LAST_ACK:
                self._reset(socket)
            else:
                self._become(socket, AFTER_ACK.get(socket.state, socket.state))

    def _become(self, socket: Socket, state: TcpState) -> None:
        if state == TIME_WAIT and socket.state != TIME_WAIT:
            # The socket closes; what stays in its place is no socket.
            socket.inode = 0
            self._tell(socket, socket.state, TcpState.CLOSE)
        socket.state = state

    def _expire(self, socket: Socket) -> None:
        orphan = socket.state == TcpState.FIN_WAIT2 and socket.inode == 0
        if socket.state == TIME_WAIT or orphan:
            self._reset(socket)

    def _reset(self, socket: Socket) -> None:
        if self._alive(socket):
            if socket.here:
                del self._sockets[socket.local, socket.remote]
            if socket.state != TIME_WAIT:
                self._tell(socket, socket.state, TcpState.CLOSE)

    def poll(self, meanwhile: Iterator[Step], skip: int) -> None:
        """Write the tables as one walk over them, with steps taken between its rows.

        `skip` is a bucket whose rows are skipped, once each. A negative one is a bucket whose rows are
        printed twice, with a step between, as the kernel does when a socket is added there meanwhile.
        """
        self.polls += 1
        self._last = {
            end: seen for end, seen in {**self._last, **self._now}.items() if seen.poll >= self.polls - 2
        }
        self._now = {}
        rows: dict[bool, list[str]] = {False: [], True: []}
        self._shown = [self._shown[1], set()]
        for (local, table6), inode in sorted(self._listeners.items()):
            self._shown[1].add(local)
            for _ in range(2 if skip < 0 else 1):
                remote = "::" if ":" in local[0] else "0.0.0.0", 0
                self._print(rows[table6], table6, local, remote, TcpState.LISTEN, inode)
        for table6 in (False, True):
            for bucket in range(8):
                for socket in self._in_bucket(table6, bucket):
                    if skip and not socket.skipped and bucket == skip:
                        socket.skipped = True
                    else:
                        self._show(rows[table6], socket)
                for step in meanwhile:
                    self.take(step)
                    break
                for socket in self._in_bucket(table6, bucket) if bucket == -skip > 0 else ():
                    self._show(rows[table6], socket)
        write_tables(self._root, rows[False], rows[True])

    def _in_bucket(self, table6: bool, bucket: int) -> list[Socket]:
        return [
            socket
            for end, socket in self._sockets.items()
            if socket.table6 == table6 and zlib.crc32(repr(end).encode()) % 8 == bucket
        ]

    def _print(
        self, rows: list[str], table6: bool, local: Address, remote: Address, state: int, inode: int
    ) -> None:
        text = endpoint6 if table6 else endpoint4
        rows.append(row(len(rows), text(*local), text(*remote), state, inode))

    def _show(self, rows: list[str], socket: Socket) -> None:
        self._print(rows, socket.table6, socket.local, socket.remote, socket.state, socket.inode)
        link, end, flipped = socket.link, (socket.local, socket.remote), (socket.remote, socket.local)
        seen = Print(self.polls, link, socket.state, socket.inode)
        before = self._now.get(end) or self._last.get(end)
        other = self._now.get(flipped) or self._last.get(flipped)
        if before is None or before.link is not link:
            reused = before is not None and not is_successor(before, seen)
            both_here = link.kind.client_here and link.kind.server_here
            seen = seen._replace(unsure=before is not None and not reused and both_here)
            link.certain |= reused and not (before and before.unsure)
            link.after_another |= any(p is not None and p.link is not link for p in (before, other))
        link.printed = True
        self._now[end] = seen

    def hear(self, report: Connection) -> None:
        """Check the ends of a report made after the last poll, as far as a poll alone can know them."""
        source, destination = ((e.ip, e.port) for e in (report.source, report.destination))
        pair = frozenset([source, destination])
        self.reports[pair] += 1
        ends = (source, destination), (destination, source)
        seen = [self._now[end] for end in ends if end in self._now]
        assert seen, f"reported what no row showed: {report}"
        link = seen[-1].link
        server = self._now.get((link.server, link.client))
        waiting = server is not None and server.inode == 0 and server.state in WAITING
        listened = link.server in self._shown[0] | self._shown[1]
        if waiting or listened or not link.kind.server_here:
            assert (source, destination) == (link.client, link.server)
            if link.kind.client != "10.0.0.5" or not link.kind.server_here or len(seen) > 1:
                assert report.direction == link.kind.direction

    def hear_traced(self, report: Connection) -> None:
        """Check a report that the trace made: nothing of it is a guess."""
        source, destination = ((e.ip, e.port) for e in (report.source, report.destination))
        links = [link for link in self.links if (link.client, link.server) == (source, destination)]
        assert links, f"never opened: {report}"
        assert report.direction in {link.kind.direction for link in links}
        if self._owned:
            self._check_owner(report)
        self.reports[frozenset([source, destination])] += 1

    def _check_owner(self, report: Connection) -> None:
        """Its sockets are those of one connection, whose ends and direction it has."""
        sockets = [(0, report.opener), (1, report.acceptor)]
        (link,) = {self.links[socket.user // 2] for _, socket in sockets if socket}
        source, destination = ((e.ip, e.port) for e in (report.source, report.destination))
        assert (source, destination) == (link.client, link.server)
        assert report.direction == link.kind.direction
        for side, socket in sockets:
            assert socket is None or socket.user % 2 == side
            # An end that is not told of in time is missing, and no other stands for it.
            assert socket is not None or not link.sockets[side].network

    def hear_closed(self, closed: Closed) -> None:
        """Check that it was reported when it opened, and that its ends are closed."""
        connection = closed.connection
        source, destination = ((e.ip, e.port) for e in (connection.source, connection.destination))
        pair = frozenset([source, destination])
        before = sum(pair == find_pair(other) for other in self.closed)
        links = [link for link in self.links if {link.client, link.server} == pair]
        assert closed.time >= connection.time
        assert before < self.reports[pair]
        if self._owned and connection.owner.user is not None:
            link = self.links[connection.owner.user // 2]
            assert (source, destination) == (link.client, link.server)
            assert all(socket.closed_at for socket in link.sockets if socket.network)
        assert before < sum(all(s.closed_at or not s.network for s in link.sockets) for link in links)
        self.closed.append(closed)

    def check_closed(self, lossy: bool) -> None:
        """Each connection was closed once, at the time at which its later end was."""
        truth: Counter[tuple[Address, Address, int]] = Counter()
        for link in self.links:
            ends = [socket.closed_at for socket in link.sockets if socket.network]
            if all(ends):
                truth[link.client, link.server, max(ends)] += 1
        told: Counter[tuple[Address, Address, int]] = Counter()
        for closed in self.closed:
            source, destination = closed.connection.source, closed.connection.destination
            told[(source.ip, source.port), (destination.ip, destination.port), closed.time] += 1
        if not lossy:
            assert told == truth

    def check_all_closed(self) -> None:
        """What was reported and has no socket any more is closed."""
        pairs = {frozenset([link.client, link.server]) for link in self.links}
        for pair in pairs:
            links = [link for link in self.links if {link.client, link.server} == pair]
            if all(s.closed_at or not s.network for link in links for s in link.sockets):
                assert sum(find_pair(closed) == pair for closed in self.closed) == self.reports[pair]

    def check_owners_of_closed(self) -> None:
        """Its owners and its bytes are those of its own sockets."""
        for closed in self.closed:
            connection = closed.connection
            owners = [one.user for one in (connection.owner, connection.listener) if one.user is not None]
            (link,) = {self.links[user // 2] for user in owners}
            client, server = link.sockets
            assert (closed.source_bytes, closed.destination_bytes) == (client.user, server.user)
            assert closed.time == max(socket.closed_at for socket in link.sockets)

    def check_traced(self, lossy: bool) -> None:
        """Each connection was reported once; with losses, none twice."""
        truth = Counter(frozenset([link.client, link.server]) for link in self.links)
        assert not Counter(self.reports) - truth
        assert lossy or self.reports == truth

    def check(self) -> None:
        """Each connection of which a row was printed was reported once, and nothing else."""
        pairs: defaultdict[frozenset[Address], list[Link]] = defaultdict(list)
        for link in self.links:
            if link.printed:
                pairs[frozenset([link.client, link.server])].append(link)
        for pair in pairs.keys() | self.reports.keys():
            known = sum(link.certain or not link.after_another for link in pairs[pair])
            assert known <= self.reports[pair] <= len(pairs[pair]), f"{pair}: {self.reports[pair]} reports"
