"""Baselines for tests."""

from __future__ import annotations

from typing import Any

from tcpwatchd.connection import (
    NOTHING_KNOWN,
    Caller,
    Closed,
    Closing,
    Connection,
    End,
    Endpoint,
    Folded,
    Known,
    Listener,
    Owner,
    OwnersKnown,
    Reset,
    Row,
    Socket,
    TcpState,
    Transition,
)
from tcpwatchd.output.event import Event, poll_failed
from tcpwatchd.policy.folding import Limit
from tcpwatchd.policy.policy import Policy
from tcpwatchd.policy.rules import compile_rule
from tcpwatchd.policy.scans import NOTHING_SCANNED, Ports, Scan, ScanLimits, Scans, ScansKnown
from tcpwatchd.state.baseline import Baseline
from tcpwatchd.tracking.closings import Closings

NO_TABLES: list[list[set[bytes]]] = [[], []]
HERE, THERE = Endpoint(b"\x0a\0\0\5\0\x50"), Endpoint(b"\xc0\0\2\x38\x17\x55")
HERE6, THERE6 = (Endpoint(bytes(15) + last + b"\0\x50") for last in (b"\1", b"\2"))
END, END6 = End(HERE, THERE), End(HERE6, THERE6)
CONNECTION = Connection(THERE, HERE, "ingress", TcpState.ESTABLISHED, "trace", 5)
SOCKET = Socket(1000, 2**33, 4026531840)
OWNED = CONNECTION._replace(opener=SOCKET, acceptor=SOCKET, caller=Caller(4, 77, b"\xff\n"))
OWNER = Owner(1000, "alice", "user@1000.service", "a.service", "box", 4242, None, "x\\n1", "/bin/x", None, 4)
RULES = (
    compile_rule("Ignore", "unit a.service or port web", "/etc/x.conf", 3, {"web": 80}.__getitem__),
    compile_rule("Warning", "ingress", "/etc/x.conf", 4, len),
)
CLOSING = Transition(
    9, 3, TcpState.ESTABLISHED, TcpState.CLOSE, END, 0, closing=Closing(4026531840, 104, 3, 5, 6, 7, 8)
)


def make_baseline(known: Known = NOTHING_KNOWN, blocks: list[list[set[bytes]]] = NO_TABLES) -> Baseline:
    return Baseline(1, 1, None, 0, {}, [], known, [], [], blocks)


def make_scans() -> ScansKnown:
    """A source that tried one place, one that tried two, a scan that was told and goes on, and a slow one."""
    scans = Scans(ScanLimits(3, 100, None, 5, 1000, (), (), 64), hears_resets=True)
    scans.addresses = frozenset({HERE.address, HERE6.address})
    scans.follow([CONNECTION, CONNECTION._replace(source=THERE6, destination=HERE6)])
    places = [HERE.address + port.to_bytes(2, "big") for port in range(1, 8)]
    sources = [bytes((192, 0, 2, last, 4, 0)) for last in (1, 2, 3)]
    tries = [(sources[0], place, 6) for place in places[:2]]
    tries += [(sources[1], place, 7) for place in places[:4]]
    tries += [(sources[2], place, 8 + 40 * number) for number, place in enumerate(places[:6])]
    tries += [
        (THERE6[:15] + bytes((number, 4, 0)), HERE6[:16] + place[4:], 9)
        for number, place in enumerate(places)
    ]
    resets = [Reset(time, End(Endpoint(place), Endpoint(source))) for source, place, time in tries]
    scans.follow_resets(resets, 0, 10)
    scans.settle(2_000_000_100)
    more = [(Endpoint(places[-1]), sources[1]), (THERE, sources[1][:4] + b"\0\x50")]
    scans.follow_resets([Reset(99, End(place, Endpoint(source))) for place, source in more], 3, 2_000_000_200)
    scans.note_called([THERE, HERE6])
    scans.read = 77, 12345
    return scans.known._replace(unfollowed=[HERE.address, HERE6.address])


def spread(kept: Baseline) -> tuple[Baseline, Any]:
    """What can be compared: a scan is an object, that equals no other."""
    return kept._replace(scans=NOTHING_SCANNED), list_fields(kept.scans)


def list_fields(known: Any) -> Any:
    if isinstance(known, Scan):
        return {name: list_fields(getattr(known, name)) for name in Scan.__slots__}
    if isinstance(known, Ports):
        return dict(known.blocks)
    return [*map(list_fields, known)] if isinstance(known, (list, tuple)) else known


def make_full() -> Baseline:
    """One of everything."""
    known = Known(
        False,
        3,
        {HERE: 2, HERE6: 1},
        {END: (7, 2)},
        {END: None, END6: Row(END6, TcpState.TIME_WAIT, 0)},
        {END: (2, 9)},
        {0xFFFF888100000000: (THERE, Caller(6, 77, b"x\n1 sshd")), 5: (HERE, Caller(7, 0, None))},
        [(CONNECTION, True), (OWNED, False), (CLOSING, False)],
        frozenset({Row(END, TcpState.ESTABLISHED, 0, 1000)}),
        {END: 11, END.flipped: 11},
        (12, 13),
    )
    deferred = [
        Transition(8, 0xFFFF888100000000, TcpState.SYN_SENT, TcpState.ESTABLISHED, END, 1),
        Transition(8, 4, TcpState.CLOSE, TcpState.SYN_SENT, END, 1, b"\xff", SOCKET),
        Transition(9, 3, TcpState.ESTABLISHED, TcpState.CLOSE, End(Endpoint(), Endpoint()), 1),
    ]
    blocks = [[{b"a", b"b"}, {b"c"}], [{b"6"}]]
    named = OWNED._replace(opener=None, acceptor=None, caller=None, owner=OWNER, listener=Owner(user=33))
    closed = Closed(named, 9, "reset", None, 5, None, "trace")
    loud = CONNECTION._replace(priority="4")
    waiting: list[Connection | Closed | Folded | Event] = [
        CONNECTION,
        poll_failed('a "b"\n\0', 4),
        named,
        closed,
    ]
    waiting += [loud, Folded(loud, 3, 9), Folded(closed, 2, 8)]
    owners = OwnersKnown({7: b"/system.slice/x.service"}, {9: Listener(HERE, SOCKET, 5, 77, 4)})
    counters = [0, -1, 5, 6, 7]
    taken = {0: 5, 1: 6}
    closings = Closings("both")
    closings.follow([CONNECTION._replace(destination_socket=7)], lambda _end: False)
    internal = named._replace(source=HERE6, destination=THERE6, direction="internal", source_socket=5)
    closings.follow([internal, CLOSING._replace(end=END6, skaddr=5)], lambda _end: True)
    open_known = closings.known
    policy = Policy(RULES, Limit(1, 1000), now=44)
    policy.fold([CONNECTION, CONNECTION, closed, closed, closed])
    for found in (named, CONNECTION, loud):
        policy.choose(found, lambda connection: connection)
    kept = owners, open_known, 17, policy.known, make_scans()
    return Baseline(1, 1, 4026, 99, taken, deferred, known, waiting, counters, blocks, 98, *kept)
