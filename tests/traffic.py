"""Real TCP connections, made by a process of its own, held until its stdin ends.

It prints what its sockets saw as JSON. Usage:

    traffic.py each PEER | peer ADDRESS HOST | many COUNT [ADDRESS] | short COUNT [ADDRESS]
    traffic.py churn RATE SECONDS [SOURCES [NETWORK]] | listen PORT BACKLOG | hold COUNT ADDRESS PORT
    traffic.py check SOURCE ADDRESS PORT
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

Socket = socket.socket
DOOR = 8080
IP_BIND_ADDRESS_NO_PORT = 24
"""ip(7); Python knows it since 3.12."""
RESET = struct.pack("ii", 1, 0)


def listen(address: str, port: int = 0, dual_stack: bool = False) -> Socket:
    """`dual_stack` only matters for an IPv6 address."""
    server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in address:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual_stack)
    server.bind((address, port))
    server.listen(4096)
    return server


def describe(source: Any, destination: Any, direction: str) -> dict[str, str]:
    """A connection in the words of the journal's fields."""
    return {
        "SOURCE_IP": source[0],
        "SOURCE_PORT": str(source[1]),
        "DESTINATION_IP": destination[0],
        "DESTINATION_PORT": str(destination[1]),
        "NETWORK_DIRECTION": direction,
        "NETWORK_TYPE": "ipv6" if ":" in source[0] else "ipv4",
    }


def connect(address: str, port: int) -> Socket:
    return socket.create_connection((address, port), timeout=30)


def connect_from(source: str | None, address: str, port: int) -> Socket:
    """The port of the source is chosen as it connects, or they would run out."""
    if source is None:
        return connect(address, port)
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    client.bind((source, 0))
    client.connect((address, port))
    return client


def connect_soon(address: str, port: int) -> Socket:
    """To a process that may not listen yet."""
    for _ in range(1000):
        with contextlib.suppress(ConnectionRefusedError):
            return connect(address, port)
        time.sleep(0.01)
    raise TimeoutError(f"nobody listens at {address}:{port}")


def hold(kept: list[Any], truth: Any) -> None:
    """Tell the truth, keep the sockets open until stdin ends."""
    print(json.dumps(truth), flush=True)
    sys.stdin.read()
    kept.clear()


def open_each(peer: str) -> None:
    """IPv4, IPv6, and IPv4 to a dual-stack server on loopback; to and from a peer in another namespace."""
    servers = [
        (listen("127.0.0.1"), "127.0.0.1"),
        (listen("::1"), "::1"),
        (listen("::", 0, True), "127.0.0.1"),
    ]
    clients = [connect(address, server.getsockname()[1]) for server, address in servers]
    accepted = [server.accept()[0] for server, _ in servers]
    truth = [describe(client.getsockname(), client.getpeername(), "internal") for client in clients]
    door = listen("0.0.0.0", DOOR)
    egress, ingress = connect_soon(peer, DOOR), door.accept()[0]
    truth.append(describe(egress.getsockname(), egress.getpeername(), "egress"))
    truth.append(describe(ingress.getpeername(), ingress.getsockname(), "ingress"))
    hold([servers, clients, accepted, door, egress, ingress], truth)


def be_peer(address: str, host: str) -> None:
    """The other end of `each`: accept one connection, open one."""
    door = listen(address, DOOR)
    accepted = door.accept()[0]
    hold([door, accepted, connect_soon(host, DOOR)], [])


def open_many(count: str, address: str = "127.0.0.1") -> None:
    """On loopback, accepted; tells the server's port and the clients'."""
    server = listen(address)
    kept = []
    for _ in range(int(count)):
        kept += [connect(*server.getsockname()[:2]), server.accept()[0]]
    hold([server, *kept], [server.getsockname()[1], [end.getsockname()[1] for end in kept[::2]]])


def open_short(count: str, address: str = "127.0.0.1") -> None:
    """Opened, accepted and closed at once; tells the server's port and the clients'."""
    server = listen(address)
    ports = []
    for _ in range(int(count)):
        with connect(*server.getsockname()[:2]) as client:
            ports.append(client.getsockname()[1])
            server.accept()[0].close()
    hold([server], [server.getsockname()[1], ports])


def defer_accept(client_address: str, server_address: str) -> None:
    """The accepting end comes with the first data, long after the opening end."""
    server = listen(server_address)
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 30)
    client = socket.create_connection(server.getsockname(), source_address=(client_address, 0))
    time.sleep(0.3)
    client.sendall(b"hello")
    hold([server, client, server.accept()[0]], [*client.getsockname(), *client.getpeername()])


def just_listen(port: str, backlog: str) -> None:
    """At every address; nothing is accepted."""
    server = socket.socket()
    server.bind(("0.0.0.0", int(port)))
    server.listen(int(backlog))
    hold([server], [])


def hold_many(count: str, address: str, port: str) -> None:
    """Opened to a server elsewhere, and kept."""
    hold([connect(address, int(port)) for _ in range(int(count))], [])


def churn(rate: str, seconds: str, sources: str = "0", network: str = "127.0") -> None:
    """So many connections a second, reset at once, a hundred bursts a second; tells both ports of each.

    If so many sources are asked for, they are 127.0.1.0, 127.0.1.1 and so on, in turn, or in another network.
    """
    server = listen(f"{network}.0.1")
    each = int(rate) // 100
    ports: list[int] = []
    began = time.monotonic()
    for burst in range(100 * int(seconds)):
        time.sleep(max(0.0, began + burst / 100 - time.monotonic()))
        for _ in range(each):
            which = 256 + len(ports) % int(sources) if int(sources) else 0
            source = f"{network}.{which >> 8}.{which & 255}" if which else None
            client = connect_from(source, *server.getsockname())
            ports.append(client.getsockname()[1])
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            accepted, _ = server.accept()
            client.close()
            accepted.close()
    hold([server], [server.getsockname()[1], ports, time.monotonic() - began])


def check(source: str, address: str, port: str) -> None:
    """As a health check does, five times a second until stdin ends; tells each time whether it could."""
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        could = True
        try:
            socket.create_connection((address, int(port)), timeout=30, source_address=(source, 0)).close()
        except OSError:
            could = False
        print(json.dumps(could), flush=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "each": open_each,
    "peer": be_peer,
    "many": open_many,
    "short": open_short,
    "churn": churn,
    "defer": defer_accept,
    "listen": just_listen,
    "hold": hold_many,
    "check": check,
}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
