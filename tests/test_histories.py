"""Random histories: what is reported equals what the tables showed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.procnet import Tables
from tcpwatchd.tracker import Tracker
from tests.kernel import KINDS, STEPS, Kernel, Step
from tests.polls import take

MORE = ("open", "accept", "close", "fin", "ack", "expire", "poll")
FEW = st.sampled_from([0, 0, 0, 1, 2, 6])


@st.composite
def histories(draw: st.DrawFn) -> list[Step]:
    """Steps among the connections of few kinds, so that they meet."""
    kinds = st.sampled_from(draw(st.lists(st.integers(0, len(KINDS) - 1), min_size=1, max_size=3)))
    named = {
        "open": st.tuples(st.just("open"), kinds, st.integers(0, 3)),
        "listen": st.tuples(st.just("listen"), kinds, st.integers(0, 1)),
        "poll": st.tuples(st.just("poll"), FEW, FEW),
    }
    others = [st.tuples(st.just(name), st.integers(0, 3), st.integers(0, 1)) for name in (*STEPS, *MORE)]
    step = st.one_of(*(named.get(name, other) for name, other in zip((*STEPS, *MORE), others)))
    listens = [("listen", kind, port) for kind in range(len(KINDS)) for port in (0, 1)]
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
            for report in tracker.find_new(take(tables, tracker.heard)):
                kernel.hear(report)
        kernel.check()
