"""A bar for whoever waits."""

from __future__ import annotations

import time
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from tcpwatchd.report.journals import Fields

PATIENCE = 1.0
"""Seconds until there is one, if it takes so long and leads to a terminal."""
PAUSE = 5_000
"""Entries between two looks at the clock."""


def follow(
    entries: Iterator[tuple[int, Fields]], since: int, until: int, file: IO[str]
) -> Iterator[tuple[int, Fields]]:
    """The same entries. How far it is goes by the time that they were written, in microseconds."""
    console = find_console(file)
    if console is None:
        yield from entries
        return
    from rich.progress import Progress

    begins = time.monotonic() + PATIENCE
    progress = Progress(console=console, transient=True)
    task = None
    try:
        for number, entry in enumerate(entries, 1):
            yield entry
            if number % PAUSE == 0 and time.monotonic() >= begins:
                if task is None:
                    progress.start()
                    task = progress.add_task("Reading the journal", total=until - since)
                progress.update(task, completed=entry[0] - since)
    finally:
        if task is not None:  # one that never started would leave an empty line
            progress.stop()


def find_console(file: IO[str]) -> Console | None:
    """Where a bar can be drawn: without rich there is none, for the report may not need it."""
    if not file.isatty():
        return None
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return None
    console = Console(file=file)
    return console if console.is_interactive else None
