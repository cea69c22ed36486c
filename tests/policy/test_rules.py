"""Rules on connections: the first that matches, and owners only where they are asked for."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.connection import NOBODY, Connection, Endpoint, Owner, Socket, TcpState
from tcpwatchd.policy.expression import Facts
from tcpwatchd.policy.rules import Rule, Rules, compile_rule

if TYPE_CHECKING:
    from tcpwatchd.connection import Detection, Direction

HERE, ELSEWHERE = 4026531840, 4026532000
CLIENT, SERVER = Endpoint(b"\x0a\0\0\5\x9c\x40"), Endpoint(b"\xc6\x33\x64\7\0\x50")
OWNER = Owner(user=33, user_name="www-data", unit="nginx.service", name="nginx")


def make_rules(*lines: str, network: int = HERE) -> Rules:
    return Rules([make_rule(line, number) for number, line in enumerate(lines)], network)


def make_rule(line: str, number: int = 0) -> Rule:
    action, _, text = line.partition("=")
    return compile_rule(action, text, "/etc/x.conf", number, int)


def connect(
    direction: Direction = "egress",
    source: Endpoint = CLIENT,
    opener: Socket | None = None,
    acceptor: Socket | None = None,
    detected_by: Detection = "trace",
) -> Connection:
    fields = source, SERVER, direction, TcpState.ESTABLISHED, detected_by, 5
    return Connection(*fields, opener=opener, acceptor=acceptor)


class Names:
    """Owners that are found, and how often they were asked for."""

    def __init__(self, owner: Owner = OWNER, listener: Owner = NOBODY) -> None:
        self.asked = 0
        self._named = owner, listener

    def __call__(self, connection: Connection) -> Connection:
        self.asked += 1
        owner, listener = self._named
        return connection._replace(owner=owner, listener=listener)


def choose(rules: Rules, connection: Connection, names: Names) -> tuple[int | None, bool]:
    """The number of the rule, and whether the connection was named for it."""
    number, named = rules.choose(connection, names)
    return number, named is not None


def test_without_rules_nothing_is_asked() -> None:
    names = Names()
    assert choose(make_rules(), connect(), names) == (None, False)
    assert names.asked == 0


def test_the_first_that_matches_counts() -> None:
    rules = make_rules("Ignore=port 22", "Report=dst port 80", "Ignore=egress")
    assert choose(rules, connect(), Names()) == (1, False)
    assert choose(rules, connect("ingress"), Names()) == (1, False)
    assert choose(make_rules("Ignore=port 22", "Ignore=ingress"), connect(), Names()) == (None, False)


def test_owners_are_found_once_and_only_if_a_rule_needs_them() -> None:
    rules = make_rules(
        "Ignore=unit cron.service and port 22", "Ignore=port 80 and user root", "Report=process nginx"
    )
    names = Names()
    assert choose(rules, connect(), names) == (2, True)
    assert names.asked == 1
    assert choose(make_rules("Ignore=port 80", "Ignore=user root"), connect(), names) == (0, False)
    assert names.asked == 1


def test_what_is_not_known_matches_neither_a_word_nor_its_not() -> None:
    rules = make_rules(
        "Ignore=user root", "Ignore=not user root", "Ignore=container *", "Ignore=not container *"
    )
    assert choose(rules, connect(), Names(NOBODY)) == (None, True)
    assert choose(rules, connect(), Names()) == (1, True)
    assert choose(make_rules("Ignore=not container *"), connect(), Names()) == (0, True)


def test_of_an_internal_connection_either_owner_can_match() -> None:
    rules = make_rules("Ignore=user 7")
    assert choose(rules, connect("internal"), Names(OWNER, Owner(user=7))) == (0, True)
    assert choose(rules, connect("internal"), Names(OWNER, Owner(user=8))) == (None, True)
    refused = make_rules("Ignore=not user 7")
    assert choose(refused, connect("internal"), Names(OWNER, NOBODY)) == (None, True)
    assert choose(refused, connect("egress"), Names(OWNER, NOBODY)) == (0, True)


def test_ports_of_the_source_count_where_a_rule_asks_for_them() -> None:
    rules = make_rules("Ignore=src port 40000-40001", "Report=port 50000")
    ports = {port: Endpoint(CLIENT[:-2] + port.to_bytes(2, "big")) for port in (40000, 40002, 50000)}
    assert [choose(rules, connect(source=end), Names())[0] for end in ports.values()] == [0, None, 1]
    assert choose(make_rules("Ignore=not src port 22"), connect(), Names()) == (0, False)
    assert choose(make_rules("Ignore=not src port 40000"), connect(), Names()) == (None, False)


@pytest.mark.parametrize(
    ("connection", "here"),
    [
        (connect(opener=Socket(0, 0, HERE)), True),
        (connect(opener=Socket(0, 0, ELSEWHERE)), False),
        (connect("ingress", acceptor=Socket(0, 0, ELSEWHERE)), False),
        (connect("internal", opener=Socket(0, 0, ELSEWHERE), acceptor=Socket(0, 0, HERE)), True),
        (connect(detected_by="poll"), True),
        (connect(opener=Socket(0, 0, 0), detected_by="startup"), True),
        (connect(), None),
    ],
)
def test_here(connection: Connection, here: bool | None) -> None:
    """Without the network in its record nobody knows where a connection is."""
    rules = make_rules("Ignore=here", "Ignore=not here")
    number, _ = choose(rules, connection, Names())
    assert {0: True, 1: False, None: None}[number] == here
    nowhere = make_rules("Ignore=here", "Ignore=not here", network=0)
    expected = 0 if connection.detected_by != "trace" else None
    assert choose(nowhere, connection, Names())[0] == expected


ADDRESSES = [f"10.0.{n}.{m}" for n in (0, 1, 255) for m in (0, 1, 7, 8, 255)] + ["0.0.0.0", "255.255.255.255"]
ADDRESSES += ["::", "::1", "2001:db8::7", "2001:db8::8", "ffff:" * 7 + "ffff"]
NETS = ["0.0.0.0/0", "::/0", "10.0.0.0/16", "10.0.1.0/24", "10.0.0.0/29", "10.0.0.8/29", "2001:db8::8/125"]
NETS += ["::ffff:10.0.1.0/120", "255.255.255.255/32", "255.0.0.0/8", "ff00::/8"]
PORTS = [1, 2, 79, 80, 81, 1023, 1024, 40000, 65534, 65535]
SIDES = st.sampled_from(["", "src ", "dst "])
RANGES = st.tuples(st.sampled_from(PORTS), st.sampled_from(PORTS)).map(sorted)
PRIMITIVES = st.one_of(
    st.builds("{}host {}".format, SIDES, st.sampled_from(ADDRESSES)),
    st.builds("{}net {}".format, SIDES, st.sampled_from(NETS)),
    st.builds("{0}port {1[0]}-{1[1]}".format, SIDES, RANGES),
    st.sampled_from(
        ["ip", "ip6", "ingress", "internal", "here", "user 33", "unit n*", "container *", "process x"]
    ),
)
LINES = st.builds(
    "{}={}{} {} {}{}".format,
    st.sampled_from(["Ignore", "Report", "Warning"]),
    st.sampled_from(["", "not "]),
    PRIMITIVES,
    st.sampled_from(["and", "or"]),
    st.sampled_from(["", "not "]),
    PRIMITIVES,
)
ENDS = st.builds(
    lambda address, port: Endpoint(ipaddress.ip_address(address).packed + port.to_bytes(2, "big")),
    st.sampled_from(ADDRESSES),
    st.sampled_from(PORTS),
)
SOCKETS = st.sampled_from([None, Socket(0, 0, HERE), Socket(0, 0, ELSEWHERE)])
CONNECTIONS = st.builds(
    lambda source, to, direction, *sockets: connect(direction, source, *sockets)._replace(destination=to),
    ENDS,
    ENDS,
    st.sampled_from(["ingress", "egress", "internal"]),
    SOCKETS,
    SOCKETS,
)
OWNERS = st.sampled_from([NOBODY, OWNER, Owner(user=1, unit="x.service", container="box", name="x")])


@given(
    st.lists(LINES, max_size=6), st.lists(st.tuples(CONNECTIONS, OWNERS, OWNERS), max_size=30), st.booleans()
)
def test_what_is_remembered_changes_nothing(lines: list[str], came: list[Any], forgetful: bool) -> None:
    """Each is judged as by each rule in turn, with all that is known; and at its SYN no more is said."""
    rules = make_rules(*lines)
    if forgetful:
        rules._most = 1
    for connection, *owners in came:
        source, to = connection.source, connection.destination
        facts = Facts(source.address, source.port, to.address, to.port, connection.direction, None)
        sockets = [socket.network == HERE for socket in connection[8:10] if socket]
        facts = facts._replace(here=any(sockets) if sockets else None, owners=tuple(owners))
        found = [rule.expression.test(facts) for rule in rules.rules]
        number = found.index(True) if True in found else None
        assert rules.choose(connection, Names(*owners))[0] == number
        if connection.direction != "ingress":
            ignored = number is not None and rules.rules[number].action == "Ignore"
            assert rules.may_report(source.address, to, connection.opener) or ignored
    assert all(
        len(known) <= rules._most for known in (rules._remembered, rules._reported, rules._remembered_owned)
    )


@pytest.mark.parametrize(
    ("lines", "may"),
    [
        ([], True),
        (["Ignore=ip"], False),
        (["Ignore=ip6"], True),
        (["Ignore=dst port 80"], False),
        (["Ignore=dst host 198.51.100.7 and src host 10.0.0.5"], False),
        (["Ignore=ingress"], True),
        (["Ignore=egress"], True),
        (["Ignore=egress", "Ignore=internal"], True),
        (["Ignore=egress or internal"], True),
        (["Ignore=not ingress"], False),
        (["Ignore=src port 40000"], True),
        (["Ignore=user root"], True),
        (["Ignore=user root", "Ignore=ip"], True),
        (["Notice=user root", "Ignore=ip"], True),
        (["Report=port 80", "Ignore=ip"], True),
        (["Report=port 22", "Ignore=ip"], True),
        (["Report=dst port 22", "Ignore=ip"], False),
        (["Ignore=here"], True),
    ],
)
def test_what_is_ignored_in_any_case_is_known_at_its_syn(lines: list[str], may: bool) -> None:
    """Then its process is not looked for; the port of its source is not known yet, nor where it ends."""
    assert make_rules(*lines).may_report(CLIENT[:-2], SERVER, None) is may


def test_at_its_syn_it_can_be_here_and_not_be_known_to_be_elsewhere() -> None:
    """The other end of a connection from another network namespace can be here."""
    elsewhere, here = Socket(0, 0, ELSEWHERE), Socket(0, 0, HERE)
    for lines, expected in ((["Ignore=here"], [True, False]), (["Ignore=not here"], [True, True])):
        rules = make_rules(*lines)
        assert [rules.may_report(CLIENT[:-2], SERVER, socket) for socket in (elsewhere, here)] == expected


def test_rules_are_equal_if_they_say_the_same_at_the_same_place() -> None:
    assert make_rule("Ignore=port 80", 1) == make_rule("Ignore=port 80", 1)
    others = [make_rule("Ignore=port 80", 2), make_rule("Notice=port 80", 1), make_rule("Ignore=port 81", 1)]
    others.append(compile_rule("Ignore", "port web", "/etc/x.conf", 1, lambda _name: 80))
    assert all(other != make_rule("Ignore=port 80", 1) for other in others)
    assert others[-1] != compile_rule("Ignore", "port web", "/etc/x.conf", 1, lambda _name: 81)


def test_another_action_is_none() -> None:
    with pytest.raises(ValueError, match="Drop"):
        make_rule("Drop=port 80")
