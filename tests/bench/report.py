"""What a report of a million entries takes, beside journalctl with a script, and the bare reader."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.bench.figures import INTERPRETER, MIB, compare_with, print_head, print_row, summarize
from tests.daemon import PROJECT
from tests.report.journals import write_journal
from tests.report.sample import BEGIN, DAY, list_connection

if TYPE_CHECKING:
    from collections.abc import Iterator

CONNECTIONS, TURNS = 500_000, 3
"""Two entries each."""
SCRIPT = """
import collections, json, sys
print(collections.Counter(json.loads(line).get("NETWORK_DIRECTION") for line in sys.stdin))
"""
READER = """
import glob, sys
from systemd.journal import Reader
fields = "MESSAGE_ID", "SOURCE_IP", "DESTINATION_IP", "NETWORK_DIRECTION"
for path in glob.glob(sys.argv[1] + "/*.journal"):
    reader = Reader(files=[path])
    while reader._next():
        for field in fields:
            reader._get(field)
"""


def list_entries() -> Iterator[bytes]:
    chance = random.Random(1)
    for number in range(CONNECTIONS):
        for _, entry in list_connection(chance, BEGIN + number * DAY * 1_000_000 // CONNECTIONS):
            yield entry


def measure(*command: str) -> tuple[float, float]:
    """Seconds, and the most MiB that it had resident."""
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=PROJECT)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.monotonic() - began, usage.ru_maxrss * 1024 / MIB


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_journal(Path(folder) / "day.journal", list_entries())
        commands = {
            "report": (INTERPRETER, "-m", "tcpwatchd.report", "-D", folder),
            "script": ("sh", "-c", f'journalctl -D "$0" -o json | {INTERPRETER} -c "$1"', folder, SCRIPT),
            "reader": (INTERPRETER, "-c", READER, folder),
        }
        turns = []
        for _ in range(TURNS):
            found = {name: measure(*command) for name, command in commands.items()}
            turns.append({name: seconds for name, (seconds, _) in found.items()})
            resident = found["report"][1]
    print(f"\nA report of {2 * CONNECTIONS} entries.")
    print_head(
        "seconds", "MiB resident", "journalctl -o json with a script takes", "the reader alone, four fields"
    )
    seconds = summarize(turn["report"] for turn in turns)
    print_row(
        seconds, f"{resident:.0f}", *(compare_with("report", name, turns) for name in ("script", "reader"))
    )


if __name__ == "__main__":
    main()
