"""Random histories: what is reported equals what the tables showed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.procnet import Tables
from tcpwatchd.tracker import Tracker
from tests.kernel import STEPS, Kernel, Step

STEP = st.tuples(st.sampled_from((*STEPS, "open", "poll")), st.integers(0, 7), st.integers(0, 7))


@given(st.lists(STEP, min_size=10, max_size=120))
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
            for report in tracker.find_new(tables.read_snapshot(tracker.heard)):
                kernel.hear(report)
        kernel.check()
