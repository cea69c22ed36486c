"""Which process listens where, of those whose →LISTEN was heard."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tcpwatchd.connection import Listener, list_listening

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tcpwatchd.connection import Endpoint, Socket, Transition
    from tcpwatchd.owners.processes import Process

MOST_LISTENERS = 10_000
MOST_CLOSED = 1_000
"""Between two polls; after more nothing is known until the next."""
HELD = 1_000_000_000
"""Nanoseconds; a connection is named sooner after it opened, unless it waited for a drain."""
GONE = -1


class Listeners:
    """`network` is the inode of the network namespace that is polled.

    In others nothing shows which sockets listen that were not heard of.
    """

    def __init__(self, network: int) -> None:
        self._network = network
        self.heard: dict[int, Listener] = {}
        """By the socket's address (skaddr)."""
        self._places: dict[Endpoint, dict[int, Listener]] = {}
        self._closed: dict[Endpoint, list[tuple[int, Listener]]] = {}
        """When each one closed, of those since the last poll: a connection can be named a moment later."""
        self._closed_count = 0
        self._unheard: set[Endpoint] = set()
        """Where a poll saw more sockets listen than were heard of: it is not known whose a connection is."""
        self._unheard_now: set[Endpoint] = set()
        """The same of the last poll alone."""
        self._compared = False
        """Whether a poll has shown what was not heard of, since anything may have been missed."""

    def concerns(self, socket: Socket | None) -> bool:
        """Whether it is of the network that is polled."""
        return socket is not None and socket.network == self._network

    def add(self, transition: Transition, process: Process | None) -> None:
        socket = transition.socket
        if socket is None or not self.concerns(socket):
            return
        started = process.started if process else GONE
        new = Listener(transition.end.local, socket, transition.time, transition.thread, started)
        self.remove(transition.skaddr, transition.time)
        if len(self.heard) < MOST_LISTENERS:
            self._add(transition.skaddr, new)
        else:
            self._unheard.add(new.endpoint)

    def _add(self, skaddr: int, listener: Listener) -> None:
        self.heard[skaddr] = listener
        self._places.setdefault(listener.endpoint, {})[skaddr] = listener

    def remove(self, skaddr: int, when: int) -> None:
        listener = self.heard.pop(skaddr, None)
        if listener:
            place = self._places[listener.endpoint]
            del place[skaddr]
            if not place:
                del self._places[listener.endpoint]
            self._closed.setdefault(listener.endpoint, []).append((when, listener))
            self._closed_count += 1
            if self._closed_count > MOST_CLOSED:
                self.forget()

    def forget(self) -> None:
        """Something may have been missed: nothing is known until a poll shows who listens."""
        self.heard, self._places, self._closed, self._closed_count = {}, {}, {}, 0
        self._compared = False

    def restore(self, heard: Mapping[int, Listener]) -> None:
        for skaddr, listener in heard.items():
            self._add(skaddr, listener)

    def compare(self, rows: Mapping[Endpoint, int], until: int) -> None:
        """With how many rows of a snapshot that was begun then listen at each endpoint.

        A live row can be skipped once: what was unheard stays so for one more.
        """
        heard = Counter(listener.endpoint for listener in self.heard.values() if listener.time < until)
        before = self._unheard_now
        self._unheard_now = {endpoint for endpoint, number in rows.items() if number > heard[endpoint]}
        self._unheard = self._unheard_now | before
        since = until - HELD
        recent = {place: [one for one in closed if one[0] >= since] for place, closed in self._closed.items()}
        self._closed = {place: closed for place, closed in recent.items() if closed}
        self._closed_count = sum(map(len, self._closed.values()))
        self._compared = True

    def find(self, local: Endpoint, socket: Socket, when: int) -> Listener | None:
        """Who then listened where this was accepted, if there is only one who can have accepted it."""
        if not self.concerns(socket) or not self._compared:
            return None
        places = list_listening(local)
        if not self._unheard.isdisjoint(places):
            return None
        found = [one for place in places for one in self._places.get(place, {}).values()]
        found += [one for place in places for end, one in self._closed.get(place, ()) if end >= when]
        ours = {(one.thread, one.started): one for one in found if one.socket == socket and one.time <= when}
        (only,) = ours.values() if len(ours) == 1 else (None,)
        return None if only is None or only.started == GONE else only
