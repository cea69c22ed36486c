"""A bar for whoever waits."""

from __future__ import annotations

import time
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tcpwatchd.report.journals import Fields

PATIENCE = 1.0
"""Seconds until there is one, if it takes so long and leads to a terminal."""
PAUSE = 5_000
"""Entries between two looks at the clock."""


def follow(
    entries: Iterator[tuple[int, Fields]], since: int, until: int, file: IO[str]
) -> Iterator[tuple[int, Fields]]:
    """The same entries. How far it is goes by the time that they were written, in microseconds."""
    if not file.isatty():
        yield from entries
        return
    from rich.console import Console
    from rich.progress import Progress

    begins, number = time.monotonic() + PATIENCE, 0
    with Progress(console=Console(file=file), transient=True, disable=False) as progress:
        progress.stop()
        task = None
        for number, entry in enumerate(entries, 1):
            yield entry
            if number % PAUSE == 0 and time.monotonic() >= begins:
                if task is None:
                    progress.start()
                    task = progress.add_task("Reading the journal", total=until - since)
                progress.update(task, completed=entry[0] - since)
