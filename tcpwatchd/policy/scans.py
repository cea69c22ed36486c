"""Which sources try many ports of this machine, or one at many addresses. No I/O, no clock.

Counted are ports that accepted a connection, and closed ones where the kernel tells of the resets that this
machine sent. What is told depends on their times alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.connection import Connection, Endpoint, PortScan, TcpState
from tcpwatchd.policy.sources import ACCEPTED, ACCEPTED_INSIDE, REFUSED, Sources

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Set

    from tcpwatchd.connection import GoesOn, Reset, Transition
    from tcpwatchd.policy.sources import Source

    Addresses = tuple[bytes, bytes]
    """The first and the last, packed."""

HOLD = 2_000_000_000
"""Nanoseconds from when a scan is found until it is told, for it will be about more ports."""
MOST_SCANS = 300
"""Scans that are followed at once, each with its ports; those beyond are only counted."""
MOST_ADDRESSES = 256
"""Addresses of this machine that are told of a scan."""
MOST_ACCEPTED = 1_000
"""Open ports that are told of a scan."""
MOST_UNFOLLOWED = 10_000
"""Sources that are counted of those that scan and are not followed."""
MOST_CALLED = 20_000
"""Places that this machine opened connections to, twice over."""
MOST_PASSED = 10_000
WELL_KNOWN = 1024
"""Ports below this are servers'."""
LINK_LOCAL = bytes.fromhex("fe80") + bytes(14)
HERE = b""
"""Stands for all addresses of this machine; those of its containers are none of them."""
SYN_SENT = TcpState.SYN_SENT
NONE_REFUSED: frozenset[Endpoint] = frozenset()
NONSENSE = 1_000_000_000
"""No reset was sent so many nanoseconds after it was read, unless the clock of its record was changed."""


class ScanLimits(NamedTuple):
    """What is a scan; as in the configuration. Times in nanoseconds."""

    ports: int
    """More than so many, in the window."""
    window: int
    addresses: int | None
    """More than so many with the same port, likewise. None: no number of them."""
    slow_ports: int | None
    """More ports than this, in the longer window."""
    slow_window: int
    allowed: tuple[Addresses, ...]
    """Sources that may scan."""
    ignored_ports: tuple[tuple[int, int], ...]
    prefix6: int
    """Bits that the addresses of one source of IPv6 have in common."""

    @property
    def memory(self) -> int:
        """For how long a place is remembered."""
        return self.window if self.slow_ports is None else max(self.window, self.slow_window)

    @property
    def fewest(self) -> int:
        """What is at most this is no scan of any kind."""
        return min(limit for limit in (self.ports, self.addresses, self.slow_ports) if limit is not None)


class Ports:
    """A set of them that is small: 256 in a number."""

    __slots__ = ("blocks",)

    def __init__(self, blocks: Iterable[tuple[int, int]] = ()) -> None:
        self.blocks = dict(blocks)
        """By the upper half of their numbers: a bit for each."""

    def add(self, port: int) -> bool:
        """Whether it is new."""
        block, bit = port >> 8, 1 << (port & 0xFF)
        before = self.blocks.get(block, 0)
        self.blocks[block] = before | bit
        return not before & bit

    def __len__(self) -> int:
        return sum(bin(bits).count("1") for bits in self.blocks.values())

    def __iter__(self) -> Iterator[int]:
        """In order."""
        for block, bits in sorted(self.blocks.items()):
            yield from (block << 8 | bit for bit in range(256) if bits >> bit & 1)


class Scan:
    """What a source that scans tried."""

    __slots__ = (
        "accepted",
        "address",
        "addresses",
        "all_addresses",
        "all_ports",
        "due",
        "first",
        "has_others",
        "inside",
        "is_least",
        "last",
        "new_addresses",
        "new_ports",
        "ports",
        "told_at",
        "window",
    )

    def __init__(self, address: bytes, window: int, due: int) -> None:
        self.address = address
        """The last one that it had."""
        self.has_others = False
        """Whether it had more."""
        self.window = window
        """Nanoseconds between two entries; as long as it goes on."""
        self.due = due
        """When it is to be told, or is over: nanoseconds of CLOCK_BOOTTIME."""
        self.told_at = 0
        """When it was last told, likewise; 0 if it was not."""
        self.all_ports = Ports()
        self.all_addresses: set[bytes] = set()
        """What it ever tried."""
        self.clear()

    def clear(self) -> None:
        """Begin anew with what is told."""
        self.first = self.last = 0
        self.ports, self.new_ports = Ports(), Ports()
        self.addresses: set[bytes] = set()
        self.new_addresses: set[bytes] = set()
        """Those that it never tried before."""
        self.accepted: dict[Endpoint, int] = {}
        """Places that accepted a connection, and when: nanoseconds of CLOCK_BOOTTIME."""
        self.inside: set[Endpoint] = set()
        """Those of them that a connection inside this machine was for."""
        self.is_least = False
        """Whether there may be more of it."""

    def add(self, place: Endpoint, time: int, how: int) -> None:
        address, port = place.address, place.port
        self.first = min(self.first or time, time)
        self.last = max(self.last, time)
        self.ports.add(port)
        if self.all_ports.add(port):
            self.new_ports.add(port)
        if address not in self.all_addresses and len(self.all_addresses) < MOST_ADDRESSES:
            self.all_addresses.add(address)
            self.new_addresses.add(address)
        if len(self.addresses) < MOST_ADDRESSES:
            self.addresses.add(address)
        self.is_least |= address not in self.addresses
        if how and (place in self.accepted or len(self.accepted) < MOST_ACCEPTED):
            self.accepted[place] = max(time, self.accepted.get(place, 0))
            if how == ACCEPTED_INSIDE:
                self.inside.add(place)


class ScansKnown(NamedTuple):
    """What is remembered, for another process to go on from."""

    places: list[tuple[bytes, Endpoint, int, int, bytes]]
    """As `Sources` has them."""
    scans: list[tuple[bytes, Scan]]
    called: list[Endpoint]
    unfollowed: list[bytes]
    lost_until: int
    prefix6: int
    """As the limits had it: sources of IPv6 are by that."""
    read: tuple[int, int]
    """The instance from which resets were read, and how many records it ever gave."""


NOTHING_SCANNED = ScansKnown([], [], [], [], 0, 0, (0, 0))


class Scans:
    """`limits` None: nobody is looked at."""

    def __init__(self, limits: ScanLimits | None = None, hears_resets: bool = False) -> None:
        self.limits: ScanLimits | None = None
        self._sources = Sources(0, 0, 0)
        self._hears_resets = hears_resets
        self._addresses: frozenset[bytes] = frozenset()
        self._called: set[Endpoint] = set()
        self._called_before: set[Endpoint] = set()
        self._forgotten = 0
        self.told = 0
        """Scans that were told."""
        self.resets_lost = 0
        """Resets of which the kernel had no record any more, at least."""
        self.read = 0, 0
        """The instance from which they were read, and how many records it ever gave."""
        self.switch(limits)

    def switch(self, limits: ScanLimits | None) -> None:
        """Begin anew, by these."""
        self._forgotten += self._sources.forgotten
        self.limits = limits
        self._sources = Sources(limits.window, limits.memory, limits.fewest) if limits else Sources(0, 0, 0)
        self._scans: dict[bytes, Scan] = {}
        """By the source: an address, or for IPv6 its network, if that is not one of this machine."""
        self._passed: set[bytes] = set()
        """Addresses of those that are not looked at."""
        self._lost_until = 0
        """Until when resets were lost: nanoseconds of CLOCK_BOOTTIME."""
        self._unfollowed: set[bytes] = set()
        """Sources that scan and are not followed, since that was told."""
        self._tell_unfollowed_at = 0
        self._mask6 = (1 << 128) - (1 << 128 - (limits.prefix6 if limits else 64))
        self._find_neighbours()

    @property
    def forgotten(self) -> int:
        """Sources that were forgotten, there being too many, though they could still have been found out."""
        return self._forgotten + self._sources.forgotten

    @property
    def scanning(self) -> int:
        """How many sources scan now, as far as they are followed."""
        return len(self._scans)

    @property
    def addresses(self) -> frozenset[bytes]:
        """Of this machine, packed. What it does to itself is no scan."""
        return self._addresses

    @addresses.setter
    def addresses(self, addresses: frozenset[bytes]) -> None:
        if addresses != self._addresses:
            self._addresses = addresses
            self._passed.clear()
            self._find_neighbours()

    def _find_neighbours(self) -> None:
        own = [address for address in self._addresses if len(address) == 16]
        self._neighbours = {self._find_network(address) for address in [*own, LINK_LOCAL]}
        """Networks that this machine is in: there each address is a source of its own."""

    def follow(self, found: Iterable[object]) -> None:
        """Of what was found, connections that were accepted here."""
        if self.limits is None:
            return
        single, several, passed = self._sources.single, self._sources.several, self._passed
        window, scans = self.limits.window, self._scans
        for item in found:
            if type(item) is not Connection:
                continue
            place, direction, time = item[1], item[2], item[5]
            if item[4] != "trace":
                self._note_polled(item)
            if direction == "egress" or item[4] == "startup":
                continue
            address = item[0][:-2]
            if address in passed:
                continue
            key = address if len(address) == 4 else self._find_source(address)
            how = ACCEPTED_INSIDE if direction == "internal" else ACCEPTED
            known = single.get(key)
            if known and known[0] == place and known[3] == address:
                if time > known[1] or not known[2]:
                    single[key] = place, time if time > known[1] else known[1], known[2] or how, address
                continue
            source = several.get(key)
            if not source or key in scans or not source.repeats(place, time, how, address, window):
                self._try(key, place, time, how, address)

    def _note_polled(self, connection: Connection) -> None:
        """No record told of its SYN."""
        if connection.direction != "ingress" and self._hears_resets:
            self.note_called([connection.destination])

    def follow_calls(self, transitions: Iterable[Transition]) -> None:
        """Where this machine opens connections to: late packets from there are no scan."""
        if self._hears_resets:
            self.note_called({record[4][1] for record in transitions if record[3] is SYN_SENT})

    def note_called(self, places: Iterable[Endpoint]) -> None:
        self._called.update(places)
        if len(self._called) >= MOST_CALLED:
            self._called, self._called_before = set(), self._called

    def follow_resets(self, resets: Iterable[Reset], lost: int, now: int) -> None:
        """`lost` of them are missing, at least; `now`: nanoseconds of CLOCK_BOOTTIME."""
        if self.limits is None:
            return
        if lost:
            self.note_loss(now, lost)
        for time, (place, remote) in resets:
            if time > now + NONSENSE:
                self.note_loss(now)
                continue
            if remote in self._called or remote in self._called_before:
                continue
            address = remote.address
            key = address if len(address) == 4 else self._find_source(address)
            if remote.port < WELL_KNOWN <= place.port:
                # Most likely an answer: a late one, one to a scan that this machine makes, or backscatter.
                if key in self._scans:
                    self._scans[key].is_least = True
                continue
            is_new = key not in self._scans and not self._sources.knows(key)
            self._try(key, place, time, REFUSED, address)
            if is_new and len(address) == 16 and key == address:
                # A neighbour that has a new address for each packet is found by its network.
                self._try(self._find_network(address), place, time, REFUSED, address)

    def note_loss(self, now: int, number: int = 1) -> None:
        """Resets are missing that were sent before now."""
        self.resets_lost += number
        self._lost_until = now

    def _find_source(self, address: bytes) -> bytes:
        """Of IPv6: its network, but its address if that is a neighbour's."""
        network = self._find_network(address)
        return address if network in self._neighbours else network

    def _find_network(self, address: bytes) -> bytes:
        return (int.from_bytes(address, "big") & self._mask6).to_bytes(16, "big")

    def _try(self, key: bytes, place: Endpoint, time: int, how: int, address: bytes) -> None:
        """Somebody tried a place, perhaps again."""
        limits = self.limits
        if (
            limits is None
            or address == place.address
            or self._may_scan(address, limits)
            or any(low <= place.port <= high for low, high in limits.ignored_ports)
        ):
            return
        scan = self._scans.get(key)
        if scan:
            scan.has_others |= address != scan.address
            scan.address = address
            scan.add(place, time, how)
            if scan.window <= limits.window:
                return
        source = self._sources.note(key, place, time, how, address)
        if source:
            self._look_at(key, source, limits)

    def _may_scan(self, address: bytes, limits: ScanLimits) -> bool:
        if (
            address not in self._addresses
            and not Endpoint(address + bytes(2)).is_loopback
            and not any(
                len(first) == len(address) and first <= address <= last for first, last in limits.allowed
            )
        ):
            return False
        if len(self._passed) >= MOST_PASSED:
            self._passed.clear()
        self._passed.add(address)
        return True

    def _look_at(self, key: bytes, source: Source, limits: ScanLimits) -> None:
        """Whether it scans. One that does so slowly is looked at on, for it can do so fast."""
        self._sources.trim(source)
        now = max(source.places.values())
        scan = self._scans.get(key)
        sets = source.inside, source.refused
        window, source.left = self._judge(source.places, *sets, limits, slowly=scan is None)
        if window is None:
            return
        if scan is None:
            self._begin(key, source, window, now, limits)
        elif scan.window > window:
            scan.window = window
            scan.due = min(scan.due, now + HOLD)
            if scan.told_at:
                scan.due = max(scan.due, scan.told_at + window)
        if window <= limits.window or key not in self._scans:
            self._sources.remove(key)

    def _judge(
        self,
        places: Mapping[Endpoint, int],
        inside: Set[Endpoint],
        refused: Set[Endpoint],
        limits: ScanLimits,
        slowly: bool,
    ) -> tuple[int | None, int]:
        """In which window this is a scan, if it is one; and how many places more could be one.

        `slowly`: the longer window counts too. To connect to a service at many addresses is no scan if they
        are those of containers.
        """
        now = max(places.values(), default=0)
        fast, slow = (
            [place for place, time in places.items() if time >= now - window]
            for window in (limits.window, limits.slow_window)
        )
        counted = [(self._count_ports(fast, inside), limits.ports, limits.window)]
        if limits.addresses is not None:
            swept = [place for place in fast if place in refused or place.address in self._addresses]
            counted.append((count_addresses(swept), limits.addresses, limits.window))
        if limits.slow_ports is not None:
            counted.append((self._count_ports(slow, inside), limits.slow_ports, limits.slow_window))
        windows = [window for number, limit, window in counted if number > limit]
        window = min((one for one in windows if slowly or one <= limits.window), default=None)
        return window, max(1, min(limit + 1 - number for number, limit, _ in counted))

    def _begin(self, key: bytes, source: Source, window: int, now: int, limits: ScanLimits) -> None:
        """A scan that rests on forged packets, perhaps, makes room for one that does not."""
        scan = Scan(source.address, window, now + HOLD)
        scan.has_others = source.has_others
        for place, time in source.places.items():
            if time >= now - window:
                scan.add(place, time, source.get_how(place))
        if len(self._scans) >= MOST_SCANS:
            left_out = key
            if self._is_verified(scan, limits):
                others = (other for other, one in self._scans.items() if not self._is_verified(one, limits))
                left_out = next(others, key)
            if len(self._unfollowed) < MOST_UNFOLLOWED:
                self._unfollowed.add(left_out)
            self._scans.pop(left_out, None)
            if left_out == key:
                return
        self._scans[key] = scan

    def _is_verified(self, scan: Scan, limits: ScanLimits) -> bool:
        slowly = scan.window > limits.window
        return self._judge(scan.accepted, scan.inside, NONE_REFUSED, limits, slowly)[0] is not None

    def _count_ports(self, places: Iterable[Endpoint], inside: Set[Endpoint]) -> int:
        """The most at this machine, or at an address of one of its containers, as others of them see it."""
        ports: dict[bytes, set[bytes]] = {}
        for place in places:
            address = place.address
            where = address if place in inside and address not in self._addresses else HERE
            ports.setdefault(where, set()).add(place[-2:])
        return max(map(len, ports.values()), default=0)

    @property
    def next_due(self) -> int | None:
        """When there is something to settle: nanoseconds of CLOCK_BOOTTIME."""
        return min((scan.due for scan in self._scans.values()), default=None)

    def settle(self, until: int, everything: bool = False) -> list[PortScan]:
        """What is to be told then; scans that did not go on are over. Nanoseconds of CLOCK_BOOTTIME."""
        told = []
        for key, scan in list(self._scans.items()):
            limits = self.limits
            if limits is None or (scan.due > until and not everything):
                continue
            is_on = scans_on(scan, limits)
            again_at = scan.told_at + max(scan.window, limits.slow_window)
            if scan.new_ports or scan.new_addresses or (is_on and until >= again_at):
                told.append(self._tell(key, scan, limits, until))
            elif is_on:
                # What it tries it tried before: that was told.
                scan.due = until + scan.window
                scan.clear()
            elif not everything:
                del self._scans[key]
        return told

    def _tell(self, key: bytes, scan: Scan, limits: ScanLimits, now: int) -> PortScan:
        """Only what is new, if anything is."""
        goes_on: GoesOn = ""
        if scan.told_at:
            goes_on = "ports" if scan.new_ports else "addresses" if scan.new_addresses else "again"
        ports = list(scan.new_ports or scan.ports)
        opened = {place.port for place in scan.accepted}
        told = PortScan(
            scan.address,
            (key, limits.prefix6) if scan.has_others else None,
            scan.first,
            scan.last,
            [port for port in ports if port in opened],
            [port for port in ports if port not in opened],
            sorted(scan.new_addresses if goes_on == "addresses" else scan.addresses),
            scan.is_least or scan.first <= self._lost_until,
            self._is_verified(scan, limits),
            goes_on,
        )
        self.told += not scan.told_at
        scan.told_at, scan.due = now, now + scan.window
        scan.clear()
        return told

    def take_unfollowed(self, now: int, everything: bool = False) -> int:
        """How many sources scan and are not followed, if that is to be told now."""
        is_due = everything or now >= self._tell_unfollowed_at
        if self.limits is None or not self._unfollowed or not is_due:
            return 0
        number = len(self._unfollowed)
        self._unfollowed.clear()
        self._tell_unfollowed_at = now + self.limits.window
        return number

    @property
    def known(self) -> ScansKnown:
        """All that is remembered."""
        called = [*self._called_before, *self._called]
        scans = list(self._scans.items())
        prefix6 = self.limits.prefix6 if self.limits else 0
        return ScansKnown(
            list(self._sources), scans, called, list(self._unfollowed), self._lost_until, prefix6, self.read
        )

    def restore(self, known: ScansKnown) -> None:
        """Go on from it, by the limits that are."""
        limits = self.limits
        if limits is None:
            return
        self.note_called(known.called)
        self._lost_until, self._unfollowed, self.read = known.lost_until, set(known.unfollowed), known.read

        def fits(key: bytes, address: bytes) -> bool:
            is_same = len(key) == 4 or known.prefix6 == limits.prefix6
            return is_same and not self._may_scan(address, limits)

        for key, place, time, how, address in known.places:
            if fits(key, address):
                self._sources.note(key, place, time, how, address)
        self._scans = {key: scan for key, scan in known.scans if fits(key, scan.address)}


def scans_on(scan: Scan, limits: ScanLimits) -> bool:
    """Whether what it tried lately is a scan, though it may have tried it before."""
    most = limits.ports if scan.window <= limits.window else limits.slow_ports
    too_many = most is not None and len(scan.ports) > most
    return too_many or (limits.addresses is not None and len(scan.addresses) > limits.addresses)


def count_addresses(places: Iterable[Endpoint]) -> int:
    """The most that were tried with the same port."""
    addresses: dict[bytes, set[bytes]] = {}
    for place in places:
        addresses.setdefault(place[-2:], set()).add(place.address)
    return max(map(len, addresses.values()), default=0)
