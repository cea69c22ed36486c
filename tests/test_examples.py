"""The shipped examples, as they stand: what is ignored, reported and warned of."""

from __future__ import annotations

import ipaddress
import re
from configparser import ConfigParser
from typing import NamedTuple

import pytest

from tcpwatchd.config.flags import load, parse_arguments
from tcpwatchd.connection import NOBODY, Connection, Direction, Endpoint, Owner, PortScan, TcpState, unmap
from tcpwatchd.output import event
from tcpwatchd.policy.rules import Rules
from tests.daemon import PROJECT, run_program

FOLDER = PROJECT / "packaging/examples"
OF_THE_UNIT = "journal-namespace.conf"
OF_NODE_EXPORTER = "node-exporter.conf"
"""Tried for good beside it."""
OF_FAIL2BAN = {f"fail2ban/{folder}/tcpwatchd.conf" for folder in ("action.d", "filter.d", "jail.d")}
"""Tried for good by tests/system/test_fail2ban.py."""
OF_PROMETHEUS = {
    f"prometheus/{name}" for name in ("prometheus.yml", "tcpwatchd.rules.yml", "tcpwatchd-dashboard.json")
}
"""Tried for good by tests/system/test_prometheus.py."""
PREFIX, SUBNET = r"\S+ tcpwatchd\[\d+\]: ", r"(?P<subnet>[0-9a-f.:]+(?:/\d+)?)"
"""What fail2ban puts there, in short."""
SCAN = PortScan(bytes((192, 0, 2, 7)), None, 0, 0, [22], [1, 2, 3], [bytes((10, 0, 0, 5))], False, False, "")
NGINX = Owner(user=33, user_name="www-data", unit="nginx.service", name="nginx")
UPDATES = Owner(user=42, user_name="_apt", unit="apt-daily-upgrade.service", name="https")
MONITORING = Owner(user=998, user_name="monitoring", unit="agent.service", name="agent")
ALICE = Owner(user=1000, user_name="alice", unit="session-4.scope", name="curl")
USER_ONLY = Owner(user=1000, user_name="alice")
"""As polls have it: nothing else is known."""


class Sample(NamedTuple):
    """A connection, and what is to become of it."""

    decision: str
    direction: Direction
    source: str
    destination: str
    port: int
    owner: Owner = NOBODY
    listener: Owner = NOBODY


CASES = {
    "ignore-health-checks.conf": [
        Sample("Ignore", "ingress", "192.0.2.10", "10.0.0.5", 8080),
        Sample("Ignore", "ingress", "192.0.2.11", "10.0.0.5", 8080, NGINX),
        Sample("Ignore", "ingress", "::ffff:192.0.2.11", "::ffff:10.0.0.5", 8080),
        Sample("Report", "ingress", "192.0.2.12", "10.0.0.5", 8080),
        Sample("Report", "ingress", "192.0.2.10", "10.0.0.5", 443),
        Sample("Report", "egress", "192.0.2.10", "10.0.0.5", 8080),
        Sample("Report", "ingress", "10.0.0.5", "192.0.2.10", 8080),
    ],
    "ignore-loopback.conf": [
        Sample("Ignore", "internal", "127.0.0.1", "127.0.0.53", 53),
        Sample("Ignore", "internal", "::1", "::1", 631, ALICE, MONITORING),
        Sample("Report", "internal", "10.0.0.5", "10.0.0.5", 80),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 80),
        Sample("Report", "ingress", "2001:db8::1", "2001:db8::2", 80),
    ],
    "ignore-monitoring.conf": [
        Sample("Ignore", "egress", "10.0.0.5", "192.0.2.1", 443, MONITORING),
        Sample("Ignore", "ingress", "192.0.2.1", "10.0.0.5", 10050, MONITORING),
        Sample("Ignore", "internal", "127.0.0.1", "127.0.0.1", 80, MONITORING, NGINX),
        Sample("Ignore", "internal", "127.0.0.1", "127.0.0.1", 10050, ALICE, MONITORING),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 443, ALICE),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 443),
        Sample("Report", "internal", "127.0.0.1", "127.0.0.1", 80, ALICE),
    ],
    "only-leaving.conf": [
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 443),
        Sample("Report", "egress", "2001:db8::1", "2001:db8::2", 25, ALICE),
        Sample("Ignore", "ingress", "192.0.2.1", "10.0.0.5", 443),
        Sample("Ignore", "internal", "127.0.0.1", "127.0.0.1", 443, ALICE, NGINX),
    ],
    "only-a-unit.conf": [
        Sample("Report", "ingress", "192.0.2.1", "10.0.0.5", 443, NGINX),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 443, NGINX),
        Sample("Report", "internal", "127.0.0.1", "127.0.0.1", 443, ALICE, NGINX),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 443, USER_ONLY),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.1", 443),
        Sample("Ignore", "egress", "10.0.0.5", "192.0.2.1", 443, ALICE),
        Sample("Ignore", "internal", "127.0.0.1", "127.0.0.1", 443, ALICE, MONITORING),
    ],
    "warn-of-others.conf": [
        Sample("Report", "egress", "10.0.0.5", "10.200.0.1", 22),
        Sample("Report", "egress", "10.0.0.5", "192.0.2.53", 53, ALICE),
        Sample("Report", "egress", "10.0.0.5", "198.51.100.7", 443, UPDATES),
        Sample("Report", "ingress", "198.51.100.7", "10.0.0.5", 443, NGINX),
        Sample("Report", "internal", "127.0.0.1", "127.0.0.1", 443, ALICE, NGINX),
        Sample("Warning", "egress", "10.0.0.5", "198.51.100.7", 443, ALICE),
        Sample("Warning", "egress", "10.0.0.5", "198.51.100.7", 443, USER_ONLY),
        Sample("Warning", "egress", "10.0.0.5", "198.51.100.7", 443),
        Sample("Warning", "egress", "10.0.0.5", "198.51.100.7", 25, UPDATES),
        Sample("Warning", "egress", "10.0.0.5", "192.0.2.53", 443),
        Sample("Warning", "egress", "2001:db8::1", "2001:db8::2", 443, NGINX),
    ],
}


def pack(address: str, port: int) -> Endpoint:
    return unmap(ipaddress.ip_address(address).packed + port.to_bytes(2, "big"))


def test_each_example_is_tried() -> None:
    files = {str(path.relative_to(FOLDER)) for path in FOLDER.rglob("*") if path.is_file()}
    assert files == {*CASES, OF_THE_UNIT, OF_NODE_EXPORTER, *OF_FAIL2BAN, *OF_PROMETHEUS}


@pytest.mark.parametrize(
    ("name", "sample"), [(name, sample) for name, samples in CASES.items() for sample in samples]
)
def test_what_becomes_of_connections(name: str, sample: Sample) -> None:
    settings = load(parse_arguments(["--config", str(FOLDER / name)]))
    assert settings.given == {}, "it goes with any other drop-in"
    source, destination = pack(sample.source, 40000), pack(sample.destination, sample.port)
    found = Connection(source, destination, sample.direction, TcpState.ESTABLISHED, "trace", 1)
    named = found._replace(owner=sample.owner, listener=sample.listener)
    number, _ = Rules(settings.rules).choose(found, lambda _: named)
    assert ("Report" if number is None else settings.rules[number].action) == sample.decision


@pytest.mark.parametrize("name", CASES)
def test_they_are_accepted_as_they_stand(name: str) -> None:
    result = run_program("--check-config", str(FOLDER / name))
    assert (result.returncode, result.stdout, result.stderr) == (0, "OK\n", "")


def test_the_one_of_the_unit_sets_the_namespace_alone() -> None:
    unit = ConfigParser()
    unit.read(FOLDER / OF_THE_UNIT)
    assert {name: dict(unit[name]) for name in unit.sections()} == {"Service": {"lognamespace": "tcpwatchd"}}


def test_the_one_of_node_exporter_binds_what_the_service_of_metrics_binds() -> None:
    bound = [
        re.findall(r"^BindReadOnlyPaths=(.*)$", path.read_text(), re.MULTILINE)
        for path in (FOLDER / OF_NODE_EXPORTER, PROJECT / "systemd/tcpwatchd-metrics.service")
    ]
    assert bound == [["-/run/private/tcpwatchd-state/metrics:/run/tcpwatchd-metrics"]] * 2


@pytest.mark.parametrize("name", sorted(OF_FAIL2BAN))
def test_those_of_fail2ban_say_where_they_go(name: str) -> None:
    text = (FOLDER / name).read_text()
    (folder,) = re.findall(r"^# Copy to /etc/(fail2ban/\w+\.d)\b", text, re.MULTILINE)
    assert f"{folder}/tcpwatchd.conf" == name
    assert all(len(line) <= 110 for line in text.splitlines())


def read_fail2ban(folder: str) -> ConfigParser:
    parser = ConfigParser({"__prefix_line": PREFIX})
    parser.read(FOLDER / f"fail2ban/{folder}/tcpwatchd.conf")
    return parser


SIX, NETWORK = bytes.fromhex("20010db8000100020000000000000005"), bytes.fromhex("20010db800010002" + 16 * "0")
SCANS = {
    "one": ("192.0.2.7", SCAN),
    "one that goes on": ("192.0.2.7", SCAN._replace(goes_on="ports", is_least=True)),
    "one port more": ("192.0.2.7", SCAN._replace(goes_on="ports", closed_ports=[])),
    "several addresses": ("192.0.2.7", SCAN._replace(destinations=[bytes(4), bytes(4)])),
    "a port at many": (
        "192.0.2.7",
        SCAN._replace(closed_ports=[], destinations=[bytes(4)] * 256, is_least=True),
    ),
    "IPv6": ("2001:db8:1:2::5", SCAN._replace(address=SIX)),
    "a network": ("2001:db8:1:2::/64", SCAN._replace(address=SIX, network=(NETWORK, 64), goes_on="again")),
}


@pytest.mark.parametrize("name", SCANS)
def test_fail2ban_finds_who_scans(name: str) -> None:
    source, scan = SCANS[name]
    line = f"host tcpwatchd[12]: {event.port_scan(scan, 0, 0, 0).fields['MESSAGE']}"
    found = re.search(read_fail2ban("filter.d")["Definition"]["failregex"].replace("<SUBNET>", SUBNET), line)
    assert found
    assert found["subnet"] == source


def test_fail2ban_takes_nobody_else_for_one() -> None:
    pattern = read_fail2ban("filter.d")["Definition"]["failregex"].replace("<SUBNET>", SUBNET)
    message = event.port_scan(SCAN, 0, 0, 0).fields["MESSAGE"]
    others = [event.scans_unfollowed(7, 0).fields["MESSAGE"], f"New connection: {message}", f"{message} (x)"]
    for other in (*others, message.replace("192.0.2.7", "a.example"), f"{message} {message}"):
        assert not re.search(pattern, f"host tcpwatchd[12]: {other}"), other


def test_fail2ban_reads_what_the_service_itself_wrote_of_scans() -> None:
    """Also by the line that is not in force."""
    one = f"MESSAGE_ID={event.PORT_SCAN} _SYSTEMD_UNIT=tcpwatchd.service"
    assert read_fail2ban("filter.d")["Definition"]["journalmatch"] == one
    text = (FOLDER / "fail2ban/filter.d/tcpwatchd.conf").read_text()
    verified = event.port_scan(SCAN._replace(is_verified=True), 0, 0, 0).fields["TCPWATCHD_SOURCE_VERIFIED"]
    assert f"\n#journalmatch = %(_entries)s TCPWATCHD_SOURCE_VERIFIED={verified}\n" in text
    jail = read_fail2ban("jail.d")["tcpwatchd"]
    assert [jail[key] for key in ("backend", "filter", "banaction")] == ["systemd", "tcpwatchd", "tcpwatchd"]
