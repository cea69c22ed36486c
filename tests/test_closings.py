"""How connections end, with real sockets: each closed once, when and how its owners saw it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone
from typing import IO, TYPE_CHECKING, Any

import pytest

from tcpwatchd.kernel.setup import remove, set_up
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


def make_connections(host: Namespace, number: int, seed: int) -> subprocess.Popen[str]:
    program = [sys.executable, endings.__file__, str(number), str(seed)]
    return subprocess.Popen([*host.prefix, *program], stdout=subprocess.PIPE, text=True)


def find(output: IO[bytes], message_id: str, port: int) -> list[dict[str, Any]]:
    found = [fields for fields in read(output) if fields["MESSAGE_ID"] == message_id]
    return [fields for fields in found if fields["DESTINATION_PORT"] == str(port)]


def test_a_thousand_that_close_in_every_way(output: IO[bytes]) -> None:
    """By the tracepoint alone; in a virtual machine also with bytes (system/test_machine.py)."""
    with Namespace() as watched, Namespace() as host:
        daemon = start(watched, output, "--trace", "require", "--report", "both", "--trace-buffer", "4096")
        told, _ = make_connections(host, COUNT, 14).communicate(timeout=300)
        time.sleep(0.5)
        status, _, errors = daemon.end(signal.SIGTERM)
    truths = list(map(json.loads, told.splitlines()))
    assert len(truths) == COUNT
    events = read(output)
    counted = any("SOURCE_BYTES" in fields for fields in events)
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
    counted = any("SOURCE_BYTES" in fields for fields in events)
    assert endings.compare(list(map(json.loads, told.splitlines())), events, counted) == []


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
        assert before <= parse(fields["EVENT_END"]) <= before + 5


def parse(text: str) -> float:
    moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=timezone.utc)
    return moment.timestamp()


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
        assert before <= parse(fields["EVENT_END"]) <= before + 1.5
        duration = parse(fields["EVENT_END"]) - parse(fields["EVENT_START"])
        assert abs(int(fields["EVENT_DURATION"]) / 1e9 - duration) < 1e-5


def test_the_filter_is_as_wide_as_what_is_reported(output: IO[bytes], instance: str, tmp_path: Path) -> None:
    """Without the ends of connections in its trace, the service reports that they open, and says so."""
    name = os.path.basename(instance)
    inode = os.stat(instance).st_ino
    with Namespace() as host:
        set_up(name, None)
        assert os.stat(f"{TRACING}/instances/{name}").st_ino == inode
        daemon = run_on(host, output, instance, tmp_path, "--report", "closed")
        traffic = Traffic(host.pid, "short", "10")
        server, _ = traffic.truth()
        traffic.end()
        wait_until(lambda: len(find(output, event.CONNECTION_OPENED, server)) == 10, 5, "opened")
        daemon.end(signal.SIGTERM)
        assert find(output, event.CONNECTION_CLOSED, server) == []
        assert count(output, event.CLOSINGS_UNTOLD) == 1
        set_up(name, None, closing=True)
        daemon = run_on(host, output, instance, tmp_path, "--report", "closed")
        traffic = Traffic(host.pid, "short", "10")
        server, _ = traffic.truth()
        traffic.end()
        wait_until(lambda: len(find(output, event.CONNECTION_CLOSED, server)) == 10, 5, "closed")
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
