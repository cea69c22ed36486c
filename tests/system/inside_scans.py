"""The scenario of port scans, of every kind, on a virtual machine."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.port_scans import expect, find_told
from tests.system.inside import run

PORT_SCAN = "e73fc756eb2247328f45e6ffc1abb967"
EVENT = Path("/sys/kernel/tracing/events/tcp/tcp_send_reset/format")
WINDOW = 20
"""Seconds."""
PATIENCE = 60
"""Seconds, for the last of what goes on to be told."""


def scans() -> dict[str, Any]:
    """In other networks than the daemon's."""
    drop_in = Path("/etc/tcpwatchd/tcpwatchd.conf.d/scan.conf")
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text(f"[Scan]\nWindow={WINDOW}s\n")
    run("systemctl", "start", "tcpwatchd")
    resets = " reason;" in EVENT.read_text()
    made = json.loads(run(sys.executable, "-m", "tests.port_scans"))
    deadline = time.monotonic() + PATIENCE
    wrong, entries = list[Any](made), list[dict[str, str]]()
    while wrong and time.monotonic() < deadline:
        time.sleep(2)
        run("journalctl", "--sync")
        lines = run("journalctl", "-o", "json", f"MESSAGE_ID={PORT_SCAN}").splitlines()
        entries = [json.loads(line) for line in lines]
        wrong = [(scan, find_told(scan, entries)) for scan in made]
        wrong = [(scan, told) for scan, told in wrong if list(told) != list(expect(scan, resets))]
    return {
        "kernel": run("uname", "-r").strip(),
        "resets": resets,
        "scans": len(made),
        "wrong": wrong,
        "entries": [entry["MESSAGE"] for entry in entries],
        "units": run("systemctl", "is-active", "tcpwatchd").strip(),
        "others": run("journalctl", "-t", "tcpwatchd", "-p", "notice", "-o", "cat"),
    }
