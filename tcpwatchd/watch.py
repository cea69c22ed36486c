"""The loop, the only place where the stages meet: take a snapshot, ask what is new, send it."""

from __future__ import annotations

import select
import signal
import time
from typing import TYPE_CHECKING

from tcpwatchd import __version__, event
from tcpwatchd.procnet import TableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tcpwatchd.connection import Connection
    from tcpwatchd.event import Event
    from tcpwatchd.notify import Notifier
    from tcpwatchd.procnet import Tables
    from tcpwatchd.signals import Signals
    from tcpwatchd.sinks import Sink
    from tcpwatchd.tracker import Tracker

BATCH = 500
"""Events that are sent between two looks at the signals and the watchdog."""
READER_GONE = select.POLLERR | select.POLLHUP


class Watch:
    """`interval` is in seconds."""

    def __init__(
        self,
        tables: Tables,
        tracker: Tracker,
        sink: Sink,
        notifier: Notifier,
        signals: Signals,
        interval: float,
    ) -> None:
        self._tables = tables
        self._tracker = tracker
        self._sink = sink
        self._notifier = notifier
        self._signals = signals
        self._interval = interval
        self._poll = select.poll()
        self._poll.register(signals, select.POLLIN)
        if sink.fileno is not None:
            self._poll.register(sink.fileno, 0)
        self._stopping = False
        self._failing = 0
        self._failed = self._malformed = self._reported = self._unwritten = 0

    def run(self) -> None:
        """Watch until asked to stop. Raises what the first poll or the sink raises."""
        deadline = time.monotonic()
        connections, malformed = self._find_new()
        self._notifier.ready(self._status())
        self._sink.send([event.watch_started(__version__, self._interval, now())])
        self._warn(malformed)
        self._report(connections)
        while self._wait(deadline := next_deadline(deadline, time.monotonic(), self._interval)):
            self._tick()
            self._notifier.status(self._status())
        self._notifier.stopping()
        self._sink.send([self._totals()])

    def run_once(self) -> None:
        """Report what is open now. Raises what reading or the sink raises."""
        connections, malformed = self._find_new()
        self._warn(malformed)
        self._report(connections)

    def _tick(self) -> None:
        try:
            connections, malformed = self._find_new()
        except Exception as error:  # whatever went wrong, the next poll may go right
            self._fail(error)
            return
        if self._failing:
            self._sink.send([event.poll_recovered(self._failing, now())])
            self._failing = 0
        self._warn(malformed)
        self._report(connections)

    def _find_new(self) -> tuple[list[Connection], list[bytes]]:
        """New connections, and new rows that are malformed."""
        snapshot = self._tables.read_snapshot(self._tracker.heard)
        return self._tracker.find_new(snapshot), snapshot.malformed

    def _report(self, connections: Sequence[Connection]) -> None:
        opened = now()
        for start in range(0, len(connections), BATCH):
            if self._asked_to_stop():
                self._unwritten = len(connections) - start
                return
            batch = connections[start : start + BATCH]
            self._sink.send([event.connection_opened(connection, opened) for connection in batch])
            self._reported += len(batch)
            self._notifier.alive()

    def _fail(self, error: Exception) -> None:
        """Reported once, until a poll succeeds."""
        self._failed += 1
        self._failing += 1
        if self._failing == 1:
            self._sink.send([event.poll_failed(describe(error), now())])

    def _warn(self, malformed: list[bytes]) -> None:
        """Quoted once; after that rows are counted only."""
        if malformed and not self._malformed:
            self._sink.send([event.rows_malformed(malformed, now())])
        self._malformed += len(malformed)

    def _wait(self, deadline: float) -> bool:
        """Sleep until the deadline, feeding the watchdog; False when asked to stop."""
        while not self._asked_to_stop():
            self._notifier.alive()
            left = deadline - time.monotonic()
            if left <= 0:
                return True
            # Rounded up, or the last fraction of a millisecond would spin.
            milliseconds = int(min(left, self._notifier.patience) * 1000) + 1
            if any(what & READER_GONE for _, what in self._poll.poll(milliseconds)):
                raise BrokenPipeError
        return False

    def _asked_to_stop(self) -> bool:
        for number in self._signals.take():
            if number == signal.SIGHUP:
                self._notifier.reloaded()
            else:
                self._stopping = True
        return self._stopping

    def _status(self) -> str:
        counts = f"{self._reported} connections reported, {self._tracker.open} sockets open"
        trouble = f"; the last {self._failing} polls failed" if self._failing else ""
        return f"Polling every {self._interval:g} s; {counts}{trouble}"

    def _totals(self) -> Event:
        return event.watch_stopped(self._reported, self._unwritten, self._failed, self._malformed, now())


def next_deadline(deadline: float, now: float, interval: float) -> float:
    """The next one of the deadlines, an interval apart, that has not passed."""
    return deadline + interval * (max(0.0, now - deadline) // interval + 1)


def describe(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) if isinstance(error, TableError) else repr(error)


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000
