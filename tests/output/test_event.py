"""Events: every field of the contract, and no other."""

from __future__ import annotations

from pathlib import Path

from tcpwatchd.connection import Connection, Endpoint, TcpState
from tcpwatchd.output import event

PROJECT = Path(__file__).parents[2]
MOMENT = 1_619_616_485_123_456


def test_a_connection() -> None:
    connection = Connection(
        Endpoint(b"\xc0\0\2\x38\x17\x55"),
        Endpoint(b"\x0a\0\0\5\0\x50"),
        "ingress",
        TcpState.ESTABLISHED,
        "poll",
        0,
    )
    assert event.connection_opened(connection, MOMENT) == event.Event(
        MOMENT,
        {
            "MESSAGE": "New connection: 192.0.2.56:5973 -> 10.0.0.5:80",
            "MESSAGE_ID": event.CONNECTION_OPENED,
            "PRIORITY": "6",
            "SYSLOG_IDENTIFIER": "tcpwatchd",
            "EVENT_ACTION": "connection-opened",
            "EVENT_START": "2021-04-28T13:28:05.123456Z",
            "SOURCE_IP": "192.0.2.56",
            "SOURCE_PORT": "5973",
            "DESTINATION_IP": "10.0.0.5",
            "DESTINATION_PORT": "80",
            "NETWORK_DIRECTION": "ingress",
            "NETWORK_TYPE": "ipv4",
            "NETWORK_TRANSPORT": "tcp",
            "TCPWATCHD_DETECTED_BY": "poll",
            "TCPWATCHD_TCP_STATE": "ESTABLISHED",
            "TCPWATCHD_DIRECTION": "known",
        },
    )


def test_what_it_says_itself_has_a_time_and_counts_in_good_english() -> None:
    fields = event.connections_missed(1, 2, MOMENT).fields
    assert fields["EVENT_CREATED"] == "2021-04-28T13:28:05.123456Z"
    assert fields["MESSAGE"].startswith("1 inbound connection and at most 2 outbound connections ")
    totals = {"reported": 1, "unwritten": 0}
    assert event.watch_stopped(totals, 0).fields["MESSAGE"] == "Stopped: 1 connection reported"


def test_ipv6_has_brackets_in_the_message_only() -> None:
    end = Endpoint(bytes.fromhex("20010db8000000000000000000000001 01bb"))
    fields = event.connection_opened(
        Connection(end, end, "internal", TcpState.TIME_WAIT, "poll", 0), 0
    ).fields
    assert fields["MESSAGE"] == "New connection: [2001:db8::1]:443 -> [2001:db8::1]:443"
    assert (fields["SOURCE_IP"], fields["NETWORK_TYPE"]) == ("2001:db8::1", "ipv6")
    assert fields["EVENT_START"] == "1970-01-01T00:00:00.000000Z"


def test_a_hostile_row_is_quoted_in_ascii_and_cut() -> None:
    message = event.rows_malformed([b"\nMESSAGE=\x1b[31mforged\xff" * 100], 0).fields["MESSAGE"]
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 800


def test_every_message_has_an_entry_in_the_catalog() -> None:
    identifiers = {value for value in vars(event).values() if isinstance(value, str) and len(value) == 32}
    lines = (PROJECT / "systemd" / "tcpwatchd.catalog").read_text().splitlines()
    assert len(identifiers) == 21
    assert sorted(line[3:] for line in lines if line.startswith("-- ")) == sorted(identifiers)
