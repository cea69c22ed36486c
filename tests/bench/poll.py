"""What a poll with nothing new costs beside its peers, and the memory of a tracked connection.

Real sockets in a network namespace of their own. The cost is divided by that of `cat` of the same tables, in
turns. tcpspy is stopped between its turns; how often it read the tables is told by the bytes that it read.
Memory is what a process grew by, a row, after it read a synthetic table.
"""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from tcpwatchd.__main__ import COLLECT_AFTER  # noqa: E402
from tcpwatchd.kernel.tables import Tables  # noqa: E402
from tcpwatchd.owners.owners import Owners  # noqa: E402
from tcpwatchd.pipeline import Pipeline  # noqa: E402
from tcpwatchd.state.store import Store  # noqa: E402
from tcpwatchd.tracking.tracker import Tracker  # noqa: E402
from tests.bench.figures import (  # noqa: E402
    INTERPRETER,
    compare_with,
    print_head,
    print_row,
    read_cpu,
    read_resident,
    read_usage,
)
from tests.bench.naive import read_pairs  # noqa: E402
from tests.polls import find_new  # noqa: E402
from tests.table import row, write_tables  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tcpwatchd.output.event import Event

PROCESSES, PAIRS, MANY = 12, 7, 1_000_000
COUNTS = (1_000, 10_000, 100_000)
LEAST_ROWS = 100_000
"""Rows that are read in one turn, if need be by several polls."""
SETTLED = 3.0
"""Seconds until the timers of new sockets have run out."""
TURN = 5.0
"""Seconds of one turn of tcpspy, which polls every 200 ms when it is not busy."""
AS_SERVICE = {"MALLOC_TRIM_THRESHOLD_": "131072"}
TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
CAT = ["sh", "-c", f"cat {' '.join(TABLES)} >/dev/null"]


class Nowhere:
    """A sink that takes all."""

    fileno: int | None = None

    def reach(self) -> bool:
        return True

    def is_ready(self) -> bool:
        return True

    def write(self, _event: Event) -> bool:
        return True


def open_sockets(address: str, rows: int) -> list[subprocess.Popen[str]]:
    """Processes that hold connections on loopback, two rows each."""
    each = str(rows // PROCESSES // 2)
    command = [sys.executable, str(PROJECT / "tests/traffic.py"), "many", each, address]
    holders = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(PROCESSES)
    ]
    for holder in holders:
        assert holder.stdout
        json.loads(holder.stdout.readline())
    return holders


class Spy:
    """tcpspy, which knows all that is open, and is stopped but for its turns."""

    def __init__(self) -> None:
        command = ["tcpspy", "-d", "-I", "200"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._size = sum(len(Path(table).read_bytes()) for table in TABLES)
        time.sleep(TURN)
        self._process.send_signal(signal.SIGSTOP)

    def measure(self) -> float:
        """Processor time of a poll, in seconds."""
        before = read_cpu(self._process.pid), self._count_read()
        self._process.send_signal(signal.SIGCONT)
        time.sleep(TURN)
        self._process.send_signal(signal.SIGSTOP)
        polls = (self._count_read() - before[1]) / self._size
        return (read_cpu(self._process.pid) - before[0]) / polls

    def _count_read(self) -> int:
        return int(re.findall(r"rchar: (\d+)", Path(f"/proc/{self._process.pid}/io").read_text())[0])

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def measure(act: Callable[[], Any], times: int, who: int = resource.RUSAGE_SELF) -> float:
    before = read_usage(who)
    for _ in range(times):
        act()
    return (read_usage(who) - before) / times


def compare(pipeline: Pipeline, rows: int) -> Iterator[dict[str, float]]:
    """Processor time of one reading by each, turn by turn."""
    times = max(1, LEAST_ROWS // rows)
    spy = Spy() if shutil.which("tcpspy") else None
    for _ in range(PAIRS):
        turn = {"cat": measure(lambda: subprocess.run(CAT, check=True), times, resource.RUSAGE_CHILDREN)}
        turn["tcpwatchd"] = measure(pipeline.poll, times)
        turn["naive poller"] = measure(read_pairs, times)
        if spy:
            turn["tcpspy"] = spy.measure()
        yield turn
    if spy:
        spy.end()


def measure_real(address: str, rows: int) -> None:
    """Print the turns as JSON."""
    holders = open_sockets(address, rows)
    time.sleep(SETTLED)
    gc.set_threshold(COLLECT_AFTER)
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(Nowhere(), Store(folder), None, Owners(0))
        pipeline.resume()
        pipeline.poll()
        while pipeline.outbox.waiting:
            pipeline.send()
        pipeline.poll()
        print(json.dumps(list(compare(pipeline, rows))))
    for holder in holders:
        holder.communicate()


def measure_synthetic(endpoint: Callable[[int], str], ipv6: bool) -> None:
    """Print the bytes a row of many rows of one server, and the processor time of a poll a row."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        lines = [row(i, endpoint(i), endpoint(0), 1, i) for i in range(1, MANY + 1)]
        write_tables(Path(folder), *(([], lines) if ipv6 else (lines, [])))
        del lines
        tables, tracker, before = Tables(folder), Tracker(), read_resident(os.getpid())
        for _ in range(2):
            find_new(tables, tracker)
        resident = (read_resident(os.getpid()) - before) / MANY
        many = measure(lambda: find_new(tables, tracker), 3) / MANY
        write_part(Path(folder), MANY // 10)
        for _ in range(2):
            find_new(tables, tracker)
        few = measure(lambda: find_new(tables, tracker), 10) / (MANY // 10)
    print(json.dumps([resident, many / few]))


def write_part(folder: Path, rows: int) -> None:
    """Cut the tables after so many rows."""
    for name in ("tcp", "tcp6"):
        with (folder / name).open("rb") as table:
            head = [table.readline() for _ in range(rows + 1)]
        (folder / name).write_bytes(b"".join(head))


def format_ipv4(number: int) -> str:
    return f"{0x0A000000 + number:08X}:1F90"


def format_ipv6(number: int) -> str:
    return f"B80D0120{'0' * 16}{number:08X}:1F90"


MEASURES: dict[str, Callable[[], None]] = {
    **{f"tcp-{rows}": lambda rows=rows: measure_real("127.0.0.1", rows) for rows in COUNTS},  # type: ignore[misc]
    "tcp6-100000": lambda: measure_real("::1", COUNTS[-1]),
    "synthetic": lambda: measure_synthetic(format_ipv4, ipv6=False),
    "synthetic6": lambda: measure_synthetic(format_ipv6, ipv6=True),
}


def measure_apart(name: str) -> Any:
    """In a process and a network namespace of its own."""
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
    child = [*command, INTERPRETER, __file__, name]
    output = subprocess.run(
        child, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **AS_SERVICE}
    ).stdout
    return json.loads(output)


def main() -> None:
    print("\nA poll with nothing new: processor time, `cat` of both tables = 1.")
    peers = ["tcpwatchd", "naive poller", "tcpspy"]
    print_head("rows", *peers)
    costs = {}
    for name in (*(f"tcp-{rows}" for rows in COUNTS), "tcp6-100000"):
        turns = measure_apart(name)
        cells = [compare_with("cat", peer, turns) for peer in peers]
        print_row(f"{int(name.rpartition('-')[2]):,}{' of IPv6' if '6' in name else ''}", *cells)
        costs[name] = statistics.median(turn["tcpwatchd"] for turn in turns)
    growth = costs["tcp-100000"] / costs["tcp-10000"] / 10
    print(f"\nA row of 100,000 costs {growth:.2f} times what a row of 10,000 costs.")
    print("\nSynthetic tables of 1,000,000 rows, poll with nothing new.")
    print_head("rows", "bytes a row, resident", "processor time a row, 100,000 rows = 1")
    for name, label in (("synthetic", "IPv4"), ("synthetic6", "IPv6")):
        resident, linear = measure_apart(name)
        print_row(label, f"{resident:.0f}", f"{linear:.2f}")


if __name__ == "__main__":
    MEASURES[sys.argv[1]]() if len(sys.argv) > 1 else main()
