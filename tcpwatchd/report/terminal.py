"""The report on a terminal, or wherever standard output leads."""

from __future__ import annotations

from typing import IO, TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from tcpwatchd.report.names import shorten
from tcpwatchd.report.outline import COUNTS
from tcpwatchd.report.tally import IN, OUT, WITHIN
from tcpwatchd.report.timeline import make_timeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tcpwatchd.report.outline import Outline, Table
    from tcpwatchd.report.summary import Summary

MOST_STEPS = 24
NARROWEST_BAR, WIDEST_BAR = 10, 40
LEAST_WIDTH = 60
"""Columns: in a terminal that has fewer, lines break where it breaks them."""
WIDTH_OF_FILES = 10_000
"""Columns where there is no terminal: there nothing need be broken."""
GAP = 2
"""Columns between two of a table, and before what is told below a row."""
LEAST_MESSAGE = 30
"""Columns in which a text that is broken is still read with ease."""
SHORT = 9
"""Columns of a text that has room beside others."""
LONGEST_NAME = 80
"""Columns of a name where a table does not fit: of a longer one the middle is left out."""
COLOURS = {IN: "cyan", OUT: "yellow", WITHIN: "magenta"}


def print_report(file: IO[str], summary: Summary, outline: Outline) -> None:
    """Raises OSError."""
    console = Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=not file.isatty())
    console.width = max(console.width, LEAST_WIDTH) if file.isatty() else WIDTH_OF_FILES
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
    labels = timeline.labels
    numbers = [[str(number) for number in step.counts] for step in timeline.steps]
    widths = measure(COUNTS, numbers)
    room = console.width - len(labels[0]) - sum(widths) - GAP * (len(widths) + 1)
    most = max(sum(step.counts) for step in timeline.steps)
    scale = max(NARROWEST_BAR, min(WIDEST_BAR, room)) / most
    grid = make_grid(["<", "<", *COUNTS])
    for label, step, row in zip(labels, timeline.steps, numbers):
        grid.add_row(label, make_bar(step.counts, scale, plain=console.encoding != "utf-8"), *row)
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
        print_rows(console, table)
    for note in table.notes:
        console.print(make_text(console, note, "dim"))


def print_rows(console: Console, table: Table) -> None:
    """Numbers keep their width: without room, a message is broken, or long texts go below their row."""
    names = [column.lstrip("<") for column in table.columns]
    widths = measure(names, table.rows)
    missing = sum(widths) + GAP * (len(widths) - 1) - console.width
    below: list[int] = []
    if missing > 0 and not (names[-1] == "message" and widths[-1] - missing >= LEAST_MESSAGE):
        below = [
            index
            for index, (column, width) in enumerate(zip(table.columns, widths))
            if index and column.startswith("<") and width > SHORT
        ]
    beside = [index for index in range(len(names)) if index not in below]
    grid = make_grid([table.columns[index] for index in beside])
    for row in table.rows:
        shown = row if missing <= 0 else [cut(console, *cell) for cell in zip(names, row)]
        grid.add_row(*(make_text(console, shown[index]) for index in beside))
        if below:
            text = make_text(console, "  ".join(shown[index] for index in below))
            grid.add_row(Padding(text, (0, 0, 0, GAP)))
    if below:
        grid.columns[0].header = Text(", ".join(names[index] for index in (0, *below)))
    console.print(grid)


def measure(names: Sequence[str], rows: list[list[str]]) -> list[int]:
    """How wide each column is."""
    return [max(map(cell_len, column)) for column in zip(names, *rows)]


def cut(console: Console, column: str, text: str) -> str:
    if column == "message":
        return text
    return shorten(text, LONGEST_NAME, "…" if console.encoding == "utf-8" else "...")


def make_grid(columns: Sequence[str]) -> Grid:
    """Columns of numbers keep their width, those of text are broken where there is no room."""
    grid = Grid(
        box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="underline", show_header=any(columns)
    )
    for column in columns:
        is_text = column.startswith("<")
        grid.add_column(
            Text(column.lstrip("<")),
            justify="left" if is_text else "right",
            no_wrap=not is_text,
            overflow="fold",
        )
    return grid
