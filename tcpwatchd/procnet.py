"""The poll source: /proc/net/tcp and tcp6 (net/ipv4/tcp_ipv4.c, net/ipv6/tcp_ipv6.c), read as differences.

A row is kept as one byte slice: its addresses, its state, and the columns uid, timeout and inode. Everything
else in it changes all the time or says nothing of identity. No other object exists for a connection that
stays; what is new is found by set operations on slices, and only changed rows are parsed.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import sys
import time
from binascii import hexlify, unhexlify
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.connection import HALF_OPEN, MAPPED, End, Endpoint, Row, Snapshot, TcpState, make, unmap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Set
    from typing import Literal

    ByteOrder = Literal["little", "big"]

PADDED_ROW = 150
"""Length of an IPv4 row unless one of its columns overflows (TMPSZ in tcp_ipv4.c)."""
WIDEST_NUMBER = 10
"""Digits of a row number (an int)."""
BLOCK = 300 * PADDED_ROW
"""Bytes that are sliced at once: a set of 300 fills its table, one of 308 needs the next size."""
QUEUES = 40
"""Width of the columns between the state and the uid, which are not kept."""
OWNER = 30
"""Width of what is kept after them: uid, timeout and inode at ten digits each of uid and inode."""
MOST_ADDRESSES = 4096
"""Local addresses that are kept: a transparent proxy has as many as its clients have servers."""
STATES = {b"%02X" % state: state for state in TcpState}
CONNECTING = b"%02X" % TcpState.SYN_SENT
SKIPPED = frozenset(b"%02X" % state for state in HALF_OPEN)


class TableError(Exception):
    """A file is not a table of TCP sockets."""


class Format:
    """The columns of one family's rows, after the row number: `words` 32-bit words are an address.

    The kernel prints each word as a number, so its bytes stand in the order of the host.
    """

    def __init__(self, words: int, byteorder: ByteOrder) -> None:
        endpoint = f"[0-9A-F]{{{8 * words}}}:[0-9A-F]{{4}}"
        pattern = rf"({endpoint} {endpoint}) (0[1-9A-C]) *[0-9]+ +[0-9]+ +([0-9]+)"
        self._parse = re.compile(pattern.encode()).match
        both = 2 * f"{words}I2s"
        self._printed = struct.Struct(f">{both}")
        self._stored = struct.Struct(f"{'<' if byteorder == 'little' else '>'}{both}")
        self._size = 4 * words + 2
        """Bytes of an endpoint."""
        self.address = 8 * words
        self.key = 2 * (self.address + 5) + 1
        """Width of the two addresses."""
        self.head = self.key + 3
        """Width of the two addresses and the state."""
        self.padded = words == 1
        self._unmap: Callable[[bytes], Endpoint] = Endpoint if self.padded else unmap

    def slice_rows(self, block: bytes) -> list[bytes]:
        """One slice a row. Rows are numbered in order, so their columns shift at most once in a block."""
        number = block.find(b":")
        if self.padded and self._is_regular(block, number):
            skipped = PADDED_ROW - number - 2 - self.head - QUEUES - OWNER
            columns = f"{number + 2}x{self.head}s{QUEUES}x{OWNER}s{skipped}x"
            return list(map(b"".join, struct.iter_unpack(columns, block)))
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        if lines[-1].find(b":") == number:
            return self._slice_lines(lines, number)
        return [text for line in lines for text in self._slice_lines([line], line.find(b":"))]

    def _is_regular(self, block: bytes, number: int) -> bool:
        """Whether all rows have the usual length, and row numbers of one width."""
        rows, odd = divmod(len(block), PADDED_ROW)
        return (
            not odd
            and 0 < number <= WIDEST_NUMBER
            and block[number::PADDED_ROW] == b":" * rows
            and block[PADDED_ROW - 1 :: PADDED_ROW] == b"\n" * rows
        )

    def _slice_lines(self, lines: list[bytes], number: int) -> list[bytes]:
        start, end = number + 2, number + 2 + self.head
        owner, last = end + QUEUES, end + QUEUES + OWNER
        return [line[start:end] + line[owner:last] for line in lines]

    def parse_row(self, text: bytes) -> Row:
        """Parse one slice. Raises ValueError."""
        columns = self._parse(text)
        if columns is None:
            raise ValueError(text)
        ends, state, inode = columns.groups()
        return make(Row, (self._parse_end(ends.translate(None, b": ")), STATES[state], int(inode)))

    def _parse_end(self, digits: bytes) -> End:
        packed = self._stored.pack(*self._printed.unpack(unhexlify(digits)))
        return make(End, (self._unmap(packed[: self._size]), self._unmap(packed[self._size :])))

    def parse_address(self, address: bytes) -> bytes:
        """Raises ValueError or struct.error."""
        return self._parse_end(2 * (address + b"0000")).local.address

    def format_keys(self, ends: Iterable[End]) -> set[bytes]:
        """What slices of these ends begin with; an IPv6 end has none in the table of IPv4."""
        return {self._format_key(end) for end in ends if end.local.is_ipv4 or not self.padded}

    def _format_key(self, end: End) -> bytes:
        wide = [MAPPED + e if e.is_ipv4 and not self.padded else e for e in end]
        packed = self._printed.pack(*self._stored.unpack(b"".join(wide)))
        digits, width = hexlify(packed).upper(), self.address
        local, remote = digits[: width + 4], digits[width + 4 :]
        return b"%b:%b %b:%b" % (local[:width], local[width:], remote[:width], remote[width:])


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
        self._index: set[bytes] | None = None

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
        # Rows that only moved to another block both came and went.
        return Change(blocks, [text for text in came if text not in went], went.difference(came))

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

    def count_connecting(self, slices: Iterable[bytes]) -> int:
        """How many of these are of sockets in SYN_SENT."""
        state = slice(self._format.head - 2, self._format.head)
        return sum(text[state] == CONNECTING for text in slices)

    def find_unchanged(self, change: Change, ends: Set[End], asked: Set[End]) -> list[Row]:
        """Rows of the last reading that the change left as they were, at one of these ends.

        `ends` go for their other ends too.
        """
        if not self.blocks or not (ends or asked):
            return []
        texts = chain.from_iterable(self.blocks)
        if len(self) < len(ends) + len(asked):  # fewer to parse than to format
            wanted = ends | asked
            rows = self.parse((text for text in texts if text not in change.gone), [])
            return [row for row in rows if row.end in wanted or row.end.flipped in ends]
        width = self._format.key
        keys = self._format.format_keys(chain(ends, [end.flipped for end in ends], asked))
        return self.parse([t for t in texts if t[:width] in keys and t not in change.gone], [])

    def holds(self, end: End) -> bool:
        """Whether the last reading had a row of this end. The index is made when it is first needed."""
        if self._index is None:
            key, head = self._format.key, self._format.head
            counted = (text for block in self.blocks for text in block if text[key + 1 : head] not in SKIPPED)
            self._index = {text[:key] for text in counted}
        return not self._index.isdisjoint(self._format.format_keys([end]))

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
        self._addresses: set[bytes] | None = set()
        """Local addresses of all rows so far, None when they are too many to be kept."""
        self._connecting = 0

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
            table.keep(Change(kept, [], set()))
            self._connecting += sum(table.count_connecting(block) for block in kept)
            self._keep_addresses(table.list_addresses(chain.from_iterable(kept)))

    def __len__(self) -> int:
        """Rows of the last reading, of any state."""
        return sum(map(len, self._tables))

    def holds(self, end: End) -> bool:
        """Whether the snapshot that is kept has a row of this end that is not half-open."""
        if self._addresses is not None and end.local.address not in self._addresses:
            return False
        return any(table.holds(end) for table in self._tables)

    def _keep_addresses(self, addresses: set[bytes]) -> None:
        if self._addresses is not None:
            together = self._addresses | addresses
            self._addresses = together if len(together) <= MOST_ADDRESSES else None

    def read_snapshot(self, asked: Iterable[End] = ()) -> Snapshot:
        """Read both tables; `asked` are ends whose unchanged rows are wanted as well.

        The reading before stays the last one until `keep`. Raises OSError and TableError.
        """
        started = time.monotonic_ns()
        changes = [(table, table.read_change()) for table in self._tables]
        ended = time.monotonic_ns()
        malformed: list[bytes] = []
        fresh = [row for table, change in changes for row in table.parse(change.fresh, malformed)]
        gone = [row for table, change in changes for row in table.parse(change.gone, [])]
        ends, wanted = {row.end for row in fresh if row.state != TcpState.LISTEN}, set(asked)
        near = [row for table, change in changes for row in table.find_unchanged(change, ends, wanted)]
        connecting = self._connecting + sum(
            table.count_connecting(change.fresh) - table.count_connecting(change.gone)
            for table, change in changes
        )
        self._changes = [change for _, change in changes]
        for table, change in changes:
            self._keep_addresses(table.list_addresses(change.fresh))
        return Snapshot(started, ended, fresh, gone, near, malformed, connecting)

    def keep(self) -> None:
        """Make the snapshot that was read the last one."""
        for table, change in zip(self._tables, self._changes):
            table.keep(change)
        self._changes = []


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
