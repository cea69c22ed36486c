"""What tcpwatchd-metrics.service runs: it is started by its socket, and ends when nobody asks for a time."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

from tcpwatchd.exporter.server import Server
from tcpwatchd.failure import UsageError, describe

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST = 3
"""The first descriptor that systemd passes (sd_listen_fds(3))."""
METRICS = "/run/tcpwatchd-metrics/tcpwatchd.prom"
"""Where the unit binds the daemon's directory."""


def main() -> int:
    """Returns 0 at the end, 2 for wrong usage."""
    try:
        listeners = take_listeners(os.environ)
    except (UsageError, OSError) as error:
        print(f"tcpwatchd-metrics: {describe(error)}", file=sys.stderr)
        return 2
    Server(listeners, METRICS).serve()
    return 0


def take_listeners(environment: Mapping[str, str]) -> list[socket.socket]:
    """Raises UsageError, and OSError for a descriptor that is no socket."""
    number = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not number.isascii() or not number.isdigit():
        raise UsageError("no socket was passed: tcpwatchd-metrics.socket starts this program")
    listeners = [socket.socket(fileno=FIRST + index) for index in range(int(number))]
    if not listeners or not all(is_listening(listener) for listener in listeners):
        raise UsageError("what was passed is no socket that listens: Accept=yes is not for this program")
    return listeners


def is_listening(candidate: socket.socket) -> bool:
    return bool(candidate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


if __name__ == "__main__":
    sys.exit(main())
