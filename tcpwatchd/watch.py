"""The loop: when to poll, to drain, to write and to stop."""

from __future__ import annotations

import select
import signal
import time
from typing import TYPE_CHECKING

from tcpwatchd import __version__, event
from tcpwatchd.line import describe, now

if TYPE_CHECKING:
    from tcpwatchd.line import Line
    from tcpwatchd.notify import Notifier
    from tcpwatchd.signals import Signals
    from tcpwatchd.sinks import Sink
    from tcpwatchd.tracefs import Trace

PAUSE = 0.02
"""Seconds between two drains: under load they are few and large."""
RETRY = 0.05
"""Seconds until a sink that was stuck is tried again."""
STATUS_PAUSE = 1.0
"""Seconds between two notes of what was reported, unless a poll brings one."""
LAST_WORDS = 1.0
"""Seconds at the end for what waits to be written."""
READER_GONE = select.POLLERR | select.POLLHUP
NANOSECONDS = 1_000_000_000


class Watch:
    """`interval` is in seconds; `untraced` is why there is no trace, if that is to be told."""

    def __init__(
        self,
        line: Line,
        sink: Sink,
        notifier: Notifier,
        signals: Signals,
        interval: float,
        trace: Trace | None = None,
        untraced: str | None = None,
    ) -> None:
        self._line = line
        self._reader = sink.fileno
        self._notifier = notifier
        self._signals = signals
        self._interval = interval
        self._trace = trace
        self._untraced = untraced
        self._stopping = False
        self.hung_up = False
        """Whether it was SIGHUP, in the foreground, that ended the watch."""
        self.unkept = 0
        """Connections that were found, and are neither written nor kept for the next start."""
        self._failing = self._failed_polls = 0
        self._deaf = False
        """Whether the last drain failed."""
        self._drain_after = self._status_after = 0.0

    def run(self) -> None:
        """Watch until asked to stop. Raises what the first poll or the sink raises."""
        deadline = time.monotonic()
        self._line.resume()
        self._line.say(event.watch_started(__version__, self._interval, self._line.ipv6, now()))
        if self._trace:
            self._line.say(event.trace_used(self._trace.path, now()))
        elif self._untraced:
            self._line.say(event.trace_unavailable(self._untraced, now()))
        self._line.poll()
        self._notifier.ready(self._status())
        while self._wait(deadline := next_deadline(deadline, time.monotonic(), self._interval)):
            self._tick()
            self._tell_status()
        self._notifier.stopping()
        self.unkept = self._line.finish(self._say_farewell, time.monotonic() + LAST_WORDS)

    def run_once(self) -> None:
        """Report what is open now. Raises what reading or the sink raises."""
        self._line.poll()
        while self._line.waiting and not self._asked_to_stop():
            self._line.send()

    def _tick(self) -> None:
        try:
            self._line.poll()
        except Exception as error:  # whatever went wrong, the next poll may go right
            self._fail(error)
            return
        if self._failing:
            self._line.say(event.poll_recovered(self._failing, now()))
            self._failing = 0

    def _fail(self, error: Exception) -> None:
        """Reported once, until a poll succeeds."""
        self._failed_polls += 1
        self._failing += 1
        if self._failing == 1:
            self._line.say(event.poll_failed(describe(error), now()))

    def _listen(self) -> None:
        """Hear what the trace has. What cannot be read stays in the kernel; that is told once."""
        try:
            self._drain_after = time.monotonic() + PAUSE
            self._line.drain()
        except Exception as error:  # whatever went wrong, the next drain may go right
            if not self._deaf:
                self._line.say(event.trace_failed(describe(error), now()))
            self._deaf = True
        else:
            self._deaf = False

    def _wait(self, deadline: float) -> bool:
        """Report what the trace tells until the deadline, feeding the watchdog; False when asked to stop."""
        while not self._asked_to_stop():
            self._notifier.alive()
            waited = self._line.waiting
            self._line.send()
            if waited and not self._line.waiting and time.monotonic() >= self._status_after:
                self._tell_status()
            busy = self._line.waiting > 0 and not self._line.stuck
            late = self._line.hasty or time.monotonic() >= deadline
            if late and not self._line.full:
                return True
            if self._sleep(deadline, busy):
                self._listen()
        return False

    def _sleep(self, deadline: float, busy: bool) -> bool:
        """Until there is something to do or the deadline; True when the trace is to be drained."""
        started = time.monotonic()
        if self._line.full:
            listening, due = False, None
            ends = [started + RETRY]
        else:
            listening, due = started >= self._drain_after, self._line.due
            ends = [deadline] if listening else [deadline, self._drain_after]
            if due is not None:
                ends.append(max(due / NANOSECONDS, self._drain_after))
        if self._line.stuck:
            ends.append(started + RETRY)
        ends.append(started + self._notifier.patience)
        # Rounded up, or the last fraction of a millisecond would spin.
        patience = 0 if busy else max(0, int((min(ends) - started) * 1000)) + 1
        ready = self._poll(listening).poll(patience)
        if any(what & READER_GONE for descriptor, what in ready if descriptor == self._reader):
            raise BrokenPipeError
        traced = any(descriptor in self._descriptors(listening) for descriptor, _ in ready)
        return traced or (due is not None and time.monotonic_ns() >= due)

    def _poll(self, listening: bool) -> select.poll:
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        if self._reader is not None:
            poll.register(self._reader, 0)
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

    def _tell_status(self) -> None:
        self._status_after = time.monotonic() + STATUS_PAUSE
        self._notifier.status(self._status())

    def _say_farewell(self, totals: dict[str, int]) -> event.Event:
        unwritten = self._line.count_waiting()
        return event.watch_stopped(
            {**totals, "failed_polls": self._failed_polls, "unwritten": unwritten}, now()
        )

    def _status(self) -> str:
        totals = self._line.totals
        source = f"{'Trace, and polling' if self._trace else 'Polling'} every {self._interval:g} s"
        missed = f"{totals['missed_trace']} missed by the trace"
        if not self._trace:
            missed = f"{totals['missed_inbound']} inbound and {totals['missed_outbound']} outbound missed"
        counts = f"{totals['reported']} connections reported, {missed}, {self._line.open} sockets open"
        trouble = f"; the last {self._failing} polls failed" if self._failing else ""
        if self._line.stuck:
            trouble += f"; {self._line.waiting} entries wait to be written"
        return f"{source}; {counts}{trouble}"


def next_deadline(deadline: float, now: float, interval: float) -> float:
    """The first of the deadlines, an interval apart, that has not passed."""
    return deadline + interval * max(0.0, (now - deadline) // interval + 1)
