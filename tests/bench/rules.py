"""What rules cost, and what they save: processor time a connection, without rules = 1, and the journal.

The rules of the first rows match nothing, so each is asked.
"""

from __future__ import annotations

from tests.bench.capture import measure_settings
from tests.bench.figures import print_head, print_row, summarize
from tests.bench.service import Service

RATE, PAIRS = 10_000, 3
NONE = "no rules"
CONFIGURATIONS = {
    NONE: "",
    "10 rules": "".join(f"Ignore=dst net 192.0.2.0/24 and port {9000 + n}\n" for n in range(10)),
    "100 rules": "".join(f"Ignore=dst net 192.0.2.0/24 and port {9000 + n}\n" for n in range(100)),
    "100 rules by owner": "".join(f"Ignore=user nobody-{n} and port 1-65535\n" for n in range(100)),
    "all ignored": "Ignore=ip\n",
    "folded": "Fold=20/10s\n",
}


def main() -> None:
    print(f"\nThe service at {RATE:,} connections a second, by its rules; without rules = 1.")
    print_head("configuration", "tcpwatchd", "journald", "both", "bytes a connection", "records lost")
    turns: dict[str, list[tuple[float, ...]]] = {name: [] for name in CONFIGURATIONS}
    with Service(traced=True) as service:
        for _ in range(PAIRS):
            for name, rules in CONFIGURATIONS.items():
                turns[name].append(measure_settings(service, RATE, f"[Rules]\n{rules}"))
    for name, found in turns.items():
        pairs = list(zip(found, turns[NONE]))
        shares = [summarize(turn[i] / bare[i] for turn, bare in pairs) for i in (0, 1)]
        shares.append(summarize(sum(turn[:2]) / sum(bare[:2]) for turn, bare in pairs))
        print_row(name, *shares, summarize((turn[2] for turn in found), 0), f"{sum(t[3] for t in found):.0f}")


if __name__ == "__main__":
    main()
