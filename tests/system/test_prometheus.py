"""Metrics with Debian's prometheus and node_exporter: what both take of them, the alerts, the dashboard."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest

from tcpwatchd.connection import Closed, Connection, TcpState, unmap
from tcpwatchd.output.metrics import METRICS, PREFIX, Measured, format_metrics
from tests.holder import Traffic
from tests.namespace import Namespace, enter_network, run, wait_until
from tests.system.container import PROJECT, PROMETHEUS, Container
from tests.system.service import configure, write_settings
from tests.test_readme import read_blocks, run_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENABLE, _, NODE_EXPORTER, ALERTS, FIRING = read_blocks("Metrics")
EXAMPLES = PROJECT / "packaging/examples/prometheus"
DASHBOARD = json.loads((EXAMPLES / "tcpwatchd-dashboard.json").read_text())
SERVER = "http://127.0.0.1:9090/api/v1"
OWN, HANDED_ON = ("tcpwatchd", "127.0.0.1:10278"), ("node", "127.0.0.1:9100")
"""Job and instance: the daemon's metrics by its own socket, and by node_exporter."""
FETCH = "import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1]).read())"
HOST, SCANNER = "10.79.8.1", "10.79.8.2"
NEVER_HERE = {
    "entries_waiting",
    "connections_ignored_total",
    "connections_folded_total",
    "connections_missed_by_trace_total",
    "malformed_rows_total",
    "scan_sources_forgotten_total",
    "resets_lost_total",
}
"""What may be 0 all the time."""
SCRAPE = 2
"""Seconds."""
SLOW = 30
SILENT = 3 * 1 + 30 + 30
"""Seconds until that alert fires, at one second from poll to poll."""
WITH_BYTES = """
  - job_name: tcpwatchd-elsewhere
    metrics_path: /elsewhere
    static_configs:
      - targets: ['127.0.0.1:9000']
  - job_name: node
    static_configs:
      - targets: ['127.0.0.1:9100']
"""

pytestmark = [pytest.mark.container, pytest.mark.trace, pytest.mark.alone]


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with Container("bookworm", traced=True, more=PROMETHEUS) as booted:
        booted.install()
        write_settings(booted, "test", "[Watch]\nInterval=1s\nReport=both\n[Trace]\nTraceBuffer=128K\n")
        write_elsewhere(booted, 1)
        booted.boot()
        configure(booted, "WatchdogSec=0")  # it is to stand still for longer
        booted.run("systemctl", "start", "tcpwatchd")
        run_all(booted, [command for command in ENABLE if not command.startswith("curl ")])
        run_all(booted, NODE_EXPORTER)
        serve = ["python3", "-m", "http.server", "--directory", "/srv", "9000"]
        booted.run("systemd-run", "--quiet", *serve)
        run_all(booted, ALERTS)
        hurry(booted)
        wait_until(lambda: is_ready(booted), SLOW, "Prometheus is ready")
        wait_until(lambda: read_up(booted) == {OWN, HANDED_ON}, SLOW, "both are scraped")
        yield booted
        booted.run("systemctl", "stop", "tcpwatchd")


def write_elsewhere(container: Container, number: int) -> None:
    """The metrics of so many connections of a machine whose kernel tells of bytes, which ours need not."""
    measured = Measured(closing=True)
    source, destination = (unmap(bytes((10, 0, 0, last, 0, 80))) for last in (1, 2))
    opened = Connection(source, destination, "egress", TcpState.ESTABLISHED, "trace", 1)
    for size in range(number):
        measured.add_closed(Closed(opened, 10**9, "fin", None, 100 * size, 10**size, "trace"))
    (container.root / "srv/elsewhere").write_text(format_metrics({}, measured.samples))


def hurry(container: Container) -> None:
    """The shipped configuration, with more scrapes, and with the two others that are scraped here."""
    path = container.root / "etc/prometheus/prometheus.yml"
    text = path.read_text() + WITH_BYTES
    assert text.count(": 15s\n") == 2
    path.write_text(text.replace(": 15s\n", f": {SCRAPE}s\n"))
    container.run("systemctl", "restart", "prometheus")


def fetch(container: Container, url: str) -> str:
    return container.run("python3", "-c", FETCH, url)


def is_ready(container: Container) -> bool:
    command = ["python3", "-c", FETCH, f"{SERVER}/status/runtimeinfo"]
    return container.try_run(*command).returncode == 0


def ask(container: Container, path: str, **parameters: object) -> Any:
    answer = json.loads(fetch(container, f"{SERVER}/{path}?{urlencode(parameters)}"))
    assert answer["status"] == "success"
    return answer["data"]


def read_up(container: Container) -> set[tuple[str, str]]:
    """Who gives metrics of the daemon."""
    found = ask(container, "query", query="tcpwatchd_last_poll_timestamp_seconds")["result"]
    return {(series["metric"]["job"], series["metric"]["instance"]) for series in found}


def list_alerts(container: Container) -> dict[str, set[tuple[str, str]]]:
    """By name and state, whose it is."""
    found: dict[str, set[tuple[str, str]]] = {}
    for alert in ask(container, "alerts")["alerts"]:
        labels = alert["labels"]
        name = f"{labels['alertname']} {alert['state']}"
        found.setdefault(name, set()).add((labels["job"], labels["instance"]))
    return found


def wait_for_alert(
    container: Container, name: str, whose: set[tuple[str, str]], seconds: float = SLOW
) -> None:
    began = time.monotonic()
    wait_for_alerts(container, lambda alerts: alerts.get(name) == whose, seconds, name)
    print(f"{name} after {time.monotonic() - began:.0f} s")


def wait_for_end(container: Container, name: str) -> None:
    wait_for_alerts(container, lambda alerts: name not in alerts, SLOW, f"the end of {name}")


def wait_for_alerts(
    container: Container,
    condition: Callable[[dict[str, set[tuple[str, str]]]], bool],
    seconds: float,
    what: str,
) -> None:
    """Asked once a second: each time is a process."""

    def is_so() -> bool:
        time.sleep(1)
        return condition(list_alerts(container))

    wait_until(is_so, seconds, what)


def find_process(container: Container) -> int:
    """The daemon's main process, as this machine sees it."""
    inside = container.show("tcpwatchd", "MainPID")
    children = Path(f"/proc/{container.leader}/task/{container.leader}/children").read_text().split()
    (found,) = [
        int(child)
        for child in children
        if re.search(rf"^NSpid:.*\t{inside}$", Path(f"/proc/{child}/status").read_text(), re.MULTILINE)
    ]
    return found


def churn(container: Container, rate: int, seconds: int) -> None:
    traffic = Traffic(container.leader, "churn", str(rate), str(seconds))
    assert traffic.truth()
    traffic.end()


def test_nothing_is_found_fault_with(container: Container) -> None:
    """By promtool: in the metrics as both hand them out, in the rules, and in what they do over time."""
    own, handed_on = (fetch(container, f"http://{instance}/metrics") for _, instance in (OWN, HANDED_ON))
    names = {PREFIX + metric.name for metric in METRICS}
    assert set(re.findall(r"^# TYPE (\S+)", own, re.MULTILINE)) == names
    (container.root / "root/metrics").write_text(own)
    assert container.run("sh", "-c", "promtool check metrics < /root/metrics 2>&1") == ""
    # The same series; the numbers can be those of another poll.
    shapes = [
        {line.rpartition(" ")[0] for line in text.splitlines() if line.startswith(PREFIX)}
        for text in (own, handed_on)
    ]
    assert shapes[0] == shapes[1]
    rules = "/etc/prometheus/tcpwatchd.rules.yml"
    assert "SUCCESS: 7 rules found" in container.run("promtool", "check", "rules", "--lint-fatal", rules)
    shutil.copy(PROJECT / "tests/system/alerts.yml", container.root / "etc/prometheus/alerts.yml")
    assert "SUCCESS" in container.run("promtool", "test", "rules", "/etc/prometheus/alerts.yml")


def test_every_alert_comes(container: Container) -> None:
    """In Prometheus, by both ways, by the shipped rules; two of them take longer to fire, and are pending."""
    both = {OWN, HANDED_ON}
    time.sleep(3 * SCRAPE)
    assert list_alerts(container) == {}, "as long as all is well"
    scan(container)
    fail_polls(container)
    wait_for_alert(container, "TcpwatchdPortScan firing", both)
    wait_for_alert(container, "TcpwatchdPollsFailing firing", both)
    container.run("systemctl", "kill", "--signal=STOP", "tcpwatchd")
    churn(container, 5000, 2)
    wait_for_alert(container, "TcpwatchdSilent firing", both, SILENT + SLOW)
    write_elsewhere(container, 9)
    container.run("systemctl", "kill", "--signal=CONT", "tcpwatchd")
    wait_for_alert(container, "TcpwatchdRecordsLost firing", both)
    wait_for_alert(container, "TcpwatchdConnectionsMissed firing", both)
    wait_for_end(container, "TcpwatchdSilent firing")
    poll_alone(container)
    wait_for_alert(container, "TcpwatchdTraceUnused pending", both)
    assert HANDED_ON[1] in container.run("sh", "-c", FIRING[0])
    check_annotations(container)
    container.run("systemctl", "stop", "tcpwatchd-metrics.socket", "tcpwatchd-metrics.service")
    wait_for_alert(container, "TcpwatchdAbsent pending", {OWN})
    container.run("systemctl", "start", "tcpwatchd-metrics.socket")
    wait_for_end(container, "TcpwatchdAbsent pending")


def scan(container: Container) -> None:
    """Of five open ports, which tells on every kernel."""
    serve = [*enter_network(container.leader), sys.executable, "-m", "tests.port_scans", "serve"]
    server = subprocess.Popen(serve, cwd=PROJECT)
    with Namespace() as scanner:
        scanner.join(SCANNER, container.leader, HOST)
        probe = [*scanner.prefix, "ncat", "-z", "-w", "3", HOST, "7001"]
        wait_until(lambda: subprocess.run(probe, check=False).returncode == 0, SLOW, "the ports are open")
        run(*scanner.prefix, "nmap", "-n", "-Pn", "--disable-arp-ping", "-sT", "-p", "7001-7100", HOST)
    server.terminate()
    server.wait()


def fail_polls(container: Container) -> None:
    """By strace, until Prometheus has seen that some failed."""
    table = ["-P", "/proc/self/net/tcp", "-e", "inject=openat:error=EIO"]
    command = ["strace", "-qq", "-o", "/dev/null", *table, "-p", str(find_process(container))]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as strace:
        query = "min(tcpwatchd_polls_failed_total) > 0"
        wait_until(lambda: ask(container, "query", query=query)["result"], SLOW, "failed polls")
        strace.terminate()


def poll_alone(container: Container) -> None:
    container.run("systemctl", "stop", "tcpwatchd")
    container.run("systemctl", "mask", "--runtime", "--quiet", "tcpwatchd-trace")
    container.run("systemctl", "start", "tcpwatchd")


def check_annotations(container: Container) -> None:
    """Each names the machine and where to read on, and nothing in them is left to be filled in."""
    alerts = ask(container, "alerts")["alerts"]
    assert alerts
    for alert in alerts:
        text = " ".join(alert["annotations"].values())
        assert alert["labels"]["instance"] in alert["annotations"]["summary"]
        assert "journalctl -t tcpwatchd" in text
        assert not re.search(r"[{}]|<no value>|error", text), text


def list_queries() -> list[str]:
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]
    return found + [made["expr"] for made in DASHBOARD["annotations"]["list"] if "expr" in made]


def test_every_query_of_the_dashboard_finds_something(container: Container) -> None:
    """In what was before; what the dashboard lets choose is all, as when it is opened."""
    chosen = {"$job": ".+", "$instance": ".+", "$__rate_interval": f"{4 * SCRAPE}s", "$__range": "5m"}
    period = {"start": time.time() - 300, "end": time.time(), "step": SCRAPE}
    most: dict[str, float] = {}
    for expr in list_queries():
        query = re.sub(r"\$\w+", lambda found: chosen[found[0]], expr)
        series = ask(container, "query_range", query=query, **period)["result"]
        numbers = [float(value) for found in series for _, value in found["values"]]
        most[query] = max(filter(math.isfinite, numbers), default=-math.inf)
    assert [query for query, number in most.items() if number < 0] == []
    nothing = {
        name for query, number in most.items() if not number for name in re.findall(rf"{PREFIX}(\w+)", query)
    }
    assert nothing <= NEVER_HERE


def test_every_choice_of_the_dashboard_is_offered(container: Container) -> None:
    """Of jobs and machines, by the labels that Prometheus has."""
    offered = {}
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            wanted = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert wanted
            series = ask(container, "series", **{"match[]": wanted[1].replace("$job", ".+")})
            offered[variable["name"]] = {found[wanted[2]] for found in series}
    assert offered == {"job": {OWN[0], HANDED_ON[0]}, "instance": {OWN[1], HANDED_ON[1]}}
