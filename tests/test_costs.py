"""Counts of operations, which no slow machine changes: what a poll reads, calls and keeps."""

from __future__ import annotations

import gc
import itertools
import re
import shutil
import sys
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tcpwatchd.connection import Drain, Endpoint, TcpState, Transition
from tcpwatchd.kernel.instance import TRACEPOINT
from tcpwatchd.kernel.pages import Decoder
from tcpwatchd.kernel.tables import BLOCK, Tables
from tcpwatchd.kernel.trace import read_formats
from tcpwatchd.tracking.closings import Closings
from tcpwatchd.tracking.tracker import Tracker
from tests.daemon import Daemon, with_proc
from tests.kept import CONNECTION, END, OWNER
from tests.polls import find_new
from tests.ring import FIXTURE, FULL, pack_transition, page
from tests.table import endpoint4, endpoint6, row, write_counters, write_tables

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 20_000
BLOCKS = ROWS // 300 + 1


def write_rows(root: Path, count: int, ipv6: bool = False) -> None:
    """Connections of one server."""
    endpoint, prefix = (endpoint6, "2001:db8::") if ipv6 else (endpoint4, "10.9.0.")
    server = endpoint(f"{prefix}1", 80)
    rows = [
        row(i, server, endpoint(f"{prefix}{2 + i // 60000}", 1 + i % 60000), 1, 9 + i) for i in range(count)
    ]
    write_tables(root, [] if ipv6 else rows, rows if ipv6 else [])


def count_calls(act: Callable[[], object]) -> int:
    """Of functions, in Python and in C."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        act()
    finally:
        sys.setprofile(None)
    return calls


class Watched:
    """Tables and a tracker that know what they show."""

    def __init__(self, root: Path) -> None:
        self._tables, self._tracker = Tables(str(root)), Tracker()
        self.poll()
        self.poll()

    def poll(self) -> None:
        find_new(self._tables, self._tracker)


def read_calls() -> int:
    """Reading system calls of this process (proc(5): io)."""
    return int(re.findall(r"syscr: (\d+)", Path("/proc/self/io").read_text())[0])


def test_reading_calls_of_a_poll(tmp_path: Path) -> None:
    write_rows(tmp_path, ROWS)
    watched = Watched(tmp_path)
    own = -read_calls() + read_calls()
    before = read_calls()
    watched.poll()
    reads = read_calls() - before - own
    assert reads <= (tmp_path / "tcp").stat().st_size // BLOCK + 6


def test_nothing_new_calls_nothing_a_row(tmp_path: Path) -> None:
    write_rows(tmp_path, ROWS)
    calls = count_calls(Watched(tmp_path).poll)
    assert calls <= 25 * BLOCKS + 100


def test_nothing_new_makes_nothing_that_stays(tmp_path: Path) -> None:
    write_rows(tmp_path, ROWS)
    watched = Watched(tmp_path)
    before = sys.getallocatedblocks()
    watched.poll()
    assert sys.getallocatedblocks() - before <= 100


@pytest.mark.parametrize(("ipv6", "most"), [(False, 160), (True, 210)])
def test_bytes_of_a_row(tmp_path: Path, ipv6: bool, most: int) -> None:
    """Kept, and for a moment in a poll with nothing new."""
    write_rows(tmp_path, ROWS, ipv6)
    tracemalloc.start()
    try:
        watched = Watched(tmp_path)
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        watched.poll()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept / ROWS <= most
    assert peak - kept <= 10 * BLOCK, "a few blocks, however many rows there are"


def test_calls_of_a_transition() -> None:
    """An internal connection's three, through the decoder and the tracker."""
    times = itertools.count(1)
    three = (
        (7, TcpState.CLOSE, TcpState.SYN_SENT, END),
        (7, TcpState.SYN_SENT, TcpState.ESTABLISHED, END),
        (8, TcpState.SYN_RECV, TcpState.ESTABLISHED, END.flipped),
    )
    transitions = [Transition(next(times), *change, 1) for change in three * FULL]
    pages = [
        page(transitions[i].time, *(pack_transition(t, 1) for t in transitions[i : i + FULL]))
        for i in range(0, len(transitions), FULL)
    ]
    decoder, tracker = Decoder(read_formats(str(FIXTURE), TRACEPOINT), {}), Tracker()

    def hear() -> None:
        heard, _ = decoder.decode(Drain(2**62, pages, 0, {}))
        tracker.follow(heard, False, lambda _end: False)
        assert len(tracker.release(2**62)) == FULL

    hear()
    assert count_calls(hear) / len(transitions) <= 18


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("internal", [False, True])
@pytest.mark.parametrize("number", [10_000, 50_000])
def test_bytes_of_a_connection_that_is_followed_until_it_closes(
    number: int, internal: bool, ipv6: bool
) -> None:
    closings = Closings("both")
    unnamed = CONNECTION._replace(direction="internal" if internal else "ingress", owner=OWNER)
    address = bytes(12 if ipv6 else 0)

    def follow(first: int) -> None:
        for i in range(first, first + 100):
            source, destination = (Endpoint(address + text) for text in (i.to_bytes(6, "big"), bytes(6)))
            opened = unnamed._replace(source=source, destination=destination, time=i, destination_socket=i)
            opened = opened._replace(owner=OWNER._replace(process=i))
            closings.follow([opened._replace(source_socket=2 * i if internal else 0)], lambda _end: False)

    tracemalloc.start()
    try:
        for first in range(0, number, 100):
            follow(first)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(closings) == number
    assert kept / number <= 120


def test_nothing_is_followed_that_is_not_to_be_reported() -> None:
    closings = Closings("opened")
    assert closings.follow([CONNECTION], lambda _end: False) == [CONNECTION]
    assert len(closings) == 0


def count_system_calls(proc: Path, count: int) -> int:
    """Of a program that reports so many connections and ends."""
    write_rows(proc / "self" / "net", count)
    trace = proc / "calls"
    strace = [*with_proc(proc), "strace", "-qq", "-o", str(trace)]
    daemon = Daemon("--once", "--output", "json", prefix=strace)
    out, _ = daemon.process.communicate(timeout=60)
    assert out.count(b"\n") == count
    return trace.read_text().count("\n")


@pytest.mark.root
@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_system_calls_of_a_connection(tmp_path: Path) -> None:
    """One that asks whether there is room, and one that writes."""
    (tmp_path / "self" / "net").mkdir(parents=True)
    write_counters(tmp_path / "self" / "net")
    few, many = (count_system_calls(tmp_path, count) for count in (1000, 3000))
    assert 2 <= (many - few) / 2000 <= 2.1
