"""Events: every field of the contract, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcpwatchd.connection import NOBODY, Closed, Connection, Endpoint, Owner, TcpState
from tcpwatchd.output import event
from tcpwatchd.owners.text import make_printable

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


OPENED = Connection(
    Endpoint(b"\x0a\0\0\5\x17\x55"),
    Endpoint(b"\x0a\0\0\5\0\x50"),
    "internal",
    TcpState.ESTABLISHED,
    "trace",
    0,
)
MESSAGE = "New connection: 10.0.0.5:5973 -> 10.0.0.5:80"
WHOLE = Owner(
    user=1000,
    user_name="alice",
    unit="user@1000.service",
    user_unit="mine.service",
    container="box",
    process=4242,
    thread=4243,
    name="curl",
    executable="/usr/bin/curl",
    command_line="curl http://10.0.0.5/",
    network=4026532999,
)
"""Of somebody of whom all is known; who listens has other fields of it."""


def list_added(connection: Connection, with_owner: bool = False) -> dict[str, str]:
    """The fields that an event has because of who has the connection's ends."""
    without = connection._replace(owner=NOBODY, listener=NOBODY)
    plain = event.connection_opened(without, MOMENT).fields
    fields = event.connection_opened(connection, MOMENT, with_owner).fields
    assert list(fields)[: len(plain)] == list(plain)
    return {name: value for name, value in fields.items() if plain.get(name) != value}


def test_who_opened_it() -> None:
    assert list_added(OPENED._replace(owner=WHOLE)) == {
        "PROCESS_USER_ID": "1000",
        "PROCESS_USER_NAME": "alice",
        "PROCESS_SYSTEMD_UNIT": "user@1000.service",
        "PROCESS_SYSTEMD_USER_UNIT": "mine.service",
        "CONTAINER_ID": "box",
        "PROCESS_PID": "4242",
        "PROCESS_THREAD_ID": "4243",
        "PROCESS_NAME": "curl",
        "PROCESS_EXECUTABLE": "/usr/bin/curl",
        "PROCESS_COMMAND_LINE": "curl http://10.0.0.5/",
        "TCPWATCHD_NETWORK_NAMESPACE": "4026532999",
    }


def test_who_accepted_it_inside_this_machine() -> None:
    assert list_added(OPENED._replace(listener=WHOLE)) == {
        "DESTINATION_USER_ID": "1000",
        "DESTINATION_USER_NAME": "alice",
        "DESTINATION_SYSTEMD_UNIT": "user@1000.service",
        "DESTINATION_SYSTEMD_USER_UNIT": "mine.service",
        "DESTINATION_CONTAINER_ID": "box",
        "TCPWATCHD_DESTINATION_NETWORK_NAMESPACE": "4026532999",
    }


@pytest.mark.parametrize("field", Owner._fields)
def test_what_is_not_known_is_absent(field: str) -> None:
    """Each field alone, and root is known although it is 0."""
    alone = Owner()._replace(**{field: getattr(WHOLE, field)})
    assert list(list_added(OPENED._replace(owner=alone))) == [event.OWNER_FIELDS[field]]
    expected = [event.LISTENER_FIELDS[field]] if field in event.LISTENER_FIELDS else []
    assert list(list_added(OPENED._replace(listener=alone))) == expected
    assert list_added(OPENED._replace(owner=Owner(), listener=Owner()), with_owner=True) == {}


def test_root_is_somebody() -> None:
    added = list_added(OPENED._replace(owner=Owner(user=0), listener=Owner(user=0)), with_owner=True)
    assert added == {
        "MESSAGE": f"{MESSAGE} (user 0)",
        "PROCESS_USER_ID": "0",
        "DESTINATION_USER_ID": "0",
    }


@pytest.mark.parametrize(
    ("owner", "words"),
    [
        (WHOLE._replace(unit="cron.service", user_unit=None), " (curl[4242], alice, cron.service)"),
        (WHOLE, " (curl[4242], alice, mine.service)"),
        (WHOLE._replace(process=None), " (curl, alice, mine.service)"),
        (Owner(process=4242), " ([4242])"),
        (Owner(name="curl"), " (curl)"),
        (Owner(user=1000, unit="a.service"), " (user 1000, a.service)"),
        (Owner(unit="a.service"), " (a.service)"),
        (Owner(thread=4243), ""),
        (Owner(container="box", network=4), ""),
        (NOBODY, ""),
    ],
)
def test_the_owner_in_words(owner: Owner, words: str) -> None:
    assert event.describe_owner(owner) == words
    opened = event.connection_opened(OPENED._replace(owner=owner), MOMENT, with_owner=True)
    assert opened.fields["MESSAGE"] == MESSAGE + words


def test_the_message_is_as_ever_unless_the_owner_is_asked_for() -> None:
    """And never has who listens."""
    for with_owner in (False, True):
        only_listener = OPENED._replace(listener=WHOLE)
        assert event.connection_opened(only_listener, MOMENT, with_owner).fields["MESSAGE"] == MESSAGE
    assert event.connection_opened(OPENED._replace(owner=WHOLE), MOMENT).fields["MESSAGE"] == MESSAGE


@pytest.mark.parametrize(
    "name", [b"x\n1 sshd", b"a\nPROCESS_PID=1", b"\x1b[2J\r", b"\xff\xfe", b"\0", "\u2028".encode()]
)
def test_hostile_names_forge_no_field_and_no_line(name: bytes) -> None:
    text = make_printable(name)
    hostile = Owner(1000, text, name=text, executable=f"/tmp/{text}", command_line=text)
    opened = event.connection_opened(OPENED._replace(owner=hostile), MOMENT, with_owner=True)
    assert all(value.isprintable() for value in opened.fields.values())
    assert {"PROCESS_PID", "PROCESS_SYSTEMD_UNIT"}.isdisjoint(opened.fields)
    assert opened.fields["MESSAGE"] == f'{MESSAGE} ("{text}", "{text}")'


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sshd[1], root", ' ("sshd[1], root"[4242], alice)'),
        ('sshd"[1], "x', r' ("sshd\x22[1], \x22x"[4242], alice)'),
        (" sshd", ' (" sshd"[4242], alice)'),
        ("Web Content", ' ("Web Content"[4242], alice)'),
        ("kworker/0:1-x", " (kworker/0:1-x[4242], alice)"),
    ],
)
def test_in_words_a_name_imitates_nothing(name: str, words: str) -> None:
    assert event.describe_owner(Owner(1000, "alice", process=4242, name=name)) == words
    assert event.describe_owner(Owner(1000, name)) == words.replace("[4242], alice", "")


CLOSED = Closed(OPENED, 12_345_678_901, "reset", "source", 4_200, 1_100_000, "trace")


def test_a_connection_that_closed() -> None:
    """What it was when it opened, and how it ended."""
    opened = event.connection_opened(OPENED._replace(owner=WHOLE), MOMENT).fields
    closed = event.connection_closed(
        CLOSED._replace(connection=OPENED._replace(owner=WHOLE)), MOMENT, MOMENT + 12_345_678
    )
    assert closed.time == MOMENT + 12_345_678
    assert closed.fields == {
        **opened,
        "MESSAGE": "Connection closed: 10.0.0.5:5973 -> 10.0.0.5:80",
        "MESSAGE_ID": event.CONNECTION_CLOSED,
        "EVENT_ACTION": "connection-closed",
        "EVENT_END": "2021-04-28T13:28:17.469134Z",
        "EVENT_DURATION": "12345678901",
        "SOURCE_BYTES": "4200",
        "DESTINATION_BYTES": "1100000",
        "NETWORK_BYTES": "1104200",
        "TCPWATCHD_CLOSED_BY": "reset",
        "TCPWATCHD_CLOSED_FIRST": "source",
        "TCPWATCHD_CLOSE_DETECTED_BY": "trace",
    }


def test_what_is_not_known_of_its_end_is_absent() -> None:
    unknown = Closed(OPENED._replace(detected_by="startup"), 9, None, None, None, 7, "poll")
    closed = event.connection_closed(unknown, MOMENT, MOMENT, with_owner=True).fields
    opened = event.connection_opened(OPENED, MOMENT).fields
    more = {"EVENT_END", "DESTINATION_BYTES", "TCPWATCHD_CLOSE_DETECTED_BY"}
    assert closed.keys() - opened.keys() == more
    assert closed["MESSAGE"] == "Connection closed: 10.0.0.5:5973 -> 10.0.0.5:80 (7 B received)"


def test_its_sums_stand_behind_its_owner() -> None:
    owned = CLOSED._replace(connection=OPENED._replace(owner=Owner(0, "root", name="curl")))
    fields = event.connection_closed(owned, MOMENT, MOMENT, with_owner=True).fields
    assert fields["MESSAGE"] == (
        "Connection closed: 10.0.0.5:5973 -> 10.0.0.5:80 (curl, root) (12.3 s, 4.2 kB sent, 1.1 MB received)"
    )


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0 ms"),
        (78_900, "0.0789 ms"),
        (999_400_000, "999 ms"),
        (1_000_000_000, "1 s"),
        (59_999_000_000, "1 min"),
        (60_000_000_000, "1 min"),
        (125_400_000_000, "2 min 5 s"),
        (3_600_000_000_000, "1 h"),
        (3_600_000_000_000 * 25, "1 d 1 h"),
        (86_400_000_000_000 * 400 + 61_000_000_000, "400 d"),
    ],
)
def test_durations_for_people(nanoseconds: int, text: str) -> None:
    assert event.format_duration(nanoseconds) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (4_200, "4.2 kB"), (999_499, "999 kB"), (999_500, "1 MB"),
     (50_000_000, "50 MB"), (10**12, "1 TB"), (10**16, "10000 TB")],
)  # fmt: skip
def test_bytes_for_people(number: int, text: str) -> None:
    assert event.format_bytes(number) == text


def test_what_it_says_itself_has_a_time_and_counts_in_good_english() -> None:
    fields = event.connections_missed(1, 2, MOMENT).fields
    assert fields["EVENT_CREATED"] == "2021-04-28T13:28:05.123456Z"
    assert fields["MESSAGE"].startswith("1 inbound connection and at most 2 outbound connections ")
    names = "reported", "reported_closed", "ignored", "folded", "folded_closed", "unreported", "unwritten"
    totals = {**dict.fromkeys(names, 0), "reported": 1}
    assert event.watch_stopped(totals, 0).fields["MESSAGE"] == "Stopped: 1 connection reported"
    message = event.watch_stopped({**totals, "folded": 5, "ignored": 7}, 0).fields["MESSAGE"]
    assert message == "Stopped: 1 connection reported, 5 folded, 7 ignored"


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
    assert len(identifiers) == 30
    assert sorted(line[3:] for line in lines if line.startswith("-- ")) == sorted(identifiers)


def test_the_count_by_rule_adds_up() -> None:
    """Also of more rules than are named."""
    totals = dict.fromkeys(("reported", "ignored"), 1)
    ignored = [(f"/{'x' * 4000}/{number}.conf:1", 1000 + number) for number in range(1500)]
    fields = event.connections_counted(0, ignored, 7, 8, totals, 0).fields
    by_rule = fields["TCPWATCHD_IGNORED_BY"].split(", ")
    assert by_rule[0] == f"1000 by {ignored[0][0]}"
    assert by_rule[-1].endswith(" by 500 more rules")
    whole = sum(number for _, number in ignored)
    assert sum(int(text.split()[0]) for text in by_rule) == whole
    assert f": {whole} ignored (1000 by ...x" in fields["MESSAGE"]
    assert fields["MESSAGE"].endswith("more rules), 7 folded, 8 folded as they closed")
    assert len(fields["MESSAGE"]) < 500
