"""What systemd is told of the daemon (sd_notify(3)). Without a notification socket nothing is sent."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MICROSECONDS = 1_000_000


class Notifier:
    """`watchdog` is the longest time in seconds between two signs of life, None where none are expected."""

    def __init__(self, notify: Callable[[str], object] | None, watchdog: float | None = None) -> None:
        self.supervised = notify is not None
        self._notify = notify or (lambda _state: None)
        self._feed_every = watchdog / 4 if watchdog else math.inf
        self.feed_at = time.monotonic() if watchdog else math.inf
        """When the next sign of life is due, in seconds of CLOCK_MONOTONIC."""

    def ready(self, status: str) -> None:
        self._notify(f"READY=1\nSTATUS={status}")

    def status(self, status: str) -> None:
        """`status` is ASCII: sdnotify encodes Latin-1."""
        self._notify(f"STATUS={status}")

    def stopping(self) -> None:
        self._notify("STOPPING=1")

    def feed_watchdog(self) -> None:
        """If it is time."""
        moment = time.monotonic()
        if moment >= self.feed_at:
            self._notify("WATCHDOG=1")
            self.feed_at = moment + self._feed_every


def open_notifier(environment: Mapping[str, str]) -> Notifier:
    """Raises ImportError without sdnotify, OSError where the socket that systemd named is not there."""
    if "NOTIFY_SOCKET" not in environment:
        return Notifier(None)
    from sdnotify import SystemdNotifier

    notify = SystemdNotifier(debug=True).notify
    expected = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    watchdog = int(environment.get("WATCHDOG_USEC", "0")) / MICROSECONDS
    return Notifier(notify, watchdog if expected and watchdog else None)
