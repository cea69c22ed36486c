"""Both units with the kernel's trace, in a container that sees this machine's tracefs."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.kernel.instance import FILTER, TRACEPOINT
from tcpwatchd.output import event
from tests.holder import Traffic
from tests.namespace import wait_until
from tests.system.container import Container, install
from tests.system.service import (
    INSTANCE,
    RESETS,
    configure,
    entries,
    list_instances,
    wait_until_gone,
    write_settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

SHORT = 1000

pytestmark = [pytest.mark.container, pytest.mark.trace, pytest.mark.alone]


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with Container("bookworm", traced=True) as booted:
        install(booted.root)
        booted.boot()
        booted.run("journalctl", "--update-catalog")
        yield booted


@pytest.fixture
def service(container: Container) -> Iterator[Container]:
    """Polls are an hour apart: what is reported between, the trace told."""
    configure(container, "ExecStart=\nExecStart=/usr/bin/tcpwatchd --output journal --interval 3600")
    use_trace(container, "start")
    yield container
    container.run("systemctl", "stop", "tcpwatchd")
    wait_until_gone()


def use_trace(container: Container, command: str) -> None:
    """It is ready before it writes, and a gap since the test before is written first."""
    starts = len(entries(container, event.TRACE_USED))
    container.run("systemctl", command, "tcpwatchd")
    wait_until(lambda: len(entries(container, event.TRACE_USED)) > starts, 10, "the trace in use")


def open_short(container: Container) -> Counter[tuple[str, str]]:
    """Connections that are closed at once: client's and server's port of each."""
    traffic = Traffic(container.leader, "short", str(SHORT))
    server, clients = traffic.truth()
    traffic.end()
    return Counter((str(client), str(server)) for client in clients)


def read_ports(container: Container) -> Counter[tuple[str, str]]:
    found = entries(container, event.CONNECTION_OPENED)
    return Counter((entry["SOURCE_PORT"], entry["DESTINATION_PORT"]) for entry in found)


def wait_for(container: Container, truth: Counter[tuple[str, str]]) -> None:
    wait_until(lambda: not truth - read_ports(container), 20, "all reported")
    found = read_ports(container)
    assert {ports: found[ports] for ports in truth} == dict(truth)


def test_short_connections_between_two_polls(service: Container) -> None:
    truth = open_short(service)
    wait_for(service, truth)
    port = next(iter(truth))[1]
    found = entries(service, event.CONNECTION_OPENED, f"DESTINATION_PORT={port}")
    assert {e["TCPWATCHD_DETECTED_BY"] for e in found} == {"trace"}
    assert {e["NETWORK_DIRECTION"] for e in found} == {"internal"}
    starts = [e["EVENT_START"] for e in found]
    assert starts == sorted(starts)
    assert len(entries(service, event.TRACE_USED)) >= 1
    assert service.show("tcpwatchd", "StatusText").startswith("Trace, and polling every 3600 s; ")


def test_it_needs_no_privilege(service: Container) -> None:
    status = service.run("cat", f"/proc/{service.show('tcpwatchd', 'MainPID')}/status")
    assert {line.split()[1] for line in status.splitlines() if line.startswith("Cap")} == {"0" * 16}
    for unit in ("tcpwatchd.service", "tcpwatchd-trace.service"):
        path = f"/usr/lib/systemd/system/{unit}"
        assert service.run("systemd-analyze", "verify", "--recursive-errors=yes", "--man=no", path) == ""
    service.run("systemd-analyze", "security", "--threshold=10", "--no-pager", "tcpwatchd")


def test_nobody_else_gets_to_the_instance(service: Container) -> None:
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    for instance in (INSTANCE, RESETS):
        assert service.try_run(*drop, "ls", str(instance)).returncode != 0
        files = [path for path in instance.rglob("*") if path.is_file()]
        assert "trace_marker" not in {path.name for path in files if path.stat().st_mode & 0o004}
        assert not any(path.stat().st_mode & 0o002 for path in instance.rglob("*"))


def test_the_instance_stays_over_a_restart_and_a_crash(service: Container) -> None:
    instances, gaps = list_instances(), len(entries(service, event.TRACE_GAP))
    service.run("systemctl", "kill", "--signal=STOP", "tcpwatchd")
    truth = open_short(service)
    service.run("systemctl", "kill", "--signal=KILL", "tcpwatchd")
    wait_for(service, truth)
    service.run("systemctl", "restart", "tcpwatchd")
    wait_for(service, open_short(service))
    assert list_instances() == instances
    assert len(entries(service, event.TRACE_GAP)) == gaps


def test_resets_are_recorded_as_long_as_scans_are_reported(service: Container) -> None:
    """Switched on again they find the other instance alone, as in an upgrade of an older version."""
    before = list_instances()
    write_settings(service, "scan", "[Scan]\nEnabled=no\n")
    use_trace(service, "restart")
    without = list_instances()
    write_settings(service, "scan", "")
    use_trace(service, "restart")
    after = list_instances()
    assert without == {INSTANCE.name: before[INSTANCE.name]}
    assert after.keys() == before.keys()
    assert after[INSTANCE.name] == before[INSTANCE.name]
    told = "port scans are seen by open ports only" in entries(service, event.TRACE_USED)[-1]["MESSAGE"]
    assert told == (RESETS.name not in after)


def test_a_restart_of_the_trace_restarts_the_daemon(service: Container) -> None:
    main = service.show("tcpwatchd", "MainPID")
    instance, gaps = INSTANCE.stat().st_ino, len(entries(service, event.TRACE_GAP))
    service.run("systemctl", "restart", "tcpwatchd-trace")
    wait_until(lambda: service.show("tcpwatchd", "MainPID") not in ("0", main), 20, "a new process")
    wait_until(lambda: service.show("tcpwatchd", "ActiveState") == "active", 20, "ready")
    assert INSTANCE.stat().st_ino != instance
    wait_until(lambda: len(entries(service, event.TRACE_GAP)) == gaps + 1, 10, "the gap is told")
    gap = entries(service, event.TRACE_GAP)[-1]
    assert gap["EVENT_START"] < gap["EVENT_END"]
    wait_for(service, open_short(service))


def test_without_the_trace_unit_it_polls_and_says_so(service: Container) -> None:
    service.run("systemctl", "stop", "tcpwatchd")
    wait_until_gone()
    service.run("systemctl", "mask", "--runtime", "--quiet", "tcpwatchd-trace")
    before = len(entries(service, event.TRACE_UNAVAILABLE))
    service.run("systemctl", "start", "tcpwatchd")
    time.sleep(0.2)
    (told,) = entries(service, event.TRACE_UNAVAILABLE)[before:]
    assert "systemctl status tcpwatchd-trace" in told["ERROR_MESSAGE"]
    service.run("systemctl", "unmask", "--runtime", "--quiet", "tcpwatchd-trace")


def test_an_instance_that_another_version_made_goes_on(service: Container) -> None:
    """With the restart that an upgrade makes, and without a hand."""
    before = INSTANCE.stat().st_ino
    (INSTANCE / TRACEPOINT / "filter").write_text("protocol==6 && newstate==1")
    (INSTANCE / "buffer_size_kb").write_text("64")
    size = (INSTANCE / "buffer_size_kb").read_text()
    service.run("systemctl", "restart", "tcpwatchd")
    assert (INSTANCE / TRACEPOINT / "filter").read_text().strip() == FILTER
    assert (INSTANCE / "buffer_size_kb").read_text() == size, "set by whoever made it"
    assert INSTANCE.stat().st_ino == before
    service.run("journalctl", "--sync")
    assert "set up anew" in service.run("journalctl", "-u", "tcpwatchd", "-o", "cat")
    (INSTANCE / "buffer_size_kb").write_text("512")
    wait_for(service, open_short(service))


def test_the_size_of_the_buffers_has_one_place(service: Container) -> None:
    set_buffer(service, "128K")
    size = int((INSTANCE / "buffer_size_kb").read_text().split()[0])
    assert 124 <= size <= 132, "rounded by the kernel"
    told = f", {size} KiB a CPU)"
    wait_until(lambda: told in entries(service, event.TRACE_USED)[-1]["MESSAGE"], 10, "told")
    set_buffer(service, "16M")
    assert "TraceBuffer=16384K: all CPUs share 16384 KiB" in read_setup(service, "warning")
    set_buffer(service, None)


def test_a_size_that_makes_no_sense_is_told_and_nothing_starts(service: Container) -> None:
    """By both units, in one line each; a restart goes on when it is corrected."""
    write_settings(service, "buffer", "[Trace]\n# too much\nTraceBuffer=4G\n")
    assert service.try_run("systemctl", "restart", "tcpwatchd-trace").returncode != 0
    wait_until(lambda: service.show("tcpwatchd", "ActiveState") == "failed", 20, "failed")
    assert service.show("tcpwatchd", "ExecMainStatus") == "2"
    fault = "/etc/tcpwatchd/tcpwatchd.conf.d/buffer.conf:3: [Trace] TraceBuffer=: not a size from 16K to 16M"
    assert f"tcpwatchd: {fault}" in read_setup(service, "err")
    service.run("journalctl", "--sync")
    assert f"tcpwatchd: {fault}" in service.run("journalctl", "-u", "tcpwatchd", "-p", "err", "-o", "cat")
    write_settings(service, "buffer", "")
    use_trace(service, "restart")


def set_buffer(container: Container, size: str | None) -> None:
    write_settings(container, "buffer", f"[Trace]\nTraceBuffer={size}\n" if size else "")
    container.run("systemctl", "restart", "tcpwatchd-trace")
    wait_until(lambda: container.show("tcpwatchd", "ActiveState") == "active", 20, "active")


def read_setup(container: Container, priority: str) -> str:
    container.run("journalctl", "--sync")
    return container.run("journalctl", "-u", "tcpwatchd-trace", "-p", priority, "-o", "cat")
