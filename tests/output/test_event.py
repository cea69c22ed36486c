"""Events: every field of the contract, and no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tcpwatchd.connection import NOBODY, Closed, Connection, Endpoint, GoesOn, Owner, PortScan, TcpState
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


HOST = b"\x0a\0\0\5"
SCAN = PortScan(b"\xc0\0\2\7", None, 0, 0, [22, 80], [*range(1, 22), 23], [HOST], False, False, "")


def test_a_port_scan() -> None:
    assert event.port_scan(SCAN, MOMENT - 9_000_000, MOMENT - 2_000_000, MOMENT) == event.Event(
        MOMENT,
        {
            "MESSAGE": "Port scan: 192.0.2.7 tried 24 ports of this host",
            "MESSAGE_ID": "e73fc756eb2247328f45e6ffc1abb967",
            "PRIORITY": "4",
            "SYSLOG_IDENTIFIER": "tcpwatchd",
            "EVENT_CREATED": "2021-04-28T13:28:05.123456Z",
            "EVENT_ACTION": "port-scan",
            "EVENT_START": "2021-04-28T13:27:56.123456Z",
            "EVENT_END": "2021-04-28T13:28:03.123456Z",
            "SOURCE_IP": "192.0.2.7",
            "NETWORK_TYPE": "ipv4",
            "NETWORK_TRANSPORT": "tcp",
            "TCPWATCHD_SEEN_BY": "accept,reset",
            "TCPWATCHD_SOURCE_VERIFIED": "no",
            "TCPWATCHD_OPEN_PORTS": "22,80",
            "TCPWATCHD_CLOSED_PORTS": "1-21,23",
            "EVENT_COUNT": "24",
            "DESTINATION_IP": "10.0.0.5",
        },
    )


def list_changed(scan: PortScan) -> dict[str, str | None]:
    """The fields that are other than those of SCAN; None for those that it has not."""
    plain, fields = (event.port_scan(one, 0, 0, 0).fields for one in (SCAN, scan))
    names = {**plain, **fields}
    return {name: fields.get(name) for name in names if plain.get(name) != fields.get(name)}


def test_by_what_a_scan_was_seen() -> None:
    message = "Port scan: 192.0.2.7 tried 2 ports of this host"
    changed = {"MESSAGE": message, "EVENT_COUNT": "2"}
    assert list_changed(SCAN._replace(closed_ports=[])) == {
        **changed,
        "TCPWATCHD_SEEN_BY": "accept",
        "TCPWATCHD_CLOSED_PORTS": None,
    }
    assert list_changed(SCAN._replace(open_ports=[], closed_ports=[7, 9])) == {
        **changed,
        "TCPWATCHD_SEEN_BY": "reset",
        "TCPWATCHD_OPEN_PORTS": None,
        "TCPWATCHD_CLOSED_PORTS": "7,9",
    }


def test_a_scan_that_goes_on_and_of_which_there_may_be_more() -> None:
    beginning = "Port scan goes on: 192.0.2.7 tried"
    forms: tuple[tuple[GoesOn, str], ...] = (
        ("ports", "at least 24 more ports of this host"),
        ("addresses", "at least 24 ports of this host"),
        ("again", "at least 24 ports of this host again"),
    )
    for goes_on, tried in forms:
        found = list_changed(SCAN._replace(goes_on=goes_on, is_least=True))
        assert found == {"MESSAGE": f"{beginning} {tried}"}
    assert list_changed(SCAN._replace(is_verified=True)) == {"TCPWATCHD_SOURCE_VERIFIED": "yes"}
    one = SCAN._replace(goes_on="ports", open_ports=[443], closed_ports=[])
    assert list_changed(one)["MESSAGE"] == f"{beginning} port 443 too of this host"
    more = SCAN._replace(goes_on="addresses", open_ports=[22], closed_ports=[], destinations=[HOST] * 9)
    assert list_changed(more)["MESSAGE"] == f"{beginning} port 22 of this host at 9 more addresses"


def test_a_scan_of_a_port_at_many_addresses() -> None:
    """They are counted then, not the ports."""
    here = [bytes((10, 0, 0, last)) for last in range(1, 22)]
    sweep = SCAN._replace(open_ports=[], closed_ports=[5432], destinations=here)
    changed = {
        "MESSAGE": "Port scan: 192.0.2.7 tried port 5432 of this host at 21 addresses",
        "EVENT_COUNT": "21",
        "DESTINATION_PORT": "5432",
        "DESTINATION_IP": None,
        "TCPWATCHD_DESTINATION_IPS": ",".join(f"10.0.0.{last}" for last in range(1, 22)),
        "TCPWATCHD_SEEN_BY": "reset",
        "TCPWATCHD_OPEN_PORTS": None,
        "TCPWATCHD_CLOSED_PORTS": "5432",
    }
    assert list_changed(sweep) == changed
    message = "Port scan: 192.0.2.7 tried port 5432 of this host at at least 21 addresses"
    assert list_changed(sweep._replace(is_least=True)) == {**changed, "MESSAGE": message}
    both = list_changed(SCAN._replace(destinations=here[:2]))
    assert both["MESSAGE"] == "Port scan: 192.0.2.7 tried 24 ports of this host at 2 addresses"
    assert both["TCPWATCHD_DESTINATION_IPS"] == "10.0.0.1,10.0.0.2"


def test_a_scan_from_a_network_of_ipv6() -> None:
    network = bytes.fromhex("20010db800000007" + 16 * "0")
    address = network[:-1] + b"\x09"
    changed = {
        "MESSAGE": "Port scan: 2001:db8:0:7::/64 tried 24 ports of this host",
        "SOURCE_IP": "2001:db8:0:7::9",
        "NETWORK_TYPE": "ipv6",
        "TCPWATCHD_SOURCE_NETWORK": "2001:db8:0:7::/64",
    }
    assert list_changed(SCAN._replace(address=address, network=(network, 64))) == changed
    alone = list_changed(SCAN._replace(address=address))
    assert alone["MESSAGE"] == "Port scan: 2001:db8:0:7::9 tried 24 ports of this host"
    assert "TCPWATCHD_SOURCE_NETWORK" not in alone


@pytest.mark.parametrize(
    ("ports", "text"),
    [
        ([1], "1"),
        ([1, 2], "1-2"),
        ([1, 3, 4, 5, 9, 65534, 65535], "1,3-5,9,65534-65535"),
        ([*range(1, 65536)], "1-65535"),
        ([*range(1, 201, 2)], ",".join(str(port) for port in range(1, 201, 2))),
        ([*range(1, 203, 2)], ",".join(str(port) for port in range(1, 201, 2)) + ",..."),
    ],
)
def test_ports_are_listed_as_ranges_up_to_a_limit(ports: list[int], text: str) -> None:
    assert event.list_ports(ports) == text
    fields = event.port_scan(SCAN._replace(open_ports=[], closed_ports=ports), 0, 0, 0).fields
    assert fields["TCPWATCHD_CLOSED_PORTS"] == text


def test_a_scan_of_everything_fits_into_an_entry() -> None:
    here = [bytes(14) + number.to_bytes(2, "big") for number in range(256)]
    scan = SCAN._replace(
        open_ports=[*range(1, 65536, 2)], closed_ports=[*range(2, 65536, 2)], destinations=here
    )
    fields = event.port_scan(scan, 0, 0, 0).fields
    assert (fields["EVENT_COUNT"], fields["MESSAGE"].count("65535")) == ("65535", 1)
    assert fields["TCPWATCHD_DESTINATION_IPS"].endswith(",::63,...")
    assert sum(len(name) + len(value) for name, value in fields.items()) < 5000


def test_what_else_is_said_of_scans() -> None:
    uncounted, failed, recovered = (
        event.scans_unfollowed(4, 0).fields,
        event.resets_failed("gone", 0).fields,
        event.resets_recovered(0).fields,
    )
    assert uncounted["MESSAGE"].startswith(
        "Port scans: at least 4 more sources tried many ports of this host"
    )
    assert (uncounted["EVENT_COUNT"], uncounted["PRIORITY"]) == ("4", "4")
    assert (failed["ERROR_MESSAGE"], failed["PRIORITY"], recovered["PRIORITY"]) == ("gone", "4", "5")
    assert failed["MESSAGE"].endswith("port scans can be missed: gone")


def test_what_the_trace_tells_is_said_when_it_begins() -> None:
    used = event.trace_used("/x", 512, True, None, None, 0).fields["MESSAGE"]
    assert used == "The kernel's trace is in use: every connection is reported (/x, 512 KiB a CPU)"
    without = event.trace_used("/x", 512, True, None, "why", 0).fields["MESSAGE"]
    assert without == f"{used}; port scans are seen by open ports only: why"


def test_every_message_has_an_entry_in_the_catalog() -> None:
    identifiers = {value for value in vars(event).values() if isinstance(value, str) and len(value) == 32}
    lines = (PROJECT / "systemd" / "tcpwatchd.catalog").read_text().splitlines()
    assert len(identifiers) == 36
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
