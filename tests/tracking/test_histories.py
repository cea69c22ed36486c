"""Random histories: what is reported equals what the tables showed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.kernel.tables import Tables
from tcpwatchd.state.baseline import format_baseline, parse_baseline
from tcpwatchd.tracking.tracker import Tracker
from tests.kept import make_baseline
from tests.model import ELSEWHERE, KINDS, OWN, STEPS, Kernel, Kind, Step
from tests.polls import find_new

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tcpwatchd.connection import Connection

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

    def __init__(self, folder: str, owned: bool = False) -> None:
        self._folder, self.kernel = folder, Kernel(Path(folder), owned)
        self._network = OWN if owned else 0
        self._tables, self._tracker = Tables(self._folder), Tracker(self._network)
        self._lossy = False
        self._drained = 0

    def restart(self) -> None:
        """Another process goes on from what this one keeps, with records waiting."""
        for report in self._tracker.release(self._drained):
            self.kernel.hear_traced(report)
        kept = parse_baseline(format_baseline(make_baseline(self._tracker.known, self._tables.blocks)))
        self._tables, self._tracker = Tables(self._folder), Tracker(self._network)
        self._tracker.restore(kept.known)
        self._tables.restore(kept.blocks)

    def drain(self, left: int = 0) -> None:
        self._tracker.follow(self.kernel.drain(left), self._lossy, self._tables.holds)
        self._lossy, self._drained = False, self.kernel.clock
        for report in self._tracker.release(self._drained):
            self.kernel.hear_traced(report)

    def lose(self) -> None:
        self._lossy |= bool(self.kernel.drain())

    def poll(self, meanwhile: Iterator[Step], skip: int) -> list[Connection]:
        started = self.kernel.clock
        self.kernel.poll(meanwhile, skip)
        snapshot = self._tables.read_snapshot()
        self.drain()
        unchanged = self._tables.find_unchanged(self._tracker.awaiting_row)
        self._tables.keep()
        snapshot = snapshot._replace(started=started, ended=self.kernel.clock)
        return self._tracker.find_new(snapshot, unchanged)

    def run(self, steps: list[Step], losses: bool = False, delays: bool = False) -> list[Connection]:
        """What polls found beside the trace."""
        polled = []
        rest = iter([("poll", 0, 0), *steps, ("poll", 0, 0), ("poll", 0, 0)])
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
