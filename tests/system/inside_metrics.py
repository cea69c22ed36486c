"""The scenario of who may scrape, on a virtual machine: a container has no firewall of systemd's."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from tests.system.inside import run

SERVICE, SOCKET = "tcpwatchd-metrics.service", "tcpwatchd-metrics.socket"
HERE, ALLOWED, OTHER = (f"10.77.0.{number}" for number in (1, 2, 3))
ASK = """
import socket, sys
there, source = sys.argv[1:]
try:
    with socket.create_connection((there, 10278), timeout=5, source_address=(source, 0)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\\r\\n\\r\\n")
        print(connection.makefile("rb").readline().decode())
except OSError as error:
    print(type(error).__name__)
"""


def ask(there: str, source: str, *prefix: str) -> str:
    """The first line of the answer, or why there is none."""
    return run(*prefix, sys.executable, "-c", ASK, there, source).strip()


def who_may_scrape() -> dict[str, Any]:
    """As the units stand, and as the README has it for a Prometheus elsewhere."""
    text = Path("/src/README.md").read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
    enable, elsewhere, *_ = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    run("ip", "netns", "add", "scraper")
    run("ip", "link", "add", "ve0", "type", "veth", "peer", "name", "ve1", "netns", "scraper")
    run("ip", "address", "add", f"{HERE}/24", "dev", "ve0")
    run("ip", "link", "set", "ve0", "up")
    for address in (ALLOWED, OTHER):
        run("ip", "-n", "scraper", "address", "add", f"{address}/24", "dev", "ve1")
    run("ip", "-n", "scraper", "link", "set", "ve1", "up")
    run("systemctl", "start", "tcpwatchd")
    run("sh", "-c", enable.splitlines()[0])
    results: dict[str, Any] = {"as it stands": ask("127.0.0.1", "127.0.0.1")}
    run("sh", "-ec", elsewhere)
    scraper = "ip", "netns", "exec", "scraper"
    results["allowed"] = ask(HERE, ALLOWED, *scraper)
    results["other"] = ask(HERE, OTHER, *scraper)
    results["here"] = ask(HERE, HERE)
    shown = run("systemctl", "show", "--property", "MainPID,MemoryCurrent,TasksCurrent", SERVICE)
    results |= dict(line.split("=", 1) for line in shown.splitlines())
    status = Path(f"/proc/{results['MainPID']}/status").read_text()
    results["capabilities"] = [line.split()[1] for line in status.splitlines() if line.startswith("Cap")]
    results["failed units"] = run("systemctl", "--failed", "--no-legend", "--plain")
    results["said"] = run("journalctl", "-t", "tcpwatchd-metrics", "-o", "cat")
    results["exposure"] = run("systemd-analyze", "security", "--no-pager", SERVICE).splitlines()[-1]
    return results
