"""A server's Fast Open children that end before their handshake does, in a network namespace of their own.

The remote of tests/remote.py sends a SYN with data and does not acknowledge what comes back. Four connections
are printed as JSON: the server sent all and closed; the remote resets it after the data was read; the remote
resets it and there was no data; it is opened here, with data in its SYN. All stays until stdin ends.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.remote import FIRST_PORT, HERE, KERNEL_PORT, REMOTE, RST, SYN, set_up

WITHOUT_COOKIES = 0x1 | 0x2 | 0x200
"""Of net.ipv4.tcp_fastopen: client, server, and a server that asks for no cookie."""


def main() -> None:
    remote = set_up()
    Path("/proc/sys/net/ipv4/tcp_fastopen").write_text(str(WITHOUT_COOKIES))
    with socket.create_server((HERE, KERNEL_PORT)) as server:
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
        server.settimeout(10)
        closed, reset, refused = ports = range(FIRST_PORT, FIRST_PORT + 3)
        for port in (closed, reset):
            remote.send(port, 1000, 0, SYN, b"hello!")
            with server.accept()[0] as child:
                assert child.recv(100) == b"hello!"
                child.sendall(b"world!")
                if port == reset:
                    remote.send(port, 1007, 0, RST)
                    time.sleep(0.1)
        remote.send(refused, 1000, 0, SYN)
        remote.send(refused, 1001, 0, RST)
        with socket.socket() as client:
            client.sendto(b"hello!", socket.MSG_FASTOPEN, server.getsockname())
            with server.accept()[0]:
                within = [*client.getsockname(), *client.getpeername()]
        from_remote = [[REMOTE, port, HERE, KERNEL_PORT] for port in ports]
        print(json.dumps([*from_remote, within]), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
