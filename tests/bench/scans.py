"""What it costs to look for port scans: processor time a connection, beside not looking, from 1,000 sources.

The connections are made in a network of their own, from and to addresses that are not the service's.
"""

from __future__ import annotations

from tests.bench.capture import measure_settings
from tests.bench.figures import print_head, print_row, summarize
from tests.bench.service import Service
from tests.namespace import Namespace, run

RATE, PAIRS = 10_000, 5
SOURCES = "1000", "10.60"
SETTINGS = {"not looked for": "[Scan]\nEnabled=no\n", "looked for": ""}


def main() -> None:
    print(f"\nThe service at {RATE:,} connections a second from {SOURCES[0]} sources; without [Scan] = 1.")
    print_head("port scans are", "tcpwatchd", "both", "records lost", "tcpwatchd, µs")
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in SETTINGS}
    with Service(traced=True) as service, Namespace() as network:
        run(*network.prefix, "ip", "route", "add", "local", f"{SOURCES[1]}.0.0/16", "dev", "lo")
        for _ in range(PAIRS):
            for name, settings in SETTINGS.items():
                turns[name].append(measure_settings(service, RATE, settings, network.pid, SOURCES))
    for name, found in turns.items():
        pairs = list(zip(found, turns["not looked for"]))
        ours = summarize(turn[0] / bare[0] for turn, bare in pairs)
        both = summarize(sum(turn[:2]) / sum(bare[:2]) for turn, bare in pairs)
        lost = sum(turn[3] for turn in found)
        print_row(name, ours, both, f"{lost:.0f}", summarize((turn[0] * 1e6 for turn in found), 1))


if __name__ == "__main__":
    main()
