"""The words that all stages share."""

from __future__ import annotations

import socket
from enum import IntEnum
from functools import lru_cache
from typing import Any, Callable, Literal, NamedTuple, Optional

Direction = Literal["ingress", "egress", "internal"]
Detection = Literal["trace", "poll", "startup"]
ClosedBy = Literal["fin", "reset", "timeout"]
Report = Literal["opened", "closed", "both"]
Priority = Literal["4", "5", "6"]
"""Of an entry, as in syslog(3): warning, notice, info."""
GoesOn = Literal["", "ports", "addresses", "again"]
"""Of a scan: whether it was told before, and by what it goes on."""
PLAIN: Priority = "6"
"""That of most."""


make = tuple.__new__
"""Makes the named tuples of the hot spots: their own constructor takes twice as long."""


class TcpState(IntEnum):
    """The kernel's names and numbers (include/net/tcp_states.h)."""

    ESTABLISHED = 0x01
    SYN_SENT = 0x02
    SYN_RECV = 0x03
    FIN_WAIT1 = 0x04
    FIN_WAIT2 = 0x05
    TIME_WAIT = 0x06
    CLOSE = 0x07
    CLOSE_WAIT = 0x08
    LAST_ACK = 0x09
    LISTEN = 0x0A
    CLOSING = 0x0B
    NEW_SYN_RECV = 0x0C


HALF_OPEN = frozenset({TcpState.SYN_SENT, TcpState.SYN_RECV, TcpState.CLOSE, TcpState.NEW_SYN_RECV})
"""States of a socket that is not, or not yet, a connection."""

CONNECTED = frozenset(TcpState) - HALF_OPEN - {TcpState.LISTEN, TcpState.TIME_WAIT}
"""States from which a socket of a connection enters CLOSE. (TIME_WAIT is kept by another kind of socket.)"""


class Endpoint(bytes):
    """An address of 4 or 16 bytes, never IPv4-mapped, then a port of 2 bytes, both in network order.

    Packed, because a poll may make hundreds of thousands of them at once.
    """

    __slots__ = ()

    @property
    def address(self) -> bytes:
        return self[:-2]

    @property
    def port(self) -> int:
        return int.from_bytes(self[-2:], "big")

    @property
    def ip(self) -> str:
        """The bare address as text; IPv6 as in RFC 5952."""
        return format_ip(self[:-2])

    @property
    def is_ipv4(self) -> bool:
        return len(self) == IPV4_LENGTH

    @property
    def is_loopback(self) -> bool:
        return self[0] == 127 if self.is_ipv4 else self[:-2] == IPV6_LOOPBACK

    def __str__(self) -> str:
        return format_endpoint(self.ip, self.port)


@lru_cache(maxsize=1024)
def format_ip(address: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


def format_endpoint(ip: str, port: int) -> str:
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


IPV4_LENGTH, IPV6_LENGTH = 6, 18
"""Of an endpoint."""
MAPPED = bytes(10) + b"\xff\xff"
"""What an IPv4-mapped IPv6 address begins with."""
IPV4_ANY = bytes(4)
IPV6_ANY = bytes(16)
IPV6_LOOPBACK = bytes(15) + b"\1"


def unmap(packed: bytes) -> Endpoint:
    """From an address and a port packed so; an IPv4-mapped address becomes IPv4."""
    return Endpoint(packed[12:] if packed.startswith(MAPPED) else packed)


def list_listening(local: Endpoint) -> list[Endpoint]:
    """Where a socket can listen that accepts at this endpoint; IPv6's any takes IPv4 too."""
    port = local[-2:]
    places = [local, Endpoint(IPV6_ANY + port)]
    if local.is_ipv4:
        places.append(Endpoint(IPV4_ANY + port))
    return places


class End(NamedTuple):
    """One socket's view of a connection. A connection inside this machine has two ends."""

    local: Endpoint
    remote: Endpoint

    @property
    def flipped(self) -> End:
        return make(End, self[::-1])


class Row(NamedTuple):
    """One line of the kernel's table. Inode 0: no process holds the socket (not accepted yet, or closed)."""

    end: End
    state: TcpState
    inode: int
    user: int = 0
    """The number of the socket's user; means nothing where the inode is 0."""


class Snapshot(NamedTuple):
    """One reading of the tables, as its difference from the reading before; listening sockets included.

    A row that the kernel printed twice counts once. Rows in a half-open state are left out. Times are
    nanoseconds of CLOCK_BOOTTIME.
    """

    started: int
    ended: int
    fresh: list[Row]
    """Rows that were not there before, in reading order; a row whose state or inode changed is fresh."""
    gone: list[Row]
    """Rows that are no longer there, in no order."""
    malformed: list[bytes]
    """New rows that could not be parsed, as far as they were kept."""
    connecting: int
    """How many sockets are in SYN_SENT."""


class Formats(NamedTuple):
    """What the kernel says of a page, of the head of an entry, and of events' records, as it prints it."""

    page: str
    entry: str
    record: str
    """Of a transition."""
    group: str = ""
    """Of a control group that is made; empty where that is not traced."""
    closing: str = ""
    """Of a connection's socket that closes, where that has an event of its own."""


class Drain(NamedTuple):
    """What one reading of the trace took out of the kernel."""

    began: int
    """Nanoseconds of CLOCK_BOOTTIME."""
    pages: list[bytes]
    """Raw; those of one CPU in the order of time."""
    lost: int
    """Records that were overwritten before they could be read."""
    taken: dict[int, int]
    """Of each CPU that was read from, how many records were ever taken out of it."""
    failure: Exception | None = None
    """Why a CPU could not be read; what it has comes with a later drain."""
    whole: bool = True
    """Whether nothing older than its beginning can come later."""


class Socket(NamedTuple):
    """What the kernel keeps with a socket; an accepted one has it of the one that listened."""

    user: int
    """The user's number, of the initial user namespace."""
    group: int
    """The number of its control group, which no other ever has; 0 where it is not known."""
    network: int
    """The inode of its network namespace; 0 of a row, which is of the one that is polled."""


MayReport = Callable[[bytes, Endpoint, Optional[Socket]], bool]
"""Whether what is opened now can be reported: its address, packed, where it goes, and its socket."""


class Caller(NamedTuple):
    """The thread that asked for a connection, or to listen, and when: nanoseconds of CLOCK_BOOTTIME."""

    time: int
    thread: int
    """Its number in the initial PID namespace; 0 where it is not known."""
    name: bytes | None
    """As it was then; None where it is not known."""


class Closing(NamedTuple):
    """What the kernel keeps with the socket of a connection when it enters CLOSE. Bytes are of payload."""

    network: int
    """The inode of its network namespace."""
    error: int
    """An errno; 0 of a socket that was closed in order, or reset from here."""
    flags: int
    """As in `enum sock_flags` (include/net/sock.h): bit 0, no process has it; bit 1, the other's FIN came."""
    sent: int
    """Each byte once, however often it was sent again; but what was dropped here before it left, twice."""
    numbered: int
    """Each byte once; but of an end that opened the connection its SYN too."""
    received: int
    unread: int
    """Of what was received, what no process has read."""


class Transition(NamedTuple):
    """One change of a socket's state. Time is in nanoseconds of CLOCK_BOOTTIME.

    `skaddr` names the socket for its life. The local port is 0 at →SYN_SENT. `thread` and `name` are as in
    `Caller`, of whoever made the transition: right for →SYN_SENT and →LISTEN, and meaningless for others, but
    that a thread of 0 made none.
    """

    time: int
    skaddr: int
    old: TcpState
    new: TcpState
    end: End
    thread: int
    name: bytes | None = None
    socket: Socket | None = None
    """None where the kernel's record does not have it."""
    closing: Closing | None = None
    """Likewise, of a connection's socket that enters CLOSE."""


class Reset(NamedTuple):
    """That somebody tried a closed port of this machine: a reset was sent. As in `Transition`."""

    time: int
    end: End


class ControlGroup(NamedTuple):
    """A control group that was made: its number, and its path from the root of the hierarchy."""

    number: int
    path: bytes


class Listener(NamedTuple):
    """A socket that listens, as its record told, and the thread that had it listen."""

    endpoint: Endpoint
    socket: Socket
    time: int
    """Nanoseconds of CLOCK_BOOTTIME."""
    thread: int
    started: int
    """When the thread was started, likewise; -1 of one that was gone before it could be asked."""


class OwnersKnown(NamedTuple):
    """What is remembered of owners."""

    groups: dict[int, bytes]
    """The paths of control groups that the kernel told of, by their numbers."""
    listeners: dict[int, Listener]
    """By the socket's address (skaddr)."""


class Owner(NamedTuple):
    """Who has an end of a connection. What is not known is None; text is safe to print."""

    user: int | None = None
    user_name: str | None = None
    unit: str | None = None
    """The systemd unit of this machine."""
    user_unit: str | None = None
    """The unit of the user's own systemd, inside the unit user@UID.service."""
    container: str | None = None
    process: int | None = None
    """Numbers of the initial PID namespace. Of a process that had gone only its thread may be known."""
    thread: int | None = None
    name: str | None = None
    executable: str | None = None
    command_line: str | None = None
    network: int | None = None
    """The inode of its network namespace, where it is not the one that is polled."""


NOBODY = Owner()


class Connection(NamedTuple):
    """A new connection, as decided once, when it is reported."""

    source: Endpoint
    destination: Endpoint
    direction: Direction
    state: TcpState
    """The state in which it was first seen."""
    detected_by: Detection
    time: int
    """When it opened, or when the poll saw it: nanoseconds of CLOCK_BOOTTIME."""
    guessed: bool = False
    """Whether nothing shows which end opened it: source and destination may be the other way round."""
    priority: Priority = PLAIN
    opener: Socket | None = None
    acceptor: Socket | None = None
    caller: Caller | None = None
    """What is known of its ends that are here, until their owners are looked for."""
    owner: Owner = NOBODY
    """Of the end that is here; of two, the one that opened it."""
    listener: Owner = NOBODY
    """Of the end that accepted it, where both are here."""
    source_socket: int = 0
    destination_socket: int = 0
    """Its sockets' addresses (skaddr), as far as the trace told of them when it was reported."""


class Closed(NamedTuple):
    """A connection that is over: of two ends here, both."""

    connection: Connection
    time: int
    """When the later end closed, or by when a poll missed it: nanoseconds of CLOCK_BOOTTIME."""
    by: ClosedBy | None
    first: str | None
    """Which end closed first: "source", "destination", or "both" at once."""
    source_bytes: int | None
    destination_bytes: int | None
    """Payload that each end sent."""
    detected_by: Detection

    @property
    def duration(self) -> int | None:
        """Nanoseconds; of one that was open before the watch began nobody knows how long it was."""
        opened, time = self.connection, self.time
        return time - opened.time if opened.detected_by != "startup" and time >= opened.time else None


class Ignored(NamedTuple):
    """A connection that is not to be reported."""

    connection: Connection


class Folded(NamedTuple):
    """Connections that differ in nothing that is reported but their source ports, as one."""

    first: Connection | Closed
    """With what all of them have, and the sums of their bytes."""
    number: int
    last: int
    """When the last of them opened, or closed: nanoseconds of CLOCK_BOOTTIME."""


class PortScan(NamedTuple):
    """What a source tried of this machine, since it was last told. Times: nanoseconds of CLOCK_BOOTTIME."""

    address: bytes
    """The source, packed; the last one, if it has several."""
    network: tuple[bytes, int] | None
    """What those have in common, and how many bits; None if it has one."""
    first: int
    last: int
    open_ports: list[int]
    closed_ports: list[int]
    """In order."""
    destinations: list[bytes]
    """Where, packed."""
    is_least: bool
    """Whether there may be more of it."""
    is_verified: bool
    """Whether it is a scan without the closed ports too, which anybody can try in the name of another."""
    goes_on: GoesOn


class Loss(NamedTuple):
    """Records were lost that were older than this: nanoseconds of CLOCK_BOOTTIME."""

    time: int


class Gone(NamedTuple):
    """An end whose socket is closed, as polls show."""

    end: End
    before: int
    time: int
    """When the first snapshot that showed it was begun, and ended: nanoseconds of CLOCK_BOOTTIME."""
    in_time_wait: bool
    """Whether it closed first, in order."""
    was_shown: bool
    """Whether it ever had a row."""


class OpenKnown(NamedTuple):
    """Connections that are followed until they close, as `Closings` keeps them."""

    report: Report
    unsure_before: int
    shared: list[tuple[int, Connection]]
    """What connections have in common, by number."""
    records: list[bytes]
    """Of IPv4 and of IPv6."""
    halves: list[tuple[bytes, int, int, Any]]


class Written(NamedTuple):
    """What a sink took: events, among them entries of connections, and lost records that were told."""

    events: int
    entries: int
    lost: int


class Known(NamedTuple):
    """What the tracker remembers beside the rows of the last snapshot. Times as in `Transition`."""

    first: bool
    """Whether there was no snapshot yet."""
    open: int
    """Sockets with an open connection in the last snapshot."""
    listeners: dict[Endpoint, int]
    """Local ends of the last snapshot's listening rows, each with the number of rows."""
    awaiting_row: dict[End, tuple[int, int]]
    """Ends of a connection that was reported and whose own row was not compared yet.

    When it was reported, and how many sockets of this end the trace told of: none where a poll found only the
    other end.
    """
    absent: dict[End, Row | None]
    """Ends of the snapshot before that the last one did not show, and their last row where it is known.

    The kernel prints a table in pieces, and can skip a live row once.
    """
    unpaired: dict[End, tuple[int, int]]
    """Ends whose other end is not known of yet: how many times, and until when it is waited for."""
    handshakes: dict[int, tuple[Endpoint, Caller]]
    """The socket's address (skaddr) of each handshake begun here; where it goes, and who began it."""
    reports: list[tuple[Connection | Transition | Loss, bool]]
    """Connections to be reported, and whether each is held for its other end; between them, in order, records
    of ends that close, and of those that came after their connection was reported, and losses."""
    older_prints: frozenset[Row] = frozenset()
    """Rows that the last snapshots held beside a later print of the same socket."""
    polled_ahead: dict[End, int] = {}  # noqa: RUF012, nobody changes it
    """Both ends of what polls found while the trace could not be read, and when; records may follow."""
    absent_since: tuple[int, int] = (0, 0)
    """When the last snapshot was begun, and ended: the first that did not show the absent ends."""


NOTHING_KNOWN = Known(
    first=True,
    open=0,
    listeners={},
    awaiting_row={},
    absent={},
    unpaired={},
    handshakes={},
    reports=[],
)
