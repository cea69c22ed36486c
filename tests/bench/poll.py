"""What a poll with nothing new costs, and the memory of a tracked connection. Run as root: make bench.

Real sockets in a network namespace of its own. CPU is user and system time as the kernel accounts it; the
ratio is to `cat` of the same tables in the same minute, the median of pairs with the least and the largest.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from tcpwatchd.procnet import Tables  # noqa: E402
from tcpwatchd.tracker import Tracker  # noqa: E402

PROCESSES, ROWS, PAIRS = 12, 100_000, 9
CAT = ["sh", "-c", "cat /proc/self/net/tcp /proc/self/net/tcp6 >/dev/null"]


def measure_resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def open_sockets(address: str, rows: int) -> list[subprocess.Popen[str]]:
    """Processes that hold connections on loopback, two rows each."""
    command = [sys.executable, str(PROJECT / "tests/traffic.py"), "many", str(rows // PROCESSES // 2), address]
    holders = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    for holder in holders:
        assert holder.stdout
        json.loads(holder.stdout.readline())
    return holders


def compare(tables: Tables, tracker: Tracker) -> list[float]:
    """CPU of a poll divided by that of `cat`, pair by pair, sorted."""
    ratios = []
    for _ in range(PAIRS):
        before = measure_cpu(resource.RUSAGE_CHILDREN)
        subprocess.run(CAT, check=True)
        reading = measure_cpu(resource.RUSAGE_CHILDREN) - before
        before = measure_cpu(resource.RUSAGE_SELF)
        tracker.find_new(tables.read_snapshot(tracker.heard))
        ratios.append((measure_cpu(resource.RUSAGE_SELF) - before) / reading)
    return sorted(ratios)


def measure(name: str, address: str) -> None:
    holders = open_sockets(address, ROWS)
    tables, tracker = Tables(), Tracker()
    before = measure_resident()
    found = tracker.find_new(tables.read_snapshot())
    del found
    gc.collect()
    for _ in range(3):  # rows settle: timers and references change once
        tracker.find_new(tables.read_snapshot(tracker.heard))
    resident = (measure_resident() - before) / len(tables)
    ratios = compare(tables, tracker)
    low, middle, high = ratios[0], statistics.median(ratios), ratios[-1]
    print(f"| {name} | {len(tables):,} | {middle:.2f} ({low:.2f} to {high:.2f}) | {resident:.0f} |", flush=True)
    for holder in holders:
        holder.communicate()


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("make bench: needs root for network namespaces of its own")
    if len(sys.argv) > 1:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        measure(*sys.argv[1:])
        return
    print("| table | rows | CPU of a poll with nothing new, cat = 1 | bytes a row |\n|---|---|---|---|", flush=True)
    for table in (("tcp", "127.0.0.1"), ("tcp6", "::1")):
        subprocess.run(["unshare", "--net", sys.executable, __file__, *table], check=True)


if __name__ == "__main__":
    main()
