"""How many of 800 connections of mixed length each program reports, all watching the same traffic.

A server here, its clients in a network namespace of their own. The truth is what the clients' sockets saw; a
connection is known by its two ports.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import IO, Any

from tcpwatchd.output.event import CONNECTIONS_MISSED
from tests.bench.figures import print_head, print_row
from tests.daemon import PROGRAM
from tests.holder import Traffic
from tests.namespace import Namespace, run
from tests.system.container import PROJECT

HERE, THERE, HERE6, THERE6 = "10.78.1.1", "10.78.1.2", "fd00:78::1", "fd00:78::2"
CONNECTIONS, SECONDS, LONGEST, SEED = 900, 30, 15, 1
"""Attempts; some are refused, some never answered."""
STARTED = 2.0
"""Seconds until all programs watch."""
LONGEST_INTERVAL = 10
OURS = [*PROGRAM, "--output", "json"]
PROGRAMS = {
    "naive poller, 10 s": [sys.executable, str(Path(__file__).with_name("naive.py")), "10"],
    "tcpspy, 10 s": ["stdbuf", "-oL", "tcpspy", "-d", "-I", "10000"],
    "tcpspy, 1 s": ["stdbuf", "-oL", "tcpspy", "-d", "-I", "1000"],
    "tcpwatchd without the trace, 10 s": [*OURS, "--trace", "no"],
    "tcpwatchd": [*OURS, "--trace", "require"],
}
Ports = Counter[frozenset[int]]


class Watcher:
    """One of the programs, in a network namespace."""

    def __init__(self, command: list[str], host: Namespace) -> None:
        self._output: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  it lives as long as the watcher
        self._process = subprocess.Popen(
            [*host.prefix, *command], cwd=PROJECT, stdout=self._output, stderr=subprocess.DEVNULL
        )

    def end(self) -> list[str]:
        """The lines that it wrote."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()
        self._output.seek(0)
        return self._output.readlines()


def find_reported(lines: list[str]) -> Ports:
    """Of any of the programs: a line of JSON, or one that ends in two addresses with ports."""
    found: Ports = Counter()
    for line in lines:
        if line.startswith("{"):
            event = json.loads(line)
            ports = [event.get("SOURCE_PORT"), event.get("DESTINATION_PORT")]
        elif "disconnect: " in line or "caught signal" in line:
            continue
        else:
            ports = re.findall(r"[: ](\d+)(?=,|\s|$)", line)[-2:]
        if len(ports) == 2 and None not in ports:
            found[frozenset(map(int, ports))] += 1
    return found


def open_mixed(host: Namespace, client: Namespace) -> list[list[Any]]:
    server = Traffic(host.pid, "server", script="mixed.py")
    server.truth()
    plan = map(str, (CONNECTIONS, SECONDS, LONGEST, SEED))
    clients = Traffic(client.pid, "client", HERE, HERE6, *plan, script="mixed.py")
    truth: list[list[Any]] = clients.truth()
    time.sleep(LONGEST_INTERVAL + 1)
    clients.end()
    server.end()
    return truth


def watch() -> tuple[Ports, dict[str, list[str]]]:
    """What opened, and what each program wrote."""
    with Namespace() as host, Namespace() as client:
        client.join(THERE, host.pid, HERE)
        for namespace, link, address in ((host, "ve1", HERE6), (client, "ve0", THERE6)):
            run(*namespace.prefix, "ip", "address", "add", f"{address}/64", "dev", link, "nodad")
        watchers = {name: Watcher(PROGRAMS[name], host) for name in PROGRAMS if is_installed(name)}
        time.sleep(STARTED)
        truth = Counter(frozenset(ends[1::2]) for ends in open_mixed(host, client))
        return truth, {name: watcher.end() for name, watcher in watchers.items()}


def is_installed(name: str) -> bool:
    return "tcpspy" not in name or shutil.which("tcpspy") is not None


def count_missed(lines: list[str]) -> int:
    """Inbound connections that the program itself says it missed."""
    told = [json.loads(line) for line in lines]
    return sum(int(e["TCPWATCHD_MISSED_INBOUND"]) for e in told if e["MESSAGE_ID"] == CONNECTIONS_MISSED)


def main() -> None:
    truth, written = watch()
    opened = sum(truth.values())
    print(f"\n{opened} connections of mixed length, the longest {LONGEST} s: how many are reported.")
    print_head("program", "reported", "share", "told as missed")
    for name in PROGRAMS:
        if not is_installed(name):
            print_row(name, "not installed", "", "")
            continue
        reported = sum((find_reported(written[name]) & truth).values())
        missed = count_missed(written[name]) if "tcpwatchd" in name else "nothing"
        print_row(name, reported, f"{reported / opened:.0%}", missed)


if __name__ == "__main__":
    main()
