"""Raw pages of the kernel's ring buffers, decoded into transitions and control groups. No I/O.

The layout of pages and records is the kernel's to tell, in events/header_page, events/header_event and the
event's format (Documentation/trace/ring-buffer-design.rst). Transitions come from the kernel's own tracepoint
or from our event probe on it, which has the same names for the same things, and the owner of the socket.
"""

from __future__ import annotations

import operator
import re
import struct
import sys
from functools import lru_cache
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from tcpwatchd.connection import (
    CONNECTED,
    MAPPED,
    Closing,
    ControlGroup,
    End,
    Endpoint,
    Formats,
    Socket,
    TcpState,
    Transition,
    make,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tcpwatchd.connection import Drain

LONG, LONGEST_SHORT, PADDING, TIME_EXTEND, TIME_STAMP = 0, 28, 29, 30, 31
"""Kinds of an entry (enum ring_buffer_type). From 1 to 28 they are the number of words of a record; all
others have a second word: the length of itself and the record, or the upper bits of a time."""
WORD = struct.Struct("=I")
TYPE = struct.Struct("=H")
"""`common_type`, which each record begins with (struct trace_entry)."""
KIND, DELTA = (0, 5) if sys.byteorder == "little" else (27, 0)
"""Where an entry's type and its time stand in its first word: bit fields follow the order of bytes."""
KINDS, LONGEST_DELTA = 0x1F, 0x07FFFFFF
KIND_OF_BYTE = bytes(byte & KINDS if sys.byteorder == "little" else byte >> 3 for byte in range(256))
"""The type of an entry that begins with this byte, for each byte."""
MISSED, COUNTED, LENGTH = 1 << 31, 1 << 30, (1 << 30) - 1
"""Parts of a commit word; its upper half may be the sign of the lower one."""

ENTRY = r"type_len\s*:\s*5 bits\s+time_delta\s*:\s*27 bits\s+array\s*:\s*32 bits"
FIELDS = (
    "common_flags",
    "common_pid",
    "skaddr",
    "oldstate",
    "newstate",
    "sport",
    "dport",
    "saddr_v6",
    "daddr_v6",
)
"""In the order of known kernels."""
OWNER_FIELDS = ("family", "saddr", "uid", "cgroup", "netns", "comm")
"""What the event probe has beside them."""
CLOSING_FIELDS = (
    "netns",
    "error",
    "flags",
    "sent",
    "sent_again",
    "acknowledged",
    "acknowledged_until",
    "sent_until",
    "written_until",
    "received",
    "received_until",
    "read_until",
)
"""And the one for what closes."""
ADDRESSES, ADDRESS_SIZE = {"saddr_v6", "daddr_v6"}, 16
SECOND_HALF = "_low"
"""Ends the name of the second half of an address: a probe fetches no more than 8 bytes at once."""
CODES = {1: ("B",), 2: ("H",), 4: ("i",), 8: ("Q",), 16: ("12s", "4s")}
"""Of a field of so many bytes. An address is in two parts: the first tells whether it is IPv4-mapped."""
UNSIGNED: dict[str, tuple[str, ...]] = {
    "saddr": ("4s",),
    **dict.fromkeys(("uid", "netns", "comm", "acknowledged_until", "sent_until"), ("I",)),
    **dict.fromkeys(("written_until", "received_until", "read_until"), ("I",)),
}
"""Other codes than those of their size."""
STATES = {state.value: state for state in TcpState}
CLOSE, SYN_SENT, LISTEN = TcpState.CLOSE.value, TcpState.SYN_SENT.value, TcpState.LISTEN.value
IPV4 = 2
"""AF_INET (include/linux/socket.h)."""
IN_INTERRUPT = 0x18
"""Flags of a record that was made in an interrupt: whatever runs then asked for nothing."""
NOWHERE = End(Endpoint(), Endpoint())
"""Stands for the end of a socket that closes and had no connection: nobody asks for it."""
FIN_CAME = 2
"""A flag of a socket (SOCK_DONE, include/net/sock.h): a FIN is counted like a byte that was received."""
FIN_WRITTEN = frozenset({TcpState.FIN_WAIT1, TcpState.FIN_WAIT2, TcpState.CLOSING, TcpState.LAST_ACK})
NUMBERS = 0xFFFFFFFF
"""Numbers of bytes in a connection begin again from 0 after this."""
GROUP_FIELDS = ("root", "id", "path")
LONGEST_PATH = 1023
"""Bytes for which the kernel has room: a longer path is cut (TRACE_CGROUP_PATH_LEN)."""
MOST_SOCKETS = 10_000
UNKNOWN = "this kernel's trace records have an unknown layout"

MOST_LOST = 1 << 40
"""No page says that so many records were lost, unless it makes no sense."""
NONSENSE = 60_000_000_000
"""No record is so many nanoseconds newer than the start of its drain, unless its clock was changed."""

Fields = tuple[Any, ...]
"""An entry's first word, then its record in the order of FIELDS, and of what it has beside them."""


class GroupLayout(NamedTuple):
    """Where things stand in the record of a control group that is made."""

    event: int
    record: struct.Struct
    """The fields in the order of GROUP_FIELDS, by their offsets."""


class CloseLayout(NamedTuple):
    """Where things stand in the record of a connection's socket that closes."""

    event: int
    entry: struct.Struct
    pick: Callable[[Fields], Fields] | None
    """As in `Layout`, with CLOSING_FIELDS."""


class PageLayout(NamedTuple):
    """Where things stand in a page."""

    size: int
    """In bytes."""
    data: int
    """Where its records begin."""
    header: struct.Struct
    """Time stamp and commit word."""
    loss: struct.Struct
    """The count of lost records behind the last record: a long of the kernel."""


class Layout(NamedTuple):
    """Where things stand in a page and in a record."""

    page: PageLayout
    entry: struct.Struct
    """An entry's first word, and the fields of its record by their offsets."""
    event: int
    """The number of the event, which its records have as `common_type`: others may be traced here too."""
    pick: Callable[[Fields], Fields] | None
    """Brings what `entry` unpacks into the order of FIELDS, if it is another."""
    owned: bool
    """Whether the record has OWNER_FIELDS."""
    group: GroupLayout | None
    close: CloseLayout | None
    """Where what closes has an event of its own."""


class Page(NamedTuple):
    """What a page holds, in its order."""

    transitions: list[Transition]
    groups: list[ControlGroup]
    others: int
    """Records of other events, those of control groups among them."""


class Decoder:
    """Joins the pages of drains, of all CPUs, into one line of transitions.

    `taken` is how many records had been taken out of each CPU before. Raises ValueError for a kernel whose
    layout is not understood.
    """

    def __init__(
        self, formats: Formats, taken: Mapping[int, int], deferred: Iterable[Transition] = ()
    ) -> None:
        self.layout = read_layout(formats)
        self.taken = dict(taken)
        self.deferred = list(deferred)
        """What was newer than the start of the last drain, and is decoded with the next one."""
        self.counted_anew = False
        """Whether the kernel counts from 0 again, or fewer records than it gave: its buffers were emptied."""
        self._groups: list[ControlGroup] = []

    def take_groups(self) -> list[ControlGroup]:
        """The control groups that were made, of all pages since the last time."""
        groups, self._groups = self._groups, []
        return groups

    def decode(self, drain: Drain) -> tuple[list[Transition], int]:
        """Transitions in the order of time, and how many records were lost or could not be decoded.

        What the kernel says was taken out and was not decoded is lost, whatever became of it. Transitions
        newer than the start of the drain wait for the next one: a pair on two CPUs could come out of order
        otherwise.
        """
        found: list[Transition] = []
        others, damaged = 0, False
        for raw in drain.pages:
            try:
                page = decode_page(raw, self.layout)
                found += page.transitions
                self._groups += page.groups
                others += page.others
            except (KeyError, struct.error):  # what no kernel writes; the kernel's count tells how many
                damaged = True
        decoded = len(found) + others
        self.compare(drain.taken)
        taken = sum(records - self.taken.get(cpu, 0) for cpu, records in drain.taken.items())
        self.counted_anew |= taken < decoded
        self.taken.update(drain.taken)
        found += self.deferred
        found.sort(key=operator.itemgetter(0))
        lost = drain.lost + max(taken - decoded, 1 if damaged else 0)
        while found and found[-1].time > drain.began + NONSENSE:
            found.pop()
            lost += 1
        ready = len(found)
        while ready and found[ready - 1].time > drain.began:
            ready -= 1
        self.deferred = found[ready:]
        return found[:ready], lost

    def compare(self, taken: Mapping[int, int]) -> None:
        """See whether the kernel counts from 0 again."""
        self.counted_anew |= any(records < self.taken.get(cpu, 0) for cpu, records in taken.items())

    def start_anew(self, taken: Mapping[int, int]) -> None:
        """Go on from what the kernel counts now."""
        self.taken.update(taken)
        self.counted_anew = False

    def take_deferred(self) -> list[Transition]:
        """What waits for the next drain, when there will be none."""
        deferred, self.deferred = self.deferred, []
        return deferred


def read_layout(formats: Formats) -> Layout:
    """Raises ValueError for a kernel whose layout is not understood."""
    page = read_page_layout(formats.page, formats.entry)
    record = parse_fields(formats.record)
    owned = record.keys() >= {*OWNER_FIELDS}
    if not {"common_type", *FIELDS} <= record.keys() or record["common_type"] != (0, TYPE.size):
        raise ValueError(UNKNOWN)
    try:
        entry, pick = read_entry(record, FIELDS + OWNER_FIELDS if owned else FIELDS)
        event = read_number(formats.record)
        group = read_group_layout(formats.group) if formats.group else None
        close = read_close_layout(formats.closing) if formats.closing else None
    except (KeyError, struct.error) as error:
        raise ValueError(UNKNOWN) from error
    return Layout(page, entry, event, pick, owned, group, close)


def read_page_layout(page: str, entry: str) -> PageLayout:
    """Of the formats of a page and of the head of an entry. Raises ValueError for unknown ones."""
    fields = parse_fields(page)
    if not re.search(ENTRY, entry) or not {"timestamp", "commit", "data"} <= fields.keys():
        raise ValueError(UNKNOWN)
    data, capacity = fields["data"]
    long = {4: "I", 8: "Q"}.get(fields["commit"][1])
    if long is None:
        raise ValueError(UNKNOWN)
    return PageLayout(data + capacity, data, struct.Struct(f"=Q{long}"), struct.Struct(f"={long}"))


def read_number(text: str) -> int:
    """An event's number, of its format. Raises KeyError."""
    found = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
    if found is None:
        raise KeyError("ID")
    return int(found[1])


def read_group_layout(text: str) -> GroupLayout:
    """Raises KeyError and struct.error."""
    fields = parse_fields(text)
    codes, end = "=", 0
    for name, code in zip(GROUP_FIELDS, ("i", "Q", "I")):
        offset, size = fields[name]
        if size != struct.calcsize(f"={code}"):
            raise KeyError(name)
        codes += f"{offset - end}x{code}"
        end = offset + size
    return GroupLayout(read_number(text), struct.Struct(codes))


def read_close_layout(text: str) -> CloseLayout:
    """Raises KeyError and struct.error."""
    entry, pick = read_entry(parse_fields(text), FIELDS + CLOSING_FIELDS)
    return CloseLayout(read_number(text), entry, pick)


def read_stamp(page: bytes, layout: PageLayout) -> int:
    """When its first record was written; 0 of what is no page."""
    return int(layout.header.unpack_from(page)[0]) if len(page) >= layout.header.size else 0


def trim(page: bytes, layout: PageLayout) -> bytes:
    """Without what follows its records and the count of lost ones."""
    if len(page) < layout.data:
        return page
    _, commit = layout.header.unpack_from(page)
    return page[: layout.data + (commit & LENGTH) + layout.loss.size]


def find_loss(page: bytes, layout: PageLayout) -> int | None:
    """How many records were overwritten before this page; None if some were and it had no room to say."""
    if len(page) < layout.data:
        return 0  # a page that makes no sense is found out when it is decoded
    _, commit = layout.header.unpack_from(page)
    count = layout.data + (commit & LENGTH)
    if not commit & MISSED or (commit & COUNTED and count + layout.loss.size > len(page)):
        return 0
    (lost,) = layout.loss.unpack_from(page, count) if commit & COUNTED else (MOST_LOST,)
    return int(lost) if lost < MOST_LOST else None


def read_entry(
    fields: dict[str, tuple[int, int]], wanted: tuple[str, ...]
) -> tuple[struct.Struct, Callable[[Fields], Fields] | None]:
    """`entry` and `pick` of a layout. Raises KeyError and struct.error.

    What the kernel adds to its own record makes it a multiple of a pointer; probes' are read one by one.
    """
    ordered = sorted(wanted, key=fields.__getitem__)
    codes, end, values, places = "=I", 0, 1, {}
    for name in ordered:
        offset, size = fields[name]
        if fields.get(name + SECOND_HALF) == (offset + size, size):
            size *= 2
        code = UNSIGNED.get(name, CODES[size])
        if struct.calcsize("=" + "".join(code)) != size or (name in ADDRESSES and size != ADDRESS_SIZE):
            raise KeyError(name)
        codes += f"{offset - end}x{''.join(code)}"
        end = offset + size
        places[name] = range(values, values + len(code))
        values += len(code)
    if wanted == FIELDS:
        whole = max(offset + size for offset, size in fields.values())
        pointer = struct.calcsize("P")
        codes += f"{-(-whole // pointer) * pointer - end}x"
    if ordered == list(wanted):
        return struct.Struct(codes), None
    pick = operator.itemgetter(0, *(place for name in wanted for place in places[name]))
    return struct.Struct(codes), pick


def decode_page(page: bytes, layout: Layout) -> Page:
    """Raises KeyError and struct.error for what no kernel writes."""
    stamp, data = split_page(page, layout.page)
    uniform = None if layout.owned else split_uniform(data, stamp, layout)
    if uniform:
        return Page(decode_records(*uniform, layout), [], 0)
    times, places = find_records(data, stamp)
    ours, closing, groups, others = [], [], [], 0
    for when, place in zip(times, places):
        (kind,) = TYPE.unpack_from(data, place + WORD.size)
        if kind == layout.event:
            ours.append((when, place))
        elif layout.close and kind == layout.close.event:
            closing.append(decode_closing(data, when, place, layout.close))
        else:
            others += 1
            if layout.group and kind == layout.group.event:
                groups += decode_group(data, place + WORD.size, layout.group)
    if layout.owned:
        return Page(decode_owned(data, ours, layout) + closing, groups, others)
    records = [layout.entry.unpack_from(data, place) for _, place in ours]
    return Page(decode_records([when for when, _ in ours], records, layout), groups, others)


def split_page(page: bytes, layout: PageLayout) -> tuple[int, bytes]:
    """When its first record was written, and its records. Raises struct.error."""
    stamp, commit = layout.header.unpack_from(page)
    return stamp, page[layout.data : layout.data + (commit & LENGTH)]


def decode_records(times: Iterable[int], records: Iterable[Fields], layout: Layout) -> list[Transition]:
    """Of the kernel's own tracepoint."""
    if layout.pick:
        records = map(layout.pick, records)
    found = []
    for when, fields in zip(times, records):
        _, flags, thread, skaddr, old, new, sport, dport, local_head, local, remote_head, remote = fields
        end = NOWHERE
        if new != CLOSE or old in CONNECTED:
            local += sport.to_bytes(2, "big")
            remote += dport.to_bytes(2, "big")
            if local_head != MAPPED:
                local = local_head + local
            if remote_head != MAPPED:
                remote = remote_head + remote
            end = make(End, (Endpoint(local), Endpoint(remote)))
        if flags & IN_INTERRUPT:
            thread = 0
        found.append(
            make(Transition, (when, skaddr, STATES[old], STATES[new], end, thread, None, None, None))
        )
    return found


def decode_owned(data: bytes, places: Iterable[tuple[int, int]], layout: Layout) -> list[Transition]:
    """Of the event probe; `places` are the times and places of its records."""
    found = []
    unpack, pick = layout.entry.unpack_from, layout.pick
    for when, place in places:
        fields = unpack(data, place)
        (
            _, flags, thread, skaddr, old, new, sport, dport, local_head, local, remote_head, remote,
            family, address, user, group, network, text,
        ) = pick(fields) if pick else fields  # fmt: skip
        end, name = NOWHERE, None
        if new != CLOSE:
            # Of a socket of IPv4 that listens the kernel keeps the address in one place only.
            if new == LISTEN and family == IPV4:
                local_head, local = MAPPED, address
            end = make_end(local_head, local, sport, remote_head, remote, dport)
        if flags & IN_INTERRUPT:
            thread = 0
        elif new in (SYN_SENT, LISTEN):
            name = read_string(data, place + WORD.size, text)
        socket = make_socket(user, group, network)
        found.append(
            make(Transition, (when, skaddr, STATES[old], STATES[new], end, thread, name, socket, None))
        )
    return found


def decode_closing(data: bytes, when: int, place: int, layout: CloseLayout) -> Transition:
    """The record there of the event probe for what closes."""
    fields = layout.entry.unpack_from(data, place)
    (
        _, context, thread, skaddr, old, new, sport, dport, local_head, local, remote_head, remote,
        network, error, flags, sent, sent_again, acknowledged, acknowledged_until, sent_until,
        written_until, received, received_until, read_until,
    ) = layout.pick(fields) if layout.pick else fields  # fmt: skip
    end = make_end(local_head, local, sport, remote_head, remote, dport)
    fin = 1 if flags & FIN_CAME and received else 0
    unread = min(received, received_until - read_until & NUMBERS)
    # A FIN is the last that is written, and counted like a byte when it is sent.
    our_fin = 1 if old in FIN_WRITTEN and sent_until == written_until else 0
    numbered = acknowledged + (sent_until - acknowledged_until & NUMBERS) - our_fin
    counts = max(0, sent - sent_again), max(0, numbered), received - fin, max(0, unread - fin)
    closing = make(Closing, (network, error, flags, *counts))
    if context & IN_INTERRUPT:
        thread = 0
    return make(Transition, (when, skaddr, STATES[old], STATES[new], end, thread, None, None, closing))


def make_end(
    local_head: bytes, local: bytes, sport: int, remote_head: bytes, remote: bytes, dport: int
) -> End:
    """Of addresses in two parts. What is decoded a page at once makes its ends in place, which is quicker."""
    local += sport.to_bytes(2, "big")
    remote += dport.to_bytes(2, "big")
    if local_head != MAPPED:
        local = local_head + local
    if remote_head != MAPPED:
        remote = remote_head + remote
    return make(End, (Endpoint(local), Endpoint(remote)))


@lru_cache(maxsize=MOST_SOCKETS)
def make_socket(user: int, group: int, network: int) -> Socket:
    """Sockets of one service have the same."""
    return Socket(user, group, network)


def decode_group(data: bytes, at: int, layout: GroupLayout) -> list[ControlGroup]:
    """None of the older hierarchies, and none whose path was cut."""
    root, number, text = layout.record.unpack_from(data, at)
    path = read_string(data, at, text)
    return [ControlGroup(number, path)] if root == 0 and 0 < len(path) < LONGEST_PATH else []


def read_string(data: bytes, at: int, text: int) -> bytes:
    """Of a record there; the kernel tells its length, and where in the record it is (__data_loc)."""
    return data[at + (text & 0xFFFF) : at + (text & 0xFFFF) + (text >> 16)].partition(b"\0")[0]


def split_uniform(data: bytes, stamp: int, layout: Layout) -> tuple[Iterable[int], Iterable[Fields]] | None:
    """The times and records of a page that holds nothing but whole records, as a busy kernel writes it.

    None for any other page. Kinds of entries and numbers of events are compared a column at a time.
    """
    if not data or len(data) % layout.entry.size:
        return None
    size, count = layout.entry.size, len(data) // layout.entry.size
    if data[::size].translate(KIND_OF_BYTE) != bytes([size // WORD.size - 1]) * count:
        return None
    types = zip(TYPE.pack(layout.event), (data[WORD.size + at :: size] for at in range(TYPE.size)))
    if any(column != bytes([byte]) * count for byte, column in types):
        return None
    records = list(layout.entry.iter_unpack(data))
    times = accumulate([record[0] >> DELTA & LONGEST_DELTA for record in records], initial=stamp)
    return islice(times, 1, None), records


def find_records(data: bytes, stamp: int) -> tuple[list[int], list[int]]:
    """The time of each record of any page, and where the word before it is.

    Entry by entry (rb_event_length in kernel/trace/ring_buffer.c). Raises struct.error.
    """
    now, at, times, places = stamp, 0, [], []
    unpack, last = WORD.unpack_from, len(data) - WORD.size
    while at <= last:
        (word,) = unpack(data, at)
        kind, delta = word >> KIND & KINDS, word >> DELTA & LONGEST_DELTA
        if 0 < kind <= LONGEST_SHORT:
            now += delta
            times.append(now)
            places.append(at)
            at += WORD.size + WORD.size * kind
            continue
        if kind == PADDING and not delta:
            break  # the rest of the page is empty
        (second,) = unpack(data, at + WORD.size)
        if kind == LONG:
            now += delta
            times.append(now)
            places.append(at + WORD.size)
            at += WORD.size + second
        elif kind == PADDING:  # a record that was discarded
            now += delta
            at += WORD.size + second
        elif kind == TIME_EXTEND:
            now += (second << 27) + delta
            at += 2 * WORD.size
        else:
            now = (second << 27) + delta
            at += 2 * WORD.size
    return times, places


def parse_fields(text: str) -> dict[str, tuple[int, int]]:
    """Name → offset and size, of the lines of a format file."""
    found = re.findall(r"field:[^;]*?(\w+)(?:\[\d+\])?;\s*offset:(\d+);\s*size:(\d+);", text)
    return {name: (int(offset), int(size)) for name, offset, size in found}
