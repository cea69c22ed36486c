"""The line of data, where the stages meet: rows and transitions in, new connections out.

What was taken out of the kernel is put aside before it is heard, and what was found is kept before it is
written: the store always has what a next process needs to go on.
"""

from __future__ import annotations

import operator
import time
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd import event
from tcpwatchd.audit import Audit
from tcpwatchd.baseline import Baseline, BaselineError
from tcpwatchd.connection import Written
from tcpwatchd.instance import TraceError
from tcpwatchd.outbox import Outbox, split_written
from tcpwatchd.pages import Decoder
from tcpwatchd.procnet import TableError, Tables
from tcpwatchd.tracker import Tracker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tcpwatchd.connection import Drain, Transition
    from tcpwatchd.event import Event
    from tcpwatchd.sinks import Sink
    from tcpwatchd.store import Log, Store
    from tcpwatchd.tracefs import Trace

FOREVER = 2**63


class Rest(NamedTuple):
    """What put aside drains leave: how many records had been taken out, and those for the next drain."""

    taken: dict[int, int]
    early: list[Transition]


class Line:
    """From both sources to the sink.

    `trace` is None where only the tables are to be had; `alive` is called between the stages of a poll, which
    may take long; `root` is the directory of tables and counters.
    """

    def __init__(
        self,
        sink: Sink,
        store: Store,
        trace: Trace | None,
        alive: Callable[[], None] = lambda: None,
        root: str = "/proc/self/net",
    ) -> None:
        self._alive = alive
        self._tables = Tables(root)
        self._tracker = Tracker()
        self._audit = Audit(root)
        self._outbox = Outbox(sink)
        self._store = store
        self._trace = trace
        self._decoder = Decoder(trace.formats, trace.count_taken()) if trace else None
        self._instance = trace.instance if trace else None
        self._drained = now()
        self._unbroken = False
        """Whether the trace has been filling since the snapshot before."""
        self._changed = True
        """Whether there is anything that the baseline and its log do not have."""
        self._saved = Written(0, 0, 0)
        """What was written when the baseline was saved."""
        self._complained = False
        self._totals = dict.fromkeys(("missed_trace", "missed_inbound", "missed_outbound"), 0)
        self._totals |= dict.fromkeys(("records_lost", "malformed_rows"), 0)

    @property
    def totals(self) -> dict[str, int]:
        """Since the start of this process, but for what had been found before and is written now."""
        written, opened = self._outbox.written, self._audit.opened
        by_source = {f"reported_{source}": count for source, count in written.items()}
        return {
            "reported": sum(written.values()),
            **by_source,
            **self._totals,
            "opened_inbound": opened.inbound,
            "opened_outbound": opened.outbound,
        }

    @property
    def ipv6(self) -> bool:
        """Whether there is a table of IPv6."""
        return self._tables.ipv6

    @property
    def open(self) -> int:
        """Sockets with an open connection in the last snapshot."""
        return self._tracker.open

    @property
    def due(self) -> int | None:
        """When the first report that is held is released, nanoseconds of CLOCK_MONOTONIC."""
        return self._tracker.due

    @property
    def stuck(self) -> bool:
        """Whether the sink took nothing when it was last offered something."""
        return self._outbox.stuck

    @property
    def waiting(self) -> int:
        """Events that wait for the sink."""
        return len(self._outbox.waiting)

    def count_waiting(self) -> int:
        """Connections that wait for the sink."""
        return self._outbox.count_waiting()

    @property
    def full(self) -> bool:
        """Whether so much waits that nothing more should be taken in."""
        return self._outbox.full

    @property
    def hasty(self) -> bool:
        """Whether so much is remembered since the last poll that the next should not wait."""
        return self._tracker.full or self._store.full

    def say(self, *events: Event) -> None:
        self._outbox.add(events)

    def poll(self) -> None:
        """Find what is new, and keep it. Raises OSError, TableError and CountersError."""
        counters = self._audit.read()
        snapshot = self._tables.read_snapshot(self._tracker.heard)
        self._alive()
        self.drain()
        self._tables.keep()
        polled = self._tracker.find_new(snapshot)
        self._alive()
        self._outbox.add(polled)
        missed = self._audit.compare(counters, () if self._trace else polled, snapshot.connecting)
        if self._trace:
            self._totals["missed_trace"] += sum(new.detected_by == "poll" for new in polled) * self._unbroken
            self._unbroken = True
        elif any(missed):
            self.say(event.connections_missed(*missed, now()))
            self._totals["missed_inbound"] += missed.inbound
            self._totals["missed_outbound"] += missed.outbound
        self._warn(snapshot.malformed)
        self._changed |= bool(snapshot.fresh or snapshot.gone)
        self._save()
        self._alive()

    def drain(self) -> None:
        """Take out what the trace has, put it aside, and hear it. Raises OSError."""
        if self._trace and self._decoder:
            drain = self._trace.drain()
            self._drained = now()
            self._keep(lambda: self._store.put_aside(drain))
            self._tell_lost(self._hear(drain, self._decoder))
            self._outbox.add(self._tracker.release(time.monotonic_ns()))

    def _hear(self, drain: Drain, decoder: Decoder) -> int:
        """How many records were lost."""
        heard, lost = decoder.take(drain)
        self._tracker.hear(heard, lost > 0, self._tables.holds)
        self._changed |= bool(drain.pages)
        return lost

    def _tell_lost(self, records: int) -> None:
        if records:
            self._totals["records_lost"] += records
            self.say(event.records_lost(records, now()))

    def _warn(self, malformed: list[bytes]) -> None:
        """Quoted once; after that rows are counted only."""
        if malformed and not self._totals["malformed_rows"]:
            self.say(event.rows_malformed(malformed, now()))
        self._totals["malformed_rows"] += len(malformed)

    def send(self) -> None:
        """Write a batch, as far as the sink takes it, and mark it as written. Raises OSError."""
        before = self._outbox.total
        self._outbox.send()
        total = self._outbox.total
        if total != before:
            self._changed = True
            written = Written(*map(operator.sub, total, self._saved))
            self._keep(lambda: self._store.mark(written))

    def finish(self, farewell: Callable[[dict[str, int]], Event], until: float) -> int:
        """Write what can be written until then, in seconds of CLOCK_MONOTONIC; the rest is kept.

        Returns how many connections could be neither written nor kept.

        What the kernel holds, and what the last drain left for the next one, is the next process's; where
        nothing is kept, there will be none.
        """
        if self._decoder and not self._store.enabled:
            self._tracker.hear(self._decoder.take_rest(), False, self._tables.holds)
        self._outbox.add(self._tracker.release(FOREVER))
        self._send_all(until)
        self.say(farewell(self.totals))
        self._send_all(until)
        self._changed = True
        return 0 if self._save() else self._outbox.count_waiting()

    def _send_all(self, until: float) -> None:
        while self._outbox.waiting and time.monotonic() < until:
            self.send()

    def resume(self) -> None:
        """Go on from where the process before ended, if it left anything."""
        try:
            kept = self._store.load()
            if kept and kept[0].saved > time.monotonic_ns():
                raise BaselineError("it was saved before this machine was booted")
        except (OSError, BaselineError) as error:
            self._complain(error)
            kept = None
        if kept:
            self._restore(*kept)
        self._save()

    def _restore(self, baseline: Baseline, log: Log) -> None:
        self._tables.restore(baseline.blocks)
        self._tracker = Tracker(baseline.known)
        self._audit.restore(baseline.counters)
        waiting, written = split_written(baseline.waiting, log.written)
        self._outbox.add(waiting)
        lost, last = self._replay(baseline, log)
        self._outbox.add(self._tracker.release(time.monotonic_ns()))
        told = self._outbox.drop(written.connections, written.lost)
        if log.damage:
            self._complain(BaselineError(log.damage))
        if self._trace and self._decoder and self._trace.instance == baseline.instance:
            self._unbroken = True
            # Read by the process before and not put aside: it ended between the two.
            lost += sum(records - last.taken.get(cpu, 0) for cpu, records in self._decoder.taken.items())
            self._decoder.early = last.early
        else:
            self._tracker.hear(last.early, False, self._tables.holds)
            self._change_instance(baseline.instance, max(baseline.drained, log.until if log.formats else 0))
        if lost > told or not self._unbroken:
            self._tracker.forget_handshakes()
        self._tell_lost(max(0, lost - told))

    def _replay(self, baseline: Baseline, log: Log) -> tuple[int, Rest]:
        """Hear what was put aside since the baseline; how many records were lost, and what is left."""
        if not log.formats:
            return 0, Rest(baseline.taken, baseline.early)
        decoder, lost = Decoder(log.formats, baseline.taken, baseline.early), 0
        for drain in log.drains:
            lost += self._hear(drain, decoder)
        return lost, Rest(decoder.taken, decoder.early)

    def _change_instance(self, last: int | None, until: int) -> None:
        """The trace that was read until then is not the one that is in use now, if any is."""
        if self._trace and last is not None:
            self.say(event.trace_gap(until, now()))
        elif not self._trace:
            self._instance, self._drained = last, until

    def _save(self) -> bool:
        """Whether the store has all."""
        if not self._store.enabled:
            return False
        if not self._changed:
            return self._keep(self._store.touch)
        known = self._tracker.known
        early, taken = (self._decoder.early, self._decoder.taken) if self._decoder else ([], {})
        baseline = Baseline(
            time.monotonic_ns(),
            0,
            self._instance,
            self._drained,
            taken,
            early,
            known,
            list(self._outbox.waiting),
            self._audit.counters,
            self._tables.blocks,
        )
        formats = self._trace.formats if self._trace else None
        if not self._keep(lambda: self._store.save(baseline, formats)):
            return False
        self._saved = self._outbox.total
        # These are forgotten by the next poll though nothing may be new in it.
        self._changed = bool(known.away or known.heard or known.reports or early)
        return True

    def _keep(self, keep: Callable[[], None]) -> bool:
        """Without what could not be kept all goes on, and is told once."""
        try:
            keep()
        except OSError as error:
            self._complain(error)
            return False
        return True

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            self.say(event.baseline_unusable(describe(error), now()))


def describe(error: Exception) -> str:
    """An error in one line."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) if isinstance(error, (TableError, TraceError, ValueError)) else repr(error)


def now() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000
