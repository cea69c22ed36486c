"""The scenario of connections that close, in every way, on a virtual machine."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.endings import compare
from tests.system.inside import run, show

COUNT = 1000
GAP = "a6a0151d221745bfafe31da4f21d546d"
IN_BETWEEN = 4.0
"""Seconds after which the daemon is restarted."""


def set_report(report: str) -> None:
    """As an administrator does."""
    commands, _ = read_readme()
    run("sh", "-e", "-c", commands.replace("Report=both", f"Report={report}"))


def read_events(*matches: str) -> list[dict[str, Any]]:
    run("journalctl", "--sync")
    return list(map(json.loads, run("journalctl", "-t", "tcpwatchd", "-o", "json", *matches).splitlines()))


def make_connections(count: int, seed: int) -> subprocess.Popen[str]:
    traffic = f"ip link set lo up; exec python3 /src/tests/endings.py {count} {seed}"
    return subprocess.Popen(["unshare", "-n", "sh", "-c", traffic], stdout=subprocess.PIPE, text=True)


def closings() -> dict[str, Any]:
    """Of connections in other networks than the daemon's; it is restarted meanwhile."""
    run("systemctl", "start", "tcpwatchd")
    results: dict[str, Any] = {"kernel": run("uname", "-r").strip()}
    results["at first"] = count_short()
    # Refused while the daemon reads, and nothing is taken away from it.
    results["second set-up"] = subprocess.run(["tcpwatchd", "--trace-setup"], check=False).returncode
    results["at second"] = count_short()
    set_report("both")
    traffic = make_connections(COUNT, 14)
    time.sleep(IN_BETWEEN)
    run("systemctl", "restart", "tcpwatchd")
    told, _ = traffic.communicate(timeout=400)
    time.sleep(10)
    truths = list(map(json.loads, told.splitlines()))
    faults = compare(truths, read_events(), counted=True)
    results |= {"connections": len(truths), "faults": faults[:10], "faulty": len(faults)}
    results["readme"] = run_readme()
    set_report("closed")
    results["closed"] = count_short()
    results["gaps"] = len(read_events(f"MESSAGE_ID={GAP}"))
    warnings = run("journalctl", "-t", "tcpwatchd", "-p", "warning", "-o", "cat").splitlines()
    # The servers have a port each, and whoever connects to all of them scans.
    results["warnings"] = "\n".join(line for line in warnings if not line.startswith("Port scan"))
    results["status"] = show("StatusText")
    return results


def count_short() -> dict[str, int]:
    """Entries of short connections, by what they say."""
    server, clients = json.loads(run("python3", "/src/tests/traffic.py", "short", "100"))
    time.sleep(5)
    found = read_events(f"DESTINATION_PORT={server}")
    return {
        "made": len(clients),
        **{
            action: sum(entry["EVENT_ACTION"] == f"connection-{action}" for entry in found)
            for action in ("opened", "closed")
        },
    }


def read_readme() -> list[str]:
    """The commands of its section on closing: how to switch it on, and how to read."""
    text = Path("/src/README.md").read_text().split("\n## How long, how much\n")[1].split("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def run_readme() -> dict[str, str]:
    _, commands = read_readme()
    return {command: run("sh", "-c", command) for command in commands.splitlines()}
