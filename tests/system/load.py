"""A load of mixed connections with known truth on a service in a container."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from tcpwatchd.output import event
from tests.holder import Traffic
from tests.mixed import PORT4
from tests.namespace import Namespace, run, wait_until
from tests.system.service import entries

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.system.container import Container

RATE = 50
HOST, PEER, HOST6, PEER6 = "10.78.3.1", "10.78.3.2", "fd00:78:3::1", "fd00:78:3::2"
PORTS = {str(port) for port in range(PORT4, PORT4 + 10)}
Ends = Counter[tuple[str, ...]]


def join(client: Namespace, container: Container) -> None:
    client.join(PEER, container.leader, HOST)
    run(*client.prefix, "ip", "address", "add", f"{PEER6}/64", "dev", "ve0", "nodad")
    container.run("ip", "address", "add", f"{HOST6}/64", "dev", "ve1", "nodad")


class Load:
    """Mixed connections from the client's network while something is done; then what was written of them."""

    def __init__(self, container: Container, client: Namespace) -> None:
        self._container, self._client = container, client
        self._before = self._read()

    def run(self, seconds: int, harm: Callable[[], None]) -> tuple[Ends, Ends]:
        """What is missing, and what was written again."""
        server = Traffic(self._container.leader, "server", script="mixed.py")
        server.truth()
        plan = (str(RATE * seconds), str(seconds), "10", str(seconds))
        clients = Traffic(self._client.pid, "client", HOST, HOST6, *plan, script="mixed.py")
        try:
            harm()
            truth = Counter(tuple(map(str, ends)) for ends in clients.truth())
            wait_until(lambda: not truth - self._found() or self._settled(), 60, "all written")
            found = self._found()
        finally:
            # A test that fails must not leave its ports taken for the next.
            clients.end()
            server.end()
        counts = [sum(ends.values()) for ends in (truth, truth - found, found - truth)]
        print("opened {}, missing {}, written again {}".format(*counts))
        if found != truth:
            units = ("-u", "tcpwatchd", "-u", "tcpwatchd-trace", "-p", "notice", "-o", "short-precise")
            print(self._container.run("journalctl", *units))
        return truth - found, found - truth

    def _settled(self) -> bool:
        before = self._found()
        time.sleep(6)
        return self._found() == before

    def _found(self) -> Ends:
        return self._read() - self._before

    def _read(self) -> Ends:
        names = ("SOURCE_IP", "SOURCE_PORT", "DESTINATION_IP", "DESTINATION_PORT")
        found = entries(self._container, event.CONNECTION_OPENED)
        # The trace hears the whole machine, where others may use such ports too.
        ours = (e for e in found if e["DESTINATION_PORT"] in PORTS and e["DESTINATION_IP"] in (HOST, HOST6))
        return Counter(tuple(e[name] for name in names) for e in ours)
