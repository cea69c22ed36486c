"""What owners cost, in a virtual machine whose kernel tells of them: the kernel's side, and the service's.

The times are those of an emulated machine; only their ratios say something.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
sys.path.insert(0, str(PROJECT))

from tcpwatchd.connection import Connection  # noqa: E402
from tcpwatchd.kernel.instance import CLOSE_SUFFIX, PROBES, TRACEPOINT, set_buffer_size, write_settings  # noqa: E402
from tcpwatchd.kernel.pages import Decoder  # noqa: E402
from tcpwatchd.kernel.probe import define, describe_probe, remove_probe  # noqa: E402
from tcpwatchd.kernel.trace import Trace  # noqa: E402
from tcpwatchd.output.event import connection_opened  # noqa: E402
from tcpwatchd.owners.owners import Owners  # noqa: E402
from tcpwatchd.owners.processes import read_network  # noqa: E402
from tcpwatchd.tracking.tracker import FOREVER, Tracker  # noqa: E402
from tests.bench.figures import print_head, print_row, read_cpu, summarize  # noqa: E402
from tests.bench.tracing import open_and_reset  # noqa: E402

TURNS, SHORT = 7, 2_000
TRACING = "/sys/kernel/tracing"
NOTHING, PLAIN, OWNED = "no trace", "the tracepoint", "the event probe"


def measure() -> dict[str, Any]:
    """Inside the machine."""
    from tests.system.inside import open_short, run, show, start

    name, definition, closing = describe_probe("bench")
    define(TRACING, name, definition)
    define(TRACING, name + CLOSE_SUFFIX, closing)
    events = {NOTHING: None, PLAIN: TRACEPOINT, OWNED: f"{PROBES}/{name}"}
    kernel: dict[str, list[float]] = {named: [] for named in events}
    program: dict[str, list[float]] = {PLAIN: [], OWNED: []}
    for _ in range(TURNS):
        for named, event in events.items():
            used, took = run_loop(event)
            kernel[named].append(used)
            if event:
                program[named].append(took)
    remove_probe(TRACING, name)
    start()
    journald = int(run("systemctl", "show", "--property=MainPID", "--value", "systemd-journald"))
    service: list[float] = []
    size = measure_journal()
    for _ in range(TURNS):
        before = [read_cpu(int(show("MainPID"))), read_cpu(journald)]
        open_short(1, SHORT)
        after = [read_cpu(int(show("MainPID"))), read_cpu(journald)]
        service.append((after[0] - before[0]) / (after[1] - before[1]))
    size = (measure_journal() - size) / (TURNS * SHORT)
    return {
        "kernel": kernel,
        "program": program,
        "service": service,
        "entry": size,
        "release": os.uname().release,
    }


def measure_journal() -> float:
    """Bytes of its files, on disk or in memory."""
    from tests.system.inside import run

    run("journalctl", "--rotate")
    folders = [folder for folder in ("/var/log/journal", "/run/log/journal") if os.path.isdir(folder)]
    return sum(int(run("du", "--summarize", "--bytes", folder).split()[0]) for folder in folders)


def run_loop(event: str | None) -> tuple[float, float]:
    """Microseconds a connection: of the loop that opens it, and of decoding, tracking and describing it."""
    if event is None:
        return open_and_reset(), 0.0
    path = f"{TRACING}/instances/bench"
    os.mkdir(path)
    try:
        write_settings(path, event)
        set_buffer_size(path, 8192)
        trace = Trace(path)
        try:
            used = open_and_reset()
            return used, follow(trace)
        finally:
            trace.close()
    finally:
        os.rmdir(path)


def follow(trace: Trace) -> float:
    decoder, network = Decoder(trace.formats, trace.taken), read_network()
    tracker, owners = Tracker(network), Owners(network)
    drain = trace.drain()
    began = time.process_time()
    transitions, lost = decoder.decode(drain)
    owners.follow(decoder.take_groups(), transitions, lost > 0)
    tracker.follow(transitions, lost > 0, lambda _end: 0)
    new = [item for item in tracker.release(FOREVER) if isinstance(item, Connection)]
    found = [connection_opened(owners.name(connection), 0) for connection in new]
    return (time.process_time() - began) / len(found) * 1e6


def main() -> None:
    from tests.system.machine import run_inside

    print("\nOwners, told by the kernel, in an emulated machine.\n")
    print_head("kernel", "opening, with the tracepoint; without = 1", "with the event probe",
               "decoding to describing, with owners; without = 1", "the service; journald = 1",
               "bytes an entry")  # fmt: skip
    for suite in ("bookworm", "trixie"):
        with tempfile.TemporaryDirectory() as folder:
            found = run_inside(suite, "tests.bench.owners.measure", "", Path(folder))
        kernel, program = found["kernel"], found["program"]
        print_row(
            found["release"],
            summarize(with_it / bare for with_it, bare in zip(kernel[PLAIN], kernel[NOTHING])),
            summarize(with_it / bare for with_it, bare in zip(kernel[OWNED], kernel[NOTHING])),
            summarize(with_it / plain for with_it, plain in zip(program[OWNED], program[PLAIN])),
            summarize(found["service"]),
            round(found["entry"]),
        )
