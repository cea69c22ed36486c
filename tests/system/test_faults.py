"""Both units under a load with known truth, while everything around them is killed, stopped and spoilt."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from tcpwatchd.output import event
from tests.holder import Traffic
from tests.namespace import Namespace, wait_until
from tests.system.container import Container
from tests.system.load import PORTS, RATE, Load, join
from tests.system.service import configure, count_lost, entries, wait_until_gone, write_settings

if TYPE_CHECKING:
    from collections.abc import Iterator

KILLS = int(os.environ.get("KILLS", "3"))
RELOADS = 100
BATCH = 50
"""Connections that a drain can have brought at this rate, generously."""

pytestmark = [pytest.mark.container, pytest.mark.trace, pytest.mark.alone]


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with Container("bookworm", traced=True) as booted:
        booted.install()
        booted.boot()
        yield booted


@pytest.fixture(scope="module")
def client(container: Container) -> Iterator[Namespace]:
    with Namespace() as made:
        join(made, container)
        yield made


@pytest.fixture
def service(container: Container) -> Iterator[Container]:
    configure(container, "ExecStart=\nExecStart=/usr/bin/tcpwatchd --output journal --interval 5")
    container.run("systemctl", "start", "tcpwatchd")
    yield container
    container.run("systemctl", "stop", "tcpwatchd")
    wait_until_gone()


def kill(container: Container, unit: str, name: str) -> None:
    container.run("systemctl", "kill", f"--signal={name}", unit)


def wait_active(container: Container) -> None:
    wait_until(lambda: container.show("tcpwatchd", "ActiveState") == "active", 20, "active")


def test_kills_of_the_daemon(service: Container, client: Namespace) -> None:
    """Nothing is missing; again is what was just being written."""
    lost = count_lost(service)

    def harm() -> None:
        for _ in range(KILLS):
            time.sleep(3)
            kill(service, "tcpwatchd", "KILL")
            time.sleep(0.2)
            wait_active(service)

    missing, again = Load(service, client).run(4 * KILLS + 5, harm)
    assert sum(missing.values()) <= count_lost(service) - lost
    assert sum(again.values()) <= BATCH * KILLS


def test_restarts_of_the_daemon(service: Container, client: Namespace) -> None:
    def harm() -> None:
        for _ in range(5):
            time.sleep(1.5)
            service.run("systemctl", "restart", "tcpwatchd")

    assert Load(service, client).run(15, harm) == (Counter(), Counter())


def test_a_hundred_reloads(service: Container, client: Namespace) -> None:
    """Each of another file: rules that concern none of these connections, another interval, folding."""
    before = len(entries(service, event.RELOADED))

    def harm() -> None:
        for number in range(RELOADS):
            fold = "Fold=100000/1h\n" * (number % 3 == 0)
            rules = f"[Rules]\nIgnore=port {1 + number}\n{fold}[Watch]\nInterval={2 + number % 2}s\n"
            write_settings(service, "rules", rules)
            if number % 10 == 0:
                service.run("systemctl", "reload", "tcpwatchd")
            else:
                kill(service, "tcpwatchd", "HUP")
                time.sleep(0.1)

    assert Load(service, client).run(18, harm) == (Counter(), Counter())
    assert len(entries(service, event.RELOADED)) > before + RELOADS * 3 // 4, "two at once are one"
    write_settings(service, "rules", "")


def test_what_is_folded_adds_up(service: Container) -> None:
    """Of 10,000 a second, from 50 sources to two ports, over kills and a restart.

    A kill repeats what was just being written, and that is the same in all but its own time.
    """
    write_settings(service, "folded", "[Rules]\nFold=5/1s\n[Trace]\nTraceBuffer=8M\n")
    service.run("systemctl", "restart", "tcpwatchd-trace")
    wait_active(service)
    lost = count_lost(service)
    traffics = [Traffic(service.leader, "churn", "5000", "8", "50") for _ in range(2)]
    for _ in range(KILLS):
        time.sleep(1)
        kill(service, "tcpwatchd", "KILL")
        wait_active(service)
    service.run("systemctl", "restart", "tcpwatchd")
    truth = {str(port): len(ports) for port, ports, _ in (traffic.truth() for traffic in traffics)}
    for traffic in traffics:
        traffic.end()
    time.sleep(3)  # what a stop leaves unwritten would wait for the next start
    service.run("systemctl", "stop", "tcpwatchd")
    assert entries(service, event.WATCH_STOPPED)[-1]["TCPWATCHD_UNWRITTEN"] == "0"
    told = [
        (entry["DESTINATION_PORT"], int(entry.get("EVENT_COUNT", 1)), *map(entry.get, OF_ITS_OWN))
        for kind in (event.CONNECTION_OPENED, event.CONNECTIONS_OPENED)
        for entry in entries(service, kind, *(f"DESTINATION_PORT={port}" for port in truth))
    ]
    found: Counter[str] = Counter()
    for port, number, *_ in set(told):
        found[port] += number
    missing = {port: truth[port] - found[port] for port in truth}
    print(f"{len(told)} entries, {len(set(told))} of them different; missing: {missing}")
    assert count_lost(service) == lost
    assert missing == dict.fromkeys(truth, 0)
    assert len(told) < sum(truth.values()) / 5
    write_settings(service, "folded", "")


OF_ITS_OWN = "SOURCE_IP", "SOURCE_PORT", "EVENT_START", "EVENT_END"


@pytest.mark.parametrize("harm", ["restart", "KILL"])
def test_journald_ends(service: Container, client: Namespace, harm: str) -> None:
    def end() -> None:
        for _ in range(3):
            time.sleep(1)
            if harm == "restart":
                service.run("systemctl", "restart", "systemd-journald")
            else:
                kill(service, "systemd-journald", "KILL")

    missing, again = Load(service, client).run(8, end)
    assert (missing, again) == (Counter(), Counter())


def test_journald_stands_still(service: Container, client: Namespace) -> None:
    """For 20 seconds; the daemon lives on, can be stopped, and writes everything afterwards, in order."""
    main, stopped = service.show("tcpwatchd", "MainPID"), len(entries(service, event.WATCH_STOPPED))
    took = []

    def stand() -> None:
        kill(service, "systemd-journald", "STOP")
        try:
            time.sleep(15)
            assert service.show("tcpwatchd", "MainPID") == main
            assert "waiting to be written" in service.show("tcpwatchd", "StatusText")
            began = time.monotonic()
            service.run("systemctl", "restart", "tcpwatchd")
            took.append(time.monotonic() - began)
            time.sleep(5)
        finally:
            kill(service, "systemd-journald", "CONT")

    load = Load(service, client)
    assert load.run(25, stand) == (Counter(), Counter())
    assert took[0] < 4, "stopped within two seconds, and started again"
    starts = [
        e["EVENT_START"] for e in entries(service, event.CONNECTION_OPENED) if e["DESTINATION_PORT"] in PORTS
    ]
    assert starts == sorted(starts)
    assert len(entries(service, event.WATCH_STOPPED)) == stopped + 1


def test_the_sockets_of_journald_are_stopped(service: Container, client: Namespace) -> None:
    sockets = ["systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket"]

    def stop() -> None:
        service.try_run("systemctl", "stop", *sockets, "systemd-journald")
        time.sleep(4)
        service.run("systemctl", "start", *sockets[:2], "systemd-journald")

    assert Load(service, client).run(8, stop) == (Counter(), Counter())


def test_the_trace_is_made_anew(service: Container, client: Namespace) -> None:
    """What opens and closes between the two instances is in a gap that is told."""
    gaps = len(entries(service, event.TRACE_GAP))

    def harm() -> None:
        time.sleep(3)
        service.run("systemctl", "restart", "tcpwatchd-trace")

    missing, again = Load(service, client).run(10, harm)
    gap: list[dict[str, Any]] = entries(service, event.TRACE_GAP)[gaps:]
    assert len(gap) == 1
    assert sum(missing.values()) <= RATE * 5
    assert again == Counter()


def test_the_runtime_directory_is_spoilt(service: Container, client: Namespace) -> None:
    """Told in one entry; what is open is told again, as at a first start."""
    complaints = len(entries(service, event.BASELINE_UNUSABLE))
    baseline = "/run/private/tcpwatchd-state/baseline"

    def harm() -> None:
        time.sleep(3)
        kill(service, "tcpwatchd", "STOP")
        service.run("sh", "-c", f"head -c 200 {baseline} > {baseline}.cut; cat {baseline}.cut > {baseline}")
        kill(service, "tcpwatchd", "KILL")
        time.sleep(0.5)
        wait_active(service)

    missing, again = Load(service, client).run(10, harm)
    assert len(entries(service, event.BASELINE_UNUSABLE)) == complaints + 1
    assert sum(missing.values()) <= BATCH
    at_start = entries(service, event.CONNECTION_OPENED, "TCPWATCHD_DETECTED_BY=startup")
    assert sum(again.values()) <= len(at_start)
