"""The poll source: /proc/net/tcp and tcp6, read as differences.

No object but its slice exists for a connection that stays; what is new is found by set operations on slices,
and only changed rows are parsed.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.clock import boot_ns
from tcpwatchd.connection import End, Row, Snapshot, TcpState
from tcpwatchd.failure import Failure
from tcpwatchd.kernel.rows import CONNECTING, PADDED_ROW, SKIPPED, STATES, Format

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Set

    from tcpwatchd.kernel.rows import ByteOrder

BLOCK = 300 * PADDED_ROW
"""Bytes that are sliced at once: a set of 300 fills its table, one of 308 needs the next size."""
CLOSED = b"%02X" % TcpState.TIME_WAIT
MOST_ADDRESSES = 4096
"""Local addresses that are kept: a transparent proxy has as many as its clients have servers."""


class TableError(Failure):
    """A file is not a table of TCP sockets."""


class Change(NamedTuple):
    """One reading of one table, and what it brought: slices, the fresh ones in reading order."""

    blocks: list[set[bytes]]
    fresh: list[bytes]
    gone: set[bytes]


class Table:
    """One table, and the slices of its last reading, block by block.

    The kernel keeps its order from reading to reading, so that most blocks stay equal to what they were. Sets
    of this size are filled better than one large one, and nothing as large as the table is ever allocated.
    """

    def __init__(self, path: str, rows: Format) -> None:
        self.path = path
        self._format = rows
        self.blocks: list[set[bytes]] = []
        self._index: dict[bytes, bytes] | None = None

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def read_change(self) -> Change:
        """Compare the table with its last reading, which stays the last one until `keep`.

        Raises OSError and TableError.
        """
        blocks: list[set[bytes]] = []
        came: list[bytes] = []
        went: set[bytes] = set()
        slices = map(self._format.slice_rows, read_blocks(self.path))
        for read, last in zip_longest(slices, self.blocks):
            known, block = last or set(), read or []
            if known != set(block):
                added = [text for text in block if text not in known]
                removed = known.difference(block)
                known = renew(known, added, removed)
                came += added
                went |= removed
            if known:
                blocks.append(known)
        # A row that only moved to another block came and went. One that the kernel printed twice, as it does
        # when a socket is added to the bucket that it is printing, counts once.
        moved = find_shown(came, self.blocks)
        fresh = [text for text in dict.fromkeys(came) if text not in moved]
        return Change(blocks, fresh, went.difference(find_shown(went, blocks)))

    def keep(self, change: Change) -> None:
        self.blocks = change.blocks
        self._index = None

    def list_addresses(self, slices: Iterable[bytes]) -> set[bytes]:
        """The local addresses of these."""
        width, found = self._format.address, set()
        for text in {text[:width] for text in slices}:
            with contextlib.suppress(ValueError, struct.error):  # a malformed row has no end to be asked for
                found.add(self._format.parse_address(text))
        return found

    def trim(self, blocks: Iterable[set[bytes]]) -> list[set[bytes]]:
        """Without what slices of an older version hold beside what is kept now."""
        return [set(map(self._format.trim, block)) for block in blocks]

    def count_connecting(self, slices: Iterable[bytes]) -> int:
        """How many of these are of sockets in SYN_SENT."""
        state = slice(self._format.head - 2, self._format.head)
        return sum(text[state] == CONNECTING for text in slices)

    def find_unchanged(self, change: Change, ends: Set[End], wanted: Set[End]) -> list[Row]:
        """Rows of the last reading that the change left as they were, at one of these ends.

        `ends` go for their other ends too.
        """
        if not self.blocks or not (ends or wanted):
            return []
        texts = chain.from_iterable(self.blocks)
        if len(self) < len(ends) + len(wanted):  # fewer to parse than to format
            rows = self.parse((text for text in texts if text not in change.gone), [])
            return [row for row in rows if row.end in ends or row.end in wanted or row.end.flipped in ends]
        width = self._format.key
        keys = self._format.format_keys(chain(ends, [end.flipped for end in ends], wanted))
        return self.parse([t for t in texts if t[:width] in keys and t not in change.gone], [])

    def holds(self, end: End) -> int:
        """The state of this end's row in the last reading, 0 if there is none; TIME_WAIT only if that is all.

        The index is made when it is first needed.
        """
        if self._index is None:
            key, head = self._format.key, self._format.head
            texts = [text[:head] for text in chain.from_iterable(self.blocks)]
            texts = [text for text in texts if text[-2:] not in SKIPPED]
            closed, others = ([t for t in texts if t.endswith(CLOSED) == are] for are in (True, False))
            self._index = {text[:key]: text[-2:] for text in chain(closed, others)}
        for wanted in self._format.format_keys([end]):
            if wanted in self._index:
                return STATES.get(self._index[wanted], 0)
        return 0

    def parse(self, slices: Iterable[bytes], malformed: list[bytes]) -> list[Row]:
        """Parse all but half-open rows; what cannot be parsed is appended to `malformed`."""
        state = slice(self._format.head - 2, self._format.head)
        rows = []
        for text in slices:
            if text[state] in SKIPPED:
                continue
            try:
                rows.append(self._format.parse_row(text))
            except ValueError:
                malformed.append(text)
        return rows


class OptionalTable(Table):
    """The table of IPv6, which is not there when the kernel runs without it."""

    def read_change(self) -> Change:
        try:
            return super().read_change()
        except FileNotFoundError:
            return Change([], [], set().union(*self.blocks))


class Tables:
    """Both tables of a network namespace. `root` is the directory that holds them."""

    def __init__(self, root: str = "/proc/self/net", byteorder: ByteOrder = sys.byteorder) -> None:
        self._tables = (
            Table(os.path.join(root, "tcp"), Format(1, byteorder)),
            OptionalTable(os.path.join(root, "tcp6"), Format(4, byteorder)),
        )
        self._changes: list[Change] = []
        self._came: set[End] = set()
        self._went: set[End] = set()
        """Ends of connections of which the last reading brought rows, and of which rows went."""
        self._addresses: set[bytes] | None = set()
        """Local addresses of all rows so far, None when they are too many to be kept."""
        self._connecting = self._connecting_now = 0
        """Sockets in SYN_SENT: in the snapshot that is kept, and in the one that was read after it."""

    @property
    def ipv6(self) -> bool:
        """Whether the kernel has a table of IPv6."""
        return os.path.exists(self._tables[1].path)

    @property
    def blocks(self) -> list[list[set[bytes]]]:
        """The slices of the snapshot that is kept, for each table in the kernel's order."""
        return [table.blocks for table in self._tables]

    def restore(self, blocks: Iterable[list[set[bytes]]]) -> None:
        """Go on from the `blocks` of another process."""
        self._connecting = 0
        for table, kept in zip(self._tables, blocks):
            table.keep(Change(table.trim(kept), [], set()))
            self._connecting += table.count_connecting(set().union(*table.blocks))
            self._keep_addresses(table.list_addresses(chain.from_iterable(table.blocks)))

    def __len__(self) -> int:
        """Rows of the last reading, of any state."""
        return sum(map(len, self._tables))

    def holds(self, end: End) -> int:
        """The state of this end's row in the snapshot that is kept, 0 if it has none; half-open is none."""
        if self._addresses is not None and end.local.address not in self._addresses:
            return 0
        return next(filter(None, [table.holds(end) for table in self._tables]), 0)

    def _keep_addresses(self, addresses: set[bytes]) -> None:
        if self._addresses is not None:
            together = self._addresses | addresses
            self._addresses = together if len(together) <= MOST_ADDRESSES else None

    def read_snapshot(self) -> Snapshot:
        """Read both tables. The reading before stays the last one until `keep`.

        Raises OSError and TableError.
        """
        started = boot_ns()
        changes = [(table, table.read_change()) for table in self._tables]
        ended = boot_ns()
        malformed: list[bytes] = []
        fresh = [row for table, change in changes for row in table.parse(change.fresh, malformed)]
        gone = [row for table, change in changes for row in table.parse(change.gone, [])]
        self._connecting_now = self._connecting + sum(
            table.count_connecting(change.fresh) - table.count_connecting(change.gone)
            for table, change in changes
        )
        self._changes = [change for _, change in changes]
        self._came, self._went = (
            {r.end for r in rows if r.state != TcpState.LISTEN} for rows in (fresh, gone)
        )
        for table, change in changes:
            self._keep_addresses(table.list_addresses(change.fresh))
        return Snapshot(started, ended, fresh, gone, malformed, self._connecting_now)

    def find_unchanged(self, wanted: Iterable[End]) -> list[Row]:
        """Rows that stayed as they were: at either end of a fresh row's connection, beside a row that went,
        or at a wanted end. They are asked for until the snapshot is kept.
        """
        others = self._went.union(wanted)
        found = zip(self._tables, self._changes)
        return [row for table, change in found for row in table.find_unchanged(change, self._came, others)]

    def keep(self) -> None:
        """Make the snapshot that was read the last one."""
        for table, change in zip(self._tables, self._changes):
            table.keep(change)
        self._changes = []
        self._connecting = self._connecting_now


def find_shown(texts: Collection[bytes], blocks: Iterable[set[bytes]]) -> set[bytes]:
    """Those of some slices that stand in a block."""
    few = set(texts)
    return few and few.intersection(chain.from_iterable(map(few.intersection, blocks)))


def renew(known: set[bytes], added: list[bytes], removed: set[bytes]) -> set[bytes]:
    """A changed copy of a set, made of its own objects where they stay: memory is not moved about."""
    changed = known - removed
    changed.update(added)
    return changed


def read_blocks(path: str) -> Iterator[bytes]:
    """Read a table's rows, many at a time and none cut in two. Raises OSError and TableError."""
    with open(path, "rb", buffering=BLOCK) as table:
        header = table.readline(BLOCK)
        if header.split()[:2] != [b"sl", b"local_address"]:
            raise TableError(f"{path}: no header in the first line: {header[:60]!r}")
        rest = b""
        while chunk := table.read(BLOCK):
            block = rest + chunk
            end = block.rfind(b"\n") + 1
            rest = block[end:]
            if len(rest) >= BLOCK:
                raise TableError(f"{path}: no end of line in {len(rest)} bytes: {rest[:60]!r}")
            if end:
                yield block[:end]
        if rest:
            yield rest
