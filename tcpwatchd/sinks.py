"""Where events go. Every sink writes a whole batch before it returns and raises OSError when it cannot."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from tcpwatchd.event import CONNECTION_OPENED, Event, format_local

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

STDOUT, STDERR = 1, 2
JOURNAL_SOCKET = "/run/systemd/journal/socket"


class Sink(Protocol):
    """`fileno` is the descriptor whose reader may go away, if there is one."""

    fileno: int | None

    def send(self, events: Sequence[Event]) -> None: ...


class JournalSink:
    """The systemd journal, each event one entry with its fields.

    Raises ImportError without python-systemd, and FileNotFoundError where no journal runs: libsystemd would
    drop the entries and say nothing.
    """

    fileno: int | None = None

    def __init__(self) -> None:
        from systemd.journal import sendv

        os.stat(JOURNAL_SOCKET)
        self._sendv = sendv

    def send(self, events: Sequence[Event]) -> None:
        for event in events:
            self._sendv(*[f"{name}={value}" for name, value in event.fields.items()])


class TextSink:
    """A line for each connection on stdout; what else is said goes to stderr. OSError without stdout."""

    fileno: int | None = STDOUT

    def __init__(self) -> None:
        os.fstat(STDOUT)

    def send(self, events: Sequence[Event]) -> None:
        lines: dict[int, list[str]] = {STDOUT: [], STDERR: []}
        for time, fields in events:
            if fields["MESSAGE_ID"] == CONNECTION_OPENED:
                lines[STDOUT].append(f"{format_local(time)}: {fields['MESSAGE']}")
            else:
                lines[STDERR].append(f"tcpwatchd: {fields['MESSAGE']}")
        for descriptor, texts in lines.items():
            write_lines(descriptor, texts)


class JsonSink:
    """One JSON object a line on stdout, for events of every kind. OSError without stdout."""

    fileno: int | None = STDOUT

    def __init__(self) -> None:
        from json import dumps

        os.fstat(STDOUT)
        self._dumps = dumps

    def send(self, events: Sequence[Event]) -> None:
        write_lines(STDOUT, (self._dumps(event.fields) for event in events))


SINKS: dict[str, Callable[[], Sink]] = {"journal": JournalSink, "text": TextSink, "json": JsonSink}


def write_lines(descriptor: int, lines: Iterable[str]) -> None:
    """Write lines past any buffer, so that a reader has them now."""
    rest = "".join(f"{line}\n" for line in lines).encode()
    while rest:
        rest = rest[os.write(descriptor, rest) :]
