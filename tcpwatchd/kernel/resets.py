"""The closed ports that somebody tries: an event of the resets that this machine sends.

It has an instance of its own. Whoever scans decides how many records there are, and they must push out none
of a connection. Kernels before 6.10 do not record the resets of closed ports; there the event has no reason.
"""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING, NamedTuple

from tcpwatchd.connection import End, Reset, make, unmap
from tcpwatchd.kernel.instance import RESETS, TraceError, read_file
from tcpwatchd.kernel.pages import (
    IPV4,
    TYPE,
    UNKNOWN,
    WORD,
    find_records,
    parse_fields,
    read_number,
    split_page,
)
from tcpwatchd.kernel.reader import Reader

if TYPE_CHECKING:
    from tcpwatchd.connection import Drain
    from tcpwatchd.kernel.pages import PageLayout

ADDRESS = 28
"""Bytes of a `struct sockaddr_in6`, in which that of IPv4 stands too."""
SOCKADDR, SOCKADDR6 = struct.Struct("=H2s4s"), struct.Struct("=H2s4x16s")
IPV6 = 10
"""AF_INET6 (include/linux/socket.h)."""


class ResetLayout(NamedTuple):
    """Where things stand in a record."""

    event: int
    """Its number, as in `Layout`."""
    local: int
    remote: int


class Resets(Reader):
    """Of the instance for resets. Raises TraceError."""

    event = RESETS
    wakes = False

    def _learn(self) -> None:
        self._layout = read_reset_layout(read_file(self.path, f"{RESETS}/format"))

    def check(self) -> None:
        """Raises TraceError if it was not as it should be, repaired or not, and OSError."""
        try:
            super().check()
        except TraceError:
            with contextlib.suppress(OSError):  # the service may not
                self.repair()
            raise
        taken = self.count_handed_over()
        before, self.taken = self.taken, {**self.taken, **taken}
        if any(records < before.get(cpu, 0) for cpu, records in taken.items()):
            raise TraceError(f"{self.path}: its buffers were emptied")

    @property
    def total(self) -> int:
        """How many records it ever gave, to whomever."""
        return sum(self.taken.values())

    def read(self) -> tuple[list[Reset], int, Exception | None]:
        """Those since the last time, in the order of time; how many more were lost, at least; and why some
        could not be read, if they could not.
        """
        drain = self.drain()
        self.taken.update(drain.taken)
        found, lost = decode_resets(drain, self.page, self._layout)
        return found, lost, drain.failure


def decode_resets(drain: Drain, page: PageLayout, layout: ResetLayout) -> tuple[list[Reset], int]:
    """What cannot be decoded is lost."""
    found, lost = list[Reset](), drain.lost
    for raw in drain.pages:
        try:
            found += decode_page(raw, page, layout)
        except (struct.error, ValueError):  # what no kernel writes
            lost += 1
    found.sort()
    return found, lost


def decode_page(raw: bytes, page: PageLayout, layout: ResetLayout) -> list[Reset]:
    """Raises struct.error and ValueError for what no kernel writes."""
    stamp, content = split_page(raw, page)
    found = []
    for when, place in zip(*find_records(content, stamp)):
        start = place + WORD.size
        if TYPE.unpack_from(content, start)[0] == layout.event:
            local, remote = (unpack(content, start + at) for at in (layout.local, layout.remote))
            found.append(make(Reset, (when, make(End, (unmap(local), unmap(remote))))))
    return found


def unpack(content: bytes, at: int) -> bytes:
    """Address and port, packed, of a `struct sockaddr` (ip(7), ipv6(7)). Raises struct.error, ValueError."""
    family, port, address = SOCKADDR.unpack_from(content, at)
    if family == IPV6:
        _, port, address = SOCKADDR6.unpack_from(content, at)
    elif family != IPV4:
        raise ValueError(family)
    return bytes(address + port)


def read_reset_layout(text: str) -> ResetLayout:
    """Of the event's format. Raises ValueError for one that is not understood."""
    fields = parse_fields(text)
    if not tells_closed_ports(text) or {fields["saddr"][1], fields["daddr"][1]} != {ADDRESS}:
        raise ValueError(UNKNOWN)
    try:
        return ResetLayout(read_number(text), fields["saddr"][0], fields["daddr"][0])
    except KeyError as error:
        raise ValueError(UNKNOWN) from error


def tells_closed_ports(text: str) -> bool:
    """Whether the event is recorded for closed ports too, by its format."""
    return {"reason", "skaddr", "saddr", "daddr"} <= parse_fields(text).keys()
