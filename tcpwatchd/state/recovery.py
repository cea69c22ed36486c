"""Keeps what the stages know beyond the end of the process, and goes on from what the process before kept.

What was taken out of the kernel is logged before it is followed, and what was found is saved before it is
written: the store always has what a next process needs to go on.
"""

from __future__ import annotations

import contextlib
import operator
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.clock import boot_ns, now
from tcpwatchd.connection import Connection, Written
from tcpwatchd.failure import describe
from tcpwatchd.kernel.pages import Decoder
from tcpwatchd.output import event
from tcpwatchd.output.outbox import split_written
from tcpwatchd.policy.policy import PolicyKnown
from tcpwatchd.state.baseline import Baseline, BaselineError
from tcpwatchd.tracking.tracker import FOREVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tcpwatchd.connection import Closed, ControlGroup, Drain, End, Folded, Ignored, Loss, Transition
    from tcpwatchd.kernel.tables import Tables
    from tcpwatchd.kernel.trace import Trace
    from tcpwatchd.output.event import Event
    from tcpwatchd.output.outbox import Outbox
    from tcpwatchd.owners.owners import Owners
    from tcpwatchd.policy.policy import Policy
    from tcpwatchd.policy.scans import Scans
    from tcpwatchd.state.store import Log, Store
    from tcpwatchd.tracking.audit import Audit
    from tcpwatchd.tracking.closings import Closings
    from tcpwatchd.tracking.tracker import Tracker


class Stages(NamedTuple):
    """What knows something that is worth keeping. Without a trace there is no decoder either."""

    tables: Tables
    tracker: Tracker
    audit: Audit
    scans: Scans
    policy: Policy
    owners: Owners
    closings: Closings
    outbox: Outbox
    trace: Trace | None
    decoder: Decoder | None

    def select(self, found: Iterable[Connection | Transition | Loss]) -> list[Connection | Closed | Folded]:
        """What is to be written of what the tracker found, connections with their owners."""
        found = list(found)
        self.scans.follow(found)
        choose, name = self.policy.choose, self.owners.name
        chosen: list[Connection | Ignored | Transition | Loss] = [
            choose(item, name) if isinstance(item, Connection) else item for item in found
        ]
        return self.policy.fold(self.closings.follow(chosen, self.shows))

    def follow_records(
        self, groups: Iterable[ControlGroup], transitions: Sequence[Transition], lossy: bool
    ) -> None:
        """Who opens a connection that is ignored in any case is not looked for."""
        self.scans.follow_calls(transitions)
        self.owners.follow(groups, transitions, lossy, self.policy.may_report)

    def shows(self, end: End) -> bool:
        """Whether polls show an open socket of this end."""
        return self.tracker.shows(end, self.tables.holds)


NO_POLICY = PolicyKnown((), None, [], 0, [], [0, 0])
"""That of an older version, which wrote all."""


class Resumed(NamedTuple):
    """What is known of the time before this process."""

    lost: int
    """Records that were lost and are reported now."""
    trace_unbroken: bool
    """Whether the instance in use is the one that was read before: it went on filling meanwhile."""


class Progress(NamedTuple):
    """How far the trace was followed: records taken out of each CPU, and those for the next drain."""

    taken: dict[int, int]
    deferred: list[Transition]


class Recovery:
    """The store, filled from the stages and emptied into them.

    A store that fails is reported once, until it has all again.
    """

    def __init__(self, store: Store, stages: Stages) -> None:
        self._store = store
        self._stages = stages
        self._instance = stages.trace.instance if stages.trace else None
        self._drained = now()
        self._written_before_save = Written(0, 0, 0)
        self._keeping_fails = False
        self.changed = True
        """Whether there is anything that the baseline and its log do not have."""
        self.unsound_since: int | None = None
        """Since when the instance is not what it should be, in microseconds since the epoch."""

    def resume(self) -> Resumed:
        """Go on from where the process before ended, if it left anything."""
        resumed = Resumed(0, trace_unbroken=False)
        try:
            kept = self._store.load()
            if kept and kept[0].saved > boot_ns():
                raise BaselineError("it was saved before this machine was booted")
        except (OSError, BaselineError) as error:
            self._report_unusable(error)
            kept = None
        if kept:
            resumed = self._restore(*kept)
        if not kept or kept[0].open.report == "opened":
            # Records of what opened before now may be followed, and those of its end were not made.
            self._stages.closings.note_loss(boot_ns())
        self.save()
        return resumed

    def _restore(self, baseline: Baseline, log: Log) -> Resumed:
        tables, tracker, audit, scans, policy, owners, closings, outbox, trace, decoder = self._stages
        tables.restore(baseline.blocks)
        tracker.restore(baseline.known)
        audit.restore(baseline.counters)
        waiting, written = split_written(baseline.waiting, log.written)
        outbox.restore(baseline.offset, waiting)
        scans.restore(baseline.scans)
        # What was found since is told as the process before would have told it.
        policy.restore(baseline.policy or NO_POLICY._replace(since=policy.since))
        tracker.follows_closing, follows_closing = closings.restore(baseline.open), tracker.follows_closing
        owners.restore(baseline.owners)
        lost, last = self._replay(baseline, log)
        same_instance = trace is not None and trace.instance == baseline.instance
        # Whoever empties the buffers, as another clock does, makes the kernel count anew.
        trace_unbroken = (
            same_instance
            and baseline.unsound_since is None
            and not (decoder and is_counted_anew(decoder, last))
        )
        if decoder and trace_unbroken:
            lost += count_slipped(decoder, last)
            decoder.deferred = last.deferred
            # The kernel may still hold the records of other ends: what was held at the last drain is held on,
            # unless it was written.
            drained = max([drain.began for drain in log.drains], default=baseline.saved)
            found = self._take_found(tracker.release(drained))
            while len(found) < written.entries and (more := tracker.release(drained, at_least=1)):
                found += self._take_found(more)
        else:
            self._stages.follow_records([], last.deferred, False)
            tracker.follow(last.deferred, False, tables.holds)
            found = self._take_found(tracker.release(FOREVER))
        outbox.add(found)
        lost_reported = outbox.drop(written.entries, written.lost)
        tracker.follows_closing = follows_closing
        outbox.add(policy.fold(closings.switch()))
        if log.damage:
            self._report_unusable(BaselineError(log.damage))
        if not trace_unbroken:
            drained = max(baseline.drained, log.until if log.formats else 0)
            self._leave_instance(baseline.instance, drained, baseline.unsound_since)
        if lost > lost_reported or not trace_unbroken:
            tracker.forget_handshakes()
            owners.forget_listeners()
            closings.note_loss(boot_ns())
        unreported = max(0, lost - lost_reported)
        if unreported:
            self._report(event.records_lost(unreported, now()))
        return Resumed(unreported, trace_unbroken)

    def _take_found(
        self, released: list[Connection | Transition | Loss]
    ) -> list[Connection | Closed | Folded]:
        self._stages.audit.add_found(item for item in released if isinstance(item, Connection))
        return self._stages.select(released)

    def _replay(self, baseline: Baseline, log: Log) -> tuple[int, Progress]:
        """Follow what was logged since the baseline: the same pages give the same reports in the same order.

        Returns how many records were lost, and how far the trace was followed.
        """
        if not log.formats:
            return 0, Progress(baseline.taken, baseline.deferred)
        decoder, lost = Decoder(log.formats, baseline.taken, baseline.deferred), 0
        for drain in log.drains:
            transitions, lost_before = decoder.decode(drain)
            self._stages.follow_records(decoder.take_groups(), transitions, lost_before > 0)
            self._stages.tracker.follow(
                transitions, lost_before > 0, self._stages.tables.holds, whole=False, began=drain.began
            )
            lost += lost_before
        return lost, Progress(decoder.taken, decoder.deferred)

    def _leave_instance(self, instance: int | None, drained: int, unsound_since: int | None) -> None:
        """What was read until then is not the instance that is in use now, if any is, or was not sound."""
        if not self._stages.trace:
            self._instance, self._drained, self.unsound_since = instance, drained, unsound_since
        elif instance is not None:
            self._report(event.trace_gap(drained if unsound_since is None else unsound_since, now()))

    def log_drain(self, drain: Drain) -> None:
        self._drained = now()
        with self._reporting_failure():
            self._store.append_drain(drain)
        self.changed |= bool(drain.pages)

    def log_written(self) -> None:
        """Note how much the sink took since the baseline was saved."""
        written = Written(*map(operator.sub, self._stages.outbox.total, self._written_before_save))
        self.changed = True
        with self._reporting_failure():
            self._store.mark_written(written)

    def save(self) -> bool:
        """Whether the store has all."""
        if not self._store.enabled:
            return False
        tables, tracker, audit, scans, policy, owners, closings, outbox, trace, decoder = self._stages
        with self._reporting_failure():
            if self.changed:
                known = tracker.known
                baseline = Baseline(
                    saved=boot_ns(),
                    generation=0,
                    instance=self._instance,
                    drained=self._drained,
                    taken=decoder.taken if decoder else {},
                    deferred=decoder.deferred if decoder else [],
                    known=known,
                    waiting=list(outbox.waiting),
                    counters=audit.counters,
                    blocks=tables.blocks,
                    unsound_since=self.unsound_since,
                    owners=owners.known,
                    open=closings.known,
                    offset=outbox.offset,
                    policy=policy.known,
                    scans=scans.known,
                )
                self._store.save(baseline, trace.formats if trace else None)
                self._written_before_save = outbox.total
                # These are forgotten by the next poll though nothing may be new in it.
                self.changed = bool(known.absent or known.awaiting_row or known.reports or baseline.deferred)
            else:
                self._store.touch()
            self._report_recovery()
            return True
        return False

    @contextlib.contextmanager
    def _reporting_failure(self) -> Iterator[None]:
        """Without what could not be kept all goes on."""
        try:
            yield
        except OSError as error:
            self.changed = True
            if not self._keeping_fails:
                self._report(event.keeping_failed(describe(error), now()))
            self._keeping_fails = True

    def _report_recovery(self) -> None:
        if self._keeping_fails:
            self._report(event.keeping_recovered(self._store.baseline_path, now()))
        self._keeping_fails = False

    def _report_unusable(self, error: Exception) -> None:
        self._report(event.baseline_unusable(describe(error), now()))

    def _report(self, new: Event) -> None:
        self._stages.outbox.add([new])


def is_counted_anew(decoder: Decoder, last: Progress) -> bool:
    return any(decoder.taken.get(cpu, records) < records for cpu, records in last.taken.items())


def count_slipped(decoder: Decoder, last: Progress) -> int:
    """Records that the process before took out of the instance and did not log: it ended between the two."""
    return sum(records - last.taken.get(cpu, 0) for cpu, records in decoder.taken.items())
