"""The configuration of the service: what is reported, and what a reload changes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tcpwatchd.output import event
from tests.holder import Traffic
from tests.namespace import wait_until
from tests.system.container import Container
from tests.system.service import entries, write_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.container


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def container(request: pytest.FixtureRequest) -> Iterator[Container]:
    with Container(request.param) as booted:
        booted.install()
        booted.boot()
        yield booted


@pytest.fixture
def service(container: Container) -> Iterator[Container]:
    """With a short interval; afterwards with the settings that were shipped."""
    write_settings(container, "00-interval", "[Watch]\nInterval=500ms\n")
    container.run("systemctl", "start", "tcpwatchd")
    yield container
    container.run("systemctl", "stop", "tcpwatchd")
    container.run("sh", "-c", "rm -f /etc/tcpwatchd/tcpwatchd.conf.d/*")


def open_some(container: Container, count: int) -> tuple[Traffic, str]:
    """Connections inside the container, and the port that they go to."""
    traffic = Traffic(container.leader, "many", str(count))
    return traffic, str(traffic.truth()[0])


def find_told(container: Container, port: str) -> list[dict[str, Any]]:
    return entries(container, event.CONNECTION_OPENED, f"DESTINATION_PORT={port}")


def reload(container: Container) -> bool:
    """Whether systemd says that it went well; what it changed is in force then."""
    before = len(entries(container, event.RELOADED)) + len(entries(container, event.RELOAD_FAILED))
    done = container.try_run("systemctl", "reload", "tcpwatchd").returncode == 0

    def told() -> bool:
        found = len(entries(container, event.RELOADED)) + len(entries(container, event.RELOAD_FAILED))
        return found == before + 1

    wait_until(told, 10, "one entry of the reload")
    wait_until(lambda: container.show("tcpwatchd", "ActiveState") == "active", 10, "active")
    return done


def test_rules_say_what_is_written_and_how_loud(service: Container) -> None:
    kept, port = open_some(service, 3)
    wait_until(lambda: len(find_told(service, port)) == 3, 10, "an entry for each")
    assert {entry["PRIORITY"] for entry in find_told(service, port)} == {"6"}
    kept.end()
    main = service.show("tcpwatchd", "MainPID")
    write_settings(service, "rules", "[Rules]\nWarning=internal and dst net 127.0.0.0/8\n")
    assert reload(service)
    kept, port = open_some(service, 2)
    wait_until(lambda: len(find_told(service, port)) == 2, 10, "an entry for each")
    assert {entry["PRIORITY"] for entry in find_told(service, port)} == {"4"}
    kept.end()
    loud = service.run(
        "journalctl", "-t", "tcpwatchd", "-p", "warning", f"DESTINATION_PORT={port}", "-o", "cat"
    )
    assert loud.count("New connection: 127.0.0.1:") == 2
    write_settings(service, "rules", "[Rules]\nIgnore=user root and host 127.0.0.1\n")
    assert reload(service)
    kept, port = open_some(service, 4)
    wait_until(lambda: "4 ignored" in service.show("tcpwatchd", "StatusText"), 10, "the status says so")
    assert find_told(service, port) == []
    kept.end()
    assert service.show("tcpwatchd", "MainPID") == main


def test_what_was_not_written_is_counted_at_a_reload_and_at_the_stop(service: Container) -> None:
    write_settings(service, "rules", "[Rules]\n# these\nIgnore=dst net 127.0.0.0/8\nFold=2/1h\n")
    assert reload(service)
    before = len(entries(service, event.CONNECTIONS_COUNTED))
    kept, _ = open_some(service, 5)
    wait_until(lambda: "5 ignored" in service.show("tcpwatchd", "StatusText"), 10, "all found")
    kept.end()
    write_settings(service, "rules", "[Rules]\nFold=2/1h\n")
    assert reload(service)
    (told,) = entries(service, event.CONNECTIONS_COUNTED)[before:]
    assert told["TCPWATCHD_IGNORED_BY"] == "5 by /etc/tcpwatchd/tcpwatchd.conf.d/rules.conf:3"
    kept, port = open_some(service, 7)
    wait_until(lambda: len(find_told(service, port)) == 2, 10, "two one by one")
    kept.end()
    service.run("systemctl", "stop", "tcpwatchd")
    (folded,) = entries(service, event.CONNECTIONS_OPENED, f"DESTINATION_PORT={port}")
    assert (folded["EVENT_COUNT"], folded["SOURCE_IP"], folded["PRIORITY"]) == ("5", "127.0.0.1", "6")
    assert folded["MESSAGE"] == f"5 new connections: 127.0.0.1 -> 127.0.0.1:{port}"
    assert "SOURCE_PORT" not in folded
    assert folded["EVENT_START"] <= folded["EVENT_END"]
    stopped = entries(service, event.WATCH_STOPPED)[-1]
    counts = [stopped[f"TCPWATCHD_{name}"] for name in ("REPORTED", "IGNORED", "FOLDED", "UNWRITTEN")]
    assert counts[1:] == ["5", "5", "0"]
    assert int(counts[0]) >= 2


WRONG = {
    "a rule": (
        "[Rules]\nIgnore=host 10.0.0.1 and prot 22\n",
        "rules.conf:2:26: [Rules] Ignore=: expected a word",
    ),
    "a value": ("[Watch]\nInterval=1ms\n", "rules.conf:2: [Watch] Interval=: not a time span"),
    "a key": ("[Rules]\nIgnor=port 22\n", "rules.conf:2: no setting 'Ignor='"),
    "no text": ("[Rules]\n\0\n", "rules.conf:2: no text"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_reload_of_a_wrong_file_fails_and_changes_nothing(service: Container, name: str) -> None:
    text, told = WRONG[name]
    write_settings(service, "rules", "[Rules]\nIgnore=dst net 127.0.0.0/8\n")
    assert reload(service)
    main = service.show("tcpwatchd", "MainPID")
    write_settings(service, "rules", text)
    assert not reload(service)
    (failed,) = entries(service, event.RELOAD_FAILED, "-n", "1")
    assert f"/etc/tcpwatchd/tcpwatchd.conf.d/{told}" in failed["ERROR_MESSAGE"]
    assert failed["PRIORITY"] == "3"
    kept, port = open_some(service, 3)
    wait_until(lambda: "3 ignored" in service.show("tcpwatchd", "StatusText"), 10, "the old rule is in force")
    assert find_told(service, port) == []
    kept.end()
    assert service.show("tcpwatchd", "MainPID") == main
    write_settings(service, "rules", "")
    assert reload(service)


def test_what_only_a_restart_changes_is_said(service: Container) -> None:
    write_settings(service, "more", "[Watch]\nInterval=700ms\nReport=both\n[Trace]\nTraceBuffer=1M\n")
    assert reload(service)
    told = entries(service, event.RELOADED)[-1]
    assert told["MESSAGE"].endswith("; only a restart changes [Watch] Report=, [Trace] TraceBuffer=")
    assert told["PRIORITY"] == "5"
    wait_until(lambda: "every 0.7 s" in service.show("tcpwatchd", "StatusText"), 10, "the new interval")
    write_settings(service, "more", "")
    assert reload(service)
    assert entries(service, event.RELOADED)[-1]["MESSAGE"] == "The configuration was read again"


def test_a_wrong_file_at_the_start_is_one_line_and_status_2(service: Container) -> None:
    service.run("systemctl", "stop", "tcpwatchd")
    write_settings(service, "rules", "[Rules]\nIgnore=hosts 10.0.0.1\n")
    assert service.try_run("systemctl", "start", "tcpwatchd").returncode != 0
    time.sleep(1.5)
    assert service.show("tcpwatchd", "ActiveState") == "failed", "it is not tried again"
    assert service.show("tcpwatchd", "ExecMainStatus") == "2"
    service.run("journalctl", "--sync")
    said = service.run("journalctl", "-t", "tcpwatchd", "-o", "cat", "-p", "err", "-n", "1")
    assert said.startswith(
        "tcpwatchd: /etc/tcpwatchd/tcpwatchd.conf.d/rules.conf:2:8: [Rules] Ignore=: expected "
    )
    checked = service.try_run("tcpwatchd", "--check-config")
    assert (checked.returncode, checked.stdout) == (2, "")
    write_settings(service, "rules", "")
    assert service.run("tcpwatchd", "--check-config") == "OK\n"
    service.run("systemctl", "reset-failed", "tcpwatchd")
    service.run("systemctl", "start", "tcpwatchd")


def test_drop_ins_of_all_folders_are_in_force(service: Container) -> None:
    """Each in its place; those in /run go with the machine, and are not the service's own folder."""
    for folder, name, text in (
        ("usr/lib", "50-vendor", "[Rules]\nReport=port 1\n"),
        ("run", "50-vendor", "[Rules]\nReport=port 2\n"),
        ("run", "60-now", "[Rules]\nNotice=port 3\n"),
        ("etc", "55-mine", "[Rules]\nIgnore=port 4\n"),
    ):
        path = f"/{folder}/tcpwatchd/tcpwatchd.conf.d"
        service.run("sh", "-c", f'mkdir -p {path}; printf "%s" "$0" > {path}/{name}.conf', text)
    shown = service.run("tcpwatchd", "--show-config")
    rules = [line for line in shown.splitlines() if "=port " in line]
    assert rules == ["Report=port 2", "Ignore=port 4", "Notice=port 3"]
    assert "# /run/tcpwatchd/tcpwatchd.conf.d/50-vendor.conf:2" in shown
    assert reload(service)
    assert service.run("setpriv", "--reuid=65534", "--clear-groups", "tcpwatchd", "--check-config") == "OK\n"
    service.run("rm", "-r", "/usr/lib/tcpwatchd/tcpwatchd.conf.d", "/run/tcpwatchd")
