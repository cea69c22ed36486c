"""Many short connections on loopback, to several ports, at a rate that the kernel's trace can hold.

    load.py COUNT RATE PORT...

COUNT and RATE, a second, are of all ports together. Prints how many were made to each as JSON.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

STEP = 0.02
"""Seconds for which connections are made at once."""


def accept(server: socket.socket) -> None:
    while True:
        server.accept()[0].close()


def main(count: int, rate: int, ports: list[int]) -> None:
    for port in ports:
        server = socket.create_server(("127.0.0.1", port), backlog=4096)
        threading.Thread(target=accept, args=(server,), daemon=True).start()
    began, made = time.monotonic(), dict.fromkeys(ports, 0)
    for number in range(count):
        port = ports[number % len(ports)]
        with socket.create_connection(("127.0.0.1", port), timeout=30):
            made[port] += 1
        ahead = number / rate - (time.monotonic() - began)
        if ahead > STEP:
            time.sleep(ahead)
    print(json.dumps(made))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), list(map(int, sys.argv[3:])))
