"""The daemon's counters as text for Prometheus, in its exposition format. No I/O, no clock.

The names are in one table, which the manual is made of too. None has an address as a label: whoever connects
would decide how many series there are.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Literal, NamedTuple, Union

from tcpwatchd.connection import Closed, Connection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

PREFIX = "tcpwatchd_"
NANOSECONDS = 1_000_000_000
DURATIONS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)
"""Seconds."""
SIZES = (100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
"""Bytes."""


class Histogram:
    """How many values were at most each of the bounds, and how many more."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


Value = Union[float, Histogram]


class Measured:
    """What was written, as it is told in metrics."""

    def __init__(self) -> None:
        self._opened = dict.fromkeys(("ingress", "egress", "internal"), 0)
        self._closed = dict.fromkeys(("fin", "reset", "timeout", "unknown"), 0)
        self._durations = Histogram(DURATIONS)
        self._sizes = {"source": Histogram(SIZES), "destination": Histogram(SIZES)}

    def add(self, item: Connection | Closed) -> None:
        if isinstance(item, Connection):
            self._opened[item.direction] += 1
            return
        self._closed[item.by or "unknown"] += 1
        if item.duration is not None:
            self._durations.add(item.duration / NANOSECONDS)
        for end, size in (("source", item.source_bytes), ("destination", item.destination_bytes)):
            if size is not None:
                self._sizes[end].add(size)

    @property
    def samples(self) -> dict[str, Mapping[str, Value]]:
        """By the name of the metric; what was never reported is left out."""
        samples: dict[str, Mapping[str, Value]] = {"connections_reported_total": self._opened}
        if any(self._closed.values()):
            samples["connections_closed_total"] = self._closed
            samples["connection_duration_seconds"] = {"": self._durations}
            samples["connection_bytes"] = self._sizes
        return samples


class Metric(NamedTuple):
    """`name` is without the prefix; `label` with the values that it can have, or none if they are free.

    `total` is where the value is found among the pipeline's totals: one, or one for each value of the label.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    total: str | tuple[str, ...] = ()
    label: str = ""
    values: tuple[str, ...] = ()


METRICS = (
    Metric("build_info", "gauge", "The version that runs, with the value 1.", label="version"),
    Metric("start_time_seconds", "gauge", "When it was started, in seconds since the epoch."),
    Metric("last_poll_timestamp_seconds", "gauge", "When it last polled, in seconds since the epoch."),
    Metric("trace_up", "gauge", "Whether the kernel's trace is in use, and as it was set up."),
    Metric("open_sockets", "gauge", "Sockets of open connections in the last poll."),
    Metric("entries_waiting", "gauge", "Entries that wait to be written."),
    Metric(
        "connections_reported_total",
        "counter",
        "Connections written one by one when they opened.",
        label="direction",
        values=("ingress", "egress", "internal"),
    ),
    Metric(
        "connections_closed_total",
        "counter",
        "Connections written one by one when they closed.",
        label="closed_by",
        values=("fin", "reset", "timeout", "unknown"),
    ),
    Metric("connection_duration_seconds", "histogram", "How long connections were open that closed."),
    Metric(
        "connection_bytes",
        "histogram",
        "Payload that each end of connections sent that closed, where it is known.",
        label="sent_by",
        values=("source", "destination"),
    ),
    Metric("connections_ignored_total", "counter", "Connections that a rule had ignored.", "ignored"),
    Metric(
        "connections_folded_total",
        "counter",
        "Connections that were written many in one entry.",
        ("folded", "folded_closed"),
        "when",
        ("opened", "closed"),
    ),
    Metric(
        "connections_opened_total",
        "counter",
        "Connections that opened, by the kernel's own counters of this network namespace.",
        ("opened_inbound", "opened_outbound"),
        "direction",
        ("inbound", "outbound"),
    ),
    Metric(
        "connections_missed_total",
        "counter",
        "Connections that neither the trace nor a poll told of; outbound ones are an upper bound.",
        ("missed_inbound", "missed_outbound"),
        "direction",
        ("inbound", "outbound"),
    ),
    Metric(
        "connections_missed_by_trace_total",
        "counter",
        "Connections that a poll found though the trace was in use.",
        "missed_trace",
    ),
    Metric("trace_records_lost_total", "counter", "Records of the trace that were lost.", "records_lost"),
    Metric("polls_failed_total", "counter", "Polls that failed.", "failed_polls"),
    Metric("malformed_rows_total", "counter", "Rows of the tables that made no sense.", "malformed_rows"),
    Metric(
        "port_scans_total", "counter", "Port scans that were told: sources, each once a scan.", "port_scans"
    ),
    Metric(
        "scan_sources_forgotten_total",
        "counter",
        "Sources that were forgotten while they might have scanned, there being too many.",
        "scan_sources_forgotten",
    ),
    Metric(
        "resets_lost_total", "counter", "Records of closed ports that were lost, at least.", "resets_lost"
    ),
)


def list_samples(metric: Metric, totals: Mapping[str, int]) -> dict[str, Value]:
    """What the totals say of a metric, by the value of its label; empty if that is not there."""
    if isinstance(metric.total, str):
        return {"": totals[metric.total]} if metric.total in totals else {}
    return {value: totals[name] for name, value in zip(metric.total, metric.values) if name in totals}


def format_metrics(totals: Mapping[str, int], others: Mapping[str, Mapping[str, Value]]) -> str:
    """`others` are those that are no totals, by name, each by the value of its label, "" without one."""
    lines = []
    for metric in METRICS:
        samples = others.get(metric.name) or list_samples(metric, totals)
        if samples:
            name = PREFIX + metric.name
            lines += [f"# HELP {name} {metric.help}", f"# TYPE {name} {metric.kind}"]
            for label, value in samples.items():
                labels = {metric.label: label} if metric.label else {}
                lines += format_value(name, labels, value)
    return "\n".join(lines) + "\n"


def format_value(name: str, labels: dict[str, str], value: Value) -> Iterator[str]:
    if not isinstance(value, Histogram):
        yield f"{name}{format_labels(labels)} {format_number(value)}"
        return
    number = 0
    for bound, count in zip((*value.bounds, "+Inf"), value.counts):
        number += count
        text = bound if isinstance(bound, str) else format_number(bound)
        yield f"{name}_bucket{format_labels({**labels, 'le': text})} {number}"
    yield f"{name}_sum{format_labels(labels)} {format_number(value.sum)}"
    yield f"{name}_count{format_labels(labels)} {number}"


def format_labels(labels: Mapping[str, str]) -> str:
    """The values are ours, but are escaped all the same."""
    escaped = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    inner = ",".join(f'{name}="{value.translate(escaped)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""


def format_number(number: float) -> str:
    return f"{number:d}" if isinstance(number, int) else repr(float(number))
