"""The trace source: an event of sockets' states, read raw from an instance of tracefs."""

from __future__ import annotations

from tcpwatchd.connection import Formats
from tcpwatchd.kernel.instance import find_event, is_probe, list_formats, read_file, tells_closing
from tcpwatchd.kernel.pages import read_layout
from tcpwatchd.kernel.reader import ENTRY_FORMAT, PAGE_FORMAT, Reader


class Trace(Reader):
    """`no_owners` is why its event does not tell of owners, if that is known. Raises TraceError."""

    def __init__(self, path: str, no_owners: str | None = None) -> None:
        self.no_owners = no_owners
        super().__init__(path)

    def _learn(self) -> None:
        self.event = find_event(self.path)
        self.tells_owners = is_probe(self.event)
        self.tells_closing = tells_closing(self.path, self.event)
        self.formats = read_formats(self.path, self.event)
        read_layout(self.formats)


def read_formats(path: str, event: str) -> Formats:
    """Raises OSError."""
    head = [read_file(path, name) for name in (PAGE_FORMAT, ENTRY_FORMAT)]
    record, *others = list_formats(event)
    texts = [read_file(path, record)]
    for name in others:
        try:
            texts.append(read_file(path, name))
        except FileNotFoundError:  # a kernel without control groups, or without what closes
            texts.append("")
    return Formats(*head, *texts)
