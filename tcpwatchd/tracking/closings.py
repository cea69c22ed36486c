"""Follows connections that were reported until they close: how, when, and how many bytes passed. No I/O.

A connection is over when each of its ends that are here is. The trace tells of each socket that enters CLOSE,
and which it is; of what the trace did not tell, polls show that the row has gone. A connection is kept by its
source and destination, and the address of a socket tells apart those that have the same, as in two networks.
"""

from __future__ import annotations

import errno
import operator
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from tcpwatchd.connection import (
    IPV4_LENGTH,
    IPV6_LENGTH,
    NOBODY,
    Closed,
    Connection,
    End,
    Endpoint,
    Ignored,
    Loss,
    OpenKnown,
    TcpState,
    make,
)
from tcpwatchd.tracking.packed import Packed, Shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from tcpwatchd.connection import Closing, Gone, Report, Transition

    Shows = Callable[[End], bool]
    """Tells whether polls show an open socket of an end."""
    Found = Iterator[tuple[bytes, "Open"]]
    Roles = Iterator[tuple[bytes, int, "Open"]]

FIN_WAIT1, FIN_WAIT2, CLOSING, CLOSE_WAIT, LAST_ACK = (
    TcpState.FIN_WAIT1,
    TcpState.FIN_WAIT2,
    TcpState.CLOSING,
    TcpState.CLOSE_WAIT,
    TcpState.LAST_ACK,
)
SOURCE, DESTINATION = 0, 1
NAMES = "source", "destination"
HERE, THERE, BOTH = "here", "there", "both"
ABRUPT = "abrupt"
"""A reset or a time-out: without the kernel's error nobody can say which."""
SEVERITY = None, "fin", ABRUPT, "reset", "timeout"
"""Of two ends the later of these says how the connection was closed."""
FIRST = {FIN_WAIT1: HERE, FIN_WAIT2: HERE, CLOSING: BOTH, CLOSE_WAIT: THERE, LAST_ACK: THERE}
"""Whose FIN came first, by the state from which a socket enters CLOSE."""
IN_ORDER = frozenset({FIN_WAIT2, CLOSING, LAST_ACK})
"""States that a socket leaves for CLOSE when nothing is left to be said."""
RESET_BY_OTHER = frozenset({errno.ECONNRESET, errno.EPIPE})
RESET_HERE = frozenset({errno.ECONNABORTED})
"""As by ss -K."""
DEAD, DEAD_OR_DONE = 0b01, 0b11
VALUE = struct.Struct("=QQqIi?")
"""The fields of `Open` but the last."""
KEY_LENGTHS = 2 * IPV4_LENGTH, 2 * IPV6_LENGTH
MOST_OPEN = 2_000_000
"""Connections that are followed: memory is bounded. Those beyond are reported when they open, and counted."""


class Open(NamedTuple):
    """A connection that is open. Its sockets are 0 where they are not known, or not here."""

    sockets: tuple[int, int]
    time: int
    shared: int
    process: int
    """Of its owner; less than 0 is the thread, where only that is known."""
    reported: bool
    """Whether it was, when it opened."""
    value: bytes
    """As it is kept."""


class View(NamedTuple):
    """What one end tells of how the connection was closed."""

    time: int
    by: str | None
    first: str | None
    """Which end closed first, seen from this one."""
    sent: int | None
    received: int | None
    traced: bool


class Closings:
    """`report` says what is reported of a connection: that it opened, that it closed, or both.

    `network` is the inode of the network namespace whose tables are polled; `tells_networks`: each record
    says of which one its socket is.
    """

    def __init__(self, report: Report = "opened", network: int = 0, tells_networks: bool = False) -> None:
        self._report = self._wanted = report
        self._network = network
        self._tells_networks = tells_networks
        self._forget()
        self._unsure_before = 0
        """Of what opened before then, the trace may have failed to tell that it closed."""
        self._swept_for = 0
        self._compared_after = 0
        """The loss after which polls are counted, and how many there were."""
        self.not_followed = 0
        """Connections that were reported when they opened, as too many were followed."""

    def __len__(self) -> int:
        return sum(map(len, self._open))

    @property
    def unreported(self) -> int:
        """Connections that are open, and will be reported when they close only."""
        return sum(not found.reported for _, found in self._list_open())

    @property
    def known(self) -> OpenKnown:
        """All that is remembered, for another process to go on from."""
        return OpenKnown(
            self._report,
            self._unsure_before,
            list(self._shared.items.items()),
            [packed.text for packed in self._open],
            [
                (key, time, role, tuple(view))
                for (key, time), views in self._halves.items()
                for role, view in views.items()
            ],
        )

    def restore(self, known: OpenKnown) -> bool:
        """Go on from what another process knew, as it did until `switch`. Whether it followed connections."""
        self._report = known.report
        self._unsure_before = known.unsure_before
        shared = dict(known.shared)
        for packed, text in zip(self._open, known.records):
            for key, value in packed.split(text):
                found = unpack(value)
                connection = restore_connection(shared[found.shared], key, found)
                self._add(connection, found.reported)
        for key, time, role, view in known.halves:
            self._halves.setdefault((key, time), {})[role] = View(*view)
        return known.report != "opened"

    def switch(self) -> list[Connection]:
        """Report as this process should.

        Returns what the one before would have reported when it closes, and this one would not.
        """
        self._report = self._wanted
        unreported = []
        if self._report != "closed":
            for key, found in self._list_open():
                if not found.reported:
                    shared = self._shared.find(found.shared)
                    unreported.append(restore_connection(shared, key, found))
                    self._of(key).change(key, found.value, pack(found._replace(reported=True)))
        if self._report == "opened":
            self._forget()
        return sorted(unreported, key=operator.attrgetter("time"))

    def _list_open(self) -> Found:
        for packed in self._open:
            for key, value in packed.split(packed.text):
                yield key, unpack(value)

    def _forget(self) -> None:
        self._open = [Packed(length, VALUE.size) for length in KEY_LENGTHS]
        self._shared: Shared[Connection] = Shared()
        """Connections without their ends, their sockets and their time."""
        self._halves: dict[tuple[bytes, int], dict[int, View]] = {}
        """What is known of connections of which one end is closed, by their keys and when they opened."""

    def note_loss(self, now: int) -> None:
        """Records may be missing until then: nanoseconds of CLOCK_BOOTTIME. Polls tell of what they held."""
        self._unsure_before = max(now, self._unsure_before)

    def follow(
        self, items: Iterable[Connection | Ignored | Transition | Loss], shows: Shows
    ) -> list[Connection | Closed]:
        """What is to be reported, of connections as they are found and of records of their ends, in order.

        One that is ignored is not followed; but what had its place before is over.
        """
        if self._report == "opened":
            return [item for item in items if isinstance(item, Connection)]
        found: list[Connection | Closed] = []
        for item in items:
            if isinstance(item, Connection):
                found += self._begin(item, shows)
            elif isinstance(item, Ignored):
                found += self._end_before(item.connection, shows)
            elif isinstance(item, Loss):
                self.note_loss(item.time)
            elif item.new == TcpState.CLOSE:
                found += self._close(item, shows)
            else:
                self._join(item)
        return found

    def compare(self, gone: Iterable[Gone], shows: Shows, now: int) -> list[Closed]:
        """What polls show to be over, and the trace did not tell of. `now`: when the snapshot ended."""
        closed: list[Closed] = []
        if self._report == "opened" or not len(self):
            return closed
        closed += self._sweep(shows, now)
        for end in gone:
            for key, role, found in list(self._list_roles(end.end.local, end.end.remote)):
                if self._shows_gone(end, role, found):
                    by, first = ("fin", HERE) if end.in_time_wait else (None, None)
                    view = View(max(end.time, found.time), by, first, None, None, traced=False)
                    closed += self._finish(key, role, found, view, shows)
        return closed

    def _sweep(self, shows: Shows, now: int) -> list[Closed]:
        """Two polls after records were lost, what opened before and is not shown: it may have gone unnoticed.

        Only where each record tells the network namespace: the rows of others are never shown.
        """
        lost, self._compared_after = self._unsure_before, self._compared_after + 1
        if lost != self._swept_for:
            self._swept_for, self._compared_after = lost, 0
        if self._compared_after != 1 or not self._tells_networks:
            return []
        closed: list[Closed] = []
        for key, found in list(self._list_open()):
            ends = split_key(key)
            for role in (SOURCE, DESTINATION):
                ours = find_network(self._shared.find(found.shared), role) is None
                end = make(End, ends if role == SOURCE else ends[::-1])
                if found.sockets[role] and found.time < lost and ours and not shows(end):
                    view = View(now, None, None, None, None, traced=False)
                    over = self._finish(key, role, found, view, shows)
                    closed += over
                    if over:
                        break
        return closed

    def _shows_gone(self, gone: Gone, role: int, found: Open) -> bool:
        """Whether a row that has gone was this connection's, and the trace cannot be asked."""
        if find_network(self._shared.find(found.shared), role) is not None:
            return False
        if found.sockets[role]:
            # Without the network in its record, a socket that never had a row can be of another one.
            seen = gone.was_shown or self._tells_networks
            return seen and found.time < min(self._unsure_before, gone.before)
        return found.time <= gone.time and has_end(self._shared.find(found.shared), role)

    def _begin(self, connection: Connection, shows: Shows) -> Iterator[Connection | Closed]:
        """What it shows to be over, and itself if that is to be reported."""
        yield from self._end_before(connection, shows)
        followed = len(self) < MOST_OPEN
        if followed:
            self._add(connection, reported=self._report == "both")
        self.not_followed += not followed
        if self._report == "both" or not followed:
            yield connection

    def _end_before(self, connection: Connection, shows: Shows) -> Iterator[Closed]:
        """What had the place of this one."""
        key = connection.source + connection.destination
        for value in self._of(key).find(key):
            found = unpack(value)
            for role in (SOURCE, DESTINATION):
                if self._is_succeeded(found, role, connection):
                    view = View(connection.time, None, None, None, None, traced=False)
                    yield from self._finish(key, role, found, view, shows, last=True)
                    break

    def _is_succeeded(self, found: Open, role: int, by: Connection) -> bool:
        """Whether this connection has the place of another, which then is over, though nothing told so."""
        shared, new = self._shared.find(found.shared), by[-2:][role]
        here = new or (by.detected_by != "trace" and has_end(by, role))
        if not here or found.time > by.time or find_network(shared, role) != self._find_network(by, role):
            return False
        if found.sockets[role]:
            return new == found.sockets[role] or found.time < self._unsure_before
        return not any(found.sockets) and has_end(shared, role)

    def _find_network(self, connection: Connection, role: int) -> int | None:
        """As `find_network`, also of one whose owners were not looked for."""
        socket = connection.opener if role == SOURCE else connection.acceptor
        if socket is None:
            return find_network(connection, role)
        return None if socket.network in (0, self._network) else socket.network

    def _add(self, connection: Connection, reported: bool) -> None:
        key = connection.source + connection.destination
        sockets, time = connection[-2:], connection.time
        number = self._shared.take(strip(connection))
        owner = connection.owner
        process = owner.process or -(owner.thread or 0)
        self._of(key).add(key, VALUE.pack(*sockets, time, number, process, reported))

    def _join(self, transition: Transition) -> None:
        """An end came after its connection was reported: the newest that lacks it."""
        lacking = [one for one in self._list_roles(*transition.end) if not one[2].sockets[one[1]]]
        if transition.socket:
            network = transition.socket.network
            near = [one for one in lacking if self._is_of(one, network if network != self._network else None)]
            lacking = near if near or transition.end.local.is_loopback else lacking
        for key, role, found in lacking[-1:]:
            source, destination = found.sockets
            sockets = (transition.skaddr, destination) if role == SOURCE else (source, transition.skaddr)
            self._of(key).change(key, found.value, pack(found._replace(sockets=sockets)))

    def _is_of(self, one: tuple[bytes, int, Open], network: int | None) -> bool:
        """Whether the other end of this one is in a network namespace; None is the one that is polled."""
        _, role, found = one
        return find_network(self._shared.find(found.shared), 1 - role) == network

    def _close(self, transition: Transition, shows: Shows) -> list[Closed]:
        """None for a socket of a connection that is not known here."""
        local, remote = transition.end
        for role, key in list_keys(local, remote):
            for value in self._of(key).find(key):
                one = unpack(value)
                if one.sockets[role] == transition.skaddr:
                    return self._finish(key, role, one, judge(transition, role), shows)
        network = transition.closing.network if transition.closing else self._network
        elsewhere = network if network != self._network else None
        for key, role, one in list(self._list_roles(local, remote)):
            shared = self._shared.find(one.shared)
            unheard = not one.sockets[role] and one.time <= transition.time and has_end(shared, role)
            if unheard and find_network(shared, role) == elsewhere:
                return self._finish(key, role, one, judge(transition, role), shows)
        return []

    def _finish(
        self, key: bytes, role: int, found: Open, view: View, shows: Shows, last: bool = False
    ) -> list[Closed]:
        """One end is closed; the connection, if the other is too, or was never here. `last`: both are."""
        shared, half = self._shared.find(found.shared), (key, found.time)
        views = self._halves.get(half, {})
        views.setdefault(role, view)  # what the trace told before says more than that the row has gone
        if not last and 1 - role not in views and self._awaits(1 - role, key, found, shared, shows):
            self._halves[half] = views
            return []
        self._halves.pop(half, None)
        self._of(key).remove(key, found.value)
        connection = restore_connection(shared, key, found)
        self._shared.release(found.shared)
        return [describe(connection, views)]

    def _awaits(self, role: int, key: bytes, found: Open, shared: Connection, shows: Shows) -> bool:
        """Whether the other end, of this role, is known to be open."""
        if found.sockets[role]:
            return True
        if shared.direction != "internal" or find_network(shared, role) is not None:
            return False
        source, destination = split_key(key)
        other = (source, destination) if role == SOURCE else (destination, source)
        return source != destination and shows(make(End, other))

    def _list_roles(self, local: Endpoint, remote: Endpoint) -> Roles:
        """Connections of which this can be an end, and which."""
        for role, key in list_keys(local, remote):
            for value in self._of(key).find(key):
                yield key, role, unpack(value)

    def _of(self, key: bytes) -> Packed:
        return self._open[len(key) != KEY_LENGTHS[0]]


def unpack(value: bytes) -> Open:
    source, destination, *rest = VALUE.unpack(value)
    return make(Open, ((source, destination), *rest, value))


def pack(found: Open) -> bytes:
    return VALUE.pack(*found.sockets, *found[1:-1])


def list_keys(local: Endpoint, remote: Endpoint) -> list[tuple[int, bytes]]:
    """Which end of a connection this can be, and of which; that of a socket to itself is its source."""
    keys = [(SOURCE, local + remote)]
    if local != remote:
        keys.append((DESTINATION, remote + local))
    return keys


def split_key(key: bytes) -> tuple[Endpoint, Endpoint]:
    half = len(key) // 2
    return Endpoint(key[:half]), Endpoint(key[half:])


def strip(connection: Connection) -> Connection:
    """What it has in common with others: all but its ends, its time, and the process of its owner."""
    nowhere = Endpoint(bytes(IPV4_LENGTH))
    _, _, direction, state, detected_by, _, guessed, priority, *_, owner, listener, _, _ = connection
    fields = nowhere, nowhere, direction, state, detected_by, 0, guessed, priority, None, None, None
    if owner is not NOBODY:
        owner = owner._replace(process=None, thread=None)
    return make(Connection, (*fields, owner, listener, 0, 0))


def restore_connection(shared: Connection, key: bytes, found: Open) -> Connection:
    _, _, direction, state, detected_by, _, guessed, priority, *_, owner, listener, _, _ = shared
    if found.process:
        process, thread = (found.process, None) if found.process > 0 else (None, -found.process)
        owner = owner._replace(process=process, thread=thread)
    fields = *split_key(key), direction, state, detected_by, found.time, guessed, priority
    return make(Connection, (*fields, None, None, None, owner, listener, *found.sockets))


def has_end(connection: Connection, role: int) -> bool:
    """Whether this end of it is here, by its direction."""
    direction = connection.direction
    return direction == "internal" or (direction == "egress") == (role == SOURCE)


def find_network(connection: Connection, role: int) -> int | None:
    """The network namespace of an end that is here; None of the one that is polled, or if it is not known."""
    if not has_end(connection, role):
        return None
    second = connection.direction == "internal" and role == DESTINATION
    return (connection.listener if second else connection.owner).network


def judge(transition: Transition, role: int) -> View:
    """What the record of a socket that enters CLOSE tells of its connection."""
    when, old, closing = transition.time, transition.old, transition.closing
    first = FIRST.get(old)
    if closing is None:
        return View(when, "fin" if old in IN_ORDER else ABRUPT, first, None, None, traced=True)
    received = closing.received
    if closing.error in RESET_BY_OTHER:
        by, first = "reset", first or THERE
    elif closing.error in RESET_HERE:
        by, first = "reset", first or HERE
    elif closing.error:
        by = "timeout"
    elif old in IN_ORDER and not is_dropped(transition, closing):
        by = "fin"
    else:
        # A program closed it before it had read all, or asked for a reset: what it did not read is dropped.
        by, first, received = "reset", first or HERE, received - closing.unread
    return View(when, by, first, count_sent(closing, role), received, traced=True)


def is_dropped(transition: Transition, closing: Closing) -> bool:
    """Whether a process that had sent its FIN closed the socket with more to be read: then it is reset."""
    if transition.old == FIN_WAIT2:
        return not closing.flags & DEAD_OR_DONE
    return bool(closing.unread and transition.thread and not closing.flags & DEAD)


def count_sent(closing: Closing, role: int) -> int:
    """Bytes of payload. What both counts can mean is that; else one was dropped here, and counted twice."""
    if 0 <= closing.numbered - closing.sent <= 1:
        return closing.sent
    return max(0, closing.numbered - (role == SOURCE))


def describe(connection: Connection, views: dict[int, View]) -> Closed:
    """What the ends that are here tell together."""
    by: Any = max((view.by for view in views.values()), key=SEVERITY.index)
    roles = sorted(views, key=lambda role: views[role].time)
    named = [name_first(role, views[role]) for role in roles if views[role].first]
    first = named[0] if named else None
    if len({*named}) > 1 and not any(view.traced for view in views.values()):
        first = BOTH  # each end is in TIME_WAIT
    source, destination, last = views.get(SOURCE), views.get(DESTINATION), views[roles[-1]]
    return Closed(
        connection,
        last.time,
        None if by == ABRUPT else by,
        first,
        find_bytes(source, destination),
        find_bytes(destination, source),
        "trace" if last.traced else "poll",
    )


def name_first(role: int, view: View) -> str:
    """Which end closed first, as the end of this role has it."""
    return BOTH if view.first == BOTH else NAMES[role if view.first == HERE else 1 - role]


def find_bytes(sender: View | None, receiver: View | None) -> int | None:
    """What the sender says, or else what came of it."""
    if sender and sender.sent is not None:
        return sender.sent
    return receiver.received if receiver else None


def check(known: OpenKnown) -> None:
    """Raises ValueError for what makes no sense."""
    shared = dict(known.shared)
    for length, text in zip(KEY_LENGTHS, known.records):
        packed = Packed(length, VALUE.size)
        if len(text) % (length + VALUE.size):
            raise ValueError(f"{len(text)} bytes of open connections")
        if any(unpack(value).shared not in shared for _, value in packed.split(text)):
            raise ValueError("an open connection of no kind")
    for *_, fields in known.halves:
        view = View(*fields)
        numbers = view.time, view.sent or 0, view.received or 0
        if view.by not in SEVERITY or view.first not in (None, HERE, THERE, BOTH):
            raise ValueError(f"an end that closed {view.by!r} by {view.first!r}")
        if not all(isinstance(number, int) for number in numbers):
            raise ValueError(f"an end that closed with {numbers!r}")
