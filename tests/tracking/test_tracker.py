"""Histories of connections, poll by poll: each connection is reported once, with the right ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tcpwatchd.connection import Caller, End, Endpoint, Row, Snapshot, Socket, TcpState
from tcpwatchd.kernel.tables import Tables
from tcpwatchd.tracking.comparison import MOST_UNPAIRED, REMEMBERED, Unpaired, can_be
from tcpwatchd.tracking.tracker import Tracker
from tests.polls import Polls, find_new, make_socket
from tests.table import write_tables

if TYPE_CHECKING:
    from pathlib import Path

LISTENER = "10.0.0.5:80 0.0.0.0:0 LISTEN 1"
CLIENT, SERVER = "192.0.2.56:5973", "10.0.0.5:80"
INGRESS = f"{CLIENT} -> {SERVER} ingress"


@pytest.fixture
def polls(tmp_path: Path) -> Polls:
    return Polls(tmp_path)


@pytest.mark.parametrize(
    ("listener", "row"),
    [
        (LISTENER, f"{SERVER} {CLIENT} ESTABLISHED 9"),
        ("0.0.0.0:80 0.0.0.0:0 LISTEN 1", f"{SERVER} {CLIENT} ESTABLISHED 9"),
        ("[::]:80 [::]:0 LISTEN 1", "[::ffff:10.0.0.5]:80 [::ffff:192.0.2.56]:5973 ESTABLISHED 9"),
        ("10.0.0.5:81 0.0.0.0:0 LISTEN 1", f"{SERVER} {CLIENT} ESTABLISHED 0"),
        ("10.0.0.5:81 0.0.0.0:0 LISTEN 1", f"{SERVER} {CLIENT} CLOSE_WAIT 0"),
    ],
    ids=["its address", "wildcard", "dual-stack", "waits to be accepted", "closed while it waits"],
)
def test_accepted_here(polls: Polls, listener: str, row: str) -> None:
    assert polls.see(listener, row) == [INGRESS]


@pytest.mark.parametrize("listener", ["10.0.0.6:5000 0.0.0.0:0 LISTEN 1", "10.0.0.5:5001 0.0.0.0:0 LISTEN 1"])
def test_opened_here(polls: Polls, listener: str) -> None:
    row = "10.0.0.5:5000 192.0.2.1:443 ESTABLISHED 9"
    assert polls.see(listener, row) == ["10.0.0.5:5000 -> 192.0.2.1:443 egress"]


def test_an_ipv4_wildcard_takes_no_ipv6(polls: Polls) -> None:
    row = "[2001:db8::5]:80 [2001:db8::6]:5000 ESTABLISHED 9"
    found = polls.see("0.0.0.0:80 0.0.0.0:0 LISTEN 1", row)
    assert found == ["[2001:db8::5]:80 -> [2001:db8::6]:5000 egress"]


@pytest.mark.parametrize("state", ["SYN_SENT", "SYN_RECV", "NEW_SYN_RECV", "CLOSE"])
def test_half_open_is_not_reported(polls: Polls, state: str) -> None:
    assert polls.see(f"{SERVER} {CLIENT} {state} 0") == []
    assert polls.see(LISTENER, f"{SERVER} {CLIENT} ESTABLISHED 0") == [INGRESS]


def test_no_remote_port_is_no_connection(polls: Polls) -> None:
    assert polls.see("10.0.0.5:80 0.0.0.0:0 CLOSE_WAIT 3") == []


@pytest.mark.parametrize(
    "state", ["ESTABLISHED", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT", "LAST_ACK", "CLOSING"]
)
def test_every_later_state_is_a_connection(polls: Polls, state: str) -> None:
    assert len(polls.see(f"10.0.0.5:5000 192.0.2.1:443 {state} 9")) == 1


def test_one_life_is_one_report(polls: Polls) -> None:
    end = "10.0.0.5:5000 192.0.2.1:443"
    seen = [
        polls.see(f"{end} {rest}") for rest in ("ESTABLISHED 9", "FIN_WAIT1 9", "FIN_WAIT2 0", "TIME_WAIT 0")
    ]
    assert [len(reports) for reports in seen] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("TIME_WAIT 0", "FIN_WAIT2 9"),
        ("TIME_WAIT 0", "ESTABLISHED 9"),
        ("ESTABLISHED 7", "ESTABLISHED 9"),
        ("ESTABLISHED 7", "ESTABLISHED 0"),
        ("CLOSE_WAIT 7", "TIME_WAIT 0"),
        ("LAST_ACK 0", "TIME_WAIT 0"),
        ("FIN_WAIT2 7", "ESTABLISHED 7"),
        ("FIN_WAIT2 0", "ESTABLISHED 0"),
    ],
)
def test_reuse_is_a_new_connection(polls: Polls, before: str, after: str) -> None:
    end = "10.0.0.5:5000 192.0.2.1:443"
    assert len(polls.see(f"{end} {before}")) == 1
    assert len(polls.see(f"{end} {after}")) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ESTABLISHED 0", "ESTABLISHED 9"),
        ("ESTABLISHED 0", "CLOSE_WAIT 9"),
        ("CLOSE_WAIT 0", "CLOSE_WAIT 9"),
        ("CLOSE_WAIT 0", "LAST_ACK 9"),
        ("CLOSE_WAIT 8", "LAST_ACK 0"),
        ("ESTABLISHED 8", "TIME_WAIT 0"),
        ("FIN_WAIT1 8", "CLOSING 0"),
        ("CLOSING 0", "TIME_WAIT 0"),
    ],
)
def test_a_later_state_is_the_same_connection(polls: Polls, before: str, after: str) -> None:
    end = "10.0.0.5:5000 192.0.2.1:443"
    assert len(polls.see(f"{end} {before}")) == 1
    assert polls.see(f"{end} {after}") == []


def test_a_reuse_that_looks_like_a_succession_cannot_be_known(polls: Polls) -> None:
    row = "10.0.0.5:5000 192.0.2.1:443 TIME_WAIT 0"
    assert len(polls.see(row)) == 1
    assert polls.see(row) == []


def test_a_listener_gone_for_two_polls_while_its_session_lives(polls: Polls) -> None:
    session = f"{SERVER} {CLIENT}"
    assert polls.see(LISTENER, f"{session} ESTABLISHED 9") == [INGRESS]
    assert polls.see(f"{session} ESTABLISHED 9") == []
    assert polls.see(f"{session} ESTABLISHED 9") == []
    assert polls.see(f"{session} CLOSE_WAIT 9") == []


def test_an_accepted_session_whose_listener_closed_at_once(polls: Polls) -> None:
    polls.see(LISTENER)
    assert polls.see(f"{SERVER} {CLIENT} ESTABLISHED 9") == [INGRESS]


def test_a_direction_is_known_or_says_that_it_is_guessed(tmp_path: Path) -> None:
    """Only an end that accepted shows itself."""
    polls = Polls(tmp_path, started=False)
    opened = "10.0.0.5:5000 192.0.2.1:443 ESTABLISHED 9"
    accepted = f"{SERVER} {CLIENT} ESTABLISHED 8"
    assert polls.see(LISTENER, accepted) == [INGRESS]
    assert polls.guessed == {False}
    polls = Polls(tmp_path, started=False)
    assert polls.see(opened) == ["10.0.0.5:5000 -> 192.0.2.1:443 egress"]
    assert polls.guessed == {True}
    polls.see()
    assert polls.see(opened.replace("5000", "5001")) == ["10.0.0.5:5001 -> 192.0.2.1:443 egress"]
    assert polls.guessed == {True}, "its listener can have come and gone"
    dialled = "10.0.0.5:4001 192.0.2.1:443 ESTABLISHED 9"
    assert polls.see("0.0.0.0:4001 0.0.0.0:0 LISTEN 1", dialled) == ["192.0.2.1:443 -> 10.0.0.5:4001 ingress"]
    assert polls.guessed == {True}, "from the port that it listens at"
    assert polls.see("127.0.0.1:4000 127.0.0.1:80 ESTABLISHED 7") == [
        "127.0.0.1:4000 -> 127.0.0.1:80 internal"
    ]
    assert polls.guessed == {True}
    assert polls.see("127.0.0.1:90 127.0.0.1:90 ESTABLISHED 6") == ["127.0.0.1:90 -> 127.0.0.1:90 internal"]
    assert polls.guessed == {False}, "a socket connected to itself has one end"


def test_several_connections_of_a_port_are_guessed_to_be_a_servers(tmp_path: Path) -> None:
    clients = [f"198.51.100.7:{port}" for port in (40000, 40001, 40002)]
    polls = Polls(tmp_path, started=False)
    found = polls.see(*(f"10.0.0.5:50000 {client} ESTABLISHED 9" for client in clients))
    assert found == [f"{client} -> 10.0.0.5:50000 ingress" for client in clients]
    assert polls.guessed == {True}
    polls = Polls(tmp_path, started=False)
    assert polls.see("10.0.0.5:22 192.0.2.1:50022 ESTABLISHED 9") == [
        "192.0.2.1:50022 -> 10.0.0.5:22 ingress"
    ]
    inside = [f"127.0.0.1:{port}" for port in (40000, 40001, 40002)]
    rows = [f"127.0.0.1:50000 {client} ESTABLISHED 9" for client in inside]
    rows += [f"{client} 127.0.0.1:50000 ESTABLISHED 8" for client in inside]
    polls = Polls(tmp_path, started=False)
    assert polls.see(*rows) == [f"{client} -> 127.0.0.1:50000 internal" for client in inside]
    polls = Polls(tmp_path, started=False)
    same = [f"10.0.0.5:40000 192.0.2.{last}:443 ESTABLISHED {last}" for last in (1, 2)]
    assert all(text.endswith(":443 egress") for text in polls.see(*same)), "one port to two servers"


LOOPBACK = "127.0.0.1:40000 -> 127.0.0.1:80 internal"


@pytest.mark.parametrize(
    "rows",
    [
        ["127.0.0.1:40000 127.0.0.1:80 ESTABLISHED 8", "127.0.0.1:80 127.0.0.1:40000 ESTABLISHED 9"],
        ["127.0.0.1:80 127.0.0.1:40000 ESTABLISHED 9", "127.0.0.1:40000 127.0.0.1:80 ESTABLISHED 8"],
        ["127.0.0.1:40000 127.0.0.1:80 TIME_WAIT 0"],
        ["127.0.0.1:80 127.0.0.1:40000 TIME_WAIT 0"],
        [
            "127.0.0.1:40000 127.0.0.1:80 ESTABLISHED 8",
            "[::ffff:127.0.0.1]:80 [::ffff:127.0.0.1]:40000 ESTABLISHED 9",
        ],
    ],
    ids=["client first", "server first", "client's TIME_WAIT", "server's TIME_WAIT", "dual-stack server"],
)
def test_loopback_without_a_visible_listener(polls: Polls, rows: list[str]) -> None:
    assert polls.see(*rows) == [LOOPBACK]
    assert polls.see(*rows) == []


def test_a_listener_outweighs_the_lower_port(polls: Polls) -> None:
    rows = ["127.0.0.1:90 127.0.0.1:8080 ESTABLISHED 8", "127.0.0.1:8080 127.0.0.1:90 ESTABLISHED 9"]
    listener = "127.0.0.1:8080 0.0.0.0:0 LISTEN 1"
    assert polls.see(listener, *rows) == ["127.0.0.1:90 -> 127.0.0.1:8080 internal"]


def test_where_both_ends_listen_the_lower_port_is_the_destination(polls: Polls) -> None:
    """Whichever row comes first."""
    listeners = ("0.0.0.0:80 0.0.0.0:0 LISTEN 1", "0.0.0.0:40000 0.0.0.0:0 LISTEN 2")
    server, client = (
        "127.0.0.1:80 127.0.0.1:40000 ESTABLISHED 3",
        "127.0.0.1:40000 127.0.0.1:80 ESTABLISHED 4",
    )
    assert polls.see(*listeners, client, server) == [LOOPBACK]
    assert polls.guessed == {True}
    polls.see()
    polls.see()
    assert polls.see(*listeners, server, client) == [LOOPBACK]


def test_waiting_to_be_accepted_outweighs_the_lower_port(polls: Polls) -> None:
    rows = ["127.0.0.1:90 127.0.0.1:8080 ESTABLISHED 8", "127.0.0.1:8080 127.0.0.1:90 ESTABLISHED 0"]
    assert polls.see(*rows) == ["127.0.0.1:90 -> 127.0.0.1:8080 internal"]


def test_two_addresses_of_this_machine(polls: Polls) -> None:
    rows = ["10.0.0.1:5000 10.0.0.2:80 ESTABLISHED 8", "10.0.0.2:80 10.0.0.1:5000 ESTABLISHED 9"]
    assert polls.see(*rows) == ["10.0.0.1:5000 -> 10.0.0.2:80 internal"]


def test_the_second_end_appears_later(polls: Polls) -> None:
    client, server = "10.0.0.1:5000 10.0.0.2:80 ESTABLISHED 8", "10.0.0.2:80 10.0.0.1:5000 ESTABLISHED 9"
    assert len(polls.see(client)) == 1
    assert polls.see(client, server) == []
    assert polls.see(server) == []


def test_reuse_of_a_loopback_pair_is_one_connection(polls: Polls) -> None:
    client, server = "127.0.0.1:40000 127.0.0.1:80", "127.0.0.1:80 127.0.0.1:40000"
    assert polls.see(f"{client} ESTABLISHED 8", f"{server} ESTABLISHED 9") == [LOOPBACK]
    assert polls.see(f"{client} TIME_WAIT 0") == []
    assert polls.see(f"{client} ESTABLISHED 18", f"{server} ESTABLISHED 19") == [LOOPBACK]
    assert polls.see(f"{server} ESTABLISHED 29", f"{client} ESTABLISHED 28") == [LOOPBACK]
    assert polls.see(f"{server} ESTABLISHED 29", f"{client} ESTABLISHED 28") == []


def test_the_server_end_of_the_last_connection_and_the_client_end_of_the_next(polls: Polls) -> None:
    client, server = "127.0.0.1:40000 127.0.0.1:80", "127.0.0.1:80 127.0.0.1:40000"
    assert polls.see(f"{server} LAST_ACK 0") == [LOOPBACK]
    assert polls.see(f"{client} ESTABLISHED 28", f"{server} ESTABLISHED 0") == [LOOPBACK]
    assert polls.see(f"{client} ESTABLISHED 28", f"{server} ESTABLISHED 29") == []


def test_the_next_connection_after_time_wait_shows_both_its_ends(polls: Polls) -> None:
    """The client's row is its own, and no other end of what is over; a third connection is told by it."""
    client, server = "127.0.0.1:40000 127.0.0.1:80", "127.0.0.1:80 127.0.0.1:40000"
    assert polls.see(f"{server} TIME_WAIT 0") == [LOOPBACK]
    assert polls.see(f"{client} ESTABLISHED 8", f"{server} ESTABLISHED 0") == [LOOPBACK]
    assert polls.see(f"{client} ESTABLISHED 18", f"{server} ESTABLISHED 0") == [LOOPBACK]
    assert polls.see(f"{client} ESTABLISHED 18", f"{server} ESTABLISHED 19") == []


def test_accept_delayed_over_two_polls(polls: Polls) -> None:
    session = f"{SERVER} {CLIENT}"
    seen = [polls.see(LISTENER, f"{session} ESTABLISHED {inode}") for inode in (0, 0, 9, 9)]
    assert seen == [[INGRESS], [], [], []]


def test_a_row_skipped_once_is_not_new(polls: Polls) -> None:
    row = f"{SERVER} {CLIENT} ESTABLISHED 9"
    seen = [polls.see(LISTENER, *rows) for rows in ([row], [], [row], [row])]
    assert seen == [[INGRESS], [], [], []]


def test_a_row_gone_for_two_polls_is_forgotten(polls: Polls) -> None:
    row = f"{SERVER} {CLIENT} ESTABLISHED 9"
    seen = [polls.see(LISTENER, *rows) for rows in ([row], [], [], [row])]
    assert seen == [[INGRESS], [], [], [INGRESS]]


def test_a_self_connect_is_one_connection(polls: Polls) -> None:
    row = "127.0.0.1:5000 127.0.0.1:5000 ESTABLISHED 9"
    assert polls.see(row) == ["127.0.0.1:5000 -> 127.0.0.1:5000 internal"]
    assert polls.see(row) == []
    assert len(polls.see("127.0.0.1:5000 127.0.0.1:5000 ESTABLISHED 10")) == 1


def test_two_live_sockets_on_one_4_tuple(polls: Polls) -> None:
    first, second = "10.0.0.5:80 10.0.0.9:5000 ESTABLISHED 7", "10.0.0.5:80 10.0.0.9:5000 ESTABLISHED 8"
    assert len(polls.see(first)) == 1
    assert len(polls.see(first, second)) == 1
    assert polls.see(first, second) == []
    assert polls.see(second, first) == []


def test_a_row_read_in_two_states_is_one_connection(polls: Polls) -> None:
    end = "10.0.0.5:5000 192.0.2.1:443"
    assert len(polls.see(f"{end} ESTABLISHED 9", f"{end} TIME_WAIT 0")) == 1
    assert polls.see(f"{end} TIME_WAIT 0") == []


def test_what_is_open_at_start_is_marked(tmp_path: Path) -> None:
    tables, tracker = Tables(str(tmp_path)), Tracker()
    write_tables(
        tmp_path,
        [
            "   0: 0100007F:1111 0100007F:0050 06 00000000:00000000 00:00000000 00000000     0        0 0",
            "   1: 0100007F:2222 0100007F:0050 06 00000000:00000000 00:00000000 00000000     0        0 0",
            "   2: 0100007F:0050 0100007F:2222 09 00000000:00000000 00:00000000 00000000     0        0 0",
        ],
        [],
    )
    (found,) = find_new(tables, tracker)
    assert (found.source.port, found.detected_by, found.state) == (0x2222, "startup", TcpState.LAST_ACK)
    assert tracker.open == 1
    assert find_new(tables, tracker) == []


def test_successions_of_one_socket() -> None:
    end = End(Endpoint(b"\1\1\1\1\0\1"), Endpoint(b"\2\2\2\2\0\2"))

    def same(before: tuple[int, int], after: tuple[int, int]) -> bool:
        return can_be(Row(end, TcpState(before[0]), before[1]), Row(end, TcpState(after[0]), after[1]))

    reused = [((6, 0), (5, 9)), ((6, 0), (1, 9)), ((8, 7), (6, 0)), ((9, 0), (6, 0)), ((5, 7), (1, 7))]
    assert not any(same(before, after) for before, after in reused)
    assert same((8, 0), (8, 5))
    assert not same((8, 0), (1, 0))


def test_a_row_that_went_is_the_past_of_one_row_only(polls: Polls) -> None:
    session = f"{SERVER} {CLIENT}"
    assert polls.see(LISTENER, f"{session} ESTABLISHED 0") == [INGRESS]
    assert polls.see(LISTENER, f"{session} TIME_WAIT 0", f"{session} ESTABLISHED 9") == [INGRESS]


def test_a_pair_reused_twice_with_a_gap(polls: Polls) -> None:
    client, server = "127.0.0.1:40000 127.0.0.1:80", "127.0.0.1:80 127.0.0.1:40000"
    assert polls.see(f"{server} ESTABLISHED 9", f"{client} ESTABLISHED 8") == [LOOPBACK]
    assert polls.see(f"{server} ESTABLISHED 0", f"{client} ESTABLISHED 18") == [LOOPBACK]
    assert polls.see() == []
    assert polls.see(f"{server} ESTABLISHED 0", f"{client} ESTABLISHED 28") == [LOOPBACK]


C, S = "10.0.0.1:5000", "10.0.0.2:80"
PAIRED = [f"{C} -> {S} internal"]


def opens(when: int, sock: int, end: str = f"{C} {S}") -> list[str]:
    """The records of an end that is opened here."""
    remote = end.split()[1]
    return [
        f"{when} {sock} CLOSE SYN_SENT {end.split(maxsplit=1)[0].rpartition(':')[0]}:0 {remote}",
        f"{when + 1} {sock} SYN_SENT ESTABLISHED {end}",
    ]


def accepts(when: int, sock: int, end: str = f"{S} {C}") -> str:
    return f"{when} {sock} SYN_RECV ESTABLISHED {end}"


def test_traced_egress_and_ingress(polls: Polls) -> None:
    assert polls.hear(*opens(1, 7, "10.0.0.5:5000 192.0.2.1:443")) == [
        "10.0.0.5:5000 -> 192.0.2.1:443 egress"
    ]
    assert polls.hear(accepts(9, 8, f"{SERVER} {CLIENT}")) == [INGRESS]


def test_both_ends_are_one_connection(polls: Polls) -> None:
    assert polls.hear(*opens(1, 7), accepts(3, 8)) == PAIRED
    assert polls.see(f"{C} {S} ESTABLISHED 5", f"{S} {C} ESTABLISHED 0", at=20) == []
    assert polls.see(f"{C} {S} ESTABLISHED 5", f"{S} {C} ESTABLISHED 6", at=30) == []


def test_the_ends_come_in_two_drains(polls: Polls) -> None:
    assert polls.hear(*opens(1, 7), now=40) == []
    assert polls.hear(accepts(41, 8), now=42) == PAIRED


def test_an_end_is_held_for_50_ms_only(polls: Polls) -> None:
    later = "10.0.0.9:1 192.0.2.1:443"
    assert polls.hear(*opens(1, 7), *opens(2, 9, later), now=51) == []
    assert polls.hear(now=52) == [f"{C} -> {S} egress"]
    assert polls.hear(accepts(60, 8), now=60) == ["10.0.0.9:1 -> 192.0.2.1:443 egress"]


def test_two_namespaces_with_one_4_tuple(polls: Polls) -> None:
    records = [*opens(1, 7), *opens(3, 17), accepts(5, 8), accepts(6, 18)]
    assert len(polls.hear(*records)) == 2
    assert polls.hear(*opens(11, 27), accepts(13, 28)) == PAIRED


def test_the_poll_knows_the_server_end_then_reuse_begins_at_the_client(polls: Polls) -> None:
    assert polls.see(f"{S} {C} CLOSE_WAIT 6", at=1) == [f"{S} -> {C} egress"]
    assert polls.hear(*opens(10, 7), accepts(12, 8)) == PAIRED
    assert polls.see(f"{S} {C} ESTABLISHED 9", f"{C} {S} ESTABLISHED 5", at=20) == []


def test_the_second_end_of_a_connection_that_the_poll_reported(polls: Polls) -> None:
    polls.see(LISTENER, at=1)
    assert len(polls.see(f"{C} {S} ESTABLISHED 5", at=2)) == 1
    assert polls.hear(accepts(3, 8)) == []


def test_a_self_connect_under_the_trace(polls: Polls) -> None:
    end = "127.0.0.1:5000 127.0.0.1:5000"
    records = [
        "1 7 CLOSE SYN_SENT 127.0.0.1:5000 127.0.0.1:5000",
        f"2 7 SYN_RECV ESTABLISHED {end}",
    ]
    assert polls.hear(*records) == ["127.0.0.1:5000 -> 127.0.0.1:5000 internal"]
    assert polls.see(f"{end} ESTABLISHED 5", at=9) == []


def test_a_simultaneous_open_is_one_connection(polls: Polls) -> None:
    records = [
        f"1 7 CLOSE SYN_SENT 10.0.0.1:0 {S}",
        f"1 8 CLOSE SYN_SENT 10.0.0.2:0 {C}",
        f"2 7 SYN_RECV ESTABLISHED {C} {S}",
        f"3 8 SYN_RECV ESTABLISHED {S} {C}",
    ]
    assert polls.hear(*records) == PAIRED


def test_a_socket_reused_after_a_lost_close_did_not_open(polls: Polls) -> None:
    assert polls.hear(f"1 7 CLOSE SYN_SENT 10.0.0.2:0 {C}") == []
    assert polls.hear(accepts(9, 7), lossy=True) == [f"{C} -> {S} ingress"]


def test_a_row_read_before_the_reuse_that_the_trace_told(polls: Polls) -> None:
    """The connection is opened anew while the table is read; the row shown is of the one before."""
    end = "10.0.0.5:5000 192.0.2.1:443"
    assert len(polls.hear(*opens(1, 7, end))) == 1
    assert polls.see(f"{end} ESTABLISHED 5", at=10) == []
    assert len(polls.hear(*opens(21, 8, end))) == 1
    assert polls.see(f"{end} TIME_WAIT 0", at=20) == []
    assert polls.see(f"{end} ESTABLISHED 6", at=30) == []


def test_a_row_skipped_right_after_the_trace_told_it(polls: Polls) -> None:
    end = "10.0.0.5:5000 192.0.2.1:443"
    assert len(polls.hear(*opens(1, 7, end))) == 1
    assert polls.see(at=10) == []
    assert polls.see(f"{end} ESTABLISHED 6", at=20) == []
    assert len(polls.see(f"{end} ESTABLISHED 8", at=30)) == 1


def test_a_lost_record_is_found_by_the_poll(polls: Polls) -> None:
    end = "10.0.0.5:5000 192.0.2.1:443"
    assert polls.hear(lossy=True) == []
    assert polls.see(f"{end} ESTABLISHED 6", at=10) == ["10.0.0.5:5000 -> 192.0.2.1:443 egress"]


def test_reports_leave_in_the_order_of_time(polls: Polls) -> None:
    records = [*opens(1, 7), accepts(3, 9, f"{SERVER} {CLIENT}"), accepts(4, 8)]
    assert polls.hear(*records) == [*PAIRED, INGRESS]


def test_reuse_told_for_one_end_only(polls: Polls) -> None:
    """The record of the accepting end is lost; its row belongs to the reported connection."""
    assert len(polls.see(f"{C} {S} ESTABLISHED 5", f"{S} {C} ESTABLISHED 6", at=1)) == 1
    assert len(polls.hear(*opens(10, 7))) == 1
    assert polls.see(f"{C} {S} ESTABLISHED 15", f"{S} {C} ESTABLISHED 16", at=20) == []


def test_the_accepting_end_of_a_reuse_that_the_poll_found(polls: Polls) -> None:
    assert len(polls.see(f"{C} {S} ESTABLISHED 5", f"{S} {C} CLOSE_WAIT 6", at=1)) == 1
    assert len(polls.see(f"{C} {S} ESTABLISHED 15", f"{S} {C} LAST_ACK 6", at=10)) == 1
    assert polls.hear(accepts(20, 8), lossy=True) == []


def test_an_accepting_end_that_comes_long_after_its_opening(polls: Polls) -> None:
    """The opening end is in another namespace: its row is never seen."""
    assert len(polls.hear(*opens(1, 7))) == 1
    assert [polls.see(at=at) for at in (10_000, 20_000, 30_000)] == [[], [], []]
    assert polls.see(f"{S} {C} ESTABLISHED 6", at=40_000) == []


def test_what_is_owed_is_bounded() -> None:
    unpaired = Unpaired({})
    for number in range(MOST_UNPAIRED + 10):
        end = End(Endpoint(number.to_bytes(6, "big")), Endpoint(b"\2\2\2\2\0\2"))
        unpaired.add(end, number)
    unpaired.forget(now=number)
    assert not unpaired.settle(End(Endpoint((9).to_bytes(6, "big")), end.remote), number)
    assert unpaired.settle(end, number)
    assert not unpaired.settle(end, number)


def test_an_end_is_waited_for_as_long_as_a_handshake_can_take() -> None:
    unpaired, end = Unpaired({}), End(Endpoint(b"\1\1\1\1\0\1"), Endpoint(b"\2\2\2\2\0\2"))
    unpaired.add(end, 5)
    assert not unpaired.settle(end, 6 + REMEMBERED)
    unpaired.add(end, 5)
    unpaired.forget(now=6 + REMEMBERED)
    assert unpaired == {}


def test_a_record_at_the_very_end_of_a_poll(polls: Polls) -> None:
    """The row is of the connection before, and so not judged, though the times are equal."""
    first, second = f"{C} {S} ESTABLISHED 5", f"{C} {S} ESTABLISHED 6"
    opened = (f"7 CLOSE SYN_SENT 10.0.0.1:0 {S}", f"7 SYN_SENT ESTABLISHED {C} {S}")
    assert len(polls.hear(*(f"1 {record}" for record in opened))) == 1
    assert len(polls.hear(*(f"3 {record}" for record in opened))) == 1
    assert polls.see(first, at=2) == [], "it ended at 3 ms"
    assert polls.see(second, at=4) == []


def test_a_release_takes_out_only_itself(polls: Polls) -> None:
    """One pair of ports in two namespaces, opened twice within 50 ms: the older one has no other end here."""
    assert polls.hear(*opens(0, 7), now=1) == []
    assert polls.hear(*opens(48, 17), now=51) == [f"{C} -> {S} egress"]
    assert polls.hear(accepts(52, 8), now=52) == PAIRED


def test_of_one_pair_of_ports_several_are_held(polls: Polls) -> None:
    records = [*opens(1, 7), *opens(2, 17), accepts(3, 8), accepts(4, 18)]
    assert polls.hear(*records, now=5) == [*PAIRED, *PAIRED]


def test_a_listener_printed_twice_goes_once(polls: Polls) -> None:
    listener = "0.0.0.0:5000 0.0.0.0:0 LISTEN 1"
    assert [polls.see(*rows) for rows in ([listener, listener], [listener], [], [])] == [[], [], [], []]
    row = "10.0.0.1:5000 198.51.100.7:443 ESTABLISHED 9"
    assert polls.see(row) == ["10.0.0.1:5000 -> 198.51.100.7:443 egress"]


def test_a_row_printed_twice_is_one_open_connection(polls: Polls) -> None:
    row = f"{SERVER} {CLIENT} ESTABLISHED 9"
    counts = []
    for rows in ([row, row], [row], [row, row], []):
        polls.see(*rows)
        counts.append(polls.open)
    assert counts == [1, 1, 1, 0]


def test_a_reuse_printed_twice(polls: Polls) -> None:
    """The second print of a row that this poll found new says nothing of the next connection there."""
    client, server, listener = f"{C} {S} ESTABLISHED", f"{S} {C} ESTABLISHED", f"{S} 0.0.0.0:0 LISTEN 1"
    assert polls.see(listener, f"{client} 104", f"{server} 105") == PAIRED
    assert polls.see(listener, f"{client} 110", f"{client} 110") == PAIRED
    assert polls.see(listener, f"{client} 111", f"{server} 112") == PAIRED


def test_a_reuse_printed_in_two_states(polls: Polls) -> None:
    client, server, listener = f"{C} {S}", f"{S} {C} ESTABLISHED", f"{S} 0.0.0.0:0 LISTEN 1"
    assert polls.see(listener, f"{client} ESTABLISHED 104", f"{server} 105") == PAIRED
    assert polls.see(listener, f"{client} ESTABLISHED 110", f"{client} CLOSE_WAIT 110") == PAIRED
    assert polls.see(listener, f"{client} ESTABLISHED 111", f"{server} 112") == PAIRED


def test_an_older_print_is_no_past(polls: Polls) -> None:
    """It was accepted between two prints; the print before that is not the past of the next connection."""
    end = f"{SERVER} {CLIENT}"
    assert polls.see(LISTENER, f"{end} ESTABLISHED 0", f"{end} ESTABLISHED 110") == [INGRESS]
    assert polls.see(LISTENER, f"{end} ESTABLISHED 110") == []
    assert polls.see(LISTENER, f"{end} CLOSE_WAIT 115") == [INGRESS]


def test_an_older_print_is_no_past_in_the_very_next_poll(polls: Polls) -> None:
    end = f"{SERVER} {CLIENT}"
    assert polls.see(LISTENER, f"{end} ESTABLISHED 0") == [INGRESS]
    assert polls.see(LISTENER, f"{end} ESTABLISHED 0", f"{end} ESTABLISHED 110") == []
    assert polls.see(LISTENER, f"{end} CLOSE_WAIT 115") == [INGRESS]


def test_of_two_lives_in_one_reading_the_later_stays(polls: Polls) -> None:
    end = f"{SERVER} {CLIENT}"
    assert polls.see(LISTENER, f"{end} CLOSE_WAIT 0", f"{end} ESTABLISHED 9") == [INGRESS, INGRESS]
    assert polls.see(LISTENER, f"{end} ESTABLISHED 9") == []
    assert polls.see(LISTENER, f"{end} CLOSE_WAIT 115") == [INGRESS]


@pytest.mark.parametrize("backwards", [False, True])
def test_what_went_is_in_no_order(backwards: bool) -> None:
    """Two sockets of one end, one of them accepted since and one closed, whatever comes first."""
    end = End(Endpoint(b"\x0a\0\0\5\0\x50"), Endpoint(b"\xc0\0\2\x38\x17\x55"))
    waiting, accepted = Row(end, TcpState.ESTABLISHED, 0), Row(end, TcpState.ESTABLISHED, 7)
    gone = [waiting, accepted][:: -1 if backwards else 1]
    tracker = Tracker()
    tracker.find_new(Snapshot(1, 2, [accepted, waiting], [], [], 0))
    fresh = [Row(end, TcpState.CLOSE_WAIT, 7), Row(end, TcpState.ESTABLISHED, 8)]
    assert tracker.find_new(Snapshot(3, 4, fresh, gone, [], 0)) == []
    assert tracker.find_new(Snapshot(5, 6, [], fresh, [], 0)) == []
    assert len(tracker.find_new(Snapshot(7, 8, [Row(end, TcpState.CLOSE_WAIT, 9)], [], [], 0))) == 1


def test_a_print_that_differs_in_nothing_of_identity_is_no_older_one(polls: Polls) -> None:
    """Its timeout was counted on."""
    end = f"{SERVER} {CLIENT}"
    row = f"{end} ESTABLISHED 9"
    assert polls.see(LISTENER, row, f"{row} 1") == [INGRESS]
    assert polls.see(LISTENER, f"{end} FIN_WAIT1 9") == []


def test_an_end_told_in_the_polls_own_drain_has_a_row(polls: Polls) -> None:
    """Its row looks as the one before did. The record of the connection after it is lost."""
    end, found = "10.0.0.5:5000 192.0.2.1:443", ["10.0.0.5:5000 -> 192.0.2.1:443 egress"]
    assert polls.see(f"{end} FIN_WAIT2 0", at=1) == found
    assert polls.see(f"{end} FIN_WAIT2 0", at=20, told=opens(10, 7, end)) == found
    assert polls.see(f"{end} ESTABLISHED 106", at=30) == found


def test_an_opening_end_whose_accepting_end_is_told_while_the_table_is_read(polls: Polls) -> None:
    """Its own record is lost, and its row cannot be that of the connection before."""
    assert polls.see(f"{C} {S} CLOSE_WAIT 103", at=1) == [f"{C} -> {S} egress"]
    assert polls.see(f"{C} {S} ESTABLISHED 113", at=20, told=[accepts(20, 8)]) == PAIRED
    assert polls.see(f"{C} {S} FIN_WAIT1 113", at=30) == []


def test_an_opening_end_that_stays_while_its_accepting_end_is_told(polls: Polls) -> None:
    """The row read then is still that of the connection before."""
    assert polls.see(f"{C} {S} CLOSE_WAIT 103", at=1) == [f"{C} -> {S} egress"]
    assert polls.see(f"{C} {S} LAST_ACK 103", at=20, told=[accepts(20, 8)]) == []
    assert polls.see(f"{C} {S} FIN_WAIT1 113", at=30) == PAIRED


PROXIED = [INGRESS, f"{CLIENT} -> {SERVER} egress"]


def proxy(when: int) -> list[str]:
    """A transparent proxy accepts for the server, then opens to the server with the client's own port."""
    return [accepts(when, 8, f"{SERVER} {CLIENT}"), *opens(when + 2, 7, f"{CLIENT} {SERVER}")]


def test_a_transparent_proxy_that_keeps_the_clients_port(polls: Polls) -> None:
    assert polls.hear(*proxy(1), now=70) == PROXIED
    assert polls.hear(*proxy(101)) == PROXIED


def test_an_opening_end_that_has_closed_waits_for_no_other(polls: Polls) -> None:
    """What is accepted there afterwards is a connection of its own."""
    assert polls.hear(*opens(1, 7, f"{CLIENT} {SERVER}")) == [f"{CLIENT} -> {SERVER} egress"]
    polls.see(f"{CLIENT} {SERVER} ESTABLISHED 5", at=10_000)
    polls.see(f"{CLIENT} {SERVER} TIME_WAIT 0", at=20_000)
    assert polls.hear(accepts(21_000, 8, f"{SERVER} {CLIENT}")) == [INGRESS]


def test_one_4_tuple_on_two_links(polls: Polls) -> None:
    """Two sockets at once, each told by the trace; the poll shows both."""
    end = f"{SERVER} {CLIENT}"
    assert polls.hear(accepts(1, 7, end), accepts(2, 8, end)) == [INGRESS, INGRESS]
    assert polls.see(LISTENER, f"{end} ESTABLISHED 7", f"{end} ESTABLISHED 8", at=10) == []
    assert polls.see(LISTENER, f"{end} ESTABLISHED 7", f"{end} ESTABLISHED 8", at=20) == []
    assert polls.see(LISTENER, f"{end} ESTABLISHED 7", f"{end} ESTABLISHED 9", at=30) == [INGRESS]


def test_a_socket_told_twice_before_its_row_is_one_socket(polls: Polls) -> None:
    end = f"{SERVER} {CLIENT}"
    assert polls.hear(accepts(1, 7, end), accepts(2, 8, end)) == [INGRESS, INGRESS]
    assert polls.see(LISTENER, f"{end} ESTABLISHED 8", at=10) == []
    assert polls.see(LISTENER, f"{end} ESTABLISHED 9", at=20) == [INGRESS]


@pytest.mark.parametrize("state", ["FIN_WAIT1", "CLOSE_WAIT"])
def test_a_fast_open_child_that_never_was_established(polls: Polls, state: str) -> None:
    assert polls.hear(f"1 8 SYN_RECV {state} {SERVER} {CLIENT}") == [INGRESS]
    assert polls.see(LISTENER, f"{SERVER} {CLIENT} {state} 0", at=10) == []
    assert polls.hear(f"30 9 SYN_RECV {state} {SERVER} {CLIENT}") == [INGRESS]


def test_a_handshake_that_was_reset_is_no_connection(polls: Polls) -> None:
    """A Fast Open child that was reset looks the same."""
    assert polls.hear(f"1 8 SYN_RECV CLOSE {SERVER} {CLIENT}") == []


def test_what_was_established_is_not_told_when_it_ends(polls: Polls) -> None:
    records = [accepts(1, 8, f"{SERVER} {CLIENT}"), f"2 8 ESTABLISHED FIN_WAIT1 {SERVER} {CLIENT}"]
    assert polls.hear(*records) == [INGRESS]


def test_a_fast_open_child_is_the_second_end(polls: Polls) -> None:
    """Also when it ends before the opening end has heard of it."""
    child = f"SYN_RECV FIN_WAIT1 {S} {C}"
    assert polls.hear(*opens(1, 7), f"3 8 {child}") == PAIRED
    syn, established = opens(102, 7)
    assert polls.hear(syn, f"102 8 {child}", established) == PAIRED
    assert polls.see(f"{C} {S} ESTABLISHED 5", f"{S} {C} FIN_WAIT1 0", at=200) == []


def test_a_fast_open_child_beside_a_row_of_the_connection_before(polls: Polls) -> None:
    """Which was shown at its opening end only, and has closed since."""
    assert len(polls.see(f"{C} {S} ESTABLISHED 5", at=1)) == 1
    syn, established = opens(10, 7)
    assert polls.hear(syn, f"10 8 SYN_RECV FIN_WAIT1 {S} {C}", established) == PAIRED


def test_a_fast_open_child_that_is_older_than_a_syn_is_not_its_other_end(polls: Polls) -> None:
    """A transparent proxy accepts it, then opens."""
    accepted, *opened = proxy(2)
    child = accepted.replace("ESTABLISHED", "FIN_WAIT1")
    assert polls.hear(child, *opened) == PROXIED


def test_an_accepting_end_that_waits_for_data(polls: Polls) -> None:
    """It comes with the first data (TCP_DEFER_ACCEPT); the remote address is this machine's own."""
    polls.own("10.0.0.2")
    assert polls.hear(*opens(1, 7), now=2) == PAIRED
    assert polls.hear(accepts(30_000, 8), now=30_000) == []


def test_the_row_of_an_opening_end_whose_accepting_end_waits_for_data(polls: Polls) -> None:
    polls.own("10.0.0.2")
    assert polls.see(f"{S} 0.0.0.0:0 LISTEN 1", f"{C} {S} ESTABLISHED 5", f"{S} {C} SYN_RECV 0") == PAIRED


HERE, BOX, OTHER_BOX = 1, 2, 3
"""Network namespaces: the one that is polled, and two of containers."""
L = "127.0.0.1"
INSIDE = [f"{L}:5000 -> {L}:80 internal"]


@pytest.fixture
def here(tmp_path: Path) -> Polls:
    return Polls(tmp_path, network=HERE)


def within(network: int, *records: str) -> list[str]:
    return [f"{record} {network}" for record in records]


def connect_inside(network: int, when: int, sock: int) -> list[str]:
    """Over loopback, with the same ports each time."""
    client, server = f"{L}:5000", f"{L}:80"
    ends = opens(when, sock, f"{client} {server}"), accepts(when + 2, sock + 1, f"{server} {client}")
    return within(network, *ends[0], ends[1])


def list_owned(polls: Polls) -> list[tuple[int | None, int | None]]:
    """The namespaces of who opened and who accepted what was reported last."""
    for new in polls.reported:
        for socket in (new.opener, new.acceptor):
            assert socket is None or socket == make_socket(socket.network)
    return [
        (new.opener and new.opener.network, new.acceptor and new.acceptor.network) for new in polls.reported
    ]


def test_equal_4_tuples_in_two_namespaces_are_two_connections(here: Polls) -> None:
    """Each with the sockets of its own."""
    assert here.hear(*connect_inside(BOX, 1, 7), *connect_inside(HERE, 4, 17)) == [*INSIDE, *INSIDE]
    assert list_owned(here) == [(BOX, BOX), (HERE, HERE)]
    assert here.see(f"{L}:5000 {L}:80 ESTABLISHED 5", f"{L}:80 {L}:5000 ESTABLISHED 6", at=20) == []
    assert here.hear(*connect_inside(OTHER_BOX, 31, 7)) == INSIDE
    assert list_owned(here) == [(OTHER_BOX, OTHER_BOX)]
    assert here.see(f"{L}:5000 {L}:80 ESTABLISHED 5", f"{L}:80 {L}:5000 ESTABLISHED 6", at=40) == []


def test_a_record_of_another_namespace_is_of_no_row_of_ours(here: Polls) -> None:
    """The row's own record is lost; without namespaces it would pass for what was told."""
    assert here.hear(*connect_inside(BOX, 1, 7)) == INSIDE
    rows = f"{L}:5000 {L}:80 ESTABLISHED 5", f"{L}:80 {L}:5000 ESTABLISHED 6"
    assert here.see(*rows, at=10) == INSIDE
    assert here.hear(*connect_inside(BOX, 21, 17)) == INSIDE
    assert here.see(*rows, at=30) == []
    assert here.see(f"{L}:5000 {L}:80 FIN_WAIT1 5", f"{L}:80 {L}:5000 CLOSE_WAIT 6", at=40) == []


def test_a_reuse_of_ours_is_not_taken_for_what_another_namespace_told(here: Polls) -> None:
    end = "10.0.0.5:5000 192.0.2.1:443"
    egress = ["10.0.0.5:5000 -> 192.0.2.1:443 egress"]
    assert here.see(f"{end} ESTABLISHED 5", at=1) == egress
    assert here.hear(*within(BOX, *opens(10, 7, end))) == egress
    assert here.see(f"{end} ESTABLISHED 6", at=30) == egress


@pytest.mark.parametrize(
    ("opener", "acceptor", "row"),
    [
        (BOX, HERE, f"{S} {C} ESTABLISHED 6"),
        (HERE, BOX, f"{C} {S} ESTABLISHED 5"),
        (BOX, OTHER_BOX, ""),
    ],
    ids=["container to host", "host to container", "container to container"],
)
def test_between_two_namespaces_a_connection_is_internal(
    here: Polls, opener: int, acceptor: int, row: str
) -> None:
    """It has the sockets of both, and the row of the end that is here is its own."""
    assert here.hear(*within(opener, *opens(1, 7)), now=40) == []
    assert here.hear(*within(acceptor, accepts(41, 8)), now=42) == PAIRED
    assert list_owned(here) == [(opener, acceptor)]
    assert here.reported[0].caller == Caller(1_000_000, 1, None)
    rows = [row] if row else []
    assert [here.see(*rows, at=when) for when in (50, 60, 70)] == [[], [], []]


def test_what_a_container_connects_to_outside(here: Polls) -> None:
    """And what comes from there."""
    assert here.hear(*within(BOX, *opens(1, 7, f"{SERVER} {CLIENT}"))) == [f"{SERVER} -> {CLIENT} egress"]
    assert list_owned(here) == [(BOX, None)]
    assert here.hear(*within(BOX, accepts(200, 8, f"{SERVER} 192.0.2.99:1"))) == [
        f"192.0.2.99:1 -> {SERVER} ingress"
    ]
    assert list_owned(here) == [(None, BOX)]


def test_what_a_container_connects_to_at_this_machine_stays_here(here: Polls) -> None:
    """Though its accepting end may come late, or with the first data only."""
    here.own("10.0.0.2")
    for network in (BOX, HERE):
        assert here.hear(*within(network, *opens(100 * network, 7))) == PAIRED
        assert list_owned(here) == [(network, None)]


@pytest.mark.parametrize("first", [HERE, BOX])
@pytest.mark.parametrize("opened_first", [HERE, BOX])
def test_each_of_two_that_wait_has_the_other_end_of_its_own_namespace(
    here: Polls, opened_first: int, first: int
) -> None:
    """Whichever was opened and accepted first."""
    second, opened_second = HERE + BOX - first, HERE + BOX - opened_first
    client, server = f"{L}:5000 {L}:80", f"{L}:80 {L}:5000"
    opened = [*within(opened_first, *opens(1, 7, client)), *within(opened_second, *opens(3, 17, client))]
    accepted = [*within(first, accepts(5, 8, server)), *within(second, accepts(6, 18, server))]
    assert here.hear(*opened, *accepted) == [*INSIDE, *INSIDE]
    assert sorted(list_owned(here)) == [(HERE, HERE), (BOX, BOX)]


def test_a_connection_that_stays_here_waits_for_its_second_owner(here: Polls) -> None:
    """Only where records tell of owners."""
    assert here.hear(*connect_inside(HERE, 1, 7)[:2], now=2) == []
    assert here.hear(*connect_inside(HERE, 1, 7)[2:], now=3) == INSIDE
    assert list_owned(here) == [(HERE, HERE)]
    assert here.hear(*opens(11, 7, f"{L}:5000 {L}:80"), now=12) == INSIDE
    assert list_owned(here) == [(None, None)]


def test_a_self_connect_has_one_socket_for_both_ends(here: Polls) -> None:
    end = f"{L}:5000 {L}:5000"
    records = within(BOX, f"1 7 CLOSE SYN_SENT {end}", f"2 7 SYN_RECV ESTABLISHED {end}")
    assert here.hear(*records) == [f"{L}:5000 -> {L}:5000 internal"]
    assert list_owned(here) == [(BOX, BOX)]
    assert here.see(f"{end} ESTABLISHED 5", at=9) == [f"{L}:5000 -> {L}:5000 internal"]


def test_a_row_has_the_user_of_a_socket_that_a_process_holds(here: Polls) -> None:
    assert len(here.see(LISTENER, f"{SERVER} {CLIENT} ESTABLISHED 9")) == 1
    assert [(new.opener, new.acceptor) for new in here.reported] == [(None, Socket(0, 0, 0))]
    assert len(here.see(f"{SERVER} 192.0.2.9:1 ESTABLISHED 0")) == 1
    assert [(new.opener, new.acceptor) for new in here.reported] == [(None, None)]
