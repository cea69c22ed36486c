"""The report as JSON: valid, plain, and the same numbers."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tcpwatchd.output.event import format_utc
from tcpwatchd.report.names import show
from tcpwatchd.report.outline import FirstSeen
from tcpwatchd.report.structured import list_values
from tcpwatchd.report.summary import Summary
from tcpwatchd.report.tally import count
from tests.report.summaries import SINCE, UNTIL, sum_up


def read(summary: Summary, faults: list[str] | None = None, top: int = 10) -> Any:
    text = json.dumps(list_values(summary, FirstSeen(None, [], 0), faults or [], top), allow_nan=False)
    return json.loads(text)


@settings(max_examples=20)
@given(st.integers(0, 120), st.integers(1, 20), st.integers(0, 9))
def test_numbers_are_those_of_the_summary(number: int, top: int, seed: int) -> None:
    summary = sum_up(number, top=top, seed=seed)
    told = read(summary, top=top)
    assert told["connections"]["all"] == summary.connections == number
    assert [told["connections"][name] for name in ("ingress", "egress", "internal")] == summary.directions
    steps = told["over_time"]["steps"]
    assert [sum(step[name] for step in steps) for name in ("ingress", "egress", "internal")] == (
        summary.directions
    )
    assert sum(told["closed"].values()) == sum(summary.closed.values())
    assert [[sizes["source"], sizes["destination"]] for sizes in told["bytes"].values()] == summary.sizes
    for name in "services", "peers", "ports":
        tally = getattr(summary, name)
        assert told[name]["names"] == len(tally.rows)
        assert [(one["name"] or "", one["connections"], one["bytes"]) for one in told[name]["top"]] == [
            (show(key), count(row), row[3]) for key, row in tally.list_top(top)
        ]
    assert [one["seconds"] for one in told["longest"]] == [value / 1e9 for value, _ in summary.longest.items]
    assert [one["bytes"] for one in told["largest"]] == [value for value, _ in summary.largest.items]
    assert told["missed"] == {"records_lost": 7, "missed_inbound": 3, "missed_outbound": 4}
    assert told["scans"][0]["source"] == "192.0.2.9"
    assert told["not_counted"]["entries_of_other_units"] == 1
    assert (told["since"], told["until"]) == (format_utc(SINCE), format_utc(UNTIL))


def test_nothing_has_the_same_keys() -> None:
    empty, full = read(Summary(SINCE, UNTIL, "tcpwatchd.service", 10)), read(sum_up())
    assert set(empty) == set(full)
    assert empty["connections"]["all"] == 0
    assert empty["services"] == {"names": 0, "at_most_more": 0, "top": []}


def test_faults_are_told() -> None:
    assert read(sum_up(3), ["/a: it is damaged"])["not_counted"]["faults"] == ["/a: it is damaged"]
