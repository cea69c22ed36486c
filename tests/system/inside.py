"""What runs inside the virtual machine: a scenario, whose result is written to /results.json."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OPENED = "55af53b17897428c8b2256cc60c8771b"
SHORT = 1000
PATIENCE = 60
"""Seconds, on an emulated machine, for a poll to find a CPU that came online and for all to be written."""
INSTANCE = Path("/sys/kernel/tracing/instances/tcpwatchd")


def run(*command: str) -> str:
    return subprocess.run(
        command, check=True, capture_output=True, stdin=subprocess.DEVNULL, text=True
    ).stdout


def start() -> None:
    drop_in = Path("/etc/systemd/system/tcpwatchd.service.d/test.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nExecStart=\nExecStart=/usr/bin/tcpwatchd --output journal --interval 5\n")
    run("systemctl", "daemon-reload")
    run("systemctl", "start", "tcpwatchd")


def open_short(cpu: int) -> dict[str, Any]:
    """Short connections made on one CPU: how many there were, how many are reported, and by what."""
    traffic = ["python3", "/src/tests/traffic.py", "short", str(SHORT)]
    server, clients = json.loads(run("taskset", "-c", str(cpu), *traffic))
    found: list[dict[str, str]] = []
    deadline = time.monotonic() + PATIENCE
    while len(found) < SHORT and time.monotonic() < deadline:
        time.sleep(2)
        run("journalctl", "--sync")
        matches = [f"MESSAGE_ID={OPENED}", f"DESTINATION_PORT={server}"]
        found = [json.loads(line) for line in run("journalctl", "-o", "json", *matches).splitlines()]
    ports = sorted(int(entry["SOURCE_PORT"]) for entry in found)
    sources = sorted({entry["TCPWATCHD_DETECTED_BY"] for entry in found})
    return {"opened": len(clients), "reported": len(found), "same": ports == sorted(clients), "by": sources}


def show(name: str) -> str:
    return run("systemctl", "show", "--property", name, "--value", "tcpwatchd").strip()


def measure_cpu() -> float:
    """Seconds of CPU that the daemon took so far."""
    fields = Path(f"/proc/{show('MainPID')}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def late_cpu() -> dict[str, Any]:
    """Booted with one CPU of two; the other comes online while the daemon runs."""
    online = Path("/sys/devices/system/cpu/cpu1/online")
    start()
    results: dict[str, Any] = {
        "kernel": run("uname", "-r").strip(),
        "online at first": online.read_text().strip(),
    }
    results["on cpu 0"] = open_short(0)
    before = measure_cpu()
    time.sleep(3)
    results["idle share"] = (measure_cpu() - before) / 3
    online.write_text("1")
    results["on cpu 1"] = open_short(1)
    status = Path(f"/proc/{show('MainPID')}/status").read_text()
    results["capabilities"] = sorted(
        {line.split()[1] for line in status.splitlines() if line.startswith("Cap")}
    )
    results["status"] = show("StatusText")
    run("systemctl", "stop", "tcpwatchd")
    deadline = time.monotonic() + PATIENCE
    while INSTANCE.exists() and time.monotonic() < deadline:
        time.sleep(1)
    results["instance left"] = INSTANCE.exists()
    return results


def lockdown() -> dict[str, Any]:
    """Tracing is forbidden."""
    start()
    time.sleep(2)
    text = run("journalctl", "-t", "tcpwatchd", "-o", "cat")
    return {
        "lockdown": Path("/sys/kernel/security/lockdown").read_text().strip(),
        "active": show("ActiveState"),
        "said": [line for line in text.splitlines() if line.startswith("Only polling")],
        "failed units": run("systemctl", "list-units", "--failed", "--no-legend", "tcpwatchd*").strip(),
    }


if __name__ == "__main__":
    result = {"late_cpu": late_cpu, "lockdown": lockdown}[sys.argv[1]]()
    Path("/results.json").write_text(json.dumps(result))
