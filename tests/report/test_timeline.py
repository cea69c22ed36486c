"""Steps of time: few, local, none left out, and where people expect them when clocks change."""

from __future__ import annotations

import os
import time
from datetime import date
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tcpwatchd.output import event
from tcpwatchd.report.page import MOST_STEPS as MOST_ON_PAGE
from tcpwatchd.report.structured import MOST_STEPS as MOST_IN_JSON
from tcpwatchd.report.summary import Summary
from tcpwatchd.report.terminal import MOST_STEPS as MOST_ON_TERMINAL
from tcpwatchd.report.timeline import A_DAY, A_MONTH, format_time, format_zones, make_timeline
from tests.report.journals import list_fields, make_connection

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND, DAY = 1_000_000, 86_400_000_000
LIMITS = [MOST_ON_TERMINAL, MOST_ON_PAGE, MOST_IN_JSON]
ZONES = [
    "UTC",
    "Europe/Berlin",
    "Asia/Kolkata",
    "America/New_York",
    "Australia/Lord_Howe",
    "America/Santiago",
]


@pytest.fixture(params=ZONES)
def _zone(request: pytest.FixtureRequest) -> Iterator[None]:
    yield from set_zone(request.param)


@pytest.fixture
def _berlin() -> Iterator[None]:
    yield from set_zone("Europe/Berlin")


def set_zone(name: str) -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = name
    time.tzset()
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def sum_up(since: int, until: int, opened: list[int]) -> Summary:
    summary = Summary(since, until, "tcpwatchd.service", 10)
    for number, moment in enumerate(opened):
        made = make_connection(f"192.0.2.1:{number + 1}", "10.0.0.1:80", time=moment * 1000)
        summary.add(moment, list_fields(event.connection_opened(made, moment)))
    assert summary.connections == len(opened)
    return summary


def at(text: str) -> int:
    """Local."""
    return int(time.mktime(time.strptime(text, "%Y-%m-%d %H:%M:%S"))) * SECOND


@pytest.mark.usefixtures("_zone")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 4 * 10**15),
    st.integers(0, 3650 * DAY) | st.sampled_from([0, 1, SECOND, 60 * SECOND, DAY, 7 * DAY, 3650 * DAY]),
    st.lists(st.floats(-0.1, 1.1), max_size=12),
    st.sampled_from(LIMITS),
)
def test_every_connection_is_in_one_of_few_steps(
    since: int, length: int, where: list[float], most: int
) -> None:
    opened = sorted(max(0, int(since + part * length)) for part in where)
    summary = sum_up(since, since + length, opened)
    timeline = make_timeline(summary, most)
    starts = [step.start for step in timeline.steps]
    assert 1 <= len(starts) <= most
    assert starts == sorted(set(starts))
    assert starts[0] * SECOND <= since
    assert len(starts) == 1 or starts[1] * SECOND > since
    assert starts[-1] * SECOND < max(since + length, since + 1)
    assert sum(sum(step.counts) for step in timeline.steps) == len(opened)
    if timeline.seconds < 3600 and length:
        for number, step in enumerate(timeline.steps):
            begins = -1 if number == 0 else step.start * SECOND
            ends = starts[number + 1] * SECOND if number + 1 < len(starts) else 1 << 62
            assert step.counts[0] == sum(begins <= moment < ends for moment in opened)
    labels = timeline.labels
    if timeline.seconds >= A_DAY:
        assert len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("seconds", "unit"),
    [(1, "second"), (10, "second"), (23, "second"), (60, "5 seconds"),
     (3600, "5 minutes"), (7200, "10 minutes"),
     (A_DAY, "2 hours"), (7 * A_DAY, "12 hours"), (23 * A_DAY, "2 days"), (100 * A_DAY, "7 days"),
     (365 * A_DAY, "month"), (3650 * A_DAY, "6 months"), (30 * 365 * A_DAY, "2 years"),
     (7900 * 365 * A_DAY, "500 years")],
)  # fmt: skip
def test_steps_are_those_that_people_count_in(seconds: int, unit: str) -> None:
    begin = 1_795_000_000 * SECOND
    timeline = make_timeline(sum_up(begin, begin + seconds * SECOND, []), MOST_ON_TERMINAL)
    assert timeline.unit == unit


@pytest.mark.usefixtures("_berlin")
@pytest.mark.parametrize(("first", "last"), [((2026, 3, 20), (2026, 4, 8)), ((2026, 10, 15), (2026, 11, 3))])
def test_days_begin_at_midnight_when_clocks_change(
    first: tuple[int, int, int], last: tuple[int, int, int]
) -> None:
    begin, end = at("{}-{}-{} 09:00:00".format(*first)), at("{}-{}-{} 18:00:00".format(*last))
    days = [date.fromordinal(n) for n in range(date(*first).toordinal(), date(*last).toordinal() + 1)]
    opened = [at(f"{day} {hour}") for day in days[1:-1] for hour in ("00:00:00", "12:00:00", "23:59:59")]
    timeline = make_timeline(sum_up(begin, end, opened), MOST_ON_TERMINAL)
    assert timeline.unit == "day"
    assert timeline.labels == [day.isoformat() for day in days]
    assert [step.counts[0] for step in timeline.steps] == [0, *[3] * (len(days) - 2), 0]


@pytest.mark.usefixtures("_berlin")
def test_hours_of_the_day_with_two_o_clock_twice() -> None:
    begin = at("2026-10-25 00:00:00")
    opened = [begin + hour * 3600 * SECOND for hour in range(6)]
    timeline = make_timeline(sum_up(begin, begin + 6 * 3600 * SECOND, opened), 8)
    assert timeline.labels == [f"10-25 {hour}:00" for hour in ("00", "01", "02", "02", "03", "04")]
    assert [step.counts[0] for step in timeline.steps] == [1] * 6


@pytest.mark.usefixtures("_berlin")
def test_times_name_their_zone() -> None:
    assert format_time(at("2026-10-25 01:30:00")) == "2026-10-25 01:30:00 CEST"
    assert format_time(at("2026-10-25 05:30:00")) == "2026-10-25 05:30:00 CET"


@pytest.mark.usefixtures("_berlin")
@pytest.mark.parametrize(
    ("since", "until", "labels"),
    [
        ("2025-12-31 20:00:00", "2026-01-01 03:00:00",
         ["2025-12-31 20:00", "2025-12-31 22:00", "2026-01-01 00:00", "2026-01-01 02:00"]),
        ("2026-01-01 00:00:00", "2026-01-01 07:00:00", ["01-01 00:00", "01-01 02:00", "01-01 04:00",
                                                        "01-01 06:00"]),
        ("2025-11-17 09:00:00", "2026-02-02 00:00:00", ["2025-11", "2025-12", "2026-01", "2026-02"]),
        ("2024-06-01 00:00:00", "2026-06-01 00:00:00", ["2024", "2025", "2026"]),
        ("1996-11-17 00:00:00", "2026-11-17 00:00:00", ["1990", "2000", "2010", "2020"]),
    ],
)  # fmt: skip
def test_months_and_years_are_those_of_calendars_and_the_year_is_told(
    since: str, until: str, labels: list[str]
) -> None:
    timeline = make_timeline(sum_up(at(since), at(until), []), 5)
    assert timeline.labels == labels
    if timeline.seconds >= A_MONTH:
        assert all(time.localtime(step.start)[2:6] == (1, 0, 0, 0) for step in timeline.steps)


@pytest.mark.usefixtures("_berlin")
@pytest.mark.parametrize(
    ("since", "until", "zones"),
    [
        ("2026-10-01 00:00:00", "2026-10-02 00:00:00", "CEST (UTC+02:00)"),
        ("2026-10-01 00:00:00", "2026-11-01 00:00:00", "CEST (UTC+02:00), then CET (UTC+01:00)"),
        ("2026-10-25 00:00:00", "2026-10-25 03:00:01", "CEST (UTC+02:00), then CET (UTC+01:00)"),
        ("2026-01-01 00:00:00", "2026-12-01 00:00:00", "CET (UTC+01:00) and CEST (UTC+02:00)"),
        ("1996-01-01 00:00:00", "2026-12-01 00:00:00", "CET (UTC+01:00) and CEST (UTC+02:00)"),
    ],
)
def test_all_zones_of_a_period_are_named(since: str, until: str, zones: str) -> None:
    assert format_zones(at(since), at(until)) == zones


def test_a_zone_can_be_behind() -> None:
    for _ in set_zone("America/St_Johns"):
        assert format_zones(at("2026-01-02 00:00:00"), at("2026-01-02 00:00:00")) == "NST (UTC-03:30)"
