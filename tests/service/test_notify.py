"""What systemd is told, over a real notification socket."""

from __future__ import annotations

import math
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.service.notify import open_notifier
from tests.daemon import Daemon, run_program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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


def start(manager: socket.socket, **environment: str) -> Daemon:
    variables = {"NOTIFY_SOCKET": manager.getsockname(), "PATH": "/usr/bin:/bin", **environment}
    return Daemon("--interval", "60", "--output", "text", "--trace", "no", env=variables)


def test_the_life_of_a_service(manager: socket.socket) -> None:
    daemon = start(manager)
    (ready,) = read_until(manager, "READY=1")
    assert "\nSTATUS=Polling every 60 s; 0 connections reported, " in ready
    assert manager.recv(4096).startswith(b"STATUS=Polling every 60 s; ")
    daemon.process.send_signal(signal.SIGHUP)
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


def test_a_missing_socket_is_a_fault() -> None:
    result = run_program("--once", env={"NOTIFY_SOCKET": "/nonexistent/notify", "PATH": "/usr/bin:/bin"})
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
