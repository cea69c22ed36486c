"""What the entries of a period add up to, in bounded memory. No I/O.

Each connection counts once: one that closes counts if it opened in the period, and no entry said so before.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.output import event
from tcpwatchd.report.tally import BYTES, DIRECTIONS, IN, RESETS, WITHIN, Largest, Tally

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
"""Kinds of what the daemon says of itself, and units that write in its name."""
SECOND, MINUTE, HOUR = 19, 16, 13
"""Characters of a time in ISO 8601 that tell it so finely."""
PRECISIONS = ((2 * 3600, SECOND), (14 * 86400, MINUTE))
"""Up to how many seconds a period lasts of which times are kept so finely."""
MICROSECONDS = 1_000_000


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
    ) -> None:
        self.since, self.until = since, until
        self._since, self._until = event.format_utc(since).encode(), event.format_utc(until).encode()
        self._second, self._moment = b"none yet", b""
        self._unit, self._wanted = unit.encode(), wanted
        seconds = (until - since) / MICROSECONDS
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
        self.open_before = self.folded = self.ignored = self.starts = 0
        """Connections that were open when the watch began, that are told many in one entry, and that rules
        only count; and how often the daemon was started."""
        self.unpaired = 0
        """Connections that closed and may have been counted before."""
        self._open: set[int] = set()
        self._open_longer: set[int] = set()
        self._folded: Counter[Ends] = Counter()
        """Connections that are told many in one entry when they open, until they close."""
        self._has_openings = self._has_forgotten = False
        self.scans: dict[bytes, Scan] = {}
        self.scans_left_out = 0
        self.said: dict[bytes, Said] = {}
        self.sums = Counter(dict.fromkeys(SUMS, 0))
        self.hosts: Counter[bytes] = Counter()
        self.others: Counter[bytes] = Counter()
        """Entries by units that are not the daemon's."""
        self.unknown_writers = self.malformed = 0
        """Entries of which journald did not know the unit any more, and what makes no sense."""

    def add(self, written: int, fields: Fields) -> None:
        """`written` is when, in microseconds since the epoch."""
        unit = fields.get("_SYSTEMD_UNIT")
        if unit != self._unit:
            if unit is not None:
                self.others[unit if unit in self.others or len(self.others) < MOST_SAID else b"others"] += 1
                return
            self.unknown_writers += 1
        self.entries += 1
        kind = fields.get("MESSAGE_ID", b"")
        try:
            if kind not in CONNECTIONS:
                self._add_said(written, kind, fields)
            elif self._wanted is None or self._wanted(fields):
                self._add_connection(kind, fields)
            self.hosts[fields.get("_HOSTNAME", b"")] += 1
        except (KeyError, ValueError, TypeError, AttributeError):  # it is not as the daemon writes it
            self.malformed += 1

    def _add_connection(self, kind: bytes, fields: Fields) -> None:
        """Counts nothing of an entry that makes no sense: it raises before."""
        start, direction = fields["EVENT_START"], DIRECTIONS[fields["NETWORK_DIRECTION"]]
        source, destination = fields["SOURCE_IP"], fields["DESTINATION_IP"]
        port, service = fields["DESTINATION_PORT"], find_service(fields)
        if port not in self.ports.rows:
            parse_number(port)
        is_one = "SOURCE_PORT" in fields
        number = 1 if is_one else parse_number(fields["EVENT_COUNT"])
        moment = self._place(start), direction
        key = hash((source, fields["SOURCE_PORT"] if is_one else None, destination, port, start))
        size = reset = 0
        if kind in OPENINGS:
            new = number
            self._note_opening(number, fields, key if is_one else (source, destination, port))
        else:
            size, reset = self._note_closing(number, fields, direction, service)
            new = self._count_new(number, start, key if is_one else None, (source, destination, port))
        if new:
            self.connections += new
            self.directions[direction] += new
            self.times[moment] += new
        rows = [self.services.find_row(service), self.ports.find_row(port)]
        if direction != WITHIN:
            peer = source if direction == IN else destination
            rows += self.peers.find_row(peer), self.pairs.find_row((service, peer))
        for row in rows:
            if new:
                row[direction] += new
            if size:
                row[BYTES] += size
            if reset:
                row[RESETS] += reset

    def _place(self, start: bytes) -> bytes:
        """Where in time it counts: what opened before the period, or is said to after it, at its ends.

        Many opened in the second of the one before.
        """
        if start[:SECOND] != self._second:
            if not START(start):
                raise ValueError(start)
            moment = min(max(start, self._since), self._until)[: self.precision]
            datetime.fromisoformat(moment.decode())
            self._second, self._moment = start[:SECOND], moment
        return self._moment

    def _note_opening(self, number: int, fields: Fields, key: int | Ends) -> None:
        self._has_openings = True
        if isinstance(key, tuple):
            self.folded += number
            if len(self._folded) >= MOST_OPEN:
                self._has_forgotten = True
                self._folded.clear()
            self._folded[key] += number
            return
        self.open_before += fields.get("TCPWATCHD_DETECTED_BY") == b"startup"
        if len(self._open) >= MOST_OPEN:
            self._has_forgotten |= bool(self._open_longer)
            self._open, self._open_longer = set(), self._open
        self._open.add(key)

    def _note_closing(self, number: int, fields: Fields, direction: int, service: bytes) -> tuple[int, int]:
        """How many bytes it had, and how many were reset."""
        sent = parse_number(fields.get("SOURCE_BYTES", b"0"))
        answered = parse_number(fields.get("DESTINATION_BYTES", b"0"))
        how = fields.get("TCPWATCHD_CLOSED_BY", b"")
        if how not in HOW:
            raise ValueError(how)
        if "SOURCE_PORT" in fields:
            self._note_flow(fields, service)
        self.closed[how] += number
        self.sizes[direction][0] += sent
        self.sizes[direction][1] += answered
        return sent + answered, number * (how == b"reset")

    def _count_new(self, number: int, start: bytes, key: int | None, ends: Ends) -> int:
        """How many of what closed opened in the period, and were not counted then."""
        if start < self._since:
            return 0
        if key is None:  # it does not say which
            return 0 if self._has_openings else number
        for told in (self._open, self._open_longer):
            if key in told:
                told.remove(key)
                return 0
        if ends in self._folded:  # it was told with others when they opened
            self._folded[ends] -= 1
            if not self._folded[ends]:
                del self._folded[ends]
            return 0
        self.unpaired += self._has_forgotten
        return 1

    def _note_flow(self, fields: Fields, service: bytes) -> None:
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
        flow = Flow(fields["EVENT_START"], source, destination, service, duration, size)
        if duration is not None and is_long:
            self.longest.add(duration, flow)
        if size is not None and is_large:
            self.largest.add(size, flow)

    def _add_said(self, written: int, kind: bytes, fields: Fields) -> None:
        if kind == SCAN:
            self._add_scan(written, fields)
            return
        message = bytes(fields["MESSAGE"])[:LONGEST_SAID]
        sums = {name: parse_number(fields[name]) for name in SUMS if name in fields}
        self.starts += kind == STARTED
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


def find_service(fields: Fields) -> bytes:
    """Who has the end that is here: its unit, else the name of its process, else b""."""
    unit = fields.get("PROCESS_SYSTEMD_UNIT")
    if unit is None:
        return fields.get("PROCESS_NAME", b"")
    return fields.get("PROCESS_SYSTEMD_USER_UNIT", unit) if unit.startswith(b"user@") else unit


def parse_number(text: bytes) -> int:
    """Raises ValueError: a number that is longer than any that the daemon writes is none."""
    if not text.isdigit() or len(text) > LONGEST_NUMBER:
        raise ValueError(text)
    return int(text)


def parse_moment(text: bytes) -> int:
    """Seconds since the epoch, of the beginning of a time in ISO 8601. Raises ValueError."""
    return int(datetime.fromisoformat(text.decode()).replace(tzinfo=timezone.utc).timestamp())
