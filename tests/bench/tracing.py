"""What the kernel's notes cost whoever opens connections: the same loop with the trace and without it.

Run as a program it is that loop: connections on loopback, accepted, and reset at once.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from tcpwatchd.kernel.setup import remove, set_up  # noqa: E402
from tests.bench.figures import INTERPRETER, summarize  # noqa: E402
from tests.namespace import Namespace, run  # noqa: E402

CONNECTIONS, PAIRS = 5_000, 9
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time to linger."""


def open_and_reset() -> float:
    """Microseconds of processor time a connection, both ends and the kernel's work included."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(16)
        began = time.process_time()
        for _ in range(CONNECTIONS):
            client = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            client.close()
            accepted.close()
        return (time.process_time() - began) / CONNECTIONS * 1e6


def main() -> None:
    with Namespace() as host:
        command = [*host.prefix, INTERPRETER, __file__]
        with_trace, without = [], []
        for _ in range(PAIRS):
            without.append(float(run(*command).stdout))
            path = set_up(f"tcpwatchd-bench-{os.getpid()}", 512).path
            with_trace.append(float(run(*command).stdout))
            remove(path)
    ratios = [traced / bare for traced, bare in zip(with_trace, without)]
    more = [traced - bare for traced, bare in zip(with_trace, without)]
    print("\nOpening, accepting and resetting a connection on loopback; without the trace = 1.")
    print(f"\nWith the trace: {summarize(ratios)}, {summarize(more, 1)} µs more.")


if __name__ == "__main__":
    print(open_and_reset())
