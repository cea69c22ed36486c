"""The program beside nmap: what is told of scans of every kind, without a firewall and behind one.

The table of the README says the same.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from typing import IO, Any

import pytest

from tcpwatchd.output import event
from tests.daemon import PROJECT
from tests.namespace import Namespace, run, wait_until
from tests.port_scans import KINDS, expect, find_told
from tests.test_proof import read, start

WINDOW = 20
"""Seconds."""


@pytest.fixture
def resets() -> bool:
    """Whether this kernel tells of closed ports."""
    with open("/sys/kernel/tracing/events/tcp/tcp_send_reset/format") as text:
        return " reason;" in text.read()


def test_the_table_of_the_readme() -> None:
    text = (PROJECT / "README.md").read_text().split("\n## Port scans\n")[1].split("\n## ")[0]
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:3] == "| `"
    ]
    columns = (("none", True), ("none", False), ("drop", True))
    for row, kind in zip(table, KINDS):
        told = [expect({"kind": kind, "firewall": firewall}, resets) for firewall, resets in columns]
        counts = [
            [(len(ports), word) for ports, word in zip(one, ("open", "closed")) if ports] for one in told
        ]
        cells = [", ".join(f"{number} {word}" for number, word in one) or "nothing" for one in counts]
        assert row == [f"`{kind.partition(',')[0]}`", "5" if "open" in kind else "3", *cells]
    assert len(table) == len(KINDS)


def read_scans(output: IO[bytes]) -> list[dict[str, Any]]:
    return [entry for entry in read(output) if entry["MESSAGE_ID"] == event.PORT_SCAN]


@pytest.mark.trace
@pytest.mark.alone
def test_what_is_told_of_each_kind_of_scan(output: IO[bytes], resets: bool) -> None:
    """Every port of every scan, and none else; at most one entry a source and window."""
    with Namespace() as host:
        daemon = start(host, output, "--scan-window", f"{WINDOW}s")
        began = time.monotonic()
        command = [sys.executable, "-m", "tests.port_scans"]
        scans = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=PROJECT).stdout)
        took = time.monotonic() - began
        assert {(scan["kind"], scan["firewall"]) for scan in scans} == {
            (kind, firewall) for kind in KINDS for firewall in ("none", "drop", "reject")
        }

        def find_wrong() -> list[Any]:
            told = read_scans(output)
            pairs = [(find_told(scan, told), expect(scan, resets)) for scan in scans]
            return [(scan, found, wanted) for scan, (found, wanted) in zip(scans, pairs) if found != wanted]

        deadline = time.monotonic() + 2 * WINDOW
        while find_wrong() and time.monotonic() < deadline:
            time.sleep(0.5)
        assert find_wrong() == []
        daemon.end(signal.SIGTERM)
    entries = read_scans(output)
    ours = {scan["source"] for scan in scans}
    assert max(Counter(entry["SOURCE_IP"] for entry in entries).values()) <= took / WINDOW + 2
    hosts = {source[:-1] + "1" for source in ours}
    assert hosts.isdisjoint(entry["SOURCE_IP"] for entry in entries)
    for entry in entries:
        if entry["SOURCE_IP"] in ours:
            opened, closed = find_told({"source": entry["SOURCE_IP"]}, [entry])
            number = len(opened) + len(closed)
            verb = " goes on" if entry["MESSAGE"].startswith("Port scan goes on") else ""
            more = " more" * bool(verb)
            text = f"Port scan{verb}: {entry['SOURCE_IP']} tried {number}{more} ports of this host"
            assert entry["MESSAGE"] == text
            assert entry["EVENT_COUNT"] == str(number)
            assert entry["PRIORITY"] == "4"
            seen = ["accept"] * bool(opened) + ["reset"] * bool(closed)
            assert entry["TCPWATCHD_SEEN_BY"] == ",".join(seen)
            assert entry["TCPWATCHD_SOURCE_VERIFIED"] == ("yes" if len(opened) > 3 else "no")
            assert entry["EVENT_START"] <= entry["EVENT_END"] <= entry["EVENT_CREATED"]


@pytest.mark.trace
@pytest.mark.alone
def test_a_sweep_of_many_addresses(output: IO[bytes]) -> None:
    with Namespace() as host, Namespace() as scanner:
        scanner.join("10.79.9.200", host.pid, "10.79.9.1")
        for last in range(2, 26):
            run(*host.prefix, "ip", "address", "add", f"10.79.9.{last}/24", "dev", "ve1")
        serve = [*host.prefix, sys.executable, "-m", "tests.port_scans", "serve"]
        with subprocess.Popen(serve, cwd=PROJECT) as server:
            daemon = start(host, output)
            nmap = ["nmap", "-n", "-Pn", "--disable-arp-ping", "-sT", "-p", "22"]
            from_here = [*host.prefix, *nmap, "10.79.9.1"]
            wait_until(lambda: "22/tcp open" in run(*from_here).stdout, 20, "the port is open")
            run(*scanner.prefix, *nmap, "10.79.9.1-25")
            wait_until(lambda: len(read_scans(output)) > 0, 20, "told")
            daemon.end(signal.SIGTERM)
            server.terminate()
    (entry,) = read_scans(output)
    assert entry["MESSAGE"] == "Port scan: 10.79.9.200 tried port 22 of this host at 25 addresses"
    assert (entry["EVENT_COUNT"], entry["DESTINATION_PORT"]) == ("25", "22")
    assert (entry["TCPWATCHD_OPEN_PORTS"], entry["TCPWATCHD_SOURCE_VERIFIED"]) == ("22", "yes")
