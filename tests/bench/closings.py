"""What it costs to say how connections end: each way to report, and beside tcplife in an emulated machine.

tcplife (bpfcc-tools) prints each connection with its duration and bytes when it closes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from tests.bench.figures import print_head, print_row, read_cpu, summarize  # noqa: E402
from tests.bench.tracing import CONNECTIONS, open_and_reset  # noqa: E402

RATE, PAIRS, TURNS = 10_000, 3, 3
REPORTS = ("opened", "closed", "both")
TCPLIFE = "tcplife"
SETTLES = 60.0
"""Seconds until a program that compiles in an emulated machine runs."""
PACKAGES = ",bpfcc-tools,linux-headers-cloud-amd64"
WATCHER = ["tcpwatchd", "--output", "text", "--interval", "60", "--report"]


def measure() -> dict[str, Any]:
    """Inside the machine: microseconds a connection, of the traffic and of who reads along, by program."""
    programs = {report: [*WATCHER, report] for report in REPORTS}
    programs[TCPLIFE] = ["tcplife-bpfcc"]
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ("", *programs)}
    for _ in range(TURNS):
        took[""].append((open_and_reset(), 0.0))
        for name, command in programs.items():
            took[name].append(measure_beside(command))
    return {"took": took, "release": os.uname().release}


def measure_beside(command: list[str]) -> tuple[float, float]:
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as program,
    ):
        give_up_at = time.monotonic() + SETTLES
        while os.fstat(output.fileno()).st_size == 0 and time.monotonic() < give_up_at:
            time.sleep(0.1)
        time.sleep(2)
        before = read_cpu(program.pid)
        traffic = open_and_reset()
        time.sleep(2)
        used = (read_cpu(program.pid) - before) / CONNECTIONS * 1e6
        assert program.poll() is None, "it ended"
        program.send_signal(signal.SIGINT)
    return traffic, used


def measure_reports() -> None:
    """On this machine, in a container with a journal."""
    from tests.bench.capture import measure_settings
    from tests.bench.service import Service

    print(f"\nThe service at {RATE:,} connections a second, by what it reports; `opened` = 1.")
    print_head("--report", "tcpwatchd", "journald", "bytes a connection", "records lost")
    with Service(traced=True) as service:
        turns: dict[str, list[tuple[float, ...]]] = {report: [] for report in REPORTS}
        for _ in range(PAIRS):
            for report in REPORTS:
                turns[report].append(measure_settings(service, RATE, f"[Watch]\nReport={report}\n"))
        for report in REPORTS:
            pairs = list(zip(turns[report], turns["opened"]))
            shares = [summarize(turn[i] / opened[i] for turn, opened in pairs) for i in (0, 1)]
            lost = sum(turn[3] for turn in turns[report])
            print_row(report, *shares, summarize((turn[2] for turn, _ in pairs), 0), f"{lost:.0f}")


def main() -> None:
    from tests.system.container import make_tree
    from tests.system.machine import KERNEL, run_inside

    measure_reports()
    print(
        "\nProcessor time a connection in an emulated machine, with the event probes (noisy): of the traffic,"
    )
    print("where nobody reads along = 1, and of who reads along, tcpwatchd that reports what opens = 1.")
    print_head("kernel", "program", "traffic", "program's own")
    make_tree("bookworm", KERNEL + PACKAGES)
    with tempfile.TemporaryDirectory() as folder:
        found = run_inside(
            "bookworm", "tests.bench.closings.measure", "", Path(folder), more=PACKAGES, seconds=600
        )
    took = found["took"]
    for name in (*REPORTS, TCPLIFE):
        print_row(
            found["release"],
            name if name == TCPLIFE else f"tcpwatchd --report {name}",
            summarize(turn[0] / bare[0] for turn, bare in zip(took[name], took[""])),
            summarize(turn[1] / opened[1] for turn, opened in zip(took[name], took["opened"])),
        )


if __name__ == "__main__":
    main()
