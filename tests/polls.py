"""A tracker fed with hand-written tables, poll by poll, through the real parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tcpwatchd.connection import TcpState
from tcpwatchd.procnet import Tables
from tcpwatchd.tracker import Tracker
from tests.table import endpoint4, endpoint6, row, write_tables

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from tcpwatchd.connection import End, Snapshot


def split(endpoint: str) -> tuple[str, int]:
    address, _, port = endpoint.rpartition(":")
    return address.strip("[]"), int(port)


def take(tables: Tables, asked: Iterable[End] = ()) -> Snapshot:
    """Read a snapshot, and make it the last one."""
    snapshot = tables.read_snapshot(asked)
    tables.keep()
    return snapshot


class Polls:
    """Each row is written "LOCAL REMOTE STATE INODE"; bracketed addresses stand in the table of IPv6."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tables = Tables(str(root))
        self._tracker = Tracker()
        self.see()

    def see(self, *rows: str) -> list[str]:
        """What is reported at a poll that reads these rows: "SOURCE -> DESTINATION direction"."""
        tables: dict[bool, list[str]] = {False: [], True: []}
        for text in rows:
            local, remote, state, inode = text.split()
            ipv6 = local.startswith("[")
            format_endpoint = endpoint6 if ipv6 else endpoint4
            here, there = format_endpoint(*split(local)), format_endpoint(*split(remote))
            number = len(tables[ipv6])
            tables[ipv6].append(row(number, here, there, TcpState[state], int(inode)))
        write_tables(self._root, tables[False], tables[True])
        found = self._tracker.find_new(take(self._tables, self._tracker.heard))
        return [f"{new.source} -> {new.destination} {new.direction}" for new in found]
