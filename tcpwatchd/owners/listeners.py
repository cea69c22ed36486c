"""Which process listens where, of those whose →LISTEN was heard."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tcpwatchd.connection import IPV4_ANY, IPV6_ANY, Endpoint, Listener

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tcpwatchd.connection import Socket, Transition
    from tcpwatchd.owners.processes import Process

MOST_LISTENERS = 10_000
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
        self._unheard: set[Endpoint] = set()
        """Where a poll saw more sockets listen than were heard of: it is not known whose a connection is."""

    def add(self, transition: Transition, process: Process | None) -> None:
        socket = transition.socket
        if socket is None or socket.network != self._network:
            return
        started = process.started if process else GONE
        new = Listener(transition.end.local, socket, transition.time, transition.thread, started)
        self.remove(transition.skaddr)
        if len(self.heard) < MOST_LISTENERS:
            self._add(transition.skaddr, new)
        else:
            self._unheard.add(new.endpoint)

    def _add(self, skaddr: int, listener: Listener) -> None:
        self.heard[skaddr] = listener
        self._places.setdefault(listener.endpoint, {})[skaddr] = listener

    def remove(self, skaddr: int) -> None:
        listener = self.heard.pop(skaddr, None)
        if listener:
            place = self._places[listener.endpoint]
            del place[skaddr]
            if not place:
                del self._places[listener.endpoint]

    def forget(self) -> None:
        """Records were lost: nothing that was heard can be relied on."""
        self._unheard |= self._places.keys()
        self.heard, self._places = {}, {}

    def restore(self, heard: Mapping[int, Listener]) -> None:
        for skaddr, listener in heard.items():
            self._add(skaddr, listener)

    def compare(self, rows: Mapping[Endpoint, int], until: int) -> None:
        """With how many rows of a snapshot that was begun then listen at each endpoint."""
        heard = Counter(listener.endpoint for listener in self.heard.values() if listener.time < until)
        self._unheard = {endpoint for endpoint, number in rows.items() if number > heard[endpoint]}

    def find(self, local: Endpoint, socket: Socket) -> Listener | None:
        """Who listens where this was accepted, if there is only one who can."""
        if socket.network != self._network:
            return None
        places = list(list_places(local))
        if not self._unheard.isdisjoint(places):
            return None
        found = [one for place in places for one in self._places.get(place, {}).values()]
        ours = {(one.thread, one.started): one for one in found if one.socket == socket}
        (only,) = ours.values() if len(ours) == 1 else (None,)
        return None if only is None or only.started == GONE else only


def list_places(local: Endpoint) -> Iterator[Endpoint]:
    """Where a socket can listen that accepts at this endpoint."""
    port = local[-2:]
    yield local
    yield Endpoint(IPV6_ANY + port)
    if local.is_ipv4:
        yield Endpoint(IPV4_ANY + port)
