"""The report on a terminal, or wherever standard output leads."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from tcpwatchd.report.outline import COUNTS
from tcpwatchd.report.tally import IN, OUT, WITHIN
from tcpwatchd.report.timeline import format_start, make_timeline

if TYPE_CHECKING:
    from tcpwatchd.report.outline import Outline, Table
    from tcpwatchd.report.summary import Summary

MOST_STEPS = 24
WIDEST_BAR = 40
LEAST_WIDTH = 60
WIDTH_OF_FILES = 1_000
"""Columns where there is no terminal: there nothing need be cut."""
COLOURS = {IN: "cyan", OUT: "yellow", WITHIN: "magenta"}


def print_report(file: IO[str], summary: Summary, outline: Outline) -> None:
    """Raises OSError."""
    console = Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=not file.isatty())
    if not file.isatty():
        console.width = WIDTH_OF_FILES
    console.print(make_text(console, outline.title, "bold"))
    for sentence in outline.sentences:
        console.print(make_text(console, sentence))
    if summary.connections:
        print_timeline(console, summary)
    for table in outline.tables:
        print_table(console, table)
    if outline.warnings:
        print_title(console, "What this report could not see")
        for warning in outline.warnings:
            console.print(make_text(console, warning))


def make_text(console: Console, text: str, style: str = "") -> Text:
    r"""What the terminal's encoding does not have becomes \xNN or the like."""
    encoding = console.encoding
    return Text(text.encode(encoding, "backslashreplace").decode(encoding), style=style)


def print_title(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))


def print_timeline(console: Console, summary: Summary) -> None:
    timeline = make_timeline(summary, MOST_STEPS)
    print_title(console, f"Connections in each {timeline.unit}")
    grid = make_grid(["<", "<", *COUNTS], console)
    most = max(sum(step.counts) for step in timeline.steps)
    width = max(10, min(WIDEST_BAR, console.width - 40))
    for step in timeline.steps:
        bar = make_bar(step.counts, width / most, plain=console.encoding != "utf-8")
        numbers = [Text(str(number)) for number in step.counts]
        grid.add_row(Text(format_start(step.start, timeline.seconds)), bar, *numbers)
    console.print(grid)


def make_bar(counts: list[int], scale: float, plain: bool) -> Text:
    """In, out and within behind each other; whatever is not nothing can be seen."""
    bar, drawn, total = Text(), 0, 0
    for direction, number in enumerate(counts):
        total += number
        length = max(round(total * scale) - drawn, number > 0)
        bar.append(("#" if plain else "█") * length, style=COLOURS[direction])
        drawn += length
    return bar


def print_table(console: Console, table: Table) -> None:
    print_title(console, table.title)
    if table.rows:
        grid = make_grid(table.columns, console)
        for row in table.rows:
            grid.add_row(*(make_text(console, text) for text in row))
        console.print(grid)
    for note in table.notes:
        console.print(make_text(console, note, "dim"))


def make_grid(columns: list[str], console: Console) -> Grid:
    """Columns of numbers keep their width, those of text are cut where there is no room."""
    grid = Grid(box=None, pad_edge=False, header_style="underline", show_header=any(columns))
    for column in columns:
        is_text = column.startswith("<")
        grid.add_column(
            Text(column.lstrip("<")),
            justify="left" if is_text else "right",
            no_wrap=True,
            overflow="ellipsis" if console.encoding == "utf-8" else "crop",
            min_width=None if is_text else len(column),
        )
    return grid
