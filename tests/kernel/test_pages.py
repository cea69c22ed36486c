"""Pages written by hand, in the layout that a real kernel states: times, padding, losses, order, damage."""

from __future__ import annotations

import os
import re
import struct
import sys
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.clock import boot_ns
from tcpwatchd.kernel.instance import TRACEPOINT, TraceError, read_online_cpus
from tcpwatchd.kernel.pages import (
    Decoder,
    Layout,
    decode_page,
    find_loss,
    find_records,
    read_layout,
    split_uniform,
    trim,
)
from tcpwatchd.kernel.trace import Trace, read_formats
from tests.ring import COUNTED, FIXTURE, MISSED, SIZE, make_instance, page, record, word

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(
    sys.byteorder != "little", reason="the layout is that of a little-endian kernel"
)


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return read_layout(read_formats(make_instance(tmp_path_factory.mktemp("instance"), b""), TRACEPOINT))


def decode(layout: Layout, *entries: bytes) -> list[tuple[int, int]]:
    return [(t.time, t.skaddr) for t in decode_page(page(1000, *entries), layout)[0]]


def test_a_record(layout: Layout) -> None:
    (found,) = decode_page(page(1000, record(9, 5)), layout)[0]
    assert (found.time, found.skaddr, found.thread) == (1005, 9, 77)
    assert (found.old.name, found.new.name) == ("SYN_SENT", "ESTABLISHED")
    assert (str(found.end.local), str(found.end.remote)) == ("10.0.0.1:5000", "10.0.0.2:80")


def test_deltas_add_up(layout: Layout) -> None:
    assert decode(layout, record(1, 1), record(2, 2), record(3, 3)) == [(1001, 1), (1003, 2), (1006, 3)]


def test_a_time_extend_adds_its_upper_bits(layout: Layout) -> None:
    extend = word(30, 7) + struct.pack("<I", 3)
    assert decode(layout, extend, record(1, 1)) == [(1000 + (3 << 27) + 7 + 1, 1)]


def test_an_absolute_time_replaces(layout: Layout) -> None:
    stamp = word(31, 7) + struct.pack("<I", 3)
    assert decode(layout, stamp, record(1, 1)) == [((3 << 27) + 7 + 1, 1)]


def test_a_record_with_its_length_in_a_word(layout: Layout) -> None:
    payload = record(1)[4:]
    long = word(0, 5) + struct.pack("<I", len(payload) + 4) + payload
    assert decode(layout, long, record(2, 1)) == [(1005, 1), (1006, 2)]


def test_a_discarded_record_is_passed_over(layout: Layout) -> None:
    discarded = word(29, 1) + struct.pack("<I", 72) + b"\xff" * 68
    assert [skaddr for _, skaddr in decode(layout, discarded, record(2))] == [2]


def test_padding_ends_a_page(layout: Layout) -> None:
    assert [skaddr for _, skaddr in decode(layout, record(1), word(29, 0), b"\xff" * 80)] == [1]


def drain(trace: Trace, decoder: Decoder | None = None) -> tuple[list[int], int]:
    """The sockets of a drain's transitions, and how many records were lost."""
    transitions, lost = (decoder or Decoder(trace.formats, trace.taken)).decode(trace.drain())
    return [t.skaddr for t in transitions], lost


def test_cpus_are_merged_by_time(tmp_path: Path) -> None:
    first = page(1000, record(1, 1), record(4, 3)) + page(2000, record(5, 0))
    second = page(1000, record(2, 2), record(3, 1))
    trace = Trace(make_instance(tmp_path, first, second))
    assert drain(trace) == ([1, 2, 3, 4, 5], 0)
    trace.close()


def test_newer_records_wait_for_the_next_drain(tmp_path: Path) -> None:
    soon = boot_ns() + 300_000_000
    trace = Trace(make_instance(tmp_path, page(soon, record(2, 0)), page(1000, record(1))))
    decoder = Decoder(trace.formats, trace.taken)
    assert drain(trace, decoder) == ([1], 0)
    time.sleep(0.35)
    assert drain(trace, decoder) == ([2], 0)
    assert decoder.take_deferred() == []
    trace.close()


def test_what_waits_is_taken_at_the_end(tmp_path: Path) -> None:
    later = boot_ns() + 10**10
    trace = Trace(make_instance(tmp_path, page(later, record(2, 0))))
    decoder = Decoder(trace.formats, trace.taken)
    assert drain(trace, decoder) == ([], 0)
    assert [t.skaddr for t in decoder.take_deferred()] == [2]
    trace.close()


def test_losses_are_counted_by_the_page(tmp_path: Path) -> None:
    pages = page(1000, record(1)) + page(2000, record(2), flags=MISSED | COUNTED, lost=41)
    trace = Trace(make_instance(tmp_path, pages, page(1, record(3), flags=MISSED | COUNTED, lost=1)))
    assert drain(trace) == ([3, 1, 2], 42)
    trace.close()


def test_losses_without_room_for_the_count_are_in_the_statistics(tmp_path: Path) -> None:
    trace = Trace(make_instance(tmp_path, page(1000, record(1), flags=MISSED)))
    (tmp_path / "per_cpu/cpu0/stats").write_text("overrun: 17\nread events: 1\n")
    assert drain(trace)[1] == 17
    trace.close()


def test_a_damaged_page_loses_its_own_records_alone(tmp_path: Path) -> None:
    """The kernel's count of what was taken out tells how many they were."""
    impossible = record(2).replace(struct.pack("<i", 1), struct.pack("<i", 99))
    trace = Trace(make_instance(tmp_path, page(1000, record(1)) + page(2000, impossible, record(3))))
    decoder = Decoder(trace.formats, trace.taken)
    (tmp_path / "per_cpu/cpu0/stats").write_text("overrun: 0\nread events: 3\n")
    assert drain(trace, decoder) == ([1], 2)
    trace.close()


def test_a_kernel_with_another_layout_is_refused(tmp_path: Path) -> None:
    path = make_instance(tmp_path, b"")
    text = (tmp_path / TRACEPOINT / "format").read_text()
    (tmp_path / TRACEPOINT / "format").write_text(text.replace("oldstate", "laststate"))
    with pytest.raises(TraceError, match="unknown layout"):
        Trace(path)


def test_fields_in_another_order_are_read_by_their_offsets(tmp_path: Path) -> None:
    path = make_instance(tmp_path, b"")
    text = (tmp_path / TRACEPOINT / "format").read_text()
    swapped = text.replace("oldstate;", "x;").replace("newstate;", "oldstate;").replace("x;", "newstate;")
    (tmp_path / TRACEPOINT / "format").write_text(swapped)
    (found,) = decode_page(page(1000, record(9)), read_layout(read_formats(path, TRACEPOINT)))[0]
    assert (found.old.name, found.new.name) == ("ESTABLISHED", "SYN_SENT")


@given(st.binary(max_size=200))
def test_a_damaged_page_ends_in_a_stated_error(data: bytes) -> None:
    damaged = (struct.pack("<QQ", 1, len(data)) + data).ljust(SIZE, b"\0")
    try:
        decode_page(damaged, LAYOUT)
    except (KeyError, struct.error):
        return


@given(st.lists(st.integers(0, 2**27 - 1), max_size=50), st.binary(max_size=4))
def test_the_short_way_and_the_long_way_agree(deltas: list[int], rest: bytes) -> None:
    data = b"".join(record(number, delta) for number, delta in enumerate(deltas)) + rest
    short = split_uniform(data, 1000, LAYOUT)
    if rest or not deltas:
        assert short is None
    else:
        assert short is not None
        times, places = find_records(data, 1000)
        records = [LAYOUT.entry.unpack_from(data, place) for place in places]
        assert (list(short[0]), list(short[1])) == (times, records)


LAYOUT = read_layout(read_formats(str(FIXTURE), TRACEPOINT))


def test_the_count_of_lost_records_is_a_long_of_the_kernel(tmp_path: Path) -> None:
    """4 bytes, and the length of the data too, on a kernel of 32 bits."""
    formats = read_formats(make_instance(tmp_path, b""), TRACEPOINT)
    narrow = re.sub(r"(commit;\s*offset:8;\s*size:)8", r"\g<1>4", formats.page)
    narrow = re.sub(r"(data;\s*offset:)16(;\s*size:)\d+", r"\g<1>12\g<2>4084", narrow)
    layout = read_layout(formats._replace(page=narrow))
    data = record(1)
    raw = struct.pack("<QI", 1000, len(data) | MISSED | COUNTED) + data + struct.pack("<I", 41)
    assert find_loss(raw, layout.page) == 41
    assert decode_page(raw, layout)[0][0].skaddr == 1
    assert trim(raw + bytes(100), layout.page) == raw


def test_only_cpus_that_are_online_are_opened(tmp_path: Path) -> None:
    """The kernel lists those that are possible, of which there may be a thousand."""
    make_instance(tmp_path, page(1000, record(1)))
    (tmp_path / "per_cpu" / "cpu4095").mkdir()
    (tmp_path / "per_cpu" / "cpu4095" / "stats").write_text("overrun: 0\nread events: 0\n")
    trace = Trace(str(tmp_path))
    assert drain(trace) == ([1], 0)
    trace.close()


two_cpus = pytest.mark.skipif(len(read_online_cpus()) < 2, reason="needs two CPUs online")


@two_cpus
def test_a_cpu_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path) -> None:
    instance = make_instance(tmp_path, page(1000, record(1)), page(1000, record(2)))
    (tmp_path / "per_cpu/cpu1/stats").unlink()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with pytest.raises(TraceError, match="cpu1/stats"):
            Trace(instance)
    assert len(os.listdir("/proc/self/fd")) == before


@two_cpus
def test_a_cpu_that_cannot_be_read_stops_no_other(tmp_path: Path) -> None:
    trace = Trace(make_instance(tmp_path, page(1000, record(1)), page(1000, record(2))))
    (tmp_path / "per_cpu/cpu1/stats").write_text("nothing that is known\n")
    first = trace.drain()
    assert [len(first.pages), isinstance(first.failure, ValueError), first.whole] == [1, True, False]
    (tmp_path / "per_cpu/cpu1/stats").write_text("overrun: 0\nread events: 1\n")
    second = trace.drain()
    assert [len(second.pages), second.failure, second.whole] == [1, None, False]
    assert trace.drain().whole
    trace.close()


def test_half_a_page_ends_nothing(tmp_path: Path) -> None:
    """What is read when somebody made the kernel's pages larger."""
    trace = Trace(make_instance(tmp_path, bytes([0xFF]) * SIZE, b"\xff" * 10))
    decoder = Decoder(trace.formats, {})
    assert decoder.decode(trace.drain())[1] >= 1
    trace.close()
