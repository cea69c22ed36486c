"""Metrics as text: read back by a reader of its own, and what they count."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.connection import Closed, Connection, Folded
from tcpwatchd.output.event import poll_failed
from tcpwatchd.output.metrics import (
    DURATIONS,
    IN_LABEL,
    METRICS,
    PREFIX,
    SCAN_TOTALS,
    SIZES,
    Histogram,
    Measured,
    Metric,
    format_labels,
    format_metrics,
    format_value,
)
from tcpwatchd.output.outbox import Outbox
from tests.kept import CONNECTION
from tests.state.test_recovery import Reader

SAMPLE = re.compile(
    r'(?P<name>[a-z_]+)(?:\{(?P<labels>(?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)*)\})? (?P<value>\S+)'
)
LABEL = re.compile(r'([a-z_]+)="((?:[^"\\\n]|\\.)*)"(?:,|$)')
BASE_UNITS = {"seconds", "bytes"}
CLOSED = Closed(CONNECTION, 1_500_000_005, "fin", "source", 300, 20_000, "trace")
OTHERS = (
    "build_info",
    "start_time_seconds",
    "last_poll_timestamp_seconds",
    "poll_interval_seconds",
    "trace_up",
    "open_sockets",
    "entries_waiting",
)


class Family(NamedTuple):
    kind: str
    help: str
    samples: dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(text: str) -> dict[str, Family]:
    """The text format, version 0.0.4, as far as it is used."""
    families: dict[str, Family] = {}
    assert text.endswith("\n")
    assert text.isascii()
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("# HELP "):
            name, _, help_text = line[7:].partition(" ")
            type_line = next(lines).split(" ")
            assert type_line[:3] == ["#", "TYPE", name]
            assert name not in families
            families[name] = Family(type_line[3], help_text, {})
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, line
        name, family = list(families.items())[-1]
        assert sample["name"].startswith(name)
        labels = LABEL.findall(sample["labels"] or "")
        key = sample["name"], tuple(sorted(labels))
        assert key not in family.samples
        family.samples[key] = float(sample["value"])
    return families


def make_all(measured: Measured) -> dict[str, Family]:
    """With everything on."""
    names = [name for metric in METRICS for name in list_totals(metric)]
    others = {name: {"": 7.5} for name in OTHERS}
    return parse(format_metrics(dict.fromkeys(names, 3), {**others, **measured.samples}))


def list_totals(metric: Metric) -> list[str]:
    return [metric.total] if isinstance(metric.total, str) else list(metric.total)


def test_every_metric_has_its_samples_from_the_start() -> None:
    families = make_all(Measured(closing=True))
    assert list(families) == [PREFIX + metric.name for metric in METRICS]
    for metric in METRICS:
        kind, help_text, samples = families[PREFIX + metric.name]
        assert (kind, help_text) == (metric.kind, metric.help)
        values = {dict(labels)[metric.label] for _, labels in samples} if metric.values else set()
        assert values == set(metric.values)
        assert samples


def test_ends_that_are_not_reported_have_no_metrics() -> None:
    missing = set(make_all(Measured(closing=True))) - set(make_all(Measured()))
    names = "connections_closed_total", "connection_duration_seconds", "connection_bytes"
    assert missing == {PREFIX + name for name in names}


def test_what_is_not_told_is_absent() -> None:
    assert format_metrics({}, {}) == "\n"
    one = parse(format_metrics({"ignored": 4}, {}))
    assert one[f"{PREFIX}connections_ignored_total"].samples == {
        (f"{PREFIX}connections_ignored_total", ()): 4
    }
    assert len(one) == 1


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(
        r"_(count|sum|bucket|milliseconds|microseconds|minutes|kb|gauge|counter)(_|$)", metric.name
    )
    if metric.kind == "histogram":
        assert metric.name.rpartition("_")[2] in BASE_UNITS
    assert metric.help.endswith(".")
    assert ("since this process was started" in metric.help) == (
        metric.kind != "gauge" and "missed_total" not in metric.name
    )
    assert ("one by one" in metric.help) == (metric.name.startswith("connection_") or metric.name in (
        "connections_reported_total", "connections_closed_total"))  # fmt: skip
    assert bool(metric.values) <= bool(metric.label)
    assert metric.label not in ("le", "job", "instance", "source", "destination", "address")
    assert isinstance(metric.total, str) or len(metric.total) in (0, len(metric.values))


def test_names_are_unique_and_scans_are_all_named() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    of_scans = {
        name for metric in METRICS for name in list_totals(metric) if "scan" in name or "reset" in name
    }
    assert of_scans == set(SCAN_TOTALS)


@given(st.lists(st.integers(0, 10**13)))
def test_a_histogram_is_cumulative_and_its_sum_exact(values: list[int]) -> None:
    histogram = Histogram(DURATIONS, 10**9)
    for value in values:
        histogram.add(value)
    text = "\n".join(
        [
            "# HELP x_seconds X",
            "# TYPE x_seconds histogram",
            *format_value("x_seconds", {"a": "b"}, histogram),
        ]
    )
    samples = parse(text + "\n")["x_seconds"].samples
    counts = {}
    for (name, labels), number in samples.items():
        assert dict(labels)["a"] == "b"
        if name == "x_seconds_bucket":
            counts[float(dict(labels)["le"])] = number
    assert list(counts) == [*DURATIONS, float("inf")]
    assert list(counts.values()) == sorted(counts.values())
    for bound, at_most in counts.items():
        assert at_most == sum(value <= bound * 10**9 for value in values)
    assert samples["x_seconds_count", (("a", "b"),)] == counts[float("inf")] == len(values)
    assert samples["x_seconds_sum", (("a", "b"),)] == sum(values) / 10**9


def test_bounds_are_in_their_own_bucket() -> None:
    """As "le" has it."""
    for bounds, unit in ((DURATIONS, 10**9), (SIZES, 1)):
        histogram = Histogram(bounds, unit)
        for bound in bounds:
            histogram.add(round(bound * unit))
        assert histogram.counts == [1] * len(bounds) + [0]


@given(st.text(st.sampled_from('ab"\\\n {}=,')))
def test_values_of_labels_are_escaped(value: str) -> None:
    (sample,) = format_value("x", {"a": value, "b": "c"}, 1)
    found = SAMPLE.fullmatch(sample)
    assert found
    (name, escaped), other = LABEL.findall(found["labels"])
    back = re.sub(r"\\(.)", lambda match: {"n": "\n"}.get(match[1], match[1]), escaped)
    assert (name, back, other) == ("a", value, ("b", "c"))
    assert format_labels({}) == ""
    assert set(IN_LABEL) == {ord(character) for character in '"\\\n'}


connections = st.builds(
    lambda direction, how: CONNECTION._replace(direction=direction, detected_by=how),
    st.sampled_from(("ingress", "egress", "internal")),
    st.sampled_from(("trace", "poll", "startup")),
)
sizes = st.none() | st.integers(0, 10**12)
endings = st.builds(
    lambda opened, time, by, sent, received: Closed(opened, time, by, None, sent, received, "trace"),
    connections,
    st.integers(0, 10**15),
    st.sampled_from(("fin", "reset", "timeout", None)),
    sizes,
    sizes,
)
items = st.lists(
    connections
    | endings
    | st.builds(Folded, connections | endings, st.integers(2, 9), st.just(9))
    | st.just(poll_failed("x", 0))
)


@given(items, st.lists(st.booleans()))
def test_what_is_measured_is_what_was_written(
    waiting: list[Connection | Closed | Folded], stuck: list[bool]
) -> None:
    """However often the sink takes nothing; what is folded is counted apart."""
    reader = Reader()
    outbox = Outbox(reader, closing=True)
    for item, is_stuck in zip(waiting, [*stuck, *[False] * len(waiting)]):
        reader.stuck = is_stuck
        outbox.add([item])
        outbox.send()
    reader.stuck = False
    outbox.send()
    samples = outbox.measured.samples
    opened = [item for item in waiting if isinstance(item, Connection)]
    closed = [item for item in waiting if isinstance(item, Closed)]
    for direction, number in samples["connections_reported_total"].items():
        assert number == sum(item.direction == direction for item in opened)
    assert sum(count(samples["connections_reported_total"])) == sum(outbox.written.values()) == len(opened)
    for by, number in samples["connections_closed_total"].items():
        assert number == sum((item.by or "unknown") == by for item in closed)
    assert sum(count(samples["connections_closed_total"])) == outbox.written_closed == len(closed)
    durations = [item.duration for item in closed if item.duration is not None]
    sent = [item.source_bytes for item in closed if item.source_bytes is not None]
    received = [item.destination_bytes for item in closed if item.destination_bytes is not None]
    for values, histogram in (
        (durations, samples["connection_duration_seconds"][""]),
        (sent, samples["connection_bytes"]["source"]),
        (received, samples["connection_bytes"]["destination"]),
    ):
        assert isinstance(histogram, Histogram)
        assert (sum(histogram.counts), histogram.sum) == (len(values), sum(values))


def count(samples: object) -> list[int]:
    assert isinstance(samples, dict)
    return list(samples.values())


def test_of_what_was_open_before_nobody_knows_how_long_it_was() -> None:
    measured = Measured(closing=True)
    measured.add_closed(CLOSED)
    measured.add_closed(CLOSED._replace(connection=CONNECTION._replace(detected_by="startup")))
    measured.add_closed(CLOSED._replace(time=0))
    durations = measured.samples["connection_duration_seconds"][""]
    assert isinstance(durations, Histogram)
    assert (sum(durations.counts), durations.sum) == (1, 1_500_000_000)
