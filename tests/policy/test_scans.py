"""Who scans ports: beside a model that looks at all that was tried, and cases by hand."""

from __future__ import annotations

import gc
import random
import sys
from collections import Counter
from itertools import combinations
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.connection import Connection, End, Endpoint, PortScan, Reset, TcpState, Transition, make
from tcpwatchd.policy import scans as module
from tcpwatchd.policy import sources
from tcpwatchd.policy.scans import HOLD, NOTHING_SCANNED, Ports, ScanLimits, Scans, count_addresses
from tcpwatchd.state.baseline import format_baseline, parse_baseline
from tests.kept import make_baseline
from tests.model import pack

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tcpwatchd.connection import Detection, Direction, GoesOn

SECOND = 1_000_000_000
HOUR = 3600 * SECOND
LIMITS = ScanLimits(3, 60 * SECOND, 20, None, HOUR, (), (), 64)
SLOW = LIMITS._replace(slow_ports=10)
HOST, HOST2, HOST6, CONTAINER, CONTAINER2 = (
    "10.0.0.5",
    "10.0.0.6",
    "2001:db8:5::5",
    "172.17.0.2",
    "172.17.0.3",
)
STRANGER, OTHER, STRANGER6, NEIGHBOUR6 = "192.0.2.7", "198.51.100.9", "2001:db8:1::7", "2001:db8:1::8"
OWN = frozenset(pack((ip, 0)).address for ip in (HOST, HOST2, HOST6))


def pack_ip(ip: str) -> bytes:
    return pack((ip, 0)).address


def pack_host(number: int) -> bytes:
    """One of a million addresses of this machine."""
    return b"\x0a" + number.to_bytes(3, "big")


class Loop:
    """The stage, settled whenever it is due, as the loop does. Times are seconds here."""

    def __init__(self, limits: ScanLimits = LIMITS, own: frozenset[bytes] = OWN) -> None:
        self.scans = Scans(limits, hears_resets=True)
        self.scans.addresses = own
        self.told: list[tuple[float, PortScan]] = []
        """When, and what."""

    def pass_to(self, time: float) -> None:
        while (due := self.scans.next_due) is not None and due <= time * SECOND:
            # Nothing is told before its time.
            assert self.scans.settle(due - 1) == []
            self.told += [(due / SECOND, scan) for scan in self.scans.settle(due)]
            after = self.scans.next_due
            assert after is None or after >= due

    def accept(
        self,
        time: float,
        source: str,
        port: int,
        host: str = HOST,
        direction: Direction = "ingress",
        detected_by: Detection = "trace",
    ) -> None:
        self.pass_to(time)
        ends = pack((source, 40000)), pack((host, port))
        found = Connection(*ends, direction, TcpState.ESTABLISHED, detected_by, round(time * SECOND))
        self.scans.follow([found])

    def refuse(
        self, time: float, source: str, *ports: int, host: str = HOST, source_port: int = 40000
    ) -> None:
        self.pass_to(time)
        ends = [End(pack((host, port)), pack((source, source_port))) for port in ports]
        now = round(time * SECOND)
        self.scans.follow_resets([Reset(now, end) for end in ends], 0, now)

    def refuse_late(self, read: float, time: float, source: str, *ports: int) -> None:
        """Resets that are read long after they were sent."""
        self.pass_to(read)
        resets = [
            Reset(round(time * SECOND), End(pack((HOST, port)), pack((source, 40000)))) for port in ports
        ]
        self.scans.follow_resets(resets, 0, round(read * SECOND))

    def lose(self, time: float, number: int = 1) -> None:
        self.pass_to(time)
        self.scans.follow_resets([], number, round(time * SECOND))

    def call(self, ip: str, port: int) -> None:
        """This machine opens a connection."""
        end = End(pack((HOST, 0)), pack((ip, port)))
        self.scans.follow_calls([Transition(0, 7, TcpState.CLOSE, TcpState.SYN_SENT, end, 1)])

    def restart(self, limits: ScanLimits | None = None) -> None:
        """As the next process, which has what was kept as text; perhaps by other limits."""
        kept = parse_baseline(format_baseline(make_baseline()._replace(scans=self.scans.known))).scans
        limits, own = limits or self.scans.limits, self.scans.addresses
        self.scans = Scans(limits, hears_resets=True)
        self.scans.addresses = own
        self.scans.restore(kept)

    def end(self) -> list[PortScan]:
        """What was told, with all that is still to be told."""
        self.pass_to(1e9)
        assert self.scans.settle(10**20) == []
        return [scan for _, scan in self.told]


def expect(
    source: str,
    opened: Iterable[int],
    closed: Iterable[int],
    first: float,
    last: float,
    hosts: Iterable[str] = (HOST,),
    is_least: bool = False,
    goes_on: GoesOn = "",
    is_verified: bool | None = None,
) -> PortScan:
    """What is told; times are seconds."""
    times = round(first * SECOND), round(last * SECOND)
    places = sorted(map(pack_ip, hosts))
    ports = [*opened], [*closed]
    certain = len(ports[0]) > LIMITS.ports if is_verified is None else is_verified
    return PortScan(pack_ip(source), None, *times, *ports, places, is_least, certain, goes_on)


# The model.


class Try(NamedTuple):
    time: int
    address: bytes
    place: Endpoint
    accepted: bool
    inside: bool = False


class ModelScan:
    def __init__(self, window: int, due: int, tries: list[Try]) -> None:
        self.window, self.due, self.tries = window, due, tries
        self.known: set[object] = set()
        """Ports and addresses that were told."""
        self.told_at = 0
        self.is_least = False

    @property
    def ports(self) -> set[int]:
        return {one.place.port for one in self.tries}

    @property
    def tried(self) -> set[object]:
        return {*self.ports, *(one.place.address for one in self.tries)}


class Model:
    """What is to be told, by going through all that a source tried each time that it tries more."""

    def __init__(self, limits: ScanLimits) -> None:
        self.limits = limits
        self.tries: dict[bytes, list[Try]] = {}
        self.scans: dict[bytes, ModelScan] = {}
        self.told: list[tuple[bytes, int, PortScan]] = []
        """Source, when, and what."""
        self.called: set[Endpoint] = set()
        self.lost_until = 0

    def find_source(self, address: bytes) -> bytes:
        """An address of IPv4 or of a neighbour, else the network."""
        if len(address) == 4:
            return address
        network = self.find_network(address)
        return address if network in {self.find_network(own) for own in OWN if len(own) == 16} else network

    def find_network(self, address: bytes) -> bytes:
        digits = "".join(f"{byte:08b}" for byte in address)[: self.limits.prefix6].ljust(128, "0")
        return int(digits, 2).to_bytes(16, "big")

    def may(self, address: bytes, place: Endpoint) -> bool:
        """Whether it may try the place, or is this machine itself."""
        loopback = address == pack_ip("::1") or (len(address) == 4 and address[0] == 127)
        allowed = any(
            len(one) == len(address) and one <= address <= last for one, last in self.limits.allowed
        )
        ignored = any(place.port in range(low, high + 1) for low, high in self.limits.ignored_ports)
        return loopback or allowed or ignored or address in OWN or address == place.address

    def accept(self, time: int, remote: Endpoint, place: Endpoint, inside: bool) -> None:
        self._try(self.find_source(remote.address), Try(time, remote.address, place, True, inside))

    def refuse(self, time: int, remote: Endpoint, place: Endpoint) -> None:
        """But what comes from where this machine called is late, and what looks like an answer is one."""
        if remote in self.called:
            return
        key, one = self.find_source(remote.address), Try(time, remote.address, place, accepted=False)
        if remote.port < 1024 <= place.port:
            if key in self.scans:
                self.scans[key].is_least = True
            return
        is_new = key not in self.scans and not self.tries.get(key)
        self._try(key, one)
        if is_new and key == one.address and len(key) == 16:
            self._try(self.find_network(key), one)

    def _try(self, key: bytes, one: Try) -> None:
        if self.may(one.address, one.place):
            return
        scan = self.scans.get(key)
        if scan:
            scan.tries.append(one)
            if scan.window <= self.limits.window:
                return
        tries = self.tries.setdefault(key, [])
        tries.append(one)
        window = min(self.find_windows(tries, one.time, slowly=scan is None), default=None)
        if window is None:
            return
        if scan is None:
            # Of what came before, the last try of each place.
            last = {before.place: before for before in tries if one.time - before.time <= window}
            self.scans[key] = ModelScan(window, one.time + HOLD, list(last.values()))
        elif window < scan.window:
            # It becomes a fast one.
            scan.window, scan.due = window, min(scan.due, one.time + HOLD)
            if scan.told_at:
                scan.due = max(scan.due, scan.told_at + window)
        if window <= self.limits.window:
            del self.tries[key]

    def find_windows(self, tries: list[Try], now: int, slowly: bool = True) -> list[int]:
        """Those in which this is a scan."""
        limits = self.limits
        fast, slow = (
            [one for one in tries if now - one.time <= window]
            for window in (limits.window, limits.slow_window)
        )
        swept = {one.place for one in fast if one.place.address in OWN or not one.accepted}
        at = [len([1 for place in swept if place.port == one.place.port]) for one in tries]
        found = []
        if self.count_ports(fast) > limits.ports:
            found.append(limits.window)
        if limits.addresses is not None and max(at, default=0) > limits.addresses:
            found.append(limits.window)
        slowly = slowly or limits.slow_window <= limits.window
        if slowly and limits.slow_ports is not None and self.count_ports(slow) > limits.slow_ports:
            found.append(limits.slow_window)
        return found

    def count_ports(self, tries: list[Try]) -> int:
        """Of this machine, or of one address of a container, as another one sees it."""
        places = {(one.place.address if one.inside else b"", one.place.port) for one in tries}
        here = {(b"" if address in OWN else address, port) for address, port in places}
        return max(Counter(address for address, _ in here).values(), default=0)

    def pass_to(self, time: int) -> None:
        while due := [(scan.due, key) for key, scan in self.scans.items() if scan.due <= time]:
            moment, key = min(due)
            scan = self.scans[key]
            if scan.tried <= scan.known:
                if not self.is_on(scan):
                    del self.scans[key]
                    continue
                if moment < scan.told_at + max(scan.window, self.limits.slow_window):
                    scan.tries, scan.is_least, scan.due = [], False, moment + scan.window
                    continue
            self.told.append((key, moment, self.tell(scan)))
            scan.known |= scan.tried
            scan.tries, scan.told_at, scan.is_least = [], moment, False
            scan.due = moment + scan.window

    def is_on(self, scan: ModelScan) -> bool:
        """Whether what it tried is a scan, though it is not new."""
        most = self.limits.ports if scan.window <= self.limits.window else self.limits.slow_ports
        addresses = {one.place.address for one in scan.tries}
        is_sweep = self.limits.addresses is not None and len(addresses) > self.limits.addresses
        return len(scan.ports) > (most or 0) or is_sweep

    def tell(self, scan: ModelScan) -> PortScan:
        times = [one.time for one in scan.tries]
        accepted = [one for one in scan.tries if one.accepted]
        opened = {one.place.port for one in accepted}
        addresses = {one.place.address for one in scan.tries}
        ports = scan.ports
        goes_on: GoesOn = ""
        if scan.told_at:
            goes_on = "again"
            if addresses - scan.known:
                goes_on = "addresses"
            if ports - scan.known:
                goes_on, ports = "ports", ports - scan.known
        last = max((one.time for one in accepted), default=0)
        slowly = scan.window > self.limits.window
        return PortScan(
            scan.tries[-1].address,
            None,
            min(times),
            max(times),
            sorted(ports & opened),
            sorted(ports - opened),
            sorted(addresses - scan.known if goes_on == "addresses" else addresses),
            scan.is_least or min(times) <= self.lost_until,
            bool(self.find_windows(accepted, last, slowly)),
            goes_on,
        )


ALLOWED = "203.0.113.8"
SOURCES = [*[STRANGER, STRANGER6] * 5, OTHER, NEIGHBOUR6, CONTAINER, "2001:db8:5::10", "2001:db8:5::11"]
SOURCES += [ALLOWED, HOST2, "127.0.0.1", "::1", HOST6]
HOSTS = [HOST, HOST2, CONTAINER, CONTAINER2]
HOSTS6 = [HOST6, "2001:db8:5::6"]
PORTS = [22, 80, 443, 1023, 1024, 5000, 5001, 5002]
Step = tuple[str, int, str, int, int]
ANY_LIMITS = st.builds(
    ScanLimits,
    ports=st.integers(1, 4),
    window=st.sampled_from([5 * SECOND, 20 * SECOND]),
    addresses=st.sampled_from([None, 1, 2, 3]),
    slow_ports=st.sampled_from([None, None, 1, 4, 6]),
    slow_window=st.sampled_from([25 * SECOND, 50 * SECOND]),
    allowed=st.just(((pack_ip(ALLOWED), pack_ip("203.0.113.9")),)),
    ignored_ports=st.sampled_from([(), ((5002, 5003),), ((1, 22), (5001, 5001))]),
    prefix6=st.sampled_from([64, 127, 128]),
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from([*["try"] * 20, "call", "late", "answer", "lose", "restart", "open", "startup"]),
        st.sampled_from([0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 5, 10, 20]),
        st.sampled_from(SOURCES),
        st.integers(0, 3),
        st.sampled_from(PORTS),
    ),
    min_size=20,
    max_size=60,
)
"""What happens, after so many seconds, by whom, where, at which port."""


class Beside:
    """The stage and the model."""

    def __init__(self, limits: ScanLimits) -> None:
        self.limits, self.loop, self.model = limits, Loop(limits), Model(limits)
        self.time = 1

    def take(self, step: Step) -> None:
        name, gap, ip, where, port = step
        self.time += gap
        self.loop.pass_to(self.time)
        self.model.pass_to(self.time * SECOND)
        getattr(self, f"_{name}")(ip, self.find_host(ip, where), port)

    @staticmethod
    def find_host(ip: str, where: int) -> str:
        return HOSTS6[where % 2] if ":" in ip else HOSTS[where]

    def _try(self, ip: str, host: str, port: int) -> None:
        """A port is open or closed for good."""
        self._refuse(ip, host, port, 40000)
        if self.is_open(host, port):
            detected_by: Detection = "poll" if port == 80 else "trace"
            direction: Direction = "internal" if ip == CONTAINER and port != 80 else "ingress"
            self.loop.accept(self.time, ip, port, host, direction, detected_by)
            inside = direction == "internal"
            self.model.accept(self.time * SECOND, pack((ip, 40000)), pack((host, port)), inside)

    @staticmethod
    def is_open(host: str, port: int) -> bool:
        return (pack_ip(host)[-1] + port) % 3 == 0

    def _refuse(self, ip: str, host: str, port: int, source_port: int) -> None:
        if self.is_open(host, port):
            return
        self.loop.refuse(self.time, ip, port, host=host, source_port=source_port)
        self.model.refuse(self.time * SECOND, pack((ip, source_port)), pack((host, port)))

    def _late(self, ip: str, host: str, port: int) -> None:
        self._refuse(ip, host, port, 40001)

    def _answer(self, ip: str, host: str, port: int) -> None:
        self._refuse(ip, host, port, 443)

    def _call(self, ip: str, _host: str, _port: int) -> None:
        self.loop.call(ip, 40001)
        self.model.called.add(pack((ip, 40001)))

    def _open(self, ip: str, host: str, port: int) -> None:
        """A connection that this machine opened, and of which no SYN was told."""
        self.loop.accept(self.time, host, 40001, ip, "egress", "poll" if port > 80 else "trace")
        if port > 80:
            self.model.called.add(pack((ip, 40001)))

    def _startup(self, ip: str, host: str, port: int) -> None:
        """A connection that was open before this process began: nobody knows since when."""
        self.loop.accept(self.time, ip, port, host, detected_by="startup")

    def _lose(self, _ip: str, _host: str, _port: int) -> None:
        self.loop.lose(self.time)
        self.model.lost_until = self.time * SECOND

    def _restart(self, _ip: str, _host: str, _port: int) -> None:
        self.loop.restart()

    def end(self) -> tuple[list[tuple[int, PortScan]], list[tuple[int, PortScan]]]:
        """What was told, and what was to be told. Of networks others ask."""
        self.loop.end()
        self.model.pass_to(10**18)
        told = [(round(time * SECOND), scan._replace(network=None)) for time, scan in self.loop.told]
        return sorted(told), sorted((time, scan) for _, time, scan in self.model.told)


@given(ANY_LIMITS, STEPS)
def test_just_what_is_a_scan_is_told(limits: ScanLimits, steps: list[Step]) -> None:
    """When, how often, and all of it; over restarts too."""
    beside = Beside(limits)
    for step in steps:
        beside.take(step)
    found, expected = beside.end()
    assert found == expected
    for (source, before, _), (other, after, _) in combinations(beside.model.told, 2):
        assert source != other or after - before >= min(limits.window, limits.slow_window)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5, 10]),
            st.sampled_from([STRANGER, OTHER, STRANGER6]),
            st.integers(0, 3),
            st.sampled_from(PORTS),
            st.booleans(),
        ),
        min_size=10,
        max_size=60,
    )
)
def test_resets_that_are_read_late_make_nobody_scan(tries: list[tuple[int, str, int, int, bool]]) -> None:
    """They come ten seconds later than connections, at the most. Who is told did scan; of those who did, only
    some that did it with both can be missed.
    """
    limits = LIMITS._replace(window=20 * SECOND, slow_ports=4, slow_window=50 * SECOND, addresses=3)
    loop, model = Loop(limits), Model(limits)
    done: dict[bytes, list[Try]] = {}
    late: list[tuple[int, str, str, int]] = []
    time = 1
    for gap, ip, where, port, accepted in [*tries, (10, STRANGER, 0, 22, True)]:
        for moment in range(time, time + gap):
            if moment % 10 == 0:
                hand_over(loop, moment, late)
        time += gap
        host = Beside.find_host(ip, where)
        if accepted:
            loop.accept(time, ip, port, host)
        else:
            late.append((time, ip, host, port))
        one = Try(time * SECOND, pack_ip(ip), pack((host, port)), accepted)
        done.setdefault(model.find_source(one.address), []).append(one)
    hand_over(loop, time, late)
    told = loop.end()
    for key, known in done.items():
        scans = any(model.find_windows(known[: n + 1], one.time) for n, one in enumerate(known))
        entries = [scan for scan in told if model.find_source(scan.address) == key]
        assert scans or not entries
        assert entries or not scans or len({one.accepted for one in known}) == 2
        for scan in entries:
            assert {*scan.open_ports, *scan.closed_ports} <= {one.place.port for one in known}
            assert {scan.first, scan.last} <= {one.time for one in known}


def hand_over(loop: Loop, time: int, late: list[tuple[int, str, str, int]]) -> None:
    """As a poll does."""
    loop.pass_to(time)
    resets = [
        Reset(when * SECOND, End(pack((host, port)), pack((ip, 40000)))) for when, ip, host, port in late
    ]
    loop.scans.follow_resets(resets, 0, time * SECOND)
    late.clear()


# What is a scan.


def test_more_ports_than_so_many() -> None:
    loop = Loop()
    for port in (21, 22, 23):
        loop.refuse(100, STRANGER, port)
        loop.accept(100, OTHER, port)
    loop.refuse(101, STRANGER, 24)
    assert loop.scans.next_due == 101 * SECOND + HOLD
    loop.refuse(102, STRANGER, 9)
    loop.accept(102.5, STRANGER, 80)
    assert loop.end() == [expect(STRANGER, [80], [9, 21, 22, 23, 24], 100, 102.5)]
    assert loop.told[0][0] == 103
    assert loop.scans.told == 1


@pytest.mark.parametrize("last", [160, 160.000000001])
def test_the_window_slides(last: float) -> None:
    """As long as it is, and no longer."""
    loop = Loop()
    for number in range(10):
        loop.refuse(number * 30, OTHER, 20 + number)
    for number, time in enumerate((100, 110, 159, last)):
        loop.accept(time, STRANGER, 20 + number)
    ports = [20, 21, 22, 23]
    assert loop.end() == ([expect(STRANGER, ports, [], 100, 160)] if last == 160 else [])


def test_what_is_tried_again_counts_from_then() -> None:
    loop = Loop()
    for time, port in ((100, 1), (120, 2), (155, 1), (175, 3), (178, 2), (200, 4)):
        loop.refuse(time, STRANGER, port)
    assert loop.end() == [expect(STRANGER, [], [1, 2, 3, 4], 155, 200)]


@pytest.mark.parametrize(("number", "is_scan"), [(20, False), (21, True)])
def test_one_port_at_more_addresses_than_so_many(number: int, is_scan: bool) -> None:
    """Of this machine, or of those behind it."""
    hosts = [f"10.0.1.{last}" for last in range(number)]
    for own in (OWN, frozenset(map(pack_ip, hosts))):
        loop = Loop(own=own)
        for time, host in enumerate(hosts):
            loop.refuse(100 + time, STRANGER, 5432, host=host)
            loop.refuse(100 + time, OTHER, 5432 + time % 3, host=host)
        expected = [expect(STRANGER, [], [5432], 100, 100 + number - 1, hosts)] if is_scan else []
        assert loop.end() == expected


def test_without_addresses_any_number_of_them_is_none() -> None:
    loop = Loop(LIMITS._replace(addresses=None, slow_ports=4))
    for last in range(250):
        loop.refuse(100, STRANGER, 5432, host=f"10.0.1.{last}")
    assert loop.end() == []


def test_the_addresses_of_this_machine_are_one_and_each_other_is_its_own() -> None:
    loop = Loop()
    for host in (CONTAINER, CONTAINER2, "172.17.0.4"):
        for port in (80, 443, pack_ip(host)[-1]):
            loop.accept(100, STRANGER, port, host, "internal")
    for port in (80, 81):
        for host in (HOST, HOST2):
            loop.accept(101, OTHER, port + 10 * (host == HOST2), host)
    assert loop.end() == [expect(OTHER, [80, 81, 90, 91], [], 101, 101, (HOST, HOST2))]


@pytest.mark.parametrize(("number", "is_scan"), [(10, False), (11, True)])
def test_a_slow_scan(number: int, is_scan: bool) -> None:
    loop = Loop(SLOW)
    for port in range(1, number + 1):
        loop.refuse(355 * port, STRANGER, port)
    ports = [*range(1, 12)]
    assert loop.end() == ([expect(STRANGER, [], ports, 355, 11 * 355)] if is_scan else [])
    assert [when for when, _ in loop.told] == [11 * 355 + 2] * is_scan


def test_a_slow_scan_that_goes_on_is_told_once_in_its_own_window() -> None:
    loop = Loop(SLOW)
    for port in range(1, 61):
        loop.refuse(300 * port, STRANGER, port)
    told = loop.end()
    times = [when for when, _ in loop.told]
    assert [after - before for before, after in zip(times, times[1:])] == [3600] * (len(times) - 1)
    assert sorted(port for scan in told for port in scan.closed_ports) == [*range(1, 61)]
    assert [scan.goes_on for scan in told] == [""] + ["ports"] * (len(told) - 1)


def test_a_slow_scan_that_becomes_a_fast_one_need_not_wait() -> None:
    loop = Loop(SLOW)
    for port in range(1, 12):
        loop.refuse(300 * port, STRANGER, port)
    for port in (1, 2, 101):
        loop.refuse(4000, STRANGER, port)
    assert len(loop.told) == 1
    loop.refuse(4010, STRANGER, 104)
    loop.refuse(4030, STRANGER, 105)
    loop.refuse(4090, STRANGER, 106)
    loop.end()
    assert [when for when, _ in loop.told] == [3302, 4012, 4072, 4132]
    ports = [(scan.closed_ports, scan.goes_on) for _, scan in loop.told[1:]]
    assert ports == [([101, 104], "ports"), ([105], "ports"), ([106], "ports")]


def test_limits_that_are_higher_hold_too() -> None:
    """Of which the lowest is not the one that is exceeded."""
    loop = Loop(ScanLimits(50, 60 * SECOND, 4, 60, HOUR, (), (), 64))
    for port in range(1, 51):
        loop.refuse(100 + port, STRANGER, port)
    assert loop.scans.next_due is None
    loop.refuse(151, STRANGER, 51)
    assert loop.end() == [expect(STRANGER, [], range(1, 52), 101, 151)]


# What is none.


@pytest.mark.parametrize("source", ["192.0.2.0", "192.0.2.255", "2001:db8:1::ffff", "2001:db8:9::9"])
def test_who_may_scan_is_never_told(source: str) -> None:
    allowed = "192.0.2.0", "192.0.2.255", "2001:db8:1::", "2001:db8:1::ffff", "2001:db8:9::9", "2001:db8:9::9"
    packed = [pack_ip(ip) for ip in allowed]
    loop = Loop(LIMITS._replace(allowed=tuple(zip(packed[::2], packed[1::2]))))
    host = HOST6 if ":" in source else HOST
    for port in range(1, 30):
        loop.refuse(100, source, port, host=host)
        loop.accept(100, source, port, host)
    assert loop.end() == []
    assert loop.scans.known._replace(prefix6=0) == NOTHING_SCANNED
    beyond = {"192.0.2.0": "192.0.1.255", "192.0.2.255": "192.0.3.0", "2001:db8:1::ffff": "2001:db8:1::1:0"}
    source = beyond.get(source, "2001:db8:9::8")
    loop.refuse(100, source, 1, 2, 3, 4, host=host)
    assert [scan.address for scan in loop.end()] == [pack_ip(source)]


def test_an_address_of_ipv4_is_none_of_ipv6_that_begins_so() -> None:
    allowed = ((bytes(16), bytes([255]) * 16),)
    loop = Loop(LIMITS._replace(allowed=allowed))
    loop.refuse(100, STRANGER, 1, 2, 3, 4)
    loop.refuse(100, STRANGER6, 1, 2, 3, 4, host=HOST6)
    assert [scan.address for scan in loop.end()] == [pack_ip(STRANGER)]


@pytest.mark.parametrize("source", [HOST, HOST2, "127.0.0.1", "127.9.9.9", "::1", HOST6, CONTAINER])
def test_what_this_machine_does_to_itself_is_no_scan(source: str) -> None:
    loop = Loop()
    host = {HOST6: HOST6, "::1": "::1", CONTAINER: CONTAINER}.get(source, HOST)
    for port in range(1, 30):
        loop.refuse(100, source, port, host=host)
        loop.accept(100, source, port, host, "internal")
    assert loop.end() == []


def test_an_address_that_is_not_this_machines_any_more_can_scan() -> None:
    loop = Loop()
    loop.accept(100, HOST2, 1)
    loop.scans.addresses = OWN - {pack_ip(HOST2)}
    for port in (1, 2, 3, 4):
        loop.accept(101, HOST2, port)
    loop.scans.addresses = OWN
    loop.accept(102, HOST2, 5)
    assert loop.end() == [expect(HOST2, [1, 2, 3, 4], [], 101, 101)]


def test_ports_that_anybody_may_try() -> None:
    loop = Loop(LIMITS._replace(ignored_ports=((6000, 6000), (50000, 50100))))
    for port in (6000, *range(50000, 50101)):
        loop.refuse(100, STRANGER, port)
        loop.accept(100, OTHER, port)
    assert loop.end() == []
    loop.refuse(101, STRANGER, 5999, 6001, 49999, 50101)
    assert loop.end() == [expect(STRANGER, [], [5999, 6001, 49999, 50101], 101, 101)]


def test_what_was_open_before_and_what_this_machine_opened() -> None:
    loop = Loop()
    for port in range(1, 30):
        loop.accept(100, STRANGER, port, detected_by="startup")
        loop.accept(100, STRANGER, port, direction="egress")
    assert loop.end() == []
    for port in range(1, 5):
        loop.accept(101, STRANGER, port, detected_by="poll")
    assert loop.end() == [expect(STRANGER, [1, 2, 3, 4], [], 101, 101)]


def test_late_packets_from_where_this_machine_called_are_no_scan() -> None:
    """Whether a record tells of the call, or a poll found the connection, also before this process."""
    calls: list[Detection | None] = [None, "poll", "startup"]
    for detected_by in calls:
        loop = Loop()
        if detected_by:
            loop.accept(99, HOST, 8443, STRANGER, "egress", detected_by)
        else:
            loop.call(STRANGER, 8443)
        loop.restart()
        loop.refuse(100, STRANGER, *range(40000, 40100), source_port=8443)
        assert loop.end() == []
        loop.refuse(101, STRANGER, 1, 2, 3, 4, source_port=8444)
        assert loop.end() == [expect(STRANGER, [], [1, 2, 3, 4], 101, 101)]


def test_calls_are_remembered_up_to_a_bound() -> None:
    loop = Loop()
    most = module.MOST_CALLED
    for number in range(3 * most):
        loop.scans.note_called([Endpoint(pack_host(number) + b"\x9c\x40")])
    assert len(loop.scans.known.called) <= 2 * most
    late = [Endpoint(pack_host(number) + b"\x9c\x40") for number in range(3 * most - most, 3 * most)]
    resets = [Reset(SECOND, End(pack((HOST, port)), end)) for end in late for port in (1, 2, 3, 4)]
    loop.scans.follow_resets(resets, 0, SECOND)
    assert loop.end() == []


def test_what_looks_like_an_answer_is_none_but_perhaps_of_a_scan() -> None:
    """From a port of servers to one of clients."""
    loop = Loop()
    loop.refuse(100, STRANGER, *range(1024, 1100), source_port=1023)
    loop.refuse(100, OTHER, *range(1020, 1024), source_port=1023)
    loop.refuse(101, STRANGER6, *range(1024, 1028), host=HOST6, source_port=1024)
    loop.refuse(101.5, OTHER, 2000, source_port=80)
    expected = [
        expect(OTHER, [], range(1020, 1024), 100, 100, is_least=True),
        expect(STRANGER6, [], range(1024, 1028), 101, 101, (HOST6,)),
    ]
    assert loop.end() == expected


def test_without_limits_nobody_is_looked_at() -> None:
    scans = Scans(None, hears_resets=True)
    end = End(pack((HOST, 1)), pack((STRANGER, 40000)))
    scans.follow_resets([Reset(1, end)], 5, 1)
    scans.follow([Connection(end.remote, end.local, "ingress", TcpState.ESTABLISHED, "trace", 1)])
    scans.restore(NOTHING_SCANNED._replace(unfollowed=[bytes(4)]))
    assert (scans.known, scans.next_due, scans.settle(9), scans.take_unfollowed(9)) == (
        NOTHING_SCANNED,
        None,
        [],
        0,
    )


# While it goes on.


def test_what_is_new_is_told_once_in_the_window_until_it_is_over() -> None:
    loop = Loop()
    loop.refuse(100, STRANGER, 1, 2, 3, 4)
    for time, port in ((103, 1), (110, 5), (150, 4), (161.9, 6), (162, 7), (230, 2), (270, 1), (340, 1)):
        loop.refuse(time, STRANGER, port)
    loop.end()
    assert loop.told == [
        (102, expect(STRANGER, [], [1, 2, 3, 4], 100, 100)),
        (162, expect(STRANGER, [], [5, 6], 103, 161.9, goes_on="ports")),
        (222, expect(STRANGER, [], [7], 162, 162, goes_on="ports")),
    ]


def test_a_port_that_is_not_new_goes_on_at_an_address_that_is() -> None:
    loop = Loop()
    loop.refuse(100, STRANGER, 1, 2, 3, 4)
    loop.refuse(110, STRANGER, 1, host=HOST2)
    loop.refuse(170, STRANGER, 1, host=HOST2)
    loop.end()
    assert loop.told[1:] == [(162, expect(STRANGER, [], [1], 110, 110, (HOST2,), goes_on="addresses"))]


def test_who_tries_the_same_many_ports_again_and_again_is_told_so_in_the_longer_window() -> None:
    loop = Loop()
    for time in range(100, 5000, 50):
        loop.refuse(time, STRANGER, 1, 2, 3, 4)
    loop.refuse(5000, STRANGER, 1, 2, 3)
    loop.end()
    again = [(3702, expect(STRANGER, [], [1, 2, 3, 4], 3650, 3700, goes_on="again"))]
    assert loop.told[1:] == again


def test_one_that_is_over_can_begin_again() -> None:
    loop = Loop()
    for start in (100, 163):
        loop.refuse(start, STRANGER, 1, 2, 3, 4)
    loop.end()
    assert loop.told == [
        (102, expect(STRANGER, [], [1, 2, 3, 4], 100, 100)),
        (165, expect(STRANGER, [], [1, 2, 3, 4], 163, 163)),
    ]
    assert loop.scans.told == 2


def test_it_can_be_told_before_its_time() -> None:
    """At the end, or as other limits come, which begin anew."""
    loop = Loop()
    loop.refuse(100, STRANGER, 1, 2, 3, 4)
    loop.refuse(100, OTHER, 1, 2, 3)
    told = [expect(STRANGER, [], [1, 2, 3, 4], 100, 100)]
    assert loop.scans.settle(100 * SECOND, everything=True) == told
    assert loop.scans.settle(100 * SECOND, everything=True) == []
    loop.scans.switch(LIMITS._replace(ports=4))
    assert (loop.scans.known._replace(prefix6=0), loop.scans.next_due) == (NOTHING_SCANNED, None)
    loop.refuse(101, STRANGER, 5, 6, 7, 8)
    loop.refuse(101, OTHER, 4, 5)
    assert loop.end() == []
    loop.refuse(102, STRANGER, 9)
    assert loop.end() == [expect(STRANGER, [], [5, 6, 7, 8, 9], 101, 102)]


# What is told of it.


def test_open_is_what_accepted_and_closed_what_never_did() -> None:
    """Also if it is open at one address and closed at the other."""
    loop = Loop()
    for port in (80, 1, 443, 2):
        (loop.accept if port > 9 else loop.refuse)(100, STRANGER, port)
    loop.refuse(101, STRANGER, 80, host=HOST2)
    loop.accept(101, STRANGER, 2, HOST2)
    assert loop.end() == [expect(STRANGER, [2, 80, 443], [1], 100, 101, (HOST, HOST2))]


def test_where_records_were_lost_it_is_the_least() -> None:
    """Of what was tried before they were found to be lost; what comes after is whole."""
    loop = Loop()
    loop.refuse(100, STRANGER, 1, 2, 3, 4)
    loop.lose(100, 7)
    loop.refuse(100.1, OTHER, 1, 2, 3, 4)
    loop.refuse(110, STRANGER, 5)
    loop.lose(200, 2)
    assert loop.end() == [
        expect(STRANGER, [], [1, 2, 3, 4], 100, 100, is_least=True),
        expect(OTHER, [], [1, 2, 3, 4], 100.1, 100.1),
        expect(STRANGER, [], [5], 110, 110, goes_on="ports"),
    ]
    assert loop.scans.resets_lost == 9


@pytest.mark.parametrize(("number", "is_least"), [(256, False), (257, True)])
def test_addresses_are_told_up_to_a_bound(number: int, is_least: bool) -> None:
    assert module.MOST_ADDRESSES == 256
    loop = Loop()
    resets = [
        Reset(SECOND, End(Endpoint(pack_host(host) + b"\0\x17"), pack((STRANGER, 40000))))
        for host in range(number)
    ]
    loop.scans.follow_resets(resets, 0, SECOND)
    (told,) = loop.end()
    assert (told.closed_ports, told.is_least) == ([23], is_least)
    assert told.destinations == [pack_host(host) for host in range(256)]


def test_ipv6_is_told_by_its_network_if_it_has_several_addresses() -> None:
    network = pack_ip("2001:db8:1::"), 64
    loop = Loop()
    loop.refuse(100, STRANGER6, 1, 2, 3, 4, host=HOST6)
    loop.refuse(100, STRANGER, 1, 2, 3, 4)
    (first, second) = loop.end()
    assert (first.address, first.network, second.network) == (pack_ip(STRANGER6), None, None)
    loop = Loop()
    loop.refuse(100, STRANGER6, 1, 2, 3, 4, host=HOST6)
    loop.refuse(101, NEIGHBOUR6, 5, host=HOST6)
    loop.refuse(103, NEIGHBOUR6, 6, host=HOST6)
    found = [(scan.address, scan.network, scan.closed_ports) for scan in loop.end()]
    neighbour = pack_ip(NEIGHBOUR6)
    assert found == [(neighbour, network, [1, 2, 3, 4, 5]), (neighbour, network, [6])]


@pytest.mark.parametrize(("bits", "entries"), [(128, 0), (64, 0), (48, 1), (1, 1)])
def test_a_source_of_ipv6_has_so_many_bits(bits: int, entries: int) -> None:
    loop = Loop(LIMITS._replace(prefix6=bits))
    for number in range(1, 5):
        loop.refuse(100, f"2001:db8:1:{number}::{number}", number, host=HOST6)
    assert [scan.closed_ports for scan in loop.end()] == [[1, 2, 3, 4]] * entries


def test_neighbours_by_ipv6_are_told_apart() -> None:
    """Who is in a network of this machine's own, or on its link, is no source with all others there."""
    for network in ("2001:db8:5::", "fe80::"):
        loop = Loop()
        for number, port in enumerate((22, 80, 443, 445, 631, 5432)):
            for _ in range(3):
                loop.accept(number, f"{network}{number + 10}", port, HOST6)
        assert loop.end() == []
        loop.refuse(10, f"{network}10", 1, 2, 3, 4, host=HOST6)
        (told,) = loop.end()
        assert (told.address, told.network) == (pack_ip(f"{network}10"), None)
        assert (told.open_ports, told.closed_ports) == ([22], [1, 2, 3, 4])


def test_a_neighbour_with_a_new_address_for_each_packet_is_found_by_its_network() -> None:
    loop = Loop()
    for number in range(500):
        loop.refuse(number / 1000, f"2001:db8:5::{number + 10:x}", number + 1, host=HOST6)
    (told,) = loop.end()
    assert told.network == (pack_ip("2001:db8:5::"), 64)
    assert told.closed_ports == [*range(1, 501)]


def test_a_neighbour_that_scans_is_not_its_network() -> None:
    loop = Loop()
    for port in range(1, 51):
        loop.refuse(100 + port / 100, "2001:db8:5::10", port, host=HOST6)
    assert loop.end() == [expect("2001:db8:5::10", [], range(1, 51), 100.01, 100.5, (HOST6,))]


def test_neighbours_of_an_address_that_is_new() -> None:
    loop = Loop()
    loop.scans.addresses = OWN | {pack_ip("2001:db8:1::1")}
    for number in range(8):
        loop.accept(100, f"2001:db8:1::1{number}", 5000 + number, HOST6)
    assert loop.end() == []
    loop.scans.addresses = OWN
    for number in range(4):
        loop.accept(101, f"2001:db8:1::1{number}", 5000 + number, HOST6)
    assert len(loop.end()) == 1


@pytest.mark.parametrize(
    ("opened", "closed", "is_verified"),
    [
        ((1, 2, 3, 4), (), True),
        ((1, 2, 3), (4,), False),
        ((1, 2, 3, 4), (5, 6), True),
        ((), (1, 2, 3, 4), False),
    ],
)
def test_a_source_is_verified_if_its_connections_are_a_scan(
    opened: tuple[int, ...], closed: tuple[int, ...], is_verified: bool
) -> None:
    loop = Loop()
    loop.refuse(100, STRANGER, *closed)
    for port in opened:
        loop.accept(101, STRANGER, port)
    assert [scan.is_verified for scan in loop.end()] == [is_verified]


@pytest.mark.parametrize("closed", [(), (23,)])
def test_a_source_that_sweeps_is_verified_by_connections_alone(closed: tuple[int, ...]) -> None:
    loop = Loop(own=frozenset(pack_ip(f"10.0.1.{last}") for last in range(21)))
    for last in range(21):
        loop.accept(100, STRANGER, 80, f"10.0.1.{last}")
        loop.refuse(100, STRANGER, *closed, host=f"10.0.2.{last}")
    assert [scan.is_verified for scan in loop.end()] == [True]


def test_another_process_goes_on_and_tells_nothing_twice() -> None:
    """Before it is found, while it is held, when it was told, and as it goes on."""
    loop = Loop(SLOW)
    for time in range(100, 400):
        loop.restart()
        if time % 3 == 0:
            loop.refuse(time, STRANGER, time // 3)
        loop.refuse(time, OTHER, 1 + time % 3)
    told = loop.end()
    ports = [port for scan in told for port in scan.closed_ports]
    assert ports == [*range(34, 134)]
    assert [scan.goes_on for scan in told] == ["", *["ports"] * (len(told) - 1)]
    times = [when for when, _ in loop.told]
    assert all(after - before == 60 for before, after in zip(times, times[1:]))


# Its bounds.


def measure(thing: object) -> int:
    """Bytes of it and of all that it holds."""
    seen: set[int] = set()
    waiting, size = [thing], 0
    while waiting:
        one = waiting.pop()
        if id(one) not in seen and not isinstance(one, (type, ModuleType, FunctionType)):
            seen.add(id(one))
            size += sys.getsizeof(one)
            waiting += gc.get_referents(one)
    return size


def spoof(number: int, ports: int, seconds: int) -> Iterator[list[Reset]]:
    """From so many sources, each of which tries so many ports, by the thousand."""
    places = [pack((HOST, port)) for port in range(1, 1001)]
    for start in range(0, number, 1000):
        time = SECOND + start * seconds * SECOND // number
        yield [
            make(Reset, (time, make(End, (places[(which + port) % 1000], remote))))
            for which in range(start, start + 1000)
            for remote in [Endpoint(hash_address(which) + b"\x9c\x40")]
            for port in range(ports)
        ]


def hash_address(number: int) -> bytes:
    """Another for each of two billion, and none of this machine."""
    return (1 << 31 | number * 1640531527 % (1 << 31)).to_bytes(4, "big")


MIB = 1 << 20


def test_a_million_spoofed_sources_take_no_more_memory_and_are_no_scan() -> None:
    """Whoever scans beside them is told."""
    loop = Loop(SLOW)
    sizes = []
    for number, resets in enumerate(spoof(1_000_000, 1, 60)):
        loop.scans.follow_resets(resets, 0, resets[-1].time)
        if number % 4 == 0 and number < 40:
            end = End(pack((HOST, 2000 + number)), pack((STRANGER, 40000)))
            loop.scans.follow_resets([resets[-1]._replace(end=end)], 0, resets[-1].time)
        if number in (100, 999):
            sizes.append(measure(loop.scans))
    assert [scan.closed_ports for scan in loop.end()] == [[*range(2000, 2040, 4)]]
    assert max(sizes) < 6 * MIB
    assert 1_000_000 - sources.MOST_SINGLE <= loop.scans.forgotten < 1_000_000 - sources.MOST_SINGLE // 2


def test_many_sources_that_try_a_little_are_forgotten_too() -> None:
    loop = Loop(SLOW)
    for resets in spoof(100_000, 3, 60):
        loop.scans.follow_resets(resets, 0, resets[-1].time)
        assert len(loop.scans._sources.several) <= sources.MOST_SOURCES
    assert loop.end() == []
    assert measure(loop.scans) < 20 * MIB


def test_spoofed_scans_are_counted_where_there_are_too_many() -> None:
    """The count once in a window."""
    loop = Loop()
    for resets in spoof(5_000, 4, 1):
        loop.scans.follow_resets(resets, 0, resets[-1].time)
    now = 2 * SECOND
    assert loop.scans.take_unfollowed(now) == 5_000 - module.MOST_SCANS
    end = [End(pack((HOST, port)), pack((STRANGER, 40000))) for port in (1, 2, 3, 4)]
    loop.scans.follow_resets([Reset(now, one) for one in end], 0, now)
    assert loop.scans.take_unfollowed(now + LIMITS.window - 1) == 0
    assert loop.scans.take_unfollowed(now + LIMITS.window) == 1
    assert loop.scans.take_unfollowed(now + 10 * LIMITS.window) == 0
    assert len(loop.end()) == loop.scans.told == module.MOST_SCANS
    loop.refuse(1e9, STRANGER, 1, 2, 3, 4)
    assert len(loop.scans.known.scans) == 1


def test_the_count_of_the_others_is_kept() -> None:
    loop = Loop()
    for resets in spoof(1_000, 4, 1):
        loop.scans.follow_resets(resets, 0, resets[-1].time)
    loop.restart()
    assert loop.scans.take_unfollowed(2 * SECOND) == 1_000 - module.MOST_SCANS


def test_who_tries_every_port_of_ten_addresses_is_told_once() -> None:
    loop = Loop(SLOW)
    remote = pack((STRANGER, 40000))
    hosts = [f"10.0.0.{last}" for last in range(5, 15)]
    for number, host in enumerate(hosts):
        address = pack_ip(host)
        time = SECOND + number * SECOND // 10
        resets = [
            make(Reset, (time, make(End, (Endpoint(address + port.to_bytes(2, "big")), remote))))
            for port in range(1, 65536)
        ]
        loop.scans.follow_resets(resets, 0, time)
    assert measure(loop.scans._scans) < 200_000
    assert measure(loop.scans._scans) * module.MOST_SCANS < 64 * MIB
    assert len(format_baseline(make_baseline()._replace(scans=loop.scans.known))) < 200_000
    assert loop.end() == [expect(STRANGER, [], range(1, 65536), 1, 1.9, hosts)]


def test_ipv6_with_a_new_address_for_each_packet_is_one_entry_a_network() -> None:
    loop = Loop(SLOW)
    chance = random.Random(1)
    for which in range(20_000):
        address = pack_ip(f"2001:db8:{which % 5}::")[:8] + chance.randbytes(8)
        end = End(pack((HOST6, 1 + which // 5)), Endpoint(address + b"\x9c\x40"))
        loop.scans.follow_resets([Reset(SECOND + which, end)], 0, SECOND + which)
    told = loop.end()
    networks = [(pack_ip(f"2001:db8:{which}::"), 64) for which in range(5)]
    assert sorted(scan.network or (b"", 0) for scan in told) == networks
    assert [scan.closed_ports for scan in told] == [[*range(1, 4001)]] * 5


def test_those_who_may_scan_are_remembered_up_to_a_bound() -> None:
    allowed = ((pack_host(0), pack_host(0xFFFFFF)),)
    loop = Loop(LIMITS._replace(allowed=allowed))
    for number in range(3 * module.MOST_PASSED):
        ends = Endpoint(pack_host(number) + b"\x9c\x40"), pack((HOST, 1 + number % 9))
        loop.scans.follow([Connection(*ends, "ingress", TcpState.ESTABLISHED, "trace", SECOND)])
    assert len(loop.scans._passed) <= module.MOST_PASSED
    assert loop.scans.known._replace(prefix6=0) == NOTHING_SCANNED


# No false alarms.


def test_health_checks_are_no_scan() -> None:
    """Of three ports at each of ten addresses, every second for two hours, with some that fail."""
    loop = Loop(SLOW)
    for time in range(7200):
        for port in (80, 443, 8443):
            host = f"10.0.1.{time % 10}"
            if time % 100 < 5:
                loop.refuse(time, STRANGER, port, host=host)
            else:
                loop.accept(time, STRANGER, port, host)
    assert loop.end() == []
    assert measure(loop.scans) < 50_000


@pytest.mark.parametrize("port", [443, 8081])
def test_a_browser_that_opens_fifty_connections_to_one_port_is_no_scan(port: int) -> None:
    """Whether it is open or closed."""
    loop = Loop(SLOW)
    for source_port in range(50000, 50050):
        loop.accept(100, STRANGER, port)
        loop.refuse(100, OTHER, port, source_port=source_port)
    assert loop.end() == []


def test_passive_ports_of_an_ftp_server_are_no_scan_where_it_is_said() -> None:
    """By the ports, or by who comes; else they are what they look like."""
    for limits, entries in (
        (SLOW, 1),
        (SLOW._replace(ignored_ports=((50000, 50999),)), 0),
        (SLOW._replace(allowed=((pack_ip("192.0.2.0"), pack_ip("192.0.2.255")),)), 0),
    ):
        loop = Loop(limits)
        loop.accept(100, STRANGER, 21)
        for number in range(200):
            loop.accept(100 + number / 4, STRANGER, 50000 + 37 * number % 1000)
        loop.pass_to(103)
        assert len(loop.told) == entries


def test_clients_behind_one_address_are_no_scan() -> None:
    """A hundred of them, at three services of two addresses, for an hour."""
    loop = Loop(SLOW)
    chance = random.Random(2)
    for time in range(3600):
        for _ in range(3):
            loop.accept(time, STRANGER, chance.choice((22, 80, 443)), chance.choice((HOST, HOST2)))
    assert loop.end() == []


@pytest.mark.parametrize("name", ["ports", "slow_ports", "addresses"])
def test_a_limit_above_the_places_that_are_remembered(name: str) -> None:
    """[Scan] takes up to a thousand."""
    limits = {"ports": 9000, "addresses": 9000, "slow_ports": 9000, name: 1000}
    loop = Loop(
        ScanLimits(window=LIMITS.window, slow_window=HOUR, allowed=(), ignored_ports=(), prefix6=64, **limits)
    )
    for number in range(2000):
        place = pack_host(number) + b"\0\x17" if name == "addresses" else pack((HOST, 1 + number))
        loop.scans.follow_resets([Reset(SECOND, End(Endpoint(place), pack((STRANGER, 40000))))], 0, SECOND)
    assert len(loop.end()) == 1


def test_a_slow_scan_that_tries_a_port_again_stays_slow() -> None:
    loop = Loop(SLOW)
    for port in range(1, 11):
        loop.refuse(100 * port, STRANGER, port)
    loop.refuse(1090, STRANGER, 8)
    loop.refuse(1100, STRANGER, 11)
    assert [scan.window for _, scan in loop.scans.known.scans] == [SLOW.slow_window]


def test_a_slow_scan_of_containers_stays_slow() -> None:
    """And is told when it was found, not two seconds after what was tried an hour before."""
    loop = Loop(SLOW)
    for host in (CONTAINER, CONTAINER2):
        for port in (80, 81):
            loop.accept(100, STRANGER, port + 10 * (host == CONTAINER), host, "internal")
    for port in range(1, 12):
        loop.refuse(200 * port, STRANGER, port)
    loop.end()
    assert [when for when, _ in loop.told] == [2202]


def test_a_scan_that_becomes_a_fast_one_is_told_once_in_the_window() -> None:
    loop = Loop(SLOW)
    for port in range(1, 12):
        loop.refuse(300 * port, STRANGER, port)
    loop.refuse(3310, STRANGER, 101, 102, 103, 104)
    loop.end()
    first, second = (when for when, _ in loop.told)
    assert second - first >= 60


@pytest.mark.parametrize(
    ("alone", "opened_first"),
    [(False, False), (True, True), (False, True), (True, False)],
)
def test_a_port_that_accepted_is_open_whatever_it_was_before_or_after(
    alone: bool, opened_first: bool
) -> None:
    """As it is while the scan goes on."""
    loop = Loop()
    if not alone:
        loop.refuse(99, STRANGER, 9)
    for accepts in (opened_first, not opened_first):
        (loop.accept if accepts else loop.refuse)(100, STRANGER, 80)
    loop.refuse(101, STRANGER, 1, 2, 3)
    assert [scan.open_ports for scan in loop.end()] == [[80]]


def test_a_scan_by_a_new_address_each_time_is_told_by_its_network_at_once() -> None:
    """That address tried one port, not four."""
    loop = Loop()
    for number in range(1, 5):
        loop.refuse(100, f"2001:db8:1::{number}", number, host=HOST6)
    assert [scan.network for scan in loop.end()] == [(pack_ip("2001:db8:1::"), 64)]


def test_who_may_scan_does_not_keep_alive_what_its_neighbour_tried() -> None:
    loop = Loop(LIMITS._replace(allowed=((pack_ip(NEIGHBOUR6),) * 2,)))
    loop.accept(100, STRANGER6, 1, HOST6)
    loop.accept(159, NEIGHBOUR6, 1, HOST6)
    for port in (2, 3, 4):
        loop.accept(180, STRANGER6, port, HOST6)
    assert loop.end() == []


def test_a_scan_of_very_many_addresses_is_told_once() -> None:
    """Though there is no room for all of them."""
    loop = Loop()
    for time in (1, 2, 60):
        for number in range(300):
            end = End(Endpoint(pack_host(number) + b"\0\x17"), pack((STRANGER, 40000)))
            loop.pass_to(time)
            loop.scans.follow_resets([Reset(time * SECOND, end)], 0, time * SECOND)
    assert [(scan.is_least, scan.goes_on) for scan in loop.end()] == [(True, "")]


def test_who_may_scan_since_the_restart_is_not_told() -> None:
    loop = Loop()
    loop.refuse(100, STRANGER, 1, 2, 3, 4)
    loop.refuse(103, STRANGER, 5)
    loop.scans.limits = LIMITS._replace(allowed=((pack_ip(STRANGER),) * 2,))
    loop.restart()
    assert len(loop.end()) == 1


def test_a_slow_scan_is_told_with_what_it_tried_again() -> None:
    loop = Loop(SLOW)
    for port in range(1, 12):
        loop.accept(300 * port, STRANGER, port)
    loop.accept(3310, STRANGER, 11)
    loop.refuse(3400, STRANGER, 12)
    (_, second) = loop.end()
    assert (second.open_ports, second.closed_ports, second.first) == ([], [12], 3310 * SECOND)


def test_a_client_of_an_hour_in_whose_name_others_scan_is_not_certain() -> None:
    """It came to four services; somebody else sends seven packets to closed ports in its name."""
    loop = Loop(SLOW)
    for number, port in enumerate((22, 443, 465, 993)):
        loop.accept(500 * number, STRANGER, port)
    for port in range(1, 8):
        loop.refuse(2000 + 70 * port, STRANGER, port)
    assert [scan.is_verified for scan in loop.end()] == [False]


def test_a_client_of_containers_in_whose_name_others_scan_is_not_certain() -> None:
    loop = Loop()
    for port in (80, 81, 443):
        loop.accept(100, STRANGER, port, CONTAINER, "internal")
        loop.accept(100, STRANGER, port + 8000, CONTAINER2, "internal")
    loop.refuse(101, STRANGER, 1, 2, 3, 4)
    assert [(scan.open_ports, scan.is_verified) for scan in loop.end()] == [
        ([80, 81, 443, 8080, 8081, 8443], False)
    ]


def test_a_slow_scan_that_is_not_followed_is_counted_by_its_ports() -> None:
    """That is, again after as many as make a scan at the most."""
    loop = Loop(SLOW)
    for resets in spoof(1000, 4, 1):
        loop.scans.follow_resets(resets, 0, resets[-1].time)
    assert loop.scans.take_unfollowed(2 * SECOND) == 1000 - module.MOST_SCANS
    for port in range(1, 45):
        now, end = 70 * port * SECOND, End(pack((HOST, port)), pack((STRANGER, 40000)))
        loop.scans.follow_resets([Reset(now, end)], 0, now)
    assert 1 <= loop.scans.take_unfollowed(HOUR) <= 4


def test_the_places_of_all_sources_have_a_bound() -> None:
    """Of sources that there are, each may come to have more of them."""
    loop = Loop(SLOW)
    remotes = [Endpoint(hash_address(which) + b"\x9c\x40") for which in range(sources.MOST_SOURCES - 1)]
    for port in range(1, 11):
        now, place = 61 * port * SECOND, pack((HOST, port))
        loop.scans.follow_resets([Reset(now, End(place, remote)) for remote in remotes], 0, now)
    assert (
        sum(len(source.places) for source in loop.scans._sources.several.values())
        <= sources.MOST_PLACES + 1000
    )


def test_another_process_knows_that_a_source_has_several_addresses() -> None:
    loop = Loop()
    for number, port in ((1, 1), (2, 2), (2, 3), (2, 4)):
        loop.refuse(100, f"2001:db8:1::{number}", port, host=HOST6)
        loop.restart()
    assert [scan.network for scan in loop.end()] == [(pack_ip("2001:db8:1::"), 64)]


def test_a_slow_scan_that_is_over_is_found_again_at_once() -> None:
    loop = Loop(SLOW)
    for port in range(1, 12):
        loop.refuse(300 * port, STRANGER, port)
    for port in range(1, 11):
        loop.refuse(3200 + 300 * port, STRANGER, port)
    loop.refuse(6950, STRANGER, 11)
    loop.end()
    assert [when for when, _ in loop.told] == [3302, 6952]


def test_what_is_a_fast_scan_and_a_slow_one_is_a_fast_one() -> None:
    """It is over in a minute."""
    loop = Loop(SLOW._replace(slow_ports=3))
    loop.refuse(100, STRANGER, 1, 2, 3, 4)
    loop.refuse(165, STRANGER, 5)
    assert loop.end() == [expect(STRANGER, [], [1, 2, 3, 4], 100, 100)]


def test_a_reset_that_is_read_late_makes_nothing_older_but_the_beginning() -> None:
    loop = Loop()
    loop.accept(100, STRANGER, 80)
    loop.refuse_late(101, 95, STRANGER, 80)
    loop.refuse(160, STRANGER, 1, 2, 3)
    loop.refuse_late(161, 159, STRANGER, 4)
    loop.refuse_late(161, 155, STRANGER, 5)
    assert loop.end() == [expect(STRANGER, [80], [1, 2, 3, 4, 5], 100, 160)]
    loop = Loop()
    loop.refuse(160, STRANGER, 1, 2, 3, 4)
    loop.refuse_late(161, 155, STRANGER, 5)
    assert loop.end() == [expect(STRANGER, [], [1, 2, 3, 4, 5], 155, 160)]


def test_a_connection_that_is_told_late_makes_nothing_older() -> None:
    loop = Loop()
    loop.refuse(100, STRANGER, 80)
    found = Connection(
        pack((STRANGER, 40000)), pack((HOST, 80)), "ingress", TcpState.ESTABLISHED, "trace", 95 * SECOND
    )
    loop.scans.follow([found])
    loop.refuse(158, STRANGER, 1, 2, 3)
    assert loop.end() == [expect(STRANGER, [80], [1, 2, 3], 100, 158)]


def test_records_of_another_clock_are_lost() -> None:
    """They seem to be of a time to come."""
    loop = Loop()
    loop.refuse_late(100, 102, STRANGER, 1, 2, 3, 4)
    loop.refuse(100, OTHER, 1, 2, 3, 4)
    assert loop.end() == [expect(OTHER, [], [1, 2, 3, 4], 100, 100, is_least=True)]


@pytest.mark.parametrize("accepts", [False, True])
def test_one_port_of_many_containers_is_a_scan_if_it_is_closed(accepts: bool) -> None:
    """A proxy that is outside connects to all of them."""
    loop = Loop()
    for last in range(30):
        (loop.accept if accepts else loop.refuse)(100, STRANGER, 80, host=f"172.17.0.{last}")
    assert len(loop.end()) == (not accepts)


def test_a_verified_scan_has_the_room_of_one_that_is_not() -> None:
    """But none that is verified makes room."""
    loop = Loop()
    for resets in spoof(1000, 4, 1):
        loop.scans.follow_resets(resets[: 4 * module.MOST_SCANS], 0, resets[-1].time)
    verified = [f"11.0.{number // 250}.{number % 250}" for number in range(module.MOST_SCANS + 2)]
    for source in verified:
        for port in (1, 2, 3, 4):
            found = Connection(
                pack((source, 40000)), pack((HOST, port)), "ingress", TcpState.ESTABLISHED, "trace", SECOND
            )
            loop.scans.follow([found])
    told = loop.end()
    assert [scan.address for scan in told] == [pack_ip(source) for source in verified[: module.MOST_SCANS]]
    assert all(scan.is_verified for scan in told)
    assert loop.scans.take_unfollowed(10**18) == module.MOST_SCANS + 2


def test_those_that_are_not_followed_are_counted_up_to_a_bound_and_told_at_the_end() -> None:
    loop = Loop()
    for resets in spoof(module.MOST_UNFOLLOWED + 2000, 4, 1):
        loop.scans.follow_resets(resets, 0, resets[-1].time)
    assert loop.scans.take_unfollowed(SECOND) == module.MOST_UNFOLLOWED
    for resets in spoof(1000, 4, 1):
        loop.scans.follow_resets(resets, 0, resets[-1].time)
    assert loop.scans.take_unfollowed(2 * SECOND) == 0
    assert loop.scans.take_unfollowed(2 * SECOND, everything=True) > 0


def test_what_is_told_before_its_time_goes_on() -> None:
    loop = Loop()
    loop.refuse(100, STRANGER, 1, 2, 3, 4)
    for _ in range(2):
        loop.told += [(100.5, scan) for scan in loop.scans.settle(100_500_000_000, everything=True)]
    loop.refuse(101, STRANGER, 5)
    assert [(scan.closed_ports, scan.goes_on) for scan in loop.end()] == [([1, 2, 3, 4], ""), ([5], "ports")]
    assert loop.scans.told == 1


def test_another_process_that_takes_other_bits_for_a_source_forgets_those_of_ipv6() -> None:
    """And who may scan since then is none."""
    for limits, left in (
        (LIMITS, {STRANGER, STRANGER6}),
        (LIMITS._replace(prefix6=48), {STRANGER}),
        (LIMITS._replace(allowed=((pack_ip(STRANGER),) * 2,)), {STRANGER6}),
    ):
        loop = Loop()
        for source, host in ((STRANGER, HOST), (STRANGER6, HOST6)):
            loop.refuse(100, source, 1, 2, 3, host=host)
        loop.restart(limits)
        for source, host in ((STRANGER, HOST), (STRANGER6, HOST6)):
            loop.refuse(101, source, 4, host=host)
        assert {scan.address for scan in loop.end()} == set(map(pack_ip, left))


def test_another_process_knows_where_this_one_called_long_ago() -> None:
    loop = Loop()
    loop.call(STRANGER, 8443)
    loop.scans.note_called(Endpoint(pack_host(number) + b"\x9c\x40") for number in range(module.MOST_CALLED))
    loop.restart()
    loop.refuse(100, STRANGER, *range(40000, 40100), source_port=8443)
    assert loop.end() == []


def test_another_process_knows_what_was_read() -> None:
    loop = Loop()
    loop.scans.read = 4026, 77
    loop.restart()
    assert loop.scans.read == (4026, 77)


@pytest.mark.parametrize("ports", [(1, 2, 3, 4), (1, 1, 2, 3, 4), (1, 2, 1, 3, 4)])
def test_a_place_that_was_tried_by_another_address_is_of_both(ports: tuple[int, ...]) -> None:
    """Also the first one, and one that was tried already."""
    for second in range(1, len(ports)):
        loop = Loop()
        for number, port in enumerate(ports):
            loop.accept(100, NEIGHBOUR6 if number == second else STRANGER6, port, HOST6)
        assert [scan.network for scan in loop.end()] == [(pack_ip("2001:db8:1::"), 64)]


def test_a_port_that_accepted_stays_open_for_as_long_as_it_is_remembered() -> None:
    loop = Loop(SLOW)
    loop.refuse(100, STRANGER, 1)
    loop.accept(100, STRANGER, 80)
    loop.refuse(200, STRANGER, 80)
    loop.refuse(201, STRANGER, 2, 3, 4)
    assert [scan.open_ports for scan in loop.end()] == [[80]]


def test_places_of_one_source_have_a_bound() -> None:
    """Of a port at each of very many addresses, where no number of them is a scan."""
    loop = Loop(SLOW._replace(addresses=None))
    for number in range(3_000):
        end = End(Endpoint(pack_host(number) + b"\0\x17"), pack((STRANGER, 40000)))
        loop.scans.follow_resets(
            [Reset(SECOND, end), Reset(SECOND, end._replace(local=pack((HOST, 23))))], 0, SECOND
        )
    (source,) = loop.scans._sources.several.values()
    assert len(source.places) <= sources.MOST_OF_ONE + max(SLOW.ports, 10) + 1
    assert loop.scans._sources._places == len(source.places)
    assert loop.end() == []


def test_open_ports_of_a_scan_are_told_up_to_a_bound() -> None:
    loop = Loop()
    for port in range(1, module.MOST_ACCEPTED + 100):
        loop.accept(100, STRANGER, port)
    (scan,) = (scan for _, scan in loop.scans.known.scans)
    assert len(scan.accepted) == module.MOST_ACCEPTED
    (told,) = loop.end()
    assert (len(told.open_ports) + len(told.closed_ports), told.is_verified) == (
        module.MOST_ACCEPTED + 99,
        True,
    )


def test_what_was_forgotten_is_counted_over_a_change_of_the_limits() -> None:
    loop = Loop()
    for resets in spoof(sources.MOST_SINGLE + 1000, 1, 1):
        loop.scans.follow_resets(resets, 0, resets[-1].time)
    before = loop.scans.forgotten
    loop.scans.switch(SLOW)
    assert loop.scans.forgotten == before == sources.MOST_SINGLE // 4


# Its parts.


@given(st.lists(st.integers(0, 65535)))
def test_a_set_of_ports(ports: list[int]) -> None:
    made, seen = Ports(), set[int]()
    for port in ports:
        assert made.add(port) == (port not in seen)
        seen.add(port)
        assert len(made) == len(seen)
    assert list(made) == sorted(seen)
    assert list(Ports(made.blocks.items())) == sorted(seen)


def test_the_most_addresses_of_a_port() -> None:
    places = [pack((host, port)) for host in (HOST, HOST2, HOST6) for port in (1, 2)]
    assert count_addresses(places) == 3
    assert count_addresses([*places[:2], *places[:2]]) == 1
    assert count_addresses([]) == 0
