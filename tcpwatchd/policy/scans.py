"""Which sources try many ports of this machine, or one at many addresses. No I/O, no clock.

Counted are ports that accepted a connection, and closed ones where the kernel tells of the resets that this
machine sent. What is told depends on their times alone.
"""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from tcpwatchd.connection import Connection, Endpoint, PortScan, TcpState

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tcpwatchd.connection import Reset, Transition

    Addresses = tuple[bytes, bytes]
    """The first and the last, packed."""

HOLD = 2_000_000_000
"""Nanoseconds from when a scan is found until it is told, for it will be about more ports."""
MOST_SINGLE = 20_000
"""Sources that tried one place, a port at an address. Memory is bounded: the oldest are forgotten."""
MOST_SOURCES = 10_000
"""Those that tried more."""
MOST_PLACES = 1_000
"""Of a source that does not scan."""
MOST_SCANS = 1_000
"""Scans that are followed at once, each with its ports; those beyond are only counted."""
MOST_ADDRESSES = 256
"""Addresses of this machine that are told of a scan."""
MOST_CALLED = 20_000
"""Places that this machine opened connections to, twice over."""
MOST_PASSED = 10_000
HERE = b""
"""Stands for all addresses of this machine; those of its containers are none of them."""

Key = TypeVar("Key")


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


class Source:
    """One that tried a few places."""

    __slots__ = "left", "places", "refused"

    def __init__(self, left: int) -> None:
        self.left = left
        """As long as fewer are added, it scans nothing."""
        self.places: dict[Endpoint, int] = {}
        """When it last tried each: nanoseconds of CLOCK_BOOTTIME."""
        self.refused: set[Endpoint] = set()
        """Those that are closed."""

    def repeats(self, place: Endpoint, time: int, window: int) -> bool:
        """Whether it tried the place in the same window: it is no nearer to a scan then."""
        last = self.places.get(place)
        if last is None or not last - window <= time <= last + window:
            return False
        self.places[place] = max(last, time)
        return True

    def add(self, place: Endpoint, time: int, accepted: bool) -> None:
        self.left -= 1
        self.places[place] = max(time, self.places.get(place, 0))
        if not accepted:
            self.refused.add(place)

    def forget(self, before: int) -> None:
        """What was last tried before then, and the oldest of too many."""
        kept = {place: time for place, time in self.places.items() if time >= before}
        for place in list(islice(kept, max(0, len(kept) - MOST_PLACES))):
            del kept[place]
        self.places = kept
        self.refused &= kept.keys()


class Scan:
    """What a source that scans tried."""

    __slots__ = (
        "address",
        "addresses",
        "all_addresses",
        "all_ports",
        "due",
        "first",
        "has_others",
        "is_new",
        "last",
        "open",
        "ports",
        "recent",
        "told",
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
        self.told = False
        self.all_ports = Ports()
        self.all_addresses: set[bytes] = set()
        """What it ever tried."""
        self.recent: deque[int] = deque()
        """When it last tried ports that were new."""
        self.clear()

    def clear(self) -> None:
        """Begin anew with what is told."""
        self.first = self.last = 0
        self.ports, self.open = Ports(), Ports()
        self.addresses: set[bytes] = set()
        self.is_new = False
        """Whether any of it was never tried before."""

    def add(self, place: Endpoint, time: int, accepted: bool) -> bool:
        """Whether the port is new."""
        address, port = place.address, place.port
        self.first = min(self.first or time, time)
        self.last = max(self.last, time)
        self.ports.add(port)
        if accepted:
            self.open.add(port)
        is_new = self.all_ports.add(port)
        self.is_new |= is_new or address not in self.all_addresses
        for addresses in (self.addresses, self.all_addresses):
            if len(addresses) < MOST_ADDRESSES:
                addresses.add(address)
        return is_new


class ScansKnown(NamedTuple):
    """What is remembered, for another process to go on from."""

    places: list[tuple[bytes, Endpoint, int, bool]]
    """Sources, what each tried, when, and whether it was accepted."""
    scans: list[tuple[bytes, Scan]]
    called: list[Endpoint]
    lost_until: int
    uncounted: int


NOTHING_SCANNED = ScansKnown([], [], [], 0, 0)


class Scans:
    """`limits` None: nobody is looked at."""

    def __init__(self, limits: ScanLimits | None = None, hears_resets: bool = False) -> None:
        self._hears_resets = hears_resets
        self._addresses: frozenset[bytes] = frozenset()
        self._called: set[Endpoint] = set()
        self._called_before: set[Endpoint] = set()
        self.told = 0
        """Scans that were told."""
        self.forgotten = 0
        """Sources that were forgotten, there being too many, though they could still have been found out."""
        self.resets_lost = 0
        """Resets of which the kernel had no record any more, at least."""
        self.switch(limits)

    def switch(self, limits: ScanLimits | None) -> None:
        """Begin anew, by these."""
        self.limits = limits
        self._single: dict[bytes, tuple[Endpoint, int, bool]] = {}
        self._sources: dict[bytes, Source] = {}
        self._scans: dict[bytes, Scan] = {}
        """All by the source: an address, or for IPv6 its network."""
        self._passed: set[bytes] = set()
        """Addresses of those that are not looked at."""
        self._lost_until = 0
        """Until when resets were lost: nanoseconds of CLOCK_BOOTTIME."""
        self._uncounted = 0
        self._tell_uncounted_at = 0
        if limits:
            self._mask6 = (1 << 128) - (1 << 128 - limits.prefix6)

    @property
    def addresses(self) -> frozenset[bytes]:
        """Of this machine, packed. What it does to itself is no scan."""
        return self._addresses

    @addresses.setter
    def addresses(self, addresses: frozenset[bytes]) -> None:
        if addresses != self._addresses:
            self._addresses = addresses
            self._passed.clear()

    def follow(self, found: Iterable[object]) -> None:
        """Of what was found, connections that were accepted here."""
        if self.limits is None:
            return
        single, sources, passed, window = self._single, self._sources, self._passed, self.limits.window
        for item in found:
            if type(item) is not Connection:
                continue
            place, time = item[1], item[5]
            if item[4] != "trace" and item[2] != "ingress" and self._hears_resets:
                self.note_called([place])
            if item[2] == "egress" or item[4] == "startup":
                continue
            address = item[0][:-2]
            if address in passed:
                continue
            key = address if len(address) == 4 else self._find_network(address)
            known = single.get(key)
            if known and known[0] == place:
                single[key] = (place, time, True)
                continue
            source = sources.get(key)
            if not source or not source.repeats(place, time, window):
                self._try(key, address, place, time, accepted=True)

    def follow_calls(self, transitions: Iterable[Transition]) -> None:
        """Where this machine opens connections to: late packets from there are no scan."""
        if self._hears_resets:
            self.note_called(end.remote for _, _, _, new, end, *_ in transitions if new is TcpState.SYN_SENT)

    def note_called(self, places: Iterable[Endpoint]) -> None:
        self._called.update(places)
        if len(self._called) >= MOST_CALLED:
            self._called, self._called_before = set(), self._called

    def follow_resets(self, resets: Iterable[Reset], lost: int, now: int) -> None:
        """`lost` of them are missing, at least; `now`: nanoseconds of CLOCK_BOOTTIME."""
        if self.limits is None:
            return
        if lost:
            self.resets_lost += lost
            self._lost_until = now
        for time, (place, remote) in resets:
            if remote not in self._called and remote not in self._called_before:
                address = remote.address
                key = address if len(address) == 4 else self._find_network(address)
                self._try(key, address, place, time, accepted=False)

    def _find_network(self, address: bytes) -> bytes:
        return (int.from_bytes(address, "big") & self._mask6).to_bytes(16, "big")

    def _try(self, key: bytes, address: bytes, place: Endpoint, time: int, accepted: bool) -> None:
        """Somebody tried a place, perhaps again."""
        if self.limits is None or self._is_passed(address, place):
            return
        scan = self._scans.get(key)
        if scan:
            self._go_on(scan, address, place, time, accepted)
            return
        source = self._sources.get(key) or self._remember(key, place, time, accepted)
        if source and not source.repeats(place, time, self.limits.window):
            source.add(place, time, accepted)
            if source.left <= 0:
                self._look_at(key, address, source, self.limits)

    def _is_passed(self, address: bytes, place: Endpoint) -> bool:
        """Whether it is not looked at."""
        limits = self.limits
        if limits is None or any(low <= place.port <= high for low, high in limits.ignored_ports):
            return True
        if (
            address in self._addresses
            or Endpoint(address + bytes(2)).is_loopback
            or any(len(first) == len(address) and first <= address <= last for first, last in limits.allowed)
        ):
            if len(self._passed) >= MOST_PASSED:
                self._passed.clear()
            self._passed.add(address)
            return True
        return address == place.address

    def _remember(self, key: bytes, place: Endpoint, time: int, accepted: bool) -> Source | None:
        """The source, without this place, if it tried another one."""
        limits = self.limits
        known = self._single.get(key)
        if limits is None or known is None or known[0] == place or time - known[1] > limits.memory:
            if known is None:
                self._make_room(self._single, MOST_SINGLE, time)
            self._single[key] = (place, time, accepted)
            return None
        del self._single[key]
        self._make_room(self._sources, MOST_SOURCES, time)
        source = self._sources[key] = Source(limits.fewest + 1)
        source.add(*known)
        return source

    def _make_room(
        self, known: dict[bytes, tuple[Endpoint, int, bool]] | dict[bytes, Source], most: int, now: int
    ) -> None:
        """The oldest go first, many at once."""
        if len(known) < most or self.limits is None:
            return
        for key in list(islice(known, most // 4)):
            one = known.pop(key)
            last = max(one.places.values()) if isinstance(one, Source) else one[1]
            self.forgotten += now - last < self.limits.window

    def _look_at(self, key: bytes, address: bytes, source: Source, limits: ScanLimits) -> None:
        """Whether it scans."""
        now = max(source.places.values())
        source.forget(now - limits.memory)
        fast, slow = (
            [place for place, time in source.places.items() if time >= now - window]
            for window in (limits.window, limits.slow_window)
        )
        counted = [(self._count_ports(fast), limits.ports, limits.window)]
        if limits.addresses is not None:
            counted.append((count_addresses(fast), limits.addresses, limits.window))
        if limits.slow_ports is not None:
            counted.append((self._count_ports(slow), limits.slow_ports, limits.slow_window))
        windows = [window for number, limit, window in counted if number > limit]
        if not windows:
            source.left = min(limit + 1 - number for number, limit, _ in counted)
            return
        del self._sources[key]
        if len(self._scans) >= MOST_SCANS:
            self._uncounted += 1
            return
        scan = self._scans[key] = Scan(address, min(windows), now + HOLD)
        for place, time in source.places.items():
            if time >= now - min(windows):
                self._go_on(scan, address, place, time, place not in source.refused)

    def _count_ports(self, places: Iterable[Endpoint]) -> int:
        """The most at this machine, or at an address that is none of its own."""
        ports: dict[bytes, set[bytes]] = {}
        for place in places:
            address = place.address
            ports.setdefault(HERE if address in self._addresses else address, set()).add(place[-2:])
        return max(map(len, ports.values()), default=0)

    def _go_on(self, scan: Scan, address: bytes, place: Endpoint, time: int, accepted: bool) -> None:
        scan.has_others |= address != scan.address
        scan.address = address
        limits = self.limits
        if scan.add(place, time, accepted) and limits and scan.window > limits.window:
            # A slow scan that becomes a fast one need not wait.
            scan.recent.append(time)
            if len(scan.recent) > limits.ports + 1:
                scan.recent.popleft()
            if len(scan.recent) > limits.ports and time - scan.recent[0] <= limits.window:
                scan.window = limits.window
                scan.due = min(scan.due, time + HOLD)

    @property
    def next_due(self) -> int | None:
        """When there is something to settle: nanoseconds of CLOCK_BOOTTIME."""
        return min((scan.due for scan in self._scans.values()), default=None)

    def settle(self, until: int, everything: bool = False) -> list[PortScan]:
        """What is to be told then; scans that did not go on are over. Nanoseconds of CLOCK_BOOTTIME."""
        told = []
        for key, scan in list(self._scans.items()):
            if scan.due > until and not everything:
                continue
            if self._has_more(scan):
                told.append(self._tell(key, scan))
                scan.due = until + scan.window
            elif not everything:
                del self._scans[key]
        return told

    def _has_more(self, scan: Scan) -> bool:
        return scan.is_new or (self.limits is not None and len(scan.ports) > self.limits.ports)

    def _tell(self, key: bytes, scan: Scan) -> PortScan:
        is_least = scan.first <= self._lost_until or len(scan.addresses) >= MOST_ADDRESSES
        opened = set(scan.open)
        told = PortScan(
            scan.address,
            (key, self.limits.prefix6) if scan.has_others and self.limits else None,
            scan.first,
            scan.last,
            list(scan.open),
            [port for port in scan.ports if port not in opened],
            sorted(scan.addresses),
            is_least,
            scan.told,
        )
        self.told += not scan.told
        scan.told = True
        scan.clear()
        return told

    def take_uncounted(self, now: int) -> int:
        """Scans that were found and are not followed, if they are to be told now."""
        if self.limits is None or not self._uncounted or now < self._tell_uncounted_at:
            return 0
        uncounted, self._uncounted = self._uncounted, 0
        self._tell_uncounted_at = now + self.limits.window
        return uncounted

    @property
    def known(self) -> ScansKnown:
        """All that is remembered."""
        places = [(key, *one) for key, one in self._single.items()]
        for key, source in self._sources.items():
            places += [
                (key, place, time, place not in source.refused) for place, time in source.places.items()
            ]
        called = [*self._called_before, *self._called]
        return ScansKnown(places, list(self._scans.items()), called, self._lost_until, self._uncounted)

    def restore(self, known: ScansKnown) -> None:
        """Go on from it, by the limits that are."""
        if self.limits is None:
            return
        self.note_called(known.called)
        for key, place, time, accepted in known.places:
            source = self._sources.get(key) or self._remember(key, place, time, accepted)
            if source:
                source.add(place, time, accepted)
        self._scans = dict(known.scans)
        self._lost_until, self._uncounted = known.lost_until, known.uncounted


def count_addresses(places: Iterable[Endpoint]) -> int:
    """The most that were tried with the same port."""
    addresses: dict[bytes, set[bytes]] = {}
    for place in places:
        addresses.setdefault(place[-2:], set()).add(place.address)
    return max(map(len, addresses.values()), default=0)
