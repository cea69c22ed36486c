"""Connections of mixed length and end, a server and a client process, in one network or two.

    mixed.py server
    mixed.py client ADDRESS4 ADDRESS6 COUNT SECONDS LONGEST SEED

The server listens on fixed ports until its stdin ends. The client opens COUNT connections over SECONDS; most
are short, some last up to LONGEST seconds; they are closed by it, by the server, or reset by either, some are
never accepted, some source ports are used again, some attempts are refused or never answered. It prints the
established ones as JSON: [[source, port, destination, port], …], as its sockets saw them.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import json
import random
import selectors
import socket
import struct
import sys
import time
from typing import Any

PORT4, PORT6, DUAL, UNACCEPTED, CLOSED = 7001, 7002, 7003, 7004, 7009
RESET = struct.pack("ii", 1, 0)
REUSED_PORTS = range(20000, 20010)


def listen(port: int, ipv6: bool, dual_stack: bool = False) -> socket.socket:
    server = socket.socket(socket.AF_INET6 if ipv6 else socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ipv6:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
    server.bind(("::" if ipv6 else "0.0.0.0", port))
    server.listen(4096)
    return server


def serve() -> None:
    """Close when the client closes or says "c"; reset when it says "r"."""
    waiting = selectors.DefaultSelector()
    doors = [listen(PORT4, False), listen(PORT6, True), listen(DUAL, True, True)]
    unaccepted = listen(UNACCEPTED, False)
    for door in doors:
        waiting.register(door, selectors.EVENT_READ, "door")
    waiting.register(sys.stdin, selectors.EVENT_READ, "end")
    print(json.dumps([]), flush=True)
    while True:
        for key, _ in waiting.select():
            here: Any = key.fileobj
            if key.data == "end":
                unaccepted.close()
                return
            if key.data == "door":
                waiting.register(here.accept()[0], selectors.EVENT_READ, "session")
                continue
            with contextlib.suppress(ConnectionResetError):  # by the client
                if here.recv(1) == b"r":
                    here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            waiting.unregister(here)
            here.close()


class Client:
    def __init__(self, address4: str, address6: str, count: int, longest: float, seed: int) -> None:
        self._random = random.Random(seed)
        self._address4, self._address6 = address4, address6
        self._count, self._longest = count, longest
        self._silent: list[socket.socket] = []
        self.truth: list[list[Any]] = []

    def run(self, seconds: float) -> None:
        """Open and close in the order of time."""
        began = time.monotonic()
        todo: list[tuple[float, int, Any]] = [
            (began + seconds * i / self._count, i, self._open) for i in range(self._count)
        ]
        while todo:
            due, number, act = heapq.heappop(todo)
            time.sleep(max(0, due - time.monotonic()))
            session = act()
            if session is not None:
                heapq.heappush(
                    todo, (time.monotonic() + self._lifetime(), number, lambda s=session: self._close(s))
                )

    def _lifetime(self) -> float:
        """A quarter ends at once, a quarter within a second, the rest spreads to the longest."""
        return self._random.choice([0, self._random.random(), *[self._random.uniform(0, self._longest)] * 2])

    def _open(self) -> socket.socket | None:
        """One attempt; the socket if it was established."""
        draw = self._random.random()
        if draw < 0.03:
            self._be_refused()
            return None
        if draw < 0.05:
            self._stay_unanswered()
            return None
        port = self._random.choice([PORT4, PORT4, PORT6, DUAL, DUAL, UNACCEPTED])
        address = self._address6 if port == PORT6 or (port == DUAL and draw < 0.3) else self._address4
        session = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        if draw > 0.8:
            session.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):  # the port is in use: the kernel chooses another
                session.bind(("", self._random.choice(REUSED_PORTS)))
        try:
            session.connect((address, port))
        except OSError as error:
            session.close()
            if error.errno != errno.EADDRNOTAVAIL:  # the 4-tuple is in use
                raise
            return None
        source, destination = session.getsockname()[:2], session.getpeername()[:2]
        self.truth.append([*source, *destination])
        return session

    def _be_refused(self) -> None:
        with socket.socket() as attempt, contextlib.suppress(ConnectionRefusedError):
            attempt.connect((self._address4, CLOSED))

    def _stay_unanswered(self) -> None:
        """A handshake to an address of documentation, given up at the end."""
        attempt = socket.socket()
        attempt.setblocking(False)
        with contextlib.suppress(BlockingIOError, OSError):
            attempt.connect(("198.51.100.77", 9))
        self._silent.append(attempt)

    def _close(self, session: socket.socket) -> None:
        how = self._random.choice(["here", "here", "there", "reset here", "reset there"])
        if how == "reset here":
            session.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        elif how != "here" and session.getpeername()[1] != UNACCEPTED:
            session.settimeout(10)
            with contextlib.suppress(ConnectionResetError):  # as asked for
                session.send(b"r" if how == "reset there" else b"c")
                session.recv(1)
        session.close()


def be_client(address4: str, address6: str, count: str, seconds: str, longest: str, seed: str) -> None:
    client = Client(address4, address6, int(count), float(longest), int(seed))
    client.run(float(seconds))
    print(json.dumps(client.truth), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    serve() if sys.argv[1] == "server" else be_client(*sys.argv[2:])
