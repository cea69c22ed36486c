"""What sources tried of this machine lately: which places, a port at an address each, and when. No I/O.

Memory is bounded: the oldest are forgotten. Those that tried one place only, most by far and all that are
forged with one packet, have room of their own.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tcpwatchd.connection import Endpoint

    Tried = tuple[Endpoint, int, int, bytes]
    """A place, when, how that ended, and the address that the source had."""

REFUSED, ACCEPTED, ACCEPTED_INSIDE = range(3)
"""How a try ended; the last, if both ends are on this machine."""
MOST_SINGLE = 20_000
"""Sources that tried one place."""
MOST_SOURCES = 10_000
"""Those that tried more."""
MOST_PLACES = 50_000
"""Places of the latter."""
MOST_OF_ONE = 2_000
"""Places of one of them."""


class Source:
    """One that tried more than one place."""

    __slots__ = "address", "has_others", "inside", "left", "places", "refused"

    def __init__(self, left: int, address: bytes) -> None:
        self.left = left
        """As long as fewer are added, it scans nothing."""
        self.address = address
        """The last one that it had."""
        self.has_others = False
        """Whether it had more."""
        self.places: dict[Endpoint, int] = {}
        """When it last tried each: nanoseconds of CLOCK_BOOTTIME."""
        self.refused: set[Endpoint] = set()
        """Those that accepted nothing."""
        self.inside: set[Endpoint] = set()
        """Those that a connection inside this machine was for."""

    def repeats(self, place: Endpoint, time: int, how: int, address: bytes, window: int) -> bool:
        """Whether it tried the place in the same window: it is no nearer to a scan then."""
        last = self.places.get(place)
        if last is None or not last - window <= time <= last + window or address != self.address:
            return False
        self.places[place] = max(last, time)
        if how and self.refused:
            self.refused.discard(place)
        return True

    def add(self, place: Endpoint, time: int, how: int, address: bytes) -> None:
        self.left -= 1
        self.has_others |= address != self.address
        self.address = address
        if how:
            self.refused.discard(place)
            if how == ACCEPTED_INSIDE:
                self.inside.add(place)
        elif place not in self.places:
            self.refused.add(place)
        self.places[place] = max(time, self.places.get(place, time))

    def forget(self, before: int) -> None:
        """What was last tried before then, and the oldest of too many."""
        kept = sorted((time, place) for place, time in self.places.items() if time >= before)
        self.places = {place: time for time, place in kept[-MOST_OF_ONE:]}
        self.refused &= self.places.keys()
        self.inside &= self.places.keys()

    def get_how(self, place: Endpoint) -> int:
        if place in self.refused:
            return REFUSED
        return ACCEPTED_INSIDE if place in self.inside else ACCEPTED


class Sources:
    """By what tells them apart. `fewest` places or less are no scan; times are in nanoseconds."""

    def __init__(self, window: int, memory: int, fewest: int) -> None:
        self._window, self._memory, self._fewest = window, memory, fewest
        self.single: dict[bytes, Tried] = {}
        self.several: dict[bytes, Source] = {}
        self._places = 0
        """Those of `several`."""
        self.forgotten = 0
        """Sources that were forgotten, there being too many, within the window."""

    def knows(self, key: bytes) -> bool:
        return key in self.single or key in self.several

    def note(self, key: bytes, place: Endpoint, time: int, how: int, address: bytes) -> Source | None:
        """The source, if it may scan by now."""
        if self._places >= MOST_PLACES:
            self._make_more_room(time)
        source = self.several.get(key)
        if source is None:
            known = self.single.get(key)
            if known is None or time - known[1] > self._memory:
                if known is None and len(self.single) >= MOST_SINGLE:
                    self._make_room(time)
                self.single[key] = place, time, how, address
                return None
            if known[0] == place and known[3] == address:
                self.single[key] = place, max(time, known[1]), known[2] or how, address
                return None
            del self.single[key]
            if len(self.several) >= MOST_SOURCES:
                self._make_more_room(time)
            source = self.several[key] = Source(self._fewest + 1, known[3])
            source.add(*known)
            self._places += 1
        if source.repeats(place, time, how, address, self._window):
            return None
        self._places += place not in source.places
        source.add(place, time, how, address)
        return source if source.left <= 0 else None

    def _make_room(self, now: int) -> None:
        """Many at once."""
        for key in list(islice(self.single, MOST_SINGLE // 4)):
            self.forgotten += now - self.single.pop(key)[1] < self._window

    def _make_more_room(self, now: int) -> None:
        for key in list(islice(self.several, 1 + len(self.several) // 4)):
            self.forgotten += now - max(self.several[key].places.values()) < self._window
            self.remove(key)

    def trim(self, source: Source) -> None:
        """Have it forget what it tried too long ago."""
        before = len(source.places)
        source.forget(max(source.places.values()) - self._memory)
        self._places += len(source.places) - before

    def remove(self, key: bytes) -> None:
        """One that tried more than one place."""
        self._places -= len(self.several.pop(key).places)

    def __iter__(self) -> Iterator[tuple[bytes, Endpoint, int, int, bytes]]:
        """What is remembered, for `note` to be told of again."""
        for key, tried in self.single.items():
            yield (key, *tried)
        for key, source in self.several.items():
            address = key if source.has_others else source.address
            for place, time in source.places.items():
                yield key, place, time, source.get_how(place), address
                address = source.address
