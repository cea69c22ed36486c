"""What the entries of a period add up to, in bounded memory. No I/O.

Each connection counts once: one that closes does if no entry told of it when it opened.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.output import event
from tcpwatchd.report.tally import BYTES, DIRECTIONS, IN, RESETS, WITHIN, Largest, Recent, Tally

if TYPE_CHECKING:
    from collections.abc import Callable

    from tcpwatchd.report.journals import Fields

    Ends = tuple[bytes, bytes, bytes]
    """Source, destination and its port."""

MOST_NAMES = 20_000
"""Services, peers, ports and pairs that are counted at once; and twice as many for a while."""
MOST_OPEN = 100_000
"""Connections that are remembered from when they opened until they close; and twice as many for a while."""
MOST_SCANS = 1_000
OPENED, OPENED_MANY = event.CONNECTION_OPENED.encode(), event.CONNECTIONS_OPENED.encode()
CLOSED, CLOSED_MANY = event.CONNECTION_CLOSED.encode(), event.CONNECTIONS_CLOSED.encode()
OPENINGS = {OPENED, OPENED_MANY}
CONNECTIONS = {*OPENINGS, CLOSED, CLOSED_MANY}
SCAN, COUNTED = event.PORT_SCAN.encode(), event.CONNECTIONS_COUNTED.encode()
STARTED = event.WATCH_STARTED.encode()
OPENER = "PROCESS_SYSTEMD_UNIT", "PROCESS_SYSTEMD_USER_UNIT", "PROCESS_NAME"
LISTENER = "DESTINATION_SYSTEMD_UNIT", "DESTINATION_SYSTEMD_USER_UNIT", ""
"""Fields of who has the end that is here, and of who accepted a connection within."""
LONGEST_SERVICE, LONGEST_ADDRESSES, LONGEST_START = 1200, 100, 27
"""Bytes: what the daemon writes is shorter."""
MOST_FOLDED = 1 << 32
HOW = frozenset({b"fin", b"reset", b"timeout", b""})
START = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z").fullmatch
LONGEST_NUMBER = 20
"""Digits of what 64 bits hold."""
IGNORED = re.compile(rb"(?:^|, )([0-9]{1,20}) by ")
SUMS = ("TCPWATCHD_RECORDS_LOST", "TCPWATCHD_MISSED_INBOUND", "TCPWATCHD_MISSED_OUTBOUND")
LEAST_SAID = b"5"
"""Notices, and what is worse."""
LONGEST_SAID = 500
"""Bytes of a message."""
MOST_SAID = 100
"""Kinds of what the daemon says of itself, hosts, and units that write in its name."""
SECOND, MINUTE, TEN_MINUTES, HOUR = 19, 16, 15, 13
"""Characters of a time in ISO 8601 that tell it so finely."""
PRECISIONS = ((2 * 3600, SECOND), (14 * 86400, MINUTE), (400 * 86400, TEN_MINUTES))
"""Up to how many seconds a period lasts of which times are kept so finely."""


class Scan(NamedTuple):
    """How often it was told of a source, when last, and what was said then."""

    times: int
    last: int
    message: bytes
    is_verified: bool


class Said(NamedTuple):
    """Of one kind of what the daemon says of itself: how often, when last, and what it said then."""

    times: int
    last: int
    message: bytes


class Flow(NamedTuple):
    """A connection that closed, of which more is to be told. Duration in nanoseconds, size in bytes."""

    start: bytes
    source: tuple[bytes, bytes]
    destination: tuple[bytes, bytes]
    service: bytes
    duration: int | None
    size: int | None


class Summary:
    """Of a period, in microseconds since the epoch. `wanted` tells which connections count.

    What another unit than the daemon's wrote does not: anybody may write to the journal in the daemon's name.
    """

    def __init__(
        self,
        since: int,
        until: int,
        unit: str,
        top: int,
        wanted: Callable[[Fields], bool] | None = None,
        was_telling: bool = False,
    ) -> None:
        """`was_telling`: whether connections were told of when they opened, before the period."""
        self.since, self.until = since, until
        self._since, self._until = event.format_utc(since).encode(), event.format_utc(until).encode()
        self._second, self._moment = b"none yet", b""
        self.unit, self._unit, self._wanted = unit, unit.encode(), wanted
        seconds = (until - since) / event.MICROSECONDS
        self.precision = next((unit for most, unit in PRECISIONS if seconds <= most), HOUR)
        self.entries = self.connections = 0
        self.directions = [0, 0, 0]
        self.sizes = [[0, 0], [0, 0], [0, 0]]
        """Payload of what closed, by direction: what sources sent, and what destinations sent."""
        self.times: Counter[tuple[bytes, int]] = Counter()
        """Connections by when they opened, in UTC, and by direction."""
        self.services, self.ports, self.peers, self.pairs = (Tally(MOST_NAMES) for _ in range(4))
        self.longest, self.largest = Largest(top), Largest(top)
        self.closed: Counter[bytes] = Counter()
        """By how; b"" where that is not known."""
        self.open_before = self.folded = self.ignored = 0
        """Connections that were open when the watch began, that are told many in one entry, and that rules
        only count."""
        self.unpaired = 0
        """Connections that closed and may have been counted before."""
        self._told, self._over = Recent(MOST_OPEN), Recent(MOST_OPEN)
        """Connections that were told of when they opened; and what is not to count once more."""
        self._folded: Counter[Ends] = Counter()
        """Connections that were told many in one entry when they opened, until they close."""
        self._was_telling = was_telling
        self._tells: defaultdict[bytes, bool] = defaultdict(lambda: was_telling)
        """By host, whether connections are told of when they open."""
        self.scans: dict[bytes, Scan] = {}
        self.scans_left_out = 0
        self.said: dict[bytes, Said] = {}
        self.sums = Counter(dict.fromkeys(SUMS, 0))
        self.hosts: Counter[bytes] = Counter()
        self._users: set[bytes | None] = set()
        """Those that the daemon's unit ran as."""
        self.others: Counter[bytes] = Counter()
        """Entries by units that are not the daemon's; b"" where that is not known."""
        self.unknown_writers = self.malformed = 0
        """Entries that are the daemon's by their user alone, and what makes no sense."""

    def add(self, written: int, fields: Fields) -> None:
        """`written` is when, in microseconds since the epoch."""
        try:
            host = bound(fields.get("_HOSTNAME", b""), self.hosts)
            if not self._is_ours(fields):
                return
            self.hosts[host] += 1
            self.entries += 1
            kind = fields.get("MESSAGE_ID", b"")
            if kind not in CONNECTIONS:
                self._add_said(written, kind, fields, host)
            elif self._wanted is None or self._wanted(fields):
                self._add_connection(kind, fields, host)
        except (KeyError, ValueError, TypeError, AttributeError):  # it is not as the daemon writes it
            self.malformed += 1

    def _is_ours(self, fields: Fields) -> bool:
        """Of a sender that had ended journald can know no more than its user."""
        unit, user = fields.get("_SYSTEMD_UNIT"), fields.get("_UID")
        if unit == self._unit:
            self._users.add(user)
            return True
        if unit is None and user in self._users:
            self.unknown_writers += 1
            return True
        self.others[bound(unit or b"", self.others)] += 1
        return False

    def _add_connection(self, kind: bytes, fields: Fields, host: bytes) -> None:
        """Counts nothing of an entry that makes no sense: it raises before."""
        start, direction = fields["EVENT_START"], DIRECTIONS[fields["NETWORK_DIRECTION"]]
        ends = fields["SOURCE_IP"], fields["DESTINATION_IP"], fields["DESTINATION_PORT"]
        is_one = "SOURCE_PORT" in fields
        number = 1 if is_one else parse_count(fields["EVENT_COUNT"])
        moment = self._place(start), direction
        key = hash((*ends, fields["SOURCE_PORT"] if is_one else kind, start))
        if key in self._over or (kind == OPENED and key in self._told):
            return  # the same entry again: a file that was copied, or a batch that was repeated after a kill
        rows = self._find_rows(fields, direction, ends)
        size = reset = 0
        if kind in OPENINGS:
            new = number
            self._note_opening(number, fields, key, ends, is_one)
            self._tells[host] = True
        else:
            size, reset = self._note_closing(number, fields, direction)
            new = self._count_new(start, key, ends) if is_one else 0 if self._tells[host] else number
        if not (is_one and kind == OPENED):
            self._over.add(key)
        if new:
            self.connections += new
            self.directions[direction] += new
            self.times[moment] += new
        for row in rows:
            if new:
                row[direction] += new
            if size:
                row[BYTES] += size
            if reset:
                row[RESETS] += reset

    def _find_rows(self, fields: Fields, direction: int, ends: Ends) -> list[list[int]]:
        """Where it counts: of a connection within, for the services at both ends."""
        source, destination, port = ends
        service = find_service(fields, OPENER)
        if port not in self.ports.rows:
            parse_number(port)
        if len(source) + len(destination) > LONGEST_ADDRESSES:
            raise ValueError(ends)
        rows = [self.services.find_row(service), self.ports.find_row(port)]
        if direction == WITHIN:
            listener = find_service(fields, LISTENER)
            if listener and listener != service:
                rows.append(self.services.find_row(listener))
            peer = b""
        else:
            peer = source if direction == IN else destination
            rows.append(self.peers.find_row(peer))
        rows.append(self.pairs.find_row((service, peer)))
        return rows

    def _place(self, start: bytes) -> bytes:
        """Where in time it counts: what opened before the period, or is said to after it, at its ends.

        Many opened in the second of the one before.
        """
        if start[:SECOND] != self._second:
            if not START(start):
                raise ValueError(start)
            moment = min(max(start, self._since), self._until)[: self.precision]
            parse_moment(moment)
            self._second, self._moment = start[:SECOND], moment
        return self._moment

    def _note_opening(self, number: int, fields: Fields, key: int, ends: Ends, is_one: bool) -> None:
        if fields.get("TCPWATCHD_DETECTED_BY") == b"startup":
            self.open_before += number
        if is_one:
            self._told.add(key)
            return
        self.folded += number
        if len(self._folded) >= MOST_OPEN:
            self._told.has_forgotten = True
            self._folded.clear()
        self._folded[ends] += number

    def _note_closing(self, number: int, fields: Fields, direction: int) -> tuple[int, int]:
        """How many bytes it had, and how many were reset."""
        sent = parse_number(fields.get("SOURCE_BYTES", b"0"))
        answered = parse_number(fields.get("DESTINATION_BYTES", b"0"))
        how = fields.get("TCPWATCHD_CLOSED_BY", b"")
        if how not in HOW:
            raise ValueError(how)
        if "SOURCE_PORT" in fields:
            self._note_flow(fields)
        self.closed[how] += number
        self.sizes[direction][0] += sent
        self.sizes[direction][1] += answered
        return sent + answered, number * (how == b"reset")

    def _count_new(self, start: bytes, key: int, ends: Ends) -> int:
        """1 for one that closed and was not told of when it opened."""
        if key in self._told:
            self._told.discard(key)
            return 0
        if ends in self._folded:  # it was told with others
            self._folded[ends] -= 1
            if not self._folded[ends]:
                del self._folded[ends]
            return 0
        if start < self._since and self._was_telling:
            return 0
        self.unpaired += self._told.has_forgotten
        return 1

    def _note_flow(self, fields: Fields) -> None:
        """If it is one of the longest or the largest."""
        duration = parse_number(fields["EVENT_DURATION"]) if "EVENT_DURATION" in fields else None
        size = parse_number(fields["NETWORK_BYTES"]) if "NETWORK_BYTES" in fields else None
        is_long = duration is not None and duration > self.longest.least
        is_large = size is not None and size > self.largest.least
        if not is_long and not is_large:
            return
        parse_moment(fields["EVENT_START"][:SECOND])
        parse_number(fields["SOURCE_PORT"])
        source = fields["SOURCE_IP"], fields["SOURCE_PORT"]
        destination = fields["DESTINATION_IP"], fields["DESTINATION_PORT"]
        service = find_service(fields, OPENER)
        flow = Flow(fields["EVENT_START"][:LONGEST_START], source, destination, service, duration, size)
        if duration is not None and is_long:
            self.longest.add(duration, flow)
        if size is not None and is_large:
            self.largest.add(size, flow)

    def _add_said(self, written: int, kind: bytes, fields: Fields, host: bytes) -> None:
        if kind == SCAN:
            self._add_scan(written, fields)
            return
        message = bytes(fields["MESSAGE"])[:LONGEST_SAID]
        sums = {name: parse_number(fields[name]) for name in SUMS if name in fields}
        if kind == STARTED:
            self._tells[host] = False
        if kind == COUNTED:
            self.ignored += sum(map(int, IGNORED.findall(fields["TCPWATCHD_IGNORED_BY"])))
        if fields.get("PRIORITY", b"") > LEAST_SAID:
            return
        self.sums.update(sums)
        before = self.said.get(kind)
        if before or len(self.said) < MOST_SAID:
            self.said[kind] = Said(before.times + 1 if before else 1, written, message)

    def _add_scan(self, written: int, fields: Fields) -> None:
        source = fields.get("TCPWATCHD_SOURCE_NETWORK") or fields["SOURCE_IP"]
        before = self.scans.get(source)
        if before is None and len(self.scans) >= MOST_SCANS:
            self.scans_left_out += 1
            return
        times = before.times + 1 if before else 1
        is_verified = fields.get("TCPWATCHD_SOURCE_VERIFIED") == b"yes"
        self.scans[source] = Scan(times, written, bytes(fields["MESSAGE"])[:LONGEST_SAID], is_verified)


def find_service(fields: Fields, names: tuple[str, str, str]) -> bytes:
    """Who has an end: its unit, or "process NAME" where that is not known, or b"". Raises ValueError.

    What a user has called so is told apart from what is the machine's.
    """
    unit, user_unit, process = map(fields.get, names)
    if unit is None:
        service = b"" if process is None else b"process " + process
    elif user_unit is not None:
        service = unit + b"/" + user_unit
    else:
        service = unit
    if len(service) > LONGEST_SERVICE:
        raise ValueError(service)
    return service


def bound(name: bytes, counts: Counter[bytes]) -> bytes:
    """The name, or one for all that are too many."""
    return name if name in counts or len(counts) < MOST_SAID else b"..."


def parse_count(text: bytes) -> int:
    """How many connections an entry tells of. Raises ValueError."""
    number = parse_number(text)
    if not 1 <= number < MOST_FOLDED:
        raise ValueError(text)
    return number


def parse_number(text: bytes) -> int:
    """Raises ValueError: a number that is longer than any that the daemon writes is none."""
    if not text.isdigit() or len(text) > LONGEST_NUMBER:
        raise ValueError(text)
    return int(text)


def parse_moment(text: bytes) -> int:
    """Seconds since the epoch, of the beginning of a time in ISO 8601. Raises ValueError."""
    whole = text + b"0" if len(text) == TEN_MINUTES else text
    return int(datetime.fromisoformat(whole.decode()).replace(tzinfo=timezone.utc).timestamp())
