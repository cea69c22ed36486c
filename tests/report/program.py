"""The report as a program of its own, by the Python of the system, which has python-systemd."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tcpwatchd.output import event
from tests.report.journals import export, make_connection, write_journal

if TYPE_CHECKING:
    from tcpwatchd.connection import Direction

PROJECT = Path(__file__).parents[2]
PYTHON = "/usr/bin/python3"
ENVIRONMENT = {
    "PYTHONPATH": str(PROJECT),
    "PYTHONDONTWRITEBYTECODE": "1",
    "PATH": "/usr/bin:/bin",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
}
COMMAND = [PYTHON, "-m", "tcpwatchd.report"]
BEGIN = 1_795_000_000_000_000
SECOND = 1_000_000


def run_report(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=False, timeout=60
    )


def read_report(*arguments: object) -> Any:
    """As JSON, of a run without a fault."""
    done = run_report(*arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def open_at(written: int, peer: str = "192.0.2.1", direction: Direction = "ingress") -> event.Event:
    """Each has a source port of its own, by its time."""
    port = 1024 + written // SECOND % 60_000
    made = make_connection(f"{peer}:{port}", "10.0.0.1:443", direction, time=written * 1000)
    return event.connection_opened(made, written)


def write_many(path: Path, number: int, since: int = BEGIN, step: int = SECOND) -> Path:
    return write_journal(path, (export(open_at(since + step * index)) for index in range(number)))


def format_at(moment: int) -> str:
    """As systemd.time(7) has it, to the microsecond."""
    return f"@{moment // SECOND}.{moment % SECOND:06d}"
