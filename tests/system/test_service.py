"""The unit in a real systemd with a real journal."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tcpwatchd.output import event
from tests.holder import Traffic
from tests.namespace import Namespace, wait_until
from tests.system.container import Container
from tests.system.service import configure, count_reported, entries

if TYPE_CHECKING:
    from collections.abc import Iterator

HOST, PEER = "10.77.0.1", "10.77.0.2"
PROCESSES, EACH = 12, 8334

pytestmark = pytest.mark.container


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with Container("bookworm") as booted:
        booted.install()
        booted.boot()
        booted.run("journalctl", "--update-catalog")
        yield booted


@pytest.fixture
def service(container: Container) -> Iterator[Container]:
    """The service with a short interval, stopped and back to its installed state afterwards."""
    configure(container, "ExecStart=\nExecStart=/usr/bin/tcpwatchd --output journal --interval 0.5")
    container.run("systemctl", "enable", "--now", "--quiet", "tcpwatchd")
    yield container
    container.run("systemctl", "disable", "--now", "--quiet", "tcpwatchd")
    container.run("systemctl", "revert", "tcpwatchd")


@pytest.fixture
def peer(container: Container) -> Iterator[Namespace]:
    with Namespace() as made:
        made.join(PEER, container.leader, HOST)
        yield made


def test_every_kind_of_connection_field_by_field(service: Container, peer: Namespace) -> None:
    theirs = Traffic(peer.pid, "peer", PEER, HOST)
    ours = Traffic(service.leader, "each", PEER)
    truth = ours.truth()
    main = service.show("tcpwatchd", "MainPID")
    wait_until(lambda: len(find_entries(service, truth)) == len(truth), 10, "an entry for each connection")
    found = find_entries(service, truth)
    for expected in truth:
        (entry,) = [e for e in found if e["SOURCE_PORT"] == expected["SOURCE_PORT"]]
        check_entry(entry, expected)
        assert entry["_PID"] == main
    ours.end()
    theirs.end()
    time.sleep(1.2)
    assert len(find_entries(service, truth)) == len(truth)


def find_entries(container: Container, truth: list[dict[str, str]]) -> list[dict[str, Any]]:
    ports = {expected["SOURCE_PORT"] for expected in truth}
    return [e for e in entries(container, event.CONNECTION_OPENED) if e["SOURCE_PORT"] in ports]


def check_entry(entry: dict[str, Any], expected: dict[str, str]) -> None:
    bracket = "[{}]:{}" if expected["NETWORK_TYPE"] == "ipv6" else "{}:{}"
    ends = [
        bracket.format(expected[f"{side}_IP"], expected[f"{side}_PORT"]) for side in ("SOURCE", "DESTINATION")
    ]
    fields = {
        **expected,
        "MESSAGE": f"New connection: {ends[0]} -> {ends[1]}",
        "MESSAGE_ID": event.CONNECTION_OPENED,
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "tcpwatchd",
        "EVENT_ACTION": "connection-opened",
        "NETWORK_TRANSPORT": "tcp",
        "TCPWATCHD_DETECTED_BY": "poll",
        "TCPWATCHD_TCP_STATE": "ESTABLISHED",
        "TCPWATCHD_DIRECTION": "guessed" if expected["NETWORK_DIRECTION"] == "egress" else "known",
        "_CAP_EFFECTIVE": "0",
        "_SYSTEMD_UNIT": "tcpwatchd.service",
        "PROCESS_USER_ID": "0",
        "PROCESS_USER_NAME": "root",
    }
    if expected["NETWORK_DIRECTION"] == "internal":
        fields |= {"DESTINATION_USER_ID": "0", "DESTINATION_USER_NAME": "root"}
    assert {name: entry.get(name) for name in fields} == fields
    assert set(entry) - set(fields) - {"EVENT_START"} == {
        name for name in entry if name.startswith("_")
    } - set(fields)
    written = time.strftime("%Y-%m-%dT%H:%M", time.gmtime(int(entry["__REALTIME_TIMESTAMP"]) / 1e6))
    assert entry["EVENT_START"][:16] == written
    assert entry["EVENT_START"].endswith("Z")


def test_the_catalog_explains_entries(service: Container) -> None:
    kept = Traffic(service.leader, "many", "1")
    port = str(kept.truth()[0])
    match = f"DESTINATION_PORT={port}"
    wait_until(lambda: entries(service, event.CONNECTION_OPENED, match), 10, "the entry")
    text = service.run("journalctl", "-x", "--no-pager", match)
    assert f" Subject: A TCP connection from 127.0.0.1 to 127.0.0.1 port {port} opened" in text
    assert " Its direction, as this machine sees it, is internal:" in text
    kept.end()


def test_it_runs_without_privilege(service: Container) -> None:
    main = service.show("tcpwatchd", "MainPID")
    status = service.run("cat", f"/proc/{main}/status")
    capabilities = {line.split()[1] for line in status.splitlines() if line.startswith("Cap")}
    assert capabilities == {"0" * 16}
    assert "Uid:\t0" not in status


def test_the_unit_is_sound_and_little_exposed(container: Container) -> None:
    unit = "/usr/lib/systemd/system/tcpwatchd.service"
    assert container.run("systemd-analyze", "verify", "--recursive-errors=yes", "--man=no", unit) == ""
    container.run("systemd-analyze", "security", "--threshold=10", "--no-pager", unit, "--offline=yes")


def test_status_is_ascii_and_counts(service: Container) -> None:
    """Also what was written after the last poll."""
    configure(service, "ExecStart=\nExecStart=/usr/bin/tcpwatchd --output journal --interval 3600")
    service.run("systemctl", "stop", "tcpwatchd")
    before = len(entries(service, event.CONNECTION_OPENED))
    kept = Traffic(service.leader, "many", "3")
    kept.truth()
    service.run("systemctl", "start", "tcpwatchd")
    wait_until(lambda: len(entries(service, event.CONNECTION_OPENED)) == before + 3, 10, "entries")
    expected = (
        "Only polling every 3600 s; 3 connections reported since the start, 0 inbound and at most 0 outbound "
    )
    wait_until(lambda: service.show("tcpwatchd", "StatusText").startswith(expected), 3, "the status")
    assert service.show("tcpwatchd", "StatusText").isascii()
    kept.end()


def test_it_is_activating_until_the_first_poll(service: Container) -> None:
    service.run("systemctl", "stop", "tcpwatchd")
    service.run("systemctl", "start", "--no-block", "tcpwatchd")
    wait_until(lambda: service.show("tcpwatchd", "MainPID") != "0", 10, "a process")
    # Stopped while Python starts, well before the first poll.
    main = service.show("tcpwatchd", "MainPID")
    service.run("sh", "-c", f"kill -STOP {main}")
    time.sleep(1)
    assert service.show("tcpwatchd", "ActiveState") == "activating"
    service.run("sh", "-c", f"kill -CONT {main}")
    wait_until(lambda: service.show("tcpwatchd", "ActiveState") == "active", 10, "ready")


def test_a_stopped_daemon_is_restarted_by_the_watchdog(service: Container) -> None:
    configure(
        service, "ExecStart=\nExecStart=/usr/bin/tcpwatchd --output journal --interval 60\nWatchdogSec=1"
    )
    service.run("systemctl", "restart", "tcpwatchd")
    main = service.show("tcpwatchd", "MainPID")
    time.sleep(3)
    assert service.show("tcpwatchd", "MainPID") == main, "fed between polls that are longer apart"
    service.run("sh", "-c", f"kill -STOP {main}")
    wait_until(lambda: service.show("tcpwatchd", "MainPID") not in ("0", main), 20, "a new process")
    wait_until(lambda: service.show("tcpwatchd", "ActiveState") == "active", 10, "ready")
    assert service.show("tcpwatchd", "NRestarts") == "1"


def test_stop_is_quick_and_told(service: Container) -> None:
    before = len(entries(service, event.WATCH_STOPPED))
    began = time.monotonic()
    service.run("systemctl", "stop", "tcpwatchd")
    assert time.monotonic() - began < 2
    assert service.show("tcpwatchd", "Result") == "success"
    assert len(entries(service, event.WATCH_STOPPED)) == before + 1


def test_a_hangup_is_survived(service: Container) -> None:
    main = service.show("tcpwatchd", "MainPID")
    service.run("sh", "-c", f"kill -HUP {main}")
    assert service.show("tcpwatchd", "ActiveState") == "active"
    assert service.show("tcpwatchd", "MainPID") == main


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--interval never", "tcpwatchd: argument --interval: "),
        (
            "--output journal --trace require",
            "Cannot go on: --trace require: tcpwatchd-trace.service has not",
        ),
    ],
)
def test_what_is_asked_for_in_vain_is_not_tried_again(service: Container, flags: str, said: str) -> None:
    configure(service, f"ExecStart=\nExecStart=/usr/bin/tcpwatchd {flags}")
    service.try_run("systemctl", "restart", "tcpwatchd")
    time.sleep(2)
    assert service.show("tcpwatchd", "ActiveState") == "failed"
    assert (service.show("tcpwatchd", "ExecMainStatus"), service.show("tcpwatchd", "NRestarts")) == ("2", "0")
    assert said in read_errors(service)


def read_errors(container: Container) -> str:
    container.run("journalctl", "--sync")
    return container.run("journalctl", "-t", "tcpwatchd", "-p", "err", "-o", "cat")


def test_a_trace_that_is_not_to_be_had_is_told_once_as_a_warning(service: Container) -> None:
    before = len(entries(service, event.TRACE_UNAVAILABLE))
    service.run("systemctl", "restart", "tcpwatchd")
    time.sleep(2)
    (told,) = entries(service, event.TRACE_UNAVAILABLE)[before:]
    assert told["PRIORITY"] == "4"
    assert "systemctl status tcpwatchd-trace" in told["MESSAGE"]
    assert "has not set the trace up" in service.run("journalctl", "-t", "tcpwatchd", "-p", "warning")


def test_a_hundred_thousand_in_one_poll(service: Container) -> None:
    """All are written, none suppressed by the journal's rate limit."""
    configure(service, "ExecStart=\nExecStart=/usr/bin/tcpwatchd --output journal --interval 20")
    service.run("systemctl", "restart", "tcpwatchd")
    traffics = [Traffic(service.leader, "many", str(EACH)) for _ in range(PROCESSES)]
    truths = [traffic.truth() for traffic in traffics]
    expected = Counter((str(client), str(server)) for server, clients in truths for client in clients)
    assert sum(expected.values()) == PROCESSES * EACH
    servers = {str(server) for server, _ in truths}
    wait_until(lambda: count_reported(service) >= PROCESSES * EACH, 60, "all reported")
    found = Counter(
        (e["SOURCE_PORT"], e["DESTINATION_PORT"])
        for e in entries(service, event.CONNECTION_OPENED)
        if e["DESTINATION_PORT"] in servers
    )
    assert found == expected
    assert "Suppressed" not in service.run("journalctl", "-u", "systemd-journald", "--no-pager")
    for traffic in traffics:
        traffic.end()
