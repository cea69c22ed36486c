"""How many bytes an entry takes in the journal."""

from __future__ import annotations

from tests.bench.figures import print_head, print_row
from tests.bench.service import Service
from tests.holder import Traffic
from tests.namespace import wait_until
from tests.system.service import count_reported

CONNECTIONS, PROCESSES = 50_000, 10
DAY = 86_400


def measure_journal(service: Service) -> int:
    """Bytes of disk, all written."""
    service.run("journalctl", "--rotate")
    return int(service.run("du", "--summarize", "--bytes", "/var/log/journal").split()[0])


def main() -> None:
    with Service(traced=False) as service:
        service.run("systemctl", "start", "tcpwatchd")
        before = measure_journal(service)
        each = str(CONNECTIONS // PROCESSES)
        holders = [Traffic(service.leader, "many", each) for _ in range(PROCESSES)]
        for holder in holders:
            holder.truth()
        wait_until(lambda: count_reported(service) == CONNECTIONS, 60, "reports")
        size = (measure_journal(service) - before) / CONNECTIONS
        for holder in holders:
            holder.end()
    print("\nThe journal on disk.")
    print_head("bytes an entry", *(f"a day at {rate} a second" for rate in (1, 10, 100)))
    print_row(f"{size:.0f}", *(f"{size * rate * DAY / 1e9:.2g} GB" for rate in (1, 10, 100)))


if __name__ == "__main__":
    main()
