"""Processor time a connection, from the kernel to the journal, beside journald's own and beside bpftrace.

The connections are opened and reset at once on loopback in a container whose daemon hears the trace. bpftrace
prints the same tracepoint to nowhere while the service is stopped. What their programs in the kernel cost is
on nobody's account but the traffic's.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from typing import Any

from tcpwatchd.output.event import RECORDS_LOST
from tests.bench.figures import INTERPRETER, compare_with, print_head, print_row, read_cpu, summarize
from tests.bench.service import Service
from tests.holder import Traffic
from tests.namespace import run, wait_until
from tests.system.container import PROJECT
from tests.system.service import count_reported, entries, write_settings

UNITS = "tcpwatchd", "systemd-journald"
RATES = (100, 1_000, 10_000)
SECONDS, PAIRS = 10, 3
MOST_EACH = 5_000
"""Connections a second that a process makes with ease."""
BARE_ENTRIES = 20_000
PRINT = """tracepoint:sock:inet_sock_set_state /args->protocol == 6/ {
printf("%llu %llx %d %d %s:%d %s:%d\\n", nsecs, args->skaddr, args->oldstate, args->newstate,
ntop(args->saddr), args->sport, ntop(args->daddr), args->dport); }"""
PROBE_SETTLES = 3.0
"""Seconds until bpftrace has compiled its program."""


def churn(network: int, rate: int, *sources: str) -> int:
    """How many connections were made, in the network of this process; sources are as in tests/traffic.py."""
    processes = max(1, rate // MOST_EACH)
    each = str(rate // processes)
    traffics = [Traffic(network, "churn", each, str(SECONDS), *sources) for _ in range(processes)]
    made = sum(len(traffic.truth()[1]) for traffic in traffics)
    for traffic in traffics:
        traffic.end()
    return made


def measure_service(service: Service, rate: int) -> dict[str, float]:
    """Processor time of the daemon and of journald, in microseconds a connection; and what was lost."""
    service.run("systemctl", "start", "tcpwatchd")
    service.run("journalctl", "--rotate")
    reported, lost = count_reported(service), count_lost(service)
    before = [service.read_cpu(unit) for unit in UNITS]
    made = churn(service.leader, rate)

    def told() -> bool:
        return count_reported(service) - reported >= made or count_lost(service) > lost

    wait_until(told, 20, "all reported, or what was lost")
    service.run("journalctl", "--sync")
    after = [service.read_cpu(unit) for unit in UNITS]
    ours, journald = ((now - then) / made * 1e6 for now, then in zip(after, before))
    service.run("systemctl", "stop", "tcpwatchd")
    return {"tcpwatchd": ours, "journald": journald, "lost": count_lost(service) - lost}


def measure_settings(
    service: Service, rate: int, settings: str, network: int | None = None, sources: tuple[str, ...] = ()
) -> tuple[float, float, float, float]:
    """With this drop-in: seconds of processor time of the daemon and of journald, and bytes of journal, all a
    connection; and records lost. The traffic is in the network of this process, or in the service's.
    """
    write_settings(service, "measured", settings)
    service.run("systemctl", "start", "tcpwatchd")
    service.run("journalctl", "--rotate")
    size, lost = measure_journal(service), count_lost(service)
    before = [service.read_cpu(unit) for unit in UNITS]
    made = churn(network or service.leader, rate, *sources)
    settle(service)
    after = [service.read_cpu(unit) for unit in UNITS]
    service.run("systemctl", "stop", "tcpwatchd")
    service.run("journalctl", "--rotate")
    ours, journald = ((now - then) / made for now, then in zip(after, before))
    return ours, journald, (measure_journal(service) - size) / made, count_lost(service) - lost


def settle(service: Service) -> None:
    """Until the service has nothing more to do."""
    before = -1.0
    while (now := service.read_cpu("tcpwatchd")) > before:
        before = now
        time.sleep(1)
    service.run("journalctl", "--sync")


def measure_journal(service: Service) -> int:
    return sum(file.stat().st_size for file in (service.root / "var/log/journal").rglob("*.journal"))


def count_lost(service: Service) -> int:
    return sum(int(entry["TCPWATCHD_RECORDS_LOST"]) for entry in entries(service, RECORDS_LOST))


def measure_bpftrace(service: Service, rate: int) -> float:
    """Processor time, in microseconds a connection."""
    nowhere: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["bpftrace", "-e", PRINT], **nowhere) as probe:
        time.sleep(PROBE_SETTLES)
        before = read_cpu(probe.pid)
        made = churn(service.leader, rate)
        time.sleep(1)
        took = read_cpu(probe.pid) - before
        probe.send_signal(signal.SIGINT)
    return took / made * 1e6


def main() -> None:
    print("\nFrom the kernel to the journal: processor time a connection; journald's own = 1.")
    print_head(
        "connections a second", "tcpwatchd", "bpftrace", "sendv alone", "records lost", "tcpwatchd, µs"
    )
    traced = shutil.which("bpftrace") is not None
    with Service(traced=True) as service:
        for rate in RATES:
            turns = []
            for _ in range(PAIRS):
                turn = measure_service(service, rate)
                turn["sendv"] = service.run_bare(BARE_ENTRIES)[1] * 1e6
                if traced:
                    turn["bpftrace"] = measure_bpftrace(service, rate)
                turns.append(turn)
            shares = [compare_with("journald", name, turns) for name in ("tcpwatchd", "bpftrace", "sendv")]
            lost = sum(turn["lost"] for turn in turns)
            print_row(f"{rate:,}", *shares, f"{lost:.0f}", summarize((t["tcpwatchd"] for t in turns), 1))
    alone = run("env", f"PYTHONPATH={PROJECT}", INTERPRETER, PROJECT / "tests/bench/decode.py").stdout
    print(f"\nDecoding and tracking alone: {summarize(s * 1e6 for s in json.loads(alone))} µs a transition.")


if __name__ == "__main__":
    main()
