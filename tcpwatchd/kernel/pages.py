"""Raw pages of the kernel's ring buffers, decoded into transitions. No I/O.

The layout of pages and records is the kernel's to tell, in events/header_page, events/header_event and the
event's format (Documentation/trace/ring-buffer-design.rst).
"""

from __future__ import annotations

import operator
import re
import struct
import sys
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from tcpwatchd.connection import MAPPED, End, Endpoint, Formats, TcpState, Transition, make

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
CODES = {2: ("H",), 4: ("i",), 8: ("Q",), 16: ("12s", "4s")}
"""Of a field of so many bytes. An address is in two parts: the first tells whether it is IPv4-mapped."""
STATES = {state.value: state for state in TcpState}
CLOSE = TcpState.CLOSE.value
NOWHERE = End(Endpoint(), Endpoint())
"""Stands for the end of a socket that closes: nobody asks for it."""

MOST_LOST = 1 << 40
"""No page says that so many records were lost, unless it makes no sense."""
NONSENSE = 60_000_000_000
"""No record is so many nanoseconds newer than the start of its drain, unless its clock was changed."""

Fields = tuple[Any, ...]
"""An entry's first word, then its record in the order of FIELDS."""


class Layout(NamedTuple):
    """Where things stand in a page and in a record."""

    size: int
    """Bytes of a page."""
    data: int
    """Where its records begin."""
    header: struct.Struct
    """Time stamp and commit word of a page."""
    entry: struct.Struct
    """An entry's first word, and the fields of its record by their offsets."""
    loss: struct.Struct
    """The count of lost records behind the last record: a long of the kernel."""
    event: int
    """The number of the event, which its records have as `common_type`: others may be traced here too."""
    pick: Callable[[Fields], Fields] | None
    """Brings what `entry` unpacks into the order of FIELDS, if it is another."""


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

    def decode(self, drain: Drain) -> tuple[list[Transition], int]:
        """Transitions in the order of time, and how many records were lost or could not be decoded.

        What the kernel says was taken out and was not decoded is lost, whatever became of it. Transitions
        newer than the start of the drain wait for the next one: a pair on two CPUs could come out of order
        otherwise.
        """
        found: list[Transition] = []
        others, damaged = 0, False
        for page in drain.pages:
            try:
                transitions, foreign = decode_page(page, self.layout)
                found += transitions
                others += foreign
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
    page, record = parse_fields(formats.page), parse_fields(formats.record)
    event = re.search(r"^ID: (\d+)$", formats.record, re.MULTILINE)
    if (
        event is None
        or not re.search(ENTRY, formats.entry)
        or not {"timestamp", "commit", "data"} <= page.keys()
        or not {"common_type", *FIELDS} <= record.keys()
        or record["common_type"] != (0, TYPE.size)
    ):
        raise ValueError("this kernel's trace records have an unknown layout")
    data, capacity = page["data"]
    try:
        long = {4: "I", 8: "Q"}[page["commit"][1]]
        header, loss = struct.Struct(f"=Q{long}"), struct.Struct(f"={long}")
        entry, pick = read_entry(record)
    except (KeyError, struct.error) as error:
        raise ValueError("this kernel's trace records have an unknown layout") from error
    return Layout(data + capacity, data, header, entry, loss, int(event[1]), pick)


def read_stamp(page: bytes, layout: Layout) -> int:
    """When its first record was written; 0 of what is no page."""
    return int(layout.header.unpack_from(page)[0]) if len(page) >= layout.header.size else 0


def trim(page: bytes, layout: Layout) -> bytes:
    """Without what follows its records and the count of lost ones."""
    if len(page) < layout.data:
        return page
    _, commit = layout.header.unpack_from(page)
    return page[: layout.data + (commit & LENGTH) + layout.loss.size]


def find_loss(page: bytes, layout: Layout) -> int | None:
    """How many records were overwritten before this page; None if some were and it had no room to say."""
    if len(page) < layout.data:
        return 0  # a page that makes no sense is found out when it is decoded
    _, commit = layout.header.unpack_from(page)
    count = layout.data + (commit & LENGTH)
    if not commit & MISSED or (commit & COUNTED and count + layout.loss.size > len(page)):
        return 0
    (lost,) = layout.loss.unpack_from(page, count) if commit & COUNTED else (MOST_LOST,)
    return int(lost) if lost < MOST_LOST else None


def read_entry(fields: dict[str, tuple[int, int]]) -> tuple[struct.Struct, Callable[[Fields], Fields] | None]:
    """`entry` and `pick` of a layout. What the kernel adds to a record makes it a multiple of a pointer."""
    ordered = sorted(FIELDS, key=fields.__getitem__)
    codes, end, values, places = "=I", 0, 1, {}
    for name in ordered:
        offset, size = fields[name]
        codes += f"{offset - end}x{''.join(CODES[size])}"
        end = offset + size
        places[name] = range(values, values + len(CODES[size]))
        values += len(CODES[size])
    whole = max(offset + size for offset, size in fields.values())
    pointer = struct.calcsize("P")
    entry = struct.Struct(f"{codes}{-(-whole // pointer) * pointer - end}x")
    if ordered == list(FIELDS):
        return entry, None
    return entry, operator.itemgetter(0, *(place for name in FIELDS for place in places[name]))


def decode_page(page: bytes, layout: Layout) -> tuple[list[Transition], int]:
    """The transitions of a page, in its order, and how many records of other events it has.

    Raises KeyError and struct.error for what no kernel writes.
    """
    stamp, commit = layout.header.unpack_from(page)
    data = page[layout.data : layout.data + (commit & LENGTH)]
    times, records, others = split_uniform(data, stamp, layout) or split_mixed(data, stamp, layout)
    if layout.pick:
        records = map(layout.pick, records)
    found = []
    for when, fields in zip(times, records):
        _, pid, skaddr, old, new, sport, dport, local_head, local, remote_head, remote = fields
        end = NOWHERE
        if new != CLOSE:
            local += sport.to_bytes(2, "big")
            remote += dport.to_bytes(2, "big")
            if local_head != MAPPED:
                local = local_head + local
            if remote_head != MAPPED:
                remote = remote_head + remote
            end = make(End, (Endpoint(local), Endpoint(remote)))
        found.append(make(Transition, (when, skaddr, STATES[old], STATES[new], end, pid)))
    return found, others


def split_uniform(
    data: bytes, stamp: int, layout: Layout
) -> tuple[Iterable[int], Iterable[Fields], int] | None:
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
    return islice(times, 1, None), records, 0


def split_mixed(data: bytes, stamp: int, layout: Layout) -> tuple[list[int], list[Fields], int]:
    """The times and records of any page, entry by entry (rb_event_length in kernel/trace/ring_buffer.c).

    Records of other events are counted.
    """
    now, at, times, records, others = stamp, 0, [], [], 0
    while at + WORD.size <= len(data):
        (word,) = WORD.unpack_from(data, at)
        kind, delta = word >> KIND & KINDS, word >> DELTA & LONGEST_DELTA
        if kind == PADDING and not delta:
            break  # the rest of the page is empty
        second = 0
        if kind == LONG or kind > LONGEST_SHORT:
            (second,) = WORD.unpack_from(data, at + WORD.size)
        if kind <= LONGEST_SHORT:
            now += delta
            before = at if kind else at + WORD.size
            if TYPE.unpack_from(data, before + WORD.size)[0] == layout.event:
                times.append(now)
                records.append(layout.entry.unpack_from(data, before))
            else:
                others += 1
            at += WORD.size + (WORD.size * kind if kind else second)
        elif kind == PADDING:  # a record that was discarded
            now += delta
            at += WORD.size + second
        elif kind == TIME_EXTEND:
            now += (second << 27) + delta
            at += 2 * WORD.size
        else:
            now = (second << 27) + delta
            at += 2 * WORD.size
    return times, records, others


def parse_fields(text: str) -> dict[str, tuple[int, int]]:
    """Name → offset and size, of the lines of a format file."""
    found = re.findall(r"field:[^;]*?(\w+)(?:\[\d+\])?;\s*offset:(\d+);\s*size:(\d+);", text)
    return {name: (int(offset), int(size)) for name, offset, size in found}
