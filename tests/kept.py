"""Baselines for tests."""

from __future__ import annotations

from tcpwatchd.connection import NOTHING_KNOWN, Connection, End, Endpoint, Known, Row, TcpState, Transition
from tcpwatchd.output.event import Event, poll_failed
from tcpwatchd.state.baseline import Baseline

NO_TABLES: list[list[set[bytes]]] = [[], []]
HERE, THERE = Endpoint(b"\x0a\0\0\5\0\x50"), Endpoint(b"\xc0\0\2\x38\x17\x55")
HERE6, THERE6 = (Endpoint(bytes(15) + last + b"\0\x50") for last in (b"\1", b"\2"))
END, END6 = End(HERE, THERE), End(HERE6, THERE6)
CONNECTION = Connection(THERE, HERE, "ingress", TcpState.ESTABLISHED, "trace", 5)


def make_baseline(known: Known = NOTHING_KNOWN, blocks: list[list[set[bytes]]] = NO_TABLES) -> Baseline:
    return Baseline(1, 1, None, 0, {}, [], known, [], [], blocks)


def make_full() -> Baseline:
    """One of everything."""
    known = Known(
        False,
        3,
        {HERE: 2, HERE6: 1},
        {END: (7, 2)},
        {END: None, END6: Row(END6, TcpState.TIME_WAIT, 0)},
        {END: (2, 9)},
        {0xFFFF888100000000: (THERE, 6)},
        [(CONNECTION, True)],
        frozenset({Row(END, TcpState.ESTABLISHED, 0)}),
        {END: 11, END.flipped: 11},
    )
    deferred = [
        Transition(8, 0xFFFF888100000000, TcpState.SYN_SENT, TcpState.ESTABLISHED, END, 1),
        Transition(9, 3, TcpState.ESTABLISHED, TcpState.CLOSE, End(Endpoint(), Endpoint()), 1),
    ]
    blocks = [[{b"a", b"b"}, {b"c"}], [{b"6"}]]
    waiting: list[Connection | Event] = [CONNECTION, poll_failed('a "b"\n\0', 4)]
    return Baseline(1, 1, 4026, 99, {0: 5, 1: 6}, deferred, known, waiting, [0, -1, 5, 6, 7], blocks, 98)
