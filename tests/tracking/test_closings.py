"""Cases of connections that close which broke simpler rules."""

from __future__ import annotations

from typing import Any

import pytest

from tcpwatchd.connection import (
    Closed,
    Closing,
    Connection,
    End,
    Endpoint,
    Gone,
    Ignored,
    Loss,
    Owner,
    Socket,
    TcpState,
    Transition,
)
from tcpwatchd.tracking.closings import DESTINATION, SOURCE, Closings, judge
from tcpwatchd.tracking.packed import Packed, Shared

A, B = Endpoint(b"\x0a\0\0\1\x13\x88"), Endpoint(b"\x0a\0\0\2\0\x50")
OUT, IN = End(A, B), End(B, A)
OPENED = Connection(A, B, "egress", TcpState.ESTABLISHED, "trace", 100, source_socket=7)
INTERNAL = OPENED._replace(direction="internal", destination_socket=8)
OWN, OTHER = 1, 2


def nowhere(_end: End) -> bool:
    return False


def close(skaddr: int, end: End, time: int, old: TcpState = TcpState.LAST_ACK, **fields: Any) -> Transition:
    known: dict[str, Any] = {"network": OWN, "error": 0, "flags": 3, "sent": 5, "received": 9, "unread": 0}
    known |= fields
    closing = Closing(**{"numbered": known["sent"], **known}) if fields else None
    return Transition(time, skaddr, old, TcpState.CLOSE, end, 0, closing=closing)


def make(report: Any = "closed", *items: Any) -> Closings:
    closings = Closings(report, OWN, tells_networks=True)
    assert [item for item in closings.follow(items, nowhere) if isinstance(item, Closed)] == []
    return closings


def gone(end: End, time: int, in_time_wait: bool = False) -> Gone:
    return Gone(end, time - 1, time, in_time_wait, was_shown=True)


def test_a_connection_inside_ends_with_its_later_end() -> None:
    closings = make("closed", INTERNAL, close(8, IN, 150, TcpState.FIN_WAIT2, sent=40))
    (closed,) = closings.follow([close(7, OUT, 160, sent=30)], nowhere)
    assert isinstance(closed, Closed)
    assert (closed.time, closed.by, closed.first) == (160, "fin", "destination")
    assert (closed.source_bytes, closed.destination_bytes) == (30, 40)
    assert len(closings) == 0
    assert (closings.known.halves, closings.known.shared) == ([], [])


def test_a_socket_that_is_connected_to_itself_closes_once() -> None:
    itself = OPENED._replace(destination=A, direction="internal")
    end = End(A, A)
    assert len(make("closed", itself).follow([close(7, end, 150)], nowhere)) == 1
    polled = itself._replace(detected_by="poll", source_socket=0)
    for in_time_wait in (False, True):
        closings = make("closed", polled)
        assert len(closings.compare([gone(end, 150, in_time_wait)], nowhere, 150)) == 1
        assert closings.compare([gone(end, 160, in_time_wait)], nowhere, 160) == []


def test_what_is_told_late_ends_nothing_that_opened_after_it() -> None:
    newer = OPENED._replace(time=200, detected_by="poll", source_socket=0)
    closings = make("closed", newer, Loss(300))
    assert closings.follow([OPENED], nowhere) == []
    assert len(closings) == 2


def test_a_socket_that_has_the_place_of_another_shows_that_it_is_over() -> None:
    again = OPENED._replace(time=200)
    closings = make("closed", OPENED)
    (closed,) = closings.follow([again], nowhere)
    assert isinstance(closed, Closed)
    assert (closed.connection.time, closed.time, closed.detected_by) == (100, 200, "poll")
    other = OPENED._replace(time=300, source_socket=9)
    assert closings.follow([other], nowhere) == [], "two sockets of one address and port, on two links"
    assert len(closings.follow([Loss(400), other._replace(time=500, source_socket=10)], nowhere)) == 2


def test_polls_leave_to_a_sound_trace_what_it_tells() -> None:
    closings = make("closed", OPENED)
    assert closings.compare([gone(OUT, 150)], nowhere, 150) == []
    assert len(closings.follow([close(7, OUT, 160)], nowhere)) == 1


def test_polls_do_not_replace_what_the_trace_told_of_one_end() -> None:
    closings = make("closed", INTERNAL, close(7, OUT, 150, TcpState.FIN_WAIT2, sent=30), Loss(200))
    for now in (210, 220, 230):
        assert closings.compare([gone(OUT, now, in_time_wait=True)], lambda end: end == IN, now) == []
    (closed,) = closings.follow([close(8, IN, 300, sent=40)], nowhere)
    assert isinstance(closed, Closed)
    assert (closed.source_bytes, closed.destination_bytes, closed.first) == (30, 40, "source")


def test_two_polls_after_a_loss_what_is_not_shown_is_over() -> None:
    """Though the polls that showed it go were before the loss was known."""
    elsewhere = OPENED._replace(owner=Owner(network=OTHER), time=101, source_socket=9)
    closings = make("closed", OPENED, elsewhere)
    assert closings.compare([gone(OUT, 150)], nowhere, 150) == []
    closings.note_loss(160)
    assert closings.compare([], nowhere, 170) == []
    (closed,) = closings.compare([], nowhere, 180)
    assert (closed.connection.source_socket, closed.time, closed.by) == (7, 180, None)
    assert closings.compare([], nowhere, 190) == []
    assert len(closings) == 1, "of another network no row is ever shown"


def test_what_is_shown_after_a_loss_is_open() -> None:
    closings = make("closed", OPENED)
    closings.note_loss(160)
    for now in (170, 180, 190):
        assert closings.compare([], lambda _end: True, now) == []


def test_an_end_that_comes_late_is_joined_in_its_own_network() -> None:
    ours = OPENED._replace(direction="internal")
    other = ours._replace(owner=Owner(network=OTHER), time=101, source_socket=17)
    late = [
        Transition(300, skaddr, TcpState.SYN_RECV, TcpState.ESTABLISHED, IN, 0, None, Socket(0, 0, network))
        for skaddr, network in ((18, OTHER), (8, OWN))
    ]
    closings = make("closed", ours, other, *late, close(18, IN, 400, network=OTHER, sent=44))
    (closed,) = closings.follow([close(17, OUT, 410, network=OTHER, sent=33)], nowhere)
    assert isinstance(closed, Closed)
    assert (closed.connection.time, closed.source_bytes, closed.destination_bytes) == (101, 33, 44)


def test_who_it_was_comes_back_with_its_process() -> None:
    shared = Owner(1000, "alice", "a.service", name="curl")
    owners = [shared._replace(process=5), shared._replace(process=6), shared._replace(thread=7), shared]
    found = [OPENED._replace(owner=owner, time=i, source_socket=i + 1) for i, owner in enumerate(owners)]
    closings = make("closed", *found)
    assert len(closings.known.shared) == 1
    closed = closings.follow([close(i + 1, OUT, 100) for i in range(len(owners))], nowhere)
    assert [one.connection for one in closed if isinstance(one, Closed)] == found


ESTABLISHED, CLOSE_WAIT, LAST_ACK = TcpState.ESTABLISHED, TcpState.CLOSE_WAIT, TcpState.LAST_ACK
FIN_WAIT1, FIN_WAIT2, CLOSING = TcpState.FIN_WAIT1, TcpState.FIN_WAIT2, TcpState.CLOSING


@pytest.mark.parametrize(
    ("old", "error", "flags", "unread", "thread", "by", "first", "received"),
    [
        (FIN_WAIT2, 0, 2, 0, 0, "fin", "here", 9),
        (FIN_WAIT2, 0, 1, 0, 0, "fin", "here", 9),
        (FIN_WAIT2, 0, 0, 4, 77, "reset", "here", 5),
        (LAST_ACK, 0, 3, 0, 0, "fin", "there", 9),
        (LAST_ACK, 0, 2, 4, 0, "fin", "there", 9),
        (LAST_ACK, 0, 2, 4, 77, "reset", "there", 5),
        (CLOSING, 0, 3, 0, 0, "fin", "both", 9),
        (CLOSING, 0, 2, 9, 77, "reset", "both", 0),
        (ESTABLISHED, 0, 0, 4, 77, "reset", "here", 5),
        (CLOSE_WAIT, 0, 2, 0, 77, "reset", "there", 9),
        (FIN_WAIT1, 0, 1, 0, 0, "reset", "here", 9),
        (ESTABLISHED, 104, 0, 4, 0, "reset", "there", 9),
        (CLOSE_WAIT, 32, 2, 0, 0, "reset", "there", 9),
        (FIN_WAIT2, 104, 1, 0, 0, "reset", "here", 9),
        (ESTABLISHED, 103, 0, 0, 77, "reset", "here", 9),
        (ESTABLISHED, 110, 0, 0, 0, "timeout", None, 9),
        (FIN_WAIT1, 110, 1, 0, 0, "timeout", "here", 9),
        (ESTABLISHED, 113, 0, 0, 0, "timeout", None, 9),
    ],
)
def test_how_it_was_closed(
    old: TcpState, error: int, flags: int, unread: int, thread: int, by: str, first: str | None, received: int
) -> None:
    done = close(7, OUT, 150, old, error=error, flags=flags, unread=unread)._replace(thread=thread)
    view = judge(done, SOURCE)
    assert (view.by, view.first, view.sent, view.received) == (by, first, 5, received)


def test_the_tracepoint_alone_tells_no_reset_from_a_time_out() -> None:
    told = {
        old: judge(close(7, OUT, 150, old), SOURCE) for old in (ESTABLISHED, CLOSE_WAIT, FIN_WAIT2, LAST_ACK)
    }
    assert [view.by for view in told.values()] == ["abrupt", "abrupt", "fin", "fin"]
    closings = make("closed", OPENED)
    (closed,) = closings.follow([close(7, OUT, 150, ESTABLISHED)], nowhere)
    assert isinstance(closed, Closed)
    assert (closed.by, closed.first, closed.source_bytes) == (None, None, None)


@pytest.mark.parametrize(
    ("sent", "numbered", "role", "told"),
    [
        (500, 500, DESTINATION, 500),
        (500, 501, SOURCE, 500),
        (500, 501, DESTINATION, 500),
        (900, 501, SOURCE, 500),
        (900, 500, DESTINATION, 500),
        (3, 0, SOURCE, 0),
    ],
)
def test_what_was_dropped_here_is_not_counted_twice(sent: int, numbered: int, role: int, told: int) -> None:
    assert judge(close(7, OUT, 150, sent=sent, numbered=numbered), role).sent == told


def test_what_looks_like_a_key_between_two_records_is_none() -> None:
    packed = Packed(2, 2)
    for key in (b"ab", b"cd", b"ab"):
        packed.add(key, b"ab")
    assert packed.find(b"ab") == [b"ab", b"ab"]
    packed.change(b"ab", b"ab", b"xy")
    assert sorted(packed.find(b"ab")) == [b"ab", b"xy"]
    packed.remove(b"ab", b"xy")
    with pytest.raises(KeyError):
        packed.remove(b"ab", b"xy")
    assert (packed.find(b"ab"), packed.find(b"cd"), len(packed)) == ([b"ab"], [b"ab"], 2)
    assert sorted(packed.split(packed.text)) == [(b"ab", b"ab"), (b"cd", b"ab")]


def test_what_is_shared_goes_with_the_last_that_has_it() -> None:
    shared: Shared[str] = Shared()
    first, again, other = shared.take("a"), shared.take("a"), shared.take("b")
    assert (first == again, shared.items) == (True, {first: "a", other: "b"})
    shared.release(first)
    assert shared.find(first) == "a"
    shared.release(first)
    assert shared.take("c") == first
    assert shared.items == {first: "c", other: "b"}


@pytest.mark.parametrize(("network", "ends"), [(OWN, True), (OTHER, False), (0, True)])
def test_what_is_ignored_has_the_place_of_another_in_its_own_network(network: int, ends: bool) -> None:
    """Though nobody looked for its owner. It is not followed itself."""
    socket = Socket(0, 0, network)
    ignored = Ignored(OPENED._replace(time=300, source_socket=9, opener=socket))
    closings = make("closed", OPENED, Loss(200))
    assert len(closings.follow([ignored], nowhere)) == ends
    assert len(closings) == 1 - ends
    elsewhere = OPENED._replace(owner=Owner(network=OTHER))
    assert len(make("closed", elsewhere, Loss(200)).follow([ignored], nowhere)) == (network == OTHER)
