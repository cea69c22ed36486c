"""Random histories: what is reported equals what the tables showed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.connection import NOBODY, Closed, Connection, End, Owner
from tcpwatchd.kernel.tables import Tables
from tcpwatchd.state.baseline import format_baseline, parse_baseline
from tcpwatchd.tracking.closings import Closings
from tcpwatchd.tracking.tracker import Tracker
from tests.kept import make_baseline
from tests.model import ELSEWHERE, HOLD, KINDS, OWN, STEPS, Kernel, Kind, Step
from tests.polls import find_new

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tcpwatchd.connection import Loss, Transition

MORE = ("open", "fast", "accept", "close", "fin", "ack", "expire", "poll")
FEW = st.sampled_from([0, 0, 0, 1, 2, 6])
BUCKETS = st.sampled_from([0, 0, 0, 1, 2, 6, -1, -2, -5])
"""Skipped in a poll, or printed twice."""


@st.composite
def histories(draw: st.DrawFn, *extra: str, kinds: Sequence[Kind] = KINDS) -> list[Step]:
    """Steps among the connections of few kinds, so that they meet."""
    numbers = st.sampled_from(draw(st.lists(st.integers(0, len(kinds) - 1), min_size=1, max_size=3)))
    named = {
        "open": st.tuples(st.just("open"), numbers, st.integers(0, 3)),
        "fast": st.tuples(st.just("fast"), numbers, st.integers(0, 3)),
        "proxy": st.tuples(st.just("proxy"), numbers, st.integers(0, 3)),
        "twins": st.tuples(st.just("twins"), numbers, st.integers(0, 3)),
        "listen": st.tuples(st.just("listen"), numbers, st.integers(0, 1)),
        "poll": st.tuples(st.just("poll"), FEW, BUCKETS),
    }
    names = (*STEPS, *MORE, *extra, *extra)
    others = [st.tuples(st.just(name), st.integers(0, 3), st.integers(0, 1)) for name in names]
    step = st.one_of(*(named.get(name, other) for name, other in zip(names, others)))
    listens = [("listen", kind, port) for kind in range(len(kinds)) for port in (0, 1)]
    return [*listens, *draw(st.lists(step, min_size=40, max_size=150))]


@given(histories())
def test_every_visible_connection_is_reported_once(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kernel, tables, tracker = Kernel(Path(folder)), Tables(folder), Tracker()
        rest = iter([("poll", 0, 0), *steps, ("poll", 0, 0), ("poll", 0, 0)])
        for step in rest:
            if step[0] != "poll":
                kernel.take(step)
                continue
            meanwhile = (following for _, following in zip(range(step[1]), rest))
            kernel.poll(meanwhile, skip=step[2])
            for report in find_new(tables, tracker):
                kernel.hear(report)
        kernel.check()


class Traced:
    """A tracker with both sources; the time of a snapshot is that of the walk over the model's tables."""

    def __init__(self, folder: str, owned: bool = False, closing: bool = False) -> None:
        self._folder, self.kernel = folder, Kernel(Path(folder), owned, closing)
        self._owned, self._network, self._closing = owned, OWN if owned else 0, closing
        self._start()
        self._lossy = False
        self._drained = 0
        self.pause = 0
        """Before each poll: longer than a report is held, where that matters."""

    def _start(self) -> None:
        self._tables, self._tracker = Tables(self._folder), Tracker(self._network, self._closing)
        self._closings = Closings("both" if self._closing else "opened", self._network, self._owned)

    def _shows(self, end: End) -> bool:
        return self._tracker.shows(end, self._tables.holds)

    def _hear(self, items: Iterable[Connection | Transition | Loss], traced: bool = True) -> None:
        """Each has the owner of its sockets."""
        found: list[Connection | Transition | Loss] = []
        for item in items:
            if isinstance(item, Connection):
                if traced:
                    self.kernel.hear_traced(item)
                elif self._closing:
                    self.kernel.reports[frozenset((end.ip, end.port) for end in item[:2])] += 1
                owner, listener = (
                    Owner(user=socket.user, network=None if socket.network == OWN else socket.network)
                    if socket and traced
                    else NOBODY
                    for socket in (item.opener, item.acceptor)
                )
                if item.direction == "ingress":
                    owner, listener = listener, NOBODY
                bare = item._replace(opener=None, acceptor=None, caller=None)
                found.append(bare._replace(owner=owner, listener=listener))
            else:
                found.append(item)
        for closed in self._closings.follow(found, self._shows):
            if isinstance(closed, Closed):
                self.kernel.hear_closed(closed)

    def restart(self) -> None:
        """Another process goes on from what this one keeps, with records waiting."""
        self._hear(self._tracker.release(self._drained))
        baseline = make_baseline(self._tracker.known, self._tables.blocks)
        kept = parse_baseline(format_baseline(baseline._replace(open=self._closings.known)))
        self._start()
        self._tracker.restore(kept.known)
        self._closings.restore(kept.open)
        self._tables.restore(kept.blocks)

    def drain(self, left: int = 0) -> None:
        taken = self.kernel.drain(left)
        self._tracker.follow(taken, self._lossy, self._tables.holds, began=self.kernel.clock)
        self._lossy, self._drained = False, self.kernel.clock
        self._hear(self._tracker.release(self._drained))

    def lose(self) -> None:
        self._lossy |= bool(self.kernel.drain())

    def poll(self, meanwhile: Iterator[Step], skip: int) -> list[Connection]:
        self.kernel.clock += self.pause
        started = self.kernel.clock
        self.kernel.poll(meanwhile, skip)
        snapshot = self._tables.read_snapshot()
        self.drain()
        unchanged = self._tables.find_unchanged(self._tracker.awaiting_row)
        self._tables.keep()
        snapshot = snapshot._replace(started=started, ended=self.kernel.clock)
        new = self._tracker.find_new(snapshot, unchanged)
        self._hear(new, traced=False)
        gone = [one for one in self._tracker.gone if one.end not in self._tracker.closing]
        for closed in self._closings.compare(gone, self._shows, snapshot.ended):
            self.kernel.hear_closed(closed)
        return new

    def run(self, steps: list[Step], losses: bool = False, delays: bool = False) -> list[Connection]:
        """What polls found beside the trace."""
        polled = []
        polled += self.poll(iter(()), 0)
        rest = iter(steps)
        for step in rest:
            if step[0] == "poll":
                meanwhile = (following for _, following in zip(range(step[1]), rest))
                polled += self.poll(meanwhile, step[2])
            elif step[0] == "restart":
                self.restart()
            elif step[0] == "drain":
                self.lose() if losses and step[1] == 0 else self.drain(left=step[1] if delays else 0)
            else:
                self.kernel.take(step)
        for _ in range(4):
            polled += self.poll(iter(()), 0)
        self.kernel.clock += 10**9
        self.drain()
        return polled


@given(histories("drain", "proxy"))
def test_the_trace_misses_nothing(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        traced = Traced(folder)
        assert traced.run(steps, delays=True) == []
        traced.kernel.check_traced(lossy=False)


@given(histories("drain", "restart", "proxy"))
def test_restarts_miss_nothing(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        traced = Traced(folder)
        assert traced.run(steps, delays=True) == []
        traced.kernel.check_traced(lossy=False)


@given(histories("drain", "restart", "twins", kinds=KINDS + ELSEWHERE))
def test_records_of_sockets_miss_nothing_and_mix_nothing(steps: list[Step]) -> None:
    """With the owner and the network namespace in each record, and equal addresses in two of them."""
    with tempfile.TemporaryDirectory() as folder:
        traced = Traced(folder, owned=True)
        assert traced.run(steps, delays=True) == []
        traced.kernel.check_traced(lossy=False)


@given(histories("drain"))
def test_losses_make_no_duplicates(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        traced = Traced(folder)
        for report in traced.run(steps, losses=True):
            ends = [(end.ip, end.port) for end in (report.source, report.destination)]
            traced.kernel.reports[frozenset(ends)] += 1
        traced.kernel.check_traced(lossy=True)


@given(histories("drain", "restart", "proxy"))
def test_each_connection_closes_once(steps: list[Step]) -> None:
    """At the moment at which its later end does, and not before it opened."""
    with tempfile.TemporaryDirectory() as folder:
        traced = Traced(folder, closing=True)
        assert traced.run(steps, delays=True) == []
        traced.kernel.check_traced(lossy=False)
        traced.kernel.check_closed(lossy=False)


@given(histories("drain", "restart", "twins", kinds=KINDS + ELSEWHERE))
def test_each_connection_closes_with_its_own_owner(steps: list[Step]) -> None:
    """Also where there are equal addresses in two networks."""
    with tempfile.TemporaryDirectory() as folder:
        traced = Traced(folder, owned=True, closing=True)
        assert traced.run(steps, delays=True) == []
        traced.kernel.check_traced(lossy=False)
        traced.kernel.check_closed(lossy=False)
        traced.kernel.check_owners_of_closed()


@given(histories("drain", "restart"))
def test_with_losses_none_closes_twice(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        traced = Traced(folder, closing=True)
        traced.run(steps, losses=True)
        traced.kernel.check_closed(lossy=True)


@given(histories("drain", "restart"))
def test_with_losses_polls_close_what_they_can_see(steps: list[Step]) -> None:
    """Each record tells the network namespace, and all are of the one that is polled."""
    with tempfile.TemporaryDirectory() as folder:
        traced = Traced(folder, owned=True, closing=True)
        traced.pause = HOLD
        traced.run(steps, losses=True)
        traced.kernel.check_closed(lossy=True)
        traced.kernel.check_all_closed()


@given(histories())
def test_polls_alone_close_each_once(steps: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        kernel, tables = Kernel(Path(folder), closing=True), Tables(folder)
        tracker, closings = Tracker(follows_closing=True), Closings("both")

        def shows(end: End) -> bool:
            return tracker.shows(end, tables.holds)

        def poll(meanwhile: Iterator[Step], skip: int) -> None:
            kernel.poll(meanwhile, skip)
            new = find_new(tables, tracker)
            for report in new:
                kernel.hear(report)
            for closed in [*closings.follow(new, shows), *closings.compare(tracker.gone, shows, 0)]:
                if isinstance(closed, Closed):
                    kernel.hear_closed(closed)

        poll(iter(()), 0)
        rest = iter(steps)
        for step in rest:
            if step[0] == "poll":
                poll((following for _, following in zip(range(step[1]), rest)), step[2])
            else:
                kernel.take(step)
        for _ in range(3):
            poll(iter(()), 0)
        kernel.check_all_closed()
