"""What systemd is told, over a real notification socket."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.service.notify import open_notifier
from tests.daemon import Daemon, run_program, with_proc
from tests.table import show
from tests.test_watch import FAST, read_event, read_started

if TYPE_CHECKING:
    from collections.abc import Iterator


MANY = 50
"""Polls whose status does not fit into the queue."""


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The end of the socket that systemd holds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(10)
        yield receiver


def read_until(manager: socket.socket, wanted: str) -> list[str]:
    """Messages up to and with the first that holds this assignment."""
    told: list[str] = []
    while not told or wanted not in told[-1].split("\n"):
        told.append(manager.recv(4096).decode("ascii"))
    return told


def measure_cpu(daemon: Daemon) -> float:
    """Seconds of processor time that it took so far."""
    fields = Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(manager: socket.socket, **environment: str) -> Daemon:
    variables = {"NOTIFY_SOCKET": manager.getsockname(), "PATH": "/usr/bin:/bin", **environment}
    return Daemon("--interval", "60", "--output", "text", "--trace", "no", env=variables)


def test_the_life_of_a_service(manager: socket.socket) -> None:
    daemon = start(manager)
    (ready,) = read_until(manager, "READY=1")
    assert "\nSTATUS=Polling every 60 s; 0 connections reported since the start, " in ready
    assert manager.recv(4096).startswith(b"STATUS=Polling every 60 s; ")
    daemon.process.send_signal(signal.SIGHUP)
    reloading, *_ = read_until(manager, "READY=1")
    assert reloading.startswith("RELOADING=1")
    assert daemon.end(signal.SIGTERM)[0] == 0
    assert read_until(manager, "STOPPING=1") == ["STOPPING=1"]


def test_the_watchdog_is_fed_between_polls(manager: socket.socket) -> None:
    daemon = start(manager, WATCHDOG_USEC="400000")
    read_until(manager, "READY=1")
    for _ in range(3):
        manager.settimeout(0.4)
        read_until(manager, "WATCHDOG=1")
    assert daemon.end(signal.SIGTERM)[0] == 0


def test_a_watchdog_of_another_process_is_not_ours(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NOTIFY_SOCKET", manager.getsockname())
        notifier = open_notifier(environment)
    assert notifier.feed_at == math.inf


def fill_queue(manager: socket.socket) -> None:
    """What systemd did not read yet leaves no room for more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other, contextlib.suppress(BlockingIOError):
        other.setblocking(False)
        other.connect(manager.getsockname())
        while True:
            other.send(b"full")


def watch_tables(proc: Path, manager: socket.socket, **environment: str) -> Daemon:
    variables = {"NOTIFY_SOCKET": manager.getsockname(), "PATH": "/usr/bin:/bin", **environment}
    return Daemon(*FAST, prefix=with_proc(proc), env=variables)


def test_a_manager_that_stands_still_blocks_nothing(proc: Path, manager: socket.socket) -> None:
    """What it does not read is dropped, but for signs of life."""
    daemon = watch_tables(proc, manager, WATCHDOG_USEC="400000")
    read_started(daemon)
    read_until(manager, "READY=1")
    fill_queue(manager)
    for port in range(1, MANY):
        show(proc, port)
        assert read_event(daemon)["SOURCE_PORT"] == str(port)
    time.sleep(0.5)
    before = measure_cpu(daemon)
    time.sleep(1)
    assert measure_cpu(daemon) - before < 0.4, "it does not spin"
    read_until(manager, "WATCHDOG=1")
    fill_queue(manager)
    assert daemon.end(signal.SIGTERM)[0] == 0


def test_ready_is_told_as_soon_as_it_can_be(proc: Path, manager: socket.socket) -> None:
    fill_queue(manager)
    daemon = watch_tables(proc, manager)
    read_started(daemon)
    time.sleep(0.5)
    read_until(manager, "READY=1")
    assert daemon.end(signal.SIGTERM)[0] == 0


def test_a_manager_that_is_gone_ends_nothing_and_is_found_again(proc: Path, tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
        first.bind(str(path))
        first.settimeout(10)
        daemon = watch_tables(proc, first, WATCHDOG_USEC="400000")
        read_until(first, "READY=1")
    show(proc, 5001)
    read_started(daemon)
    assert read_event(daemon)["SOURCE_PORT"] == "5001"
    time.sleep(0.5)
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as second:
        second.bind(str(path))
        second.settimeout(10)
        read_until(second, "WATCHDOG=1")
        assert daemon.end(signal.SIGTERM)[0] == 0
        assert "READY=1" not in read_until(second, "STOPPING=1")


@pytest.mark.parametrize(
    ("variable", "value"), [("NOTIFY_SOCKET", ""), ("WATCHDOG_USEC", ""), ("WATCHDOG_USEC", "x")]
)
def test_a_variable_without_a_value_is_none(manager: socket.socket, variable: str, value: str) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "PATH": "/usr/bin:/bin", variable: value}
    assert run_program("--once", env=environment).returncode == 0


def test_a_missing_socket_is_a_fault() -> None:
    result = run_program("--once", env={"NOTIFY_SOCKET": "/nonexistent/notify", "PATH": "/usr/bin:/bin"})
    assert result.returncode == 1
    assert result.stderr == "tcpwatchd: /nonexistent/notify (NOTIFY_SOCKET): No such file or directory\n"
