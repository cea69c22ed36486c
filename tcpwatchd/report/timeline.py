"""Connections over time, in steps that people count in. No I/O but the zone of local time."""

from __future__ import annotations

import time
from bisect import bisect_right
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.output.event import MICROSECONDS
from tcpwatchd.report.summary import HOUR, MINUTE, TEN_MINUTES, parse_moment

if TYPE_CHECKING:
    from tcpwatchd.report.summary import Summary

A_MINUTE, AN_HOUR, A_DAY = 60, 3600, 86400
A_MONTH = 30 * A_DAY
A_YEAR = 12 * A_MONTH
"""Some seconds less than they have: what fits into steps of these fits into months and years as they are."""
STEPS = (
    *(1, 2, 5, 10, 15, 30),
    *(number * A_MINUTE for number in (1, 2, 5, 10, 15, 30)),
    *(number * AN_HOUR for number in (1, 2, 3, 6, 12)),
    *(number * A_DAY for number in (1, 2, 7, 14)),
    *(number * A_MONTH for number in (1, 2, 3, 6)),
    *(number * A_YEAR for number in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)),
)
"""Seconds, up to all the time for which Python has dates."""
SAMPLES = 4_000
"""Moments of a period at which the zone is asked for."""
FINEST = {MINUTE: A_MINUTE, TEN_MINUTES: 10 * A_MINUTE, HOUR: AN_HOUR}
"""Seconds of what is known of times."""


class Step(NamedTuple):
    """From `start`, in seconds since the epoch, on: connections in, out and within."""

    start: int
    counts: list[int]


class Timeline(NamedTuple):
    seconds: int
    """How long each step is; of months and years, about."""
    steps: list[Step]

    @property
    def unit(self) -> str:
        """In words: "2 hours"."""
        for size, name in (
            (A_YEAR, "year"),
            (A_MONTH, "month"),
            (A_DAY, "day"),
            (AN_HOUR, "hour"),
            (A_MINUTE, "minute"),
            (1, "second"),
        ):
            if self.seconds % size == 0:
                number = self.seconds // size
                return name if number == 1 else f"{number} {name}s"
        raise AssertionError

    @property
    def labels(self) -> list[str]:
        """When each step begins, with the year where that is not plain."""
        years = {time.localtime(step.start).tm_year for step in self.steps}
        return [format_start(step.start, self.seconds, len(years) > 1) for step in self.steps]


def make_timeline(summary: Summary, most: int) -> Timeline:
    """In at most so many steps. What opened before the period, or says so, counts in the first."""
    begin, end = summary.since // MICROSECONDS, -(-summary.until // MICROSECONDS)
    seconds = find_step(end - begin, FINEST.get(summary.precision, 1), most)
    list_of = list_months if seconds >= A_MONTH else list_days if seconds >= A_DAY else list_starts
    starts = list_of(begin, end, seconds)
    steps = [Step(start, [0, 0, 0]) for start in starts]
    for (moment, direction), number in summary.times.items():
        index = bisect_right(starts, parse_moment(moment)) - 1
        steps[max(index, 0)].counts[direction] += number
    return Timeline(seconds, steps)


def find_step(seconds: int, finest: int, most: int) -> int:
    """So long that there are at most so many; days can be an hour shorter."""
    return next(
        step for step in STEPS if step >= finest and seconds + AN_HOUR * (step >= A_DAY) <= step * (most - 1)
    )


def list_starts(begin: int, end: int, seconds: int) -> list[int]:
    """As clocks on the wall were when it began."""
    offset = time.localtime(begin).tm_gmtoff
    first = (begin + offset) // seconds * seconds - offset
    return list(range(first, max(end, first + 1), seconds))


def list_days(begin: int, end: int, seconds: int) -> list[int]:
    """Each begins at midnight, also after clocks were put forward or back."""
    number = seconds // A_DAY
    first = date(*time.localtime(begin)[:3]).toordinal() // number * number
    last = date(*time.localtime(max(end - 1, begin))[:3]).toordinal()
    days = map(date.fromordinal, range(max(first, 1), last + 1, number))
    return [find_midnight(day.year, day.month, day.day) for day in days]


def list_months(begin: int, end: int, seconds: int) -> list[int]:
    """Months and years, as calendars have them."""
    number = seconds // A_MONTH
    first, last = (
        moment.tm_year * 12 + moment.tm_mon - 1
        for moment in map(time.localtime, (begin, max(end - 1, begin)))
    )
    months = range(first // number * number, last + 1, number)
    return [find_midnight(month // 12, month % 12 + 1, 1) for month in months]


def find_midnight(year: int, month: int, day: int) -> int:
    return int(time.mktime((year, month, day, 0, 0, 0, 0, 0, -1)))


def format_start(start: int, seconds: int, with_year: bool = False) -> str:
    """Local, as finely as a step is."""
    if seconds >= A_DAY:
        form = "%Y" if seconds >= A_YEAR else "%Y-%m" if seconds >= A_MONTH else "%Y-%m-%d"
    elif seconds >= A_MINUTE:
        form = "%Y-%m-%d %H:%M" if with_year else "%m-%d %H:%M"
    else:
        form = "%H:%M:%S"
    return time.strftime(form, time.localtime(start))


def format_zones(since: int, until: int) -> str:
    """Of local time in a period, and how far each is from UTC: "CEST (UTC+02:00), then CET (UTC+01:00)"."""
    moments = (since + (until - since) * part // SAMPLES for part in range(SAMPLES + 1))
    times = map(time.localtime, (moment // MICROSECONDS for moment in moments))
    zones = [f"{at.tm_zone} (UTC{format_offset(at.tm_gmtoff)})" for at in times]
    changes = [zone for before, zone in zip(["", *zones], zones) if zone != before]
    return (", then " if len(changes) == 2 else " and ").join(dict.fromkeys(changes))


def format_offset(seconds: int) -> str:
    hours, minutes = divmod(abs(seconds) // A_MINUTE, 60)
    return f"{'-' if seconds < 0 else '+'}{hours:02}:{minutes:02}"


def format_time(moment: int) -> str:
    """Local with its zone, from microseconds since the epoch."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(moment // MICROSECONDS))
