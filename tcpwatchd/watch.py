"""The loop, where the stages meet: take a snapshot, drain the trace, ask what is new, send it."""

from __future__ import annotations

import select
import signal
import time
from typing import TYPE_CHECKING

from tcpwatchd import __version__, event
from tcpwatchd.baseline import Drained
from tcpwatchd.procnet import TableError
from tcpwatchd.tracefs import TraceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tcpwatchd.baseline import Baseline
    from tcpwatchd.connection import Connection
    from tcpwatchd.notify import Notifier
    from tcpwatchd.procnet import Tables
    from tcpwatchd.signals import Signals
    from tcpwatchd.sinks import Sink
    from tcpwatchd.tracefs import Trace
    from tcpwatchd.tracker import Tracker

BATCH = 500
"""Events that are sent between two looks at the signals and the watchdog."""
PAUSE = 0.02
"""Seconds between two drains: under load they are few and large."""
READER_GONE = select.POLLERR | select.POLLHUP
NANOSECONDS = 1_000_000_000
FOREVER = 2**63


class Watch:
    """`interval` is in seconds; `untraced` is why there is no trace, if that is to be told."""

    def __init__(
        self,
        tables: Tables,
        tracker: Tracker,
        sink: Sink,
        notifier: Notifier,
        signals: Signals,
        interval: float,
        baseline: Baseline,
        trace: Trace | None = None,
        untraced: str | None = None,
    ) -> None:
        self._baseline = baseline
        self._tables = tables
        self._tracker = tracker
        self._sink = sink
        self._notifier = notifier
        self._signals = signals
        self._interval = interval
        self._trace = trace
        self._untraced = untraced
        self._stopping = False
        self.hung_up = False
        """Whether it was SIGHUP, in the foreground, that ended the watch."""
        self._failing = 0
        self._complained = False
        self._lost = 0
        """Records lost that were not told yet."""
        self._drain_after = 0.0
        names = (
            "reported",
            "traced",
            "missed",
            "records_lost",
            "unwritten",
            "failed_polls",
            "malformed_rows",
        )
        self._totals = dict.fromkeys(names, 0)

    def run(self) -> None:
        """Watch until asked to stop. Raises what the first poll or the sink raises."""
        deadline = time.monotonic()
        connections, malformed = self._find_new()
        self._notifier.ready(self._status())
        self._sink.send([event.watch_started(__version__, self._interval, now())])
        self._tell_source()
        self._keep()
        self._warn(malformed)
        self._report(connections)
        self._notifier.status(self._status())
        while self._wait(deadline := next_deadline(deadline, time.monotonic(), self._interval)):
            self._tick()
            self._keep()
            self._notifier.status(self._status())
        self._notifier.stopping()
        self._finish()
        self._keep()
        self._sink.send([event.watch_stopped(self._totals, now())])

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
        told = self._drain()
        self._tables.keep()
        polled = self._tracker.find_new(snapshot)
        if self._trace:
            self._totals["missed"] += sum(connection.detected_by == "poll" for connection in polled)
        return told + polled, snapshot.malformed

    def _drain(self) -> list[Connection]:
        """What the trace tells, as far as it can be reported already."""
        if not self._trace:
            return []
        transitions, lost = self._trace.drain()
        self._drain_after = time.monotonic() + PAUSE
        self._tracker.hear(transitions, lost > 0, self._tables.holds)
        self._lost += lost
        return self._tracker.release(time.monotonic_ns())

    def _report(self, connections: Sequence[Connection]) -> None:
        if self._lost:
            self._sink.send([event.records_lost(self._lost, now())])
            self._totals["records_lost"] += self._lost
            self._lost = 0
        for start in range(0, len(connections), BATCH):
            if self._asked_to_stop():
                self._totals["unwritten"] += len(connections) - start
                return
            self._send(connections[start : start + BATCH])
            self._notifier.alive()

    def _send(self, connections: Sequence[Connection]) -> None:
        offset = time.time_ns() - time.monotonic_ns()
        self._sink.send([event.connection_opened(new, (new.time + offset) // 1000) for new in connections])
        self._totals["reported"] += len(connections)
        self._totals["traced"] += sum(new.detected_by == "trace" for new in connections)

    def _finish(self) -> None:
        """Report what was taken out of the kernel and waited for more; what it holds is the next one's."""
        if self._trace:
            self._tracker.hear(self._trace.take_rest(), False, self._tables.holds)
            self._send(self._tracker.release(FOREVER))

    def _tell_source(self) -> None:
        if self._trace:
            self._sink.send([event.trace_used(self._trace.path, now())])
            self._tell_gap(self._trace.instance)
        elif self._untraced:
            self._sink.send([event.trace_unavailable(self._untraced, now())])

    def _tell_gap(self, instance: int) -> None:
        """The trace that was read before the restart may be another one than this."""
        try:
            last = self._baseline.find()
        except (OSError, ValueError) as error:
            self._complain(error)
            return
        if last and last.instance != instance:
            self._sink.send([event.trace_gap(last.until, now())])

    def _keep(self) -> None:
        try:
            if self._trace:
                self._baseline.write(Drained(self._trace.instance, now()))
        except OSError as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        """Of the baseline, once: without it all goes on as at a first start."""
        if not self._complained:
            self._complained = True
            self._sink.send([event.baseline_unusable(describe(error), now())])

    def _fail(self, error: Exception) -> None:
        """Reported once, until a poll succeeds."""
        self._totals["failed_polls"] += 1
        self._failing += 1
        if self._failing == 1:
            self._sink.send([event.poll_failed(describe(error), now())])

    def _warn(self, malformed: list[bytes]) -> None:
        """Quoted once; after that rows are counted only."""
        if malformed and not self._totals["malformed_rows"]:
            self._sink.send([event.rows_malformed(malformed, now())])
        self._totals["malformed_rows"] += len(malformed)

    def _wait(self, deadline: float) -> bool:
        """Report what the trace tells until the deadline, feeding the watchdog; False when asked to stop."""
        while not self._asked_to_stop():
            self._notifier.alive()
            if time.monotonic() >= deadline:
                return True
            if self._sleep(deadline):
                self._report(self._drain())
        return False

    def _sleep(self, deadline: float) -> bool:
        """Until there is something to do or the deadline; True when the trace is to be drained."""
        started = time.monotonic()
        listening = started >= self._drain_after
        ends = [deadline, started + self._notifier.patience]
        if not listening:
            ends.append(self._drain_after)
        due = self._tracker.due
        if due is not None:
            ends.append(max(due / NANOSECONDS, self._drain_after))
        # Rounded up, or the last fraction of a millisecond would spin.
        ready = self._poll(listening).poll(max(0, int((min(ends) - started) * 1000)) + 1)
        if any(what & READER_GONE for descriptor, what in ready if descriptor == self._sink.fileno):
            raise BrokenPipeError
        traced = any(descriptor in self._descriptors(listening) for descriptor, _ in ready)
        return traced or (due is not None and time.monotonic_ns() >= due)

    def _poll(self, listening: bool) -> select.poll:
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        if self._sink.fileno is not None:
            poll.register(self._sink.fileno, 0)
        for descriptor in self._descriptors(listening):
            poll.register(descriptor, select.POLLIN)
        return poll

    def _descriptors(self, listening: bool) -> list[int]:
        return self._trace.descriptors if self._trace and listening else []

    def _asked_to_stop(self) -> bool:
        for number in self._signals.take():
            if number == signal.SIGHUP and self._notifier.supervised:
                self._notifier.reloaded()
            else:
                self._stopping = True
                self.hung_up = number == signal.SIGHUP
        return self._stopping

    def _status(self) -> str:
        source = f"{'Trace, and polling' if self._trace else 'Polling'} every {self._interval:g} s"
        missed = f", {self._totals['missed']} missed by the trace" if self._trace else ""
        counts = f"{self._totals['reported']} connections reported{missed}, {self._tracker.open} sockets open"
        trouble = f"; the last {self._failing} polls failed" if self._failing else ""
        return f"{source}; {counts}{trouble}"


def next_deadline(deadline: float, now: float, interval: float) -> float:
    """The next one of the deadlines, an interval apart, that has not passed."""
    return deadline + interval * (max(0.0, now - deadline) // interval + 1)


def describe(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) if isinstance(error, (TableError, TraceError)) else repr(error)


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000
