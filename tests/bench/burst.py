"""100,000 connections that are new in one poll: from its beginning until the last entry is in the journal.

Divided by what a bare loop of sendv takes for as many entries with such fields, in turns.
"""

from __future__ import annotations

import time
from pathlib import Path

from tcpwatchd.output.event import CONNECTION_OPENED
from tests.bench.figures import MIB, print_head, print_row, summarize
from tests.bench.service import Service
from tests.holder import Traffic
from tests.namespace import Namespace, wait_until
from tests.system.service import configure, count_reported

HERE, THERE = "10.78.5.1", "10.78.5.2"
PORTS = [str(port) for port in range(7100, 7112)]
EACH, PAIRS = 8334, 3
INTERVAL = 30
CONNECTIONS = len(PORTS) * EACH
UNDISTURBED = 5.0
"""Seconds."""
BEGUN = 5_000_000
"""Nanoseconds of processor time that only a poll of many new connections takes."""


def open_all(service: Service, client: Namespace) -> list[Traffic]:
    """To a port each, or the client's ports would not do. Nothing is accepted: no descriptors are needed."""
    servers = [Traffic(service.leader, "listen", port, str(EACH)) for port in PORTS]
    for server in servers:
        server.truth()
    holders = [Traffic(client.pid, "hold", str(EACH), HERE, port) for port in PORTS]
    for holder in holders:
        holder.truth()
    return [*holders, *servers]


def wait_for_poll(service: Service) -> int:
    """When the next poll began, in microseconds since the epoch."""
    schedstat = Path(f"/proc/{service.leader}/root/proc/{service.find_pid('tcpwatchd')}/schedstat")

    def read() -> int:
        return int(schedstat.read_text().split()[0])

    before = read()
    while read() < before + BEGUN:
        time.sleep(0.001)
    return (time.time_ns() - (read() - before)) // 1000


def measure(service: Service, client: Namespace) -> tuple[float, int]:
    """Seconds, and the most memory that was resident, in bytes."""
    service.run("systemctl", "start", "tcpwatchd")
    held = open_all(service, client)
    began = wait_for_poll(service)
    # Asking takes processor time from both, and is not done to the bare loop.
    time.sleep(UNDISTURBED)
    wait_until(lambda: count_reported(service) >= CONNECTIONS, 60, "all reported")
    took = (service.read_last(f"MESSAGE_ID={CONNECTION_OPENED}") - began) / 1e6
    peak = 1024 * service.read_status("tcpwatchd", "VmHWM")
    for holder in held:
        holder.end()
    service.run("systemctl", "stop", "tcpwatchd")
    service.run("rm", "-r", "/run/private/tcpwatchd-state")
    return took, peak


def main() -> None:
    ratios, peaks = [], []
    with Service(traced=False) as service, Namespace() as client:
        client.join(THERE, service.leader, HERE)
        service.run("sh", "-c", f"echo {EACH} >/proc/sys/net/core/somaxconn")
        command = f"/usr/bin/tcpwatchd --output journal --interval {INTERVAL}"
        configure(service, f"ExecStart=\nExecStart={command}")
        for _ in range(PAIRS):
            took, peak = measure(service, client)
            bare, _ = service.run_bare(CONNECTIONS)
            ratios.append(took / bare)
            peaks.append(peak / MIB)
    print(f"\n{CONNECTIONS:,} connections new in one poll, until the last entry is in the journal.")
    print_head("a bare loop of sendv = 1", "most memory, MiB")
    print_row(summarize(ratios), summarize(peaks, 0))


if __name__ == "__main__":
    main()
