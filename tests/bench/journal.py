"""How many bytes an entry takes in the journal of a booted container. Run as root: make bench."""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.holder import Traffic
from tests.namespace import wait_until
from tests.system.container import Container, install

CONNECTIONS, PROCESSES = 50_000, 10
DAY = 86_400


def measure_journal(container: Container) -> int:
    """Bytes of disk, all written."""
    container.run("journalctl", "--rotate")
    return int(container.run("du", "--summarize", "--bytes", "/var/log/journal").split()[0])


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("make bench: needs root to boot a container")
    with Container("bookworm") as container:
        install(container.root)
        (container.root / "var/log/journal").mkdir(exist_ok=True)
        container.boot()
        container.run("systemctl", "enable", "--now", "--quiet", "tcpwatchd")
        before = measure_journal(container)
        holders = [Traffic(container.leader, "many", str(CONNECTIONS // PROCESSES)) for _ in range(PROCESSES)]
        for holder in holders:
            holder.truth()
        wait_until(
            lambda: f"; {CONNECTIONS} conn" in container.show("tcpwatchd", "StatusText"), 60, "reports"
        )
        size = (measure_journal(container) - before) / CONNECTIONS
        for holder in holders:
            holder.end()
    print(f"| bytes an entry | {size:.0f} |\n|---|---|")
    for rate in (1, 10, 100):
        print(f"| a day at {rate} connections a second | {size * rate * DAY / 1e9:.2g} GB |")


if __name__ == "__main__":
    main()
