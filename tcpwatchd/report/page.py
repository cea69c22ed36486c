"""The report as a page: one file of HTML with plots in SVG, without a script, which needs no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from tcpwatchd import __version__
from tcpwatchd.output.event import scale
from tcpwatchd.report.names import shorten
from tcpwatchd.report.outline import COUNTS, list_meanings, name_key
from tcpwatchd.report.tally import count
from tcpwatchd.report.timeline import format_zones, make_timeline

if TYPE_CHECKING:
    from tcpwatchd.report.outline import Outline
    from tcpwatchd.report.summary import Summary

MOST_STEPS = 72
MOST_LABELS = 4
"""Of the axis of time: so many have room on a telephone, with the time below the day."""
PLOT_HEIGHT = 180
"""Pixels. Across, all is in percent of the width there is, so that letters are not scaled."""
MOST_PEERS, MOST_SERVICES = 8, 8
LONGEST_NAME = 44
"""Characters beside a plot: so many have room on a telephone."""
WHOLE = ("<opened", "<last", "<from", "<to", "<address", "<peer")
"""Columns of tables that are not broken into lines: times and addresses."""
PALEST, DARKEST = 0.06, 0.5
"""Of a cell: numbers can be read on both."""
TOPS = (2, 4, 6, 8, 10)
"""Of an axis, times a power of ten: the half of it is a number that can be read too."""


class Bar(NamedTuple):
    """`left` and `width` in percent, `top` and `height` in pixels; `kind` is the index of a direction."""

    left: float
    top: float
    width: float
    height: float
    kind: int
    title: str


class Label(NamedTuple):
    at: float
    text: str


class Plot(NamedTuple):
    """Labels of x are in percent, of y in pixels. `rows` has the numbers, for whoever sees no plot."""

    bars: list[Bar]
    x_labels: list[Label]
    y_labels: list[Label]
    unit: str
    rows: list[tuple[str, list[int]]]


class Cell(NamedTuple):
    """`opacity` grows with the number, by its root: else all but the largest were pale."""

    number: int
    opacity: float
    title: str


class Matrix(NamedTuple):
    peers: list[str]
    rows: list[tuple[str, list[Cell]]]


def format_page(summary: Summary, outline: Outline) -> str:
    """Every text is escaped by the template."""
    loader = PackageLoader("tcpwatchd.report", "")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(short=shorten_number, cut=cut, kind=find_kind)
    return environment.get_template("page.html").render(
        outline=outline,
        plot=plot_timeline(summary) if summary.connections else None,
        peers=plot_peers(summary),
        matrix=make_matrix(summary),
        counts=COUNTS,
        meanings=list_meanings(summary),
        zones=format_zones(summary.since, summary.until),
        height=PLOT_HEIGHT,
        version=__version__,
    )


def cut(name: str) -> str:
    return shorten(name, LONGEST_NAME)


def find_kind(column: str) -> str:
    """Its class, for the style sheet."""
    if not column.startswith("<"):
        return "number"
    return "whole" if column in WHOLE else "text"


def shorten_number(number: int) -> str:
    """To three digits: "12.3k"."""
    return "".join(scale(number))


def plot_timeline(summary: Summary) -> Plot:
    timeline = make_timeline(summary, MOST_STEPS)
    steps, starts = timeline.steps, timeline.labels
    width, most = 100 / len(steps), max(sum(step.counts) for step in steps)
    top = find_top(most)
    scale = PLOT_HEIGHT / top
    bars = []
    for index, (start, step) in enumerate(zip(starts, steps)):
        bottom = float(PLOT_HEIGHT)
        for kind, number in enumerate(step.counts):
            if number:
                height = number * scale
                bottom -= height
                title = f"{start}: {number} {COUNTS[kind]}"
                bars.append(Bar(index * width, bottom, width * 0.9, height, kind, title))
    every = -(-len(steps) // MOST_LABELS)
    x_labels = [Label(index * width, starts[index]) for index in range(0, len(steps), every)]
    y_labels = [Label(PLOT_HEIGHT * (1 - number / top), shorten_number(number)) for number in (top // 2, top)]
    rows = [(start, step.counts) for start, step in zip(starts, steps)]
    return Plot(bars, x_labels, y_labels, timeline.unit, rows)


def find_top(most: int) -> int:
    """Of an axis: not less."""
    size = 1
    while most > TOPS[-1] * size:
        size *= 10
    return next(top * size for top in TOPS if top * size >= most)


def plot_peers(summary: Summary) -> list[tuple[str, int, list[Bar]]]:
    """Name, connections and bars of each of the first."""
    found = summary.peers.list_top(MOST_PEERS)
    most = max((count(row) for _, row in found), default=0)
    plotted = []
    for key, row in found:
        left, bars = 0.0, []
        for kind, number in enumerate(row[:3]):
            if number:
                width = 100 * number / most
                bars.append(Bar(left, 0, width, 0, kind, f"{name_key(key)}: {number} {COUNTS[kind]}"))
                left += width
        plotted.append((name_key(key), count(row), bars))
    return plotted


def make_matrix(summary: Summary) -> Matrix:
    """Who of the first services has connections with which of the first peers."""
    services = [key for key, _ in summary.services.list_top(MOST_SERVICES)]
    peers = [key for key, _ in summary.peers.list_top(MOST_PEERS)]
    numbers = {
        (s, p): count(summary.pairs.rows[s, p])
        for s in services
        for p in peers
        if (s, p) in summary.pairs.rows
    }
    most = max(numbers.values(), default=0)
    rows = []
    for service in services:
        cells = []
        for peer in peers:
            number = numbers.get((service, peer), 0)
            title = f"{name_key(service)} and {name_key(peer)}: {number}"
            opacity = PALEST + (DARKEST - PALEST) * (number / most) ** 0.5 if most else PALEST
            cells.append(Cell(number, opacity, title))
        if any(cell.number for cell in cells):
            rows.append((name_key(service), cells))
    return Matrix([name_key(peer) for peer in peers], rows)
