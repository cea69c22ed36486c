"""A filter asks entries as the daemon's rules ask connections: the same words, the same answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tcpwatchd.connection import Closed, Connection, Endpoint, Owner, Socket, TcpState
from tcpwatchd.failure import UsageError
from tcpwatchd.output import event
from tcpwatchd.policy.rules import Rules, compile_rule
from tcpwatchd.report.chosen import compile_filter, find_port
from tests.report.journals import list_fields

POLLED, OTHER = 4026531840, 4026532999
"""Inodes of network namespaces."""
TIME = 1_795_000_000_000_000


def make(
    source: str = "192.0.2.7:5973",
    destination: str = "10.0.0.5:443",
    direction: str = "ingress",
    owner: Owner = Owner(),  # noqa: B008, nobody changes it
    listener: Owner = Owner(),  # noqa: B008
    detected_by: str = "trace",
    network: int = POLLED,
) -> Connection:
    ends = []
    for text in source, destination:
        address, _, port = text.rpartition(":")
        packed = (
            bytes.fromhex(address[1:-1]) if address.startswith("[") else bytes(map(int, address.split(".")))
        )
        ends.append(Endpoint(packed + int(port).to_bytes(2, "big")))
    socket = Socket(0, 1, network)
    shown = owner._replace(network=None if network == POLLED else network)
    return Connection(
        ends[0],
        ends[1],
        direction,  # type: ignore[arg-type]
        TcpState.ESTABLISHED,
        detected_by,  # type: ignore[arg-type]
        TIME * 1000,
        opener=socket if direction != "ingress" else None,
        acceptor=socket if direction == "ingress" else None,
        owner=shown,
        listener=listener,
    )


SIX = "[20010db8000000000000000000000007]:5973"
WEB = Owner(33, "www-data", "nginx.service", name="nginx", process=9, thread=9, command_line="nginx -g")
USER = Owner(1000, "alice", "user@1000.service", "app.service", name="a b\\x0a")
BOX = Owner(0, "root", "docker.service", container="4a7d1ed41474", name="postgres")
CASES = [
    ("ingress", make(), make(direction="egress")),
    ("inbound", make(), make(direction="internal")),
    ("egress", make(direction="egress"), make()),
    ("outbound", make(direction="egress"), make(direction="internal")),
    ("internal", make(direction="internal"), make()),
    ("ip", make(), make(SIX, SIX)),
    ("ip6", make(SIX, SIX), make()),
    ("here", make(owner=WEB), make(owner=WEB, network=OTHER)),
    ("here", make(detected_by="poll"), make(owner=WEB, network=OTHER)),
    ("src host 192.0.2.7", make(), make("192.0.2.8:5973")),
    ("dst host 10.0.0.5", make(), make(destination="10.0.0.6:1")),
    ("host 2001:db8::7", make(SIX, SIX), make()),
    ("host 192.0.2.7", make(), make("192.0.2.8:1")),
    ("net 192.0.2.0/24", make(), make("192.0.3.7:1")),
    ("src net 2001:db8::/32", make(SIX, SIX), make()),
    ("dst net 10.0.0.4/31", make(), make(destination="10.0.0.6:443")),
    ("port 443", make(), make(destination="10.0.0.5:80")),
    ("port https", make(), make(destination="10.0.0.5:80")),
    ("src port 5000-6000", make(), make("192.0.2.7:6001")),
    ("dst port 400-500", make(), make(destination="10.0.0.5:80")),
    ("unit nginx.service", make(owner=WEB), make(owner=BOX)),
    ("unit app.service", make(owner=USER), make(owner=BOX)),
    ("unit user@*", make(owner=USER), make(owner=WEB)),
    ("unit docker.service", make(direction="internal", owner=WEB, listener=BOX), make(owner=WEB)),
    ("user www-data", make(owner=WEB), make(owner=USER)),
    ("user 33", make(owner=WEB), make()),
    ("user alice", make(direction="internal", owner=WEB, listener=USER), make(owner=WEB, listener=USER)),
    ("container 4a7d*", make(owner=BOX), make(owner=WEB)),
    ("not container *", make(owner=WEB), make(owner=BOX)),
    ("process nginx", make(owner=WEB), make(owner=BOX)),
    ('process "a b\\x0a"', make(owner=USER), make(owner=WEB)),
    ("not process nginx", make(owner=BOX), make()),
    ("(ingress or port 80) and not user root", make(owner=WEB), make(owner=BOX)),
]


@pytest.mark.parametrize(("text", "wanted", "other"), CASES, ids=[f"{case[0]}" for case in CASES])
def test_each_word(text: str, wanted: Connection, other: Connection) -> None:
    test = compile_filter(text)
    for made, answer in (wanted, True), (other, False):
        assert test(list_fields(event.connection_opened(made, TIME))) is answer
        closed = Closed(made, made.time + 5, "fin", "source", 1, 2, "trace")
        assert test(list_fields(event.connection_closed(closed, TIME, TIME))) is answer
        assert ask_rules(text, made) is answer


def test_what_is_told_many_in_one_has_no_source_port_that_is_known() -> None:
    fields = list_fields(event.connections_opened(make(owner=WEB), 9, TIME, TIME))
    answers = {
        text: compile_filter(text)(fields) for text in ("src port 5973", "not src port 5973", "port 443")
    }
    assert answers == {"src port 5973": False, "not src port 5973": False, "port 443": True}


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("ingress and", 12),
        ("port", 5),
        ("prot 80", 1),
        ("host example.org", 6),
        ("port 99999", 6),
        ("(ip", 4),
    ],
)
def test_a_wrong_filter_names_the_column(text: str, column: int) -> None:
    with pytest.raises(UsageError, match=f"^filter, column {column}: expected "):
        compile_filter(text)


@pytest.mark.parametrize(
    "bad",
    [
        {"SOURCE_IP": b"no address"},
        {"SOURCE_PORT": b"x"},
        {"PROCESS_NAME": b"\xff"},
        {"PROCESS_USER_ID": b"x"},
    ],
)
def test_what_the_daemon_does_not_write_is_refused(bad: dict[str, bytes]) -> None:
    fields = list_fields(event.connection_opened(make(owner=WEB), TIME))
    with pytest.raises(ValueError, match=r"address|literal|decode"):
        compile_filter("process x or unit y.service or ip")({**fields, **bad})


def ask_rules(text: str, made: Connection) -> bool:
    """As the daemon does."""
    rules = Rules([compile_rule("Report", text, "test", 1, find_port)], POLLED)
    return rules.choose(made, lambda connection: connection)[0] is not None


names = st.sampled_from([None, "nginx", "a b", "größe", "x\\x0ay"])
owners = st.builds(
    Owner,
    st.sampled_from([None, 0, 33, 1000]),
    names,
    st.sampled_from([None, "nginx.service", "user@1000.service"]),
    st.sampled_from([None, "app.service"]),
    st.sampled_from([None, "4a7d1ed41474"]),
    st.sampled_from([None, 77]),
    st.sampled_from([None, 78]),
    names,
    names,
    names,
).map(lambda owner: owner if owner.user is not None else Owner(name=owner.name, process=owner.process))
connections = st.builds(
    make,
    st.sampled_from(["192.0.2.7:5973", "10.0.0.5:443", "127.0.0.1:80"]),
    st.sampled_from(["10.0.0.5:443", "10.1.0.5:80"]),
    st.sampled_from(["ingress", "egress", "internal"]),
    owners,
    owners.map(lambda owner: owner._replace(name=None)),
    st.sampled_from(["trace", "poll", "startup"]),
)
words = st.sampled_from(
    [case[0] for case in CASES if case[0] != "here"] + ["user nginx", "process *", "unit *"]
)
expressions = st.recursive(
    words,
    lambda inner: st.one_of(
        inner.map(lambda text: f"not ({text})"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}) and ({pair[1]})"),
        st.tuples(inner, inner).map(lambda pair: f"({pair[0]}) or ({pair[1]})"),
    ),
    max_leaves=5,
)


@given(expressions, connections)
def test_any_expression_says_of_an_entry_what_it_says_of_the_connection(text: str, made: Connection) -> None:
    fields = list_fields(event.connection_opened(made, TIME))
    assert compile_filter(text)(fields) is ask_rules(text, made), fields
