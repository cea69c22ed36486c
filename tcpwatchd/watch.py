"""The loop: when to poll, to drain, to write and to stop."""

from __future__ import annotations

import contextlib
import math
import select
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd import __version__
from tcpwatchd.clock import boot_ns, now
from tcpwatchd.failure import Failure, describe
from tcpwatchd.output import event
from tcpwatchd.output.outbox import RETRY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tcpwatchd.kernel.trace import Trace
    from tcpwatchd.output.sinks import Sink
    from tcpwatchd.pipeline import Pipeline
    from tcpwatchd.service.notify import Notifier
    from tcpwatchd.service.signals import Signals

DRAIN_EVERY = 0.04
"""Seconds between two drains under load. What is held for 50 ms is written within 90 ms of its record."""
DRAIN_CREDIT = 0.2
"""Seconds of drains that may be made at once after a pause: while connections are few, none waits."""
EARLY_POLL_PAUSE = 1.0
"""Seconds between two polls that come before their time."""
CHECK_EVERY = 10.0
"""Seconds between two looks at how the trace is set up, where polls are fewer, for CPUs may have come online;
and at what was folded long enough to be written."""
STATUS_PAUSE = 1.0
"""Seconds between two notes of what was reported, unless a poll brings one."""
LAST_WORDS = 1.0
"""Seconds at the end for what waits to be written."""
ONCE_PATIENCE = 10.0
"""Seconds in which the journal may take nothing before reporting once is given up."""
PAGER_PATIENCE = 300.0
"""The same for whoever reads standard output: perhaps somebody who reads page by page."""
READER_GONE = select.POLLERR | select.POLLHUP
NANOSECONDS = 1_000_000_000


class Reloaded(NamedTuple):
    """What changed in the loop, and the settings that changed and take a restart."""

    interval: float
    needs_restart: list[str]


class Watch:
    """`interval` is in seconds; `no_trace_reason` is why there is no trace, if that is to be reported, and
    `no_resets` why there are no resets.

    `reload` reads the configuration again and applies it. It raises Failure, and changes nothing then.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        sink: Sink,
        notifier: Notifier,
        signals: Signals,
        interval: float,
        trace: Trace | None = None,
        no_trace_reason: str | None = None,
        no_resets: str | None = None,
        reload: Callable[[], Reloaded] | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._outbox = pipeline.outbox
        self._notifier = notifier
        self._signals = signals
        self._interval = interval
        self._trace = trace
        self._no_trace_reason = no_trace_reason
        self._no_resets = no_resets
        self._reload = reload
        self._poller = select.poll()
        self._poller.register(signals, select.POLLIN)
        self._reader = sink.fileno
        if self._reader is not None:
            self._poller.register(self._reader, 0)
        self._awaiting_trace = False
        """Whether the poller wakes for the trace."""
        self._poll_at = self._drain_at = self._status_at = time.monotonic()
        self._check_at = self._poll_at + CHECK_EVERY
        """From when on each may be done, in seconds of CLOCK_MONOTONIC."""
        self._status_behind = self._metrics_behind = False
        """Whether something was written since the status was told, and found since metrics were written."""
        self._polled_at = -math.inf
        """When the last poll ended."""
        self._started = self._polled_time = time.time()
        """When it was started, and last polled, in seconds since the epoch."""
        self._stopping = False
        self._failed_polls = self._failed_polls_in_a_row = 0
        self.hung_up = False
        """Whether it was SIGHUP, in the foreground, that ended the watch."""
        self.lost_at_end = 0
        """Connections that were found, and are neither written nor kept for the next start."""

    def run(self) -> None:
        """Watch until asked to stop. Raises what the first poll or the sink raises."""
        self._pipeline.resume()
        self._pipeline.report(event.watch_started(__version__, self._interval, self._pipeline.ipv6, now()))
        if self._trace:
            trace = self._trace
            known = trace.tells_owners, trace.no_owners, self._no_resets
            self._pipeline.report(event.trace_used(trace.path, trace.buffer_kb, *known, now()))
        elif self._no_trace_reason:
            self._pipeline.report(event.trace_unavailable(self._no_trace_reason, now()))
        self._pipeline.poll()
        self._polled_time = time.time()
        self._set_next_poll()
        # First, so that what is ordered after this unit finds them.
        self._write_metrics()
        self._metrics_behind = True
        self._notifier.ready(self._status())
        while not self._is_asked_to_stop():
            self._notifier.feed_watchdog()
            self._send()
            self._check()
            if self._is_poll_due():
                self._poll()
            elif self._wait_until(self._find_deadline()):
                self._drain()
        self._notifier.stopping()
        if (self._trace is None or self._pipeline.trace_in_trouble) and not self._outbox.full:
            self._poll()
        with self._counting_lost():
            until = time.monotonic() + LAST_WORDS
            self.lost_at_end = self._pipeline.finish(self._describe_end, until, self._write_metrics)

    def run_once(self) -> None:
        """Report what is open now. Raises what reading or the sink raises, and Failure if that is stuck."""
        self._pipeline.poll()
        self._pipeline.settle(everything=True)
        with self._counting_lost():
            patience = ONCE_PATIENCE if self._reader is None else PAGER_PATIENCE
            give_up_at = time.monotonic() + patience
            while self._outbox.waiting and not self._is_asked_to_stop():
                written = self._outbox.total
                self._pipeline.send()
                if self._outbox.total != written:
                    give_up_at = time.monotonic() + patience
                elif time.monotonic() >= give_up_at:
                    raise Failure(f"nothing was taken for {patience:g} s")
                if self._outbox.stuck:
                    self._wait_until(time.monotonic() + RETRY)
        self.lost_at_end = self._outbox.count_waiting()

    @contextlib.contextmanager
    def _counting_lost(self) -> Iterator[None]:
        """When it is no use to write, what was found is kept, or counted; a reader that left saw enough."""
        try:
            yield
        except BrokenPipeError:
            raise
        except (OSError, Failure):
            self.lost_at_end = self._pipeline.keep()
            raise

    def _send(self) -> None:
        """Write a batch; the status follows when no more can be written, but not at once again."""
        if self._outbox.waiting:
            with self._counting_lost():
                self._pipeline.send()
            self._status_behind = True
        if self._metrics_behind and self._status_settled:
            self._write_metrics()
        if self._status_behind and self._status_settled and time.monotonic() >= self._status_at:
            self._notify_status()

    @property
    def _status_settled(self) -> bool:
        """Whether there is nothing to write, or nobody takes it."""
        return not self._outbox.waiting or self._outbox.stuck

    def _is_poll_due(self) -> bool:
        return time.monotonic() >= self._find_next_poll() and not self._outbox.full

    def _find_next_poll(self) -> float:
        """A poll comes early when too much is remembered, but no poll may be able to cure that."""
        early = self._polled_at + EARLY_POLL_PAUSE
        return min(self._poll_at, early) if self._pipeline.poll_overdue else self._poll_at

    def _set_next_poll(self) -> None:
        self._poll_at = next_deadline(self._poll_at, time.monotonic(), self._interval)

    def _poll(self) -> None:
        """A failure is reported once, until a poll succeeds."""
        try:
            self._pipeline.poll()
        except Exception as error:  # whatever went wrong, the next poll may go right
            self._failed_polls += 1
            self._failed_polls_in_a_row += 1
            if self._failed_polls_in_a_row == 1:
                self._pipeline.report(event.poll_failed(describe(error), now()))
        else:
            if self._failed_polls_in_a_row:
                self._pipeline.report(event.poll_recovered(self._failed_polls_in_a_row, now()))
            self._failed_polls_in_a_row = 0
            self._polled_time = time.time()
            self._check_at = time.monotonic() + CHECK_EVERY
        self._polled_at = time.monotonic()
        self._set_next_poll()
        self._notify_status()
        self._write_metrics()
        self._metrics_behind = True

    def _write_metrics(self) -> None:
        """At a poll, and again when what it found is written."""
        self._metrics_behind = False
        others: dict[str, dict[str, float]] = {
            "build_info": {__version__: 1},
            "start_time_seconds": {"": self._started},
            "last_poll_timestamp_seconds": {"": self._polled_time},
            "poll_interval_seconds": {"": self._interval},
        }
        self._pipeline.write_metrics(others, self._failed_polls)

    def _check(self) -> None:
        """If no poll did it for some time."""
        moment = time.monotonic()
        if moment >= self._check_at and not self._outbox.full:
            self._check_at = moment + CHECK_EVERY
            self._pipeline.check_trace()
            self._pipeline.settle()
            self._metrics_behind = True
        elif moment >= self._find_next_settling(moment) and not self._outbox.full:
            self._pipeline.settle()

    def _drain(self) -> None:
        self._drain_at = max(self._drain_at, time.monotonic() - DRAIN_CREDIT) + DRAIN_EVERY
        self._pipeline.drain()

    def _find_deadline(self) -> float:
        """When there is something to do even if nothing comes, in seconds of CLOCK_MONOTONIC."""
        moment = time.monotonic()
        deadlines = [self._notifier.feed_at]
        if self._status_behind and self._notifier.supervised and self._status_settled:
            deadlines.append(self._status_at)
        if self._outbox.waiting:
            deadlines.append(moment + RETRY if self._outbox.stuck else moment)
        if not self._outbox.full:
            deadlines.append(self._find_next_poll())
            deadlines.append(self._check_at)
            deadlines.append(self._find_next_settling(moment))
            deadlines.append(self._find_next_drain(moment))
        return min(deadlines)

    def _find_next_settling(self, moment: float) -> float:
        """When a scan is to be told, or is over."""
        return to_monotonic(self._pipeline.next_settling, moment)

    def _find_next_drain(self, moment: float) -> float:
        """When to drain though the trace wakes nobody: after a pause, and when a held report is released."""
        if not self._trace:
            return math.inf
        if moment < self._drain_at:
            return self._drain_at
        return to_monotonic(self._pipeline.next_release, moment)

    def _wait_until(self, deadline: float) -> bool:
        """Until something comes, or the deadline; whether the trace is to be drained."""
        moment = time.monotonic()
        paused = moment < self._drain_at
        self._await_trace(not paused and not self._outbox.full)
        # Rounded up, or the last fraction of a millisecond would spin.
        ready = dict(self._poller.poll(max(0, math.ceil((deadline - moment) * 1000))))
        if self._reader is not None and ready.get(self._reader, 0) & READER_GONE:
            raise BrokenPipeError
        if not self._trace or self._outbox.full:
            return False
        moment = time.monotonic()
        pause_over = paused and moment >= self._drain_at
        return pause_over or self._trace.fileno() in ready or moment >= self._find_next_drain(moment)

    def _await_trace(self, wanted: bool) -> None:
        if self._trace and wanted != self._awaiting_trace:
            if wanted:
                self._poller.register(self._trace, select.POLLIN)
            else:
                self._poller.unregister(self._trace)
            self._awaiting_trace = wanted

    def _is_asked_to_stop(self) -> bool:
        reload = False
        for number in self._signals.take():
            if number == signal.SIGHUP and self._notifier.supervised:
                reload = True
            else:
                self._stopping = True
                self.hung_up = number == signal.SIGHUP
        if reload and not self._stopping:
            self._read_configuration()
        return self._stopping

    def _read_configuration(self) -> None:
        """Again; a wrong one changes nothing."""
        if not self._reload:
            return
        self._notifier.reloading()
        try:
            self._interval, needs_restart = self._reload()
        except Exception as error:  # whatever went wrong, what is in force stays
            self._pipeline.report(event.reload_failed(describe(error), now()))
        else:
            self._poll_at = min(self._poll_at, time.monotonic() + self._interval)
            self._pipeline.report(event.reloaded(needs_restart, now()))
        self._notifier.ready(self._status())

    def _notify_status(self) -> None:
        self._status_at = time.monotonic() + STATUS_PAUSE
        self._status_behind = False
        self._notifier.status(self._status())

    def _describe_end(self, totals: dict[str, int]) -> event.Event:
        return event.watch_stopped({**totals, "failed_polls": self._failed_polls}, now())

    def _status(self) -> str:
        totals = self._pipeline.totals
        polling = "Only polling" if self._no_trace_reason else "Polling"
        source = f"{'Trace, and polling' if self._trace else polling} every {self._interval:g} s"
        missed = f"{totals['missed_trace']} missed by the trace"
        if totals["missed_inbound"]:
            missed += f", at least {totals['missed_inbound']} by polls too"
        if totals["records_lost"]:
            missed += f", {event.count(totals['records_lost'], 'record')} lost"
        if not self._trace:
            inbound, outbound = totals["missed_inbound"], totals["missed_outbound"]
            missed = f"{inbound} inbound and at most {outbound} outbound missed"
        reported = event.describe_totals(totals)
        here = event.count(self._pipeline.open, "open socket")
        scans = f", {event.count(totals['port_scans'], 'port scan')}" if totals["port_scans"] else ""
        counts = f"{reported} since the start, {missed}{scans}; {here} here"
        trouble = ""
        if self._failed_polls_in_a_row:
            trouble += f"; {event.count(self._failed_polls_in_a_row, 'poll')} failed since the last good one"
        if self._pipeline.trace_in_trouble:
            trouble += "; the trace cannot be used now"
        if totals["unwritten"]:
            trouble += f"; waiting to be written: {totals['unwritten']}"
        return f"{source}; {counts}{trouble}"


def to_monotonic(time_of_boot: int | None, moment: float) -> float:
    """Of nanoseconds of CLOCK_BOOTTIME, if any; `moment` is now."""
    return math.inf if time_of_boot is None else moment + (time_of_boot - boot_ns()) / NANOSECONDS


def next_deadline(deadline: float, now: float, interval: float) -> float:
    """The first of the deadlines, an interval apart, that has not passed."""
    return deadline + interval * max(0.0, (now - deadline) // interval + 1)
