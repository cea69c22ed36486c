"""The line of data, where the stages meet: rows and transitions in, new connections out."""

from __future__ import annotations

import contextlib
import errno
import math
import time
from typing import TYPE_CHECKING

from tcpwatchd.clock import boot_ns, now
from tcpwatchd.connection import Connection
from tcpwatchd.failure import Failure, describe
from tcpwatchd.kernel.addresses import read_addresses
from tcpwatchd.kernel.counters import read_counters
from tcpwatchd.kernel.pages import Decoder
from tcpwatchd.kernel.tables import Tables
from tcpwatchd.output import event
from tcpwatchd.output.metrics import SCAN_TOTALS, format_metrics
from tcpwatchd.output.outbox import MICROSECOND, RETRY, Outbox
from tcpwatchd.policy.policy import Policy, Selection
from tcpwatchd.policy.scans import Scans
from tcpwatchd.state.recovery import Recovery, Stages
from tcpwatchd.tracking.audit import Audit
from tcpwatchd.tracking.closings import Closings
from tcpwatchd.tracking.tracker import FOREVER, Tracker

if TYPE_CHECKING:
    from collections.abc import Callable

    from tcpwatchd.connection import Gone, Report, Snapshot
    from tcpwatchd.kernel.resets import Resets
    from tcpwatchd.kernel.trace import Trace
    from tcpwatchd.output.event import Event
    from tcpwatchd.output.sinks import Sink
    from tcpwatchd.owners.owners import Owners
    from tcpwatchd.state.store import Store

REPORT_ALL = Selection()
SETTLE_PAUSE = 1_000_000_000
"""Nanoseconds between two times that scans are told, for what was told is saved."""
RESETS_PAUSE = 1.0
"""Seconds between two looks at resets that were sent, while connections come."""
LOSS_PAUSE = 1.0
"""Seconds between two reports of lost records, while they go on being lost."""
TALLY_EVERY = 3_600_000_000_000
"""Nanoseconds between two counts of what was ignored and folded."""
OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Pipeline:
    """From both sources to the sink.

    `trace` is None where only the tables are to be had; `feed_watchdog` is called between the stages of a
    poll, which may take long; `root` is the directory of tables and counters. `report` is as in `Closings`.
    """

    def __init__(
        self,
        sink: Sink,
        store: Store,
        trace: Trace | None,
        owners: Owners,
        message_owner: bool = False,
        feed_watchdog: Callable[[], None] = lambda: None,
        root: str = "/proc/self/net",
        report: Report = "opened",
        selection: Selection = REPORT_ALL,
        resets: Resets | None = None,
    ) -> None:
        self._feed_watchdog, self._root, self._store = feed_watchdog, root, store
        self._trace, self._resets, self._selection = trace, resets, selection
        self._decoder = Decoder(trace.formats, trace.taken) if trace else None
        self._tables, self._owners = Tables(root), owners
        self._tracker = Tracker(owners.network, follows_closing=report != "opened")
        tells_owners = trace is not None and trace.tells_owners
        self._policy = Policy(*selection[:2], boot_ns(), owners.network, by_owner=tells_owners)
        self._closings = Closings(report, owners.network, tells_owners)
        self._scans = Scans(selection.scan, hears_resets=resets is not None)
        self._read_addresses()
        self._audit = Audit()
        self.outbox = Outbox(sink, message_owner=message_owner, closing=report != "opened")
        tracking = self._tracker, self._audit, self._scans, self._policy, owners, self._closings
        self._stages = Stages(self._tables, *tracking, self.outbox, trace, self._decoder)
        self._recovery = Recovery(store, self._stages)
        self._counted_until = FOREVER
        """Until when the counters tell that are compared next, nanoseconds of CLOCK_BOOTTIME."""
        self._trace_unbroken = False
        """Whether the trace has been read since the snapshot before."""
        self._drain_failing = self._counters_failing = self._owners_failing = self._resets_failing = False
        """Whether each could not be read when it was last tried."""
        self._owners_failed_since_poll = self._resets_unread = self._metrics_failing = False
        self._settled_at = self._most_outbound = 0
        self._drained_whole = True
        """Whether the last drain left nothing behind that was older than it."""
        self._lost_unreported = 0
        """Records that were lost and are to be reported."""
        self._report_lost_at = self._read_resets_at = -math.inf
        """From when on losses are reported, and resets are read as connections come: CLOCK_MONOTONIC."""
        self._sound_at = now()
        """When the instance was last found to be what it was set up to be."""
        self._unsound_since: int | None = None
        """When it was last found to be so, if it is not."""
        self._sound_since_poll = True
        """Whether each check since the poll before found it so."""
        counted = "missed_trace", "missed_inbound", "missed_outbound", "records_lost", "malformed_rows"
        self._totals = dict.fromkeys(counted, 0)

    def resume(self) -> None:
        """Go on from where the process before ended, if it left anything."""
        self._totals["records_lost"], self._trace_unbroken = self._recovery.resume()
        if self._resets and self._scans.read[0] == self._resets.instance:
            slipped = self._resets.total - self._scans.read[1]
            if slipped > 0:  # read by a process that was killed
                self._scans.note_loss(boot_ns(), slipped)
        self.switch(self._selection)

    def switch(self, selection: Selection) -> None:
        """From now on report by this; what was folded, ignored and counted by another is told."""
        rules, limit, scan = selection
        if scan != self._scans.limits:
            self._tell_scans(boot_ns(), everything=True)
            self._scans.switch(scan)
            self._recovery.changed = True
        if not self._policy.is_of(rules, limit):
            self._settle(everything=True)
            self._policy.switch(rules, limit)
            self._recovery.changed = True
            self._recovery.save()

    def poll(self) -> None:
        """Find what is new, and keep it. Raises OSError and TableError: those of the tables.

        A trace or counters that cannot be read do not keep the tables from being judged.
        """
        counted = boot_ns()
        counters = self._read_counters()
        self.check_trace()
        snapshot = self._tables.read_snapshot()
        trace_sound = self._trace is not None and self._sound_since_poll
        self._sound_since_poll = self._unsound_since is None
        self._feed_watchdog()
        if self._trace or snapshot.fresh:
            self._read_addresses()
        self._counted_until = counted
        self.drain()
        self._counted_until = FOREVER
        unchanged = self._tables.find_unchanged(self._tracker.awaiting_row)
        records_may_follow = self._trace is not None and not (self._drained_whole and trace_sound)
        new = self._tracker.find_new(snapshot, unchanged, records_may_follow)
        self._tables.keep()
        self._feed_watchdog()
        self.outbox.add(self._stages.select(new))
        if records_may_follow:
            self._closings.note_loss(snapshot.started)
        closed = self._closings.compare(self._list_gone(), self._stages.shows, snapshot.ended)
        self.outbox.add(self._policy.fold(closed))
        self._owners.note_poll(self._tracker.listeners, snapshot.started)
        self._note_owners(polled=True)
        self._count_missed(counters, snapshot, new, trace_sound)
        self._report_malformed(snapshot.malformed)
        self._report_lost()
        self._recovery.changed |= bool(snapshot.fresh or snapshot.gone)
        self._settle()
        self._recovery.save()
        self._feed_watchdog()

    def settle(self, everything: bool = False) -> None:
        """Between polls: have written what was folded long enough, scans that were found, and once an hour
        how much was not written.

        What is written so is kept at once. Otherwise another process, after a kill, could not know that it
        was.
        """
        self.drain()
        if self._settle(everything):
            self._recovery.save()

    def _settle(self, everything: bool = False) -> bool:
        """Whether there was anything."""
        self._follow_resets()
        moment = boot_ns()
        entries = self._policy.settle(moment, everything)
        self.outbox.add(entries)
        # What goes on is told by the next process, if there can be one.
        told = self._tell_scans(moment, everything and not self._store.enabled)
        told |= (everything or moment - self._policy.since >= TALLY_EVERY) and self._tell_tally(moment)
        self._recovery.changed |= bool(entries) or told
        return bool(entries) or told

    def _tell_scans(self, moment: int, everything: bool) -> bool:
        """Whether there is anything to tell; `moment` is now, nanoseconds of CLOCK_BOOTTIME."""
        self._settled_at = moment
        scans = self._scans.settle(moment, everything)
        unfollowed = self._scans.take_unfollowed(moment, everything)
        for scan in scans:
            first, last = (now() - (moment - time) // MICROSECOND for time in (scan.first, scan.last))
            self.report(event.port_scan(scan, first, last, now()))
        if unfollowed:
            self.report(event.scans_unfollowed(unfollowed, now()))
        return bool(scans or unfollowed)

    def _follow_resets(self) -> None:
        if not self._resets or self._scans.limits is None:
            return
        self._read_resets_at = time.monotonic() + RESETS_PAUSE
        try:
            resets, lost, failure = self._resets.read()
            self._scans.follow_resets(resets, lost, boot_ns())
            self._scans.read = self._resets.instance, self._resets.total
            self._recovery.changed |= bool(resets)
        except Exception as error:  # whatever went wrong, the next time it may go right
            failure = error
        self._resets_unread = failure is not None
        if failure:
            self._note_resets_failing(failure)

    def _check_resets(self) -> None:
        """See whether they are recorded as they should be."""
        if not self._resets or self._scans.limits is None:
            return
        try:
            self._resets.check()
        except (OSError, ValueError, Failure) as error:
            self._scans.note_loss(boot_ns(), 0)
            self._note_resets_failing(error)
        else:
            if self._resets_failing and not self._resets_unread:
                self.report(event.resets_recovered(now()))
                self._resets_failing = False

    def _note_resets_failing(self, failure: Exception) -> None:
        if not self._resets_failing:
            self.report(event.resets_failed(describe(failure), now()))
        self._resets_failing = True

    def _read_addresses(self) -> None:
        self._tracker.addresses = self._scans.addresses = read_addresses(self._root)

    def _tell_tally(self, moment: int) -> bool:
        """Whether there is anything to tell; `moment` is now, nanoseconds of CLOCK_BOOTTIME."""
        tally = self._policy.take_tally(moment)
        if tally.is_empty:
            return False
        ignored = [(f"{rule.path}:{rule.line}", number) for rule, number in tally.ignored]
        since = now() - (moment - tally.since) // MICROSECOND
        folded = tally.folded, tally.folded_closed
        self.report(event.connections_counted(since, ignored, *folded, self.totals, now()))
        return True

    def drain(self) -> None:
        """Take out what the trace has, log it, and follow it.

        A failure is reported once, and when it is over. What was not taken out stays in the kernel; what was,
        and could not be followed, is counted as lost by the next drain.
        """
        if not self._trace or not self._decoder:
            return
        try:
            failure = self._follow_trace(self._trace, self._decoder)
        except Exception as error:  # whatever went wrong, the next drain may go right
            failure, self._drained_whole = error, False
        if failure and not self._drain_failing:
            self.report(event.trace_failed(describe(failure), now()))
        elif self._drain_failing and not failure:
            self.report(event.trace_recovered(now()))
        self._drain_failing = failure is not None

    def _follow_trace(self, trace: Trace, decoder: Decoder) -> Exception | None:
        """Returns why a part of it could not be read."""
        drain = trace.drain()
        self._recovery.log_drain(drain)
        transitions, lost = decoder.decode(drain)
        self._stages.follow_records(decoder.take_groups(), transitions, lost > 0)
        self._tracker.follow(transitions, lost > 0, self._tables.holds, drain.whole, drain.began)
        self._drained_whole = drain.whole
        self._totals["records_lost"] += lost
        self._lost_unreported += lost
        if time.monotonic() >= self._report_lost_at:
            self._report_lost()
        self._take_released(boot_ns())
        self._note_owners()
        if transitions and time.monotonic() >= self._read_resets_at:
            self._follow_resets()
        return drain.failure

    def _note_owners(self, polled: bool = False) -> None:
        """A failure to find owners is reported once, and that it is over when none came from poll to poll."""
        failure = self._owners.take_failure()
        self._owners_failed_since_poll |= failure is not None
        if failure and not self._owners_failing:
            self._owners_failing = True
            self.report(event.owners_failed(describe(failure), now()))
        if polled:
            if self._owners_failing and not self._owners_failed_since_poll:
                self._owners_failing = False
                self.report(event.owners_recovered(now()))
            self._owners_failed_since_poll = False

    def check_trace(self) -> None:
        """See whether the instance is still what it was set up to be, and repair it where that may be done.

        Whoever traces as root can change it. For the time from when it was last found sound only polls are to
        be trusted.
        """
        if not self._trace or not self._decoder:
            return
        self._check_resets()
        try:
            fault = self._find_fault(self._trace, self._decoder)
            if fault:
                self._note_fault(fault)
                with contextlib.suppress(OSError):  # the service may not
                    self._trace.repair()
                    fault = self._find_fault(self._trace, self._decoder)
            if not fault:
                self._note_sound(self._trace, self._decoder)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in OUT_OF_RESOURCES:
                self._sound_since_poll = False  # not known: the next check may find it out
            else:
                self._note_fault(describe(error))

    def _find_fault(self, trace: Trace, decoder: Decoder) -> str | None:
        """Raises OSError and ValueError when that cannot be found out."""
        try:
            trace.check()
        except Failure as error:
            return describe(error)
        taken = trace.count_handed_over()
        decoder.compare(taken)
        if decoder.counted_anew:
            decoder.start_anew(taken)
            return f"{trace.path}: its buffers were emptied"
        return None

    def _note_fault(self, fault: str) -> None:
        self._owners.forget_listeners()
        if self._unsound_since is None:
            self.report(event.trace_changed(fault, now()))
            self._unsound_since = self._recovery.unsound_since = self._sound_at
            self._recovery.changed = True
        self._sound_since_poll = False

    def _note_sound(self, trace: Trace, decoder: Decoder) -> None:
        if self._unsound_since is not None:
            self.report(event.trace_gap(self._unsound_since, now()))
            self._unsound_since = self._recovery.unsound_since = None
            self._recovery.changed = True
            # Buffers that were emptied until now, as by another clock, are no further change.
            decoder.start_anew(trace.count_handed_over())
        self._sound_at = now()

    def _take_released(self, until: int) -> None:
        released = self._tracker.release(until)
        opened = [item for item in released if isinstance(item, Connection)]
        self._audit.add_found(opened, self._counted_until)
        self.outbox.add(self._stages.select(released))

    def _list_gone(self) -> list[Gone]:
        """But for those of which a record waits, which tells more."""
        deferred = self._decoder.deferred if self._decoder else []
        waiting = self._tracker.closing.union(record.end for record in deferred)
        return [gone for gone in self._tracker.gone if gone.end not in waiting]

    def _read_counters(self) -> list[int] | None:
        """None where they are not to be had, which is reported once, and when it is over."""
        try:
            counters = read_counters(self._root)
        except (OSError, Failure) as error:
            if not self._counters_failing:
                self.report(event.counters_failed(describe(error), now()))
            self._counters_failing = True
            self._audit.start_anew()
            return None
        if self._counters_failing:
            self.report(event.counters_recovered(now()))
            self._counters_failing = False
        return counters

    def send(self) -> None:
        """Write a batch, as far as the sink takes it, and mark it as written. Raises OSError."""
        before = self.outbox.total
        self.outbox.send()
        if self.outbox.total != before:
            self._recovery.log_written()

    def finish(
        self,
        describe_end: Callable[[dict[str, int]], Event],
        until: float,
        write_metrics: Callable[[], None] = lambda: None,
    ) -> int:
        """Write what can be written until then, in seconds of CLOCK_MONOTONIC; the rest is kept. The metrics
        come between, when all counts are what they will be.

        Returns how many connections could be neither written nor kept.

        What the last drain leaves for the next one is the next process's; where nothing is kept, there will
        be none.
        """
        self.drain()
        if self._decoder and not self._store.enabled:
            deferred = self._decoder.take_deferred()
            self._stages.follow_records([], deferred, False)
            self._tracker.follow(deferred, False, self._tables.holds)
        self._take_released(FOREVER)
        self._report_lost()
        self.settle(everything=True)
        self._send_all(until)
        write_metrics()
        unreported = 0 if self._store.enabled else self._closings.unreported
        self.report(describe_end({**self.totals, "unreported": unreported}))
        self._send_all(until)
        return self.keep()

    def keep(self) -> int:
        """Keep what waits for the next process; how many connections could not be kept."""
        self._recovery.changed = True
        return 0 if self._recovery.save() else self._count_unwritten()

    def _count_unwritten(self) -> int:
        """Connections that were found and are not written yet."""
        return self.outbox.count_waiting() + self._policy.count_held()

    def _send_all(self, until: float) -> None:
        """A sink that is stuck is left alone for a moment: asking it at once again would spin."""
        while self.outbox.waiting and time.monotonic() < until:
            self.send()
            if self.outbox.stuck:
                time.sleep(max(0.0, min(RETRY, until - time.monotonic())))

    def report(self, new: Event) -> None:
        self.outbox.add([new])

    def _report_lost(self) -> None:
        """At most once a second, unless a poll or the end comes first."""
        if self._lost_unreported:
            self.report(event.records_lost(self._lost_unreported, now()))
            self._report_lost_at = time.monotonic() + LOSS_PAUSE
        self._lost_unreported = 0

    def _report_malformed(self, rows: list[bytes]) -> None:
        """Quoted once; after that rows are counted only."""
        if rows and not self._totals["malformed_rows"]:
            self.report(event.rows_malformed(rows, now()))
        self._totals["malformed_rows"] += len(rows)

    def _count_missed(
        self, counters: list[int] | None, snapshot: Snapshot, new: list[Connection], trace_sound: bool
    ) -> None:
        """What a poll finds was missed by the trace; what both miss, the kernel's counters tell."""
        traced = trace_sound and self._drained_whole
        if traced and self._trace_unbroken:
            self._totals["missed_trace"] += sum(found.detected_by == "poll" for found in new)
        self._trace_unbroken = traced
        if counters is None:
            return
        missed = self._audit.compare(counters, new, snapshot.connecting, traced)
        if any(missed):
            if traced:
                self.report(event.connections_untold(missed.inbound, now()))
            else:
                self.report(event.connections_missed(*missed, now()))
            self._totals["missed_inbound"] += missed.inbound
            self._totals["missed_outbound"] += missed.outbound

    def write_metrics(self, others: dict[str, dict[str, float]], failed_polls: int) -> None:
        """A failure is reported once, and when it is over. `others` are those that the loop knows, as in
        `format_metrics`.
        """
        try:
            self._store.write_metrics(self._format_metrics(others, failed_polls).encode())
        except Exception as error:  # whatever went wrong, connections are reported all the same
            if not self._metrics_failing:
                self.report(event.metrics_failed(describe(error), now()))
            self._metrics_failing = True
        else:
            if self._metrics_failing:
                self.report(event.metrics_recovered(now()))
            self._metrics_failing = False

    def _format_metrics(self, others: dict[str, dict[str, float]], failed_polls: int) -> str:
        totals = {**self.totals, "failed_polls": failed_polls, "scanning": self._scans.scanning}
        # Attempts that fail are taken back, but what is a counter to its readers never falls.
        self._most_outbound = max(self._most_outbound, totals["opened_outbound"])
        totals["opened_outbound"] = self._most_outbound
        if self._scans.limits is None:
            for name in SCAN_TOTALS:
                del totals[name]
        samples = {
            **others,
            **self.outbox.measured.samples,
            "trace_up": {"": int(self._trace is not None and not self.trace_in_trouble)},
            "open_sockets": {"": self.open},
            "entries_waiting": {"": len(self.outbox.waiting)},
        }
        return format_metrics(totals, samples)

    @property
    def totals(self) -> dict[str, int]:
        """Since the start of this process, but for what had been found before and is written now."""
        written, opened = self.outbox.written, self._audit.opened
        by_source = {f"reported_{source}": count for source, count in written.items()}
        return {
            "reported": sum(written.values()),
            "reported_closed": self.outbox.written_closed,
            "ignored": self._policy.ignored,
            "ignored_startup": self._policy.ignored_startup,
            "folded": self.outbox.written_folded,
            "folded_startup": self.outbox.written_folded_startup,
            "folded_closed": self.outbox.written_folded_closed,
            "unwritten": self._count_unwritten(),
            "not_followed": self._closings.not_followed,
            **by_source,
            **self._totals,
            "port_scans": self._scans.told,
            "scan_sources_forgotten": self._scans.forgotten,
            "resets_lost": self._scans.resets_lost,
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
    def trace_in_trouble(self) -> bool:
        """Whether it cannot be read, or is not as it was set up."""
        return self._drain_failing or self._unsound_since is not None

    @property
    def next_release(self) -> int | None:
        """When a drain brings something though the trace wakes nobody, nanoseconds of CLOCK_BOOTTIME.

        That is when the first report that is held is released, and at once for records that the last drain
        deferred: they are out of the kernel.
        """
        deferred = self._decoder.deferred if self._decoder else []
        times = [self._tracker.next_release, *[record.time for record in deferred[:1]]]
        return min((moment for moment in times if moment is not None), default=None)

    @property
    def next_settling(self) -> int | None:
        """When there is something to settle before long, likewise; what is due is gathered for a second."""
        due = self._scans.next_due
        return None if due is None else max(due, self._settled_at + SETTLE_PAUSE)

    @property
    def poll_overdue(self) -> bool:
        """Whether so much is remembered since the last poll that the next should not wait."""
        return self._tracker.full or self._store.full
