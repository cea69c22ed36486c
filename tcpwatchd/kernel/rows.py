"""The text of one row of /proc/net/tcp and tcp6 (net/ipv4/tcp_ipv4.c, net/ipv6/tcp_ipv6.c). No I/O.

A row is kept as one slice of bytes: its addresses, its state, and the columns uid, timeout and inode, cut off
after the last digit. Everything else in a row changes all the time or says nothing of identity.
"""

from __future__ import annotations

import re
import struct
from binascii import hexlify, unhexlify
from typing import TYPE_CHECKING

from tcpwatchd.connection import HALF_OPEN, MAPPED, End, Endpoint, Row, TcpState, make, unmap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Literal

    ByteOrder = Literal["little", "big"]

PADDED_ROW = 150
"""Length of an IPv4 row unless one of its columns overflows (TMPSZ in tcp_ipv4.c)."""
WIDEST_NUMBER = 10
"""Digits of a row number (an int)."""
QUEUES = 40
"""Width of the columns between the state and the uid, which are not kept."""
OWNER = 15
"""Width of uid and timeout and the space after them, unless one overflows; the inode follows."""
GAPS = (5, 14)
"""Where these columns end."""
UID_AND_TIMEOUT = rb" *[0-9]+ +[0-9]+"
STATES = {b"%02X" % state: state for state in TcpState}
CONNECTING = b"%02X" % TcpState.SYN_SENT
SKIPPED = frozenset(b"%02X" % state for state in HALF_OPEN)


class Format:
    """The columns of one family's rows, after the row number: `words` 32-bit words are an address.

    The kernel prints each word as a number, so its bytes stand in the order of the host.
    """

    def __init__(self, words: int, byteorder: ByteOrder) -> None:
        endpoint = f"[0-9A-F]{{{8 * words}}}:[0-9A-F]{{4}}"
        pattern = rf"({endpoint} {endpoint}) (0[1-9A-C]) *([0-9]+) +[0-9]+ +([0-9]+)"
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
        # A row's only colon before a space ends its number. Columns of the usual width are passed over.
        cut = rb"(?s:: (.{%d}).{%d}((?:.{%d}|%b) [0-9]+))" % (self.head, QUEUES, OWNER - 1, UID_AND_TIMEOUT)
        self._cut = re.compile(cut).findall
        self._match = re.compile(rb"(?s:.{%d})%b [0-9]+" % (self.head, UID_AND_TIMEOUT)).match
        self.padded = words == 1
        self._unmap: Callable[[bytes], Endpoint] = Endpoint if self.padded else unmap

    def slice_rows(self, block: bytes) -> list[bytes]:
        """One slice a row.

        Rows of which all columns stand at the same places are unpacked at once, which is the quickest way;
        those of other blocks are cut one by one.
        """
        number = block.find(b":")
        owner = number + 2 + self.head + QUEUES
        end = block.find(b" ", owner + OWNER)
        if self.padded and self._is_regular(block, number, owner, end):
            columns = f"{number + 2}x{self.head}s{QUEUES}x{end - owner}s{PADDED_ROW - end}x"
            return list(map(b"".join, struct.iter_unpack(columns, block)))
        found = self._cut(block)
        if block.endswith(b"\n") and len(found) == count_rows(block):
            return list(map(b"".join, found))
        return [self._slice_line(line + b"\n") for line in block.removesuffix(b"\n").split(b"\n")]

    def _is_regular(self, block: bytes, number: int, owner: int, end: int) -> bool:
        """Whether all rows have the usual length, row numbers of one width, and inodes that end at `end`."""
        rows, odd = divmod(len(block), PADDED_ROW)
        gaps, inode = (end, *[owner + gap for gap in GAPS]), range(owner + OWNER, end)
        return (
            not odd
            and 0 < number <= WIDEST_NUMBER
            and owner + OWNER < end < PADDED_ROW
            and block[number::PADDED_ROW] == b":" * rows
            and block[PADDED_ROW - 1 :: PADDED_ROW] == b"\n" * rows
            and {block[at::PADDED_ROW] for at in gaps} == {b" " * rows}
            and b" " not in b"".join([block[at::PADDED_ROW] for at in inode])
        )

    def _slice_line(self, line: bytes) -> bytes:
        """A row that makes no sense is kept as far as its columns should go."""
        for columns in self._cut(line):
            return b"".join(columns)
        start = line.find(b":") + 2
        owner = start + self.head + QUEUES
        return (line[start : start + self.head] + line[owner : owner + OWNER]).rstrip(b"\n")

    def trim(self, text: bytes) -> bytes:
        """A slice without what follows the inode, which was kept once."""
        found = self._match(text)
        return found[0] if found else text

    def parse_row(self, text: bytes) -> Row:
        """Parse one slice. Raises ValueError."""
        columns = self._parse(text)
        if columns is None:
            raise ValueError(text)
        ends, state, user, inode = columns.groups()
        return make(Row, (self._parse_end(ends.translate(None, b": ")), STATES[state], int(inode), int(user)))

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


def count_rows(block: bytes) -> int:
    """By the numbers of the first and the last row: quicker than by its lines. 0 if they are no numbers."""
    start = block.rfind(b"\n", 0, -1) + 1
    first, last = block[: block.find(b":")].lstrip(b" "), block[start : block.find(b":", start)].lstrip(b" ")
    return 1 + int(last) - int(first) if first.isdigit() and last.isdigit() else 0
