"""The metrics of the service, as a real systemd hands them to whoever scrapes."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import pytest

from tcpwatchd import __version__
from tcpwatchd.exporter.server import NOTHING
from tcpwatchd.output import event
from tests.namespace import Namespace, enter_network, run, wait_until
from tests.output.test_metrics import parse
from tests.system.container import Container
from tests.system.service import entries
from tests.test_readme import read_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVICE, SOCKET = "tcpwatchd-metrics.service", "tcpwatchd-metrics.socket"
FOLDER = "/run/private/tcpwatchd-state/metrics"
ENABLE, ELSEWHERE, *_ = read_blocks("Metrics")
"""Of the README; what is for others is run beside them (test_prometheus.py)."""
URL = ENABLE[-1].split()[-1]
HOST, SCRAPER = "10.77.0.1", "10.77.0.2"
SLOW = 20
CROWD = """
import socket, sys, urllib.request
host, _, port = sys.argv[1].partition("//")[2].partition("/")[0].partition(":")
silent = [socket.create_connection((host, int(port))) for _ in range(1000)]
for connection in silent[::2]:
    try:
        connection.sendall(b"GET /metrics HTTP/1.1\\r\\n" + b"x: y\\r\\n" * 50)
    except OSError:
        pass  # it was cut before
sys.stdout.write(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())
"""
"""Clients that say nothing, some that do not come to an end, and one that asks."""

pytestmark = pytest.mark.container


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """Where the socket is enabled before the service ever ran."""
    with Container("bookworm") as booted:
        booted.install()
        booted.boot()
        yield booted


@pytest.fixture
def running(container: Container) -> Container:
    """With both, as they are installed."""
    container.run("systemctl", "start", "tcpwatchd", SOCKET)
    wait_until(lambda: "tcpwatchd_build_info" in scrape(container), SLOW, "metrics")
    return container


def curl(container: Container, *arguments: str) -> str:
    """The machine's curl, in the container's network."""
    return run(*enter_network(container.leader), "curl", "-sS", "--max-time", str(SLOW), *arguments).stdout


def scrape(container: Container) -> str:
    return curl(container, URL)


def read_sample(text: str, name: str) -> float:
    family = parse(text)[name]
    return family.samples[name, ()]


def has_ended(container: Container) -> bool:
    return container.show(SERVICE, "ActiveState") == "inactive"


def test_as_in_the_readme_also_before_the_service_ever_ran(container: Container) -> None:
    """Then it says so, ends, and the next one has them."""
    assert container.try_run("systemctl", "is-enabled", SOCKET).stdout.strip() == "disabled", "until it is"
    *commands, ask = ENABLE
    for command in commands:
        container.run("sh", "-c", command)
    for _ in range(8):
        # More often in a row than systemd lets a service start that fails.
        assert scrape(container).encode() == NOTHING
        wait_until(lambda: has_ended(container), SLOW, "its end")
        assert container.show(SERVICE, "Result") == "success"
    assert container.show(SOCKET, "ActiveState") == "active"
    container.run("systemctl", "start", "tcpwatchd")
    result = run(*enter_network(container.leader), "sh", "-c", ask)
    families = parse(result.stdout)
    key = "tcpwatchd_build_info", (("version", __version__),)
    assert families["tcpwatchd_build_info"].samples == {key: 1}
    assert container.run("systemctl", "show", "-P", "SubState", SERVICE).strip() == "running"


def test_what_else_is_asked_for(running: Container) -> None:
    head = curl(running, "--head", URL)
    assert head.startswith("HTTP/1.0 200 OK")
    assert "text/plain; version=0.0.4" in head
    assert "Python" not in head
    status = "--write-out", "%{http_code}", "--output", "/dev/null"
    assert curl(running, *status, URL.replace("metrics", "")) == "404"
    assert curl(running, *status, "--data", "x", URL) == "405"
    assert running.run("journalctl", "-q", "-t", "tcpwatchd-metrics").strip() == ""


def test_it_has_no_privilege_and_no_network_but_its_socket(running: Container) -> None:
    main = running.show(SERVICE, "MainPID")
    status = running.run("cat", f"/proc/{main}/status")
    assert {line.split()[1] for line in status.splitlines() if line.startswith("Cap")} == {"0" * 16}
    assert "Uid:\t0" not in status
    own, machines = (running.run("readlink", f"/proc/{process}/ns/net") for process in (main, "1"))
    assert own != machines
    assert scrape(running)


def test_the_units_are_sound_and_little_exposed(container: Container) -> None:
    """As the README states."""
    folder = "/usr/lib/systemd/system"
    paths = [f"{folder}/{unit}" for unit in (SERVICE, SOCKET)]
    assert container.run("systemd-analyze", "verify", "--recursive-errors=yes", "--man=no", *paths) == ""
    container.run("systemd-analyze", "security", "--threshold=2", "--no-pager", paths[0], "--offline=yes")


def test_a_restart_of_the_daemon_is_seen_by_the_process_that_runs(running: Container) -> None:
    def identify() -> str:
        return running.run("stat", "--format=%i", FOLDER)

    main, folder = running.show(SERVICE, "MainPID"), identify()
    before = read_sample(scrape(running), "tcpwatchd_start_time_seconds")
    running.run("systemctl", "restart", "tcpwatchd")
    assert read_sample(scrape(running), "tcpwatchd_start_time_seconds") > before
    running.run("systemctl", "stop", "tcpwatchd")
    assert read_sample(scrape(running), "tcpwatchd_entries_waiting") == 0, "the last ones stay"
    running.run("systemctl", "start", "tcpwatchd")
    assert (running.show(SERVICE, "MainPID"), identify()) == (main, folder)


def test_a_daemon_that_was_removed_and_comes_again_is_found(running: Container) -> None:
    running.run("systemctl", "stop", "tcpwatchd")
    running.run("rm", "-rf", "/run/tcpwatchd-state", "/run/private/tcpwatchd-state")
    running.run("systemctl", "start", "tcpwatchd")
    assert scrape(running).encode() == NOTHING, "what was bound is gone"
    wait_until(lambda: "tcpwatchd_build_info" in scrape(running), SLOW, "the new one's")


def test_a_thousand_slow_clients_keep_nobody_from_being_served(running: Container) -> None:
    result = run(*enter_network(running.leader), sys.executable, "-c", CROWD, URL)
    assert parse(result.stdout)["tcpwatchd_build_info"]
    assert scrape(running)
    running.run("journalctl", "--sync")
    assert running.run("journalctl", "-q", "-t", "tcpwatchd-metrics").strip() == ""
    assert running.show(SERVICE, "NRestarts") == "0"


def test_a_stop_is_at_once_and_no_failure(running: Container) -> None:
    hold = "import socket, sys, time; c = socket.create_connection(('127.0.0.1', 10278)); time.sleep(0.5)"
    run(*enter_network(running.leader), sys.executable, "-c", hold)
    began = time.monotonic()
    running.run("systemctl", "stop", SERVICE)
    assert time.monotonic() - began < 2
    assert running.show(SERVICE, "Result") == "success"
    assert scrape(running), "its socket starts it again"


def test_metrics_that_have_no_room_are_told_once_and_when_that_is_over(running: Container) -> None:
    """A file system that is full; nothing else is touched by it."""
    owner = running.run("stat", "--format=%u", FOLDER).strip()
    running.run("mount", "-t", "tmpfs", "-o", f"size=4k,uid={owner}", "none", FOLDER)
    try:
        wait_until(lambda: entries(running, event.METRICS_FAILED), SLOW, "the failure")
        (failed,) = entries(running, event.METRICS_FAILED)
        assert failed["ERROR_MESSAGE"].endswith("tcpwatchd.prom.new: No space left on device")
        assert running.run("ls", FOLDER) == ""
    finally:
        running.run("umount", FOLDER)
    wait_until(lambda: entries(running, event.METRICS_RECOVERED), SLOW, "its end")
    assert len(entries(running, event.METRICS_FAILED)) == 1
    assert entries(running, event.KEEPING_FAILED) == []
    assert running.show("tcpwatchd", "NRestarts") == "0"


def test_it_can_listen_elsewhere(running: Container) -> None:
    """For a Prometheus that is; the address may come after the socket."""
    for command in ELSEWHERE:
        running.run("sh", "-c", command)
    with Namespace() as scraper:
        scraper.join(SCRAPER, running.leader, HOST)
        url = URL.replace("127.0.0.1", HOST)
        ask = [*scraper.prefix, "curl", "-sS", "--max-time", str(SLOW), url]
        assert parse(run(*ask).stdout)["tcpwatchd_build_info"]
        listening = running.run("ss", "-Hltn", "sport", "=", ":10278")
        assert [line.split()[3] for line in listening.splitlines()] == [f"{HOST}:10278"]
    running.run("systemctl", "revert", SOCKET)
    running.run("systemctl", "restart", SOCKET)
    assert scrape(running)
