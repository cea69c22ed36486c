"""What systemd is told of the daemon (sd_notify(3)). Without a notification socket nothing is sent."""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MICROSECONDS = 1_000_000
RETRY = 0.25
"""Seconds until what must be told is tried again."""


class Notifier:
    """`send` says whether it could; `watchdog` is the longest time in seconds between two signs of life, None
    where none are expected.

    systemd may be busy, or be started anew, which is no reason to wait or to end: a status is dropped then, a
    sign of life and READY=1 are tried again.
    """

    def __init__(self, send: Callable[[str], bool] | None, watchdog: float | None = None) -> None:
        self.supervised = send is not None
        self._send = send or (lambda _state: True)
        self._feed_every = watchdog / 4 if watchdog else math.inf
        self.feed_at = time.monotonic() if watchdog else math.inf
        """When the next sign of life is due, in seconds of CLOCK_MONOTONIC."""
        self._ready_untold = False

    def ready(self, status: str) -> None:
        self._ready_untold = not self._send(f"READY=1\nSTATUS={status}")
        if self._ready_untold:
            self.feed_at = time.monotonic()

    def status(self, status: str) -> None:
        """`status` is ASCII: sdnotify encodes Latin-1."""
        self._send(f"STATUS={status}")

    def reloading(self) -> None:
        """Until `ready`."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def feed_watchdog(self) -> None:
        """If it is time."""
        moment = time.monotonic()
        if moment < self.feed_at:
            return
        if self._send("READY=1\nWATCHDOG=1" if self._ready_untold else "WATCHDOG=1"):
            self._ready_untold = False
            self.feed_at = moment + self._feed_every
        else:
            self.feed_at = moment + min(RETRY, self._feed_every)


class Manager:
    """systemd's end of the notification socket at this path, which is what the environment says. Raises
    ImportError without sdnotify, and OSError with the path.
    """

    def __init__(self, path: str) -> None:
        try:
            self._connect()
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{path} (NOTIFY_SOCKET)") from error

    def _connect(self) -> None:
        from sdnotify import SystemdNotifier

        self._notifier = SystemdNotifier(debug=True)
        self._notifier.socket.setblocking(False)

    def send(self, state: str) -> bool:
        """Whether it was taken; it is never waited for."""
        try:
            self._notifier.notify(state)
        except BlockingIOError:
            return False
        except OSError:  # another socket may be there now
            return self._send_anew(state)
        return True

    def _send_anew(self, state: str) -> bool:
        self._notifier.socket.close()
        try:
            self._connect()
            self._notifier.notify(state)
        except OSError:
            return False
        return True


def open_notifier(environment: Mapping[str, str]) -> Notifier:
    """Raises ImportError without sdnotify, OSError where the socket that systemd named is not there."""
    path = environment.get("NOTIFY_SOCKET")
    if not path:
        return Notifier(None)
    expected = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    microseconds = environment.get("WATCHDOG_USEC", "")
    watchdog = int(microseconds) / MICROSECONDS if microseconds.isdecimal() else 0
    return Notifier(Manager(path).send, watchdog if expected and watchdog else None)
