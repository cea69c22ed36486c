"""Connections over time, in steps that people count in. No I/O but the zone of local time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.report.summary import HOUR, MICROSECONDS, MINUTE, parse_moment

if TYPE_CHECKING:
    from tcpwatchd.report.summary import Summary

A_MINUTE, AN_HOUR, A_DAY = 60, 3600, 86400
STEPS = (
    *(1, 2, 5, 10, 15, 30),
    *(number * A_MINUTE for number in (1, 2, 5, 10, 15, 30)),
    *(number * AN_HOUR for number in (1, 2, 3, 6, 12)),
    *(number * A_DAY for number in (1, 2, 7, 14, 28, 91)),
)
"""Seconds."""
FINEST = {MINUTE: A_MINUTE, HOUR: AN_HOUR}
"""Seconds of what is known of times."""


class Step(NamedTuple):
    """From `start`, in seconds since the epoch, on: connections in, out and within."""

    start: int
    counts: list[int]


class Timeline(NamedTuple):
    seconds: int
    """How long each step is."""
    steps: list[Step]

    @property
    def unit(self) -> str:
        """In words: "2 hours"."""
        for size, name in ((A_DAY, "day"), (AN_HOUR, "hour"), (A_MINUTE, "minute"), (1, "second")):
            if self.seconds % size == 0:
                number = self.seconds // size
                return name if number == 1 else f"{number} {name}s"
        raise AssertionError


def make_timeline(summary: Summary, most: int) -> Timeline:
    """In at most so many steps. What opened before the period, or says so, counts in the first."""
    begin, end = summary.since // MICROSECONDS, -(-summary.until // MICROSECONDS)
    finest = FINEST.get(summary.precision, 1)
    seconds = next((step for step in STEPS if step >= finest and (end - begin) / step <= most - 1), STEPS[-1])
    offset = time.localtime(begin).tm_gmtoff
    first = (begin + offset) // seconds * seconds - offset
    steps = [Step(start, [0, 0, 0]) for start in range(first, max(end, first + 1), seconds)]
    for (moment, direction), number in summary.times.items():
        index = (parse_moment(moment) - first) // seconds
        steps[min(max(index, 0), len(steps) - 1)].counts[direction] += number
    return Timeline(seconds, steps)


def format_start(start: int, seconds: int) -> str:
    """Local, as finely as a step is."""
    form = "%Y-%m-%d" if seconds >= A_DAY else "%m-%d %H:%M" if seconds >= A_MINUTE else "%H:%M:%S"
    return time.strftime(form, time.localtime(start))


def format_time(moment: int) -> str:
    """Local with its zone, from microseconds since the epoch."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(moment // MICROSECONDS))
