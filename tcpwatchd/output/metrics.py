"""The daemon's counters as text for Prometheus, in its exposition format. No I/O, no clock.

The names are in one table, which the manual is made of too. None has an address as a label: whoever connects
would decide how many series there are.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Literal, NamedTuple, Union

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tcpwatchd.connection import Closed, Connection

PREFIX = "tcpwatchd_"
NANOSECONDS = 1_000_000_000
DURATIONS = (0.001, 0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 86400.0)
"""Seconds."""
SIZES = (100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
"""Bytes."""


IN_HELP = str.maketrans({"\\": r"\\", "\n": r"\n"})
IN_LABEL = {**IN_HELP, **str.maketrans({'"': r"\""})}
"""What is escaped in each."""


class Histogram:
    """How many values were at most each of the bounds, and how many more.

    Values are whole numbers, so the sum is exact; `unit` of them are 1 of the bounds'.
    """

    def __init__(self, bounds: Sequence[float], unit: int = 1) -> None:
        self.bounds, self.unit = bounds, unit
        self._limits = [int(bound * unit) for bound in bounds]
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0

    def add(self, value: int) -> None:
        self.counts[bisect_left(self._limits, value)] += 1
        self.sum += value


Value = Union[float, Histogram]


class Measured:
    """What was written one by one, as it is told in metrics. `closing`: whether ends are reported."""

    def __init__(self, closing: bool = False) -> None:
        self._closing = closing
        self._opened = dict.fromkeys(("ingress", "egress", "internal"), 0)
        self._closed: dict[str | None, int] = dict.fromkeys(("fin", "reset", "timeout", None), 0)
        self._durations = Histogram(DURATIONS, NANOSECONDS)
        self._sent, self._received = Histogram(SIZES), Histogram(SIZES)

    def add_opened(self, connection: Connection) -> None:
        self._opened[connection.direction] += 1

    def add_closed(self, closed: Closed) -> None:
        self._closed[closed.by] += 1
        duration, sent, received = closed.duration, closed.source_bytes, closed.destination_bytes
        if duration is not None:
            self._durations.add(duration)
        if sent is not None:
            self._sent.add(sent)
        if received is not None:
            self._received.add(received)

    @property
    def samples(self) -> dict[str, Mapping[str, Value]]:
        """By the name of the metric.

        What can be reported is there from the start: of a series that begins with a 1, nobody sees it grow.
        """
        samples: dict[str, Mapping[str, Value]] = {"connections_reported_total": self._opened}
        if self._closing:
            closed = {by or "unknown": number for by, number in self._closed.items()}
            samples["connections_closed_total"] = closed
            samples["connection_duration_seconds"] = {"": self._durations}
            samples["connection_bytes"] = {"source": self._sent, "destination": self._received}
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
    Metric("build_info", "gauge", "Always 1; the label has the version that runs.", label="version"),
    Metric("start_time_seconds", "gauge", "When this process was started, in seconds since the epoch."),
    Metric(
        "last_poll_timestamp_seconds",
        "gauge",
        "When it last polled without a failure, in seconds since the epoch.",
    ),
    Metric("poll_interval_seconds", "gauge", "The time between two polls, as it is set now."),
    Metric("trace_up", "gauge", "1 if the kernel's trace is in use and as it was set up, else 0."),
    Metric("open_sockets", "gauge", "Sockets of open connections in the last poll."),
    Metric("entries_waiting", "gauge", "Entries that wait to be written."),
    Metric(
        "connections_reported_total",
        "counter",
        "Connections written one by one when they opened, since this process was started.",
        label="direction",
        values=("ingress", "egress", "internal"),
    ),
    Metric(
        "connections_closed_total",
        "counter",
        "Connections written one by one when they closed, since this process was started.",
        label="closed_by",
        values=("fin", "reset", "timeout", "unknown"),
    ),
    Metric(
        "connection_duration_seconds",
        "histogram",
        "How long connections were open that were written one by one when they closed, since this process "
        "was started; without those that were open before the watch began.",
    ),
    Metric(
        "connection_bytes",
        "histogram",
        "Payload that each end sent of connections that were written one by one when they closed, since this "
        "process was started; where it is known.",
        label="sent_by",
        values=("source", "destination"),
    ),
    Metric(
        "connections_ignored_total",
        "counter",
        "Connections that a rule had ignored, since this process was started.",
        "ignored",
    ),
    Metric(
        "connections_folded_total",
        "counter",
        "Connections that were written many in one entry, since this process was started.",
        ("folded", "folded_closed"),
        "when",
        ("opened", "closed"),
    ),
    Metric(
        "connections_opened_total",
        "counter",
        "Connections that opened in this network namespace by the kernel's own counters, since this process "
        "was started, or since the last poll of the one that it goes on from; outbound ones are an upper "
        "bound.",
        ("opened_inbound", "opened_outbound"),
        "direction",
        ("inbound", "outbound"),
    ),
    Metric(
        "connections_missed_total",
        "counter",
        "Connections that opened, as tcpwatchd_connections_opened_total has it, and neither the trace nor a "
        "poll told of; outbound ones are an upper bound.",
        ("missed_inbound", "missed_outbound"),
        "direction",
        ("inbound", "outbound"),
    ),
    Metric(
        "connections_missed_by_trace_total",
        "counter",
        "Connections that a poll found though the trace was in use, since this process was started.",
        "missed_trace",
    ),
    Metric(
        "trace_records_lost_total",
        "counter",
        "Records of the kernel's trace that were found to be lost, since this process was started.",
        "records_lost",
    ),
    Metric(
        "polls_failed_total", "counter", "Polls that failed, since this process was started.", "failed_polls"
    ),
    Metric(
        "malformed_rows_total",
        "counter",
        "Rows of the kernel's tables that made no sense, since this process was started.",
        "malformed_rows",
    ),
    Metric("port_scan_sources", "gauge", "Sources that scan ports now.", "scanning"),
    Metric(
        "port_scans_total",
        "counter",
        "Port scans that were told, since this process was started; one that goes on counts once.",
        "port_scans",
    ),
    Metric(
        "scan_sources_forgotten_total",
        "counter",
        "Sources that were forgotten while they might have scanned, there being too many, since this process "
        "was started.",
        "scan_sources_forgotten",
    ),
    Metric(
        "resets_lost_total",
        "counter",
        "Records of packets to closed ports that were lost, at least, since this process was started.",
        "resets_lost",
    ),
)
SCAN_TOTALS = "scanning", "port_scans", "scan_sources_forgotten", "resets_lost"
"""What there is only where port scans are looked for."""


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
            lines += [f"# HELP {name} {metric.help.translate(IN_HELP)}", f"# TYPE {name} {metric.kind}"]
            for label, value in samples.items():
                lines += format_value(name, {metric.label: label} if metric.label else {}, value)
    return "\n".join(lines) + "\n"


def format_value(name: str, labels: dict[str, str], value: Value) -> Iterator[str]:
    if not isinstance(value, Histogram):
        yield f"{name}{format_labels(labels)} {format_number(value)}"
        return
    number = 0
    # As node_exporter writes them when it hands the metrics on: the bounds are labels, and "1" is not "1.0".
    for bound, count in zip((*[f"{bound:g}" for bound in value.bounds], "+Inf"), value.counts):
        number += count
        yield f"{name}_bucket{format_labels({**labels, 'le': bound})} {number}"
    yield f"{name}_sum{format_labels(labels)} {format_number(value.sum / value.unit)}"
    yield f"{name}_count{format_labels(labels)} {number}"


def format_labels(labels: Mapping[str, str]) -> str:
    """The values are ours, but are escaped all the same."""
    inner = ",".join(f'{name}="{value.translate(IN_LABEL)}"' for name, value in labels.items())
    return f"{{{inner}}}" if inner else ""


def format_number(number: float) -> str:
    return f"{number:d}" if isinstance(number, int) else repr(number)
