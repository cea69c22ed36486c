"""The service in a container, to be measured."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.bench.bare import IDENTIFIER
from tests.bench.figures import parse_cpu
from tests.system.container import Container, copy_source, install


class Service(Container):
    """Installed from this source, which is at /src too; its journal is on disk."""

    def __init__(self, traced: bool) -> None:
        super().__init__("bookworm", traced)
        install(self.root)
        copy_source(self.root / "src")
        (self.root / "var/log/journal").mkdir(exist_ok=True)
        self.boot()

    def find_pid(self, unit: str) -> str:
        return self.show(unit, "MainPID")

    def read_cpu(self, unit: str) -> float:
        return parse_cpu(self.run("cat", f"/proc/{self.find_pid(unit)}/stat"))

    def read_status(self, unit: str, name: str) -> int:
        """A number of /proc/PID/status; those of one name are added."""
        text = self.run("cat", f"/proc/{self.find_pid(unit)}/status")
        return sum(map(int, re.findall(rf"{name}:\s+(\d+)", text)))

    def run_script(self, name: str, *arguments: str) -> Any:
        """One of the benchmarks' scripts, inside, with the installed package."""
        path = f"/src/tests/bench/{name}.py"
        return json.loads(self.run("env", "PYTHONPATH=/usr/lib/tcpwatchd", "python3", path, *arguments))

    def run_bare(self, count: int) -> tuple[float, float]:
        """Seconds until the last of so many entries of a bare loop was written, and its CPU an entry."""
        began, cpu = self.run_script("bare", str(count))
        return (self.read_last(f"SYSLOG_IDENTIFIER={IDENTIFIER}") - began) / 1e6, cpu

    def read_last(self, match: str) -> int:
        """When journald took the last of these entries, in microseconds since the epoch."""
        self.run("journalctl", "--sync")
        entry = json.loads(self.run("journalctl", "--output=json", "--lines=1", match))
        return int(entry["__REALTIME_TIMESTAMP"])
