"""Connections over time, in steps that people count in. No I/O but the zone of local time."""

from __future__ import annotations

import time
from bisect import bisect_right
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.report.summary import HOUR, MICROSECONDS, MINUTE, TEN_MINUTES, parse_moment

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
FINEST = {MINUTE: A_MINUTE, TEN_MINUTES: 10 * A_MINUTE, HOUR: AN_HOUR}
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
    seconds = find_step(end - begin, FINEST.get(summary.precision, 1), most)
    starts = list_days(begin, end, seconds // A_DAY) if seconds >= A_DAY else list_starts(begin, end, seconds)
    steps = [Step(start, [0, 0, 0]) for start in starts]
    for (moment, direction), number in summary.times.items():
        index = bisect_right(starts, parse_moment(moment)) - 1
        steps[max(index, 0)].counts[direction] += number
    return Timeline(seconds, steps)


def find_step(seconds: int, finest: int, most: int) -> int:
    """So long that there are at most so many; days can be an hour shorter."""
    for step in STEPS:
        if step >= finest and seconds + AN_HOUR * (step >= A_DAY) <= step * (most - 1):
            return step
    return -(-(seconds + AN_HOUR) // (STEPS[-1] * (most - 1))) * STEPS[-1]


def list_starts(begin: int, end: int, seconds: int) -> list[int]:
    """As clocks on the wall were when it began."""
    offset = time.localtime(begin).tm_gmtoff
    first = (begin + offset) // seconds * seconds - offset
    return list(range(first, max(end, first + 1), seconds))


def list_days(begin: int, end: int, number: int) -> list[int]:
    """Each begins at midnight, also after clocks were put forward or back."""
    first = date(*time.localtime(begin)[:3]).toordinal() // number * number
    last = date(*time.localtime(max(end - 1, begin))[:3]).toordinal()
    days = map(date.fromordinal, range(max(first, 1), last + 1, number))
    return [int(time.mktime((day.year, day.month, day.day, 0, 0, 0, 0, 0, -1))) for day in days]


def format_start(start: int, seconds: int) -> str:
    """Local, as finely as a step is."""
    form = "%Y-%m-%d" if seconds >= A_DAY else "%m-%d %H:%M" if seconds >= A_MINUTE else "%H:%M:%S"
    return time.strftime(form, time.localtime(start))


def format_time(moment: int) -> str:
    """Local with its zone, from microseconds since the epoch."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(moment // MICROSECONDS))
