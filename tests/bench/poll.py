"""What a poll with nothing new costs, and the memory of a tracked connection. Run as root: make bench.

CPU: real sockets in a network namespace of their own, user and system time as the kernel accounts it, divided
by that of `cat` of the same tables in the same minute; the median of pairs, with the least and the largest.
Memory: what the process grew by after it read a table, a row; beside the real sockets a synthetic table of
1,000,000 rows, where the few megabytes that a burst leaves behind weigh less.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from tcpwatchd.procnet import Tables  # noqa: E402
from tcpwatchd.tracker import Tracker  # noqa: E402
from tests.polls import take  # noqa: E402
from tests.table import row, write_tables  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

PROCESSES, ROWS, MANY, PAIRS = 12, 100_000, 1_000_000, 9
AS_SERVICE = {"MALLOC_TRIM_THRESHOLD_": "131072"}
SETTLED = 3.0
"""Seconds until the timers of new sockets have run out."""
CAT = ["sh", "-c", "cat /proc/self/net/tcp /proc/self/net/tcp6 >/dev/null"]


def measure_resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def open_sockets(address: str, rows: int) -> list[subprocess.Popen[str]]:
    """Processes that hold connections on loopback, two rows each."""
    command = [
        sys.executable,
        str(PROJECT / "tests/traffic.py"),
        "many",
        str(rows // PROCESSES // 2),
        address,
    ]
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
        tracker.find_new(take(tables, tracker.heard))
        ratios.append((measure_cpu(resource.RUSAGE_SELF) - before) / reading)
    return sorted(ratios)


def track(tables: Tables) -> tuple[Tracker, float]:
    """A tracker that knows the tables, and the bytes a row that this took."""
    tracker, before = Tracker(), measure_resident()
    for _ in range(2):
        tracker.find_new(take(tables, tracker.heard))
    return tracker, (measure_resident() - before) / len(tables)


def measure_real(name: str, address: str) -> None:
    holders = open_sockets(address, ROWS)
    time.sleep(SETTLED)
    tables = Tables()
    tracker, resident = track(tables)
    ratios = compare(tables, tracker)
    cpu = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(f"| {name} | {len(tables):,} | {cpu} | {resident:.0f} |", flush=True)
    for holder in holders:
        holder.communicate()


def measure_synthetic(name: str, endpoint: Callable[[int], str]) -> None:
    """Many rows of one server."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        lines = [row(i, endpoint(i), endpoint(0), 1, i) for i in range(1, MANY + 1)]
        write_tables(Path(folder), *((lines, []) if name == "tcp" else ([], lines)))
        del lines
        _, resident = track(Tables(folder))
    print(f"| {name}, synthetic | {MANY:,} | | {resident:.0f} |", flush=True)


def format_ipv4(number: int) -> str:
    return f"{0x0A000000 + number:08X}:1F90"


def format_ipv6(number: int) -> str:
    return f"B80D0120{'0' * 16}{number:08X}:1F90"


def main() -> None:
    if os.geteuid() != 0:
        sys.exit("make bench: needs root for network namespaces of its own")
    if len(sys.argv) > 1:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        MEASURES[sys.argv[1]]()
        return
    print(
        "| table | rows | CPU of a poll with nothing new, cat = 1 | bytes a row |\n|---|---|---|---|",
        flush=True,
    )
    for name in MEASURES:
        command = ["unshare", "--net", sys.executable, __file__, name]
        subprocess.run(command, check=True, env={**os.environ, **AS_SERVICE})


MEASURES: dict[str, Callable[[], None]] = {
    "real4": lambda: measure_real("tcp", "127.0.0.1"),
    "real6": lambda: measure_real("tcp6", "::1"),
    "synthetic4": lambda: measure_synthetic("tcp", format_ipv4),
    "synthetic6": lambda: measure_synthetic("tcp6", format_ipv6),
}

if __name__ == "__main__":
    main()
