"""How connections end, with real sockets: each closed once, when and how its owners saw it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import IO, TYPE_CHECKING, Any

import pytest

from tcpwatchd.kernel.instance import TraceError, find_event, tells_closing
from tcpwatchd.kernel.setup import remove, set_up
from tcpwatchd.kernel.trace import Trace
from tcpwatchd.output import event
from tests import endings
from tests.holder import Traffic
from tests.namespace import TRACING, Namespace, wait_until
from tests.test_proof import count, read, run_on, start

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.trace, pytest.mark.alone]
COUNT = 1000
KILLS = 4


def make_connections(host: Namespace, number: int, seed: int) -> subprocess.Popen[str]:
    program = [sys.executable, endings.__file__, str(number), str(seed)]
    return subprocess.Popen([*host.prefix, *program], stdout=subprocess.PIPE, text=True)


def of(output: IO[bytes], message_id: str) -> list[dict[str, Any]]:
    return [fields for fields in read(output) if fields["MESSAGE_ID"] == message_id]


def find(output: IO[bytes], message_id: str, port: int) -> list[dict[str, Any]]:
    return [fields for fields in of(output, message_id) if fields["DESTINATION_PORT"] == str(port)]


def tells_owners(events: list[dict[str, Any]]) -> bool:
    """And bytes: the kernel has event probes."""
    return any(fields.get("TCPWATCHD_OWNERS") == "kernel" for fields in events)


def test_a_thousand_that_close_in_every_way(output: IO[bytes]) -> None:
    """By the tracepoint alone; in a virtual machine also with bytes (system/test_machine.py)."""
    with Namespace() as watched, Namespace() as host:
        daemon = start(watched, output, "--trace", "require", "--report", "both", "--trace-buffer", "4M")
        told, _ = make_connections(host, COUNT, 14).communicate(timeout=300)
        time.sleep(0.5)
        status, _, errors = daemon.end(signal.SIGTERM)
    truths = list(map(json.loads, told.splitlines()))
    assert len(truths) == COUNT
    events = read(output)
    counted = tells_owners(events)
    assert endings.compare(truths, events, counted) == []
    assert (status, errors) == (0, "")


@pytest.fixture
def instance() -> Iterator[str]:
    made = set_up(f"tcpwatchd-test-{os.getpid()}", 4096, closing=True).path
    yield made
    remove(made)


def test_each_closes_once_over_restarts(output: IO[bytes], instance: str, tmp_path: Path) -> None:
    with Namespace() as watched, Namespace() as host:
        flags = "--report", "both"
        daemon = run_on(watched, output, instance, tmp_path, *flags)
        traffic = make_connections(host, 300, 3)
        for _ in range(4):
            time.sleep(1)
            daemon.end(signal.SIGTERM)
            time.sleep(0.2)
            daemon = run_on(watched, output, instance, tmp_path, *flags)
        told, _ = traffic.communicate(timeout=300)
        time.sleep(0.5)
        daemon.end(signal.SIGTERM)
    events = read(output)
    counted = tells_owners(events)
    assert endings.compare(list(map(json.loads, told.splitlines())), events, counted) == []


def test_a_kill_leaves_none_open(output: IO[bytes], instance: str, tmp_path: Path) -> None:
    """At most what was being written is written twice."""
    with Namespace() as watched, Namespace() as host:
        flags = "--report", "both"
        daemon = run_on(watched, output, instance, tmp_path, *flags)
        traffic = make_connections(host, 300, 4)
        for _ in range(KILLS):
            time.sleep(0.7)
            daemon.process.kill()
            daemon.process.communicate()
            daemon = run_on(watched, output, instance, tmp_path, *flags)
        told, _ = traffic.communicate(timeout=300)
        time.sleep(2)
        daemon.end(signal.SIGTERM)
    lost = sum(int(fields.get("TCPWATCHD_RECORDS_LOST", 0)) for fields in of(output, event.RECORDS_LOST))
    counted: dict[str, list[int]] = {event.CONNECTION_OPENED: [], event.CONNECTION_CLOSED: []}
    for truth in map(json.loads, told.splitlines()):
        for kind, numbers in counted.items():
            port = truth["source"][1]
            found = [f for f in find(output, kind, truth["destination"][1]) if f["SOURCE_PORT"] == str(port)]
            numbers.append(len(found))
    for numbers in counted.values():
        assert numbers.count(0) <= lost
        assert sum(numbers) - len(numbers) <= KILLS * 50


@pytest.mark.parametrize("report", ["closed", "both"])
def test_what_was_open_before_the_watch_has_no_duration(output: IO[bytes], report: str) -> None:
    """But the moment of its end, by the trace."""
    with Namespace() as host:
        traffic = Traffic(host.pid, "many", "5")
        server, _ = traffic.truth()
        daemon = start(host, output, "--trace", "require", "--report", report, "--interval", "60")
        time.sleep(0.5)
        before = time.time()
        traffic.end()
        wait_until(lambda: len(find(output, event.CONNECTION_CLOSED, server)) == 5, 5, "closed")
        daemon.end(signal.SIGTERM)
    assert len(find(output, event.CONNECTION_OPENED, server)) == (5 if report == "both" else 0)
    for fields in find(output, event.CONNECTION_CLOSED, server):
        assert fields["TCPWATCHD_DETECTED_BY"] == "startup"
        assert "EVENT_DURATION" not in fields
        assert fields["TCPWATCHD_CLOSE_DETECTED_BY"] == "trace"
        assert before <= endings.parse(fields["EVENT_END"]) / 1e6 <= before + 5


def test_without_the_trace_two_polls_without_its_row_end_it(output: IO[bytes]) -> None:
    with Namespace() as host:
        daemon = start(host, output, "--trace", "no", "--report", "both", "--interval", "0.5")
        traffic = Traffic(host.pid, "many", "5")
        server, _ = traffic.truth()
        wait_until(lambda: len(find(output, event.CONNECTION_OPENED, server)) == 5, 5, "opened")
        assert find(output, event.CONNECTION_CLOSED, server) == []
        before = time.time()
        traffic.end()
        wait_until(lambda: len(find(output, event.CONNECTION_CLOSED, server)) == 5, 5, "closed")
        time.sleep(1.2)
        daemon.end(signal.SIGTERM)
    closed = find(output, event.CONNECTION_CLOSED, server)
    assert len(closed) == 5
    for fields in closed:
        assert fields["TCPWATCHD_CLOSE_DETECTED_BY"] == "poll"
        assert {"SOURCE_BYTES", "DESTINATION_BYTES", "NETWORK_BYTES"}.isdisjoint(fields)
        assert before <= endings.parse(fields["EVENT_END"]) / 1e6 <= before + 1.5
        duration = endings.parse(fields["EVENT_END"]) - endings.parse(fields["EVENT_START"])
        assert abs(int(fields["EVENT_DURATION"]) / 1000 - duration) < 10


def open_short(host: Namespace, output: IO[bytes], message_id: str) -> int:
    """The port of ten short connections, when each has an entry of this kind."""
    traffic = Traffic(host.pid, "short", "10")
    server, _ = traffic.truth()
    traffic.end()
    wait_until(lambda: len(find(output, message_id, server)) == 10, 5, "all reported")
    return int(server)


def test_the_filter_is_as_wide_as_what_is_reported(output: IO[bytes], instance: str, tmp_path: Path) -> None:
    """Without the ends of connections in its trace, the service reports that they open, and says so."""
    name = os.path.basename(instance)
    inode = os.stat(instance).st_ino
    with Namespace() as host:
        set_up(name, None)
        assert not tells_closing(instance, find_event(instance))
        assert os.stat(f"{TRACING}/instances/{name}").st_ino == inode
        daemon = run_on(host, output, instance, tmp_path, "--report", "closed")
        server = open_short(host, output, event.CONNECTION_OPENED)
        daemon.end(signal.SIGTERM)
        assert find(output, event.CONNECTION_CLOSED, server) == []
        assert count(output, event.CLOSINGS_UNTOLD) == 1
        set_up(name, None, closing=True)
        assert tells_closing(instance, find_event(instance))
        daemon = run_on(host, output, instance, tmp_path, "--report", "closed")
        server = open_short(host, output, event.CONNECTION_CLOSED)
        daemon.end(signal.SIGTERM)
    assert find(output, event.CONNECTION_OPENED, server) == []
    assert count(output, event.CLOSINGS_UNTOLD) == 1
    assert count(output, event.TRACE_GAP) == 0


def test_what_is_open_at_the_end_of_a_log_of_flows_is_counted(output: IO[bytes]) -> None:
    with Namespace() as host:
        daemon = start(host, output, "--trace", "require", "--report", "closed")
        traffic = Traffic(host.pid, "many", "7")
        traffic.truth()
        time.sleep(0.3)
        daemon.end(signal.SIGTERM)
        traffic.end()
    assert int(read(output)[-1]["TCPWATCHD_UNREPORTED"]) >= 7
    assert "still open and not reported" in read(output)[-1]["MESSAGE"]


def test_a_flag_that_is_missing_is_told(output: IO[bytes], instance: str, tmp_path: Path) -> None:
    """As after an upgrade, where the whole command stands in a drop-in of the older version."""
    with Namespace() as host:
        run_on(host, output, instance, tmp_path).end(signal.SIGTERM)
    (said,) = of(output, event.CLOSINGS_UNTOLD)
    assert said["ERROR_MESSAGE"] == "a flag of the service says so, and its trace was set up for more"


def test_a_second_set_up_leaves_the_first_as_it_is(instance: str) -> None:
    """It is refused while somebody reads, and takes nothing away."""
    path, name = instance, os.path.basename(instance)
    for closing in (True, False):
        set_up(name, None, closing)
        trace = Trace(path)
        with pytest.raises(TraceError, match="read by another process"):
            set_up(name, 64, not closing)
        trace.check()
        assert trace.tells_closing is closing
        trace.close()
